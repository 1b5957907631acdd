"""Rules: pure functions from what a network and a detector say of an action to its class. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from data_preparation.actions import Action
from data_preparation.detections import Detection, Detections, in_frames_of
from training.tasks.base import Arrays

_TIE = 1e-6  # added to the probability of the chosen class, in case that two were largest


@dataclass(frozen=True)
class Case:
    """What a rule sees of an action: the probability of each class, and the boxes of a detector in its frames."""

    probability: Mapping[str, float]
    boxes: Sequence[Detection] = ()

    @property
    def order(self) -> list[str]:
        """The classes, the most probable one first; of equal ones the first of the data set."""
        return sorted(self.probability, key=lambda name: -self.probability[name])

    def count(self, name: str, above: float) -> int:
        """The number of boxes of a class of the detector with a score above `above`, in all frames together."""
        return sum(box.name == name and box.score > above for box in self.boxes)


Rule = Callable[[str, Case], str]  # (the class after the rules before, what is known) -> the class


@dataclass(frozen=True)
class Rules:
    """Rules in the order in which they are applied, and the classes of the data set that they name."""

    classes: tuple[str, ...]
    rules: tuple[Rule, ...]
    needs_boxes: bool = False

    @property
    def names(self) -> list[str]:
        return [rule.__name__ for rule in self.rules]


def cases_of(
    predicted: Arrays, actions: Sequence[Action], classes: Sequence[str], detections: Detections | None
) -> list[Case]:
    """What the rules see of each action; `predicted` holds "probability" (A, K)."""
    return [
        Case(dict(zip(classes, row, strict=True)), in_frames_of(detections, action) if detections is not None else ())
        for row, action in zip(predicted["probability"].tolist(), actions, strict=True)
    ]


def apply_rules(rules: Sequence[Rule], cases: Sequence[Case]) -> list[str]:
    """The class of each case after all rules, in their order; they start from the most probable one."""
    labels = []
    for case in cases:
        label = case.order[0]
        for rule in rules:
            label = rule(label, case)
        labels.append(label)
    return labels


def with_labels(predicted: Arrays, labels: Sequence[str], classes: Sequence[str]) -> Arrays:
    """Probabilities (A, K) whose largest is that of `labels`: it changes places with the largest one."""
    probability_AK = predicted["probability"].copy()
    rows, before = np.arange(len(labels)), probability_AK.argmax(axis=1)
    chosen = np.array([classes.index(label) for label in labels], np.int64)
    largest, own = probability_AK[rows, before], probability_AK[rows, chosen]
    probability_AK[rows, before], probability_AK[rows, chosen] = own, largest + _TIE * (chosen != before)
    return {"probability": probability_AK}


def better_rules(rules: Sequence[Rule], value: Callable[[Sequence[Rule]], float]) -> list[bool]:
    """Which rules to keep: in their order, each that raises the validation result of those kept before it."""
    kept: list[Rule] = []
    best, keeps = value(kept), []
    for rule in rules:
        found = value([*kept, rule])
        keeps.append(found > best)
        if found > best:
            kept, best = [*kept, rule], found
    return keeps
