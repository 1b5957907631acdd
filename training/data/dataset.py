"""Dives -> samples: the frames of a clip from a video's frames on disk, and the method's targets."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from data_preparation.archive import FrameReader, missing_text, open_frames
from data_preparation.cli import UserError
from data_preparation.dives import Dive
from data_preparation.layout import prepared_videos, video_name
from training.config import TrainConfig
from training.data.sampling import END_SHIFT, clip_frames, needed_frames
from training.data.transforms import crop, squash
from training.seeding import generator

Sample = dict[str, torch.Tensor]
TargetsOf = Callable[[Dive], dict[str, torch.Tensor]]


def frame_faults(dives: Sequence[Dive], config: TrainConfig) -> list[str]:
    """What is missing on disk for these dives, a sentence for each video; reads indexes only, decodes nothing."""
    faults = []
    prepared = set(prepared_videos(config.root_dir))
    for video in sorted({d.video for d in dives}):
        name = video_name(video)
        again = f"run python -m data_preparation.extract --videos {name}"
        if video not in prepared:
            faults.append(f"video {name} has no frames: {missing_text(config.root_dir, video)}")
            continue
        if config.frame_method == "random":
            short = [d.name for d in dives if d.video == video and d.frame_count < config.frame_num]
            if short:
                faults.append(
                    f"video {name} has {len(short)} dives of fewer than {config.frame_num} frames ({short[0]}, ...): --frame_method random cannot choose so many, take fewer --frame_num or another method"
                )
        try:
            there = open_frames(config.root_dir, video).numbers
        except UserError as error:
            faults.append(str(error))
            continue
        lacking = [d.name for d in dives if d.video == video and not _has_frames(d, config, there)]
        if lacking:
            listed = ", ".join(lacking[:3]) + (", ..." if len(lacking) > 3 else "")
            faults.append(
                f"video {name} lacks frames of {len(lacking)} dives ({listed}) for --frame_method {config.frame_method}: {again}"
            )
    return faults


def target_faults(dives: Sequence[Dive], targets: TargetsOf) -> list[str]:
    """Which dives lack something that the method learns from, a sentence each for the first ten."""
    faults = []
    for dive in dives:
        try:
            targets(dive)
        except UserError as error:
            faults.append(str(error))
    return faults[:10] + ([f"and {len(faults) - 10} dives more"] if len(faults) > 10 else [])


def _has_frames(dive: Dive, config: TrainConfig, there: np.ndarray) -> bool:
    first, last = needed_frames(dive.start_frame, dive.end_frame, config.frame_num, config.frame_method)
    return bool(np.isin(np.arange(first, last + 1), there).all())


class DiveDataset(Dataset):
    """Clips and targets of a list of dives.

    An item is asked for by (epoch, position in the list); its draws are a function of (seed, epoch, dive). Without
    `augment` the epoch does not matter: frames and crop are fixed.

    A sample is {"clip": (T, 3, S, S) uint8, "index": () int64, and the method's targets}.
    """

    def __init__(self, dives: Sequence[Dive], config: TrainConfig, targets: TargetsOf, *, augment: bool) -> None:
        self.dives, self.config, self.augment = list(dives), config, augment
        per_dive = [targets(dive) for dive in self.dives]
        # arrays, since a dataset is sent to workers and each tensor would take a file descriptor there
        self._targets = {name: torch.stack([of[name] for of in per_dive]).numpy() for name in per_dive[0]}  # (N, ...)
        self._readers: dict[int, FrameReader] = {}  # opened in the process that reads

    def __len__(self) -> int:
        return len(self.dives)

    def __getitem__(self, item: tuple[int, int]) -> Sample:
        epoch, index = item
        dive = self.dives[index]
        draws = generator(self.config.seed, "clip", epoch, *dive.key) if self.augment else None
        return {
            "clip": self._clip(dive, draws),
            "index": torch.tensor(index),
            **{name: torch.as_tensor(column[index]) for name, column in self._targets.items()},
        }

    def _clip(self, dive: Dive, draws: np.random.Generator | None) -> torch.Tensor:
        c = self.config
        if dive.video not in self._readers:
            self._readers[dive.video] = open_frames(c.root_dir, dive.video)
        reader = self._readers[dive.video]
        after = np.isin(dive.end_frame + np.arange(1, END_SHIFT + 1), reader.numbers)
        frames_after = int(after.cumprod().sum())
        try:
            numbers = clip_frames(dive.start_frame, dive.end_frame, c.frame_num, c.frame_method, draws, frames_after)
        except ValueError as error:
            raise UserError(f"dive {dive.name}: {error}; choose another method or fewer frames") from None
        frames_THWC = np.stack([reader.image(int(number)) for number in numbers])
        return crop(frames_THWC, c.spatial_size, draws) if c.data_aug else squash(frames_THWC, c.spatial_size)
