"""--cache: whatever happens to the cache, every pixel is that of the archive."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_preparation.actions import Action
from data_preparation.archive import FrameReader, open_frames
from data_preparation.common.errors import UserError
from data_preparation.common.limits import SHARED_MEMORY
from tests.conftest import REPOSITORY
from training.config import TrainConfig
from training.data.cache import Handle, opened
from training.data.plan import ClipSpec
from training.data.sources import FrameSource
from training.data.transforms import crop_view, squash_view

VIDEOS = ("01", "02")
VIEWS = [
    {"spatial_size": 48},
    {"data_aug": True, "spatial_size": 64},
    {"spatial_size": 32, "frame_decode": "scaled"},
    {"data_aug": True, "spatial_size": 64, "geometry": "swapped_nearest"},
]


@pytest.fixture
def config(dataset: Path, tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        root_dir=dataset / "whole_videos_frames", cache=str(tmp_path / "node"), spatial_size=48, workers=0
    )


def clip_of(config: TrainConfig, seed: int) -> ClipSpec:
    """A clip of any frames of a video, in any order and repeated, with any kind of view."""
    rng = np.random.default_rng(seed)
    video = VIDEOS[seed % 2]
    numbers = open_frames(config.root_dir, video).numbers[:20]
    frames = tuple(rng.choice(numbers, 6).tolist())
    views = [crop_view(64, rng), squash_view(config.spatial_size, rng), crop_view(64, rng, "swapped_nearest")]
    # every fifth has another size than those of the run, which is not cached
    of_run = {"standard": views[0], "swapped_nearest": views[2]}[config.geometry] if config.data_aug else views[1]
    return ClipSpec(Action(video, 1, frames[0], frames[-1]), frames, views[seed % 3] if seed % 5 == 4 else of_run)


def assert_same_pixels(source: FrameSource, seeds: range) -> None:
    plain = FrameSource(dataclasses.replace(source.config, cache="none", cache_gb=0))
    for seed in seeds:
        clip = clip_of(source.config, seed)
        assert torch.equal(source.read(clip), plain.read(clip))


def damage(handle: Handle, what: str, seed: int) -> None:
    """What nobody can do by a file name: change the slots, the index or the note of a cache in use."""
    slots, index, _ = handle.descriptors
    rng = np.random.default_rng(seed)
    if what == "index":
        start = 64 + 16 * int(rng.integers(handle.entries))
        os.pwrite(index, rng.bytes(16 * (handle.entries - (start - 64) // 16)), start)
    if what == "marks":
        for slot in range(handle.slots)[:200:2]:
            os.pwrite(slots, bytes(16), slot * handle.slot_bytes + handle.frame_bytes)
    if what == "truncated" and not handle.in_memory:
        os.ftruncate(slots, int(rng.integers(handle.slots * handle.slot_bytes)))
    if what == "note":
        for note in SHARED_MEMORY.glob(f"deepsports-cache-{os.getuid()}-*"):
            if json.loads(note.read_text())["inodes"] == list(handle.inodes):
                note.unlink()


@settings(max_examples=12)
@given(data=st.data())
def test_every_state_of_the_cache_gives_the_pixels_of_the_archive(
    data: st.DataObject, dataset: Path, tmp_path_factory: pytest.TempPathFactory
):
    config = TrainConfig(
        root_dir=dataset / "whole_videos_frames",
        cache=data.draw(st.sampled_from(["ram", str(tmp_path_factory.mktemp("node"))])),
        cache_gb=data.draw(st.sampled_from([0.01, 2e-4])),  # all frames, or some
        workers=0,
        **data.draw(st.sampled_from(VIEWS)),
    )
    with opened(config):
        ranks = [FrameSource(config), pickle.loads(pickle.dumps(FrameSource(config)))]
        handle = ranks[0]._cache
        assert handle is not None
        for _ in range(data.draw(st.integers(1, 4))):
            first = data.draw(st.integers(0, 20))
            assert_same_pixels(data.draw(st.sampled_from(ranks)), range(first, first + 6))
            damage(handle, data.draw(st.sampled_from(["", "index", "marks", "truncated", "note"])), first)
        assert_same_pixels(ranks[0], range(6))
        assert os.fstat(handle.descriptors[0]).st_blocks * 512 <= config.cache_gb * 2**30 + 2**16


def test_a_frame_is_decoded_once_on_a_node(config: TrainConfig, monkeypatch: pytest.MonkeyPatch):
    with opened(config):
        assert_same_pixels(FrameSource(config), range(12))
        other = pickle.loads(pickle.dumps(FrameSource(config)))  # as in another worker
        monkeypatch.setattr(FrameReader, "image", lambda *_: pytest.fail("decoded again"))
        for seed in (seed for seed in range(12) if seed % 5 < 4):
            other.read(clip_of(config, seed))


def test_several_ranks_fill_the_cache_at_once(config: TrainConfig):
    with opened(config), ThreadPoolExecutor(4) as threads:
        sources = [FrameSource(config) for _ in range(4)]
        list(threads.map(lambda source: assert_same_pixels(source, range(15)), sources))


def test_a_frame_that_the_archive_lacks_is_no_hit(config: TrainConfig):
    with opened(config):
        source, clip = FrameSource(config), clip_of(config, 0)
        source.read(clip)
        lacking = 10**6
        with pytest.raises(UserError, match="has no frame 1000000"):
            source.read(dataclasses.replace(clip, frames=(lacking, *clip.frames[1:])))


def test_another_archive_is_no_hit(config: TrainConfig, tmp_path: Path):
    """An archive that was extracted again in the same place has other pixels."""
    root = tmp_path / "frames"
    root.mkdir()
    shutil.copy(config.root_dir / "01.zip", root / "01.zip")
    moved = dataclasses.replace(config, root_dir=root)
    with opened(moved):
        clip = clip_of(moved, 0)
        FrameSource(moved).read(clip)
        shutil.copy(config.root_dir / "02.zip", root / "01.zip")
        numbers = tuple(open_frames(root, "01").numbers[:6].tolist())
        clip = dataclasses.replace(clip, frames=numbers)
        plain = FrameSource(dataclasses.replace(moved, cache="none")).read(clip)
        assert torch.equal(FrameSource(moved).read(clip), plain)


def test_a_disk_that_fills_costs_one_warning(
    config: TrainConfig, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    def limited(descriptor: int, data: memoryview, offset: int) -> int:
        if offset > 50_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return pwrite(descriptor, data[:1000], offset)  # and a write may be cut short

    pwrite = os.pwrite
    with opened(config):
        monkeypatch.setattr(os, "pwrite", limited)
        for _ in range(2):
            assert_same_pixels(pickle.loads(pickle.dumps(FrameSource(config))), range(6))
        monkeypatch.undo()
    assert len([r for r in caplog.records if "No space left on device" in r.message]) == 1


OTHER = """
import os, pickle, signal
from training.data.cache import opened
from training.data.sources import FrameSource
config, clip = pickle.loads({pickled!r})
with opened(config):
    import data_preparation.archive as archive
    archive.FrameReader.image = None  # all frames are in the cache
    print(int(FrameSource(config).read(clip).sum()), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("place", ["ram", "disk"])
def test_ranks_of_a_node_share_a_cache_that_goes_with_the_last_of_them(config: TrainConfig, place: str):
    if place == "ram":
        config = dataclasses.replace(config, cache="ram")
    clip = clip_of(config, 0)
    notes = set(SHARED_MEMORY.glob("deepsports-cache-*"))
    with opened(config):
        (note,) = set(SHARED_MEMORY.glob("deepsports-cache-*")) - notes
        pixels = FrameSource(config).read(clip)
        other = subprocess.run(
            [sys.executable, "-c", OTHER.format(pickled=pickle.dumps((config, clip)))],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
        )
        assert (other.returncode, other.stdout) == (-signal.SIGKILL, f"{int(pixels.sum())}\n"), other.stderr
        assert torch.equal(FrameSource(config).read(clip), pixels)
        assert note.exists()
        if place == "disk":
            assert not list(Path(config.cache).iterdir())  # the file has no name
    assert not note.exists()


def test_the_note_of_a_killed_training_is_no_cache(config: TrainConfig):
    config = dataclasses.replace(config, cache="ram")
    notes = set(SHARED_MEMORY.glob("deepsports-cache-*"))
    with opened(config):
        (note,) = set(SHARED_MEMORY.glob("deepsports-cache-*")) - notes
        left = note.read_bytes()
    note.write_bytes(left)
    with opened(config):
        assert_same_pixels(FrameSource(config), range(3))
    assert not note.exists()


def test_the_cache_takes_no_more_than_the_job_may_use(config: TrainConfig):
    config = dataclasses.replace(config, cache="ram", cache_gb=1)
    with (
        pytest.raises(UserError, match=r"--cache ram has 0\.50 GiB of room and would take 1\.00 GiB"),
        opened(config, 2**29),
    ):
        pass
    with opened(dataclasses.replace(config, cache_gb=0), 2**29):
        handle = FrameSource(dataclasses.replace(config, cache_gb=0))._cache
        assert handle is not None
        assert 0 <= 2**28 - handle.slots * handle.slot_bytes < handle.slot_bytes


def test_a_folder_that_cannot_be_made_is_one_sentence(config: TrainConfig, tmp_path: Path):
    (tmp_path / "file").touch()
    config = dataclasses.replace(config, cache=str(tmp_path / "file" / "x"))
    with (
        pytest.raises(UserError, match=r"cannot be used .*: give ram, or a folder on a disk of the node"),
        opened(config),
    ):
        pass


def test_a_training_with_a_cache_is_the_same(train: Callable[..., object], tmp_path: Path):
    """Three epochs, in which all frames come from the cache after the first, with and without workers."""
    losses = []
    for name, flags in {"plain": [], "ram": ["--cache", "ram", "--workers", 1], "disk": ["--cache", tmp_path]}.items():
        train("--run_name", name, "--epochs", 2, "--data_aug", True, *flags)
        records = [json.loads(line) for line in (tmp_path / "runs" / name / "metrics.jsonl").read_text().splitlines()]
        losses.append([record["train_loss"] for record in records if record["type"] == "epoch"])
    assert losses[0] == losses[1] == losses[2]
