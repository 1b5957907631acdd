"""Batches of samples, in an order that depends only on (seed, epoch), from any step on."""

from __future__ import annotations

import itertools
import logging
import pickle
import warnings
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from data_preparation.common.errors import UserError, first_line
from data_preparation.common.limits import limit_error_text
from data_preparation.common.workers import kill_workers
from training.config import TrainConfig
from training.data.ahead import SideStream, copied_ahead
from training.data.batch import Batch
from training.data.buffers import SharedBuffers
from training.data.dataset import ActionDataset
from training.data.handover import Loaded
from training.data.sampling import epoch_order, rank_rows, repeats_before
from training.data.workers import (
    CONTEXT,
    Task,
    TaskReader,
    as_it_is,
    hidden_main_module,
    init_worker,
    read_batch,
    start_server,
    time_limit,
)
from training.runtime.interruption import ProcessLost
from training.runtime.ranks import Ranks

log = logging.getLogger(__name__)

# samples per batch and rank: without a graph, eight clips need about the memory of one clip in training
EVALUATION_BATCH = 8

# if workers cannot be started, the destructor of the incomplete iterator would fail without this attribute
_MultiProcessingDataLoaderIter._shutdown = True
# training.data.machine warns about too many workers
warnings.filterwarnings("ignore", message="This DataLoader will create")

_abandoned: list[object] = []  # pools that must not be finalized: that would wait for their workers


def steps_per_epoch(samples: int, batch_size: int) -> int:
    """Number of complete batches; the remaining samples are dropped (drop_last), different ones in each epoch."""
    return samples // batch_size


def epoch_length(dataset: ActionDataset, batch_size: int) -> int:
    """Steps per epoch of a training set, with its repeats."""
    return steps_per_epoch(len(dataset) if dataset.repeats is None else sum(dataset.repeats), batch_size)


class _Pool:
    """The workers of a DataLoader, which load one pass after the other."""

    def __init__(self, workers: int, prefetch: int, pinned: bool) -> None:
        self.workers, self.prefetch, self.pinned = workers, prefetch, pinned
        self._tasks = _Tasks()
        self._finished = torch.zeros(1, dtype=torch.int64).share_memory_()
        start_server(workers)
        self._loader = DataLoader(
            TaskReader(SharedBuffers(prefetch, self._finished)),
            batch_sampler=self._tasks,
            collate_fn=as_it_is,
            num_workers=workers,
            prefetch_factor=prefetch,
            persistent_workers=True,
            pin_memory=pinned,
            worker_init_fn=init_worker,
            multiprocessing_context=CONTEXT,
        )
        self._batches: Any = None

    def fits(self, workers: int, prefetch: int, pinned: bool) -> bool:
        """Whether a pass that asks for these can use the pool: it has at least as many workers, and all of them live."""
        if self.workers < workers or (self.prefetch, self.pinned) != (prefetch, pinned):
            return False
        dead = [w for w in getattr(self._batches, "_workers", ()) if not w.is_alive()]
        if dead:
            log.warning("%d workers died between two passes over the data: all are started again", len(dead))
        return not dead

    def start(self, reader: Dataset, batches: Iterable[Sequence]) -> Iterator:
        """Start a pass: workers begin with the first batches, and the iterator yields what they load."""
        self._tasks.reader, self._tasks.batches = pickle.dumps(reader), batches
        with hidden_main_module():
            self._batches = iter(self._loader)
        return self._batches

    def has_copied(self) -> None:
        """Let a worker use the memory of the next batch again; batches arrive in order."""
        self._finished += 1

    def close(self) -> None:
        """End the workers, which are idle. Killed, they need no answer: one of them may be stopped."""
        for worker in getattr(self._batches, "_workers", ()):
            worker.kill()
        self._batches = self._loader._iterator = None

    def abandon(self) -> None:
        """Never end the workers, which were killed: that would wait for them."""
        if self._batches is not None:
            self._batches._shutdown = True  # also at the exit of Python
        _abandoned.append(self)


class _Tasks:
    """The batch sampler of a pool: it plans the samples of a batch just before a worker reads them."""

    def __init__(self) -> None:
        self.reader = b""
        self.batches: Iterable[Sequence] = ()
        self.numbers = itertools.count()

    def __iter__(self) -> Iterator[list[Task]]:
        reader = self.reader
        for planned in self.batches:
            yield [Task(reader, planned, next(self.numbers))]


_kept: list[_Pool] | None = None  # pools that wait for the next pass, inside `keep_workers`


@contextmanager
def keep_workers() -> Iterator[None]:
    """Inside, workers are started once, and all passes over data use them. Outside, each pass starts and ends its own."""
    global _kept
    if _kept is not None:
        yield
        return
    _kept = []
    try:
        yield
    finally:
        pools, _kept = _kept, None
        for pool in pools:
            pool.close()


def _pool_for(workers: int, prefetch: int, pinned: bool) -> _Pool:
    while _kept:
        pool = _kept.pop()
        if pool.fits(workers, prefetch, pinned):
            return pool
        pool.close()
    return _Pool(workers, prefetch, pinned)


def _load(
    dataset: ActionDataset, batches: Sequence[Sequence[tuple[int, ...]]], config: TrainConfig, device: torch.device
) -> Generator:
    """Load a pass, of which `batches` are the (epoch, index) or (epoch, index, repeat) of each batch, see ActionDataset.plan.
    Yields each Batch. For a GPU it yields each Loaded, which `_finish` copies there later; a Loaded of workers is in pinned memory.

    Raises:
        UserError: raised by a worker. ProcessLost: a worker died, or no batch arrived within --peer_timeout_min.
    """
    workers, minutes = min(config.loader_workers, len(batches)), config.peer_timeout_min
    planned = ([dataset.plan(*each) for each in batch] for batch in batches)
    if not workers:
        while True:
            with time_limit(minutes):
                if (batch := next(planned, None)) is None:
                    return
                loaded = read_batch(dataset.reader, batch)
            yield loaded if device.type == "cuda" else _finish(loaded, device)
    pools, left = [], len(batches)
    try:
        with time_limit(minutes):
            pools.append(_pool_for(workers, config.prefetch, device.type == "cuda"))
            found = pools[0].start(dataset.reader, planned)
        while left:
            with time_limit(minutes):
                loaded = next(found)
            # for a GPU the pin-memory thread of the DataLoader has copied it out of the worker's buffers
            copied = loaded if device.type == "cuda" else _finish(loaded, device)
            pools[0].has_copied()
            left -= 1
            yield copied
    except (UserError, OSError, EOFError, RuntimeError) as error:
        raise _worker_error(error) from None
    finally:
        if left:  # stopped early: do not wait for batches that the workers have begun
            kill_workers()
            for pool in [*pools, *(_kept or [])]:
                pool.abandon()
            if _kept is not None:
                _kept.clear()
        elif _kept is None:
            pools[0].close()
        else:
            _kept.append(pools[0])


def _finished(loaded: Generator, device: torch.device) -> Generator[Batch]:
    """The batches on the device, the next one copied while the training computes with the present one."""
    with closing(loaded):
        if device.type == "cuda":
            yield from copied_ahead(loaded, partial(_finish, device=device), SideStream(device))
        else:
            yield from loaded


def _finish(loaded: Loaded, device: torch.device) -> Batch:
    return loaded.finish(device) if isinstance(loaded, Loaded) else loaded


def _worker_error(error: Exception) -> Exception:
    """Turn an exception of a DataLoader with workers into one with a message that users can act on; return other exceptions
    unchanged."""
    text = str(error).rstrip()
    if isinstance(error, UserError):  # the DataLoader puts the worker's traceback before its message
        return UserError(text.rsplit("UserError: ", 1)[-1]) if text.startswith("Caught ") else error
    if limit := limit_error_text(error):
        return UserError(limit)
    if text.startswith("Caught "):  # raised by the data set in a worker; the text ends with the original message
        return UserError(f"{text.splitlines()[-1]}: fix the disk") if isinstance(error, OSError) else error
    if isinstance(error, RuntimeError) and not text.startswith(("DataLoader ", "Pin memory thread ")):
        return error
    # Anything else is a broken socket: the worker that shared tensors through it died
    return ProcessLost(
        f"a worker died ({first_line(error)}): if it was killed for lack of memory, request more memory or give fewer --workers"
    )


def training_batches(
    dataset: ActionDataset, config: TrainConfig, ranks: Ranks, device: torch.device, epoch: int, first_step: int
) -> Generator[Batch]:
    """This rank's rows of each global batch of an epoch, from `first_step` on."""
    order = epoch_order(len(dataset), config.seed, epoch, dataset.repeats).tolist()
    planned = [(epoch, index, repeat) for index, repeat in zip(order, repeats_before(order), strict=True)]
    size = config.batch_size
    batches = [
        rank_rows(planned[step * size : (step + 1) * size], ranks.rank, ranks.world_size)
        for step in range(first_step, epoch_length(dataset, size))
    ]
    return _finished(_load(dataset, batches, config, device), device)


def batches_of(
    dataset: ActionDataset, batches: list[list[tuple[int, int]]], config: TrainConfig, device: torch.device
) -> Generator[Batch]:
    """Load the given batches of (epoch, index) pairs, each split into batches of at most EVALUATION_BATCH."""
    size = EVALUATION_BATCH
    small_batches = [batch[start : start + size] for batch in batches for start in range(0, len(batch), size)]
    return _finished(_load(dataset, small_batches, config, device), device)


def evaluation_size(config: TrainConfig) -> int:
    """Actions in a batch of validation, test and prediction."""
    return min(config.batch_size // max(config.accumulate, 1) or EVALUATION_BATCH, EVALUATION_BATCH)


def evaluation_batches(
    dataset: ActionDataset, config: TrainConfig, ranks: Ranks, device: torch.device
) -> Generator[Batch | None]:
    """Batches that together hold each view of each action exactly once over all ranks, without padding. Every rank yields equally
    often: None when only other ranks have a batch left.

    Which actions share a batch does not depend on the number of ranks: batches are formed first, then dealt to the ranks.
    """
    size, samples = evaluation_size(config), len(dataset) * dataset.views
    batches = [[(0, i) for i in range(start, min(start + size, samples))] for start in range(0, samples, size)]
    mine = batches[ranks.rank :: ranks.world_size]
    if mine:
        yield from _finished(_load(dataset, mine, config, device), device)
    rounds = -(-len(batches) // ranks.world_size)
    yield from [None] * (rounds - len(mine))
