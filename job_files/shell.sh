# What job_files/environment.sh does about the shell and the environment that it is sourced from; nothing of a site. Sourced
# by bash and by zsh, with environment.sh's own path in deepsports_file.

deepsports_ready=""

# A script's own commands: not a function that its caller exported under their names
case $- in
    *i*) ;;
    *) unset -f cd pwd source python srun scontrol 2>/dev/null || true ;;
esac

# cd prints where it went when CDPATH is set
deepsports_home="$(unset CDPATH && builtin cd -- "$(dirname -- "$deepsports_file")/.." >/dev/null && builtin pwd)" || return 2
if [ -n "${ZSH_VERSION:-}" ]; then
    case "$ZSH_EVAL_CONTEXT" in *file*file*) deepsports_sourced=yes ;; *) deepsports_sourced="" ;; esac
else
    [ "$deepsports_file" = "$0" ] && deepsports_sourced="" || deepsports_sourced=yes
fi
if [ -z "$deepsports_sourced" ]; then
    echo "error: $deepsports_file sets variables of your shell, so source it: source $deepsports_file" >&2
    exit 2
fi
case "$0" in *.sh) deepsports_script="$0" ;; *) deepsports_script=/dev/null ;; esac
deepsports_windows="$(command grep -l -- $'\r' "$deepsports_home"/job_files/*.sh "$deepsports_script" 2>/dev/null | head -n 1)" || true
if [ -n "$deepsports_windows" ]; then
    printf '%s\n' "error: $deepsports_windows has Windows line ends: convert the scripts (in the repository: sed -i 's/\\r\$//' *.sh */*.sh */*.job)" >&2
    return 2
fi

# What another checkout's environment.sh has put into this shell is that checkout's (but its
# virtual environment will do where this one has none). A run's copy of the code (code.json
# lies in it) keeps the folders of the checkout that it was submitted from.
deepsports_old="${DEEPSPORTS_HOME:-}"
if [ -n "$deepsports_old" ] && [ "$deepsports_old" != "$deepsports_home" ] && [ ! -f "$deepsports_home/code.json" ]; then
    [ "${DEEPSPORTS_VENV:-}" != "$deepsports_old/.venv" ] || [ ! -e "$deepsports_home/.venv" ] || unset DEEPSPORTS_VENV
    [ "${DEEPSPORTS_RUNS:-}" != "$deepsports_old/runs" ] || unset DEEPSPORTS_RUNS
    [ "${DEEPSPORTS_SCRATCH:-}" != "$deepsports_old/scratch" ] || unset DEEPSPORTS_SCRATCH
    [ "${DEEPSPORTS_DATASET:-}" != "$deepsports_old/scratch/DeepSports_dataset" ] || unset DEEPSPORTS_DATASET
fi
export DEEPSPORTS_HOME="$deepsports_home"

# Containers run under numbers that have no name and no home
export HOME="${HOME:-$(unset HOME && printf '%s' ~)}"
export USER="${USER:-${LOGNAME:-$(id -un 2>/dev/null || id -u)}}"
export LOGNAME="${LOGNAME:-$USER}"

# deepsports_path NAME: makes the path in a variable absolute
deepsports_path() {
    eval "deepsports_value=\"\$$1\""
    case "$deepsports_value" in
        *'$'* | *$'\n'* | *$'\r'* | '~'[!/]*)
            echo "error: $1 is '$deepsports_value', which was not expanded: give a path without '\$', '~name' and line ends" >&2
            return 2
            ;;
        '~'*) deepsports_value="$HOME${deepsports_value#\~}" ;;
        /*) ;;
        *) deepsports_value="$DEEPSPORTS_HOME/$deepsports_value" ;;
    esac
    eval "export $1=\"\$deepsports_value\""
}

# Checks the Python that sections 1 and 2 gave, and undoes what would change it
deepsports_settle() {
    if [ -e "$DEEPSPORTS_VENV/bin/activate" ] && [ -n "${VIRTUAL_ENV:-}" ]; then
        if [ ! -x "$DEEPSPORTS_VENV/bin/python" ]; then
            echo "error: $DEEPSPORTS_VENV/bin/python cannot be run here (it is $(readlink -f "$DEEPSPORTS_VENV/bin/python" 2>/dev/null)): load the module that it was made with in job_files/environment.sh, or delete it and run bash job_files/setup.sh" >&2
            return 2
        fi
        if ! [ "$VIRTUAL_ENV" -ef "$DEEPSPORTS_VENV" ]; then
            echo "error: $DEEPSPORTS_VENV was moved after it was made (as $VIRTUAL_ENV): delete it and run bash job_files/setup.sh" >&2
            return 2
        fi
    elif [ -z "${deepsports_setup:-}" ] && ! python -c 'import importlib.util, sys; sys.exit(not importlib.util.find_spec("torch"))' 2>/dev/null; then
        # no virtual environment: the Python of conda or of a container will do where it has the packages
        echo "error: $DEEPSPORTS_VENV is not there and $(command -v python || echo python) has no torch: run bash job_files/setup.sh" >&2
        return 2
    fi

    # Modules set PYTHONPATH; what lies there would be imported instead of the environment's packages
    if [ -n "${PYTHONPATH:-}" ] && [ "$PYTHONPATH" != "${DEEPSPORTS_PYTHONPATH:-}" ]; then
        echo "note: PYTHONPATH ($PYTHONPATH) is left out, its packages would replace those of $(command -v python); DEEPSPORTS_PYTHONPATH is taken instead" >&2
    fi
    # and these change what Python finds, prints or leaves out
    unset PYTHONPATH PYTHONHOME PYTHONSAFEPATH PYTHONINSPECT PYTHONOPTIMIZE PYTHONPLATLIBDIR PYTHONIOENCODING PYTHONUTF8
    [ -z "${DEEPSPORTS_PYTHONPATH:-}" ] || export PYTHONPATH="$DEEPSPORTS_PYTHONPATH"
    # so would ~/.local, which conda's Python reads and a virtual environment's does not
    [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] || export PYTHONNOUSERSITE="${PYTHONNOUSERSITE:-1}"

    if [ -n "${SLURM_JOB_ID:-}" ]; then
        # A job of `sbatch --export=NONE` tells srun to pass on nothing, not even PATH
        export SLURM_EXPORT_ENV=ALL
        # A job that was submitted from inside another one has that one's variables, too, and srun refuses them
        case "${SLURM_MEM_PER_CPU:+1}${SLURM_MEM_PER_GPU:+1}${SLURM_MEM_PER_NODE:+1}" in
            11*) unset SLURM_MEM_PER_CPU SLURM_MEM_PER_GPU SLURM_MEM_PER_NODE ;; # it takes the memory of the job
        esac
        unset SLURM_CPU_BIND SLURM_CPU_BIND_LIST SLURM_CPU_BIND_TYPE SLURM_CPU_BIND_VERBOSE
    fi

    # Slurm does not make the folder of a job's output: a job whose folder is missing fails without a word
    [ -f "$DEEPSPORTS_HOME/code.json" ] || mkdir -p "$DEEPSPORTS_HOME/slurm_logs" 2>/dev/null || true

    deepsports_ready=yes
    unset -f deepsports_path deepsports_settle
    unset deepsports_file deepsports_home deepsports_old deepsports_sourced deepsports_windows deepsports_script deepsports_value
}
