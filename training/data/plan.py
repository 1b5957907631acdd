"""Which clips, frames and crops a sample consists of, planned before any pixel is read.

A method plans its samples in the training process (Method.sample); workers only read what was planned. Each random choice
has its own generator: `plan.rng("clip")` is seeded by (seed, "clip", epoch, action), so adding a choice does not change the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from data_preparation.actions import Action

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class View:
    """The geometric transform of a clip, for pixels and for boxes.

    Frames are resized to `resize` (height, width), bilinear with antialiasing or with `nearest` to the nearest pixel, then
    cropped to `crop` (top, left, height, width), then with `flip` flipped left to right.
    """

    resize: tuple[int, int]
    crop: tuple[int, int, int, int]
    flip: bool = False
    nearest: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the result."""
        _, _, height, width = self.crop
        return height, width

    def points(self, xy: np.ndarray, height: int, width: int) -> np.ndarray:
        """Transform points (..., 2) of (x, y) from pixels of frames of `height` x `width` to pixels of the result."""
        top, left, _, out_width = self.crop
        moved = xy * (self.resize[1] / width, self.resize[0] / height) - (left, top)
        return np.stack([out_width - moved[..., 0], moved[..., 1]], axis=-1) if self.flip else moved


@dataclass(frozen=True)
class ClipSpec:
    """One clip of a sample. `frames` are 1-based frame numbers; if the backbone reads features, there are none."""

    action: Action
    frames: tuple[int, ...]
    view: View | None


@dataclass(frozen=True)
class Sample:
    """A planned sample. `clips` go into the network: "clip", and others for methods that compare. A prediction may also use
    `given`; only the loss uses `labels`."""

    clips: Mapping[str, ClipSpec]
    given: Arrays = field(default_factory=dict)
    labels: Arrays = field(default_factory=dict)
