"""Whether stored frames are the pictures that their numbers stand for: compared with the source video, where it is there.

Loose frames carry no record of how they were numbered. A picture that looks like its neighbour in the video, in dive
after dive by the same number of frames, shows another numbering.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

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
_FOREIGN = 30.0  # grey levels; a picture that differs by more from all of them is not from this place of the video


@dataclass(frozen=True)
class Alignment:
    """`shift` frames that the pictures are late (negative: early), None where that cannot be told; `foreign` of
    `compared` pictures are like no frame near their number."""

    shift: int | None
    foreign: int
    compared: int


def thumbnail(image: np.ndarray) -> np.ndarray:
    """(18, 32) float32 grey of a picture (H, W, 3), the same for all sizes."""
    return np.asarray(Image.fromarray(image).convert("L").resize(_THUMBNAIL, Image.Resampling.BOX), np.float32)


def shift_of(picture: np.ndarray, around: Sequence[np.ndarray]) -> int | None:
    """Which of the video's frames a picture is: 0 for the middle one of `around`, None where it cannot be told.

    All are thumbnails; `around` are 2 * REACH + 1 consecutive frames of the video.
    """
    distances = np.array([np.abs(picture - other).mean() for other in around])
    best = int(distances.argmin())
    elsewhere = np.delete(distances, best).min()
    if elsewhere - distances[best] < _STILL or distances[best] > _CLEAR * elsewhere:
        return None
    return best - len(around) // 2


def sampled(dives: Sequence[Dive]) -> list[int]:
    """Frame numbers to compare: late in a dive, where the diver moves, of dives all over the video."""
    chosen = [dives[i] for i in np.unique(np.linspace(0, len(dives) - 1, _SAMPLES).round().astype(int)).tolist()]
    return sorted({d.start_frame + 3 * d.frame_count // 4 for d in chosen})


def alignment(found: VideoScan, numbers: Sequence[int], image: Callable[[int], np.ndarray]) -> Alignment:
    """Compare stored frames with a video's: `image(number)` is the stored picture (H, W, 3) of each of `numbers`.

    Raises:
        UserError: a stored frame or the video cannot be read.
    """
    votes, foreign, compared = [], 0, 0
    for number in numbers:
        first, last = number - REACH, number + REACH
        if first < 1 or last > found.frame_count:
            continue
        around = [thumbnail(to_image(frame, 0)) for _, frame in decode_ranges(found, [(first, last)])]
        picture = thumbnail(image(number))
        compared += 1
        foreign += min(np.abs(picture - other).mean() for other in around) > _FOREIGN
        if (shift := shift_of(picture, around)) is not None:
            votes.append(shift)
    agreed = max(set(votes), key=votes.count) if votes else None
    clear = agreed is not None and votes.count(agreed) > 0.7 * len(votes) and len(votes) >= min(2, compared)
    return Alignment(agreed if clear else None, foreign, compared)
