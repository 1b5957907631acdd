"""Shared by the test files: paths, a small prepared data set, functions that call an entry point, the cluster."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing import forkserver
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from data_preparation.common import command_line
from training import _torchvision as _torchvision  # before timm and torchvision, which tests import too
from training import plugins
from training.runtime import run_folder
from training.runtime.interruption import STATUS

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = REPOSITORY.parent / "shared"

settings.register_profile("deepsports", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("deepsports")

PATIENCE_S = 600  # the longest wait of a test: no test asserts a duration, because the machine may be busy

# Under nohup, Python and all processes that it starts ignore HUP, and some tests send it.
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Ranks that a test starts are forks of a server that has the imports of a training (`rank_server`).
RANKS = multiprocessing.get_context("forkserver")

# A network so small that a training takes seconds.
TINY_MODEL = [
    "--spatial_size",
    "32",
    "--patch_size",
    "16",
    "--embed_dim",
    "32",
    "--depth",
    "2",
    "--num_heads",
    "2",
    "--topology",
    "32",
    "--dropout",
    "0.1",
    "--activation",
    "GELU",
    "--frame_num",
    "4",
    "--batch_size",
    "8",
    "--learning_rate",
    "0.001",
    "--workers",
    "1",
    "--gpu",
    "False",
]

CHOSEN_BY_DEFAULT = {"--model": "timesformer", "--method": "regression"}


# tests that use one of these fixtures train, or start several ranks
SLOW_FIXTURES = {"train", "finished", "on_ranks"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests as slow by the fixtures that they use, and put the files with the largest share of slow tests first. So no
    process of pytest-xdist starts a long file at the end, when the others have nothing left to do."""
    slow: dict[Path, list[bool]] = {}
    for item in items:
        if SLOW_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)
        slow.setdefault(item.path, []).append(item.get_closest_marker("slow") is not None)
    items.sort(key=lambda item: -sum(slow[item.path]) / len(slow[item.path]))  # keeps the tests of a file together


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data beside the repository."""
    if not SHARED.is_dir():
        pytest.skip(f"the reference data is not at {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared synthetic data set of two videos and 60 dives."""
    folder = tmp_path_factory.mktemp("dataset")
    run_python("-m", "data_preparation.synthetic", "--dataset", folder, "--videos", 2, "--dives", 60)
    run_python("-m", "data_preparation.extract", "--dataset", folder, "--height", 72, "--verify")
    return folder


@pytest.fixture(scope="module")
def rank_server() -> None:
    """The server of RANKS with the imports of a training, which take each rank seconds of CPU time otherwise (the network imports
    timm). A training with workers that ran in this process before has left a server with fewer."""
    forkserver._forkserver._stop()
    RANKS.set_forkserver_preload(
        ["tests.conftest", "training.train", "training.backbones.timesformer.network", "torchmetrics"]
    )


def run_python(
    *arguments: object, env: dict[str, str] | None = None, check: bool = True
) -> subprocess.CompletedProcess:
    """Run Python in the repository, in a process of its own."""
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, env={**os.environ, **(env or {})}, timeout=PATIENCE_S
    )
    assert not check or done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


def run_main(module: str, *arguments: object, check: bool = True) -> subprocess.CompletedProcess:
    """Call the entry point of a module as `python -m module` does, but in this process.

    The imports of a training process take more CPU time than a small training. So tests use a process of its own
    (`run_python`) only where signals, ranks, workers, the environment or the start itself matter.
    """
    entry_point = importlib.import_module(module).main
    out, err = io.StringIO(), io.StringIO()
    root = logging.getLogger()
    handlers, level, raises, argv = root.handlers[:], root.level, logging.raiseExceptions, sys.argv
    signals = {number: signal.getsignal(number) for number in STATUS}
    root.handlers = []
    sys.argv = [module, *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                command_line.run(entry_point)
            except SystemExit as end:
                status = end.code
            except Exception:
                traceback.print_exc()
                status = 1
    finally:
        for handler in root.handlers:
            handler.close()
        root.handlers, sys.argv, logging.raiseExceptions = handlers, argv, raises
        root.setLevel(level)
        for number, handler in signals.items():
            signal.signal(number, handler)
        while run_folder._lock_files:  # a process that ends releases the locks of its run folders
            run_folder._lock_files.pop().close()
    done = subprocess.CompletedProcess(sys.argv, status, out.getvalue(), err.getvalue())
    assert not check or status == 0, f"{module} {arguments}\n{done.stdout}\n{done.stderr}"
    return done


def data_flags(dataset: Path) -> list[str]:
    """The flags that name a data set's files."""
    annotations = dataset / "annotations"
    return [
        "--root_dir", str(dataset / "whole_videos_frames"),
        "--annotation_path", str(annotations / "final_annotations_dict.pkl"),
        "--train_path", str(annotations / "train_split_0.pkl"),
        "--test_path", str(annotations / "test_split_0.pkl"),
    ]  # fmt: skip


def tiny_model(*flags: object) -> list[str]:
    """TINY_MODEL without the flags that do not belong to the backbone and the method that `flags` choose, and without
    workers, whose start takes a second."""
    chosen = dict(zip(map(str, flags), map(str, flags[1:]), strict=False))
    kept: list[str] = []
    for name, value in zip(TINY_MODEL[::2], TINY_MODEL[1::2], strict=True):
        _, owners = plugins.owners(name)
        choices = {f"{flag} {chosen.get(flag, default)}" for flag, default in CHOSEN_BY_DEFAULT.items()}
        if not owners or choices & set(owners):
            kept += [name, value]
    return [*kept, "--workers", "0"]


@pytest.fixture
def train(dataset: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess]:
    """train("--run_name", "x", ...) trains the tiny network in this process, with `env` in a process of its own; runs are in
    tmp_path/runs."""

    def run(*flags: object, env: dict[str, str] | None = None, check: bool = True) -> subprocess.CompletedProcess:
        arguments = [*data_flags(dataset), "--runs_dir", tmp_path / "runs", *tiny_model(*flags), *flags]
        if env is None:
            return run_main("training.train", *arguments, check=check)
        return run_python("-m", "training.train", *arguments, env=env, check=check)

    return run


# ---------------------------------------------------------------------------------------------------------- the cluster


@pytest.fixture(scope="session")
def cluster() -> None:
    """The real Slurm cluster that tests/run.sh started."""
    answer = None
    if shutil.which("sinfo"):
        answer = subprocess.run(["sinfo", "--noheader"], capture_output=True, text=True)
    if answer is None or answer.returncode:
        reason = "no Slurm answers: start one with tests/cluster/start.sh, or run tests/run.sh as root"
        if os.environ.get("DEEPSPORTS_REQUIRE_SLURM"):
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture(autouse=True)
def _no_job_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Cancel the jobs that a failed test left, so that the next test finds free nodes."""
    yield
    if request.node.get_closest_marker("slurm") is None or not shutil.which("squeue"):
        return
    for _ in range(60):
        queue = subprocess.run(["squeue", "--me", "--noheader"], capture_output=True, text=True, check=False)
        if queue.returncode or not queue.stdout.strip():
            return
        subprocess.run(["scancel", "--me"], capture_output=True, check=False)
        time.sleep(1)


def worker_processes(training: int) -> list[int]:
    """PIDs of the DataLoader workers of a training process: the children of the fork server that it started."""

    def children(process: int) -> list[int]:
        try:
            return [int(p) for p in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
        except OSError:
            return []

    def serves(process: int) -> bool:
        try:
            return b"multiprocessing.forkserver" in Path(f"/proc/{process}/cmdline").read_bytes()
        except OSError:
            return False

    return [worker for server in filter(serves, children(training)) for worker in children(server)]
