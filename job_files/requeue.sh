# Sourced at the end of every training job, with the exit status of srun in deepsports_status: requeues the job if it is to
# go on, and ends it with that status. (training/interruption.py says what the statuses mean.)

deepsports_id="${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}" # never a whole array
deepsports_id="${deepsports_id:-$SLURM_JOB_ID}"
case "$deepsports_status" in
    75) deepsports_why="it was told to stop, and saved" ;;
    76) deepsports_why="one of its processes was lost" ;;
    130) # launch.status cancel: it saved first, and is to end as a cancelled job
        deepsports_why=""
        scancel "$deepsports_id" && sleep 60
        ;;
    143) deepsports_why="" ;; # cancelled; or preempted, and requeued by Slurm
    *)
        deepsports_why=""
        [ "$deepsports_status" -le 128 ] || deepsports_why="a process was killed (signal $((deepsports_status - 128)))"
        ;;
esac
if [ -n "$deepsports_why" ]; then
    if [ "${SLURM_RESTART_COUNT:-0}" -ge "${DEEPSPORTS_REQUEUES:-30}" ]; then
        echo "error: job $deepsports_id ended ($deepsports_why) and was restarted ${SLURM_RESTART_COUNT:-0} times already: submit the run again to go on" >&2
    else
        echo "Requeueing job $deepsports_id: $deepsports_why"
        scontrol requeue "$deepsports_id" ||
            echo "error: job $deepsports_id ended ($deepsports_why) and cannot be requeued from $(hostname): submit the run again to go on" >&2
    fi
fi
exit "$deepsports_status"
