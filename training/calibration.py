"""Intervals of predictions by split conformal prediction, from the validation predictions of a run (calibration.json).

The misfit of a prediction is its distance from what is true (Task.misfits). For the level 1 - a, the limit is the
ceil((n + 1)(1 - a))-th smallest of the misfits of n validation actions. If a new action is exchangeable with them, the truth is
within the limit of its prediction with a probability of at least 1 - a ("Algorithmic Learning in a Random World", Vovk,
Gammerman and Shafer, 2005; "Distribution-Free Predictive Inference for Regression", Lei et al., JASA 2018).

With several kinds of actions each kind has a limit of its own: their scores differ in range. Where the errors of scores depend on
the score, an interval should be wider where they are larger. So misfits are divided by the mean misfit of the validation actions
with the nearest predictions, and the limit of these quotients is multiplied by it again (locally weighted: Lei et al., section
5.2; nearest neighbours: Papadopoulos, Vovk and Gammerman, JAIR 2011). Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from data_preparation.common.errors import UserError
from training.metrics import conformal_limit, rank_of_limit
from training.predictions import read_predictions
from training.runtime.run_folder import RunFolder, read_json, write_json
from training.tasks import task_of
from training.tasks.base import Arrays, Predictions, Task

LEVEL = 0.9
WORST_GROUP = 0.8  # the least coverage of a group that is not reported
FEWEST_IN_GROUP = 5  # actions; the coverage of fewer says nothing
_NUMBERS = 3  # groups by difficulty
_FEWEST_LOCAL = 80  # actions; with fewer, all predictions have the same limit
_NEAREST = 4  # the nearest quarter of the actions counts as near


# ------------------------------------------------------------------------------------------------------ pure functions


def fewest_misfits(level: float = LEVEL) -> int:
    """The least number of misfits that has a finite limit: 9 for 90 %."""
    return math.ceil(Fraction(str(level)) / (1 - Fraction(str(level))))


def covered_by_others(misfits: np.ndarray, level: float = LEVEL) -> np.ndarray:
    """Whether each of the misfits (n,) is within the limit of the other n - 1: (n,) bool."""
    rank = rank_of_limit(len(misfits) - 1, level)
    if rank > len(misfits) - 1:
        return np.ones(len(misfits), bool)
    # leaving out one of the `rank` smallest raises the limit of the others, leaving out a larger one does not move it
    return misfits <= np.sort(misfits)[rank - 1]


def local_misfits(misfits: np.ndarray, positions: np.ndarray, at: np.ndarray | None = None) -> np.ndarray:
    """The mean of the misfits (n,) near each place `at` (m,), on the axis on which they have `positions` (n,). Without `at`, near
    each of the positions, without its own misfit."""
    near = len(misfits) // _NEAREST
    order = np.argsort(positions, kind="stable")
    axis = positions[order]
    sums = np.concatenate([[0.0], np.cumsum(misfits[order])])  # sums[j] - sums[i]: the misfits i to j - 1 on the axis
    if at is None:
        width, places = near + 1, positions  # one more, because the own one is taken away
    else:
        width, places = near, at
    # the nearest are a window on the axis: the first whose far end is not nearer than its near end
    start = np.searchsorted(axis[: len(axis) - width] + axis[width:], 2 * places)
    own = np.zeros(len(places))
    if at is None:
        rank = np.empty(len(order), int)
        rank[order] = np.arange(len(order))
        start = np.clip(start, rank - near, rank)  # contains the own one where many are at the same position
        own = misfits
    mean = (sums[start + width] - sums[start] - own) / near
    # above 0, since it divides
    return np.maximum(mean, max(misfits.mean() / 1000, 1e-12))


def local_limits(misfits: np.ndarray, positions: np.ndarray, at: np.ndarray, level: float = LEVEL) -> np.ndarray:
    """The limit at each place `at` (m,), from misfits (n,) and their positions (n,) on the same axis. With too few misfits, or
    without positions, the same everywhere."""
    if len(misfits) < _FEWEST_LOCAL or len(positions) != len(misfits):
        return np.full(len(at), conformal_limit(misfits, level))
    relative = misfits / local_misfits(misfits, positions)
    return conformal_limit(relative, level) * local_misfits(misfits, positions, at)


def covered_locally(misfits: np.ndarray, positions: np.ndarray, level: float = LEVEL) -> np.ndarray:
    """Whether each of the misfits (n,) is within the limit from the others, as `local_limits` computes it: (n,) bool."""
    if len(misfits) < _FEWEST_LOCAL or len(positions) != len(misfits):
        return covered_by_others(misfits, level)
    return covered_by_others(misfits / local_misfits(misfits, positions), level)


def coverage_range(count: int, level: float = LEVEL) -> tuple[float, float]:
    """The range in which the coverage of a limit from `count` misfits lies with a probability of 95 %, over draws of these
    misfits: quantiles of the beta distribution."""
    from scipy.special import betaincinv  # here, because only a training that ends needs it

    rank = rank_of_limit(count, level)
    if rank > count:
        return 1.0, 1.0
    low, high = betaincinv(rank, count + 1 - rank, [0.025, 0.975])
    return float(low), float(high)


def percent(share: float, digits: int = 0) -> str:
    """A share as text, such as '90 %'."""
    return f"{100 * share:.{digits}f} %"


class Group(NamedTuple):
    """Actions whose coverage is reported: how many, and the share that is within the limit."""

    name: str
    actions: int
    coverage: float


def groups_of(run: Predictions) -> dict[str, np.ndarray]:
    """The indices of the actions of each kind, if there are several, and of each third of the difficulties."""
    kinds = sorted(set(run.truth.kinds))
    found = {kind: np.flatnonzero(np.asarray(run.truth.kinds) == kind) for kind in kinds if len(kinds) > 1}
    known = np.array([math.nan if d is None else d for d in run.difficulties], np.float64)
    rows = np.flatnonzero(np.isfinite(known))
    if len(set(known[rows].tolist())) < _NUMBERS:
        return found
    edges = np.quantile(known[rows], np.linspace(0, 1, _NUMBERS + 1)[1:-1])
    parts = np.searchsorted(edges, known[rows], side="left")  # a difficulty at an edge is in the lower part
    for part in range(_NUMBERS):
        if len(own := rows[parts == part]):
            found[f"difficulty {known[own].min():g} to {known[own].max():g}"] = own
    return found


def group_coverage(covered: np.ndarray, groups: Mapping[str, np.ndarray]) -> list[Group]:
    """The coverage of each group that is large enough; `covered` (A,) bool."""
    return [
        Group(name, len(rows), float(covered[rows].mean()))
        for name, rows in groups.items()
        if len(rows) >= FEWEST_IN_GROUP
    ]


# --------------------------------------------------------------------------------------------------------- calibration


@dataclass(frozen=True)
class Calibration:
    """The content of calibration.json. `misfits` holds the misfits of the validation actions of each kind; an action without a
    kind has the kind "". `positions` has the predicted scores of the same actions; for classes it is empty. `groups` are
    leave-one-out: each action is judged by the limit of the others. `tested` are the test actions, all first, once the test split was
    opened. `epoch` is that of best.pt, whose predictions these are."""

    task: str
    epoch: int
    misfits: dict[str, list[float]]
    positions: dict[str, list[float]] = field(default_factory=dict)
    groups: list[Group] = field(default_factory=list)
    tested: list[Group] = field(default_factory=list)
    level: float = LEVEL

    def limits(self, kinds: Sequence[str], predicted: Arrays) -> np.ndarray:
        """The limit of each of A predictions of actions with these kinds, (A,): infinite if there are too few validation actions of
        its kind. With one kind only, an action may leave it out."""
        positions = task_of(self.task).positions(predicted)
        found = np.full(len(kinds), np.inf)
        for kind in set(kinds):
            known = next(iter(self.misfits)) if len(self.misfits) == 1 and kind not in self.misfits else kind
            rows = [row for row, each in enumerate(kinds) if each == kind]
            at = np.zeros(len(rows)) if positions is None else positions[rows]
            misfits, near = (np.asarray(part.get(known, ()), np.float64) for part in (self.misfits, self.positions))
            found[rows] = local_limits(misfits, near, at, self.level)
        return found

    def range_of_limits(self, kind: str) -> tuple[float, float]:
        """The least and the greatest limit of the validation actions of a kind."""
        misfits, positions = (np.asarray(part.get(kind, ()), np.float64) for part in (self.misfits, self.positions))
        found = local_limits(misfits, positions, positions if len(positions) else np.zeros(1), self.level)
        return float(found.min()), float(found.max())

    def lines(self) -> list[str]:
        """The limit of each kind with what is to be known about it, a sentence each."""
        found = []
        for kind, misfits in self.misfits.items():
            name, count = f"{kind}: " if kind else "", len(misfits)
            if count < fewest_misfits(self.level):
                found.append(
                    f"{name}no {percent(self.level)} interval: {count} validation actions are too few, {fewest_misfits(self.level)} are needed"
                )
                continue
            low, high = coverage_range(count, self.level)
            found.append(
                f"{name}{percent(self.level)} interval: {task_of(self.task).limit_text(*self.range_of_limits(kind))}, from {count} validation actions; with so many, its true coverage is between {percent(low)} and {percent(high)}"
            )
        return found + self.warnings()

    def warnings(self) -> list[str]:
        """The groups that an interval covers too rarely, and how often it covers the test actions, a sentence each."""
        return [
            *(
                f"{group.name}: only {percent(group.coverage)} of {group.actions} {part} actions are inside the interval, so trust it less there"
                for part, groups in (("validation", self.groups), ("test", self.tested[1:]))
                for group in groups
                if group.coverage < WORST_GROUP
            ),
            *(
                f"{percent(group.coverage, 1)} of {group.actions} test actions are inside their interval"
                for group in self.tested[:1]
            ),
        ]

    def record(self) -> dict[str, Any]:
        """The calibration as JSON types, with the least and the greatest limit for readers."""
        limits = {kind: list(self.range_of_limits(kind)) for kind in self.misfits}
        return {
            **asdict(self),
            "groups": [group._asdict() for group in self.groups],
            "tested": [group._asdict() for group in self.tested],
            "limits": limits,
            "notes": self.lines(),
        }

    @classmethod
    def from_record(cls, record: Any) -> Calibration:
        """The inverse of `record`.

        Raises:
            ValueError: the record is damaged.
        """
        try:
            misfits, positions = (
                {str(kind): [float(m) for m in values] for kind, values in record[name].items()}
                for name in ("misfits", "positions")
            )
            groups, tested = (
                [Group(str(g["name"]), int(g["actions"]), float(g["coverage"])) for g in record[name]]
                for name in ("groups", "tested")
            )
            found = cls(
                str(record["task"]), int(record["epoch"]), misfits, positions, groups, tested, float(record["level"])
            )
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from None
        numbers = [m for part in (misfits, positions) for values in part.values() for m in values]
        if not all(map(math.isfinite, numbers)) or not 0 < found.level < 1 or not misfits:
            raise ValueError("a number is out of range")
        return found


def calibration_of(validated: Predictions, epoch: int) -> Calibration:
    """The calibration from the validation predictions of a run."""
    misfits = validated.task.misfits(validated.predicted, validated.truth)
    positions = validated.task.positions(validated.predicted)
    kinds = np.asarray(validated.truth.kinds)
    rows_of = {str(kind): np.flatnonzero(kinds == kind) for kind in np.unique(kinds)}
    covered = np.ones(len(misfits), bool)
    for rows in rows_of.values():
        covered[rows] = covered_locally(misfits[rows], np.array([]) if positions is None else positions[rows])
    of_kind = {kind: misfits[rows].tolist() for kind, rows in rows_of.items()}
    near = {} if positions is None else {kind: positions[rows].tolist() for kind, rows in rows_of.items()}
    return Calibration(validated.task.name, epoch, of_kind, near, group_coverage(covered, groups_of(validated)))


def covered_in(calibration: Calibration, run: Predictions) -> np.ndarray:
    """Which of some predictions with known truth the interval covers: (A,) bool."""
    return run.task.misfits(run.predicted, run.truth) <= calibration.limits(run.truth.kinds, run.predicted)


def coverage(calibration: Calibration, run: Predictions) -> list[Group]:
    """The coverage of predictions with known truth: all of them first, then each group. Empty if no prediction has an interval."""
    if np.isinf(calibration.limits(run.truth.kinds, run.predicted)).all():
        return []
    covered = covered_in(calibration, run)
    return [Group("all", len(covered), float(covered.mean())), *group_coverage(covered, groups_of(run))]


def coverage_lines(groups: Sequence[Group]) -> list[str]:
    """The coverage of groups as a table."""
    width = max((len(group.name) for group in groups), default=0)
    return [f"{group.name:{width}}  {percent(group.coverage, 1):>7} of {group.actions} actions" for group in groups]


# --------------------------------------------------------------------------------------------------------------- files


def write_calibration(run: RunFolder, task: Task) -> Calibration | None:
    """Write calibration.json from the validation predictions of the best epoch, and with the coverage of the test predictions if the
    test split was opened; None if the run has no validation predictions.

    Raises:
        UserError: the predictions are damaged, or the file cannot be written.
    """
    epoch = run.val_predictions_epoch()
    if not task.has_test or epoch is None:
        return None
    found = calibration_of(read_predictions(run.val_predictions_file, run.title, fewest=1), epoch)
    if run.summary() is not None and run.predictions_file.exists():
        tested = coverage(found, read_predictions(run.predictions_file, run.title, fewest=1))
        found = replace(found, tested=tested)
    write_json(run.calibration_file, found.record())
    return found


def read_calibration(run: RunFolder) -> Calibration | None:
    """The calibration of a run, or None if it has none yet.

    Raises:
        UserError: the file is damaged.
    """
    fix = f"write it again with python -m training.calibrate --run {run.path}"
    record = read_json(run.calibration_file, fix)
    try:
        return None if record is None else Calibration.from_record(record)
    except ValueError as error:
        raise UserError(f"{run.calibration_file} is damaged ({error}): {fix}") from None
