"""Slow ranks: one whose own time per step is at least twice the median of the other ranks for 20 steps in a row.

The own time of a rank in a step begins when it asks for its batch and ends at its first collective: the wait for the batch
and the forward pass. What follows takes equally long on all ranks, since they wait for each other. The times are exchanged
only when a line is logged.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any, NamedTuple

import torch

from training.runtime import collectives

log = logging.getLogger(__name__)

SLOW_FACTOR = 2
SLOW_STEPS = 20


class OwnTime(NamedTuple):
    """Seconds of a rank in a step: all of its own time, and the part of it that waits for the batch."""

    own_s: float
    loading_s: float


class Stopwatch:
    """Measures the own times of this rank: call `start`, `loaded` and `exchange` once in each step.

    A GPU computes after the call returns, so there `start` and `exchange` record events. Time in which the GPU still computes
    the last step is then not counted as waiting.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._steps: list[tuple[Any, float, Any]] = []  # start, seconds of loading, exchange
        self._start: Any = None
        self._asked = self._loading_s = 0.0

    def start(self) -> None:
        """The rank asks for its batch."""
        self._asked = time.perf_counter()
        self._start = self._now()

    def loaded(self) -> None:
        """The batch has arrived."""
        self._loading_s = time.perf_counter() - self._asked

    def exchange(self) -> None:
        """The rank comes to its first collective of the step."""
        if self._start is not None:
            self._steps.append((self._start, self._loading_s, self._now()))
            self._start = None

    def take(self) -> list[OwnTime]:
        """The times of the steps since the last call. On a GPU it waits until the last of these steps has exchanged."""
        own = [(self._between(start, end), loading_s) for start, loading_s, end in self._steps]
        self._steps = []
        return [OwnTime(own_s, min(loading_s, own_s)) for own_s, loading_s in own]

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, start: Any, end: Any) -> float:
        if not self._on_gpu:
            return end - start
        end.synchronize()
        return start.elapsed_time(end) / 1e3


def median_of_the_others(times: Sequence[float]) -> float:
    """The median of all ranks but the slowest. For a rank at least twice as slow, it is the median of the other ranks (with two
    ranks, the time of the other one)."""
    return median(sorted(times)[:-1])


_ADVICE = {
    "loading": "look for other processes, a slow file system or too few CPU cores on that host",
    "computing": "look for other processes and a GPU with a low clock (nvidia-smi -q -d PERFORMANCE) on that host",
}


class SlowRank(NamedTuple):
    """A slow rank and its mean times per step in seconds. `mainly` is "loading" or "computing": where it loses more time."""

    rank: int
    host: str
    own_s: float
    others_s: float
    mainly: str

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host} is slow: {self.own_s * 1e3:.0f} ms of its own per step, the median of the others is {self.others_s * 1e3:.0f} ms; it loses the time {self.mainly}"


@dataclass
class SlowRanks:
    """Counts for each rank how many steps in a row it was slow. `named` are the ranks that are slow now."""

    streaks: list[int] = field(default_factory=list)
    named: dict[int, SlowRank] = field(default_factory=dict)

    def exchange(self, own: list[OwnTime]) -> str | None:
        """A collective, for a step that is logged: add the own times of all ranks, and log which ranks became slow or
        recovered. Returns the ranks that are slow now in one line, or None."""
        if collectives.world_size() == 1:
            return None
        hosts, times = zip(*collectives.gather_objects((socket.gethostname(), own)), strict=True)
        slow, recovered = self.add(hosts, times)
        if collectives.is_first():
            for each in slow:
                log.warning("%s: %s", each, _ADVICE[each.mainly])
            for rank in recovered:
                log.info("rank %d on %s is no longer slow", rank, hosts[rank])
        return "; ".join(map(str, self.named.values())) or None

    def add(self, hosts: Sequence[str], times: Sequence[Sequence[OwnTime]]) -> tuple[list[SlowRank], list[int]]:
        """Add the times of some steps, a list for each rank. Returns (ranks that became slow, ranks that are no longer slow). A
        rank that became slow and recovered within these steps is only in the first list, and not in `named`."""
        self.streaks = self.streaks or [0] * len(times)
        reached: set[int] = set()
        for step in zip(*times, strict=True):  # the times of all ranks
            limit = SLOW_FACTOR * median_of_the_others([each.own_s for each in step])
            self.streaks = [n + 1 if t.own_s >= limit > 0 else 0 for n, t in zip(self.streaks, step, strict=True)]
            reached |= {rank for rank, n in enumerate(self.streaks) if n == SLOW_STEPS}
        slow = {rank for rank, n in enumerate(self.streaks) if n >= SLOW_STEPS}
        described = {rank: describe(rank, hosts, times) for rank in slow | reached if times[rank]}
        recovered = sorted(set(self.named) - slow)
        self.named = {rank: described.get(rank) or self.named[rank] for rank in sorted(slow)}
        return [described[rank] for rank in sorted(reached)], recovered


def describe(rank: int, hosts: Sequence[str], times: Sequence[Sequence[OwnTime]]) -> SlowRank:
    """A slow rank with the mean times per step of the last steps."""
    own, loading = ([fmean(time[part] for time in of_rank) for of_rank in times] for part in (0, 1))
    others, others_loading = (median(each[:rank] + each[rank + 1 :]) for each in (own, loading))
    is_loading = loading[rank] - others_loading > (own[rank] - others) / 2
    return SlowRank(rank, hosts[rank], own[rank], others, "loading" if is_loading else "computing")
