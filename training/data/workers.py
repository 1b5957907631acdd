"""Where loader processes come from, how they end, and how long the training waits for one.

They are forked from multiprocessing's fork server, which has no threads of Python. Forked from the training itself, with
its threads of earlier loaders, of gloo or nccl and of CUDA, one in some thousand never starts: it inherits a lock that a
thread held (CPython's issue 112275 is one such).
"""

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

from data_preparation.common.errors import UserError, first_line
from data_preparation.common.limits import limit_error_text, raise_open_file_limit, temporary_folder_faults
from data_preparation.common.workers import kill_workers
from training.runtime.interruption import STATUS, ProcessLost

CONTEXT = multiprocessing.get_context("forkserver")

atexit.register(kill_workers)  # called before multiprocessing's own, which sends TERM and waits

_TICKS = 20


def start_server(workers: int) -> None:
    """Start the server, unless it runs or there will be no loader process; it takes a second to import what they need, so
    the earlier the better.

    Raises:
        UserError: it cannot be started.
    """
    if not workers:
        return
    raise_open_file_limit()  # the server and its workers have the limit of this process
    CONTEXT.set_forkserver_preload([__name__, "training.data.dataset"])
    # Ctrl-C, and what Slurm sends to all processes of a job, are for the training, which stops at a step boundary; what
    # is blocked here stays blocked in the server and in all that come from it
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STATUS)
    try:
        resource_tracker.ensure_running()  # unblocks two of them when it has started its process, which ignores those
        signal.pthread_sigmask(signal.SIG_BLOCK, STATUS)
        forkserver.ensure_running()
    except OSError as error:
        raise UserError(
            next(iter(temporary_folder_faults()), None)
            or limit_error_text(error)
            or f"workers cannot be started ({first_line(error)}): set TMPDIR to a folder with a short name and some room, or give --workers 0"
        ) from None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def init_worker(_: int) -> None:
    """What each loader process does first."""
    torch.set_num_threads(1)  # the workers are the parallelism
    sys.excepthook = _print_in_one_line
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _print_in_one_line(kind: type[BaseException], error: BaseException, _: object) -> None:
    """What a thread that hands batches over could not do; the training says what it means."""
    print(f"worker {os.getpid()}: {kind.__name__}: {error}", file=sys.stderr, flush=True)


def _exit_with_parent() -> None:
    """A killed training cannot say goodbye; the parent, which is the server, outlives it."""
    multiprocessing.parent_process().join()
    os._exit(1)


@contextmanager
def hidden_main_module() -> Iterator[None]:
    """Processes that are started inside do not import the program of this one, which they have no use for."""
    program = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = program


@contextmanager
def time_limit(minutes: float) -> Iterator[None]:
    """
    Raises:
        ProcessLost: what is done inside takes longer than that.
    """
    ticks = 0

    # many ticks: the time in which a job is suspended counts as one, and where Python drops an exception (a finalizer)
    # the next one comes
    def tick(*_: object) -> None:
        nonlocal ticks
        ticks += 1
        if ticks >= _TICKS:
            raise ProcessLost(
                f"no batch was loaded within {minutes:g} minutes: a file system hangs, or loading takes so long and needs more --workers or a longer --peer_timeout_min"
            )

    before = signal.signal(signal.SIGALRM, tick)
    every = minutes * 60 / _TICKS
    signal.setitimer(signal.ITIMER_REAL, every, every)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
