"""Worker processes: checking the limits of the machine, initialising a worker, and killing all workers."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time

from data_preparation.common.errors import UserError
from data_preparation.common.limits import (
    ResourceNeeds,
    exceeded_limits,
    open_file_count,
    raise_open_file_limit,
    read_resource_limits,
    temporary_folder_faults,
)

WORKER_KILLED = "a worker was killed, probably out of memory: use fewer --workers"

_OWN_FILES = 6  # open files of the command itself: a video, an archive, queues
_FILES_PER_WORKER = 3
_THREADS_PER_WORKER = 2


def check_workers(workers: int) -> None:
    """Check that this machine allows `workers` worker processes.

    Raises:
        UserError: naming every limit that is too low.
    """
    raise_open_file_limit()
    need = ResourceNeeds(
        files=open_file_count() + _OWN_FILES + _FILES_PER_WORKER * workers,
        processes=_THREADS_PER_WORKER * workers + 2,
        workers=True,
    )
    if faults := exceeded_limits(need, read_resource_limits()) + temporary_folder_faults():
        raise UserError.of(faults)


def init_worker() -> None:
    """Leave signals to the parent process, and exit when it exits: a parent that is killed cannot stop its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a closed terminal sends it to all processes started there
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def kill_workers() -> None:
    """Kill all worker processes of this process."""
    for worker in multiprocessing.active_children():
        worker.kill()
