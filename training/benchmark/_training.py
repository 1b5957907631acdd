"""Trainings of the benchmarks: a tiny network on drawn dives, in processes of their own."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from data_preparation.common.errors import UserError
from data_preparation.layout import DatasetLayout
from training.benchmark._result import Timing
from training.runtime.start_up import parts_in

DIVES = ("--videos", 1, "--dives", 24, "--width", 160, "--height", 90)
_NETWORK = (
    "--spatial_size", 64, "--embed_dim", 128, "--depth", 3, "--num_heads", 4, "--frame_num", 8, "--batch_size", 4,
    "--epochs", 1, "--log_every", 1, "--workers", 1,
)  # fmt: skip


def training_flags(layout: DatasetLayout, runs: Path, *flags: object) -> list[str]:
    """The command line of a tiny training."""
    data = [
        "--root_dir", layout.frames, "--annotation_path", layout.annotation_file, "--train_path", layout.train_file,
        "--test_path", layout.test_file, "--runs_dir", runs,
    ]  # fmt: skip
    return [str(word) for word in [*data, *_NETWORK, *flags]]


def run_process(command: Sequence[str], timing: Timing) -> str:
    """Run a Python command in a process of its own, add its seconds to `timing`, and return what it printed.

    Raises:
        UserError: it failed.
    """
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=dict(os.environ))
    timing.wall.append(time.perf_counter() - started)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    timing.cpu.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    if done.returncode:
        last = ((done.stderr or done.stdout).strip().splitlines() or ["no message"])[-1]
        raise UserError(f"python {' '.join(command[:2])} failed: {last}")
    return done.stdout + done.stderr


def start_up_parts(log: str) -> dict[str, float]:
    """The seconds of each part of the start-up that a training logged, and "all".

    Raises:
        UserError: the log has no such line.
    """
    parts = parts_in(log)
    if parts is None:
        raise UserError("the log of the training has no line about its start-up: it did not reach its first step")
    return parts
