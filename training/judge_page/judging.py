"""What the worker process does: read a video, and score a part of it with a trained run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import simplejpeg

from data_preparation.actions import Action
from data_preparation.common.errors import UserError
from data_preparation.common.files import write_atomic
from data_preparation.decoding import decode_ranges, to_jpeg
from data_preparation.frame_numbers import VideoScan, scan_video
from training.judge_page.records import Judge, Question, RunFacts, Verdict, VideoFacts

if TYPE_CHECKING:  # imports torch, which only the worker process needs
    from training.scorer import Clip, Prediction, Scorer

_THUMBNAILS, _THUMBNAIL_HEIGHT, _THUMBNAIL_QUALITY = 24, 240, 80
_MOST_CHANCES = 6  # classes whose probability is shown


def read_video(path: Path, folder: Path) -> VideoFacts:
    """Open a video and write thumbnails, FRAME.jpg, into `folder`.

    Raises:
        UserError: it cannot be read.
    """
    scan = scan_video(path)
    numbers = np.unique(np.linspace(1, scan.frame_count, _THUMBNAILS).round().astype(int)).tolist()
    width, height = scan.width, scan.height
    for number, frame in decode_ranges(scan, [(n, n) for n in numbers]):
        if frame.rotation % 180:
            width, height = scan.height, scan.width
        write_atomic(folder / f"{number}.jpg", to_jpeg(frame, _THUMBNAIL_HEIGHT, _THUMBNAIL_QUALITY))
    return VideoFacts(scan.frame_count, float(scan.rate), width, height, tuple(numbers))


def read_clip(scorer: Scorer, scan: VideoScan, action: Action, name: str) -> Clip:
    """The frames of an action that the network reads, as an archive would hold them.

    Raises:
        UserError: a frame cannot be decoded.
    """
    from training.scorer import Clip

    numbers = scorer.frames_of(action, scan.frame_count)
    ranges = [(number, number) for number in numbers.tolist()]
    jpegs = [to_jpeg(frame, scorer.stored.height, scorer.stored.quality) for _, frame in decode_ranges(scan, ranges)]
    frames_THWC = np.stack([simplejpeg.decode_jpeg(jpeg) for jpeg in jpegs])
    return Clip(frames_THWC, action, name, float(scan.rate), numbers)


# ------------------------------------------------------------------------------------------------------- the questions

# what a person may be asked, with an example value
_EXAMPLES: dict[str, Any] = {"difficulty": 3.2, "dive_number": "107B"}
_QUESTIONS = {
    "difficulty": Question("difficulty", "Difficulty", "degree of difficulty of the dive, such as 3.2", is_number=True),
    "dive_number": Question("dive_number", "Dive number", "such as 107B or 5253B"),
}


def questions_of(scorer: Scorer) -> tuple[Question, ...]:
    """What the run's method needs to know besides the clip: found by asking it for its inputs with and without each value.

    Raises:
        UserError: the method needs more than a person can answer, such as the boxes of a tracker.
    """
    kinds = tuple(scorer.facts.rules)
    known = {**_EXAMPLES, **({"kind": kinds[0]} if len(kinds) > 1 else {})}

    def given(answers: Mapping[str, Any]) -> dict[str, np.ndarray]:
        return scorer.model.method.given(scorer.action("clip", 1, 1, 1, **answers))

    with_all, questions = given(known), []
    for name in known:
        if name == "kind":
            questions.append(Question("kind", "Kind of action", f"one of {', '.join(kinds)}", choices=kinds))
            continue
        try:
            without = given({other: value for other, value in known.items() if other != name})
        except UserError:
            questions.append(_QUESTIONS[name])
            continue
        if not all(np.array_equal(value, without[key]) for key, value in with_all.items()):
            questions.append(replace(_QUESTIONS[name], required=False))
    return tuple(questions)


def values_of(answers: Mapping[str, str], questions: Sequence[Question]) -> dict[str, Any]:
    """The answers as fields of an action."""
    numbers = {question.name for question in questions if question.is_number}
    return {name: float(text) if name in numbers else text for name, text in answers.items()}


# --------------------------------------------------------------------------------------------------------- the verdict


def shown(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def declined_text(prediction: Prediction) -> str:
    """Why a prediction is declined, or an empty text."""
    if not prediction.declined:
        return ""
    return f"This is not an action like those that the run was trained on: its distance from them is {prediction.distance:.2f}, and above {prediction.threshold:.2f} no score is given."


def scored_text(action: Action, rate: float, known: Mapping[str, Any]) -> str:
    """What was scored: frames, seconds, and what the person has said."""
    answers = "".join(f", {name.replace('_', ' ')} {value}" for name, value in known.items())
    seconds = f"{action.frame_count / rate:.2f} s"
    return f"frames {action.start_frame} to {action.end_frame} ({seconds}){answers}"


def verdict_of(prediction: Prediction, scored: str, scale: tuple[float, float] | None) -> Verdict:
    """A prediction in the words of the page, without explanation."""
    values = dict(prediction.values)
    declined = declined_text(prediction)
    if declined:
        return Verdict(scored, declined=declined)
    chances = sorted(values.pop("probabilities", {}).items(), key=lambda pair: -pair[1])
    score, chosen, caption = (values.pop(name, None) for name in ("score", "class", "caption"))
    values.pop("probability", None)  # it is among the probabilities
    rows = [(name.capitalize(), shown(value)) for name, value in values.items()]
    if prediction.classes is not None:
        rows.append(("90 % set of classes", ", ".join(prediction.classes) or "none"))
    interval = None
    if prediction.low is not None and prediction.high is not None:
        interval = (prediction.low, prediction.high)
    return Verdict(
        scored, f"{score:.1f}" if score is not None else str(chosen), "points" if score is not None else "", interval,
        score, scale, rows=tuple(rows), chances=tuple(chances[:_MOST_CHANCES]), caption=caption or "",
    )  # fmt: skip


# ----------------------------------------------------------------------------------------------------------- the judge


class RunJudge:
    """Scores with the trained network of a run."""

    def __init__(self, scorer: Scorer, name: str, with_explanation: bool) -> None:
        self.scorer, self.with_explanation = scorer, with_explanation
        notes = [*scorer.model.method.notes(), scorer.why_no_interval]
        if scorer.calibration is not None:
            notes += scorer.calibration.lines()
        self.facts = RunFacts(name, questions_of(scorer), tuple(note for note in notes if note))

    def read(self, path: Path, folder: Path) -> VideoFacts:
        return read_video(path, folder)

    def score(self, path: Path, name: str, start: int, end: int, answers: Mapping[str, str], folder: Path) -> Verdict:
        known = values_of(answers, self.facts.questions)
        action = self.scorer.action("clip", 1, start, end, **known)
        scan = scan_video(path)
        clip = read_clip(self.scorer, scan, action, name)
        prediction = self.scorer.predict([clip])[0]
        rules = action.rules
        scale = None if rules is None else (rules.low, rules.high)
        return verdict_of(prediction, scored_text(action, float(scan.rate), known), scale)


def load_judge(run: Path, *, gpu: bool, with_explanation: bool) -> Judge:
    """The judge of a run folder.

    Raises:
        UserError: as Scorer.from_run, or the method needs more than a person can answer.
    """
    from training.runtime.run_folder import RunFolder
    from training.scorer import Scorer

    return RunJudge(Scorer.from_run(run, gpu=gpu), RunFolder(run).title, with_explanation)
