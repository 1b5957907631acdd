"""Progress of a run while it trains: progress.json for launch.status, and a hook for Slurm's job comment.

Imports no torch."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any

from data_preparation.common.errors import UserError
from training.runtime.interruption import StoppedBySignal
from training.runtime.ranks import Ranks, restart_count, slurm_job_id
from training.runtime.run_folder import RunFolder
from training.runtime.run_progress import RunProgress, seconds_left

ProgressHook = Callable[[RunProgress], None]


class Meter:
    """Sums up the time of steps: waiting for data, and computing."""

    def __init__(self) -> None:
        self.data_s = self.step_s = 0.0
        self.steps = 0

    def add(self, data_s: float, step_s: float) -> None:
        self.data_s, self.step_s, self.steps = self.data_s + data_s, self.step_s + step_s, self.steps + 1

    def means(self) -> dict[str, float]:
        """Mean seconds per step."""
        return {"data_s": self.data_s / self.steps, "step_s": self.step_s / self.steps}

    def throughput(self, batch_size: int) -> dict[str, float]:
        """Fields of RunProgress: seconds per step, actions per second over all ranks, fraction of the time that waited for data."""
        total = self.data_s + self.step_s
        return {
            "seconds_per_step": total / self.steps,
            "dives_per_s": batch_size * self.steps / total,
            "data_share": self.data_s / total,
        }


@contextmanager
def record_failure(run: RunFolder, describe: Callable[[Exception], str]) -> Iterator[None]:
    """Record an exception that ends the training in progress.json, for launch.status; `describe` turns it into one line."""
    try:
        yield
    except StoppedBySignal:
        raise
    except Exception as error:
        with suppress(OSError, UserError):  # on a full disk, say; raise the original error anyway
            last = run.progress() or RunProgress("failed")
            run.write_progress(replace(last, state="failed", error=describe(error)))
        raise


class Progress:
    """Writes progress.json and calls the hook, on the first rank only."""

    def __init__(self, run: RunFolder, ranks: Ranks, hook: ProgressHook | None) -> None:
        self.run, self.ranks, self.hook = run, ranks, hook
        self.current = RunProgress(
            "running",
            job_id=slurm_job_id(),
            restarts=restart_count(),
            host=socket.gethostname(),
            pid=os.getpid(),
        )

    def time_left_text(self) -> str:
        """'  eta 0:02:40' for a log line, from the last update; '' if unknown."""
        seconds = self.current.eta_s
        return "" if seconds is None else f"  eta {timedelta(seconds=round(seconds))}"

    def update(self, **fields: Any) -> None:
        """Set some fields of RunProgress, write progress.json and call the hook. The other fields keep their values."""
        if not self.ranks.is_first:
            return
        updated = replace(self.current, **fields)
        self.current = self.run.write_progress(replace(updated, eta_s=seconds_left(updated)))
        if self.hook:
            self.hook(self.current)
