"""Cut clips into windows for backbones with a short temporal input. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Layout(NamedTuple):
    """Windows of `length` frames. `starts(frames)` returns the first frame (0-based) of each window of a clip."""

    length: int
    starts: Callable[[int], list[int]]
    min_frames: int  # shortest clip that the layout accepts


def strided(frames: int, length: int, stride: int, before_end: int = 0) -> list[int]:
    """A window every `stride` frames; if they end too early, one more window that ends `before_end` frames before the clip's end."""
    starts = list(range(0, frames - length + 1, stride))
    last = frames - length - before_end
    return starts if starts[-1] >= last else [*starts, last]


# the names count the windows of a 103-frame clip, the usual length in the literature
LAYOUTS = {
    "full": Layout(16, lambda frames: strided(frames, 16, 16), 16),  # 7 x 16, TSA-Net
    # 6 x 16, C3D-AVG: its loop stops 17 frames before the end, so the entry into the water is missing
    "reference": Layout(16, lambda frames: list(range(0, frames - 17, 16)), 18),
    "10x16": Layout(16, lambda frames: strided(frames, 16, 10, before_end=1), 17),  # CoRe: 0, 10, ... 80, 86
    "10x16_end": Layout(16, lambda frames: strided(frames, 16, 10), 16),  # USDL: 0, 10, ... 80, 87
    "20x8": Layout(8, lambda frames: strided(frames, 8, 5), 8),  # TPT
    "4x32": Layout(32, lambda frames: strided(frames, 32, 32), 32),  # PECoP: the whole clip of 32 frames
}


def layout_faults(frames: int, layout: str) -> list[str]:
    """Return one error message if a clip is too short for a layout."""
    length, _, min_frames = LAYOUTS[layout]
    if frames >= min_frames:
        return []
    return [
        f"--window_layout {layout} cuts windows of {length} frames and --frame_num is {frames}: give {min_frames} or more"
    ]
