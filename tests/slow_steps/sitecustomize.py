"""For tests that must catch a training in the middle, or make its machine fail. With this folder on PYTHONPATH:

DEEPSPORTS_TEST_STEP_S      every step takes so many seconds longer
DEEPSPORTS_TEST_SLOW_RANK   only the steps of this rank do
DEEPSPORTS_TEST_READ_ONLY   NODE:FOLDER: on this node, the ranks of a job see this folder on a read-only file system (needs root)

Without these variables it changes nothing.
"""

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


class _SlowSchedule(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "training.schedule":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            rate = module.learning_rate

            def learning_rate(*arguments):
                if os.environ.get("DEEPSPORTS_TEST_SLOW_RANK", _rank()) == _rank():
                    time.sleep(float(os.environ.get("DEEPSPORTS_TEST_STEP_S", "0")))
                return rate(*arguments)

            module.learning_rate = learning_rate

        spec.loader.exec_module = exec_module
        return spec


def _own_mounts():
    """Give this process its own table of mounts, so that no other process sees what is mounted."""
    if ctypes.CDLL(None).unshare(_CLONE_NEWNS):
        raise OSError("unshare failed")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)


if "launch.job" in sys.orig_argv and "run" in sys.orig_argv:
    _node, _, _folder = os.environ.get("DEEPSPORTS_TEST_READ_ONLY", "").partition(":")
    if _node and _node == os.environ.get("SLURMD_NODENAME"):
        _own_mounts()
        subprocess.run(["mount", "--bind", _folder, _folder], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", _folder], check=True)

sys.meta_path.insert(0, _SlowSchedule())
