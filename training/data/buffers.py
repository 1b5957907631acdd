"""Shared memory that a worker writes its batches to, again and again. New memory for each batch would cost a tenth of the decoding:
the kernel clears every page of it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_POLL = 5e-4  # seconds


class SharedBuffers:
    """Buffers of a worker for `batches` batches.

    The training process adds 1 to `finished` (1,) int64, which is in shared memory, when it has copied a batch. It does so in the order
    of the batches' numbers, which count from 0 over all workers.
    """

    def __init__(self, batches: int, finished: torch.Tensor) -> None:
        self._finished = finished
        self._numbers = [-1] * batches  # of the last batch that was written to each set of buffers
        self._sets: list[list[torch.UntypedStorage]] = [[] for _ in range(batches)]
        self._place, self._used = 0, 0

    @contextmanager
    def batch(self, number: int) -> Iterator[None]:
        """Inside, `empty_batch` makes the tensors of batch `number`. Waits until there are buffers that nobody reads."""
        global _in_use
        while (place := self._free()) is None:
            time.sleep(_POLL)
        self._numbers[place], self._place, self._used = number, place, 0
        _in_use = self
        try:
            yield
        finally:
            _in_use = None

    def clear(self) -> None:
        """Drop the buffers: batches of another data set may have other sizes. The training process keeps those that it still reads."""
        self._sets = [[] for _ in self._sets]

    def _free(self) -> int | None:
        finished = int(self._finished)
        return next((place for place, number in enumerate(self._numbers) if number < finished), None)

    def empty(self, size: int) -> torch.Tensor:
        """The next tensor (size,) uint8 of the batch, uninitialised."""
        buffers, place = self._sets[self._place], self._used
        if place == len(buffers) or buffers[place].nbytes() < size:
            del buffers[place : place + 1]  # before the larger one is made
            buffers.insert(place, torch.UntypedStorage._new_shared(size))
        self._used += 1
        return torch.empty(0, dtype=torch.uint8).set_(buffers[place])[:size]


_in_use: SharedBuffers | None = None


def empty_batch(*shape: int) -> torch.Tensor:
    """An uninitialised uint8 tensor, in a worker in shared memory, so that it is not copied for the hand-over."""
    if _in_use is None:
        return torch.empty(shape, dtype=torch.uint8)
    return _in_use.empty(math.prod(shape)).view(shape)
