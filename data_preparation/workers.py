"""What every worker process does first, and how all of them are ended (leaf)."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time


def follow_parent() -> None:
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
