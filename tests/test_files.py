"""Files are complete or absent, and what killed writers left goes away."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_preparation import files
from data_preparation.files import Stopped, remove_abandoned, sha256, whole_file, whole_folder, write_whole


def test_a_block_that_fails_leaves_what_was_there(tmp_path: Path):
    write_whole(tmp_path / "a", b"old")
    with contextlib.suppress(ZeroDivisionError), whole_file(tmp_path / "a") as temporary:
        temporary.write_bytes(b"half")
        _ = 1 / 0
    assert (tmp_path / "a").read_bytes() == b"old"
    with contextlib.suppress(ZeroDivisionError), whole_folder(tmp_path / "b") as temporary:
        (temporary / "x").write_bytes(b"half")
        _ = 1 / 0
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_only_abandoned_temporaries_of_that_file_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = socket.gethostname()
    for name in (
        f".01.zip.{host}.{dead.pid}.tmp",  # gone: its writer is dead
        f".01.zip.{host}.{os.getppid()}.tmp",  # its writer lives
        f".01.zip.other-node.{dead.pid}.tmp",  # of another host, written to a moment ago
        f".02.zip.{host}.{dead.pid}.tmp",  # of another file
        "01.zip.tmp",
    ):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / f".01.zip.{host}.{dead.pid + 1_000_000_000}.tmp").mkdir()
    remove_abandoned(tmp_path / "01.zip")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        [f".01.zip.{host}.{os.getppid()}.tmp", f".01.zip.other-node.{dead.pid}.tmp", f".02.zip.{host}.{dead.pid}.tmp", "01.zip.tmp"]
    )  # fmt: skip
    later = time.time() + 2 * 24 * 3600
    monkeypatch.setattr(files.time, "time", lambda: later)
    remove_abandoned(tmp_path / "01.zip")
    assert not list(tmp_path.glob(".01.zip.other-node*"))


def test_sha256_is_sha256_and_can_be_stopped(tmp_path: Path):
    content = os.urandom(3_000_000)
    (tmp_path / "a").write_bytes(content)
    seen: list[int] = []
    assert sha256(tmp_path / "a", on_bytes=seen.append) == hashlib.sha256(content).hexdigest()
    assert sum(seen) == len(content)
    with pytest.raises(Stopped):
        sha256(tmp_path / "a", stopped=lambda: True)
