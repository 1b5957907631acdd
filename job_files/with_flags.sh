# The last line of every flag file (model_train_config.sh): trains with "${flags[@]}" and what the command line adds.
# Inside a Slurm job the training also keeps the job's comment up to date (launch.job); elsewhere it is training.train.

if [ "${1:-}" = "--print_flags" ]; then # launch.submit asks
    printf '%s\0' "training flags:" "${flags[@]}"
    exit 0
fi
cd "$DEEPSPORTS_HOME"
training=training.train
[ -z "${SLURM_JOB_ID:-}" ] || training=launch.job
exec bash job_files/hold_signals.sh python -m "$training" "${flags[@]}" "$@" # exec: signals must reach python
