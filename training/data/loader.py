"""Batches of samples, in an order that depends only on (seed, epoch), from any step on."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Iterator, Sequence

import torch
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from data_preparation.common.errors import UserError, first_line
from data_preparation.common.limits import limit_error_text
from data_preparation.common.workers import kill_workers
from training.config import TrainConfig
from training.data.batch import Batch
from training.data.dataset import ActionDataset, PlannedSample
from training.data.sampling import epoch_order, rank_rows, repeats_before
from training.data.workers import CONTEXT, hidden_main_module, init_worker, start_server, time_limit
from training.runtime.interruption import ProcessLost
from training.runtime.ranks import Ranks

# samples per batch and rank: without a graph, eight clips need about the memory of one clip in training
EVALUATION_BATCH = 8

# if workers cannot be started, the destructor of the incomplete iterator would fail without this attribute
_MultiProcessingDataLoaderIter._shutdown = True
# training.data.machine warns about too many workers
warnings.filterwarnings("ignore", message="This DataLoader will create")

_abandoned: list[object] = []  # iterators that must not be finalized: that would wait for their workers


def steps_per_epoch(samples: int, batch_size: int) -> int:
    """Number of complete batches; the remaining samples are dropped (drop_last), different ones in each epoch."""
    return samples // batch_size


def epoch_length(dataset: ActionDataset, batch_size: int) -> int:
    """Steps per epoch of a training set, with its repeats."""
    return steps_per_epoch(len(dataset) if dataset.repeats is None else sum(dataset.repeats), batch_size)


def _iterate(batches: DataLoader, minutes: float) -> Generator[Batch]:
    """Yield the batches of a DataLoader.

    Raises:
        UserError: raised by a worker. ProcessLost: a worker died, or no batch arrived within `minutes`.
    """
    loaded, left = None, len(batches)
    try:
        with time_limit(minutes), hidden_main_module():
            loaded = iter(batches)
        while left:
            with time_limit(minutes):
                batch = next(loaded)
            left -= 1
            yield batch
    except (UserError, OSError, EOFError, RuntimeError) as error:
        raise (_worker_error(error) if batches.num_workers else error) from None
    finally:
        if left:  # stopped early: do not wait for batches that the workers have begun
            kill_workers()
            _abandoned.append(loaded)


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


class PlannedBatches:
    """A batch sampler that plans the samples of a batch just before a worker reads them. `batches` holds (epoch, index), or
    (epoch, index, repeat), see ActionDataset.plan."""

    def __init__(self, dataset: ActionDataset, batches: Sequence[Sequence[tuple[int, ...]]]) -> None:
        self.dataset, self.batches = dataset, batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[PlannedSample]]:
        for batch in self.batches:
            yield [self.dataset.plan(*planned) for planned in batch]


def _load(
    dataset: ActionDataset, batches: Sequence[Sequence[tuple[int, ...]]], config: TrainConfig, device: torch.device
) -> DataLoader:
    workers = min(config.loader_workers, len(batches))
    start_server(workers)
    return DataLoader(
        dataset.reader,
        batch_sampler=PlannedBatches(dataset, batches),
        num_workers=workers,
        prefetch_factor=config.prefetch if workers else None,
        pin_memory=device.type == "cuda",
        worker_init_fn=init_worker,
        multiprocessing_context=CONTEXT if workers else None,
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
    return _iterate(_load(dataset, batches, config, device), config.peer_timeout_min)


def batches_of(
    dataset: ActionDataset, batches: list[list[tuple[int, int]]], config: TrainConfig, device: torch.device
) -> Generator[Batch]:
    """Load the given batches of (epoch, index) pairs, each split into batches of at most EVALUATION_BATCH."""
    size = EVALUATION_BATCH
    small_batches = [batch[start : start + size] for batch in batches for start in range(0, len(batch), size)]
    return _iterate(_load(dataset, small_batches, config, device), config.peer_timeout_min)


def evaluation_size(config: TrainConfig) -> int:
    """Actions in a batch of validation, test and prediction."""
    return min(config.batch_size // config.accumulate, EVALUATION_BATCH)


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
        yield from _iterate(_load(dataset, mine, config, device), config.peer_timeout_min)
    rounds = -(-len(batches) // ranks.world_size)
    yield from [None] * (rounds - len(mine))
