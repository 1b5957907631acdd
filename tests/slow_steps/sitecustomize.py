"""For tests that must catch a training in the middle, or make its machine fail. With this folder on PYTHONPATH:

DEEPSPORTS_TEST_STEP_S      every step takes so many seconds longer
DEEPSPORTS_TEST_SLOW_RANK   only the steps of this rank do
DEEPSPORTS_TEST_READ_ONLY   NODE:FOLDER: on this node, the ranks of a job see this folder on a read-only file system (needs root)
DEEPSPORTS_TEST_SHM_MB      each rank of a job has a /dev/shm of its own, of so many MB (needs root)
DEEPSPORTS_TEST_FAULTS      a folder: a rank that finds its file there removes it and has that fault from its next step on:
                            clock-RANK (the clock jumps by the seconds in the file), shape-RANK (one batch has half the rows)

Without these variables it changes nothing.
"""

import contextlib
import ctypes
import importlib.abc
import importlib.machinery
import os
import subprocess
import sys
import time

_CLONE_NEWNS = 0x00020000


def _rank():
    return os.environ.get("RANK") or os.environ.get("SLURM_PROCID")


def _fault(kind):
    """The content of the file that asks this rank for a fault, or None."""
    try:
        path = os.path.join(os.environ["DEEPSPORTS_TEST_FAULTS"], f"{kind}-{_rank()}")
        with open(path) as file:
            text = file.read()
        os.unlink(path)
        return text
    except (KeyError, OSError):
        return None


def _jump(seconds):
    real = time.time
    time.time = lambda: real() + seconds


def _slow_schedule(module):
    rate = module.learning_rate

    def learning_rate(*arguments):
        if os.environ.get("DEEPSPORTS_TEST_SLOW_RANK", _rank()) == _rank():
            time.sleep(float(os.environ.get("DEEPSPORTS_TEST_STEP_S", "0")))
        if seconds := _fault("clock"):
            _jump(float(seconds))
        return rate(*arguments)

    module.learning_rate = learning_rate


def _small_batch(module):
    batches_of_epoch = module.training_batches

    def training_batches(*arguments, **named):
        from training.data.batch import chunk_batch

        with contextlib.closing(batches_of_epoch(*arguments, **named)) as batches:
            for batch in batches:
                yield batch if _fault("shape") is None else chunk_batch(batch, 2)[0]

    module.training_batches = training_batches


_CHANGES = {"training.schedule": _slow_schedule, "training.data.loader": _small_batch}


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name not in _CHANGES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            _CHANGES[name](module)

        spec.loader.exec_module = exec_module
        return spec


def _mount(*arguments):
    subprocess.run(["mount", *arguments], check=True)


def _own_mounts():
    """Give this process its own table of mounts, so that no other process sees what is mounted."""
    if ctypes.CDLL(None).unshare(_CLONE_NEWNS):
        raise OSError("unshare failed")
    _mount("--make-rprivate", "/")


if "launch.job" in sys.orig_argv and "run" in sys.orig_argv:
    _node, _, _folder = os.environ.get("DEEPSPORTS_TEST_READ_ONLY", "").partition(":")
    if _node and _node == os.environ.get("SLURMD_NODENAME"):
        _own_mounts()
        _mount("--bind", _folder, _folder)
        _mount("-o", "remount,bind,ro", _folder)
    if _megabytes := os.environ.get("DEEPSPORTS_TEST_SHM_MB"):
        _own_mounts()
        _mount("-t", "tmpfs", "-o", f"size={_megabytes}m", "tmpfs", "/dev/shm")

sys.meta_path.insert(0, _Finder())
