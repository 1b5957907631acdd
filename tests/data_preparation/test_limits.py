"""Resource limits of the machine: one message each, before the first step or when a limit is reached."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from data_preparation.common.limits import (
    ResourceLimits,
    ResourceNeeds,
    exceeded_limits,
    limit_error_text,
    read_resource_limits,
    temporary_folder_faults,
)
from tests.conftest import REPOSITORY, TINY_MODEL, data_flags, run_python
from training.config import TrainConfig
from training.data.machine import shared_bytes

PLENTY = 2**50


def in_namespace(setup: str, *arguments: object, timeout: float = 300) -> tuple[int, str]:
    """Run the tests' interpreter in its own mount namespace after `setup`: (exit status, its whole output)."""
    if os.geteuid() or not shutil.which("unshare"):
        pytest.skip("only root can mount a small file system")
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("mount namespaces are not allowed here")
    command = ["unshare", "-m", "sh", "-c", f'{setup}; exec "$@"', "sh", sys.executable, *map(str, arguments)]
    done = subprocess.run(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout
    )
    return done.returncode, done.stdout


def training(dataset: Path, runs: Path, *flags: object) -> list[object]:
    return ["-m", "training.train", *data_flags(dataset), "--runs_dir", runs, *TINY_MODEL, "--epochs", 1, *flags]


def errors(out: str) -> list[str]:
    assert "Traceback" not in out
    return [line for line in out.splitlines() if line.startswith("error: ")]


# ------------------------------------------------------------------------------------------------------- comparing


@pytest.mark.parametrize(
    ("need", "limits", "words"),
    [
        (ResourceNeeds(workers=True, shared_bytes=65 * 2**20), ResourceLimits(shared_bytes=2**26), ("64.0 MiB", "--shm-size", "--prefetch", "--workers 0")),
        (ResourceNeeds(workers=True), ResourceLimits(shared_memory_fault="cannot be written to"), ("/dev/shm", "writable")),
        (ResourceNeeds(files=100), ResourceLimits(files=64), ("64 files", "ulimit -n")),
        (ResourceNeeds(processes=20), ResourceLimits(processes=3), ("3 more processes", "ulimit -u", "--pids-limit")),
        (ResourceNeeds(memory_bytes=3 * 2**30), ResourceLimits(memory_bytes=2**30), ("1.0 GiB of memory", "--mem")),
        (ResourceNeeds(address_bytes=2**30), ResourceLimits(address_bytes=2**20), ("address space", "ulimit -v")),
        (ResourceNeeds(file_bytes=2**20), ResourceLimits(file_bytes=1000), ("ulimit -f",)),
    ],
)  # fmt: skip
def test_an_exceeded_limit_is_one_sentence_with_the_fix(
    need: ResourceNeeds, limits: ResourceLimits, words: tuple[str, ...]
):
    (sentence,) = exceeded_limits(need, limits)
    assert all(word in sentence for word in words)
    assert "\n" not in sentence


def test_sufficient_and_unknown_limits_are_accepted():
    need = ResourceNeeds(10, 10, True, 10, 10, 10, 10)
    assert exceeded_limits(need, ResourceLimits()) == []
    assert exceeded_limits(need, ResourceLimits(10, 10, 10, None, 10, 10, 10)) == []
    assert len(exceeded_limits(need, ResourceLimits(9, 9, 9, None, 9, 9, 9))) == 6  # all at once
    assert exceeded_limits(ResourceNeeds(), read_resource_limits()) == []


def test_shared_memory_of_a_rank():
    config = TrainConfig(batch_size=8, frame_num=4, spatial_size=32, workers=2, prefetch=3)
    clips = 8 * 4 * 3 * 32 * 32
    assert shared_bytes(config, 1, 800, 0, tensors=4) == 7 * (clips + 3 * 4096)  # 2 x 3 prefetched, one in use
    assert shared_bytes(config, 1, 16, 0, tensors=4) == 2 * (clips + 3 * 4096)  # an epoch has two batches
    assert shared_bytes(config, 4, 800, 0, tensors=1) == 7 * clips / 4
    assert shared_bytes(config, 1, 0, 800, tensors=1) == 7 * clips  # an evaluation
    assert shared_bytes(TrainConfig(workers=0), 1, 800, 800, tensors=4) == 0


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.EMFILE, "Too many open files"), "ulimit -n"),
        (RuntimeError("received 0 items of ancdata"), "ulimit -n"),
        (RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)"), "--shm-size"),
        (RuntimeError("DataLoader worker (pid 5) is killed by signal: Bus error. It is possible that"), "--shm-size"),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "ulimit -u"),
        (RuntimeError("can't start new thread"), "ulimit -u"),
        (MemoryError(), "--mem"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."), "--mem"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."), "--accumulate"),
        (OSError(errno.EFBIG, "File too large"), "ulimit -f"),
    ],
)  # fmt: skip
def test_an_error_that_a_limit_caused_becomes_a_message(error: BaseException, words: str):
    text = limit_error_text(error)
    assert text is not None
    assert words in text


@pytest.mark.parametrize("error", [OSError(errno.ENOENT, "No such file"), RuntimeError("a bug"), ValueError("memory")])
def test_other_errors_have_no_message(error: BaseException):
    assert limit_error_text(error) is None


def test_a_temporary_folder_with_too_long_a_path_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    (sentence,) = temporary_folder_faults()
    assert str(long) in sentence
    assert "TMPDIR" in sentence


# ------------------------------------------------------------------------------------------- with real limits


@pytest.mark.slow
def test_a_small_shared_memory_is_refused_before_the_start(dataset: Path, tmp_path: Path):
    """As the default 64 MB of a container, scaled down to the small network's clips."""
    small = "mount -t tmpfs -o size=128k tmpfs /dev/shm"
    status, out = in_namespace(small, *training(dataset, tmp_path))
    assert status == 2
    assert len(errors(out)) == len(out.splitlines()) == 1
    assert "128 KiB of shared memory" in out
    assert not (tmp_path / "default").exists()


@pytest.mark.slow
def test_the_computed_need_of_shared_memory_suffices(dataset: Path, tmp_path: Path):
    flags = ("--workers", 2, "--prefetch", 2, "--batch_size", 4)
    needed = shared_bytes(TrainConfig(batch_size=4, workers=2, prefetch=2, frame_num=4, spatial_size=32), 1, 36, 16, 4)
    semaphores = 32 * 4096
    status, out = in_namespace(
        f"mount -t tmpfs -o size={needed + semaphores} tmpfs /dev/shm", *training(dataset, tmp_path, *flags)
    )
    assert status == 0, out


@pytest.mark.slow
def test_shared_memory_that_another_program_takes_during_training(dataset: Path, tmp_path: Path):
    code = f"""
import sys
import training.train as t
def check(*args, **flags):
    with open("/dev/shm/other", "wb") as file:
        file.write(bytes(2 ** 20 - 2 ** 16))
t.check_machine = check
from data_preparation.common.command_line import run
sys.argv[1:] = {[str(word) for word in training(dataset, tmp_path)[2:]]!r}
run(t.main)
"""
    status, out = in_namespace("mount -t tmpfs -o size=1m tmpfs /dev/shm", "-c", code)
    assert status == 2, out
    (sentence,) = errors(out)
    assert "shared memory ran out" in sentence
    assert "--shm-size" in sentence


@pytest.mark.slow
@pytest.mark.parametrize("limit", ["-n 16", "-f 4"])
def test_a_low_ulimit_is_refused_before_the_start(dataset: Path, tmp_path: Path, limit: str):
    command = [
        "bash",
        "-c",
        f'ulimit {limit}; exec "$@"',
        "bash",
        sys.executable,
        *map(str, training(dataset, tmp_path)),
    ]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2, done.stderr
    (sentence,) = errors(done.stderr)
    assert f"ulimit {limit.split()[0]}" in sentence
    assert not (tmp_path / "default").exists()


@pytest.mark.slow
@pytest.mark.parametrize("command", ["extract", "verify"])
def test_preparation_names_the_limit(dataset: Path, command: str):
    arguments = [sys.executable, "-m", f"data_preparation.{command}", "--dataset", str(dataset), "--workers", "4"]
    done = subprocess.run(
        ["bash", "-c", 'ulimit -n 12; exec "$@"', "bash", *arguments], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 2
    (sentence,) = errors(done.stderr)
    assert "ulimit -n" in sentence


@pytest.mark.slow
def test_the_process_limit_of_a_cgroup_is_read(dataset: Path, tmp_path: Path):
    group = Path(f"/sys/fs/cgroup/pids/deepsports-{os.getpid()}")
    try:
        group.mkdir()
        (group / "pids.max").write_text("4")
    except OSError:
        pytest.skip("control groups cannot be created here")
    code = f"""
import os
open("{group}/cgroup.procs", "w").write(str(os.getpid()))
from data_preparation.common.limits import read_resource_limits
print(read_resource_limits().processes)
"""
    try:
        assert run_python("-c", code).stdout.split() == ["3"]
    finally:
        group.rmdir()
