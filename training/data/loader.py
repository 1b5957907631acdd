"""Batches of samples, in an order that depends on (seed, epoch) alone and can be entered at any step."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader

from data_preparation.cli import UserError, first_line
from training.config import TrainConfig
from training.data.dataset import DiveDataset
from training.data.sampling import epoch_order, rank_rows
from training.interruption import ProcessLost
from training.ranks import Ranks

# dives of a process at once: without a graph to keep, eight clips take about what one takes in training
EVALUATION_BATCH = 8


def steps_per_epoch(dives: int, batch_size: int) -> int:
    """Whole batches only: the rest of an epoch's order (other dives each time) is left out."""
    return dives // batch_size


def _start_worker(_: int) -> None:
    torch.set_num_threads(1)  # the loader processes are the parallelism
    # Ctrl-C, and Slurm's TERM to all processes of a job, are for the training, which stops at a step boundary; the loader
    # processes end with it
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def loader_loss(error: Exception) -> str:
    """The sentence about a loader process that is gone."""
    return f"a loader process is gone or silent ({first_line(error)}): if it was killed for memory, ask for more of it or give fewer --workers"


def _own_words(batches: DataLoader) -> Iterator[dict[str, torch.Tensor]]:
    """The batches; a UserError of a loader process keeps its sentence and loses the process's traceback.

    Raises:
        UserError: what a loader process raised. ProcessLost: a loader process is gone in the middle of handing over a batch.
    """
    try:
        yield from batches
    except UserError as error:
        raise UserError(str(error).rstrip().splitlines()[-1].split("UserError: ", 1)[-1]) from None
    except (ConnectionError, FileNotFoundError, EOFError) as error:  # of the socket that its memory is handed over by
        raise ProcessLost(loader_loss(error)) from None


def _load(
    dataset: DiveDataset, batches: list[list[tuple[int, int]]], config: TrainConfig, device: torch.device
) -> DataLoader:
    workers = min(config.workers, len(batches))
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        prefetch_factor=config.prefetch if workers else None,
        pin_memory=device.type == "cuda",
        worker_init_fn=_start_worker,
        multiprocessing_context="fork" if workers else None,
    )


def training_batches(
    dataset: DiveDataset, config: TrainConfig, ranks: Ranks, device: torch.device, epoch: int, first_step: int
) -> Iterator[dict[str, torch.Tensor]]:
    """This rank's share of each global batch of an epoch, from `first_step` on."""
    order = epoch_order(len(dataset), config.seed, epoch).tolist()
    size = config.batch_size
    batches = [
        [(epoch, index) for index in rank_rows(order[step * size : (step + 1) * size], ranks.rank, ranks.world_size)]
        for step in range(first_step, steps_per_epoch(len(dataset), size))
    ]
    return _own_words(_load(dataset, batches, config, device)) if batches else iter(())


def evaluation_batches(
    dataset: DiveDataset, config: TrainConfig, ranks: Ranks, device: torch.device
) -> Iterator[dict[str, torch.Tensor] | None]:
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
        yield from _own_words(_load(dataset, mine, config, device))
    rounds = -(-len(batches) // ranks.world_size)
    yield from [None] * (rounds - len(mine))
