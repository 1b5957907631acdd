"""The Dive record and its validity checks (imports nothing of the project).

All other code takes Dives, so a new data set needs only a new reader in annotations.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

DiveKey = tuple[int, int]  # (video, dive number within the video)

# MTL-AQA's labels by index, checked against the dive numbers.
POSITIONS = ("free", "pike", "tuck")
POSITION_LETTERS = ("D", "B", "C")  # the last letter of a dive number
ROTATION_TYPES = ("back", "forward", "inward", "reverse")
ATTRIBUTE_CLASSES = {"position": 3, "armstand": 2, "rotation_type": 4, "ss_no": 10, "tw_no": 8}

# World Aquatics' rules: each judge gives 0 to 10 points in steps of 0.5, and the sum of the middle three is multiplied
# by the difficulty.
MAX_JUDGE_SCORE = 10.0
COUNTED_JUDGES = 3
LAST_FRAME = 99_999_999  # a thousand hours of video
ROUNDING = 0.06  # points; published final scores differ from the product by at most this


@dataclass(frozen=True)
class Dive:
    """One judged dive of a broadcast.

    Frames are 1-based and inclusive, numbered like the files of `ffmpeg -i NN.mp4 %06d.jpg`. `difficulty` is the degree
    of difficulty, `final_score` is in points (0 to about 120). The other fields are None if the annotation file does
    not have them; `ss_no` and `tw_no` are the numbers of half somersaults and half twists.
    """

    video: int
    number: int
    start_frame: int
    end_frame: int
    difficulty: float
    final_score: float
    position: int | None = None
    armstand: int | None = None
    rotation_type: int | None = None
    ss_no: int | None = None
    tw_no: int | None = None
    judge_scores: tuple[float, ...] | None = None
    dive_number: str | None = None
    caption: tuple[str, ...] | None = None

    @property
    def key(self) -> DiveKey:
        return (self.video, self.number)

    @property
    def frame_count(self) -> int:
        return self.end_frame - self.start_frame + 1

    @property
    def name(self) -> str:
        return dive_name(self.key)


@dataclass(frozen=True)
class VideoFacts:
    """What annotations or catalogue state about the video file that was labelled; None if they do not.

    `stated_by` is the file that states it, for messages.
    """

    frames_per_second: Fraction | None = None
    frames: int | None = None
    stated_by: str = ""


def dive_name(key: DiveKey) -> str:
    """The name of a dive in messages: video and number ('03/055')."""
    return f"{key[0]:02d}/{key[1]:03d}"


def list_names(keys: Iterable[DiveKey], max_names: int = 5) -> str:
    """The names of the first `max_names` dives, in one line."""
    names = [dive_name(key) for key in keys]
    return ", ".join(names[:max_names]) + (", ..." if len(names) > max_names else "")


def dive_faults(dive: Dive) -> list[str]:
    """A message for each impossible value of a dive."""
    faults = []
    if not 1 <= dive.start_frame <= dive.end_frame <= LAST_FRAME:
        faults.append(
            f"frames {dive.start_frame} to {dive.end_frame} are not a range of frames within 1 to {LAST_FRAME}"
        )
    if not (math.isfinite(dive.difficulty) and dive.difficulty > 0):
        faults.append(f"difficulty {dive.difficulty} must be greater than 0")
    elif not 0 <= dive.final_score <= COUNTED_JUDGES * MAX_JUDGE_SCORE * dive.difficulty + ROUNDING:  # also NaN
        most = COUNTED_JUDGES * MAX_JUDGE_SCORE * dive.difficulty
        faults.append(
            f"final score {dive.final_score} is outside 0 to {most:g}, what judges can give at difficulty {dive.difficulty:g}"
        )
    for name, classes in ATTRIBUTE_CLASSES.items():
        value = getattr(dive, name)
        if value is not None and not 0 <= value < classes:
            faults.append(f"{name} {value} is outside 0 to {classes - 1}")
    for score in dive.judge_scores or ():
        if not (0 <= score <= MAX_JUDGE_SCORE and score * 2 == int(score * 2)):
            faults.append(f"judge score {score} is outside 0 to {MAX_JUDGE_SCORE:g} in half points")
    return [f"dive {dive.name}: {fault}" for fault in faults]


def overlap_faults(dives: Iterable[Dive]) -> list[str]:
    """A message for each dive that starts before an earlier dive of the same video has ended."""
    faults: list[str] = []
    latest: Dive | None = None  # the dive of this video that ends last so far
    for dive in sorted(dives, key=lambda d: (d.video, d.start_frame, d.end_frame)):
        if latest is None or latest.video != dive.video:
            latest = dive
            continue
        if dive.start_frame <= latest.end_frame:
            faults.append(
                f"dive {dive.name}: frames {dive.start_frame} to {dive.end_frame} overlap those of dive {latest.name} ({latest.start_frame} to {latest.end_frame})"
            )
        latest = max(latest, dive, key=lambda d: d.end_frame)
    return faults


def judged_score(dive: Dive) -> float | None:
    """The final score in points by the rules: the sum of the middle three judges' scores times the difficulty. None if
    fewer than three judges' scores are known."""
    if dive.judge_scores is None or len(dive.judge_scores) < COUNTED_JUDGES:
        return None
    dropped = (len(dive.judge_scores) - COUNTED_JUDGES) // 2
    counted = sorted(dive.judge_scores)[dropped : dropped + COUNTED_JUDGES]
    return sum(counted) * dive.difficulty


def judge_exceptions(dives: Iterable[Dive]) -> list[Dive]:
    """Dives whose final score does not follow from their judges' scores.

    Mostly one judge's score has a typing error. They are reported, not corrected.
    """
    scored = ((dive, judged_score(dive)) for dive in dives)
    return [dive for dive, score in scored if score is not None and abs(score - dive.final_score) > ROUNDING]
