"""Check that a video is the version that was labelled, by its frame rate and frame count, stated or guessed.

Labels are frame numbers. A file of the same broadcast at another frame rate shows other moments under the same numbers,
although no frame is missing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction
from statistics import median

import numpy as np

from data_preparation.actions import Action, Dive, VideoFacts
from data_preparation.frame_numbers import VideoScan

_DIVE_SECONDS = (1.5, 9.0)  # plausible length of the median dive, from take-off to water; MTL-AQA's is 4
_BROADCAST_RATE = 31  # frames per second; labels of broadcasts count 24 to 30
_LABELLED_FRACTION = 0.55  # a file of twice the rate has at most half of its frames before the last label
_CLIP_FRACTION = 0.9  # of a file; an action that covers more is all that a clip shows
_RATE_TOLERANCE = Fraction(3, 10_000)  # 29.97 equals 30000/1001, but not 30
_PERIODS = range(2, 9)  # 25 to 50 fps repeats every 2nd frame, 24 to 30 every 5th, 25 to 30 every 6th
_REPEATED = 0.4  # a repeat differs from its predecessor by less than this fraction of what the frames around it do
_MOST = 0.85  # fraction of the frames that must fit a period, because of cuts and moments without movement
_MOVING = 0.3  # grey levels by which frames must differ for a repeat to be visible
_CHECK = "check the contact sheets of data_preparation.verify, and add frames_per_second to the annotations"


def same_rate(one: Fraction, other: Fraction) -> bool:
    return abs(one - other) <= _RATE_TOLERANCE * other


def fact_faults(
    facts: VideoFacts, rate: Fraction | None, frames: int | None, decoded: int | None, name: str
) -> list[str]:
    """Errors of a video that differs from what annotations or catalogue state about it, a sentence each.

    `rate`, `frames` (as ffmpeg numbers them) and `decoded` (as a decoder counts them) are None if unknown.
    """
    faults = []
    if facts.frames_per_second and rate and not same_rate(rate, facts.frames_per_second):
        wanted = float(facts.frames_per_second)
        faults.append(
            f"{name} has {float(rate):g} frames per second and {facts.stated_by} states {wanted:g}: it is another version than the labelled one; download that one, convert this one (ffmpeg -i {name} -r {facts.frames_per_second} new.mp4), or correct the stated rate"
        )
    if facts.frames and frames and facts.frames != frames:
        counted = (
            f" (a reader that counts decoded frames finds {decoded}, but ffmpeg repeats and drops some, and frame numbers are ffmpeg's here)"
            if facts.frames == decoded
            else ""
        )
        faults.append(
            f"{name} has {frames} frames and {facts.stated_by} states {facts.frames}{counted}: it is another version; download the one that was labelled, or correct the stated number"
        )
    return faults


def version_warnings(scan: VideoScan, dives: Sequence[Action]) -> list[str]:
    """Signs in a single file that it is not the version that was labelled. Not needed if its rate is stated.

    The labels of a clip that is one action are the whole file, so nothing can be shifted. Of other actions than dives, a
    video with one action counts as such a clip.
    """
    whole = dives[0].frame_count >= _CLIP_FRACTION * scan.frame_count
    if len(dives) == 1 and (whole or not isinstance(dives[0], Dive)):
        return []
    warnings, rate = [], scan.rate
    seconds = median(d.frame_count for d in dives) / rate
    last = max(d.end_frame for d in dives)
    if isinstance(dives[0], Dive) and not _DIVE_SECONDS[0] <= seconds <= _DIVE_SECONDS[1]:
        warnings.append(
            f"at its {float(rate):g} frames per second the median dive lasts {float(seconds):.1f} s: the labelled version may have another frame rate; {_CHECK}"
        )
    if rate > _BROADCAST_RATE:
        warnings.append(
            f"it has {float(rate):g} frames per second, and labels of broadcasts mostly count 25 or 30: it may not be the version that was labelled; {_CHECK}"
        )
    if last / scan.frame_count < _LABELLED_FRACTION:
        warnings.append(
            f"the last dive ends at frame {last} of {scan.frame_count}, so the labels cover only the first {last / scan.frame_count:.0%} of it: it may have more frames per second than the labelled version, or dives are not annotated; {_CHECK}"
        )
    return warnings


def repeat_warning(rate: Fraction, period: int) -> str:
    """The warning about a video that was converted to a higher frame rate by repeating frames."""
    original = float(rate) * (period - 1) / period
    return f"1 of {period} frames repeats the one before it: the broadcast was made at {original:.4g} frames per second and this file was converted to {float(rate):g}, so the labels may be those of the original; {_CHECK}"


def repeated_every(differences: Mapping[int, float]) -> int | None:
    """Find the period at which frames repeat their predecessor, in a run of consecutive frames; None if there is none.

    `differences[n]` is the mean absolute difference of frame n from frame n - 1, in grey levels.
    """
    numbers, values = np.array([*differences]), np.array([*differences.values()])
    if len(values) < 3:
        return None
    around = (values[:-2] + values[2:]) / 2
    numbers, small = numbers[1:-1], values[1:-1] < _REPEATED * around
    if np.median(around[small] if small.any() else 0) < _MOVING:
        return None  # nothing moves
    for period in _PERIODS:
        if len(numbers) < 5 * period:
            return None
        phase = numbers % period
        fractions = [small[phase == p].mean() for p in range(period)]
        highest = int(np.argmax(fractions))
        if fractions[highest] >= _MOST and small[phase != highest].mean() <= 1 - _MOST:
            return period
    return None


class RepeatWatch:
    """Detect repeated frames during an extraction. Call `add` for every frame."""

    _RUN_FRAMES, _MAX_RUNS = 120, 12

    def __init__(self) -> None:
        self._runs: list[dict[int, float]] = []
        self._last: tuple[int, np.ndarray] | None = None

    @property
    def wants_more(self) -> bool:
        return len(self._runs) < self._MAX_RUNS or len(self._runs[-1]) < self._RUN_FRAMES

    def add(self, number: int, image: np.ndarray) -> None:
        """Add frame `number`; `image` (h, w) is uint8 grey. A gap in the numbers starts a new run."""
        if self._last is not None and number == self._last[0] + 1 and len(self._runs[-1]) < self._RUN_FRAMES:
            self._runs[-1][number] = float(np.abs(image.astype(np.int16) - self._last[1]).mean())
        elif len(self._runs) < self._MAX_RUNS:
            self._runs.append({})
        self._last = (number, image.astype(np.int16))

    @property
    def period(self) -> int | None:
        """The period that at least half of the runs have, out of the runs with movement."""
        moving = [run for run in self._runs if run and np.percentile(list(run.values()), 80) > _MOVING]
        found = Counter(period for run in moving if (period := repeated_every(run)) is not None)
        if found and (best := found.most_common(1)[0])[1] >= len(moving) / 2:
            return best[0]
        return None


def rate_warnings(rates: Mapping[str, Fraction]) -> dict[str, str]:
    """Warnings, by video, about frame rates that differ from those of most other videos of the data set."""
    counted = Counter(rates.values()).most_common()
    if len(counted) < 2:
        return {}
    usual, most = counted[0]
    if most == counted[1][1]:  # no majority
        listed = ", ".join(f"{count} at {float(rate):g}" for rate, count in counted)
        return {
            min(rates): f"the videos have different frame rates ({listed}): check that these are the labelled versions"
        }
    return {
        video: f"it has {float(rate):g} frames per second and {most} of the other videos have {float(usual):g}: it may not be the version that was labelled; {_CHECK}"
        for video, rate in rates.items()
        if rate != usual
    }
