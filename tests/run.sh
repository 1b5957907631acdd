#!/usr/bin/env bash
# Run the whole test suite: install what the tests need, start a real Slurm if possible (root on Debian or Ubuntu), run
# pytest, and stop the cluster. With --fast, leave out the tests that need Slurm and those that take long: no cluster, no
# root, under 3 minutes on two cores.
#
#     bash tests/run.sh [--fast] [pytest arguments]
#
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # if sh or zsh runs this file
set -euo pipefail
unset CDPATH
cd "$(dirname -- "${BASH_SOURCE[0]}")/.."

no_slurm=""
selection=()
if [ "${1:-}" = --fast ]; then
    shift
    no_slurm="--fast"
    selection=(-m "not slurm and not slow" -n 2 --dist loadfile) # two processes, whole files each
elif [ "$(id -u)" -ne 0 ]; then
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
    export DEEPSPORTS_REQUIRE_SLURM=1 # a test that finds no Slurm now fails instead of being skipped
else
    echo "The tests on a real Slurm are left out: $no_slurm."
fi

status=0
python -m pytest ${selection[@]+"${selection[@]}"} "$@" || status=$?
[ -z "$no_slurm" ] || echo "The tests on a real Slurm are left out: $no_slurm."
exit "$status"
