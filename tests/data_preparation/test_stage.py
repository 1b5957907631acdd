"""Copies of archives on a disk of the node."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from data_preparation.common.errors import UserError
from data_preparation.stage import frames_on_node, stage
from training.runtime.run_folder import RunFolder

VIDEOS = ("01", "02")


def test_archives_are_copied_once_and_again_after_a_new_extraction(dataset: Path, tmp_path: Path):
    frames = tmp_path / "frames"
    shutil.copytree(dataset / "whole_videos_frames", frames)
    with ThreadPoolExecutor(3) as threads:
        (staged,) = set(threads.map(lambda _: stage(frames, VIDEOS, tmp_path / "node"), range(3)))
    inodes = {video: (staged / f"{video}.zip").stat().st_ino for video in VIDEOS}
    for video in VIDEOS:
        assert (staged / f"{video}.zip").read_bytes() == (frames / f"{video}.zip").read_bytes()
    os.utime(frames / "02.zip", (1, 1))
    assert stage(frames, VIDEOS, tmp_path / "node") == staged
    assert (staged / "01.zip").stat().st_ino == inodes["01"]
    assert (staged / "02.zip").stat().st_mtime == 1
    assert sorted(file.name for file in staged.iterdir()) == [".lock", "01.zip", "02.zip"]


def test_archives_that_do_not_fit_are_one_sentence(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    frames, node = dataset / "whole_videos_frames", tmp_path / "node"
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    env = {"DEEPSPORTS_STAGE": "require", "DEEPSPORTS_STAGE_DIR": str(node)}
    with pytest.raises(
        UserError, match=r"has 1 kB free and the archives of this run take .*: set DEEPSPORTS_STAGE_DIR"
    ):
        frames_on_node(frames, VIDEOS, env)
    assert not list(node.rglob("*.zip"))
    assert frames_on_node(frames, VIDEOS, {**env, "DEEPSPORTS_STAGE": "try"}) == frames
    assert "frames are read from" in caplog.text
    assert frames_on_node(frames, VIDEOS, {}) == frames
    with pytest.raises(UserError, match="DEEPSPORTS_STAGE is 'yes': set it to try or require"):
        frames_on_node(frames, VIDEOS, {"DEEPSPORTS_STAGE": "yes"})
    with pytest.raises(UserError, match="1 videos have no archive"):
        frames_on_node(frames, ["01", "77"], env)


def test_a_training_reads_the_copies_and_records_the_originals(
    train: Callable[..., object], dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("DEEPSPORTS_STAGE", "require")
    monkeypatch.setenv("DEEPSPORTS_STAGE_DIR", str(tmp_path / "node"))
    train("--run_name", "staged", "--epochs", 1)
    assert RunFolder(tmp_path / "runs" / "staged").existing_config().root_dir == dataset / "whole_videos_frames"
    assert len(list((tmp_path / "node").rglob("*.zip"))) == 2
