# The one place where a site is described. Every job file and script sources it; source it yourself once in a login
# shell (bash or zsh), so that sbatch and squeue know your account too:
#
#     source job_files/environment.sh
#
# A value that is set already (in your shell, by a test) is kept. A relative path is relative to the repository.
#
[ -n "${BASH_VERSION:-}${ZSH_VERSION:-}" ] || { echo "error: this shell cannot source job_files/environment.sh: type bash or zsh first" >&2; return 2 || exit 2; } # a comment ends these three lines, so that they also run with Windows line ends
if [ -n "${ZSH_VERSION:-}" ]; then eval 'deepsports_file="${(%):-%x}"'; else deepsports_file="${BASH_SOURCE[0]}"; fi # fish and csh cannot read this: type bash or zsh first
if command grep -q $'\r' "$deepsports_file"; then printf '%s\n' "error: $deepsports_file has Windows line ends: convert the scripts (in the repository: sed -i 's/\\r\$//' *.sh */*.sh */*.job)" >&2; return 2 2>/dev/null || exit 2; fi #

[ ! -L "$deepsports_file" ] || deepsports_file="$(readlink -f -- "$deepsports_file")"
builtin source "$(dirname -- "$deepsports_file")/shell.sh" || return 2

case $- in *u*) deepsports_strict=u ;; *) deepsports_strict="" ;; esac
set +u # modules and conda use variables that are not set

# --- 1. Modules of your cluster, if it has any --------------------------------------------------------------------
# module purge
# module load gcc/13 python/3.11 cuda/12.8

# --- 2. Python: the virtual environment that job_files/setup.sh makes; for conda, activate that here instead -----------
export DEEPSPORTS_VENV="${DEEPSPORTS_VENV:-$DEEPSPORTS_HOME/.venv}"
deepsports_path DEEPSPORTS_VENV || return 2
if [ -f "$DEEPSPORTS_VENV/bin/activate" ]; then
    builtin source "$DEEPSPORTS_VENV/bin/activate"
fi
# source "$(conda info --base)/etc/profile.d/conda.sh" && conda activate deepsports

# Which torch job_files/setup.sh installs. Without these lines: the version in requirements.txt, from pip's default index.
# export DEEPSPORTS_TORCH_INDEX=URL      # another CUDA build: the index URL that pytorch.org prints for it, or a folder of wheels
# export DEEPSPORTS_TORCH="torch==2.12.1 torchvision==0.27.1"    # another version
# export DEEPSPORTS_TORCH=installed      # the torch that a module above (or this Python) has

[ -z "$deepsports_strict" ] || set -u

# --- 3. Account and partition that jobs are charged to and sent to (empty: the site's defaults) -------------------------
deepsports_account=""
deepsports_partition=""
[ -z "$deepsports_account" ] || export SBATCH_ACCOUNT="${SBATCH_ACCOUNT:-$deepsports_account}"
[ -z "$deepsports_partition" ] || export SBATCH_PARTITION="${SBATCH_PARTITION:-$deepsports_partition}"

# --- 4. Scratch: large and fast, for videos and frames -------------------------------------------------------------
if [ -z "${DEEPSPORTS_SCRATCH:-}" ]; then
    if [ -d "/scratch1/$USER" ]; then
        DEEPSPORTS_SCRATCH="/scratch1/$USER"
    elif [ -n "${SCRATCH:-}" ]; then
        DEEPSPORTS_SCRATCH="$SCRATCH"
    else
        DEEPSPORTS_SCRATCH="$DEEPSPORTS_HOME/scratch"
    fi
fi
export DEEPSPORTS_SCRATCH
deepsports_path DEEPSPORTS_SCRATCH || return 2
export DEEPSPORTS_DATASET="${DEEPSPORTS_DATASET:-$DEEPSPORTS_SCRATCH/DeepSports_dataset}"
deepsports_path DEEPSPORTS_DATASET || return 2

# --- 5. Runs: checkpoints, plots, results; back up this folder ----------------------------------------------------------
export DEEPSPORTS_RUNS="${DEEPSPORTS_RUNS:-$DEEPSPORTS_HOME/runs}"
deepsports_path DEEPSPORTS_RUNS || return 2

# --- 6. Backbones and methods of your own, outside the repository: a folder with backbones/NAME and methods/NAME, if any -----
if [ -n "${DEEPSPORTS_PLUGINS:-}" ]; then
    export DEEPSPORTS_PLUGINS
    deepsports_path DEEPSPORTS_PLUGINS || return 2
fi

# hide log messages of torch's C++ code (host names of sockets, options of DDP), which need no action
export TORCH_CPP_LOG_LEVEL="${TORCH_CPP_LOG_LEVEL:-ERROR}"

# An OpenMP thread that waits spins for some 20 microseconds, then sleeps. If it slept at once, a step of the quick start took 1.4
# times as long on idle cores; if it spun for long, a training was up to 15 times slower on a machine with other load
if [ -z "${OMP_WAIT_POLICY:-}" ]; then # GOMP_SPINCOUNT would take precedence over the policy that a user chose
    export OMP_WAIT_POLICY=passive GOMP_SPINCOUNT="${GOMP_SPINCOUNT:-1000}"
fi

deepsports_settle || return 2
