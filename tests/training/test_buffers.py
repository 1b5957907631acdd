"""The shared memory of workers: written again, and never while somebody reads it."""

from __future__ import annotations

from collections import deque
from itertools import chain
from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_preparation.layout import DatasetLayout
from training.benchmark.loader import data_set
from training.data.batch import Batch
from training.data.buffers import SharedBuffers, empty_batch
from training.data.loader import evaluation_batches, keep_workers, training_batches
from training.runtime.ranks import Ranks

WORKERS = 2


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 3),
    st.lists(st.tuples(st.integers(0, WORKERS), st.lists(st.integers(1, 300), max_size=2)), max_size=40),
)
def test_no_buffer_is_written_before_its_batch_is_finished(batches: int, events: list[tuple[int, list[int]]]):
    finished = torch.zeros(1, dtype=torch.int64)
    workers = [SharedBuffers(batches, finished) for _ in range(WORKERS)]
    unfinished: list[deque[tuple[int, list[torch.Tensor]]]] = [deque() for _ in workers]
    numbers = list(range(WORKERS))  # of the next batch of each worker
    for worker, sizes in events:
        if worker == WORKERS:  # the training process finishes with a batch, in the order of their numbers
            waiting = unfinished[int(finished) % WORKERS]
            if waiting:
                number, tensors = waiting.popleft()
                assert all((tensor == number % 251).all() for tensor in tensors)
                finished += 1
        elif len(unfinished[worker]) == batches:
            assert workers[worker]._free() is None  # it waits
        else:
            if not sizes:
                workers[worker].clear()  # as for another data set
            with workers[worker].batch(numbers[worker]):
                tensors = [empty_batch(size).fill_(numbers[worker] % 251) for size in sizes]
            assert [tensor.numel() for tensor in tensors] == sizes
            unfinished[worker].append((numbers[worker], tensors))
            numbers[worker] += WORKERS
    assert not empty_batch(4).is_shared()


def test_batches_of_workers_are_never_overwritten(dataset: Path):
    """Training and validation, whose batches have other sizes, in several passes of the same workers."""

    def batches(workers: int) -> list[Batch]:
        flags = {"batch_size": 3, "workers": workers, "prefetch": 1, "spatial_size": 64}
        training = data_set(DatasetLayout(dataset), 12, frame_num=4, **flags)
        validation = data_set(DatasetLayout(dataset), 5, frame_num=6, **flags)
        passes = (
            load
            for epoch in range(2)
            for load in (
                training_batches(training, training.config, Ranks(), torch.device("cpu"), epoch, 0),
                evaluation_batches(validation, validation.config, Ranks(), torch.device("cpu")),
            )
        )
        with keep_workers():
            return [batch for batch in chain.from_iterable(passes) if batch is not None]

    expected, found = batches(0), batches(2)
    assert len(expected) == len(found) == 12
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one.clips["clip"], other.clips["clip"])
