"""What a run says of itself while it trains: progress.json, which launch.status and Slurm's job comment read."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch

from data_preparation.common.errors import UserError, first_line
from data_preparation.common.limits import shortage
from training.runtime.collectives import is_about_peers, plain_reason
from training.runtime.interruption import Interrupted
from training.runtime.ranks import Ranks, restart_count, slurm_job_id
from training.runtime.run_folder import RunFolder, read_json

ProgressHook = Callable[[dict[str, Any]], None]


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

    def news(self, batch_size: int) -> dict[str, float]:
        """Seconds a step, dives a second over all processes, and the share of the time that waited for data."""
        total = self.data_s + self.step_s
        return {
            "seconds_per_step": total / self.steps,
            "dives_per_s": batch_size * self.steps / total,
            "data_share": self.data_s / total,
        }


def peak_memory_gib(device: torch.device) -> float:
    """The largest memory so far of this process in GiB: the GPU's allocations, or resident memory on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def seconds_left(news: dict[str, Any]) -> float | None:
    """How long the steps that are left will take, by the last whole epoch (it has validation in it), else by a step."""
    left = max(news["steps"] - news["step"], 0)
    if news.get("epoch_s") is not None:
        return left * news["epoch_s"] * news["epochs"] / news["steps"]
    return None if news.get("seconds_per_step") is None else left * news["seconds_per_step"]


def _short(error: Exception) -> str:
    """An error in one line."""
    if is_about_peers(error):
        return f"lost contact with another process of the run ({plain_reason(error)})"
    return shortage(error) or first_line(error)


@contextmanager
def failure_recorded(run: RunFolder) -> Iterator[None]:
    """An error that ends the training is also the last word of progress.json, where launch.status finds it."""
    try:
        yield
    except Interrupted:
        raise
    except Exception as error:
        with suppress(OSError, UserError):  # a full disk, say: the error itself is what counts
            run.write_progress(
                {
                    **(read_json(run.progress_file) or {}),
                    "state": "failed",
                    "error": _short(error),
                }
            )
        raise


class Progress:
    """Tells the world where the run is: progress.json, and whoever asked (Slurm's job comment). The first rank's voice;
    the others' are silent."""

    def __init__(self, run: RunFolder, ranks: Ranks, device: torch.device, hook: ProgressHook | None) -> None:
        self.run, self.ranks, self.device, self.hook = run, ranks, device, hook
        self.known: dict[str, Any] = {
            "job_id": slurm_job_id(),
            "restarts": restart_count(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }

    def time_left_text(self) -> str:
        """'  eta 0:02:40' for a log line, by what was told last; '' where it is not known."""
        seconds = self.known.get("eta_s")
        return "" if seconds is None else f"  eta {timedelta(seconds=round(seconds))}"

    def tell(self, news: dict[str, Any]) -> None:
        """Say what is new; what was said before and is not said now stays."""
        if not self.ranks.is_first:
            return
        self.known |= {**news, "peak_memory_gib": peak_memory_gib(self.device)}
        self.known["eta_s"] = seconds_left(self.known)
        self.run.write_progress(self.known)
        if self.hook:
            self.hook(self.known)
