"""Whether stored frames are the pictures that their numbers stand for: compared with the source video, where it is there.

Loose frames carry no record of how they were numbered. A picture that looks like its neighbour in the video, in dive
after dive by the same number of frames, shows another numbering.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from PIL import Image

from data_preparation.decoding import decode_ranges, to_image
from data_preparation.dives import Dive
from data_preparation.frame_numbers import VideoScan

REACH = 3  # frames before and after that are compared
_SAMPLES = 8  # dives that are looked at
_THUMBNAIL = (32, 18)  # width and height; small, so that another scaling or compression does not matter
_CLEAR = 0.5  # a match must differ by less than this share of what the next best frame differs by
_STILL = 0.15  # grey levels; where neighbours differ by less, nothing moves and nothing can be told
_FOREIGN = 3.0  # times what neighbours differ by; a picture that differs by more from all is from elsewhere
_FOREIGN_AT_LEAST = 1.5  # grey levels; so much may come from scaling and compression
_RATES = (24, 25, Fraction(30000, 1001), 30, 50, Fraction(60000, 1001), 60)  # frames per second that files have


@dataclass(frozen=True)
class Alignment:
    """`shift` frames that the pictures are late (negative: early), None where that cannot be told; `foreign` of
    `compared` pictures are like no frame near their number, but, where `rate` is given, like those that a file of so
    many frames per second has under that number."""

    shift: int | None
    foreign: int
    compared: int
    rate: Fraction | None = None


def thumbnail(image: np.ndarray) -> np.ndarray:
    """(18, 32) float32 grey of a picture (H, W, 3), the same for all sizes."""
    return np.asarray(Image.fromarray(image).convert("L").resize(_THUMBNAIL, Image.Resampling.BOX), np.float32)


def frame_shift(picture: np.ndarray, around: Sequence[np.ndarray]) -> int | None:
    """Which of the video's frames a picture is: 0 for the middle one of `around`, None where it cannot be told.

    All are thumbnails; `around` are 2 * REACH + 1 consecutive frames of the video.
    """
    distances = np.array([np.abs(picture - other).mean() for other in around])
    best = int(distances.argmin())
    elsewhere = np.delete(distances, best).min()
    if elsewhere - distances[best] < _STILL or distances[best] > _CLEAR * elsewhere:
        return None
    return best - len(around) // 2


def sample_frames(dives: Sequence[Dive]) -> list[int]:
    """Frame numbers to compare: late in a dive, where the diver moves, of dives all over the video."""
    chosen = [dives[i] for i in np.unique(np.linspace(0, len(dives) - 1, _SAMPLES).round().astype(int)).tolist()]
    return sorted({d.start_frame + 3 * d.frame_count // 4 for d in chosen})


def compare_with_video(found: VideoScan, numbers: Sequence[int], image: Callable[[int], np.ndarray]) -> Alignment:
    """Compare stored frames with a video's: `image(number)` is the stored picture (H, W, 3) of each of `numbers`.

    Raises:
        UserError: a stored frame or the video cannot be read.
    """
    votes: list[int] = []
    foreign: dict[int, float] = {}  # how much the pictures differ at least
    compared = 0
    for number in numbers:
        around = _around(found, number)
        if not around:
            continue
        picture = thumbnail(image(number))
        compared += 1
        nearest = _nearest(picture, around)
        apart = float(np.median([np.abs(a - b).mean() for a, b in itertools.pairwise(around)]))
        if nearest > _FOREIGN * apart + _FOREIGN_AT_LEAST:
            foreign[number] = nearest
        if (shift := frame_shift(picture, around)) is not None:
            votes.append(shift)
    if len(foreign) > compared / 2:
        return Alignment(None, len(foreign), compared, _other_rate(found, foreign, image))
    agreed = max(set(votes), key=votes.count) if votes else None
    clear = agreed is not None and votes.count(agreed) > 0.7 * len(votes) and len(votes) >= min(2, compared)
    return Alignment(agreed if clear else None, len(foreign), compared)


def _around(found: VideoScan, number: int) -> list[np.ndarray]:
    """The thumbnails of a video's frames around a number; none where it ends before."""
    first, last = number - REACH, number + REACH
    if first < 1 or last > found.frame_count:
        return []
    return [thumbnail(to_image(frame, 0)) for _, frame in decode_ranges(found, [(first, last)])]


def _nearest(picture: np.ndarray, others: Sequence[np.ndarray]) -> float:
    return min((float(np.abs(picture - other).mean()) for other in others), default=np.inf)


def _other_rate(found: VideoScan, foreign: Mapping[int, float], image: Callable[[int], np.ndarray]) -> Fraction | None:
    """The frame rate of a file that has these pictures under these numbers, None where none has."""
    best, lowest = None, np.inf
    for rate in map(Fraction, _RATES):
        differ = {
            number: _nearest(thumbnail(image(number)), _around(found, round((number - 1) * found.rate / rate) + 1))
            for number in foreign
        }
        matching = sum(differ[number] < foreign[number] / 3 for number in foreign)
        total = sum(min(differ[number], foreign[number]) for number in foreign)
        if rate != found.rate and matching > 0.7 * len(foreign) and total < lowest:
            best, lowest = rate, total
    return best
