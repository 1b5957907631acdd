"""What crosses the boundary between the page and its worker process: facts, verdicts, and what a judge does. Imports no library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Question:
    """A value that the run's method needs besides the clip. `choices` are all allowed values, empty for free text."""

    name: str  # of the field of Action
    label: str
    hint: str
    required: bool = True
    is_number: bool = False
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunFacts:
    """What the page says of the run."""

    name: str
    questions: tuple[Question, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class VideoFacts:
    """A readable video: number of frames, frames per second, displayed size, and the frame numbers of its thumbnails."""

    frames: int
    rate: float
    width: int
    height: int
    thumbnails: tuple[int, ...]


@dataclass(frozen=True)
class Verdict:
    """What the page shows of a prediction.

    `headline` is the score in points or the class; `interval` (low, high) belongs to a `score`; both are drawn on
    `scale`, the range of scores in points. `declined` says in one sentence
    why there is no headline. `rows` are further values, `chances` the probabilities of the classes. `pictures` and `videos` are
    names of files in the clip's folder that explain the prediction; `without_explanation` says why there are none.
    """

    scored: str
    headline: str = ""
    unit: str = ""
    interval: tuple[float, float] | None = None
    score: float | None = None
    scale: tuple[float, float] | None = None
    declined: str = ""
    rows: tuple[tuple[str, str], ...] = ()
    chances: tuple[tuple[str, float], ...] = ()
    caption: str = ""
    pictures: tuple[str, ...] = ()
    videos: tuple[str, ...] = ()
    without_explanation: str = ""
    notes: tuple[str, ...] = ()


class Judge(Protocol):
    """What the worker process makes once, and calls for every job."""

    facts: RunFacts

    def read(self, path: Path, folder: Path) -> VideoFacts:
        """Open a video and write thumbnails, FRAME.jpg, into `folder`.

        Raises:
            UserError: it cannot be read.
        """

    def score(self, path: Path, name: str, start: int, end: int, answers: Mapping[str, str], folder: Path) -> Verdict:
        """Score the frames `start` to `end` (1-based, inclusive) and write the explanation into `folder`.

        Raises:
            UserError: it cannot be scored.
        """
