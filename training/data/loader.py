"""Batches of samples, in an order that depends on (seed, epoch) alone and can be entered at any step."""

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
from training.data.sampling import epoch_order, rank_rows
from training.data.workers import CONTEXT, hidden_main_module, init_worker, start_server, time_limit
from training.runtime.interruption import ProcessLost
from training.runtime.ranks import Ranks

# dives of a process at once: without a graph to keep, eight clips take about what one takes in training
EVALUATION_BATCH = 8

# where its workers cannot be started, the destructor of the half-made iterator would print a traceback of its own
_MultiProcessingDataLoaderIter._shutdown = True
# the limits of the machine are told once, by training.data.machine
warnings.filterwarnings("ignore", message="This DataLoader will create")

_abandoned: list[object] = []  # iterators of DataLoaders that nobody waits for any more


def steps_per_epoch(samples: int, batch_size: int) -> int:
    """Whole batches only: the rest of an epoch's order (other actions each time) is left out."""
    return samples // batch_size


def epoch_length(dataset: ActionDataset, batch_size: int) -> int:
    """Steps of an epoch of a data set."""
    return steps_per_epoch(len(dataset) if dataset.repeats is None else sum(dataset.repeats), batch_size)


def _iterate(batches: DataLoader, minutes: float) -> Generator[Batch]:
    """The batches, while loader processes are well; what one of them raises keeps its type and its sentence.

    Raises:
        UserError: what a loader process raised. ProcessLost: a loader process is gone, or no batch came for so many minutes.
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
        if left:  # the training ends with it, and need not wait for what its processes have begun
            kill_workers()
            _abandoned.append(loaded)  # whose finalizer would wait for them


def _worker_error(error: Exception) -> Exception:
    """What a DataLoader with processes raised, as the sentence that it is about; as it is where it is none."""
    text = str(error).rstrip()
    if isinstance(error, UserError):  # of a worker it begins with a traceback
        return UserError(text.rsplit("UserError: ", 1)[-1]) if text.startswith("Caught ") else error
    if limit := limit_error_text(error):
        return UserError(limit)
    if text.startswith("Caught "):  # by a worker, in its dataset; its traceback follows
        return UserError(f"{text.splitlines()[-1]}: fix the disk") if isinstance(error, OSError) else error
    if isinstance(error, RuntimeError) and not text.startswith(("DataLoader ", "Pin memory thread ")):
        return error
    # the others are of the socket that a process hands its memory over by
    return ProcessLost(
        f"a worker is gone ({first_line(error)}): if it was killed for memory, ask for more of it or give fewer --workers"
    )


class PlannedBatches:
    """The samples of each batch, planned when a worker is about to read them. `batches` holds (epoch, index) pairs."""

    def __init__(self, dataset: ActionDataset, batches: Sequence[Sequence[tuple[int, int]]]) -> None:
        self.dataset, self.batches = dataset, batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[PlannedSample]]:
        for batch in self.batches:
            yield [self.dataset.plan(epoch, index) for epoch, index in batch]


def _load(
    dataset: ActionDataset, batches: list[list[tuple[int, int]]], config: TrainConfig, device: torch.device
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
    """This rank's share of each global batch of an epoch, from `first_step` on."""
    order = epoch_order(len(dataset), config.seed, epoch, dataset.repeats).tolist()
    size = config.batch_size
    batches = [
        [(epoch, index) for index in rank_rows(order[step * size : (step + 1) * size], ranks.rank, ranks.world_size)]
        for step in range(first_step, epoch_length(dataset, size))
    ]
    return _iterate(_load(dataset, batches, config, device), config.peer_timeout_min)


def batches_of(
    dataset: ActionDataset, batches: list[list[tuple[int, int]]], config: TrainConfig, device: torch.device
) -> Generator[Batch]:
    """Batches of the given (epoch, index) pairs, cut to what is evaluated at once."""
    size = EVALUATION_BATCH
    pieces = [batch[start : start + size] for batch in batches for start in range(0, len(batch), size)]
    return _iterate(_load(dataset, pieces, config, device), config.peer_timeout_min)


def evaluation_batches(
    dataset: ActionDataset, config: TrainConfig, ranks: Ranks, device: torch.device
) -> Generator[Batch | None]:
    """Batches that hold each dive exactly once over all ranks, nothing padded; None where only others have one left, so
    that all ranks go through the same number of rounds.

    A dive's batch mates do not depend on the number of ranks: batches are cut from the list first and dealt out then.
    """
    size = min(config.batch_size // config.accumulate, EVALUATION_BATCH)
    batches = [
        [(0, i) for i in range(start, min(start + size, len(dataset)))] for start in range(0, len(dataset), size)
    ]
    mine = batches[ranks.rank :: ranks.world_size]
    if mine:
        yield from _iterate(_load(dataset, mine, config, device), config.peer_timeout_min)
    rounds = -(-len(batches) // ranks.world_size)
    yield from [None] * (rounds - len(mine))
