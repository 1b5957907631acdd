"""Metrics of predicted final scores, their confidence intervals, and baselines that do not use the video.

Pure functions of float64 arrays; scores are in points.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from fractions import Fraction

import numpy as np

from data_preparation.actions import POSITIONS, Action, Dive, has_field

Scores = Sequence[float] | np.ndarray
RowsStatistic = Callable[[np.ndarray, np.ndarray], np.ndarray]  # predicted (R, N) and true (R, N) -> (R,)

LARGEST_CORRELATION = 1 - 1e-6  # in a mean over kinds or folds, which may be ordered perfectly
_CONSTANT_RANGE = 0.01  # points; judges do not distinguish smaller differences
_Z_95 = 1.959963984540054  # of the normal distribution, two-sided 95 %
RESAMPLES = 2000  # of the bootstrap; with this many the ends of an interval vary by about 1 % of its width


# NumPy instead of SciPy and scikit-learn, whose import takes a second; the results are the same to the last bit.


def average_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1 of a (N,) array; equal values share their average rank, as in scipy.stats.rankdata."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places]


def spearman(predicted: np.ndarray, true: np.ndarray) -> float:
    """Spearman's rank correlation with average ranks; NaN if either array is constant."""
    if _is_constant(predicted, true):
        return math.nan
    return float(np.corrcoef(average_ranks(predicted), average_ranks(true))[1, 0])


def pearson(predicted: np.ndarray, true: np.ndarray) -> float:
    """Pearson's correlation; NaN if either array is constant."""
    if _is_constant(predicted, true):
        return math.nan

    def normalized(values: np.ndarray) -> np.ndarray:
        centred = values - values.mean()
        largest = np.abs(centred).max()
        return centred / (largest * np.linalg.vector_norm(centred / largest))

    value = float(np.clip(np.vecdot(normalized(predicted), normalized(true)), -1, 1))
    return float(round(value)) if len(true) == 2 else value


def _is_constant(predicted: np.ndarray, true: np.ndarray) -> bool:
    """Whether a correlation is undefined: there are fewer than two values, or all values of an array are equal."""
    return len(true) < 2 or np.ptp(predicted) == 0 or np.ptp(true) == 0


def mean_absolute_error(predicted: np.ndarray, true: np.ndarray) -> float:
    """Mean of |p - y|, in points."""
    return float(np.mean(np.abs(predicted - true)))


def relative_l2(predicted: np.ndarray, true: np.ndarray) -> float:
    """R-l2 x 100 (Yu et al., CoRe, ICCV 2021): mean of ((p - y) / (max y - min y))^2, times 100; min and max are those of this set."""
    return float(relative_l2_rows(predicted[None], true[None])[0])


def spearman_rows(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Spearman's correlation of each row: two (R, N) arrays -> (R,); NaN for constant rows."""
    p, y = (
        np.array([average_ranks(row) for row in values]) - (values.shape[1] + 1) / 2 for values in (predicted, true)
    )
    with np.errstate(invalid="ignore", divide="ignore"):  # constant rows give NaN
        return (p * y).sum(axis=1) / np.sqrt((p * p).sum(axis=1) * (y * y).sum(axis=1))


def relative_l2_rows(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """R-l2 x 100 of each row: two (R, N) arrays -> (R,); NaN if all true scores of a row are equal."""
    with np.errstate(invalid="ignore", divide="ignore"):
        values = np.mean((predicted - true) ** 2, axis=1) / np.ptp(true, axis=1) ** 2 * 100
    return np.where(np.ptp(true, axis=1) > 0, values, np.nan)


def fisher_mean(correlations: Scores) -> np.ndarray:
    """Mean over the first axis with Fisher's z-transformation: tanh(mean(arctanh(r))); NaN if one of them is NaN.

    arctanh(1) is infinite, so larger correlations count as `LARGEST_CORRELATION`.
    """
    limited = np.clip(np.asarray(correlations, np.float64), -LARGEST_CORRELATION, LARGEST_CORRELATION)
    return np.tanh(np.arctanh(limited).mean(axis=0))


def mean_correlation(correlations: Sequence[float]) -> float:
    """`fisher_mean` in which an undefined correlation (all predictions are equal) counts as 0; NaN if all are undefined."""
    values = np.asarray(correlations, np.float64)
    return math.nan if np.isnan(values).all() else float(fisher_mean(np.nan_to_num(values)))


def score_metrics(predicted: Scores, true: Scores) -> dict[str, float]:
    """All metrics of a set of predicted final scores."""
    p, y = np.asarray(predicted, np.float64), np.asarray(true, np.float64)
    mse = float(np.mean((y - p) ** 2))
    return {
        "spearman": spearman(p, y),
        "pearson": pearson(p, y),
        "r_l2_x100": relative_l2(p, y),
        "mse": mse,
        "rmse": math.sqrt(mse),
        "mae": mean_absolute_error(p, y),
    }


def predicted_range(predicted: Scores) -> float:
    """The largest minus the smallest predicted score, in points."""
    return float(np.ptp(np.asarray(predicted, np.float64)))


def constant_prediction_warning(ranges: Mapping[str, float | None]) -> str | None:
    """Return a warning if all predictions of a kind are the same, else None.

    `ranges` has the `predicted_range` of each kind; of the kind "" if there is only one. Results of earlier versions have
    none (None): no warning.
    """
    constant = [kind for kind, width in ranges.items() if width is not None and width < _CONSTANT_RANGE]
    if not constant:
        return None
    of = f" of {', '.join(constant)}" if any(constant) else ""
    return f"all predicted scores{of} are the same to {_CONSTANT_RANGE:g} points: the model does not distinguish the actions (train longer, or raise --learning_rate)"


def _resamples(sizes: Sequence[int], seed: int) -> np.ndarray:
    """Indices (RESAMPLES, sum of sizes), drawn with replacement within consecutive groups of these sizes."""
    rng = np.random.default_rng(seed)
    starts = np.cumsum([0, *sizes[:-1]])
    return np.hstack([rng.integers(0, n, size=(RESAMPLES, n)) + s for s, n in zip(starts, sizes, strict=True)])


def bootstrap_interval(
    predicted: Scores,
    true: Scores,
    statistic_rows: RowsStatistic = spearman_rows,
    seed: int = 0,
    sizes: Sequence[int] | None = None,
) -> tuple[float, float]:
    """95 % percentile bootstrap interval of a metric over actions; (NaN, NaN) for fewer than three actions.

    With `sizes`, the actions are consecutive groups of these sizes, and are resampled within their group.
    """
    p, y = np.asarray(predicted, np.float64), np.asarray(true, np.float64)
    if len(y) < 3:
        return (math.nan, math.nan)
    resamples = _resamples(sizes or [len(y)], seed)
    values = statistic_rows(p[resamples], y[resamples])
    values = values[np.isfinite(values)]  # a resample that repeats one action has no correlation
    if not len(values):
        return (math.nan, math.nan)
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def paired_interval(
    a: Scores,
    b: Scores,
    true: Scores,
    statistic_rows: RowsStatistic = spearman_rows,
    seed: int = 0,
    sizes: Sequence[int] | None = None,
) -> tuple[float, float, float]:
    """Paired bootstrap (Efron and Tibshirani, 1993) of the difference of a metric, B minus A, on the same actions.

    Returns (low, high) of the 95 % interval and the fraction of resamples in which B's metric is greater. Both predictions
    are resampled together, so actions that are hard for both do not widen the interval. `sizes` as in `bootstrap_interval`.
    """
    pa, pb, y = (np.asarray(values, np.float64) for values in (a, b, true))
    resamples = _resamples(sizes or [len(y)], seed)
    gains = statistic_rows(pb[resamples], y[resamples]) - statistic_rows(pa[resamples], y[resamples])
    gains = gains[np.isfinite(gains)]
    if len(y) < 3 or not len(gains):
        return (math.nan, math.nan, math.nan)
    low, high = np.percentile(gains, [2.5, 97.5])
    return float(low), float(high), float(np.mean(gains > 0) + np.mean(gains == 0) / 2)


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion (JASA 1927)."""
    share, z2 = correct / total, _Z_95**2 / total
    middle = (share + z2 / 2) / (1 + z2)
    half = math.sqrt(z2 * (share * (1 - share) + z2 / 4)) / (1 + z2)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def percent_text(count: int, total: int) -> str:
    """'97.5 % (93.0 to 99.1)': a proportion with Wilson's 95 % interval; 'none' of nothing."""
    if not total:
        return "none"
    low, high = wilson_interval(count, total)
    return f"{100 * count / total:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


# ------------------------------------------------------------------------------------------------------------ groups


def difficulty_band(difficulty: float) -> str:
    """The half-point band of a difficulty, such as '3.0 to 3.4'."""
    low = math.floor(difficulty * 2 + 1e-9) / 2
    return f"{low:.1f} to {low + 0.4:.1f}"


def _position_name(dive: Action) -> str:
    return POSITIONS[dive.need("position")]


def group_metrics(predicted: Scores, actions: Sequence[Action]) -> dict[str, dict[str, dict[str, float]]]:
    """Metrics per event (group or video), difficulty band and, if all actions have one, position: grouping -> group -> metrics.
    Events of one action each, such as clips, are left out. With several kinds, whose points are not comparable, a group has
    the actions of one kind and is named "kind: group".

    Metrics: number of actions ("dives"), Spearman, MAE and bias (mean of predicted minus true), in points.
    """
    groupings: dict[str, Callable[[Action], str]] = {}
    if len({d.held_together for d in actions}) < len(actions):
        groupings["group" if any(d.group for d in actions) else "event"] = lambda d: d.held_together
    if all(d.difficulty is not None for d in actions):
        groupings["difficulty"] = lambda d: difficulty_band(d.need("difficulty"))
    if all(has_field(d, "position") for d in actions):
        groupings["position"] = _position_name
    several_kinds = len({d.kind for d in actions}) > 1
    result: dict[str, dict[str, dict[str, float]]] = {}
    for name, of in groupings.items():
        rows: dict[str, list[int]] = {}
        for i, action in enumerate(actions):
            rows.setdefault(f"{action.kind}: {of(action)}" if several_kinds else of(action), []).append(i)
        result[name] = {}
        for group in sorted(rows):
            p = np.array([predicted[i] for i in rows[group]], np.float64)
            y = np.array([actions[i].need("final_score") for i in rows[group]], np.float64)
            result[name][group] = {
                "dives": len(y),
                "spearman": spearman(p, y),
                "mae": mean_absolute_error(p, y),
                "bias": float(np.mean(p - y)),
            }
    return result


# --------------------------------------------------------------------------------------------------------- baselines


def _group_means(train: Sequence[Action], of: Callable[[Action], Hashable]) -> Callable[[Action], float]:
    """A predictor: the mean training score of an action's group, or of all actions if the group has no training action."""
    groups: dict[Hashable, list[float]] = {}
    for action in train:
        groups.setdefault(of(action), []).append(action.need("final_score"))
    overall = float(np.mean([d.need("final_score") for d in train]))
    means = {group: float(np.mean(scores)) for group, scores in groups.items()}
    return lambda action: means.get(of(action), overall)


def _first_judge_score(dive: Action) -> float:
    """The final score if all three counted judges gave the score of the first judge."""
    return 3 * dive.need("judge_scores")[0] * dive.need("difficulty")


def baselines(train: Sequence[Action], test: Sequence[Action]) -> dict[str, dict[str, float]]:
    """Metrics on the test actions of predictors that use no video: name -> metrics.

    `train` holds all actions whose scores may be used (training and validation). Predictors that need dive numbers or judge
    scores are included if every action has them.
    """
    true = [d.need("final_score") for d in test]
    known = [*train, *test]
    predictors: dict[str, Callable[[Action], float]] = {
        "train mean": _group_means(train, lambda d: 0),
    }
    if all(d.difficulty is not None for d in known):
        execution = float(np.mean([d.need("final_score") / d.need("difficulty") for d in train]))
        predictors["difficulty alone"] = lambda d: d.need("difficulty") * execution
    if len({d.held_together for d in known}) < len(known):  # clips are events of one action each
        name = "group mean" if any(d.group for d in known) else "event mean"
        predictors[name] = _group_means(train, lambda d: d.held_together)
    if all(has_field(d, "dive_number") for d in known):
        predictors["dive number mean"] = _group_means(train, lambda d: d.need("dive_number"))
    elif all(has_field(d, "rotation_type") for d in known):  # together the attributes determine the dive number
        predictors["dive number mean"] = _group_means(train, lambda d: d.attributes()[:-1])
    if all(isinstance(d, Dive) and d.judge_scores for d in test):
        predictors["one judge alone"] = _first_judge_score
    return {name: score_metrics([predict(d) for d in test], true) for name, predict in predictors.items()}


# -------------------------------------------------------------------------------------------------- conformal prediction


def rank_of_limit(count: int, level: float = 0.9) -> int:
    """Which of `count` misfits, in ascending order from 1, is the limit: ceil((count + 1) * level). Greater than `count` if these
    are too few."""
    return math.ceil((count + 1) * Fraction(str(level)))


def conformal_limit(misfits: np.ndarray, level: float = 0.9) -> float:
    """The limit of the misfits (n,) of other actions, such as the absolute errors of their scores; infinite if they are too few for
    the level (training.calibration)."""
    rank = rank_of_limit(len(misfits), level)
    return math.inf if rank > len(misfits) else float(np.partition(misfits, rank - 1)[rank - 1])
