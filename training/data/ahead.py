"""The next batch is copied to the GPU while the training computes with the present one."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from functools import partial
from typing import Protocol, TypeVar

import torch

from training.data.batch import Batch

Item = TypeVar("Item")


class Side(Protocol):
    """Work beside the training's own, such as that of a CUDA stream."""

    def begin(self, make: Callable[[], Batch]) -> Callable[[], Batch]:
        """Begin to make a batch; the result, called when the training needs the batch, waits for it."""
        ...


def copied_ahead(loaded: Iterable[Item], finish: Callable[[Item], Batch], side: Side) -> Generator[Batch]:
    """`finish` of each item, begun beside the training one item ahead of it."""
    ready: Callable[[], Batch] | None = None
    for item in loaded:
        begun = side.begin(partial(finish, item))
        if ready is not None:
            yield ready()
        ready = begun
    if ready is not None:
        yield ready()


class SideStream:
    """A CUDA stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream = device, torch.cuda.Stream(device)

    def begin(self, make: Callable[[], Batch]) -> Callable[[], Batch]:
        with torch.cuda.stream(self.stream):
            batch = make()
            made = self.stream.record_event()

        def ready() -> Batch:
            training = torch.cuda.current_stream(self.device)
            training.wait_event(made)
            # its memory belongs to the side stream, which must not use it again before the training has
            return batch.map(lambda tensor: _used_on(training, tensor))

        return ready


def _used_on(stream: torch.cuda.Stream, tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_cuda:
        tensor.record_stream(stream)
    return tensor
