# Sourced at the end of every training job, with the exit status of srun in deepsports_status: requeues the job if it is to
# go on, and ends it.
#
# srun tells only the largest status of all processes, and those that it kills because another one failed have large ones. So
# each process of the training leaves an empty file named after how it ended (launch.job; a full disk takes those, too), and
# only where they do not say does srun's status speak.

deepsports_id="${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}" # never a whole array
deepsports_id="${deepsports_id:-$SLURM_JOB_ID}"
deepsports_end="$deepsports_job/ended-${SLURM_RESTART_COUNT:-0}"
deepsports_told=" $({ ls "$deepsports_end" 2>/dev/null || true; } | sed -n 's/^rank[0-9]*-//p' | tr '\n' ' ')"
deepsports_ends="$(wc -w <<<"$deepsports_told")"
deepsports_why=""
if [ "$deepsports_ends" -eq 0 ] && [ "$deepsports_status" -eq 130 ]; then # ended by INT before it could say so
    deepsports_told=" 130 "
fi
case "$deepsports_told" in
    *" 2 "*) deepsports_status=2 ;;   # something to fix
    *" 70 "*) deepsports_status=70 ;; # a mistake in the program
    *" 130 "*)                        # launch.status cancel: it saved first, and is to end as a cancelled job
        deepsports_status=130
        scancel "$deepsports_id" && sleep 60
        ;;
    # after USR2, which Slurm alone sends: all ranks agreed to stop and the checkpoint is written, even if srun then killed those
    # that were slower to end
    *" 75 "*) deepsports_why="it was told to stop, and saved" ;;
    # after TERM or HUP; where a TERM is scancel's, it ends this script before it comes here
    *" 143 "* | *" 129 "*) [ "$deepsports_ends" -lt "${SLURM_NTASKS:-1}" ] || deepsports_why="it was told to stop, and saved" ;;
esac
case "$deepsports_why $deepsports_status" in
    " 2" | " 70" | " 130") ;;
    " "*)
        case "$deepsports_status" in
            0) ;;
            75 | 143 | 129 | 140) deepsports_why="it was told to stop" ;; # 140: USR2, before a process could catch it
            76) deepsports_why="one of its processes was lost" ;;
            *)
                deepsports_why="its processes could not be started (srun's status $deepsports_status)"
                [ "$deepsports_status" -le 128 ] ||
                    deepsports_why="a process was killed (signal $((deepsports_status - 128)))"
                ;;
        esac
        ;;
esac
case "$deepsports_why" in
    *"told to stop"*) # the last minutes of its time: Slurm's signal comes two minutes before the limit, or three
        deepsports_left="$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%L 2>/dev/null || true)"
        [[ ! "$deepsports_left" =~ ^0?[0-3]:[0-9][0-9]$ ]] || deepsports_why="$deepsports_why (near its time limit)"
        ;;
esac
if [ -n "$deepsports_why" ]; then
    mkdir -p "$deepsports_end" && echo "$deepsports_why" >|"$deepsports_end/why" || true
    if [ "${SLURM_RESTART_COUNT:-0}" -ge "${DEEPSPORTS_REQUEUES:-30}" ]; then
        echo "error: job $deepsports_id ended ($deepsports_why) and was restarted ${SLURM_RESTART_COUNT:-0} times already: submit the run again to go on" >&2
    else
        for deepsports_try in 1 2 3 4 5; do # a controller that is being restarted does not answer
            if scontrol show job "$deepsports_id" 2>/dev/null | grep -q JobState=CANCELLED; then
                break
            fi
            echo "Requeueing job $deepsports_id: $deepsports_why"
            # the training's last comment would be shown while the job waits
            scontrol update jobid="$deepsports_id" comment="${DEEPSPORTS_COMMENT:+$DEEPSPORTS_COMMENT: }waits to go on ($deepsports_why)" || true
            if scontrol requeue "$deepsports_id"; then
                sleep 60 # the requeue ends this script
                break
            fi
            [ "$deepsports_try" -lt 5 ] ||
                echo "error: job $deepsports_id cannot be requeued from $(hostname): submit the run again to go on" >&2
            sleep 10
        done
    fi
fi
exit "$deepsports_status"
