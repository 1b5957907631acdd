"""Sources of clips: prepared frames, or a file of features that a network computed in advance."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from data_preparation.actions import Action, video_order
from data_preparation.archive import FrameReader, FrameReaders, StoredFrames, missing_text, open_frames
from data_preparation.common.errors import UserError
from data_preparation.identity import source_hashes
from data_preparation.layout import prepared
from data_preparation.many_videos import MAX_LINES, names_text
from training.config import TrainConfig
from training.data.augment import change_colours, randaugment
from training.data.buffers import empty_batch
from training.data.cache import frame_cache, open_handle
from training.data.features import feature_file
from training.data.handover import Clips, Jpegs, Pixels, finished
from training.data.plan import ClipSpec, View, ViewChoice
from training.data.sampling import END_ALIGNED, END_SHIFT, clip_frames, needed_frames, places_of_test
from training.data.transforms import crop_flip_rotate, crop_view, crop_views, resize_image, squash_view

log = logging.getLogger(__name__)

_OPENING_THREADS = 8  # that open archives at the same time


class Source(Protocol):
    """Plans clips in the training process and, pickled, reads them in the workers."""

    def faults(self, actions: Sequence[Action]) -> list[str]:
        """Messages about files of these actions that are missing; reads indexes only."""
        ...

    def record(self, actions: Sequence[Action]) -> dict[str, str]:
        """What splits.json records about these actions' data besides labels."""
        ...

    def stored_frames(self, actions: Sequence[Action]) -> StoredFrames | None:
        """How the frames of these actions are stored, from the first video; None if there are none."""
        ...

    def video_hashes(self, actions: Sequence[Action]) -> dict[str, str]:
        """Hashes of the source videos of these actions, by video, as far as they are known (identity.source_hashes)."""
        ...

    def plan(self, action: Action, rng: np.random.Generator | None) -> ClipSpec:
        """Choose the frames and the view of a clip. `rng` is None for validation and test.

        Raises:
            UserError: the action has too few frames for the clip.
        """
        ...

    def plan_frames(self, action: Action, frames: tuple[int, ...], rng: np.random.Generator | None) -> ClipSpec:
        """Choose the view of a clip whose frames a method has chosen. `rng` is None for validation and test."""
        ...

    def at(self, choice: ViewChoice) -> Source:
        """This source for one view of the test."""
        ...

    def read(self, clip: ClipSpec) -> torch.Tensor:
        """A clip (T, 3, H, W) uint8, or features (N, D) float32.

        Raises:
            UserError: a frame is missing or damaged.
        """
        ...

    def read_batch(self, clips: Sequence[ClipSpec]) -> Clips:
        """Clips of the same shape, for Loaded.

        Raises:
            UserError: a frame is missing or damaged.
        """
        ...


def source_of(config: TrainConfig) -> Source:
    """The source that the backbone of `config` reads."""
    return FrameSource(config) if config.reads == "video" else FeatureSource(config)


def views_of_test(config: TrainConfig) -> list[ViewChoice]:
    """The views of each action in the test; none if it has just that of a validation."""
    places = places_of_test(config.frame_method, config.test_clips) if config.views_text else []
    return [ViewChoice(place, crop) for place in places for crop in range(config.test_crops)]


class Frames(Protocol):
    """The frames of one video. `numbers` (frames,) int64 ascend from 1 or later; archive.FrameReader is one."""

    numbers: np.ndarray

    def image(self, number: int, least: tuple[int, int] | None = None, /) -> np.ndarray:
        """A frame as (H, W, 3) uint8 RGB; with `least` (height, width) a smaller one may be given that is at least that large."""
        ...


class FramesOfVideos(Protocol):
    """The frames of videos by their names."""

    def __getitem__(self, video: str, /) -> Frames: ...


class FrameSource:
    """Frames of --root_dir, or of `videos` in memory: clips (T, 3, S, S) uint8. `place` is that of sampling.clip_frames, and
    `crop` the number of one of --test_crops; None is the crop of validation."""

    def __init__(
        self, config: TrainConfig, videos: FramesOfVideos | None = None, place: float = 0.5, crop: int | None = None
    ) -> None:
        self.config, self.place, self.crop = config, place, crop
        self._kept: tuple[object, list[np.ndarray]] | None = None  # the last clip before its crop
        self._readers = FrameReaders(config.root_dir) if videos is None else videos  # each worker opens its own
        self._cache = open_handle(config) if videos is None else None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_kept": None}

    def faults(self, actions: Sequence[Action]) -> list[str]:
        return frame_faults(actions, self.config)

    def record(self, actions: Sequence[Action]) -> dict[str, str]:
        return {}  # the labels identify the videos, and thereby the frames

    def stored_frames(self, actions: Sequence[Action]) -> StoredFrames | None:
        action = actions[0]
        try:
            reader = open_frames(self.config.root_dir, action.video)
            stored = StoredFrames(**reader.provenance.get("settings", {"height": 0}))
            if stored.height:
                return stored
            return replace(stored, height=reader.image(action.start_frame).shape[0])
        except UserError as error:  # the training reads frames only, so it can go on
            log.warning("%s", error)
            return None

    def video_hashes(self, actions: Sequence[Action]) -> dict[str, str]:
        return source_hashes(self.config.root_dir, (action.video for action in actions))

    def plan(self, action: Action, rng: np.random.Generator | None) -> ClipSpec:
        c = self.config
        # only these use frames after the action's end; do not open the archive for the others
        frames_after = self._frames_after(action) if c.frame_method in END_ALIGNED else 0
        try:
            frames = clip_frames(
                action.start_frame, action.end_frame, c.frame_num, c.frame_method, rng, frames_after, self.place
            )
        except ValueError as error:
            raise UserError(f"{action.title}: {error}; choose another --frame_method or fewer --frame_num") from None
        return self.plan_frames(action, tuple(frames.tolist()), rng)

    def plan_frames(self, action: Action, frames: tuple[int, ...], rng: np.random.Generator | None) -> ClipSpec:
        c = self.config
        if self.crop is not None and c.data_aug:
            view = crop_views(c.spatial_size, c.test_crops, c.geometry, c.full_res)[self.crop]
        elif c.data_aug:
            view = crop_view(c.spatial_size, rng, c.geometry)
        else:
            view = squash_view(c.input_size, rng if c.flip else None)
        clip = ClipSpec(action, frames, view)
        # drawn last: frames and crops are those of a training without it
        return clip if rng is None or c.augment == "none" else randaugment(clip, rng)

    def at(self, choice: ViewChoice) -> FrameSource:
        """This source for one view of the test; it shares the open archives."""
        viewed = copy.copy(self)
        viewed.place, viewed.crop = choice
        return viewed

    def _frames_after(self, action: Action) -> int:
        """How many frames follow the action's end on disk without a gap, at most END_SHIFT."""
        on_disk = np.isin(action.end_frame + np.arange(1, END_SHIFT + 1), self._readers[action.video].numbers)
        return int(on_disk.cumprod().sum())

    def read(self, clip: ClipSpec) -> torch.Tensor:
        return finished(self.read_batch([clip]), torch.device("cpu"))[0]

    def read_batch(self, clips: Sequence[ClipSpec]) -> Clips:
        assert clips[0].view is not None
        if self.config.frame_decode == "gpu" and isinstance(self._readers, FrameReaders):
            return jpegs_of(self._readers, clips)
        pixels_BTHWC = empty_batch(len(clips), len(clips[0].frames), *clips[0].view.size, 3)
        flips = [self._write(clip, out_THWC) for clip, out_THWC in zip(clips, pixels_BTHWC, strict=True)]
        return Pixels(pixels_BTHWC, flips)

    def _write(self, clip: ClipSpec, out_THWC: torch.Tensor) -> bool:
        """Write a clip to `out_THWC`; return whether it is still to be flipped."""
        view = clip.view
        assert view is not None
        self.write_frames(clip, view, out_THWC.numpy())
        if not (view.degrees or clip.look):
            return view.flip
        # rotation follows the flip and colours follow the rotation
        frames_TCHW = out_THWC.permute(0, 3, 1, 2)
        frames_TCHW = crop_flip_rotate(replace(view, crop=(0, 0, *view.size)), frames_TCHW)
        changed_TCHW = change_colours(frames_TCHW, clip.look) if clip.look else frames_TCHW
        out_THWC.copy_(changed_TCHW.permute(0, 2, 3, 1))
        return False

    def write_frames(self, clip: ClipSpec, view: View, out_THWC: np.ndarray) -> None:
        """Write the frames of a clip to `out_THWC` (T, height, width, 3) uint8, resized and cropped as the view says."""
        cache = None if self._cache is None or self._has_many_crops else frame_cache(self._cache)
        if cache is not None:
            reader = self._readers[clip.action.video]
            assert isinstance(reader, FrameReader)
            cache.write_crop(reader, clip.frames, view, out_THWC, partial(self._resized_frame, reader, view))
            return
        top, left, height, width = view.crop
        resized_THWC = self._before_crop(clip, view) if self._has_many_crops else self._resized_frames(clip, view)
        for out_HWC, frame_HWC in zip(out_THWC, resized_THWC, strict=True):
            out_HWC[...] = frame_HWC[top : top + height, left : left + width]

    @property
    def _has_many_crops(self) -> bool:
        return self.crop is not None and self.config.test_crops > 1

    def _before_crop(self, clip: ClipSpec, view: View) -> list[np.ndarray]:
        """The resized frames. The crops of a clip follow each other in the test, so the last ones are kept."""
        key = (clip.action.key, clip.frames, view.resize, view.nearest)
        if self._kept is None or self._kept[0] != key:
            reader = self._readers[clip.action.video]
            self._kept = (key, [self._resized_frame(reader, view, number) for number in clip.frames])
        return self._kept[1]

    def _resized_frames(self, clip: ClipSpec, view: View) -> Iterator[np.ndarray]:
        """The frames of a clip one by one, (height, width, 3) uint8 of `view.resize`; each is valid until the next."""
        reader = self._readers[clip.action.video]
        if isinstance(reader, FrameReader):
            for frame_HWC in reader.images(clip.frames, *self._least(view)):
                yield resize_image(frame_HWC, *view.resize, view.nearest)
        else:
            for number in clip.frames:
                yield self._resized_frame(reader, view, number)

    def _resized_frame(self, reader: Frames, view: View, number: int) -> np.ndarray:
        """One frame (height, width, 3) uint8 of `view.resize`."""
        return resize_image(reader.image(number, *self._least(view)), *view.resize, view.nearest)

    def _least(self, view: View) -> tuple[tuple[int, int], ...]:
        """The argument `least` of Frames.image, if frames may be decoded at a smaller size."""
        return (view.resize,) if self.config.frame_decode == "scaled" else ()


def jpegs_of(readers: FrameReaders, clips: Sequence[ClipSpec]) -> Jpegs:
    """The frames of some clips as they are stored.

    Raises:
        UserError: a frame is missing or damaged.
    """
    contents = [readers[clip.action.video].jpeg(number) for clip in clips for number in clip.frames]
    lengths = [len(content) for content in contents]
    data = empty_batch(sum(lengths))
    data.numpy()[:] = np.frombuffer(b"".join(contents), np.uint8)
    return Jpegs(data, lengths, [clip.view for clip in clips if clip.view is not None])


class WithoutFrames(Source):
    """Base class of sources of features (N, D), which an action has once: no frames and no views to choose."""

    def stored_frames(self, actions: Sequence[Action]) -> StoredFrames | None:
        return None

    def at(self, choice: ViewChoice) -> Source:
        return self

    def plan(self, action: Action, rng: np.random.Generator | None) -> ClipSpec:
        return ClipSpec(action, (), None)

    def plan_frames(self, action: Action, frames: tuple[int, ...], rng: np.random.Generator | None) -> ClipSpec:
        return self.plan(action, rng)

    def read_batch(self, clips: Sequence[ClipSpec]) -> torch.Tensor:
        return torch.stack([self.read(clip) for clip in clips])


class FeatureSource(WithoutFrames):
    """Features of the file --features: clips (N, D) float32."""

    def __init__(self, config: TrainConfig) -> None:
        self.file = feature_file(Path(config.features))

    def faults(self, actions: Sequence[Action]) -> list[str]:
        return self.file.faults(actions)

    def record(self, actions: Sequence[Action]) -> dict[str, str]:
        return {"features": self.file.fingerprint(actions)}

    def video_hashes(self, actions: Sequence[Action]) -> dict[str, str]:
        return {str(video): str(found) for video, found in self.file.about.get("videos", {}).items()}

    def read(self, clip: ClipSpec) -> torch.Tensor:
        return torch.from_numpy(self.file.row(clip.action.key))


def frame_faults(actions: Sequence[Action], config: TrainConfig) -> list[str]:
    """Messages about frames of these actions that are missing, one per video; reads indexes only, decodes nothing."""
    by_video: dict[str, list[Action]] = {}
    for action in actions:
        by_video.setdefault(action.video, []).append(action)
    videos = sorted(by_video, key=video_order)
    on_disk = prepared(config.root_dir, videos)
    missing = [video for video in videos if video not in on_disk]
    if len(missing) <= MAX_LINES:
        faults = [f"video {video} has no frames: {missing_text(config.root_dir, video)}" for video in missing]
    else:
        faults = [
            f"{len(missing)} of {len(videos)} videos have no frames in {config.root_dir} ({names_text(missing)}): extract them (python -m data_preparation.extract) or pack their frames (python -m data_preparation.adopt)"
        ]
    present = [by_video[video] for video in videos if video in on_disk]
    with ThreadPoolExecutor(_OPENING_THREADS) as threads:  # a shared file system takes milliseconds to open a file
        checked = list(threads.map(lambda of_video: _video_faults(of_video, config), present))
    from_zero = [of_video[0].video for of_video, (_, shifted) in zip(present, checked, strict=True) if shifted]
    if from_zero:
        log.info(
            "the loose frames of %d videos count from 0 (%s): file 0 is read as frame 1",
            len(from_zero),
            names_text(from_zero),
        )
    of_videos = [fault for found, _ in checked for fault in found]
    if len(of_videos) > MAX_LINES:
        of_videos = [*of_videos[:MAX_LINES], f"and {len(of_videos) - MAX_LINES} more messages about frames like these"]
    return faults + of_videos


def _video_faults(actions: Sequence[Action], config: TrainConfig) -> tuple[list[str], bool]:
    """(messages about missing frames of one video, whether its files count from 0)."""
    video = actions[0].video
    faults = []
    short = [a.name for a in actions if config.frame_method == "random" and a.frame_count < config.frame_num]
    if short:
        faults.append(
            f"video {video} has {len(short)} actions of fewer than {config.frame_num} frames ({short[0]}, ...), too few for --frame_method random: give a smaller --frame_num or another --frame_method"
        )
    try:
        reader = open_frames(config.root_dir, video)
    except UserError as error:
        return [*faults, str(error)], False
    if lacking := [a.name for a in actions if not _has_frames(a, config, reader.numbers)]:
        listed = ", ".join(lacking[:3]) + (", ..." if len(lacking) > 3 else "")
        faults.append(
            f"video {video} lacks frames of {len(lacking)} actions ({listed}) for --frame_method {config.frame_method}: run python -m data_preparation.extract --videos {video}"
        )
    return faults, reader.loose is not None and reader.loose.from_zero


def _has_frames(action: Action, config: TrainConfig, on_disk: np.ndarray) -> bool:
    first, last = needed_frames(action.start_frame, action.end_frame, config.frame_num, config.frame_method)
    return bool(np.isin(np.arange(first, last + 1), on_disk).all())
