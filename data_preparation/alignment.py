"""Check that stored frames have the right numbers, by comparing them with the source video.

Loose frames carry no record of how they were numbered. If the images of most dives match a neighbouring frame of the
video, always at the same distance, the frames were numbered differently. Images that match no frame nearby come from
another video, or from a version of it at another frame rate.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from PIL import Image

from data_preparation.actions import Action
from data_preparation.decoding import decode_ranges, to_image
from data_preparation.frame_numbers import VideoScan

REACH = 3  # frames before and after that are compared
_SAMPLES = 8  # dives that are compared
_THUMBNAIL = (32, 18)  # width and height; small, so that scaling and compression make no difference
_CLEAR_MATCH = 0.5  # a match must differ by less than this fraction of what the second best frame differs by
_STILL = 0.15  # grey levels; if neighbouring frames differ by less, nothing moves and no shift can be measured
# an image matches no frame if it differs from all by more than this multiple of what neighbours differ by, plus levels
_UNMATCHED_FACTOR = 3.0
_UNMATCHED_LEVELS = 1.5  # grey levels that scaling and compression may cause
_RATES = [Fraction(r) for r in (24, 25, Fraction(30000, 1001), 30, 50, Fraction(60000, 1001), 60)]  # frames per second


@dataclass(frozen=True)
class Alignment:
    """Result of a comparison.

    `shift` is the number of frames that the images are late (negative: early), or None if it cannot be measured.
    `unmatched` of the `compared` images match no frame near their number. If most of them match the frames that a file
    of another frame rate has under the same numbers, `rate` is that rate.
    """

    shift: int | None
    unmatched: int
    compared: int
    rate: Fraction | None = None


def thumbnail(image: np.ndarray) -> np.ndarray:
    """Reduce an image (H, W, 3) of any size to (18, 32) float32 grey."""
    return np.asarray(Image.fromarray(image).convert("L").resize(_THUMBNAIL, Image.Resampling.BOX), np.float32)


def frame_shift(image: np.ndarray, around: Sequence[np.ndarray]) -> int | None:
    """Find which of the frames `around` an image is: 0 for the middle one; None if no match is clear.

    All are thumbnails (18, 32); `around` are 2 * REACH + 1 consecutive frames of the video.
    """
    distances = np.array([np.abs(image - other).mean() for other in around])
    best = int(distances.argmin())
    second = np.delete(distances, best).min()
    if second - distances[best] < _STILL or distances[best] > _CLEAR_MATCH * second:
        return None
    return best - len(around) // 2


def sample_frames(dives: Sequence[Action]) -> list[int]:
    """Choose frame numbers to compare: three quarters into a dive, where the diver moves, for dives across the video."""
    chosen = [dives[i] for i in np.unique(np.linspace(0, len(dives) - 1, _SAMPLES).round().astype(int)).tolist()]
    return sorted({d.start_frame + 3 * d.frame_count // 4 for d in chosen})


def compare_with_video(scan: VideoScan, numbers: Sequence[int], read_image: Callable[[int], np.ndarray]) -> Alignment:
    """Compare the stored frames `numbers` with those of a video; `read_image(number)` returns one as (H, W, 3).

    Raises:
        UserError: a stored frame or the video cannot be read.
    """
    shifts: list[int] = []
    unmatched: dict[int, float] = {}  # by frame number, the distance to the nearest frame
    compared = 0
    for number in numbers:
        around = _thumbnails_around(scan, number)
        if not around:
            continue
        image = thumbnail(read_image(number))
        compared += 1
        nearest = _nearest_distance(image, around)
        between = float(np.median([np.abs(a - b).mean() for a, b in itertools.pairwise(around)]))
        if nearest > _UNMATCHED_FACTOR * between + _UNMATCHED_LEVELS:
            unmatched[number] = nearest
        if (shift := frame_shift(image, around)) is not None:
            shifts.append(shift)
    if len(unmatched) > compared / 2:
        return Alignment(None, len(unmatched), compared, _matching_rate(scan, unmatched, read_image))
    most = max(set(shifts), key=shifts.count) if shifts else None
    clear = most is not None and shifts.count(most) > 0.7 * len(shifts) and len(shifts) >= min(2, compared)
    return Alignment(most if clear else None, len(unmatched), compared)


def _thumbnails_around(scan: VideoScan, number: int) -> list[np.ndarray]:
    """The thumbnails of a video's frames around a number; empty if they reach beyond its ends."""
    first, last = number - REACH, number + REACH
    if first < 1 or last > scan.frame_count:
        return []
    return [thumbnail(to_image(frame, 0)) for _, frame in decode_ranges(scan, [(first, last)])]


def _nearest_distance(image: np.ndarray, others: Sequence[np.ndarray]) -> float:
    return min((float(np.abs(image - other).mean()) for other in others), default=np.inf)


def _matching_rate(
    scan: VideoScan, unmatched: Mapping[int, float], read_image: Callable[[int], np.ndarray]
) -> Fraction | None:
    """The frame rate of a file that shows these images under these numbers, or None."""
    best, lowest = None, np.inf
    for rate in _RATES:
        distances = {
            number: _nearest_distance(
                thumbnail(read_image(number)), _thumbnails_around(scan, round((number - 1) * scan.rate / rate) + 1)
            )
            for number in unmatched
        }
        matching = sum(distances[number] < unmatched[number] / 3 for number in unmatched)
        total = sum(min(distances[number], unmatched[number]) for number in unmatched)
        if rate != scan.rate and matching > 0.7 * len(unmatched) and total < lowest:
            best, lowest = rate, total
    return best
