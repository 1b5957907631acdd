"""DataLoader workers: how they start, how they end, and how long the training waits for a batch.

Workers are forked from multiprocessing's fork server, which has no Python threads. The training process has threads (of
earlier loaders, gloo or nccl, CUDA); a worker forked from it can inherit a lock that a thread holds, and then it never
starts: once in some thousand starts (CPython issue 112275 is one case).
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch.utils.data import Dataset, default_collate

from data_preparation.common.errors import UserError, first_line
from data_preparation.common.limits import limit_error_text, raise_open_file_limit, temporary_folder_faults
from data_preparation.common.workers import kill_workers
from training.data.buffers import SharedBuffers
from training.runtime.interruption import STATUS, ProcessLost

CONTEXT = multiprocessing.get_context("forkserver")

atexit.register(kill_workers)  # runs before multiprocessing's own handler, which sends TERM and waits

_TICKS = 20


def start_server(workers: int) -> None:
    """Start the fork server, unless it runs already or `workers` is 0. Its imports take a second, in the background.

    Raises:
        UserError: it cannot be started.
    """
    if not workers:
        return
    raise_open_file_limit()  # the server and its workers inherit the limit
    CONTEXT.set_forkserver_preload([__name__, "training.data.dataset"])
    # Ctrl-C, and the signals that Slurm sends to all processes of a job, are for the training only, which stops at a step
    # boundary. The server and its workers inherit the blocked signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STATUS)
    try:
        resource_tracker.ensure_running()  # unblocks INT and TERM afterwards; its own process ignores them
        signal.pthread_sigmask(signal.SIG_BLOCK, STATUS)
        forkserver.ensure_running()
    except OSError as error:
        raise UserError(
            next(iter(temporary_folder_faults()), None)
            or limit_error_text(error)
            or f"workers cannot be started ({first_line(error)}): set TMPDIR to a folder with a short path and free space, or give --workers 0"
        ) from None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Task(NamedTuple):
    """What a worker gets to load a batch: a pickled reader, what its `__getitems__` takes, and the number of the batch."""

    reader: bytes
    planned: Sequence[Any]
    number: int


class TaskReader(Dataset):
    """The data set of a worker: it unpickles each reader once, so that one worker can serve several data sets."""

    def __init__(self, buffers: SharedBuffers) -> None:
        self.buffers = buffers
        self._readers: dict[bytes, Dataset] = {}
        self._last = b""

    def __getitems__(self, tasks: Sequence[Task]) -> Any:
        (task,) = tasks
        if task.reader not in self._readers:
            self._readers[task.reader] = pickle.loads(task.reader)
        if task.reader != self._last:
            self.buffers.clear()
            self._last = task.reader
        with self.buffers.batch(task.number):
            return read_batch(self._readers[task.reader], task.planned)


def read_batch(reader: Dataset, planned: Sequence[Any]) -> Any:
    """A batch of a reader, which may read it as a whole (`__getitems__`) or sample by sample."""
    if hasattr(reader, "__getitems__"):
        return reader.__getitems__(planned)
    return default_collate([reader[each] for each in planned])


def as_it_is(batch: Any) -> Any:
    """The collate_fn of DataLoader for batches that are complete."""
    return batch


def init_worker(_: int) -> None:
    """The worker_init_fn of DataLoader."""
    torch.set_num_threads(1)  # the workers are the parallelism
    sys.excepthook = _print_in_one_line
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _print_in_one_line(kind: type[BaseException], error: BaseException, _: object) -> None:
    """An excepthook without traceback; the training process logs what the error means."""
    print(f"worker {os.getpid()}: {kind.__name__}: {error}", file=sys.stderr, flush=True)


def _exit_with_parent() -> None:
    """End this worker with the training, even if that is killed. The direct parent, the fork server, outlives the training."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextmanager
def hidden_main_module() -> Iterator[None]:
    """Processes started inside do not import this process's main module, which they do not need."""
    main_module = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main_module


@contextmanager
def time_limit(minutes: float) -> Iterator[None]:
    """Limit the time that the code inside may take.

    Raises:
        ProcessLost: it takes longer.
    """
    ticks = 0

    # Twenty short ticks instead of one alarm: a suspended job uses up one tick only. If Python drops the exception (in a
    # finalizer), the next tick raises it again
    def tick(*_: object) -> None:
        nonlocal ticks
        ticks += 1
        if ticks >= _TICKS:
            raise ProcessLost(
                f"no batch was loaded within {minutes:g} minutes: the file system hangs, or loading is slow and needs more --workers or a longer --peer_timeout_min"
            )

    before = signal.signal(signal.SIGALRM, tick)
    every = minutes * 60 / _TICKS
    signal.setitimer(signal.ITIMER_REAL, every, every)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
