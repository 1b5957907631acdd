"""A clip from the decoded cache of a node (--cache)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import torch

from training.benchmark._result import Row, Way, alternate
from training.config import TrainConfig
from training.data.cache import opened
from training.data.plan import ClipSpec
from training.data.sources import FrameSource


def cached_rows(config: TrainConfig, clips: Sequence[ClipSpec], reference: Way, folder: Path, rounds: int) -> list[Row]:
    """The time in which a worker writes one of the clips to its batch when all frames are in the cache, in memory and in `folder`."""
    rows = []
    for name, place in {"ram": "ram", "a folder": str(folder)}.items():
        cached = dataclasses.replace(config, cache=place)
        with opened(cached):
            source, turn = FrameSource(cached), cycle(clips)
            source.read_batch(clips)
            ways: dict[str, Way] = {"ours": lambda: source.read_batch([next(turn)]), "reference": reference}  # noqa: B023
            timings = alternate(ways, max(rounds, len(clips)), torch.device("cpu"), warm_up=2)
        rows.append(Row.of(f"- from --cache {name}, as a worker does", timings, "CPU"))
    return rows
