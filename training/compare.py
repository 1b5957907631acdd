"""Compare evaluated runs on the same test dives with a paired bootstrap: is run B better than run A?

    python -m training.compare runs/a runs/b [more runs, each compared with the first]

"B better" is the fraction of resamples of the dives in which B has the higher Spearman correlation. If the 95 % interval
contains 0, these dives do not show a difference. The interval does not cover the variation between seeds: train several.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_preparation.actions import ActionKey, sort_key, video_name
from data_preparation.common.command_line import run
from data_preparation.common.errors import UserError
from training.metrics import paired_interval, relative_l2_rows, score_metrics, spearman_rows
from training.runtime.run_folder import RunFolder


@dataclass(frozen=True)
class Predictions:
    """The content of a run's predictions.csv: dives, true and predicted final scores in points."""

    name: str
    dives: list[ActionKey]
    true: np.ndarray
    predicted: np.ndarray


def read_predictions(path: Path) -> Predictions:
    """Read the predictions of a run folder, ordered by dive.

    Raises:
        UserError: predictions.csv is missing or damaged.
    """
    file = RunFolder(path).predictions_file
    try:
        rows = list(csv.DictReader(file.read_text().splitlines()))
        if len({(row["video"], row["dive"]) for row in rows}) < max(len(rows), 3):
            raise ValueError("fewer than three dives, or a dive occurs twice")
        rows.sort(key=lambda row: sort_key(_key(row)))
        if not all(math.isfinite(float(row[name])) for row in rows for name in ("true_score", "predicted_score")):
            raise ValueError("a score is not a finite number")
        return Predictions(
            path.name,
            list(map(_key, rows)),
            np.array([float(row["true_score"]) for row in rows]),
            np.array([float(row["predicted_score"]) for row in rows]),
        )
    except OSError:
        raise UserError(
            f"{path} has no predictions.csv: open its test split first (python -m training.evaluate --run {path}), or restore the file if it was opened before"
        ) from None
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{file} is damaged ({type(error).__name__}: {error}): restore it from a copy, because a test split is opened only once"
        ) from None


def _key(row: dict[str, str]) -> ActionKey:
    return (video_name(row["video"]), int(row["dive"]))


def check_comparable(a: Predictions, b: Predictions) -> None:
    """Check that both runs scored the same dives with the same true scores.

    Raises:
        UserError: they did not.
    """
    if a.dives != b.dives or not np.array_equal(a.true, b.true):
        shared = len(set(a.dives) & set(b.dives))
        raise UserError(
            f"{a.name} was tested on {len(a.dives)} dives and {b.name} on {len(b.dives)}, {shared} of them in common: compare runs with the same test split and annotations"
        )


def comparison(a: Predictions, b: Predictions) -> str:
    """A table of two runs: each metric of A and B, the difference B - A and its 95 % interval."""
    metrics_a, metrics_b = (score_metrics(p.predicted, p.true) for p in (a, b))
    lines = [
        f"A = {a.name}, B = {b.name}: {len(a.dives)} test dives, paired bootstrap",
        f"{'':14}{'A':>10}{'B':>10}{'B - A':>10}   95 % interval",
    ]
    win_rate = math.nan
    for label, name, rows in (("Spearman", "spearman", spearman_rows), ("R-l2 x100", "r_l2_x100", relative_l2_rows)):
        low, high, greater = paired_interval(a.predicted, b.predicted, a.true, rows)
        if name == "spearman":
            win_rate = greater
        x, y = metrics_a[name], metrics_b[name]
        lines.append(f"{label:14}{x:10.4f}{y:10.4f}{y - x:+10.4f}   {low:+.4f} to {high:+.4f}")
    lines.append(f"B better (Spearman) in {win_rate:.1%} of the resamples")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> None:
    if not argv or {"-h", "--help"} & set(argv):
        print(__doc__)
        if argv:
            return
    if len(argv) < 2 or any(name.startswith("-") for name in argv):
        raise UserError("give two run folders or more: python -m training.compare runs/a runs/b")
    first, *others = (read_predictions(Path(name)) for name in argv)
    for other in others:
        check_comparable(first, other)
    print("\n\n".join(comparison(first, other) for other in others))


if __name__ == "__main__":
    run(main)
