"""Signals that stop a training (time limit, preemption) only set a flag; the engine checks it after each step.

Slurm sends USR2 (--signal=USR2@...) before a time limit or a preemption, and TERM with scancel. A shell that is closed
sends HUP. Imports no torch, so that the handlers are installed before seconds of imports. Until then the signals are
pending: job_files/hold_signals.sh starts the process with them blocked.
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
_SHORT_S = 60  # warn if less time is left to train


def time_limit_warning(started: float, now: float, end: float) -> str | None:
    """A warning if a job's time limit leaves little time between its start-up and the signal before its end, else None.

    `started` and `end` are the job's, `now` is the end of its start-up, all in seconds of the same clock.
    """
    lead = min(SIGNAL_BEFORE_END_S, (end - started) / 2)
    start_up, left = now - started, end - lead - now
    if left >= max(start_up, _SHORT_S):
        return None
    return f"the start-up took {start_up / 60:.1f} of the job's {(end - started) / 60:.1f} minutes and the last {lead / 60:.1f} are reserved for saving, so {max(left, 0) / 60:.1f} are left to train after each start: ask for a longer time limit (--time, --time_min)"


class ProcessLost(UserError):
    """A worker or another rank died, hangs or did not connect. This process cannot fix that, but a restart of the job may."""


class StoppedBySignal(Exception):
    """A signal stopped the run after a step, with a checkpoint. `status` is the exit status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class InterruptionFlag:
    """Whether a signal asked this process to stop: `status` is the exit status for it, 0 without a signal."""

    def __init__(self) -> None:
        self.status = 0

    def install(self) -> InterruptionFlag:
        """Install the signal handlers, then unblock the signals, so pending ones arrive now. If SIGHUP is ignored (nohup), it
        stays ignored."""
        for number in STATUS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._remember)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STATUS)
        return self

    def ignore(self) -> None:
        """Ignore the signals: the process is about to end, and a signal must not change its exit status."""
        for number in STATUS:
            signal.signal(number, signal.SIG_IGN)

    def _remember(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and self.status:
            raise KeyboardInterrupt  # a second Ctrl-C stops at once
        self.status = max(self.status, STATUS[signal.Signals(number)])
