"""Atomic writes, locks, and the clean-up of what killed writers left."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_preparation.common import files
from data_preparation.common.errors import UserError
from data_preparation.common.files import (
    Cancelled,
    atomic_file,
    atomic_folder,
    exclusive_lock,
    lock,
    remove_stale_temporaries,
    sha256,
    write_atomic,
)
from tests.conftest import run_python


def test_a_failed_block_leaves_the_old_content(tmp_path: Path):
    write_atomic(tmp_path / "a", b"old")
    with contextlib.suppress(ZeroDivisionError), atomic_file(tmp_path / "a") as temporary:
        temporary.write_bytes(b"half")
        _ = 1 / 0
    assert (tmp_path / "a").read_bytes() == b"old"
    with contextlib.suppress(ZeroDivisionError), atomic_folder(tmp_path / "b") as temporary:
        (temporary / "x").write_bytes(b"half")
        _ = 1 / 0
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_only_stale_temporaries_of_that_file_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = socket.gethostname()
    for name in (
        f".01.zip.{host}.{dead.pid}.tmp",  # stale: its writer does not run
        f".01.zip.{host}.{os.getppid()}.tmp",  # its writer runs
        f".01.zip.other-node.{dead.pid}.tmp",  # of another host, just written
        f".02.zip.{host}.{dead.pid}.tmp",  # of another file
        "01.zip.tmp",
    ):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / f".01.zip.{host}.{dead.pid + 1_000_000_000}.tmp").mkdir()
    remove_stale_temporaries(tmp_path / "01.zip")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        [f".01.zip.{host}.{os.getppid()}.tmp", f".01.zip.other-node.{dead.pid}.tmp", f".02.zip.{host}.{dead.pid}.tmp", "01.zip.tmp"]
    )  # fmt: skip
    later = time.time() + 2 * 24 * 3600
    monkeypatch.setattr(files.time, "time", lambda: later)
    remove_stale_temporaries(tmp_path / "01.zip")
    assert not list(tmp_path.glob(".01.zip.other-node*"))


def test_sha256_equals_hashlib_and_can_be_cancelled(tmp_path: Path):
    content = os.urandom(3_000_000)
    (tmp_path / "a").write_bytes(content)
    seen: list[int] = []
    assert sha256(tmp_path / "a", on_bytes=seen.append) == hashlib.sha256(content).hexdigest()
    assert sum(seen) == len(content)
    with pytest.raises(Cancelled):
        sha256(tmp_path / "a", is_cancelled=lambda: True)


# errors of a file system that does not support locks, and errors if another process holds the lock
NO_LOCKS = [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.EIO]
HELD = [errno.EACCES, errno.EAGAIN]


def without_locks(monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    def lockf(*_: object) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(files.fcntl, "lockf", lockf)
    monkeypatch.setattr(files, "_WARNED_DEVICES", set())


@pytest.mark.parametrize("error", NO_LOCKS)
def test_missing_locks_are_warned_about_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: int
):
    without_locks(monkeypatch, error)
    for _ in range(2):
        with open(tmp_path / "lock", "w") as file:
            assert lock(file, wait=False)
    assert [record.getMessage() for record in caplog.records if "cannot be locked" in record.getMessage()] == [
        caplog.records[0].getMessage()
    ]
    with exclusive_lock(tmp_path / "a", "a is being made"):  # works, with a file that names the owner
        assert (tmp_path / "a.owner").read_text() == f"{socket.gethostname()} {os.getpid()}"
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


@pytest.mark.parametrize("error", HELD)
def test_a_lock_of_another_process_is_not_a_missing_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int):
    without_locks(monkeypatch, error)
    with open(tmp_path / "lock", "w") as file:
        assert not lock(file, wait=False)
    with (
        pytest.raises(UserError, match="a is being made by another process"),
        exclusive_lock(tmp_path / "a", "a is being made"),
    ):
        pass


def test_without_locks_the_owner_file_excludes_others_until_its_owner_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    without_locks(monkeypatch, errno.ENOSYS)
    owner, host = tmp_path / "a.owner", socket.gethostname()
    for living in (f"{host} {os.getppid()}", f"other-node {os.getpid()}", ""):
        owner.write_text(living)
        refused = pytest.raises(UserError, match=f"a is being made by process .* if it no longer runs, delete {owner}")
        with refused, exclusive_lock(tmp_path / "a", "a is being made"):
            pass
        assert owner.read_text() == living
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    owner.write_text(f"{host} {dead.pid}")
    with exclusive_lock(tmp_path / "a", "a is being made"):
        assert owner.read_text() == f"{host} {os.getpid()}"
    assert not owner.exists()


def test_a_reader_finds_out_whether_the_lock_is_held(tmp_path: Path):
    check = f"from data_preparation.common.files import lock; import sys; sys.exit(lock(open({str(tmp_path / 'lock')!r}), False))"
    with open(tmp_path / "lock", "w") as file:
        assert lock(file, wait=False)
        assert run_python("-c", check, check=False).returncode == 0
    assert run_python("-c", check, check=False).returncode == 1
