#!/usr/bin/env bash
# Download the videos of the data set, on the login node:
#
#     bash data_preparation/download_videos.sh [--only 01 02] [flags of data_preparation.download]
#
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # if sh or zsh runs this file
set -euo pipefail # stop at the first error
builtin source "$(dirname -- "${BASH_SOURCE[0]}")/../job_files/environment.sh" # also refuses Windows line endings
builtin cd "$DEEPSPORTS_HOME"
exec python -m data_preparation.download videos "$@"
