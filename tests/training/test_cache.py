"""--cache: whatever happens to the cache, every pixel is that of the archive."""

from __future__ import annotations

import dataclasses
import pickle
import resource
import shutil
import signal
import subprocess
import sys
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
from training.data.cache import Room, cache_folder, opened
from training.data.plan import ClipSpec
from training.data.sources import FrameSource
from training.data.transforms import crop_view, squash_view

VIDEOS = ("01", "02")


@pytest.fixture
def config(dataset: Path, tmp_path: Path) -> TrainConfig:
    return TrainConfig(root_dir=dataset / "whole_videos_frames", cache=str(tmp_path / "node"), workers=0)


def clip_of(config: TrainConfig, seed: int) -> ClipSpec:
    """A clip of any frames of a video, in any order and repeated, with any kind of view."""
    rng = np.random.default_rng(seed)
    video = VIDEOS[seed % 2]
    numbers = open_frames(config.root_dir, video).numbers[:20]
    frames = tuple(rng.choice(numbers, 6).tolist())
    views = [crop_view(64, rng), squash_view(48, rng), crop_view(64, rng, "swapped_nearest")]
    return ClipSpec(Action(video, 1, frames[0], frames[-1]), frames, views[seed % 3])


def assert_same_pixels(source: FrameSource, seeds: range) -> None:
    plain = FrameSource(dataclasses.replace(source.config, cache="none", cache_gb=0))
    for seed in seeds:
        clip = clip_of(source.config, seed)
        assert torch.equal(source.read(clip), plain.read(clip))


def truncate(folder: Path, share: float) -> None:
    for file in folder.glob("*.frames"):
        with open(file, "r+b") as opened_file:
            opened_file.truncate(int(file.stat().st_size * share))


def damage_marks(folder: Path, share: float) -> None:
    """Overwrite the last bytes of each file, where the mark of a frame is."""
    for file in folder.glob("*.frames"):
        with open(file, "r+b") as opened_file:
            opened_file.seek(max(file.stat().st_size - 16, 0))
            opened_file.write(bytes(16))


EVENTS = {
    "nothing": lambda folder, share: None,
    "truncated": truncate,
    "marks": damage_marks,
    "deleted": lambda folder, share: shutil.rmtree(folder, ignore_errors=True),
    "files deleted": lambda folder, share: [file.unlink() for file in folder.glob("*.frames")],
    "limits": lambda folder, share: folder.exists() and (folder / "limits").write_text("?"),
}


@settings(max_examples=8)
@given(data=st.data())
def test_every_state_of_the_cache_gives_the_pixels_of_the_archive(
    data: st.DataObject, dataset: Path, tmp_path_factory: pytest.TempPathFactory
):
    node = tmp_path_factory.mktemp("node")
    gb = data.draw(st.sampled_from([0.0, 1e-9, 2e-4]))  # half of the disk, nothing, a few frames
    config = TrainConfig(root_dir=dataset / "whole_videos_frames", cache=str(node), cache_gb=gb, workers=0)
    folder = cache_folder(config)
    assert folder is not None
    with opened(config, Room()):
        ranks = [FrameSource(config), FrameSource(config)]
        for _ in range(data.draw(st.integers(1, 4))):
            first = data.draw(st.integers(0, 20))
            source = data.draw(st.sampled_from([*ranks, pickle.loads(pickle.dumps(ranks[0]))]))
            assert_same_pixels(source, range(first, first + 6))
            EVENTS[data.draw(st.sampled_from(sorted(EVENTS)))](folder, data.draw(st.floats(0, 1)))
        assert_same_pixels(ranks[0], range(6))
        used = sum(file.stat().st_blocks * 512 for file in folder.glob("*.frames"))
        assert not gb or used <= gb * 2**30 + 2**16  # blocks of the file system are larger than pages


def test_a_frame_is_decoded_once_on_a_node(config: TrainConfig, monkeypatch: pytest.MonkeyPatch):
    with opened(config, Room()):
        assert_same_pixels(FrameSource(config), range(12))
        other = pickle.loads(pickle.dumps(FrameSource(config)))  # as in another worker
        monkeypatch.setattr(FrameReader, "image", lambda *_: pytest.fail("decoded again"))
        for seed in range(12):
            other.read(clip_of(config, seed))


def test_several_ranks_fill_the_cache_at_once(config: TrainConfig):
    with opened(config, Room()), ThreadPoolExecutor(4) as threads:
        sources = [FrameSource(config) for _ in range(4)]
        list(threads.map(lambda source: assert_same_pixels(source, range(15)), sources))


def test_a_frame_that_the_archive_lacks_is_no_hit(config: TrainConfig):
    with opened(config, Room()):
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
    with opened(moved, Room()):
        clip = clip_of(moved, 0)
        FrameSource(moved).read(clip)
        shutil.copy(config.root_dir / "02.zip", root / "01.zip")
        numbers = tuple(open_frames(root, "01").numbers[:6].tolist())
        clip = dataclasses.replace(clip, frames=numbers)
        plain = FrameSource(dataclasses.replace(moved, cache="none")).read(clip)
        assert torch.equal(FrameSource(moved).read(clip), plain)


def test_a_disk_that_fills_costs_one_warning(config: TrainConfig, caplog: pytest.LogCaptureFixture):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with opened(config, Room()):
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))  # the write that reaches it is cut short
            for _ in range(2):
                assert_same_pixels(FrameSource(config), range(6))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [r.message.split(" (")[1] for r in caplog.records if "cannot be filled further" in r.message] == [
        "[Errno 27] File too large): other frames are read from the archives, which is slower"
    ]


def test_a_cache_in_memory_goes_with_its_last_process(config: TrainConfig):
    config = dataclasses.replace(config, cache="ram")
    folder = cache_folder(config)
    assert folder is not None
    code = f"""
import os, pickle, signal
from training.data.cache import Room, opened
with opened(pickle.loads({pickle.dumps(config)!r}), Room()):
    print("opened", flush=True)
    input()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    with opened(config, Room()):
        assert_same_pixels(FrameSource(config), range(3))
        with subprocess.Popen(
            [sys.executable, "-c", code], cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == "opened\n"
            assert list(folder.glob("*.frames"))  # a process that comes later uses the same folder
            other.communicate("\n")
        assert other.returncode == -signal.SIGKILL
        assert folder.exists()
    assert not list(SHARED_MEMORY.glob(folder.name + "*"))
    folder.mkdir()  # as a killed training leaves it
    (folder / "x.frames").touch()
    with opened(config, Room()):
        assert sorted(file.name for file in folder.iterdir()) == ["limits"]


def test_the_cache_takes_no_more_than_the_job_may_use(config: TrainConfig):
    config = dataclasses.replace(config, cache="ram", cache_gb=1)
    with pytest.raises(UserError, match=r"--cache_gb 1: /dev/shm has 0\.5 GiB for it"), opened(config, Room(0, 2**29)):
        pass
    folder = cache_folder(config)
    assert folder is not None
    assert not folder.exists()
    with opened(dataclasses.replace(config, cache_gb=0), Room(0, 2**29)):
        assert (folder / "limits").read_text() == f"{2**28} 0"


def test_a_folder_that_cannot_be_made_is_one_sentence(config: TrainConfig, tmp_path: Path):
    (tmp_path / "file").touch()
    config = dataclasses.replace(config, cache=str(tmp_path / "file" / "x"))
    with (
        pytest.raises(UserError, match=r"cannot be used .*: give a folder on a disk of the node"),
        opened(config, Room()),
    ):
        pass
