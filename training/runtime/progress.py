"""What a run says of itself while it trains: progress.json, which launch.status and Slurm's job comment read.

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
    """Where the time of some steps went: waiting for data, or computing."""

    def __init__(self) -> None:
        self.data_s = self.step_s = 0.0
        self.steps = 0

    def add(self, data_s: float, step_s: float) -> None:
        self.data_s, self.step_s, self.steps = self.data_s + data_s, self.step_s + step_s, self.steps + 1

    def means(self) -> dict[str, float]:
        """Seconds of one step."""
        return {"data_s": self.data_s / self.steps, "step_s": self.step_s / self.steps}

    def throughput(self, batch_size: int) -> dict[str, float]:
        """Seconds a step, dives a second over all processes, and the share of the time that waited for data."""
        total = self.data_s + self.step_s
        return {
            "seconds_per_step": total / self.steps,
            "dives_per_s": batch_size * self.steps / total,
            "data_share": self.data_s / total,
        }


@contextmanager
def record_failure(run: RunFolder, describe: Callable[[Exception], str]) -> Iterator[None]:
    """An error that ends the training is also the last word of progress.json, where launch.status finds it; `describe`
    gives it in one line."""
    try:
        yield
    except StoppedBySignal:
        raise
    except Exception as error:
        with suppress(OSError, UserError):  # a full disk, say: the error itself is what counts
            last = run.progress() or RunProgress("failed")
            run.write_progress(replace(last, state="failed", error=describe(error)))
        raise


class Progress:
    """Tells the world where the run is: progress.json, and whoever asked (Slurm's job comment). The first rank's voice;
    the others' are silent."""

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
        """'  eta 0:02:40' for a log line, by what was told last; '' where it is not known."""
        seconds = self.current.eta_s
        return "" if seconds is None else f"  eta {timedelta(seconds=round(seconds))}"

    def update(self, **fields: Any) -> None:
        """Say what is new, by the names of RunProgress; what was said before and is not said now stays."""
        if not self.ranks.is_first:
            return
        known = replace(self.current, **fields)
        self.current = self.run.write_progress(replace(known, eta_s=seconds_left(known)))
        if self.hook:
            self.hook(self.current)
