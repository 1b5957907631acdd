"""For tests that must catch a training in the middle: with this folder on PYTHONPATH, every step takes
DEEPSPORTS_TEST_STEP_S seconds longer, or only every step of rank DEEPSPORTS_TEST_SLOW_RANK. It computes nothing else."""

import importlib.abc
import importlib.machinery
import os
import sys
import time


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
                rank = os.environ.get("RANK") or os.environ.get("SLURM_PROCID")
                if os.environ.get("DEEPSPORTS_TEST_SLOW_RANK", rank) == rank:
                    time.sleep(float(os.environ.get("DEEPSPORTS_TEST_STEP_S", "0")))
                return rate(*arguments)

            module.learning_rate = learning_rate

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, _SlowSchedule())
