"""Signals that end a job (time limit, preemption) only set a flag here; the engine asks at each step boundary.

Slurm sends USR2 (--signal=USR2@...) before a time limit or a preemption, and TERM with scancel. A shell that is closed
sends HUP. Imports no torch, so that the flag stands before seconds of imports begin. Until it stands, the signals wait:
job_files/hold_signals.sh starts the process with them blocked.
"""

from __future__ import annotations

import signal
from types import FrameType

from data_preparation.common.errors import UserError
from training.runtime.statuses import Status

# the signals that stop a training at a step boundary, with its exit status then
STATUS = {
    signal.SIGUSR2: Status.STOPPED,
    signal.SIGTERM: Status.TERMINATED,
    signal.SIGHUP: Status.HANGUP,
    signal.SIGINT: Status.INTERRUPTED,
}

# seconds between Slurm's USR2 and the time limit (--signal): enough to finish a step and save
SIGNAL_BEFORE_END_S = 120
_SHORT_S = 60  # less time to train than this is worth a remark


def time_limit_warning(started: float, now: float, end: float) -> str | None:
    """A sentence where a job's time limit leaves little between its start-up and the signal before its end.

    `started` and `end` are those of the job, `now` is when its start-up is done, all in seconds of one clock.
    """
    lead = min(SIGNAL_BEFORE_END_S, (end - started) / 2)
    start_up, left = now - started, end - lead - now
    if left >= max(start_up, _SHORT_S):
        return None
    return f"of the job's {(end - started) / 60:.1f} minutes {start_up / 60:.1f} went into the start and the last {lead / 60:.1f} are for saving: {max(left, 0) / 60:.1f} are left to train each time it starts; ask for a longer time limit (--time, --time_min)"


class ProcessLost(UserError):
    """Another process of the run is gone, silent or did not come: nothing that this one could mend; the job may start again."""


class StoppedBySignal(Exception):
    """The run stopped at a step boundary with a checkpoint, because of a signal; `status` is the exit status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class InterruptionFlag:
    """Remembers that this process was told to stop."""

    def __init__(self) -> None:
        self.status = 0

    def install(self) -> InterruptionFlag:
        """Catch the signals from here on, and those that came while they were blocked. A SIGHUP that is ignored (nohup)
        stays ignored."""
        for number in STATUS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._remember)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STATUS)
        return self

    def ignore(self) -> None:
        """From here on the process ends by itself: a signal must not spoil its exit status."""
        for number in STATUS:
            signal.signal(number, signal.SIG_IGN)

    def _remember(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and self.status:
            raise KeyboardInterrupt  # a second Ctrl-C does not wait for the step boundary
        self.status = max(self.status, STATUS[signal.Signals(number)])
