"""The record that a data set was verified is written where the user may write, and found again."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from data_preparation import verified
from data_preparation.verified import mark_verified, mark_videos_verified, unverified
from tests.conftest import REPOSITORY


@pytest.fixture
def frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "set" / "whole_videos_frames"
    folder.mkdir(parents=True)
    for name in ("01.zip", "02.zip"):
        (folder / name).write_bytes(b"frames")
    monkeypatch.setenv("DEEPSPORTS_CACHE", str(tmp_path / "cache"))
    return folder


def read_only(monkeypatch: pytest.MonkeyPatch, *folders: Path, error: int = errno.EROFS) -> None:
    """Simulate folders that the user may not write; the tests may run as root, who may write anywhere."""
    write = verified.write_atomic

    def refusing(path: Path, content: bytes) -> None:
        if any(folder in path.parents for folder in folders):
            raise OSError(error, os.strerror(error), str(path))
        write(path, content)

    monkeypatch.setattr(verified, "write_atomic", refusing)


def test_the_record_is_beside_the_frames_if_they_are_writable(frames: Path, tmp_path: Path):
    assert unverified(frames, ["01", "02"]) == ["01", "02"]
    assert mark_videos_verified(frames, ["01"]) == f"Verification recorded in {frames / '.verified'}."
    assert unverified(frames, ["01", "02"]) == ["02"]
    assert not (tmp_path / "cache").exists()
    (frames / "01.zip").write_bytes(b"other frames")
    assert unverified(frames, ["01", "02"]) == ["01", "02"]


@pytest.mark.parametrize("error", [errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT])
def test_the_record_of_a_read_only_data_set_is_in_the_cache(
    frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
):
    mark_verified(frames, "01")
    (frames / "01.zip").write_bytes(b"other frames")  # the marker beside the frames is of an earlier state
    read_only(monkeypatch, frames, error=error)
    text = mark_videos_verified(frames, ["01", "02"])
    assert text.startswith(f"Verification recorded in {tmp_path / 'cache' / 'verified'}")
    assert unverified(frames, ["01", "02"]) == []
    link = tmp_path / "link"
    link.symlink_to(frames.parent)
    assert unverified(link / "whole_videos_frames", ["01", "02"]) == []  # another path to the same folder
    shutil.copytree(frames, tmp_path / "copy" / "whole_videos_frames")
    assert unverified(tmp_path / "copy" / "whole_videos_frames", ["01", "02"]) == ["01", "02"]
    (frames / "02.zip").write_bytes(b"other frames")
    assert unverified(frames, ["01", "02"]) == ["02"]


def test_a_record_that_cannot_be_written_is_reported_with_the_fix(
    frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    read_only(monkeypatch, frames, tmp_path / "cache")
    text = mark_videos_verified(frames, ["01", "02"])
    assert "could not be recorded (Read-only file system" in text
    assert "set DEEPSPORTS_CACHE to a writable folder" in text
    assert unverified(frames, ["01", "02"]) == ["01", "02"]


def test_the_cache_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("DEEPSPORTS_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert verified.cache_folder() == tmp_path / ".cache" / "deepsports"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # the XDG standard says to ignore it
    assert verified.cache_folder() == tmp_path / ".cache" / "deepsports"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert verified.cache_folder() == tmp_path / "xdg" / "deepsports"
    monkeypatch.setenv("DEEPSPORTS_CACHE", str(tmp_path / "own"))
    assert verified.cache_folder() == tmp_path / "own"


def test_a_user_without_a_home_folder_gets_no_traceback(frames: Path, monkeypatch: pytest.MonkeyPatch):
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("DEEPSPORTS_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    assert unverified(frames, ["01"]) == ["01"]
    read_only(monkeypatch, frames)
    assert "set DEEPSPORTS_CACHE" in mark_videos_verified(frames, ["01"])


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a folder read-only needs root")
def test_a_data_set_mounted_read_only_is_verified_only_once(dataset: Path, tmp_path: Path):
    """verify, the check of launch.submit, extract and annotations work on a read-only mount."""
    copied = tmp_path / "set"
    shutil.copytree(dataset, copied, ignore=shutil.ignore_patterns(".verified"))
    check = (
        "import sys; from launch.preflight import data_faults; from training.config import TrainConfig; "
        "from data_preparation.layout import DatasetLayout; from pathlib import Path; d = DatasetLayout(Path(sys.argv[1])); "
        "print(data_faults(TrainConfig(root_dir=d.frames, annotation_path=d.annotation_file, train_path=d.train_file, test_path=d.test_file)))"
    )
    python, flags = sys.executable, f"--dataset {copied}"
    script = "\n".join(
        [
            f"mount --bind {copied} {copied} && mount -o remount,bind,ro {copied} || exit 77",
            f"touch {copied}/x 2>/dev/null && exit 77",
            f'{python} -c "{check}" {copied}',
            f"{python} -m data_preparation.verify {flags} || exit 1",
            f'{python} -c "{check}" {copied}',
            f"{python} -m data_preparation.extract {flags} --height 72 --verify || exit 1",
            f"{python} -m data_preparation.annotations summary {flags} || exit 1",
            f"{python} -m data_preparation.export {flags} --output {tmp_path}/loose --videos 01 || exit 1",
        ]
    )
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        env={**os.environ, "DEEPSPORTS_CACHE": str(tmp_path / "cache")},
    )
    if done.returncode == 77:
        pytest.skip("this machine does not let root mount a file system")
    assert done.returncode == 0, done.stdout + done.stderr
    before, _, after = done.stdout.partition("All frames of all dives exist and decode; the splits are disjoint.\n")
    assert f"not verified since they were extracted (01 02): run python -m data_preparation.verify {flags}" in before
    assert after.startswith(f"Verification recorded in {tmp_path / 'cache' / 'verified'}")
    assert after.splitlines()[1] == "[]"  # no fault any more
    assert not (copied / "whole_videos_frames" / ".verified").exists()
