#!/usr/bin/env bash
# Download the videos of the data set, on the login node:
#
#     bash data_preparation/download_videos.sh [--only 01 02] [flags of data_preparation.download]
#
set -euo pipefail #
builtin source "$(dirname -- "${BASH_SOURCE[0]}")/../job_files/environment.sh"
builtin cd "$DEEPSPORTS_HOME"
exec python -m data_preparation.download videos "$@"
