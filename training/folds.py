"""The result of a cross-validation from the runs of all its folds, with the test split of each run opened.

    python -m training.folds runs/a-f1 runs/a-f2 runs/a-f3 runs/a-f4

Prints, for each kind of action, Spearman's correlation in each fold and its mean over the folds, the correlation of all test
predictions together (each action is tested in one fold) with its interval, and the best guess that does not use the video.

Published results on JIGSAWS (USDL and MUSDL, CVPR 2020) are the mean over the last ten epochs of the mean over the folds,
measured on the test actions in every epoch. This is printed, too, but with the validation actions, because a test split is
opened only once. In a mean, the correlation of equal predictions, which is undefined, counts as 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_preparation.actions import ActionKey, list_names
from data_preparation.common.command_line import run
from data_preparation.common.errors import UserError
from training.compare import predictions_of
from training.metrics import bootstrap_interval, spearman
from training.report import OpenedRun, grouped, mean_and_std, read_run
from training.runtime.run_folder import RunFolder, read_json
from training.tasks.base import Predictions
from training.tasks.score import fisher_mean, key_of_kind

LAST_EPOCHS = 10  # of the published mean


@dataclass(frozen=True)
class Fold:
    """The results of a run that tested one fold. `epochs` are its records of metrics.jsonl."""

    run: OpenedRun
    predictions: Predictions
    epochs: Sequence[dict[str, Any]]

    @property
    def number(self) -> int:
        return self.run.config.fold

    def rows(self, kind: str) -> np.ndarray:
        """The indices of the test actions of a kind."""
        return np.flatnonzero(np.asarray(self.predictions.truth.kinds, str) == kind)


def read_fold(path: Path) -> Fold:
    """
    Raises:
        UserError: it is not a run whose test split was opened, or does not predict scores.
    """
    opened = read_run(path)
    if opened.task != "score":
        raise UserError(f"{path} has the task {opened.task}: give runs that predict scores")
    return Fold(opened, predictions_of(path), RunFolder(path).metrics("epoch"))


def check_folds(folds: Sequence[Fold]) -> None:
    """Check that each action of the data set is tested once.

    Raises:
        UserError: naming every fault.
    """
    faults = []
    tested: dict[ActionKey, Fold] = {}
    for fold in folds:
        if shared := [key for key in fold.predictions.keys if key in tested]:
            other = tested[shared[0]]
            faults.append(
                f"{other.run.name} and {fold.run.name} both tested {len(shared)} actions ({list_names(shared)}): give each fold once, of the same data"
            )
        tested |= dict.fromkeys(fold.predictions.keys, fold)
    splits: Any = read_json(RunFolder(folds[0].run.path).splits_file)  # read_run has checked it
    count = sum(len(splits.get(part, ())) for part in ("train", "val", "test"))
    if not faults and len(tested) < count:
        faults.append(f"these {len(folds)} folds test {len(tested)} of {count} actions: give the runs of all folds")
    if faults:
        raise UserError.of(faults)


# ------------------------------------------------------------------------------------------------------------- results


def _defined(value: float | None) -> float:
    """A correlation, or 0 if it is undefined, because all predictions are equal."""
    return 0.0 if value is None or math.isnan(value) else value


def mean_text(by_fold: Sequence[float | None]) -> str:
    """The correlation in each fold, their mean and their mean with Fisher's z-transformation."""
    values = [_defined(value) for value in by_fold]
    return (
        f"{' '.join(f'{value:.3f}' for value in values)}, mean {np.mean(values):.3f}, "
        f"Fisher-z mean {float(fisher_mean(np.array(values))):.3f}"
    )


def last_epochs_mean(folds: Sequence[Fold], key: str) -> tuple[float, int] | None:
    """The mean over the last epochs of the mean over the folds of a metric in metrics.jsonl, and the number of epochs; None if
    a run has not logged it."""
    logged = [[record.get(key) for record in fold.epochs] for fold in folds]
    count = min(LAST_EPOCHS, *map(len, logged))
    if count == 0 or not all(key in record for fold in folds for record in fold.epochs[-count:]):
        return None
    return float(np.mean([[_defined(value) for value in values[-count:]] for values in logged])), count


def kind_lines(kind: str, folds: Sequence[Fold], key: str) -> tuple[float, list[str]]:
    """The mean over the folds of Spearman's correlation of one kind of action, and the lines about it. `key` is the name of that
    correlation in the records of the runs."""
    of_kind = [(fold, fold.rows(kind)) for fold in folds]
    true, predicted = (
        [values[rows] for values, rows in pairs]
        for pairs in (
            [(fold.predictions.truth.values, rows) for fold, rows in of_kind],
            [(fold.predictions.predicted["score"], rows) for fold, rows in of_kind],
        )
    )
    by_fold = [spearman(p, y) for p, y in zip(predicted, true, strict=True)]
    p, y = np.concatenate(predicted), np.concatenate(true)
    low, high = bootstrap_interval(p, y)
    lines = [
        f"{kind or 'all actions'}: {len(y)} actions, {' '.join(str(len(own)) for own in true)} in the folds",
        f"  Spearman in the folds {mean_text(by_fold)}",
        f"  Spearman of all folds together {_defined(spearman(p, y)):.3f} (95 % interval {low:.3f} to {high:.3f})",
    ]
    lines += [
        f"  {fold.run.name}: all predictions (or all true scores) are equal, which counts as 0"
        for fold, value in zip(folds, by_fold, strict=True)
        if math.isnan(value)
    ]
    baselines = [fold.run.summary["baselines"] for fold in folds]
    for name in baselines[0]:
        values = [found.get(name, {}).get(key) for found in baselines]
        if any(value is not None for value in values):  # a constant guess has no correlation
            lines.append(f"  without video, {name}: {mean_text(values)}")
    if found := last_epochs_mean(folds, f"val_{key}"):
        lines.append(
            f"  as published, mean over the last {found[1]} epochs and the folds: {found[0]:.3f} (of the validation actions; published numbers are of the test actions)"
        )
    else:
        lines.append("  as published: unknown, the runs have no validation results of each epoch in metrics.jsonl")
    return float(np.mean([_defined(value) for value in by_fold])), lines


def seed_lines(folds: Sequence[Fold]) -> tuple[float, list[str]]:
    """The mean over folds and kinds of the runs of one seed, and the lines about them."""
    kinds = sorted({kind for fold in folds for kind in fold.predictions.truth.kinds})
    means, lines = [], []
    for kind in kinds:
        mean, own = kind_lines(kind, folds, key_of_kind("spearman", kind) if len(kinds) > 1 else "spearman")
        means.append(mean)
        lines += own
    total = float(fisher_mean(np.array(means)))
    if len(kinds) > 1:
        lines.append(f"Fisher-z mean over {len(kinds)} kinds of the means over the folds: {total:.3f}")
    return total, lines


def main(argv: Sequence[str]) -> None:
    if {"-h", "--help"} & set(argv):
        print(__doc__)
        return
    if len(argv) < 2 or any(name.startswith("-") for name in argv):
        raise UserError("give the run folders of all folds: python -m training.folds runs/a-f1 runs/a-f2 ...")
    given = [read_fold(Path(name)) for name in argv]
    seeds: dict[int, list[Fold]] = {}
    for fold in sorted(given, key=lambda fold: fold.number):
        seeds.setdefault(fold.run.config.seed, []).append(fold)
    if len(groups := grouped([fold.run for fold in given])) > 1:
        names = " and ".join(group[0].name for group in groups[:2])
        raise UserError(f"{names} differ in other flags than --fold and --seed: give the folds of one setting")
    for folds in seeds.values():
        check_folds(folds)
    totals = []
    for seed, folds in seeds.items():
        total, lines = seed_lines(folds)
        totals.append(total)
        print("\n".join([f"{len(folds)} folds, seed {seed}: {', '.join(fold.run.name for fold in folds)}", *lines]))
    if len(totals) > 1:
        print(f"mean over {len(totals)} seeds {mean_and_std(totals)}")


if __name__ == "__main__":
    run(main)
