"""Find the actions in a long video: ranges of frames that look like the training actions.

The video is read once, in blocks that overlap by the longest action. In each block, windows of the lengths of the training
actions slide over the frames. First what is cheap: windows with a cut inside, seen in small grey frames, and windows in which nothing
moves are left out. Then the distance from the training clips (novelty.py) decides: windows beyond its limit are left out, of
those that overlap the nearest one is kept. A video therefore needs the memory of two blocks, whatever its length.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from training.novelty import LIMIT

_GREY_STEP = 8  # pixels between those of a small grey frame, for frames of 256 lines and more; fewer for smaller ones
_LEAST_CUT = 0.06  # mean change of brightness (white is 1) at a cut, at least
_CUT_RATIO = 3.0  # a cut changes so many times more than each of the frames around it
_CUT_AROUND = 3  # frames before and after, to compare with
_EDGE = 0.1  # share of a window at each end where a cut does no harm, since actions are not cut out to the frame
_STILL = 1e-3  # mean change below which nothing moves
_LENGTHS = 9  # quantiles of the lengths of training actions that are lengths of windows
_LENGTH_STEP = 1.15  # ratio of two lengths of windows, at least
_STARTS = 12  # windows start at so many places within the shortest length
_OVERLAP = 0.3  # of the shorter of two ranges, from which on they cannot both be actions
MATCHED = 0.5  # temporal IoU from which on a found range is a true one


class Range(NamedTuple):
    """Frames `start` to `end` of a video (from 1, inclusive) and their distance from the training clips."""

    start: int
    end: int
    distance: float = 0.0

    @property
    def frames(self) -> int:
        return self.end - self.start + 1


# A function of the frames of some windows (each (T, H, W, 3) uint8) that gives their distances, (windows,)
Distances = Callable[[Sequence[np.ndarray]], Sequence[float]]


# ------------------------------------------------------------------------------------------------- cheap: motion, cuts


def small_grey(frame_HWC: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 -> (h, w) float32, small and grey; white is 1."""
    step = max(min(frame_HWC.shape[0] // 32, _GREY_STEP), 1)
    return frame_HWC[::step, ::step].mean(axis=2, dtype=np.float32) / 255


def changes(grey_THW: Sequence[np.ndarray]) -> np.ndarray:
    """The mean change of each frame from the one before, (T,); 0 for the first."""
    return np.array([0.0, *(float(np.abs(b - a).mean()) for a, b in itertools.pairwise(grey_THW))])


def cuts(change_T: np.ndarray) -> np.ndarray:
    """Which frames are the first of a new shot, (T,) bool: they change much, and much more than the frames around them."""
    found = np.zeros(len(change_T), bool)
    for t in np.flatnonzero(change_T >= _LEAST_CUT):
        around = np.r_[change_T[max(t - _CUT_AROUND, 0) : t], change_T[t + 1 : t + 1 + _CUT_AROUND]]
        found[t] = change_T[t] >= _CUT_RATIO * around.max(initial=0)
    return found


# ------------------------------------------------------------------------------------------------------------- windows


def window_lengths(lengths: np.ndarray, factor: float = 1.0) -> list[int]:
    """The lengths of the windows in frames, from those of the training actions; `factor` is how many times more frames per
    second the video has."""
    chosen: list[int] = []
    for length in (np.quantile(lengths, np.linspace(0, 1, _LENGTHS)) * factor).tolist():
        if not chosen or length >= _LENGTH_STEP * chosen[-1]:
            chosen.append(max(round(length), 2))
    return chosen


def windows(change_T: np.ndarray, is_cut_T: np.ndarray, lengths: Sequence[int], starts: range) -> list[tuple[int, int]]:
    """(first, last) index of each window that starts in `starts`, moves and has no cut inside."""
    cuts_before, moved_before = (np.r_[0, np.cumsum(values)] for values in (is_cut_T, change_T))
    stride = max(lengths[0] // _STARTS, 1)
    # windows also start right behind each cut
    places = sorted({*starts[::stride], *(t for t in np.flatnonzero(is_cut_T).tolist() if t in starts)})
    found = []
    for start in places:
        for length in lengths:
            last, edge = start + length - 1, math.floor(_EDGE * length)
            if last >= len(change_T):
                break
            inside = (start + 1 + edge, last + 1 - edge)  # a cut at `start` itself is before the window
            no_cut = cuts_before[inside[1]] == cuts_before[inside[0]]
            if no_cut and moved_before[last + 1] - moved_before[start + 1] >= _STILL * (length - 1):
                found.append((start, last))
    return found


def overlap(a: Range, b: Range) -> int:
    """The number of frames that two ranges share."""
    return max(min(a.end, b.end) - max(a.start, b.start) + 1, 0)


def temporal_iou(a: Range, b: Range) -> float:
    """Shared frames of two ranges divided by all their frames."""
    shared = overlap(a, b)
    return shared / (a.frames + b.frames - shared)


def nearest_only(found: Iterable[Range]) -> list[Range]:
    """Non-maximum suppression: of ranges that overlap, only the one of the smallest distance; ordered by start."""
    kept: list[Range] = []
    for candidate in sorted(found, key=lambda r: (r.distance, r.start, r.end)):
        if all(overlap(candidate, other) < _OVERLAP * min(candidate.frames, other.frames) for other in kept):
            kept.append(candidate)
    return sorted(kept)


# -------------------------------------------------------------------------------------------------------------- search


def search(frames: Iterable[np.ndarray], lengths: Sequence[int], distances: Distances) -> list[Range]:
    """The ranges of a video that are within the limit of the distance, by start, none overlapping another.

    `frames` are all frames of the video in order, (H, W, 3) uint8. `lengths` are those of `window_lengths`.
    """
    longest = lengths[-1]
    accepted: list[Range] = []
    for first, block, new in blocks(frames, longest):
        change_T = changes([small_grey(frame) for frame in block])
        planned = windows(change_T, cuts(change_T), lengths, range(new))
        found: Sequence[float] = distances([np.stack(block[a : b + 1]) for a, b in planned]) if planned else []
        accepted += [
            Range(first + a, first + b, float(distance))
            for (a, b), distance in zip(planned, found, strict=True)
            if distance <= LIMIT
        ]
    return nearest_only(accepted)


def blocks(frames: Iterable[np.ndarray], longest: int) -> Iterator[tuple[int, list[np.ndarray], int]]:
    """(number of its first frame, frames, how many of them windows may start at) of each block. A block has 2 * `longest`
    frames, and the next begins `longest` frames later."""
    first, kept = 1, []
    for frame in frames:
        kept.append(frame)
        if len(kept) == 2 * longest:
            yield first, kept, longest
            first, kept = first + longest, kept[longest:]
    if kept:
        yield first, kept, len(kept)


# ------------------------------------------------------------------------------------------------------- how good it is


def matches(found: Sequence[Range], true: Sequence[Range], iou: float = MATCHED) -> int:
    """How many found ranges are true ones: pairs of temporal IoU `iou` or more, each range in one pair at most, best first."""
    pairs = sorted(
        ((temporal_iou(f, t), i, j) for i, f in enumerate(found) for j, t in enumerate(true)), key=lambda pair: -pair[0]
    )
    of_found: set[int] = set()
    of_true: set[int] = set()
    for value, i, j in pairs:
        if value >= iou and i not in of_found and j not in of_true:
            of_found.add(i)
            of_true.add(j)
    return len(of_found)
