"""Pixels from an archive to the batch on the device: by every value of --frame_decode, and copied one batch ahead."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_preparation.actions import Action
from data_preparation.archive import FrameReader, write_archive
from data_preparation.common.errors import UserError
from data_preparation.decoding import Decoder, request_numbers
from data_preparation.frame_numbers import scan_video
from tests.conftest import SHARED
from tests.small import config_of
from training.config import TrainConfig, as_record, differences, from_record
from training.data.ahead import copied_ahead
from training.data.augment import change_colours, randaugment
from training.data.handover import Jpegs, finished
from training.data.plan import ClipSpec, View
from training.data.sources import FrameSource
from training.data.transforms import apply_view, crop_view, crop_views, resized_size, squash_view
from training.scorer import Clip, _FramesOfClip

CPU = torch.device("cpu")
HEIGHT, WIDTH, COUNT = 73, 130, 6  # of frames that --spatial_size 64 need not resize
ACTION = Action("01", 1, 1, COUNT)


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of random frames."""
    folder = tmp_path_factory.mktemp("frames")
    rng = np.random.default_rng(0)
    images = (rng.integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8) for _ in range(COUNT))
    jpegs = (simplejpeg.encode_jpeg(image, quality=95) for image in images)
    write_archive(folder / "01.zip", enumerate(jpegs, 1), {})
    return folder


def by_simplejpeg(jpegs: list[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    """A decoder of Jpegs in place of the GPU's, with the pixels of libjpeg-turbo."""
    return [torch.from_numpy(simplejpeg.decode_jpeg(j.numpy().tobytes())).permute(2, 0, 1).to(device) for j in jpegs]


def views_of(config: TrainConfig, seed: int) -> list[View]:
    rng = np.random.default_rng(seed)
    if not config.data_aug:
        return [squash_view(config.input_size, rng) for _ in range(3)]
    views = [crop_view(config.spatial_size, rng, config.geometry) for _ in range(3)]
    return views + crop_views(config.spatial_size, 10, config.geometry)[7:]


GEOMETRIES = ("squash", "standard", "centre_crop", "swapped", "swapped_nearest")


@settings(max_examples=30)
@given(st.sampled_from(GEOMETRIES), st.sampled_from([32, 64, 80]), st.integers(0, 99), st.booleans())
def test_pixels_are_those_of_resizing_cropping_and_flipping_whole_clips(
    frames: Path, geometry: str, size: int, seed: int, augments: bool
):
    cropped = {} if geometry == "squash" else {"data_aug": True, "geometry": geometry}
    config = config_of(spatial_size=size, frame_num=3, root_dir=frames, **cropped)
    reader, rng = FrameReader(frames / "01.zip"), np.random.default_rng(seed)
    clips = [ClipSpec(ACTION, tuple(rng.integers(1, COUNT + 1, 3).tolist()), view) for view in views_of(config, seed)]
    if augments:
        clips = [randaugment(clip, rng) for clip in clips]
    loaded = finished(FrameSource(config).read_batch(clips), CPU)
    on_gpu = dataclasses.replace(config, frame_decode="gpu")
    for clip, clip_TCHW in zip(clips, loaded, strict=True):
        assert clip.view is not None
        expected = apply_view(clip.view, np.stack([reader.image(n) for n in clip.frames]))
        assert torch.equal(clip_TCHW, change_colours(expected, clip.look) if clip.look else expected)
    if not augments:  # the device does the rest of the work on the same pixels
        jpegs = FrameSource(on_gpu).read_batch(clips)
        assert isinstance(jpegs, Jpegs)
        assert torch.equal(jpegs.finish(CPU, by_simplejpeg), loaded)


def test_decoding_on_a_gpu_says_what_it_lacks(frames: Path, tmp_path: Path):
    config = config_of(frame_decode="gpu", spatial_size=32, root_dir=frames)
    clips = [ClipSpec(ACTION, (1, 2), squash_view(32))]
    with pytest.raises(UserError, match="--frame_decode gpu needs a GPU"):
        finished(FrameSource(config).read_batch(clips), CPU)
    write_archive(tmp_path / "01.zip", [(1, b"no picture"), (2, b"none")], {})
    with pytest.raises(UserError, match=r"01\.zip: frame 1 is not a readable JPEG"):
        FrameSource(dataclasses.replace(config, root_dir=tmp_path)).read_batch(clips)
    with pytest.raises(UserError, match="give --augment_on device"):
        config_of(frame_decode="gpu", augment="randaugment")
    with pytest.raises(UserError, match="leave --cache out"):
        config_of(frame_decode="gpu", cache="ram")


def test_scaled_decoding_gives_almost_the_pixels_of_full_decoding(tmp_path: Path):
    video = SHARED / "clips" / "dive_mtl_aqa_03_055.avi"
    if not video.exists():
        pytest.skip("needs ../shared")
    scan = scan_video(video)
    decoder = Decoder(scan.path, scan.stream_index)
    pictures = [frame for _, frame in decoder.frames(request_numbers(scan, np.arange(1, 41, 8)))]
    decoder.close()
    pixels = (frame.reformat(455, 256, "rgb24").to_ndarray() for frame in pictures)
    jpegs = (simplejpeg.encode_jpeg(np.ascontiguousarray(each), quality=95, colorsubsampling="420") for each in pixels)
    write_archive(tmp_path / "01.zip", enumerate(jpegs, 1), {})
    numbers = tuple(range(1, len(pictures) + 1))
    for size, cropped in ((112, True), (112, False), (224, True), (64, False)):
        config = config_of(spatial_size=size, data_aug=cropped, root_dir=tmp_path)
        view = crop_view(size, np.random.default_rng(1)) if cropped else squash_view(size)
        full, scaled, again = (
            FrameSource(dataclasses.replace(config, frame_decode=decode)).read(ClipSpec(ACTION, numbers, view))
            for decode in ("full", "scaled", "scaled")
        )
        assert torch.equal(scaled, again)
        reader = FrameReader(tmp_path / "01.zip")  # as a Scorer reads new videos
        in_memory = Clip(np.stack([reader.image(n, resized_size(config)) for n in numbers]), ACTION)
        of_clip = FrameSource(dataclasses.replace(config, frame_decode="scaled"), _FramesOfClip(in_memory))
        assert torch.equal(of_clip.read(ClipSpec(ACTION, numbers, view)), scaled)
        difference = (full.int() - scaled.int()).abs().float()
        assert difference.mean() < 2
        assert torch.equal(full, scaled) == (size == 224)  # too large to be decoded at half the size


def test_a_resumed_run_may_not_change_how_frames_are_decoded(tmp_path: Path):
    config = config_of(runs_dir=tmp_path)
    assert differences(config, dataclasses.replace(config, frame_decode="scaled")) == (
        ["--frame_decode: full -> scaled"],
        [],
    )
    older = {name: value for name, value in as_record(config).items() if name != "frame_decode"}
    assert from_record(older) == config


class Recorder:
    """A side that notes in which order batches are made and waited for."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def begin(self, make: Callable[[], str]) -> Callable[[], str]:
        made = make()
        self.events.append(f"begin {made}")

        def ready() -> str:
            self.events.append(f"wait for {made}")
            return made

        return ready


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_batch_is_copied_before_the_training_waits_for_the_one_before(count: int):
    side = Recorder()
    found = []
    for batch in copied_ahead(range(count), str, side):
        side.events.append(f"step {batch}")
        found.append(batch)
    assert found == [str(i) for i in range(count)]
    if count == 3:
        assert side.events == ["begin 0", "begin 1", "wait for 0", "step 0", "begin 2", "wait for 1", "step 1", "wait for 2", "step 2"]  # fmt: skip
