"""What several test files need: paths, a small prepared data set, a training in a process of its own, the cluster."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from training import _torchvision as _torchvision  # before timm and torchvision, which tests import too
from training import plugins

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = REPOSITORY.parent / "shared"

# no test asserts a time: other work on the machine may slow any of them
settings.register_profile("deepsports", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("deepsports")

# a network small enough that a training takes seconds
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


def run_python(
    *arguments: object, env: dict[str, str] | None = None, check: bool = True
) -> subprocess.CompletedProcess:
    """Run the interpreter of the tests in the repository."""
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, env={**os.environ, **(env or {})}, timeout=600
    )
    assert not check or done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
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
    """TINY_MODEL without the flags that do not belong to the backbone and the method that `flags` choose."""
    chosen = dict(zip(map(str, flags), map(str, flags[1:]), strict=False))
    kept: list[str] = []
    for name, value in zip(TINY_MODEL[::2], TINY_MODEL[1::2], strict=True):
        _, owners = plugins.owners(name)
        choices = {f"{flag} {chosen.get(flag, default)}" for flag, default in CHOSEN_BY_DEFAULT.items()}
        if not owners or choices & set(owners):
            kept += [name, value]
    return kept


@pytest.fixture
def train(dataset: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess]:
    """train("--run_name", "x", ...) trains the tiny network in a process of its own; runs are in tmp_path/runs."""

    def run(*flags: object, **options: object) -> subprocess.CompletedProcess:
        return run_python(
            "-m",
            "training.train",
            *data_flags(dataset),
            "--runs_dir",
            tmp_path / "runs",
            *tiny_model(*flags),
            *flags,
            **options,
        )

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
    """The processes that load for a training process: they come from a server that it started."""

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

    return [loader for server in filter(serves, children(training)) for loader in children(server)]
