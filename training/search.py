"""Find the actions in a long video: ranges of frames that look like the training actions.

The video is read once, in blocks that overlap. In each block, windows of the lengths of the training actions slide over the
frames. First what is cheap: windows with a cut inside, seen in small grey frames, and windows in which nothing moves are left
out. Then the distance from the training clips (novelty.py) decides: windows beyond its limit are left out, and of those that overlap
the nearest is kept (non-maximum suppression). A video needs the memory of one block, whatever its length.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from data_preparation.annotations import load_annotations
from data_preparation.common.errors import UserError
from data_preparation.frame_numbers import VideoScan
from data_preparation.layout import DatasetLayout
from training.clips import images_of
from training.data.sampling import END_WINDOW, needed_frames
from training.novelty import LIMIT
from training.scorer import Clip, Scorer

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
SEARCHED_FROM = 3  # a video longer than so many of the longest training actions is searched
MATCHED = 0.5  # temporal IoU from which on a found range is a true one


class Range(NamedTuple):
    """Frames `start` to `end` of a video (from 1, inclusive) and their distance from the training clips."""

    start: int
    end: int
    distance: float = 0.0

    @property
    def frames(self) -> int:
        return self.end - self.start + 1


# A function of frames (T, H, W, 3) uint8, the number of the first of them, and the first and last frame numbers of some windows in
# them. It gives the distance of each window.
Distances = Callable[[np.ndarray, int, Sequence[tuple[int, int]]], np.ndarray]


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


def search(
    frames: Iterable[np.ndarray], lengths: Sequence[int], distances: Distances, frames_before: int = 0
) -> list[Range]:
    """The ranges of a video that are within the limit of the distance, by start, none overlapping another.

    `frames` are all frames of the video in order, (H, W, 3) uint8. `lengths` are those of `window_lengths`. `distances` may look
    at so many frames before a window.
    """
    accepted: list[Range] = []
    for first, block, starts in blocks(frames, lengths[-1], frames_before):
        change_T = changes([small_grey(frame) for frame in block])
        planned = [(first + a, first + b) for a, b in windows(change_T, cuts(change_T), lengths, starts)]
        if planned:
            found = distances(np.stack(block), first, planned)
            accepted += [Range(a, b, float(d)) for (a, b), d in zip(planned, found, strict=True) if d <= LIMIT]
    return nearest_only(accepted)


def blocks(
    frames: Iterable[np.ndarray], longest: int, frames_before: int = 0
) -> Iterator[tuple[int, list[np.ndarray], range]]:
    """(number of its first frame, frames, indices at which windows may start) of each block. A block holds `frames_before` frames,
    then `longest` frames at which windows start, then as many in which they end."""
    first, begin = 1, 0
    kept: list[np.ndarray] = []
    for frame in frames:
        kept.append(frame)
        if len(kept) == begin + 2 * longest:
            yield first, kept, range(begin, begin + longest)
            dropped = max(begin + longest - frames_before, 0)
            first, kept, begin = first + dropped, kept[dropped:], begin + longest - dropped
    if len(kept) > begin:
        yield first, kept, range(begin, len(kept))


def find_actions(scorer: Scorer, scan: VideoScan) -> list[Range]:
    """The actions in a video, by start.

    Raises:
        UserError: the run has no distances, or a frame cannot be decoded.
    """
    lengths = lengths_in(scorer, scan)
    config = scorer.config
    begin = END_WINDOW + config.frame_num  # far enough from the start of a video
    frames_before = begin - needed_frames(begin, begin + lengths[0] - 1, config.frame_num, config.frame_method)[0]

    def distances(block_THWC: np.ndarray, first: int, planned: Sequence[tuple[int, int]]) -> np.ndarray:
        numbers = np.arange(first, first + len(block_THWC))
        return scorer.distances([clip_of(scorer, block_THWC, "", window, numbers) for window in planned])

    with tqdm(total=scan.frame_count, desc=f"search {scan.path.name}", unit="frame", leave=False, disable=None) as bar:

        def frames() -> Iterator[np.ndarray]:
            for frame in images_of(scan, np.arange(1, scan.frame_count + 1), scorer.stored, scorer.least):
                bar.update()
                yield frame

        return search(frames(), lengths, distances, frames_before)


def is_long(scorer: Scorer, scan: VideoScan) -> bool:
    """Whether a video is too long for one action: more than SEARCHED_FROM times the longest of the training. Without distances
    nothing is known about lengths, and no video is long."""
    return scorer.novelty is not None and scan.frame_count > SEARCHED_FROM * lengths_in(scorer, scan)[-1]


def lengths_in(scorer: Scorer, scan: VideoScan) -> list[int]:
    """The lengths of windows in the frames of a video.

    Raises:
        UserError: the run has no distances.
    """
    if scorer.novelty is None:
        raise UserError(scorer.why_no_distance)
    return window_lengths(scorer.novelty.lengths, float(scan.rate) / scorer.novelty.rate if scorer.novelty.rate else 1)


def clip_of(
    scorer: Scorer,
    frames_THWC: np.ndarray,
    name: str,
    window: tuple[int, int] | None = None,
    numbers: np.ndarray | None = None,
) -> Clip:
    """A clip for Scorer.distances, of which nothing is known but its frames: all of them, or those of a window."""
    kind = next(iter(scorer.facts.rules), "")
    # some methods need a difficulty or a dive number to score, which the distance does not depend on
    action = scorer.action(
        "video", 1, *(window or (1, len(frames_THWC))), kind=kind, difficulty=3.0, dive_number="107B"
    )
    return Clip(frames_THWC, action, name, numbers=numbers)


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


def true_ranges(folder: Path) -> dict[str, list[Range]]:
    """The annotated actions of a data set, by video.

    Raises:
        UserError: the annotations cannot be read.
    """
    found: dict[str, list[Range]] = {}
    for action in load_annotations(DatasetLayout(folder).annotation_file).values():
        found.setdefault(action.video, []).append(Range(action.start_frame, action.end_frame))
    return {video: sorted(found[video]) for video in sorted(found)}


def video_file(folder: Path, video: str) -> Path:
    """The file of a video of a data set.

    Raises:
        UserError: there is none.
    """
    videos = DatasetLayout(folder).videos
    found = sorted(videos.glob(f"{video}.*"))
    if not found:
        raise UserError(f"{videos} has no file of video {video}: copy it there")
    return found[0]
