#!/usr/bin/env bash
# Run the whole test suite: install what the tests need, run the tests without Slurm in two processes, then start a real Slurm
# if possible (root on Debian or Ubuntu), run the tests that need it, and stop the cluster. With --fast, leave out the tests
# that need Slurm and those that take long: no cluster, no root, about 3 minutes on two cores.
#
#     bash tests/run.sh [--fast] [pytest arguments]
#
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # if sh or zsh runs this file
set -euo pipefail
unset CDPATH
cd "$(dirname -- "${BASH_SOURCE[0]}")/.."

no_slurm=""
first="not slurm"
if [ "${1:-}" = --fast ]; then
    shift
    no_slurm="--fast"
    first="not slurm and not slow"
elif [ "$(id -u)" -ne 0 ]; then
    no_slurm="it needs root (network namespaces, Debian packages)"
elif ! grep -qiE '^ID(_LIKE)?=.*(debian|ubuntu)' /etc/os-release 2>/dev/null; then
    no_slurm="it is made for Debian and Ubuntu"
fi

if [ -z "$no_slurm" ]; then
    # the first three for job_files/setup.sh, the last two for pages
    bash tests/cluster/install.sh python3-venv python3-dev g++ chromium chromium-driver
fi
bash job_files/setup.sh --tests
source job_files/environment.sh

# With arguments such as a file or -k, one of the two parts may have no test: pytest then ends with status 5
no_test=5
found=0 # tests were run
status=0
part() {
    local result=0
    python -m pytest "$@" || result=$?
    [ "$result" -eq "$no_test" ] || found=1
    [ "$result" -eq 0 ] || [ "$result" -eq "$no_test" ] || status=$result
}

# Two processes, whole files each, in the order of conftest.py. One thread each: two processes of two threads need a fifth more CPU
# time on two cores. A process that a hanging test ended is not replaced: its successor would hang in the same test.
OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" part -m "$first" -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0 "$@"
if [ -z "$no_slurm" ]; then
    trap 'bash tests/cluster/stop.sh' EXIT
    bash tests/cluster/start.sh
    source "${DEEPSPORTS_CLUSTER_DIR:-/tmp/deepsports-cluster}/env.sh"
    export DEEPSPORTS_REQUIRE_SLURM=1 # a test that finds no Slurm now fails instead of being skipped
    part -m slurm "$@"
else
    echo "The tests on a real Slurm are left out: $no_slurm."
fi
[ "$found" -eq 1 ] || status=$no_test
exit "$status"
