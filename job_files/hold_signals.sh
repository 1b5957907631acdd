#!/usr/bin/env bash
# Start a training process with the signals that stop a job blocked: one that comes while Python starts stays pending until
# training/runtime/interruption.py handles it. The exit statuses are those of training/runtime/statuses.py.
#
#     bash job_files/hold_signals.sh python -m launch.job run [training flags]

trap 'exit 75' USR2
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
