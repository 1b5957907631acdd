"""How clips are cut into windows for backbones that see a few frames at a time. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Layout(NamedTuple):
    """`length` frames of each window; `starts(frames)` are the first frames (0-based) of the windows of a clip of `least` frames
    or more."""

    length: int
    starts: Callable[[int], list[int]]
    least: int


def strided(frames: int, length: int, stride: int, before_end: int = 0) -> list[int]:
    """Windows every `stride` frames; where they do not reach the last frame, one more that ends `before_end` frames earlier."""
    starts = list(range(0, frames - length + 1, stride))
    last = frames - length - before_end
    return starts if starts[-1] >= last else [*starts, last]


# the numbers of windows are those of the field's clips of 103 frames
LAYOUTS = {
    "full": Layout(16, lambda frames: strided(frames, 16, 16), 16),  # 7 x 16, TSA-Net's
    # the loop of C3D-AVG's code ends 17 frames early: 6 x 16, and the diver's entry into the water is never seen
    "reference": Layout(16, lambda frames: list(range(0, frames - 17, 16)), 18),
    "10x16": Layout(16, lambda frames: strided(frames, 16, 10, before_end=1), 17),  # CoRe's: 0, 10, ... 80, 86
    "10x16_end": Layout(16, lambda frames: strided(frames, 16, 10), 16),  # USDL's: 0, 10, ... 80, 87
    "20x8": Layout(8, lambda frames: strided(frames, 8, 5), 8),  # TPT's
}


def window_starts(frames: int, layout: str) -> list[int]:
    """First frames (0-based) of the windows of a clip."""
    return LAYOUTS[layout].starts(frames)


def layout_faults(frames: int, layout: str) -> list[str]:
    """Whether a clip is too short for a layout, as sentences."""
    least = LAYOUTS[layout].least
    if frames >= least:
        return []
    return [
        f"--window_layout {layout} cuts windows of {LAYOUTS[layout].length} frames and --frame_num is {frames}: give {least} or more"
    ]
