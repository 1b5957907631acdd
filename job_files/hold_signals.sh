#!/usr/bin/env bash
# Run a training process so that a signal is never lost: those that end a job wait (they are blocked, which a program
# inherits) until the process is ready for them (training/runtime/interruption.py, where the exit statuses are explained).
#
#     bash job_files/hold_signals.sh python -m launch.job [training flags]

trap 'exit 75' USR2 # told to stop before anything began
trap 'exit 143' TERM
trap 'exit 129' HUP
trap 'exit 130' INT
signals=HUP,INT,TERM,USR2
if env --block-signal="$signals" true 2>/dev/null; then # coreutils 8.31 and newer
    exec env --block-signal="$signals" "$@"
fi
exec python -IS -c '
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [getattr(signal, f"SIG{name}") for name in sys.argv[1].split(",")])
os.execvp(sys.argv[2], sys.argv[2:])
' "$signals" "$@"
