"""Worker processes: whether the machine allows them, what each does first, and how all of them are ended."""

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

_FILES = 6  # of the command itself: a video, an archive, queues
_SERVED_FILES = 3  # for each worker
_THREADS = 2  # of one worker


def check_workers(workers: int) -> None:
    """See that so many workers can be started here.

    Raises:
        UserError: what there is too little of.
    """
    raise_open_file_limit()
    need = ResourceNeeds(
        files=open_file_count() + _FILES + _SERVED_FILES * workers, processes=_THREADS * workers + 2, workers=True
    )
    if faults := exceeded_limits(need, read_resource_limits()) + temporary_folder_faults():
        raise UserError.of(faults)


def init_worker() -> None:
    """Leave signals to the parent, and end when it ends: a killed parent cannot say goodbye."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a closed terminal tells all processes that were started in it
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def kill_workers() -> None:
    """End the worker processes of this process, whatever they are doing."""
    for worker in multiprocessing.active_children():
        worker.kill()
