# The part of job_files/environment.sh that no site needs to edit: it cleans the shell and the environment. environment.sh
# sources it, in bash or zsh, with its own path in deepsports_file.

deepsports_ready=""

# In a script, remove functions that the caller exported under the names of these commands
case $- in
    *i*) ;;
    *) unset -f cd pwd source python srun scontrol 2>/dev/null || true ;;
esac

# with CDPATH set, cd prints the folder
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

# Remove the variables that environment.sh of another checkout has set, except its virtual environment if this checkout has
# none. A copy of the code in a run folder (it has code.json) uses the folders of the checkout that it was copied from.
deepsports_old="${DEEPSPORTS_HOME:-}"
if [ -n "$deepsports_old" ] && [ "$deepsports_old" != "$deepsports_home" ] && [ ! -f "$deepsports_home/code.json" ]; then
    [ "${DEEPSPORTS_VENV:-}" != "$deepsports_old/.venv" ] || [ ! -e "$deepsports_home/.venv" ] || unset DEEPSPORTS_VENV
    [ "${DEEPSPORTS_RUNS:-}" != "$deepsports_old/runs" ] || unset DEEPSPORTS_RUNS
    [ "${DEEPSPORTS_SCRATCH:-}" != "$deepsports_old/scratch" ] || unset DEEPSPORTS_SCRATCH
    [ "${DEEPSPORTS_DATASET:-}" != "$deepsports_old/scratch/DeepSports_dataset" ] || unset DEEPSPORTS_DATASET
fi
export DEEPSPORTS_HOME="$deepsports_home"

# in a container the user id may have no name and no home
export HOME="${HOME:-$(unset HOME && printf '%s' ~)}"
export USER="${USER:-${LOGNAME:-$(id -un 2>/dev/null || id -u)}}"
export LOGNAME="${LOGNAME:-$USER}"

# deepsports_path NAME: make the path in a variable absolute
deepsports_path() {
    eval "deepsports_value=\"\$$1\""
    case "$deepsports_value" in
        *'$'* | *$'\n'* | *$'\r'* | '~'[!/]*)
            echo "error: $1 is '$deepsports_value', which the shell did not expand: give a path without '\$', '~name' and line breaks" >&2
            return 2
            ;;
        '~'*) deepsports_value="$HOME${deepsports_value#\~}" ;;
        /*) ;;
        *) deepsports_value="$DEEPSPORTS_HOME/$deepsports_value" ;;
    esac
    eval "export $1=\"\$deepsports_value\""
}

# Check the Python of sections 1 and 2, and remove variables that would change its behaviour
deepsports_settle() {
    if [ -e "$DEEPSPORTS_VENV/bin/activate" ] && [ -n "${VIRTUAL_ENV:-}" ]; then
        if [ ! -x "$DEEPSPORTS_VENV/bin/python" ]; then
            echo "error: $DEEPSPORTS_VENV/bin/python cannot run on this machine (it is $(readlink -f "$DEEPSPORTS_VENV/bin/python" 2>/dev/null)): load the module that created it in job_files/environment.sh, or delete it and run bash job_files/setup.sh" >&2
            return 2
        fi
        if ! [ "$VIRTUAL_ENV" -ef "$DEEPSPORTS_VENV" ]; then
            echo "error: $DEEPSPORTS_VENV was moved after it was created (as $VIRTUAL_ENV): delete it and run bash job_files/setup.sh" >&2
            return 2
        fi
    elif [ -z "${deepsports_setup:-}" ] && ! python -c 'import importlib.util, sys; sys.exit(not importlib.util.find_spec("torch"))' 2>/dev/null; then
        # no virtual environment: use the Python of conda or of a container if it has the packages
        echo "error: $DEEPSPORTS_VENV is missing, and $(command -v python || echo python) has no torch: run bash job_files/setup.sh" >&2
        return 2
    fi

    # environment modules set PYTHONPATH, and its packages would replace those of the virtual environment
    if [ -n "${PYTHONPATH:-}" ] && [ "$PYTHONPATH" != "${DEEPSPORTS_PYTHONPATH:-}" ]; then
        echo "warning: PYTHONPATH ($PYTHONPATH) is ignored, because its packages would replace those of $(command -v python): use DEEPSPORTS_PYTHONPATH instead" >&2
    fi
    # these change what Python finds or prints
    unset PYTHONPATH PYTHONHOME PYTHONSAFEPATH PYTHONINSPECT PYTHONOPTIMIZE PYTHONPLATLIBDIR PYTHONIOENCODING PYTHONUTF8
    [ -z "${DEEPSPORTS_PYTHONPATH:-}" ] || export PYTHONPATH="$DEEPSPORTS_PYTHONPATH"
    # packages in ~/.local would, too; a virtual environment ignores them, conda does not
    [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] || export PYTHONNOUSERSITE="${PYTHONNOUSERSITE:-1}"

    if [ -n "${SLURM_JOB_ID:-}" ]; then
        # after `sbatch --export=NONE`, srun would not even pass PATH
        export SLURM_EXPORT_ENV=ALL
        # a job that was submitted from inside of another job inherits variables that srun refuses
        case "${SLURM_MEM_PER_CPU:+1}${SLURM_MEM_PER_GPU:+1}${SLURM_MEM_PER_NODE:+1}" in
            11*) unset SLURM_MEM_PER_CPU SLURM_MEM_PER_GPU SLURM_MEM_PER_NODE ;; # srun uses the memory of the job
        esac
        unset SLURM_CPU_BIND SLURM_CPU_BIND_LIST SLURM_CPU_BIND_TYPE SLURM_CPU_BIND_VERBOSE
    fi

    # Slurm does not create the folder of a job's output: without it the job fails silently
    [ -f "$DEEPSPORTS_HOME/code.json" ] || mkdir -p "$DEEPSPORTS_HOME/slurm_logs" 2>/dev/null || true

    deepsports_ready=yes
    unset -f deepsports_path deepsports_settle
    unset deepsports_file deepsports_home deepsports_old deepsports_sourced deepsports_windows deepsports_script deepsports_value
}
