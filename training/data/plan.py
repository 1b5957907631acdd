"""What a sample is made of, decided before any pixel is read: which clips, which frames, which geometry.

A method plans its samples in the training process (Method.sample); workers only read what a plan names. Every draw is
named: `plan.rng("clip")` is a generator of (seed, "clip", epoch, action), so adding a draw never moves another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from data_preparation.dives import Dive

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class View:
    """A geometry as data, so that pixels and boxes go through the same one.

    Frames are resized to `resize` (height, width), then cut to `crop` (top, left, height, width) of that, then flipped
    left to right where `flip` says so.
    """

    resize: tuple[int, int]
    crop: tuple[int, int, int, int]
    flip: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of what comes out."""
        return self.crop[2:]

    def points(self, xy: np.ndarray, height: int, width: int) -> np.ndarray:
        """Where points (..., 2) of x, y in pixels of frames of `height` x `width` land, in pixels of what comes out."""
        top, left, _, out_width = self.crop
        moved = xy * (self.resize[1] / width, self.resize[0] / height) - (left, top)
        return np.stack([out_width - moved[..., 0], moved[..., 1]], axis=-1) if self.flip else moved


@dataclass(frozen=True)
class ClipSpec:
    """One clip of a sample: `frames` are the numbers of its frames (1-based), empty where the backbone reads features."""

    action: Dive
    frames: tuple[int, ...]
    view: View | None


@dataclass(frozen=True)
class Sample:
    """A planned sample. `clips` are what the network sees, by name: "clip", and others of methods that compare. `given`
    is what a prediction may look at besides, `labels` what only the loss may."""

    clips: Mapping[str, ClipSpec]
    given: Arrays = field(default_factory=dict)
    labels: Arrays = field(default_factory=dict)
