"""Whether a video is the version that its labels were made on: frame rate and frame count, stated or guessed.

Labels are frame numbers. A file of the same broadcast at another frame rate shows other moments under the same numbers,
and nothing is missing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction
from statistics import median

import numpy as np

from data_preparation.dives import Dive, VideoFacts
from data_preparation.frame_numbers import VideoScan

_DIVE_SECONDS = (1.5, 9.0)  # the median dive of a broadcast, from take-off to water; MTL-AQA's is 4
_BROADCAST_RATE = 31  # frames per second: labels of broadcasts count 24 to 30
_LABELLED_SHARE = 0.55  # a file of twice the rate has at most half its frames before the last label
_SAME_RATE = Fraction(3, 10_000)  # 29.97 is 30000/1001, and is not 30
_PERIODS = range(2, 9)  # 50 from 25 repeats each 2nd picture, 30 from 24 each 5th, 30 from 25 each 6th
_REPEATED = 0.4  # a repeat differs by less than this share of what its two neighbours differ by
_AS_A_RULE = 0.85  # share of the pictures, since there are cuts and moments without movement
_MOVING = 0.3  # grey levels by which pictures must differ for a repeat to show


def same_rate(one: Fraction, other: Fraction) -> bool:
    return abs(one - other) <= _SAME_RATE * other


def fact_faults(
    facts: VideoFacts, rate: Fraction | None, frames: int | None, decoded: int | None, name: str
) -> list[str]:
    """Where a video is not what annotations or catalogue state of it, a sentence each; None is not known."""
    faults = []
    if facts.frames_per_second and rate and not same_rate(rate, facts.frames_per_second):
        wanted = float(facts.frames_per_second)
        faults.append(
            f"{name} has {float(rate):g} frames per second and {facts.stated_by} states {wanted:g}: it is another version than was labelled; download that one, or convert this one (ffmpeg -i {name} -r {facts.frames_per_second} new.mp4), or correct what is stated"
        )
    if facts.frames and frames and facts.frames != frames:
        counted = (
            f" (a reader that counts decoded frames finds {decoded}, but ffmpeg repeats and drops some, and its numbers count here)"
            if facts.frames == decoded
            else ""
        )
        faults.append(
            f"{name} has {frames} frames and {facts.stated_by} states {facts.frames}{counted}: it is another version; download the one that the labels were made on, or correct what is stated"
        )
    return faults


def version_warnings(found: VideoScan, dives: Sequence[Dive]) -> list[str]:
    """What makes a file alone look like another version than the one that was labelled; empty where a rate is stated."""
    notes, rate = [], found.rate
    seconds = median(d.frame_count for d in dives) / rate
    share = max(d.end_frame for d in dives) / found.frame_count
    look = "Look at the contact sheets of data_preparation.verify, and state frames_per_second in the annotations"
    if not _DIVE_SECONDS[0] <= seconds <= _DIVE_SECONDS[1]:
        notes.append(
            f"at its {float(rate):g} frames per second half of the dives would last {float(seconds):.1f} s or less: were the labels made on a version with another frame rate? {look}"
        )
    if rate > _BROADCAST_RATE:
        notes.append(
            f"it has {float(rate):g} frames per second, and labels of broadcasts mostly count 25 or 30: were they made on another version? {look}"
        )
    if share < _LABELLED_SHARE:
        notes.append(
            f"the last dive ends at frame {max(d.end_frame for d in dives)} of {found.frame_count}, so the labels fill only the first {share:.0%} of it: has it more frames per second than the version that was labelled (or are dives left out)? {look}"
        )
    return notes


def repeat_warning(rate: Fraction, period: int) -> str:
    """The note about a video that was converted to a higher rate by repeating pictures."""
    made = float(rate) * (period - 1) / period
    return f"1 of {period} pictures repeats the one before it: the broadcast was made at {made:.4g} frames per second and this file was converted to {float(rate):g}; were the labels made on the version before? Look at the contact sheets of data_preparation.verify, and state frames_per_second in the annotations"


def repeated_every(differences: Mapping[int, float]) -> int | None:
    """The period in which pictures of a run repeat the one before, or None.

    `differences[n]` is how much frame n differs from frame n - 1 (mean absolute grey levels).
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
        shares = [small[phase == p].mean() for p in range(period)]
        highest = int(np.argmax(shares))
        if shares[highest] >= _AS_A_RULE and small[phase != highest].mean() <= 1 - _AS_A_RULE:
            return period
    return None


class RepeatWatch:
    """Finds repeated pictures while frames go by: give it every frame's number and small grey picture."""

    _RUN, _RUNS = 120, 12  # frames of a run, runs that are looked at

    def __init__(self) -> None:
        self._runs: list[dict[int, float]] = []
        self._last: tuple[int, np.ndarray] | None = None

    @property
    def wants_more(self) -> bool:
        return len(self._runs) < self._RUNS or len(self._runs[-1]) < self._RUN

    def see(self, number: int, picture: np.ndarray) -> None:
        """`picture` is grey (h, w) uint8; runs are of consecutive numbers."""
        if self._last is not None and number == self._last[0] + 1 and len(self._runs[-1]) < self._RUN:
            self._runs[-1][number] = float(np.abs(picture.astype(np.int16) - self._last[1]).mean())
        elif len(self._runs) < self._RUNS:
            self._runs.append({})
        self._last = (number, picture.astype(np.int16))

    @property
    def period(self) -> int | None:
        """The period that at least half of the runs show, of those in which anything moves."""
        moving = [run for run in self._runs if run and np.percentile(list(run.values()), 80) > _MOVING]
        found = Counter(period for run in moving if (period := repeated_every(run)) is not None)
        if found and (best := found.most_common(1)[0])[1] >= len(moving) / 2:
            return best[0]
        return None


def rate_warnings(rates: Mapping[int, Fraction]) -> dict[int, str]:
    """Videos whose rate differs from that of most others of their data set, a sentence each."""
    counted = Counter(rates.values()).most_common()
    if len(counted) < 2:
        return {}
    usual, most = counted[0]
    if most == counted[1][1]:  # no majority
        listed = ", ".join(f"{count} at {float(rate):g}" for rate, count in counted)
        return {
            min(rates): f"the videos have different frame rates ({listed}): were all labels made on these versions?"
        }
    return {
        video: f"it has {float(rate):g} frames per second and {most} of the other videos {float(usual):g}: were its labels made on this version? Look at its contact sheet, and state frames_per_second in the annotations"
        for video, rate in rates.items()
        if rate != usual
    }
