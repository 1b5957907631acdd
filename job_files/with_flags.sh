# Sourced by the last line of every flag file (such as model_train_config.sh): trains with "${flags[@]}" and the flags of the
# command line. In a Slurm job it runs launch.job, which also shows the progress in the job's comment.

if [ -z "${deepsports_ready+x}" ]; then # a copy of a flag file, outside of the repository
    builtin source "$DEEPSPORTS_HOME/job_files/environment.sh" || exit 2
elif [ -z "$deepsports_ready" ]; then # environment.sh failed, and has printed its error
    exit 2
fi
if [ "${1:-}" = "--print_flags" ]; then # for launch.submit
    printf '%s\0' "training flags:" "${flags[@]}"
    exit 0
fi
builtin cd "$DEEPSPORTS_HOME"
training=(training.train)
[ -z "${SLURM_JOB_ID:-}" ] || training=(launch.job run)
exec bash job_files/hold_signals.sh python -m "${training[@]}" "${flags[@]}" "$@" # exec: signals must reach python
