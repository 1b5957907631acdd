"""Tasks: metrics, means over kinds and intervals, against scipy and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from training.metrics import bootstrap_interval, relative_l2, score_metrics, spearman
from training.tasks import names, task_of
from training.tasks.base import Truth
from training.tasks.score import fisher_mean, interval

SCORE = task_of("score")


def test_tasks_are_found_by_their_files():
    assert "score" in names()
    assert "base" not in names()
    assert all(task_of(name).name == name for name in names())


def test_the_mean_of_correlations_is_the_published_one():
    """AQA-7's rows of two papers and their average correlation."""
    assert fisher_mean([0.8099, 0.7570, 0.6538, 0.7109, 0.9166, 0.8878]) == pytest.approx(0.8102, abs=5e-5)
    assert fisher_mean([0.8969, 0.8043, 0.7336, 0.6965, 0.9456, 0.9545]) == pytest.approx(0.8714, abs=5e-5)


def kinds_with_noise(seed: int) -> tuple[np.ndarray, Truth]:
    """Scores of three kinds on different scales; the order of the actions mixes the kinds."""
    rng = np.random.default_rng(seed)
    kinds = rng.permutation(["diving"] * 20 + ["sync 3m"] * 30 + ["vault"] * 15).tolist()
    scale = np.array([{"diving": 100, "sync 3m": 40, "vault": 16}[kind] for kind in kinds])
    true = scale * rng.random(len(kinds))
    return true + 0.2 * scale * rng.normal(size=len(kinds)), Truth(true, kinds)


def test_each_kind_has_its_own_metrics():
    predicted, truth = kinds_with_noise(0)
    found = SCORE.metrics({"score": predicted}, truth)
    rows = {kind: np.flatnonzero(np.array(truth.kinds) == kind) for kind in set(truth.kinds)}
    rho = {kind: stats.spearmanr(predicted[own], truth.values[own]).statistic for kind, own in rows.items()}
    assert {kind: found[f"spearman_{kind.replace(' ', '_')}"] for kind in rows} == pytest.approx(rho)
    assert found["spearman"] == pytest.approx(np.tanh(np.mean([np.arctanh(r) for r in rho.values()])))
    assert found["r_l2_x100"] == pytest.approx(
        np.mean([relative_l2(predicted[own], truth.values[own]) for own in rows.values()])
    )
    low, high = interval(predicted, truth, "spearman")
    assert low < found["spearman"] < high
    # the order of the actions does not matter, and a kind without two different scores has no part in the mean
    order = np.random.default_rng(1).permutation(len(predicted))
    again = Truth(truth.values[order], [truth.kinds[i] for i in order])
    assert SCORE.metrics({"score": predicted[order]}, again) == pytest.approx(found)
    one_more = Truth(np.append(truth.values, 50.0), [*truth.kinds, "skating"])
    assert SCORE.metrics({"score": np.append(predicted, 1.0)}, one_more) == pytest.approx(found)


def test_one_kind_gives_the_metrics_and_intervals_of_all_actions():
    predicted, truth = kinds_with_noise(2)
    for kind in ("", "diving"):
        one = Truth(truth.values, [kind] * len(predicted))
        assert SCORE.metrics({"score": predicted}, one) == score_metrics(predicted, truth.values)
        assert interval(predicted, one, "spearman") == bootstrap_interval(predicted, truth.values)


def test_a_perfect_or_undefined_kind():
    true = np.array([1.0, 2, 3, 10, 20, 30])
    kinds = ["a"] * 3 + ["b"] * 3
    perfect = SCORE.metrics({"score": true}, Truth(true, kinds))
    assert perfect["spearman"] == pytest.approx(1, abs=1e-5)
    constant = SCORE.metrics({"score": np.array([1.0, 2, 3, 5, 5, 5])}, Truth(true, kinds))
    assert np.isnan(constant["spearman"])
    assert constant["spearman_a"] == spearman(true[:3], true[:3]) == 1
