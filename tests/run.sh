#!/usr/bin/env bash
# Run the whole test suite: installs what the tests need, starts a real Slurm where that is possible (root on
# Debian/Ubuntu), runs pytest, and stops what it started.
#
#     bash tests/run.sh [pytest arguments]
#
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # sh or zsh was asked to run this
set -euo pipefail
unset CDPATH
cd "$(dirname -- "${BASH_SOURCE[0]}")/.."

no_slurm=""
if [ "$(id -u)" -ne 0 ]; then
    no_slurm="it needs root (network namespaces, Debian packages)"
elif ! grep -qiE '^ID(_LIKE)?=.*(debian|ubuntu)' /etc/os-release 2>/dev/null; then
    no_slurm="it is made for Debian and Ubuntu"
fi

if [ -z "$no_slurm" ]; then
    bash tests/cluster/install.sh python3-venv python3-dev g++ # the last three for job_files/setup.sh
fi
bash job_files/setup.sh --tests
source job_files/environment.sh

if [ -z "$no_slurm" ]; then
    trap 'bash tests/cluster/stop.sh' EXIT
    bash tests/cluster/start.sh
    source "${DEEPSPORTS_CLUSTER_DIR:-/tmp/deepsports-cluster}/env.sh"
    export DEEPSPORTS_REQUIRE_SLURM=1 # from here on a test that finds no Slurm fails instead of being skipped
else
    echo "The tests on a real Slurm are left out: $no_slurm."
fi

status=0
python -m pytest "$@" || status=$?
[ -z "$no_slurm" ] || echo "Left out, the tests on a real Slurm: $no_slurm."
exit "$status"
