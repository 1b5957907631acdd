"""The task of classification: one class for each action. Validation chooses by accuracy.

Intervals: Wilson's for the accuracy (E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA
1927), percentile bootstrap for macro F1. Two runs are compared by the exact test of McNemar (Psychometrika 1947) and a paired
bootstrap.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_preparation.actions import Action, list_names
from training.html_report.content import ExampleTexts, Picture, Section, Table
from training.html_report.figures import GroupRow, confusion, extreme, groups, mean_true_over_predicted
from training.metrics import RESAMPLES, wilson_interval
from training.plots import new_figure, save_figure
from training.power import about, actions_for_accuracies
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

_PREFIX = "probability_"  # of the columns with the probability of each class
_MOST_LISTED = 12  # classes in the lines of a result
_MOST_NUMBERED = 30  # classes; a larger confusion matrix has no numbers


# ------------------------------------------------------------------------------------------------------------ metrics


def confusion_matrix(predicted: np.ndarray, true: np.ndarray, classes: int) -> np.ndarray:
    """Counts (K, K) int: row = true class, column = predicted class. Both inputs are (A,) class indices."""
    return np.bincount(true * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def macro_f1(counts: np.ndarray) -> np.ndarray:
    """Mean F1 over the classes that occur, true or predicted: (..., K, K) confusion matrices -> (...)."""
    correct = np.diagonal(counts, axis1=-2, axis2=-1).astype(np.float64)
    occurrences = counts.sum(axis=-1) + counts.sum(axis=-2)  # 2 correct + all errors with this class
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.nanmean(np.where(occurrences > 0, 2 * correct / occurrences, np.nan), axis=-1)


def recall(counts: np.ndarray) -> np.ndarray:
    """The fraction of each class that is predicted as that class: (K, K) -> (K,); NaN for a class that does not occur."""
    with np.errstate(invalid="ignore"):
        return np.diagonal(counts) / counts.sum(axis=1)


def mcnemar(only_a: int, only_b: int) -> float:
    """P value of McNemar's exact test, two-sided. The arguments count actions that only one of two runs classifies
    correctly."""
    n, fewer = only_a + only_b, min(only_a, only_b)
    # the sum of binomial probabilities for p = 1/2, with integers of any size
    ways = tail = 1
    for k in range(fewer):
        ways = ways * (n - k) // (k + 1)  # n choose k + 1
        tail += ways
    return min(1.0, 2 * tail / 2**n)


def _f1_of_resamples(predicted: np.ndarray, true: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Macro F1 of bootstrap samples: weights (R, A), how often each action occurs in each -> (R,)."""
    classes = int(max(predicted.max(), true.max())) + 1
    is_true, is_predicted = (np.eye(classes)[values] for values in (true, predicted))  # (A, K)
    correct = weights @ (is_true * is_predicted)  # (R, K)
    occurrences = weights @ (is_true + is_predicted)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.nanmean(np.where(occurrences > 0, 2 * correct / occurrences, np.nan), axis=1)


def _resample_weights(count: int, seed: int = 0) -> np.ndarray:
    """Bootstrap samples of `count` actions as (RESAMPLES, count) float64: how often each action occurs."""
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), RESAMPLES).astype(np.float64)


def _percentiles(values: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def label_baselines(train: np.ndarray, test: np.ndarray, classes: int) -> dict[str, dict[str, float]]:
    """Metrics on the test actions of predictors that know only how often each class occurs in training.

    "majority" always predicts the most frequent class. "prior" draws a class with the training frequencies; its
    accuracy is the expected one, and its macro F1 is that of the expected confusion matrix.
    """
    prior = np.bincount(train, minlength=classes) / len(train)
    support = np.bincount(test, minlength=classes)
    always = np.zeros(classes)
    always[prior.argmax()] = 1
    return {
        name: {
            "accuracy": float(support @ chances / len(test)),
            "macro_f1": float(macro_f1(support[:, None] * chances[None, :])),
        }
        for name, chances in (("majority", always), ("prior", prior))
    }


# ----------------------------------------------------------------------------------------------------- sections of a page


def _classes_section(counts: np.ndarray, classes: Sequence[str]) -> Section:
    """The confusion matrix (K, K) and the recall of each class."""
    rows = [
        GroupRow(name, int(own.sum()), float(own[k] / own.sum()), wilson_interval(int(own[k]), int(own.sum())))
        for k, (name, own) in enumerate(zip(classes, counts, strict=True))
        if own.sum()
    ]
    kept = extreme(rows, lowest=True)
    worst = min(rows, key=lambda row: row.value or 0)
    few = f" Of {len(rows)} classes, the {len(kept)} with the lowest recall are shown." if len(kept) < len(rows) else ""
    pictures = [
        Picture(
            confusion(counts, classes),
            f"Confusion matrix of {len(classes)} classes and {counts.sum()} test actions; {np.trace(counts)} are on the diagonal.",
            "Rows are true classes, columns predicted ones; dark cells off the diagonal are what the network confuses.",
            wide=len(classes) > 12,
        ),
        Picture(
            groups(kept, "recall", "recall", line=float(np.trace(counts) / counts.sum()), line_label="accuracy of all"),
            f"Recall of each class: lowest for {worst.name} with {worst.value:.2f}.",
            f"Recall by class (number of actions) with Wilson's 95 % interval.{few}",
        ),
    ]
    return Section("Classes", pictures)


# ---------------------------------------------------------------------------------------------------------- the task


class LabelTask(Task):
    """`predicted` is {"probability": (A, K)}: a probability for each class."""

    metric = Metric("accuracy", "accuracy", "acc", "Accuracy", "accuracy")
    logged = (Column("accuracy", "accuracy", 4), Column("macro_f1", "macro F1", 4))
    table = (Column("accuracy", "accuracy", 3), Column("macro_f1", "macro F1", 3))
    plot_file = "confusion.png"

    def faults(self, actions: Sequence[Action], classes: Sequence[str]) -> list[str]:
        if len(classes) < 2:
            return [
                f"the data set has {len(classes)} classes and classification needs two or more: give annotations with class labels, or choose another --method"
            ]
        faults = []
        if without := [action.key for action in actions if action.label is None]:
            faults.append(
                f"{len(without)} actions have no class label ({list_names(without)}): label them, or leave them out of the lists"
            )
        outside = [a for a in actions if a.label is not None and not 0 <= a.label < len(classes)]
        if outside:
            labels = " ".join(map(str, sorted({action.label for action in outside if action.label is not None})))
            faults.append(
                f"{len(outside)} actions ({list_names(a.key for a in outside)}) have labels outside 0 to {len(classes) - 1} ({labels}): correct them, or the classes ({', '.join(classes)})"
            )
        return faults

    def truth(self, actions: Sequence[Action]) -> Truth:
        labels = np.array([action.need("label") for action in actions], np.int64)
        return Truth(labels, [action.kind for action in actions])

    def metrics(self, predicted: Arrays, truth: Truth) -> dict[str, float]:
        counts = self._confusion(predicted, truth)
        return {"accuracy": float(np.trace(counts) / counts.sum()), "macro_f1": float(macro_f1(counts))}

    @staticmethod
    def _confusion(predicted: Arrays, truth: Truth) -> np.ndarray:
        probability_AK = predicted["probability"]
        return confusion_matrix(probability_AK.argmax(axis=1), truth.values, probability_AK.shape[1])

    def mean_of_views(self, predicted: Arrays, average: str) -> Arrays:
        if average == "probability":
            return super().mean_of_views(predicted, average)
        # logits are the logarithms of probabilities plus a constant, which the softmax removes
        smallest = np.finfo(np.float32).smallest_subnormal  # of softmax in float32
        logits_AK = np.log(np.maximum(predicted["probability"], smallest)).mean(axis=1)
        powers = np.exp(logits_AK - logits_AK.max(axis=1, keepdims=True))
        return {"probability": powers / powers.sum(axis=1, keepdims=True)}

    def warning(self, predicted: Arrays, truth: Truth) -> str | None:
        if len(set(predicted["probability"].argmax(axis=1).tolist())) > 1:
            return None
        return "all actions get the same class: the model does not distinguish them (train longer, raise --learning_rate, or give --balance True)"

    def summary(
        self, predicted: Arrays, known: Sequence[Action], test: Sequence[Action], classes: Sequence[str]
    ) -> dict[str, Any]:
        truth, chosen = self.truth(test), predicted["probability"].argmax(axis=1)
        counts = self._confusion(predicted, truth)
        resampled = _f1_of_resamples(chosen, truth.values, _resample_weights(len(test)))
        return {
            "classes": list(classes),
            "test": {
                "actions": len(test),
                **self.metrics(predicted, truth),
                "accuracy_ci95": wilson_interval(int(np.trace(counts)), len(test)),
                "macro_f1_ci95": _percentiles(resampled),
                "warning": self.warning(predicted, truth),
                "confusion": counts.tolist(),
            },
            "baselines": label_baselines(self.truth(known).values, truth.values, len(classes)),
            "groups": {
                "class": {
                    name: {"actions": int(row.sum()), "recall": float(share)}
                    for name, row, share in zip(classes, counts, recall(counts), strict=True)
                }
            },
        }

    def result_lines(self, summary: Mapping[str, Any]) -> list[str]:
        test, more = summary["test"], summary["method_metrics"]
        intervals = {key: " to ".join(map(number_text, test[f"{key}_ci95"])) for key in ("accuracy", "macro_f1")}
        lines = [
            f"Test accuracy {number_text(test['accuracy'])} (95 % interval {intervals['accuracy']}), macro F1 {number_text(test['macro_f1'])} ({intervals['macro_f1']}), "
            f"{test['actions']} actions, {origin_text(summary)}"
        ]
        lines += [f"  {remark}" for remark in self.remarks(summary)]
        if more:
            lines.append(f"  {', '.join(f'{name} {number_text(value)}' for name, value in more.items())}")
        by_recall = sorted(summary["groups"]["class"].items(), key=lambda item: item[1]["recall"] or 0)
        if len(by_recall) > _MOST_LISTED:
            lines.append(f"  the {_MOST_LISTED} classes of lowest recall (all are in summary.json):")
        lines += [
            f"  {name}: recall {number_text(found['recall'])} of {found['actions']} actions"
            for name, found in by_recall[:_MOST_LISTED]
        ]
        return lines + [
            f"  without video, {name}: accuracy {number_text(values['accuracy'])}, macro F1 {number_text(values['macro_f1'])}"
            for name, values in summary["baselines"].items()
        ]

    def remarks(self, summary: Mapping[str, Any]) -> list[str]:
        test = summary["test"]
        found = [test["warning"]] if test["warning"] else []
        if test["accuracy_ci95"][0] <= summary["baselines"]["majority"]["accuracy"]:
            found.append("These actions do not show that the model is better than always predicting the largest class.")
        return found

    def draw(
        self, predicted: Arrays, actions: Sequence[Action], classes: Sequence[str], path: Path, title: str
    ) -> None:
        """The confusion matrix: the colour is the share of the true class, the numbers are counts."""
        draw_confusion(self._confusion(predicted, self.truth(actions)), classes, path, title)

    def columns(self, predicted: Arrays, actions: Sequence[Action], classes: Sequence[str]) -> dict[str, Sequence[Any]]:
        probability_AK = predicted["probability"]
        kinds = self.truth(actions).kinds
        return {
            **({"kind": kinds} if any(kinds) else {}),
            "true_class": [classes[action.need("label")] for action in actions],
            "predicted_class": [classes[k] for k in probability_AK.argmax(axis=1)],
            **{f"{_PREFIX}{name}": [f"{p:.6f}" for p in probability_AK[:, k]] for k, name in enumerate(classes)},
        }

    def can_read(self, columns: Sequence[str]) -> bool:
        return "true_class" in columns

    def read(self, rows: Sequence[Mapping[str, str]]) -> tuple[Truth, Arrays, tuple[str, ...]]:
        classes = tuple(name.removeprefix(_PREFIX) for name in rows[0] if name.startswith(_PREFIX))
        true = np.array([classes.index(row["true_class"]) for row in rows])
        probability_AK = np.array([[float(row[f"{_PREFIX}{name}"]) for name in classes] for row in rows])
        if not np.isfinite(probability_AK).all():
            raise ValueError("a probability is not a finite number")
        # six decimal places may turn the largest probability into one of two equal ones
        chosen = [classes.index(row["predicted_class"]) for row in rows]
        probability_AK[np.arange(len(rows)), chosen] += 1e-6
        return Truth(true, [row.get("kind", "") for row in rows]), {"probability": probability_AK}, classes

    def gains(self, a: Predictions, b: Predictions) -> dict[str, np.ndarray]:
        """How much larger each metric of `b` is in bootstrap samples of the actions: (RESAMPLES,) by key."""
        true = a.truth.values
        chosen_a, chosen_b = (run.predicted["probability"].argmax(axis=1) for run in (a, b))
        weights = _resample_weights(len(true))
        statistics: dict[str, Callable[[np.ndarray], np.ndarray]] = {
            "accuracy": lambda chosen: weights @ (chosen == true) / len(true),
            "macro_f1": lambda chosen: _f1_of_resamples(chosen, true, weights),
        }
        return {key: statistics[key](chosen_b) - statistics[key](chosen_a) for key, _, _ in self.logged}

    def differences(self, a: Predictions, b: Predictions, gains: Mapping[str, np.ndarray]) -> list[Difference]:
        """Each metric of both, with the interval of its gain."""
        of_a, of_b = (self.metrics(run.predicted, run.truth) for run in (a, b))
        return [Difference(title, of_a[key], of_b[key], _percentiles(gains[key])) for key, title, _ in self.logged]

    def values(self, predicted: Arrays, classes: Sequence[str]) -> list[dict[str, Any]]:
        return [
            {
                "class": classes[int(row.argmax())],
                "probability": float(row.max()),
                "probabilities": dict(zip(classes, row.tolist(), strict=True)),
            }
            for row in predicted["probability"]
        ]

    def misfits(self, predicted: Arrays, truth: Truth) -> np.ndarray:
        """1 - probability of the true class ("Least Ambiguous Set-Valued Classifiers", Sadinle, Lei and Wasserman, JASA 2019)."""
        return 1 - predicted["probability"][np.arange(len(truth.values)), truth.values]

    def region(self, predicted: Arrays, limits: np.ndarray, classes: Sequence[str]) -> list[dict[str, Any]]:
        pairs = zip(predicted["probability"], limits.tolist(), strict=True)
        return [
            {} if math.isinf(limit) else {"classes": [classes[k] for k in np.flatnonzero(1 - row <= limit).tolist()]}
            for row, limit in pairs
        ]

    def limit_text(self, least: float, greatest: float) -> str:
        return f"all classes of probability {1 - greatest:.3f} or more"

    def report_sections(
        self, test: Predictions, summary: Mapping[str, Any], limits: np.ndarray | None
    ) -> list[Section]:
        counts = np.array(summary["test"]["confusion"])
        return [_classes_section(counts, test.classes)]

    def calibration_picture(self, test: Predictions) -> Picture:
        probability_AK = test.predicted["probability"]
        confidence, correct = probability_AK.max(axis=1), probability_AK.argmax(axis=1) == test.truth.values
        means = f"Mean probability {confidence.mean():.2f}, accuracy {correct.mean():.2f}"
        return Picture(
            mean_true_over_predicted(
                confidence, correct.astype(np.float64), "probability of the predicted class", "share that is correct"
            ),
            f"Share of correct predictions over their probability. {means}.",
            f"Ten groups of equal size by probability. {means}: below the dashed line the network is too certain.",
        )

    def example_texts(self, test: Predictions) -> ExampleTexts:
        probability_AK, true = test.predicted["probability"], test.truth.values
        own = probability_AK[np.arange(len(true)), true]
        lines = [
            f"true {test.classes[t]}, predicted {test.classes[c]}, probability of the true class {p:.2f}"
            for t, c, p in zip(true, probability_AK.argmax(axis=1), own, strict=True)
        ]
        return ExampleTexts(lines, "Most certain of the true class", "Least certain of the true class")

    def compare(self, a: Predictions, b: Predictions) -> Comparison:
        true = a.truth.values
        chosen_a, chosen_b = (run.predicted["probability"].argmax(axis=1) for run in (a, b))
        only_a, only_b = (
            int(((this == true) & (other != true)).sum())
            for this, other in ((chosen_a, chosen_b), (chosen_b, chosen_a))
        )
        gains = self.gains(a, b)
        of_metric = gains[self.metric.key]
        better = float(np.mean(of_metric > 0) + np.mean(of_metric == 0) / 2)
        count = len(true)
        mcnemar_text = f"only A is right for {only_a} actions, only B for {only_b}: McNemar's exact test gives p = {mcnemar(only_a, only_b):.3g}"
        needed = actions_for_accuracies(only_a / count, only_b / count)
        return Comparison(self.differences(a, b, gains), better, needed, [mcnemar_text])

    def claims(self, value: float) -> Table | None:
        gains = [gain for gain in (0.01, 0.02, 0.05, 0.1) if value - gain > 0]
        shares = [share for share in (0.05, 0.1, 0.2) if share >= gains[0]] if gains else []
        rows = [
            [f"{value:.2f} against {value - gain:.2f}"]
            + [
                "impossible" if gain > share else about(actions_for_accuracies((share + gain) / 2, (share - gain) / 2))
                for share in shares
            ]
            for gain in gains
        ]
        head = ["accuracy", *(f"{share:.0%} differ" for share in shares)]
        caption = "Test actions that McNemar's test needs to show the difference of two runs, if it is real, in 8 of 10 test splits (level 5 %, two-sided), by the share of the actions that only one of the runs classifies correctly."
        return Table(head, rows, caption) if rows else None


def draw_confusion(counts: np.ndarray, classes: Sequence[str], path: Path, title: str) -> None:
    """Draw a confusion matrix (K, K) of counts as PNG; a row is a true class, and its colours are shares of that row."""
    number = len(classes)
    with np.errstate(invalid="ignore"):
        shares = np.nan_to_num(counts / counts.sum(axis=1, keepdims=True))
    side = min(max(4.0, 0.5 * number), 16.0)  # inches
    figure = new_figure(side + 2.5, side + 1.5)
    axes = figure.subplots()
    figure.suptitle(textwrap.fill(title, int(14 * (side + 2.5))), fontsize=9)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    names = [name if len(name) <= 30 else f"{name[:17]}…{name[-12:]}" for name in classes]
    size = 9 if number <= 12 else 7 if number <= _MOST_NUMBERED else 5
    slanted: dict[str, Any] = {}
    if sum(map(len, names)) > 12 * side:
        slanted = dict(rotation=90 if number > _MOST_NUMBERED else 40, ha="right", rotation_mode="anchor")
        slanted |= dict(va="center") if number > _MOST_NUMBERED else {}
    axes.set_xticks(range(number), names, fontsize=size, **slanted)
    totals = counts.sum(axis=1)
    axes.set_yticks(range(number), [f"{name} ({n})" for name, n in zip(names, totals, strict=True)], fontsize=size)
    axes.set(xlabel="predicted class", ylabel="true class (number of actions)")
    if number <= _MOST_NUMBERED:
        for i, j in np.ndindex(number, number):
            if counts[i, j]:
                colour = "white" if shares[i, j] > 0.6 else "black"
                axes.text(j, i, str(counts[i, j]), ha="center", va="center", color=colour, fontsize=size)
    save_figure(figure, path)


TASK = LabelTask()
