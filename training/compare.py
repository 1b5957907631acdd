"""Compare evaluated runs on the same test actions: is run B better than run A?

    python -m training.compare runs/a runs/b [more runs, each compared with the first]

The comparison is paired: a bootstrap resamples the same actions for both runs. "B better" is the fraction of resamples in
which B has the better result. If the 95 % interval contains 0, these actions do not show a difference. The interval does not
cover the variation between seeds: train several.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_preparation.common.command_line import run
from data_preparation.common.errors import UserError
from training.predictions import read_predictions
from training.runtime.run_folder import RunFolder
from training.tasks.base import Predictions


def predictions_of(path: Path) -> Predictions:
    """The test predictions of a run folder.

    Raises:
        UserError: predictions.csv is missing or damaged.
    """
    try:
        return read_predictions(RunFolder(path).predictions_file, path.name)
    except OSError:
        raise UserError(
            f"{path} has no predictions.csv: open its test split first (python -m training.evaluate --run {path}), or restore the file if it was opened before"
        ) from None


def check_same_task(a: Predictions, b: Predictions) -> None:
    """Check that both runs predicted the same: scores, or the same classes.

    Raises:
        UserError: they did not.
    """
    if a.task is not b.task or a.classes != b.classes:
        raise UserError(
            f"{a.name} and {b.name} predict different things (scores or classes): compare runs of methods with the same task and classes"
        )


def check_comparable(a: Predictions, b: Predictions) -> None:
    """Check that both runs predicted the same for the same actions, with the same truth.

    Raises:
        UserError: they did not.
    """
    check_same_task(a, b)
    if a.keys != b.keys or not np.array_equal(a.truth.values, b.truth.values):
        shared = len(set(a.keys) & set(b.keys))
        raise UserError(
            f"{a.name} was tested on {len(a.keys)} actions and {b.name} on {len(b.keys)}, {shared} of them in common: compare runs with the same test split and annotations"
        )


def comparison(a: Predictions, b: Predictions) -> str:
    """A table of two runs, see Task.comparison."""
    return "\n".join(a.task.comparison(a, b))


def main(argv: Sequence[str]) -> None:
    if not argv or {"-h", "--help"} & set(argv):
        print(__doc__)
        if argv:
            return
    if len(argv) < 2 or any(name.startswith("-") for name in argv):
        raise UserError("give two run folders or more: python -m training.compare runs/a runs/b")
    first, *others = (predictions_of(Path(name)) for name in argv)
    for other in others:
        check_comparable(first, other)
    print("\n\n".join(comparison(first, other) for other in others))


if __name__ == "__main__":
    run(main)
