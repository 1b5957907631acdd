"""A judge that scores with a trained run. Imports torch, so only the worker process imports this file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from data_preparation.common.errors import UserError
from data_preparation.frame_numbers import scan_video
from training.clips import read_clip, warnings_of
from training.explain import explain, write
from training.judge_page.judging import read_video
from training.judge_page.records import Question, RunFacts, Verdict, VideoFacts
from training.novelty import declined_text
from training.predict import run_notes
from training.scorer import Clip, Prediction, Scorer

_MOST_CHANCES = 6  # classes whose probability is shown


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

    try:
        with_all = given(known)
    except UserError as error:
        raise UserError(f"the judge page cannot score with this run: {error}") from None
    questions = []
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


def scored_text(clip: Clip, known: Mapping[str, Any]) -> str:
    """What was scored: frames, seconds, and what the person has said."""
    action = clip.action
    answers = "".join(f", {name.replace('_', ' ')} {value}" for name, value in known.items())
    return f"frames {action.start_frame} to {action.end_frame} ({action.frame_count / clip.fps:.2f} s){answers}"


def verdict_of(prediction: Prediction, clip: Clip, scored: str) -> Verdict:
    """A prediction in the words of the page, without explanation."""
    values = dict(prediction.values)
    if prediction.declined:
        why = declined_text(prediction.noun, prediction.distance or 0)
        return Verdict(scored, declined=f"The network predicts nothing, because this is {why}.")
    chances = sorted(values.pop("probabilities", {}).items(), key=lambda pair: -pair[1])
    score, chosen, caption = (values.pop(name, None) for name in ("score", "class", "caption"))
    values.pop("probability", None)  # it is among the probabilities
    rows = [(name.capitalize(), shown(value)) for name, value in values.items()]
    if prediction.classes is not None:
        rows.append(("90 % set of classes", ", ".join(prediction.classes) or "none"))
    rules, interval = clip.action.rules, None
    if prediction.low is not None and prediction.high is not None:
        interval = (prediction.low, prediction.high)
    return Verdict(
        scored, f"{score:.1f}" if score is not None else str(chosen), "points" if score is not None else "", interval,
        score, None if rules is None else (rules.low, rules.high), rows=tuple(rows), chances=tuple(chances[:_MOST_CHANCES]), caption=caption or "",
    )  # fmt: skip


# ----------------------------------------------------------------------------------------------------------- the judge


class RunJudge:
    """Scores with the trained network of a run."""

    def __init__(self, scorer: Scorer, name: str, with_explanation: bool) -> None:
        self.scorer, self.with_explanation = scorer, with_explanation
        self.facts = RunFacts(name, questions_of(scorer), tuple(run_notes(scorer)))

    def read(self, path: Path, folder: Path) -> VideoFacts:
        return read_video(path, folder)

    def score(self, path: Path, name: str, start: int, end: int, answers: Mapping[str, str], folder: Path) -> Verdict:
        known = values_of(answers, self.facts.questions)
        scan = scan_video(path)
        clip = read_clip(self.scorer, scan, (start, end), name=name, **known)
        verdict = verdict_of(self.scorer.predict([clip])[0], clip, scored_text(clip, known))
        verdict = replace(verdict, notes=tuple(warnings_of(self.scorer, scan, clip.action)))
        if verdict.declined or not self.with_explanation:
            return verdict
        try:
            picture, video = write(explain(self.scorer, [clip])[0], folder, stem="explanation")
        except UserError as error:  # the score stands
            return replace(verdict, without_explanation=str(error))
        return replace(verdict, pictures=(picture.name,), videos=(video.name,))
