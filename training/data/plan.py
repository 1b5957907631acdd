"""Which clips, frames and crops a sample consists of, planned before any pixel is read.

A method plans its samples in the training process (Method.sample); workers only read what was planned. Each random choice
has its own generator: `plan.rng("clip")` is seeded by (seed, "clip", epoch, action), so adding a choice does not change the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from data_preparation.actions import Action

Arrays = dict[str, np.ndarray]


def crop_source_size(spatial_size: int) -> tuple[int, int]:
    """(height, width) to which frames are resized before a crop of `spatial_size`: as in DeepSports, 256 x 455 for 224."""
    return round(spatial_size * 256 / 224), round(spatial_size * 455 / 224)


@dataclass(frozen=True)
class View:
    """The geometric transform of a clip, for pixels and for boxes.

    Frames are resized to `resize` (height, width), bilinear with antialiasing or with `nearest` to the nearest pixel, then
    cropped to `crop` (top, left, height, width), then with `flip` flipped left to right, then rotated counter-clockwise about the
    centre by `degrees` (black comes in at the edges).
    """

    resize: tuple[int, int]
    crop: tuple[int, int, int, int]
    flip: bool = False
    nearest: bool = False
    degrees: float = 0.0

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the result."""
        _, _, height, width = self.crop
        return height, width

    def points(self, xy: np.ndarray, height: int, width: int) -> np.ndarray:
        """Transform points (..., 2) of (x, y) from pixels of frames of `height` x `width` to pixels of the result."""
        top, left, out_height, out_width = self.crop
        moved = xy * (self.resize[1] / width, self.resize[0] / height) - (left, top)
        if self.flip:
            moved = np.stack([out_width - moved[..., 0], moved[..., 1]], axis=-1)
        if not self.degrees:
            return moved
        centre, angle = np.array([out_width / 2, out_height / 2]), np.deg2rad(self.degrees)
        x, y = np.moveaxis(moved - centre, -1, 0)  # y points down
        turned = (x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle))
        return np.stack(turned, axis=-1) + centre


class ViewChoice(NamedTuple):
    """One of the views of an action in the test: the place of the clip's frames (sampling.clip_frames) and the number of the
    crop (transforms.crop_views), None for that of a validation."""

    place: float
    crop: int | None = None


@dataclass(frozen=True)
class Look:
    """Changes of the colours of a clip, the same for all its frames: names of data.augment.COLOURS in their order."""

    changes: tuple[str, ...]
    noise_seed: int


@dataclass(frozen=True)
class ClipSpec:
    """One clip of a sample. `frames` are 1-based frame numbers; if the backbone reads features, there are none."""

    action: Action
    frames: tuple[int, ...]
    view: View | None
    look: Look | None = None


@dataclass(frozen=True)
class Sample:
    """A planned sample. `clips` go into the network: "clip", and others for methods that compare. A prediction may also use
    `given`; only the loss uses `labels`."""

    clips: Mapping[str, ClipSpec]
    given: Arrays = field(default_factory=dict)
    labels: Arrays = field(default_factory=dict)
