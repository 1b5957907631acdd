"""The interface of tasks. Imports no torch.

A task says what the number of a run is: the metric by which validation chooses the best epoch, the summary of the test split
with its intervals and baselines, the lines, plots and tables, and the comparison of two runs. Engine, evaluation, reports and
launch commands call only these functions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_preparation.actions import Action, ActionKey
from training.html_report.content import ExampleTexts, Picture, Section, Table

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Metric:
    """The number by which validation chooses the best epoch. Larger is better.

    `key` is its name in metrics.jsonl (after "val_") and in summary.json, `name` in messages and tables, `short` in squeue and
    launch.status, `title` and `label` in plots. `limit` is its largest value, if there is one. `undefined` says why it is NaN.
    """

    key: str
    name: str
    short: str
    title: str
    label: str
    limit: float | None = 1.0
    undefined: str = ""


class Column(NamedTuple):
    """A metric in a table or a log line: its key, its title and the decimal places."""

    key: str
    title: str
    digits: int


class Truth(NamedTuple):
    """What is true of A actions: `values` (A,) are final scores in points or class indices; `kinds` has A names. `spans` (A,) are
    the lengths of the ranges of scores, in points, where the metrics need them."""

    values: np.ndarray
    kinds: Sequence[str]
    spans: np.ndarray | None = None


@dataclass(frozen=True)
class Predictions:
    """The content of a file of predictions: A actions ordered by key, with what is true and what was predicted."""

    name: str  # of the run
    task: Task
    keys: list[ActionKey]
    truth: Truth
    predicted: Arrays  # as Method.predict returns it
    classes: tuple[str, ...] = ()
    difficulties: tuple[float | None, ...] = ()  # of each action


class Task(ABC):
    """Base class of tasks. `predicted` holds what Method.predict returns, as float64 arrays with the action as first
    dimension; `classes` are the names of the data set's classes, empty if it has none."""

    metric: Metric
    logged: Sequence[Column]  # validation metrics in the log line of an epoch
    table: Sequence[Column]  # metrics in the table of training.report
    plot_file: str = ""  # name of the plot of the test split in the run folder
    has_test: bool = True  # whether there is a test split to open
    errors: Set[str] = frozenset()  # keys of metrics that are better when smaller

    @property
    def name(self) -> str:
        """The name of its file."""
        return type(self).__module__.rpartition(".")[2]

    @abstractmethod
    def faults(self, actions: Sequence[Action], classes: Sequence[str]) -> list[str]:
        """Messages about actions that lack what this task needs."""

    @abstractmethod
    def truth(self, actions: Sequence[Action]) -> Truth:
        """What is true of these actions."""

    @abstractmethod
    def metrics(self, predicted: Arrays, truth: Truth) -> dict[str, float]:
        """All metrics of a set of predictions."""

    def validation_metrics(self, predicted: Arrays, truth: Truth, losses: Mapping[str, float]) -> dict[str, float]:
        """The metrics of a validation, with the one that chooses; `losses` are those of the whole validation set, by name."""
        return self.metrics(predicted, truth)

    def warning(self, predicted: Arrays, truth: Truth) -> str | None:
        """A warning if the predictions are useless, such as all the same, else None."""
        return None

    def mean_of_views(self, predicted: Arrays, average: str) -> Arrays:
        """The predictions of actions from those of all their views: (A, views, ...) -> (A, ...). `average` is --test_average, which
        matters to classes only."""
        return {name: values.mean(axis=1) for name, values in predicted.items()}

    # what follows is for tasks with a test split

    def summary(
        self, predicted: Arrays, known: Sequence[Action], test: Sequence[Action], classes: Sequence[str]
    ) -> dict[str, Any]:
        """The parts "test" (metrics with 95 % intervals), "baselines" (metrics of predictions without video, by name) and
        "groups" of summary.json. The labels of `known` actions may be used by baselines."""
        raise NotImplementedError

    def result_lines(self, summary: Mapping[str, Any]) -> list[str]:
        """The result of summary.json in one line, then warnings and baselines, one line each."""
        raise NotImplementedError

    def remarks(self, summary: Mapping[str, Any]) -> list[str]:
        """What a reader of summary.json must know besides its numbers, a sentence each: warnings."""
        return []

    def draw(
        self, predicted: Arrays, actions: Sequence[Action], classes: Sequence[str], path: Path, title: str
    ) -> None:
        """Write the plot of the test split as PNG."""
        raise NotImplementedError

    def columns(self, predicted: Arrays, actions: Sequence[Action], classes: Sequence[str]) -> dict[str, Sequence[Any]]:
        """The columns of predictions.csv: name -> a value for each action."""
        raise NotImplementedError

    def can_read(self, columns: Sequence[str]) -> bool:
        """Whether a file with these columns holds predictions of this task."""
        return False

    def read(self, rows: Sequence[Mapping[str, str]]) -> tuple[Truth, Arrays, tuple[str, ...]]:
        """The inverse of `columns`: truth, predictions and class names.

        Raises:
            KeyError, TypeError, ValueError: the rows are damaged.
        """
        raise NotImplementedError

    # what follows is for predictions of new videos

    def values(self, predicted: Arrays, classes: Sequence[str]) -> list[dict[str, Any]]:
        """What is predicted for each action, by name."""
        raise NotImplementedError

    def misfits(self, predicted: Arrays, truth: Truth) -> np.ndarray:
        """How far each prediction is from what is true, (A,): the nonconformity scores of conformal prediction."""
        raise NotImplementedError

    def region(self, predicted: Arrays, limits: np.ndarray, classes: Sequence[str]) -> list[dict[str, Any]]:
        """For each action all that is at most its limit (A,) from the prediction: {"low", "high"} or {"classes"}. Nothing for a
        limit of infinity."""
        raise NotImplementedError

    def positions(self, predicted: Arrays) -> np.ndarray | None:
        """Where each prediction lies on an axis along which the size of the misfits may change, (A,); None if there is none."""
        return None

    def limit_text(self, least: float, greatest: float) -> str:
        """The range of the limits of `misfits` in words."""
        raise NotImplementedError

    def report_sections(
        self, test: Predictions, summary: Mapping[str, Any], limits: np.ndarray | None
    ) -> list[Section]:
        """The sections of report.html about the result. `limits` (A,) are the limits of `misfits` that make the 90 % interval of each
        prediction; None if they are unknown."""
        return []

    def calibration_picture(self, test: Predictions) -> Picture:
        """The drawing of report.html that shows whether the predicted values mean what they say."""
        raise NotImplementedError

    def example_texts(self, test: Predictions) -> ExampleTexts:
        """What report.html says about the best and the worst predictions, by `misfits`."""
        raise NotImplementedError

    def compare(self, a: Predictions, b: Predictions) -> Comparison:
        """Compare two runs on the same actions: metrics of both, differences with 95 % intervals, a test."""
        raise NotImplementedError

    def comparison(self, a: Predictions, b: Predictions) -> list[str]:
        """The lines of `compare`."""
        return comparison_lines(a, b, self.compare(a, b), self.metric)

    def claims(self, value: float) -> Table | None:
        """How many test actions it takes to show differences of the metric from `value`, the best of some runs."""
        return None


class Difference(NamedTuple):
    """A metric of two runs, and the 95 % interval of B - A."""

    title: str
    a: float
    b: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Comparison:
    """A paired comparison of runs A and B. `better` is the fraction of resamples of a bootstrap in which B has the larger value of the
    metric that chooses, `notes` are further results, a sentence each. `needed` is the number of test actions that it takes to show a
    difference as large as this one (training.power); None if no number is enough."""

    differences: Sequence[Difference]
    better: float
    needed: int | None = None
    notes: Sequence[str] = ()


def comparison_lines(a: Predictions, b: Predictions, found: Comparison, metric: Metric) -> list[str]:
    """The table of a paired bootstrap of two runs."""

    def text(value: float, sign: str = "") -> str:
        return f"{value:{sign}.4f}" if np.isfinite(value) else "undefined"

    undefined = [
        f"{metric.name} of {name} is undefined: {metric.undefined}."
        for d in found.differences
        if d.title == metric.name
        for name, value in ((a.name, d.a), (b.name, d.b))
        if not np.isfinite(value)
    ]
    lines = [
        f"A = {a.name}, B = {b.name}: {len(a.keys)} test actions, paired bootstrap",
        f"{'':14}{'A':>10}{'B':>10}{'B - A':>10}   95 % interval",
        *(
            f"{d.title:14}{text(d.a):>10}{text(d.b):>10}{text(d.b - d.a, '+'):>10}   "
            + (f"{d.interval[0]:+.4f} to {d.interval[1]:+.4f}" if np.isfinite(d.interval).all() else "undefined")
            for d in found.differences
        ),
    ]
    lines += undefined or [f"B better ({metric.name}) in {found.better:.1%} of the resamples"]
    return [*lines, *found.notes]


def origin_text(summary: Mapping[str, Any]) -> str:
    """What predicted, according to summary.json: the checkpoint of a run, or several runs."""
    checkpoint = summary["checkpoint"]
    members, rules = checkpoint.get("members"), checkpoint.get("rules", ())  # of training.combine
    if not members:
        return f"checkpoint of epoch {checkpoint['epoch']}"
    return f"mean of {members} run{'s' if members > 1 else ''}" + (f", then rules: {', '.join(rules)}" if rules else "")


def number_text(value: float | None) -> str:
    """A metric with three decimal places; 'undefined' for None and NaN."""
    return "undefined" if value is None or not np.isfinite(value) else f"{value:.3f}"
