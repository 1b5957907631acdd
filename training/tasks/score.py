"""The task of scoring: a final score in points for each action. Validation chooses by Spearman's rank correlation.

Where the actions have more than one kind (AQA-7's sports), each kind has its own metrics. The correlations are then
averaged over the kinds with Fisher's z-transformation, all other metrics with the plain mean.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_preparation.actions import Action, list_names
from training.html_report.content import ExampleTexts, Picture, Section, Table
from training.html_report.figures import (
    GroupRow,
    extreme,
    groups,
    histogram,
    mean_true_over_predicted,
    predicted_over_true,
)
from training.metrics import (
    LARGEST_CORRELATION,
    RowsStatistic,
    baselines,
    bootstrap_interval,
    constant_prediction_warning,
    fisher_mean,
    group_metrics,
    mean_correlation,
    paired_interval,
    predicted_range,
    relative_l2_rows,
    score_metrics,
    spearman,
    spearman_rows,
)
from training.plots import new_figure, save_figure
from training.power import about, actions_for_correlations
from training.tasks.base import (
    Arrays,
    Column,
    Comparison,
    Difference,
    Metric,
    Predictions,
    Task,
    Truth,
    number_text,
    origin_text,
)

_LARGEST_SCORE = 1e9  # read from a file
_CORRELATIONS = ("spearman", "pearson")


def kinds_of(truth: Truth) -> dict[str, np.ndarray]:
    """The indices of the actions of each kind; empty if all are of one kind.

    Kinds with fewer than two different true scores, which have no correlation, are left out.
    """
    names = sorted(set(truth.kinds))
    if len(names) < 2:
        return {}
    kinds = np.asarray(truth.kinds, str)
    rows = {name: np.flatnonzero(kinds == name) for name in names}
    return {name: own for name, own in rows.items() if np.ptp(truth.values[own]) > 0}


def one_kind(truth: Truth, rows: np.ndarray) -> Truth:
    """What is true of the actions in some rows, as of one kind."""
    return Truth(truth.values[rows], [""] * len(rows), None if truth.spans is None else truth.spans[rows])


def key_of_kind(key: str, kind: str) -> str:
    """The name of a metric of one kind; of all actions, if there is one kind only, whose name is empty."""
    return f"{key}_{kind.replace(' ', '_')}" if kind else key


L2_OF_100 = "l2_of_100"


def l2_of_100(predicted: np.ndarray, truth: Truth) -> float:
    """Mean squared error on the scale on which the range of a kind is 0 to 100, as published on AQA-7 ("L2" of CoRe, ICCV 2021)."""
    return float(np.mean(((predicted - truth.values) / truth.spans * 100) ** 2))


def _l2_text(found: Mapping[str, Any]) -> str:
    return f", L2 (0 to 100) {found[L2_OF_100]:.2f}" if L2_OF_100 in found else ""


# --------------------------------------------------------------------------------------------------------- intervals

_STATISTICS: dict[str, RowsStatistic] = {"spearman": spearman_rows, "r_l2_x100": relative_l2_rows}


def _mean_over_kinds(key: str, values: Sequence[float] | Sequence[np.ndarray]) -> np.ndarray:
    """Mean of a metric over the first axis (kinds): with Fisher's z-transformation for correlations, else plain."""
    stacked = np.asarray(values, np.float64)
    return fisher_mean(stacked) if key in _CORRELATIONS else stacked.mean(axis=0)


def _with_means(by_kind: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The mean of each metric over the kinds, then those of `_STATISTICS` and the L2 of each kind.

    A correlation that is undefined, because all predictions of a kind are equal, counts as 0.
    """
    means: dict[str, float] = {}
    of_kinds: dict[str, float] = {}
    for key in next(iter(by_kind.values())):
        values = [found[key] for found in by_kind.values()]
        means[key] = mean_correlation(values) if key in _CORRELATIONS else float(np.mean(values))
        if key in (*_STATISTICS, L2_OF_100):
            of_kinds |= {key_of_kind(key, kind): found[key] for kind, found in by_kind.items()}
    return {**means, **of_kinds}


def _by_kind(truth: Truth, key: str) -> tuple[np.ndarray, list[int], RowsStatistic]:
    """What a bootstrap of metric `key` needs: the indices of the actions ordered by kind, the size of each kind, and the
    statistic of arrays in that order. Actions are resampled within their kind."""
    rows = list(kinds_of(truth).values()) or [np.arange(len(truth.values))]
    ends = np.cumsum([len(own) for own in rows])[:-1]

    def statistic(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
        parts = zip(np.split(predicted, ends, axis=1), np.split(true, ends, axis=1), strict=True)
        found = [_STATISTICS[key](p, y) for p, y in parts]
        return found[0] if len(found) == 1 else _mean_over_kinds(key, found)

    return np.concatenate(rows), [len(own) for own in rows], statistic


def interval(predicted: np.ndarray, truth: Truth, key: str) -> tuple[float, float]:
    """95 % bootstrap interval of "spearman" or "r_l2_x100"; with several kinds, of their mean."""
    order, sizes, statistic = _by_kind(truth, key)
    return bootstrap_interval(predicted[order], truth.values[order], statistic, sizes=sizes)


# ----------------------------------------------------------------------------------------------------- sections of a page

_AGREEMENTS = (0.9, 0.95, 0.98)  # of two runs' predictions with each other
_CLAIMS_CAPTION = "Test actions that a paired test needs to show the difference of two runs, if it is real, in 8 of 10 test splits (level 5 %, two-sided). Agreement is the correlation of the two runs' predictions with each other; where it says impossible, the three correlations cannot occur together."


def _claim_text(a: float, b: float, between: float) -> str:
    needed = actions_for_correlations(a, b, between)
    return "impossible" if needed is None else about(needed)


def _scores_section(
    true: np.ndarray, scores: np.ndarray, kinds: Mapping[str, np.ndarray], limits: np.ndarray | None
) -> Section:
    band = "" if limits is None else " The band is the 90 % interval of the judged score (coverage: below)."
    error = scores - true
    pictures = [
        Picture(
            predicted_over_true(true, scores, kinds, limits),
            f"Scatter plot of {len(true)} test actions: predicted over judged scores, which are from {true.min():.1f} to {true.max():.1f} points.",
            f"Each point is a test action; on the dashed line prediction and judges agree.{band}",
        ),
        Picture(
            histogram(error, "predicted minus judged score (points)"),
            f"Histogram of the errors: mean {error.mean():+.2f}, standard deviation {error.std():.2f} points.",
            f"Errors: mean {error.mean():+.2f} points, standard deviation {error.std():.2f}, largest {np.abs(error).max():.1f}. A mean far from 0 is a bias.",
        ),
    ]
    return Section("Predicted and judged scores", pictures)


def _groups_section(summary: Mapping[str, Any]) -> Section:
    """Mean absolute error and bias of each group of summary.json."""
    pictures = []
    for grouping, found in summary["groups"].items():
        rows = [GroupRow(n, g["dives"], g["mae"], second=g.get("bias")) for n, g in found.items()]
        shown = extreme(rows)
        worst = max(rows, key=lambda row: row.value or 0)
        few = (
            f" Of {len(rows)} groups, the {len(shown)} with the largest error are shown."
            if len(shown) < len(rows)
            else ""
        )
        has_bias = any(row.second is not None for row in rows)
        bias = " Bias is the mean of predicted minus judged: a diamond right of 0 means too high." if has_bias else ""
        pictures.append(
            Picture(
                groups(
                    shown,
                    "points",
                    "mean absolute error",
                    "bias" if has_bias else "",
                    summary["test"]["mae"],
                    "error of all test actions",
                ),
                f"Mean absolute error by {grouping}: largest for {worst.name} with {worst.value:.2f} points.",
                f"By {grouping} (number of actions).{bias}{few}",
            )
        )
    return Section("Error by group", pictures, text="" if pictures else "The test actions have no groups.")


# ---------------------------------------------------------------------------------------------------------- the task


class ScoreTask(Task):
    metric = Metric(
        "spearman", "Spearman", "rho", "Spearman correlation of the final score", "Spearman correlation",
        undefined="all predicted (or all true) scores are equal",
    )  # fmt: skip
    logged = (Column("spearman", "Spearman", 4), Column("r_l2_x100", "R-l2 x100", 3))
    table = (Column("spearman", "Spearman", 3), Column("r_l2_x100", "R-l2 x100", 2), Column("mae", "MAE (points)", 2))
    plot_file = "scores.png"
    errors = frozenset({"r_l2_x100", "mae"})

    def faults(self, actions: Sequence[Action], classes: Sequence[str]) -> list[str]:
        without = [action.key for action in actions if action.final_score is None]
        if not without:
            return []
        return [
            f"{len(without)} actions have no final score ({list_names(without)}): add their scores, or choose a --method that needs none"
        ]

    def truth(self, actions: Sequence[Action]) -> Truth:
        scores = np.array([action.need("final_score") for action in actions], np.float64)
        spans = None
        if any(action.difficulty is None for action in actions) and all(action.rules for action in actions):
            spans = np.array([action.rules.high - action.rules.low for action in actions if action.rules], np.float64)
        return Truth(scores, [action.kind for action in actions], spans)

    def metrics(self, predicted: Arrays, truth: Truth) -> dict[str, float]:
        kinds = kinds_of(truth)
        if not kinds:
            found = score_metrics(predicted["score"], truth.values)
            return found if truth.spans is None else {**found, L2_OF_100: l2_of_100(predicted["score"], truth)}
        by_kind = {
            n: self.metrics({"score": predicted["score"][rows]}, one_kind(truth, rows)) for n, rows in kinds.items()
        }
        return _with_means(by_kind)

    def warning(self, predicted: Arrays, truth: Truth) -> str | None:
        scores, kinds = predicted["score"], kinds_of(truth) or {"": np.arange(len(truth.values))}
        return constant_prediction_warning({kind: predicted_range(scores[rows]) for kind, rows in kinds.items()})

    def summary(
        self, predicted: Arrays, known: Sequence[Action], test: Sequence[Action], classes: Sequence[str]
    ) -> dict[str, Any]:
        truth, scores = self.truth(test), predicted["score"]
        groups: dict[str, Any] = group_metrics(scores, test)
        if kinds := kinds_of(truth):
            groups["kind"] = {n: self._of_kind(scores[rows], one_kind(truth, rows)) for n, rows in kinds.items()}
        return {
            "test": {
                "dives": len(test),
                **self.metrics(predicted, truth),
                "predicted_range": max(
                    predicted_range(scores[rows]) for rows in list(kinds.values()) or [np.arange(len(scores))]
                ),
                "spearman_ci95": interval(scores, truth, "spearman"),
                "r_l2_x100_ci95": interval(scores, truth, "r_l2_x100"),
            },
            "baselines": self._baselines(known, test),
            "groups": groups,
        }

    def _of_kind(self, predicted: np.ndarray, truth: Truth) -> dict[str, Any]:
        intervals = {f"{key}_ci95": interval(predicted, truth, key) for key in _STATISTICS}
        metrics = self.metrics({"score": predicted}, truth)
        return {"dives": len(predicted), **metrics, "predicted_range": predicted_range(predicted), **intervals}

    def _baselines(self, known: Sequence[Action], test: Sequence[Action]) -> dict[str, dict[str, float]]:
        """training.metrics.baselines; with several kinds, each predicts within a kind, and the metrics are averaged."""
        kinds = kinds_of(self.truth(test))
        if not kinds:
            return baselines(known, test)
        of_kinds = {
            kind: baselines([action for action in known if action.kind == kind] or known, [test[i] for i in rows])
            for kind, rows in kinds.items()
        }
        shared = [name for name in next(iter(of_kinds.values())) if all(name in found for found in of_kinds.values())]
        return {name: _with_means({kind: found[name] for kind, found in of_kinds.items()}) for name in shared}

    def result_lines(self, summary: Mapping[str, Any]) -> list[str]:
        test, more = summary["test"], summary["method_metrics"]
        low, high = (number_text(value) for value in test["spearman_ci95"])
        kinds = summary["groups"].get("kind", {})
        mean = f" (Fisher-z mean of {len(kinds)} kinds)" if kinds else ""
        lines = [
            f"Test Spearman {number_text(test['spearman'])}{mean} (95 % interval {low} to {high}), R-l2 x100 {number_text(test['r_l2_x100'])}{_l2_text(test)}, "
            f"{test['dives']} actions, {origin_text(summary)}"
        ]
        for name, found in kinds.items():
            low, high = (number_text(value) for value in found["spearman_ci95"])
            lines.append(
                f"  {name}: Spearman {number_text(found['spearman'])} (95 % interval {low} to {high}), R-l2 x100 {number_text(found['r_l2_x100'])}{_l2_text(found)}, {found['dives']} actions"
            )
        lines += [f"  {remark}" for remark in self.remarks(summary)]
        if more:
            lines.append(f"  {', '.join(f'{name} {number_text(value)}' for name, value in more.items())}")
        return lines + [
            f"  without video, {name}: Spearman {number_text(values['spearman'])}, R-l2 x100 {number_text(values['r_l2_x100'])}"
            for name, values in summary["baselines"].items()
        ]

    def remarks(self, summary: Mapping[str, Any]) -> list[str]:
        test, kinds, found_remarks = summary["test"], summary["groups"].get("kind", {}), []
        if undefined := [name for name, found in kinds.items() if found["spearman"] is None]:
            found_remarks.append(
                f"The predictions of {', '.join(undefined)} are all the same: Spearman counts as 0 in the mean."
            )
        if perfect := [name for name, found in kinds.items() if abs(found["spearman"] or 0) > LARGEST_CORRELATION]:
            found_remarks.append(
                f"A Spearman of 1 ({', '.join(perfect)}) counts as {LARGEST_CORRELATION:g} in the Fisher-z mean."
            )
        of_kinds = {name: found.get("predicted_range") for name, found in kinds.items()}
        if warning := constant_prediction_warning(of_kinds or {"": test.get("predicted_range")}):
            found_remarks.append(warning)
        if (test["r_l2_x100"] or 0) > (summary["baselines"]["train mean"]["r_l2_x100"] or math.inf):
            found_remarks.append("Worse than predicting the training mean: the model has not learned yet.")
        return found_remarks

    def draw(
        self, predicted: Arrays, actions: Sequence[Action], classes: Sequence[str], path: Path, title: str
    ) -> None:
        """Predicted over true final scores, coloured by difficulty if all actions have one, else by kind."""
        scores = predicted["score"]
        true = self.truth(actions).values.tolist()
        low, high = min([*true, *scores]) - 2, max([*true, *scores]) + 2
        figure = new_figure(7.5, 6.5)
        axes = figure.subplots()
        figure.suptitle(textwrap.fill(title, 110), fontsize=9)
        axes.plot([low, high], [low, high], color="black", linewidth=0.8, linestyle=":", label="predicted = true")
        difficulties = [action.difficulty for action in actions if action.difficulty is not None]
        colours: dict[str, Any] = {"c": difficulties, "cmap": "viridis"} if len(difficulties) == len(true) else {}
        if colours or not (kinds := kinds_of(self.truth(actions))):
            points = axes.scatter(true, scores, s=16, alpha=0.8, **colours)
        else:
            for kind, rows in kinds.items():
                axes.scatter(np.asarray(true)[rows], scores[rows], s=16, alpha=0.8, label=kind)
        if colours:
            figure.colorbar(points, ax=axes, label="difficulty")
        axes.set(xlabel="true final score (points)", ylabel="predicted final score (points)", aspect="equal")
        axes.set_xlim(low, high)
        axes.set_ylim(low, high)
        axes.grid(alpha=0.3)
        axes.legend(loc="upper left")
        save_figure(figure, path)

    def columns(self, predicted: Arrays, actions: Sequence[Action], classes: Sequence[str]) -> dict[str, Sequence[Any]]:
        kinds = self.truth(actions).kinds
        return {
            **({"kind": kinds} if any(kinds) else {}),
            "difficulty": [action.difficulty for action in actions],
            "true_score": [action.final_score for action in actions],
            "predicted_score": [f"{score:.6f}" for score in predicted["score"]],
        }

    def can_read(self, columns: Sequence[str]) -> bool:
        return "true_score" in columns

    def read(self, rows: Sequence[Mapping[str, str]]) -> tuple[Truth, Arrays, tuple[str, ...]]:
        true, predicted = (np.array([float(row[name]) for row in rows]) for name in ("true_score", "predicted_score"))
        if not (np.isfinite(true).all() and np.isfinite(predicted).all()):
            raise ValueError("a score is not a finite number")
        if max(np.abs(true).max(initial=0), np.abs(predicted).max(initial=0)) > _LARGEST_SCORE:
            raise ValueError(f"a score is larger than {_LARGEST_SCORE:g}, so its square cannot be computed exactly")
        return Truth(true, [row.get("kind", "") for row in rows]), {"score": predicted}, ()

    def values(self, predicted: Arrays, classes: Sequence[str]) -> list[dict[str, Any]]:
        return [{"score": float(score)} for score in predicted["score"]]

    def misfits(self, predicted: Arrays, truth: Truth) -> np.ndarray:
        return np.abs(predicted["score"] - truth.values)

    def region(self, predicted: Arrays, limits: np.ndarray, classes: Sequence[str]) -> list[dict[str, Any]]:
        pairs = zip(predicted["score"].tolist(), limits.tolist(), strict=True)
        return [{} if math.isinf(limit) else {"low": score - limit, "high": score + limit} for score, limit in pairs]

    def positions(self, predicted: Arrays) -> np.ndarray:
        return predicted["score"]

    def limit_text(self, least: float, greatest: float) -> str:
        return f"score ± {least:.1f}{'' if least == greatest else f' to {greatest:.1f}'} points"

    def report_sections(
        self, test: Predictions, summary: Mapping[str, Any], limits: np.ndarray | None
    ) -> list[Section]:
        true, scores = test.truth.values, test.predicted["score"]
        kinds = kinds_of(test.truth)
        has_band = limits is not None and not kinds and np.isfinite(limits).all()
        return [
            _scores_section(true, scores, kinds, limits if has_band else None),
            _groups_section(summary),
        ]

    def calibration_picture(self, test: Predictions) -> Picture:
        return Picture(
            mean_true_over_predicted(
                test.predicted["score"], test.truth.values, "predicted score (points)", "mean judged score (points)"
            ),
            "Mean judged score over mean predicted score in ten groups of equal size.",
            "Ten groups of equal size by predicted score. Points above the dashed line: the judges gave more than predicted.",
        )

    def example_texts(self, test: Predictions) -> ExampleTexts:
        difficulties = test.difficulties or [None] * len(test.keys)
        lines = [
            f"judged {judged:.2f}, predicted {score:.2f} ({score - judged:+.2f})"
            + ("" if difficulty is None else f", difficulty {difficulty:g}")
            for judged, score, difficulty in zip(test.truth.values, test.predicted["score"], difficulties, strict=True)
        ]
        return ExampleTexts(lines, "Nearest to the judges", "Farthest from the judges")

    def compare(self, a: Predictions, b: Predictions) -> Comparison:
        """Paired bootstrap (Efron and Tibshirani, 1993): both runs are resampled together."""
        of_a, of_b = (self.metrics(run.predicted, run.truth) for run in (a, b))
        differences, better = [], math.nan
        for key, title, _ in self.logged:
            order, sizes, statistic = _by_kind(a.truth, key)
            scores_a, scores_b = (run.predicted["score"][order] for run in (a, b))
            low, high, greater = paired_interval(scores_a, scores_b, a.truth.values[order], statistic, sizes=sizes)
            if key == self.metric.key:
                better = greater
            differences.append(Difference(title, of_a[key], of_b[key], (low, high)))
        key = self.metric.key
        needed = actions_for_correlations(of_a[key], of_b[key], self._agreement(a, b))
        return Comparison(differences, better, needed)

    @staticmethod
    def _agreement(a: Predictions, b: Predictions) -> float:
        """Spearman's correlation of the predictions of two runs with each other, the mean over the kinds."""
        rows = list(kinds_of(a.truth).values()) or [np.arange(len(a.keys))]
        return mean_correlation([spearman(a.predicted["score"][own], b.predicted["score"][own]) for own in rows])

    def claims(self, value: float) -> Table | None:
        if not 0 < value < 1:
            return None
        gains = [gain for gain in (0.005, 0.01, 0.02, 0.05) if value - gain > 0]
        rows = [
            [f"{value:.3f} against {value - gain:.3f}"]
            + [_claim_text(value, value - gain, between) for between in _AGREEMENTS]
            for gain in gains
        ]
        head = ["Spearman", *(f"agreement {between:g}" for between in _AGREEMENTS)]
        return Table(head, rows, _CLAIMS_CAPTION)


TASK = ScoreTask()
