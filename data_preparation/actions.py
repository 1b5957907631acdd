"""The records of judged actions and their validity checks (imports only common.errors).

All other code takes Actions, so a new data set needs only a new reader in datasets/.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, fields
from fractions import Fraction
from typing import Any, ClassVar

from data_preparation.common.errors import UserError

ActionKey = tuple[str, int]  # (video, number of the action within the video)

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

_VIDEO = re.compile(r"[\w+=-][\w.+=-]*(/[\w+=-][\w.+=-]*)*")


# ------------------------------------------------------------------------------------------------------------- names


def video_name(video: int | str) -> str:
    """The name of a video: the path of its file under whole_videos, without suffix. A number gets two digits or more,
    as in MTL-AQA: 7 and "7" become "07".

    Raises:
        ValueError: it cannot be the name of a file, or of a file in a folder.
    """
    text = str(video)
    if text.isascii() and text.isdigit():
        return f"{int(text):02d}"
    if not _VIDEO.fullmatch(text):
        raise ValueError(
            "write a video's name with letters, digits and . _ + = -, and folders with /, such as 07 or diving/054"
        )
    return text


def video_order(video: str) -> tuple:
    """A sort key of video names: numbers first, in numerical order."""
    return (0, int(video), "") if video.isdigit() else (1, 0, video)


def sort_key(key: ActionKey) -> tuple:
    """A sort key of action keys: by video (`video_order`), then by number."""
    return (*video_order(key[0]), key[1])


def plain_key(key: ActionKey) -> tuple[int | str, int]:
    """A key with a numeric video as an integer: ("07", 3) becomes (7, 3).

    The seeds of clips, the fingerprints of data and the files of run folders use this form: when they were introduced, all
    videos were numbers.
    """
    return (int(key[0]) if key[0].isdigit() else key[0], key[1])


def action_name(key: ActionKey) -> str:
    """The name of an action in messages: video and number ('03/055')."""
    return f"{key[0]}/{key[1]:03d}"


def list_names(keys: Iterable[ActionKey], max_names: int = 5) -> str:
    """The names of the first `max_names` actions, in one line."""
    names = [action_name(key) for key in keys]
    return ", ".join(names[:max_names]) + (", ..." if len(names) > max_names else "")


def chosen_videos(names: Sequence[str]) -> frozenset[str] | None:
    """The videos or folders of videos that --videos names; None for "all".

    Raises:
        UserError: a name cannot be that of a video.
    """
    if [name.lower() for name in names] == ["all"]:
        return None
    try:
        return frozenset(video_name(name.rstrip("/")) for name in names)
    except ValueError as error:
        raise UserError(f"--videos {' '.join(names)}: {error}") from None


def is_chosen(video: str, chosen: Collection[str] | None) -> bool:
    """Whether a list of videos (--videos) chooses a video, by its name or by a folder that it is in; None chooses all."""
    parts = video.split("/")
    return chosen is None or any("/".join(parts[:count]) in chosen for count in range(1, len(parts) + 1))


# ----------------------------------------------------------------------------------------------------------- records


@dataclass(frozen=True)
class ScoreRules:
    """The scores of one kind of action.

    `low` and `high` are the range of final scores in points: methods that need a scale map it to 0 to 1. `total` computes
    the final score from the judges' scores and the difficulty, or returns None if it cannot; it must be a function of a
    module, since actions are pickled for the workers.
    """

    low: float
    high: float
    total: Callable[[Sequence[float], float | None], float | None] | None = None


def middle_three(judges: Sequence[float], difficulty: float | None) -> float | None:
    """The final score of a dive: the sum of the middle three judges' scores times the difficulty."""
    if len(judges) < COUNTED_JUDGES or difficulty is None:
        return None
    dropped = (len(judges) - COUNTED_JUDGES) // 2
    return sum(sorted(judges)[dropped : dropped + COUNTED_JUDGES]) * difficulty


# 104.5 is the highest final score of MTL-AQA, the end of the scale in the methods published on it
DIVING = ScoreRules(0.0, 104.5, middle_three)


@dataclass(frozen=True)
class Action:
    """One judged action of a video. Fields are None (or empty) if the data set does not have them.

    Frames are 1-based and inclusive, numbered like the files of `ffmpeg -i NN.mp4 %06d.jpg`. `final_score` is in points;
    `label` is an index into the classes of the data set. Actions of one `kind` are scored by the same `rules`. Actions of
    one `group` (event, surgeon, source video) are never split between training, validation and test. `steps` are the first
    frames of the steps of the action.
    """

    noun: ClassVar[str] = "action"  # in messages

    video: str
    number: int
    start_frame: int
    end_frame: int
    difficulty: float | None = field(default=None, kw_only=True)
    final_score: float | None = field(default=None, kw_only=True)
    label: int | None = field(default=None, kw_only=True)
    kind: str = field(default="", kw_only=True)
    group: str = field(default="", kw_only=True)
    judge_scores: tuple[float, ...] | None = field(default=None, kw_only=True)
    steps: tuple[int, ...] | None = field(default=None, kw_only=True)
    rules: ScoreRules | None = field(default=None, kw_only=True, compare=False, repr=False)

    @property
    def key(self) -> ActionKey:
        return (self.video, self.number)

    @property
    def frame_count(self) -> int:
        return self.end_frame - self.start_frame + 1

    @property
    def name(self) -> str:
        return action_name(self.key)

    @property
    def title(self) -> str:
        """The action in messages, such as 'dive 03/055'."""
        return f"{self.noun} {self.name}"

    @property
    def held_together(self) -> str:
        """What is never split between parts if whole groups are held out: the group, or the video if there is none."""
        return self.group or self.video

    def need(self, name: str) -> Any:
        """The value of a field that a method needs.

        Raises:
            UserError: the field is None.
        """
        if (value := getattr(self, name, None)) is None:
            raise UserError(
                f"{self.title} has no {name}, which this method needs: add it to the annotations, or choose another --method"
            )
        return value

    def label_text(self, classes: Sequence[str] = ()) -> str:
        """What was judged, for pictures: 'kind, DD 3.2, score 80, label 1', as far as known."""
        parts = (
            ("", self.kind or None),
            ("DD ", self.difficulty),
            ("score ", self.final_score),
            ("", classes[self.label]) if classes and self.label is not None else ("label ", self.label),
        )
        return "  ".join(f"{name}{value:g}" if name else str(value) for name, value in parts if value is not None)

    def identity(self) -> tuple:
        """All that a run was given of this action: its key, frames and labels. For fingerprints."""
        more = (self.label, self.kind, self.group, self.steps)
        frames = (plain_key(self.key), self.start_frame, self.end_frame, self.difficulty, self.final_score)
        return (*frames, self.attributes(), *(more if any(value not in (None, "") for value in more) else ()))

    def attributes(self) -> tuple:
        """Further labels of the action's kind."""
        return ()

    def faults(self) -> list[str]:
        """A message for each impossible value."""
        return [f"{self.title}: {fault}" for fault in (*self._frame_faults(), *self._score_faults())]

    def _frame_faults(self) -> list[str]:
        if 1 <= self.start_frame <= self.end_frame <= LAST_FRAME:
            return []
        return [f"frames {self.start_frame} to {self.end_frame} are not a range of frames within 1 to {LAST_FRAME}"]

    def _score_faults(self) -> list[str]:
        faults = []
        if self.difficulty is not None and not (math.isfinite(self.difficulty) and self.difficulty > 0):
            faults.append(f"difficulty {self.difficulty} must be greater than 0")
        if self.final_score is None:
            return faults
        if not math.isfinite(self.final_score):
            faults.append(f"final score {self.final_score} is not a finite number")
        elif self.rules and not self.rules.low - ROUNDING <= self.final_score <= self.rules.high + ROUNDING:
            of_kind = f" of kind '{self.kind}'" if self.kind else ""
            faults.append(
                f"final score {self.final_score} is outside {self.rules.low:g} to {self.rules.high:g}, the range{of_kind}"
            )
        return faults


@dataclass(frozen=True)
class Dive(Action):
    """One judged dive. `ss_no` and `tw_no` are the numbers of half somersaults and half twists; final scores reach about
    120 points."""

    noun: ClassVar[str] = "dive"

    difficulty: float = field(kw_only=True)
    final_score: float = field(kw_only=True)
    rules: ScoreRules | None = field(default=DIVING, kw_only=True, compare=False, repr=False)
    position: int | None = field(default=None, kw_only=True)
    armstand: int | None = field(default=None, kw_only=True)
    rotation_type: int | None = field(default=None, kw_only=True)
    ss_no: int | None = field(default=None, kw_only=True)
    tw_no: int | None = field(default=None, kw_only=True)
    dive_number: str | None = field(default=None, kw_only=True)
    caption: tuple[str, ...] | None = field(default=None, kw_only=True)

    def label_text(self, classes: Sequence[str] = ()) -> str:
        return f"{self.dive_number or ''}  {super().label_text(classes)}"

    def attributes(self) -> tuple:
        return (*(getattr(self, name) for name in ATTRIBUTE_CLASSES), self.caption)

    def _score_faults(self) -> list[str]:
        faults, most = [], COUNTED_JUDGES * MAX_JUDGE_SCORE * self.difficulty
        if not (math.isfinite(self.difficulty) and self.difficulty > 0):
            faults.append(f"difficulty {self.difficulty} must be greater than 0")
        elif not 0 <= self.final_score <= most + ROUNDING:  # also NaN
            faults.append(
                f"final score {self.final_score} is outside 0 to {most:g}, what judges can give at difficulty {self.difficulty:g}"
            )
        for name, classes in ATTRIBUTE_CLASSES.items():
            value = getattr(self, name)
            if value is not None and not 0 <= value < classes:
                faults.append(f"{name} {value} is outside 0 to {classes - 1}")
        for score in self.judge_scores or ():
            if not (0 <= score <= MAX_JUDGE_SCORE and score * 2 == int(score * 2)):
                faults.append(f"judge score {score} is outside 0 to {MAX_JUDGE_SCORE:g} in half points")
        return faults


@dataclass(frozen=True)
class VideoFacts:
    """What annotations or catalogue state about the video file that was labelled; None if they do not.

    `stated_by` is the file that states it, for messages.
    """

    frames_per_second: Fraction | None = None
    frames: int | None = None
    stated_by: str = ""


# ------------------------------------------------------------------------------------------------------------ checks


def overlap_faults(actions: Iterable[Action]) -> list[str]:
    """A message for each action that starts before an earlier action of the same video has ended."""
    faults: list[str] = []
    latest: Action | None = None  # the action of this video that ends last so far
    for action in sorted(actions, key=lambda a: (video_order(a.video), a.start_frame, a.end_frame)):
        if latest is None or latest.video != action.video:
            latest = action
            continue
        if action.start_frame <= latest.end_frame:
            faults.append(
                f"{action.title}: frames {action.start_frame} to {action.end_frame} overlap those of {latest.title} ({latest.start_frame} to {latest.end_frame})"
            )
        latest = max(latest, action, key=lambda a: a.end_frame)
    return faults


def judged_score(action: Action) -> float | None:
    """The final score in points by the rules of its kind; None if the judges' scores or the rules are not known."""
    if action.judge_scores is None or action.rules is None or action.rules.total is None:
        return None
    return action.rules.total(action.judge_scores, action.difficulty)


def judge_exceptions(actions: Iterable[Action]) -> list[Action]:
    """Actions whose final score does not follow from their judges' scores.

    Mostly one judge's score has a typing error. They are reported, not corrected.
    """
    scored = ((action, judged_score(action)) for action in actions)
    return [
        action
        for action, score in scored
        if score is not None and action.final_score is not None and abs(score - action.final_score) > ROUNDING
    ]


def has_field(action: Action, name: str) -> bool:
    """Whether an action has a value in a field, which may be one of another kind of action."""
    return name in {f.name for f in fields(action)} and getattr(action, name) is not None
