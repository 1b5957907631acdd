"""Batches of samples, in an order that depends on (seed, epoch) alone and can be entered at any step."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from types import ModuleType

import torch
from torch.utils.data import DataLoader

from data_preparation.cli import UserError, first_line
from training.config import TrainConfig
from training.data.dataset import DiveDataset
from training.data.sampling import epoch_order, rank_rows
from training.interruption import STATUS, ProcessLost
from training.ranks import Ranks

# dives of a process at once: without a graph to keep, eight clips take about what one takes in training
EVALUATION_BATCH = 8

# Loader processes are forked from a small process without threads. Forked from the training itself, with its threads of
# gloo or nccl, of CUDA and of earlier loaders, one in some thousand never starts: it inherits a lock that a thread held.
_PROCESSES = multiprocessing.get_context("forkserver")


def steps_per_epoch(dives: int, batch_size: int) -> int:
    """Whole batches only: the rest of an epoch's order (other dives each time) is left out."""
    return dives // batch_size


def start_server(config: TrainConfig) -> None:
    """Start the process that loader processes come from, unless it runs or there will be none; it takes a second to import
    what they need, so the earlier the better."""
    if not config.workers:
        return
    _PROCESSES.set_forkserver_preload([__name__])
    # Ctrl-C, and what Slurm sends to all processes of a job, are for the training, which stops at a step boundary; what is
    # blocked here stays blocked in the server and in all that come from it
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STATUS)
    try:
        resource_tracker.ensure_running()  # unblocks some of them when it has started its process, which ignores those
        signal.pthread_sigmask(signal.SIG_BLOCK, STATUS)
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _without_program() -> Iterator[None]:
    """Processes that are started inside do not import the program of this one, which they have no use for."""
    program = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = program


@atexit.register  # before multiprocessing's own, which sends TERM and waits
def _end_processes() -> None:
    for process in multiprocessing.active_children():
        process.kill()


def _start_worker(_: int) -> None:
    torch.set_num_threads(1)  # the loader processes are the parallelism
    threading.Thread(target=_end_with_training, daemon=True).start()


def _end_with_training() -> None:
    """A killed training cannot say goodbye."""
    multiprocessing.parent_process().join()
    os._exit(1)


@contextmanager
def _patience(minutes: float) -> Iterator[None]:
    """
    Raises:
        ProcessLost: what is done inside takes longer than that.
    """

    def give_up(*_: object) -> None:
        raise ProcessLost(loader_loss(TimeoutError(f"no batch came within {minutes:g} minutes")))

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, minutes * 60)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def loader_loss(error: Exception) -> str:
    """The sentence about a loader process that is gone."""
    return f"a loader process is gone or silent ({first_line(error)}): it was killed for memory (ask for more of it, or give fewer --workers), or its file system hangs"


def _own_words(batches: DataLoader, minutes: float) -> Iterator[dict[str, torch.Tensor]]:
    """The batches; a UserError of a loader process keeps its sentence and loses the process's traceback.

    Raises:
        UserError: what a loader process raised. ProcessLost: a loader process is gone in the middle of handing over a
            batch, or none came for so many minutes.
    """
    try:
        with _patience(minutes), _without_program():
            loaded = iter(batches)
        while True:
            with _patience(minutes):
                batch = next(loaded, None)
            if batch is None:
                return
            yield batch
    except ProcessLost:
        raise
    except UserError as error:
        raise UserError(str(error).rstrip().rsplit("UserError: ", 1)[-1]) from None
    except (ConnectionError, FileNotFoundError, EOFError) as error:  # of the socket that its memory is handed over by
        raise ProcessLost(loader_loss(error)) from None


def _load(
    dataset: DiveDataset, batches: list[list[tuple[int, int]]], config: TrainConfig, device: torch.device
) -> DataLoader:
    workers = min(config.workers, len(batches))
    start_server(config)
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        prefetch_factor=config.prefetch if workers else None,
        pin_memory=device.type == "cuda",
        worker_init_fn=_start_worker,
        multiprocessing_context=_PROCESSES if workers else None,
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
    return _own_words(_load(dataset, batches, config, device), config.peer_timeout_min) if batches else iter(())


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
        yield from _own_words(_load(dataset, mine, config, device), config.peer_timeout_min)
    rounds = -(-len(batches) // ranks.world_size)
    yield from [None] * (rounds - len(mine))
