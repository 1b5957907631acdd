"""Signals that end a job (time limit, preemption) only set a flag here; the engine asks at each step boundary.

Slurm sends USR2 (--signal=USR2@...) before a time limit or a preemption, and TERM with scancel.
"""

from __future__ import annotations

import signal
from types import FrameType

import torch

from training.distributed import any_rank

SIGNALS = (signal.SIGUSR2, signal.SIGTERM)

# exit status of a training that saved and wants to go on (EX_TEMPFAIL); job files requeue on it
INTERRUPTED_STATUS = 75


class Interrupted(Exception):
    """The run stopped at a step boundary with a checkpoint, because of the signal it names."""


class InterruptionFlag:
    """Remembers that this process was told to stop. `install` keeps what handled the signals before in `previous`."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.previous: dict[int, object] = {}

    def install(self) -> InterruptionFlag:
        for number in SIGNALS:
            self.previous[number] = signal.signal(number, self._remember)
        return self

    def restore(self) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _remember(self, number: int, _: FrameType | None) -> None:
        self.received = signal.Signals(number)

    def agreed(self, device: torch.device) -> bool:
        """Whether any rank was told to stop; the same answer on all ranks, asked at the same step by all."""
        return any_rank(self.received is not None, device)
