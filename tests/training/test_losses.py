"""The soft Spearman correlation and the metrics, against scipy."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
import torchsort
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import mean_absolute_error, mean_squared_error

from data_preparation.actions import Dive, video_name
from data_preparation.common.errors import UserError
from tests.small import DIVES, labels_of, tiny_config
from training.data.facts import DataFacts
from training.losses import average_ranks, soft_spearman
from training.methods import build_method
from training.metrics import (
    baselines,
    bootstrap_interval,
    constant_prediction_warning,
    predicted_range,
    relative_l2,
    score_metrics,
    spearman_rows,
)

scores = st.lists(st.integers(0, 12).map(lambda i: i * 8.5), min_size=2, max_size=40)


@given(scores)
def test_average_ranks_are_scipys(values):
    assert average_ranks(torch.tensor(values)).tolist() == stats.rankdata(values).tolist()


@given(scores, st.integers(0, 10_000))
def test_soft_spearman_becomes_spearman_as_the_strength_vanishes(true, seed):
    predicted = np.random.default_rng(seed).permutation(len(true)) * 3.0 + 10
    value = soft_spearman(torch.tensor(predicted), torch.tensor(true), strength=1e-3)
    if len(set(true)) == 1:
        assert value == 0
    else:
        assert float(value) == pytest.approx(stats.spearmanr(predicted, true).statistic, abs=1e-5)


@pytest.mark.parametrize("norm", ["l2", "kl"])
def test_the_gradient_orders_the_batch(norm):
    true = torch.tensor([10.0, 20.0, 30.0, 40.0, 50.0])
    predicted = torch.tensor([30.0, 28.0, 31.0, 29.0, 30.5], requires_grad=True)
    optimizer = torch.optim.Adam([predicted], lr=0.5)
    for _ in range(150):
        optimizer.zero_grad()
        (-soft_spearman(predicted, true, 5.0, norm)).backward()
        optimizer.step()
    assert stats.spearmanr(predicted.detach(), true).statistic == pytest.approx(1)


@pytest.mark.parametrize("method", ["regression", "multitask"])
def test_torchsort_is_needed_only_for_the_spearman_loss(method, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchsort", None)  # as if it were not installed
    learned = build_method(tiny_config("timesformer", method), 8, DataFacts())
    labels = labels_of(learned, DIVES)
    outputs = learned(lambda clip: torch.ones(len(DIVES), 1, 8), {"clip": torch.empty(0)}, {}, labels)
    assert "soft_spearman" not in learned.loss(outputs, {}, labels)
    with pytest.raises(UserError, match="--loss_spcoef_weight needs torchsort"):
        tiny_config("timesformer", method, loss_spcoef_weight=0.5)


def test_ranking_the_wrong_axis_is_caught():
    """The original DeepSports ranks (execution, difficulty) within each dive, which is independent of the order of dives."""
    outputs = torch.tensor([[0.9, 3.0], [0.5, 3.0], [0.7, 3.0], [0.2, 3.0]], requires_grad=True)
    true = torch.tensor([10.0, 70.0, 40.0, 90.0])  # the reverse order
    wrong = torchsort.soft_rank(outputs)  # (4, 2): along the last dimension
    assert torch.allclose(wrong, torch.tensor([1.0, 2.0]).expand(4, 2), atol=1e-6)  # the same for every dive
    assert soft_spearman(outputs.prod(dim=1) * 30, true, 0.01).item() == pytest.approx(-1, abs=1e-6)


@pytest.mark.parametrize(
    ("predicted", "true"),
    [
        ([50.0], [40.0]),
        ([50.0, 50.0, 50.0], [1.0, 2.0, 3.0]),
        ([1.0, 2.0, 3.0], [7.0, 7.0, 7.0]),
        ([2.0, 2.0], [3.0, 3.0]),
    ],
)
def test_a_batch_without_order_gives_zero_and_no_nan(predicted, true):
    leaf = torch.tensor(predicted, requires_grad=True)
    value = soft_spearman(leaf, torch.tensor(true))
    value.backward()
    assert value == 0
    assert torch.isfinite(leaf.grad).all()


def test_a_non_finite_prediction_gives_nan_and_no_gradient():
    for odd in (math.nan, math.inf):
        leaf = torch.tensor([50.0, odd, 70.0], requires_grad=True)
        value = soft_spearman(leaf, torch.tensor([1.0, 2.0, 3.0]))
        value.backward()
        assert math.isnan(value)
        assert leaf.grad.tolist() == [0, 0, 0]


def test_half_precision_scores_are_ranked_in_float32():
    predicted = torch.tensor([70.0, 71.0, 72.0, 73.0], dtype=torch.bfloat16)
    assert soft_spearman(predicted, torch.tensor([1.0, 2.0, 3.0, 4.0]), 0.01).dtype == torch.float32


@given(scores, st.integers(0, 10_000))
def test_metrics_are_what_they_say(true, seed):
    predicted = np.random.default_rng(seed).normal(60, 15, len(true))
    metrics = score_metrics(predicted, true)
    # equal to the last bit, because the validation Spearman chooses the best epoch
    assert metrics["mse"] == mean_squared_error(true, predicted)
    assert metrics["mae"] == mean_absolute_error(true, predicted)
    assert metrics["rmse"] == pytest.approx(math.sqrt(metrics["mse"]))
    if len(set(true)) > 1:
        for values in (predicted, predicted.round(-1)):  # the second has ties
            if len(set(values)) > 1:
                found = score_metrics(values, true)
                assert found["spearman"] == stats.spearmanr(values, true).statistic
                assert found["pearson"] == stats.pearsonr(values, true).statistic
        rows = spearman_rows(predicted[None], np.array(true)[None])
        assert rows[0] == pytest.approx(metrics["spearman"])
        assert metrics["r_l2_x100"] == pytest.approx(metrics["mse"] / (max(true) - min(true)) ** 2 * 100)
    else:
        assert math.isnan(metrics["spearman"])
        assert math.isnan(metrics["pearson"])


def test_relative_l2_by_hand():
    assert relative_l2(np.array([10.0, 30.0]), np.array([20.0, 40.0])) == pytest.approx(25.0)


def test_the_interval_covers_the_true_value_at_its_nominal_rate():
    rng = np.random.default_rng(0)
    truth = 6 / math.pi * math.asin(0.8 / 2)  # Spearman of a normal pair with correlation 0.8
    hits = 0
    for repeat in range(60):
        x, noise = rng.normal(size=(2, 120))
        low, high = bootstrap_interval(0.8 * x + 0.6 * noise, x, seed=repeat)
        hits += low <= truth <= high
    assert 50 <= hits <= 60


def test_baselines_use_no_frame():
    def dive(number: int, video: int, difficulty: float, score: float) -> Dive:
        return Dive(
            video_name(video),
            number,
            1,
            9,
            difficulty=difficulty,
            final_score=score,
            position=1,
            armstand=0,
            rotation_type=1,
            ss_no=3,
            tw_no=0,
            judge_scores=(score / 3 / difficulty,) * 7,
        )

    train = [dive(1, 1, 2.0, 40), dive(2, 1, 3.0, 60), dive(3, 2, 3.0, 80)]
    test = [dive(4, 1, 2.0, 45), dive(5, 2, 3.0, 75), dive(6, 2, 3.5, 90)]
    found = baselines(train, test)
    assert found["train mean"]["mse"] == pytest.approx(np.mean([(60 - y) ** 2 for y in (45, 75, 90)]))
    assert found["difficulty alone"]["spearman"] == pytest.approx(1)
    assert found["event mean"]["mae"] == pytest.approx(np.mean([abs(50 - 45), abs(80 - 75), abs(80 - 90)]))
    assert found["one judge alone"]["spearman"] == pytest.approx(1)


def test_baselines_of_the_official_split(shared):
    """The figures that were measured on MTL-AQA when the method sheets were written."""
    from data_preparation.annotations import load_annotations, load_split

    dives = load_annotations(shared / "mtl_aqa/final_annotations_dict_with_dive_number.pkl")
    train = [dives[key] for key in load_split(shared / "mtl_aqa/train_split_0.pkl")]
    test = [dives[key] for key in load_split(shared / "mtl_aqa/test_split_0.pkl")]
    found = baselines(train, test)
    assert found["train mean"]["mse"] == pytest.approx(329.8, abs=0.1)
    assert found["train mean"]["r_l2_x100"] == pytest.approx(3.02, abs=0.01)
    assert found["difficulty alone"]["spearman"] == pytest.approx(0.560, abs=0.001)
    assert found["dive number mean"]["spearman"] == pytest.approx(0.596, abs=0.001)
    assert found["event mean"]["spearman"] == pytest.approx(0.637, abs=0.001)
    assert found["one judge alone"]["spearman"] == pytest.approx(0.979, abs=0.003)


def test_constant_predictions_give_a_warning():
    same, other = predicted_range([61.2, 61.2001, 61.2]), predicted_range([61.2, 61.3, 61.2])
    assert "all predicted scores are the same" in constant_prediction_warning({"": same})
    assert constant_prediction_warning({"": other}) is None
    assert constant_prediction_warning({"": None}) is None  # a result of an earlier version
    assert "all predicted scores of vault are the same" in constant_prediction_warning({"ski": other, "vault": same})
