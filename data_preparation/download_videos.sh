#!/usr/bin/env bash
# Download the videos of the data set, on the login node:
#
#     bash data_preparation/download_videos.sh [--only 01 02] [flags of data_preparation.download]

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source job_files/environment.sh
exec python -m data_preparation.download videos "$@"
