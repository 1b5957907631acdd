# The last line of every flag file (model_train_config.sh): trains with "${flags[@]}" and what the command line adds.
# Inside a Slurm job the training also keeps the job's comment up to date (launch.job); elsewhere it is training.train.

if [ -z "${deepsports_ready+x}" ]; then # a copy of a flag file, in another folder than the repository's
    builtin source "$DEEPSPORTS_HOME/job_files/environment.sh" || exit 2
elif [ -z "$deepsports_ready" ]; then # environment.sh refused, and has said why
    exit 2
fi
if [ "${1:-}" = "--print_flags" ]; then # launch.submit asks
    printf '%s\0' "training flags:" "${flags[@]}"
    exit 0
fi
builtin cd "$DEEPSPORTS_HOME"
training=training.train
[ -z "${SLURM_JOB_ID:-}" ] || training=launch.job
exec bash job_files/hold_signals.sh python -m "$training" "${flags[@]}" "$@" # exec: signals must reach python
