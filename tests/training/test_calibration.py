"""Split conformal prediction: the limits, their coverage, and calibration.json."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_preparation.common.errors import UserError
from training.calibration import (
    Calibration,
    calibration_of,
    coverage_range,
    covered_by_others,
    covered_in,
    fewest_misfits,
    local_limits,
    local_misfits,
    read_calibration,
)
from training.metrics import conformal_limit
from training.runtime.run_folder import RunFolder
from training.tasks import task_of
from training.tasks.base import Predictions, Truth

MISFITS = st.lists(st.floats(0, 100) | st.sampled_from([1.0, 2.0]), min_size=1, max_size=40).map(np.array)


@given(MISFITS, st.sampled_from([0.8, 0.9, 0.95]))
def test_the_limit_is_the_finite_sample_quantile(misfits: np.ndarray, level: float):
    limit, count = conformal_limit(misfits, level), len(misfits)
    if count < fewest_misfits(level):
        assert math.isinf(limit)
    else:
        assert (misfits <= limit).sum() >= (count + 1) * level - 1e-9
        assert (misfits < limit).sum() < (count + 1) * level
    left_out = [m <= conformal_limit(np.delete(misfits, i), level) for i, m in enumerate(misfits)]
    assert covered_by_others(misfits, level).tolist() == left_out


@pytest.mark.parametrize("count", [9, 30, 200])
@pytest.mark.parametrize("draw", ["normal", "exponential", "standard_cauchy"])
def test_new_actions_are_covered_as_often_as_stated(count: int, draw: str):
    """Whatever the distribution of the errors: 400 trainings with `count` validation actions and 200 new actions each."""
    draws = np.abs(getattr(np.random.default_rng(0), draw)(size=(400, count + 200)))
    coverage = np.array([(row[count:] <= conformal_limit(row[:count])).mean() for row in draws])
    assert 0.89 < coverage.mean() < 0.9 + 1 / (count + 1) + 0.01
    low, high = coverage_range(count)
    assert ((coverage > low - 0.05) & (coverage < high + 0.05)).mean() > 0.9


def predictions(task: str, count: int, seed: int) -> Predictions:
    """Predictions of two kinds, of which the second has errors ten times as large."""
    draws = np.random.default_rng(seed)
    kinds = ["diving", "vault"] * (count // 2)
    keys = [("01", i) for i in range(count)]
    if task == "label":
        probability = draws.dirichlet([1, 1, 1], size=count)
        true = np.array([draws.choice(3, p=row) for row in probability])
        return Predictions("r", task_of(task), keys, Truth(true, kinds), {"probability": probability}, tuple("abc"))
    true = draws.uniform(0, 100, count)
    error = draws.normal(size=count) * np.where(np.arange(count) % 2, 10, 1)
    difficulties = tuple(2 + i % 9 / 8 for i in range(count))
    return Predictions("r", task_of(task), keys, Truth(true, kinds), {"score": true + error}, (), difficulties)


@pytest.mark.parametrize("task", ["score", "label"])
def test_each_kind_has_its_own_limit_and_is_covered(task: str):
    found = [calibration_of(predictions(task, 600, seed), 3) for seed in range(20)]
    covered = np.array([covered_in(each, predictions(task, 600, 100 + seed)) for seed, each in enumerate(found)])
    assert 0.87 < covered.mean() < 0.93
    assert all(0.87 < covered[:, kind::2].mean() < 0.93 for kind in (0, 1))
    again = Calibration.from_record(json.loads(json.dumps(found[0].record())))
    assert again == found[0]
    assert np.isinf(
        again.limits(["unheard of"], {n: v[:1] for n, v in predictions(task, 2, 0).predicted.items()})
    ).all()


def test_intervals_are_wider_where_the_errors_are_larger():
    """One limit for all would cover nearly all actions of low scores and few of high ones."""
    inside = []
    for seed in range(30):
        draws = np.random.default_rng(seed)
        position = draws.uniform(0, 100, 1200)
        misfits = np.abs(draws.normal(size=1200)) * (1 + position / 10)
        limits = local_limits(misfits[:200], position[:200], position[200:])
        low = position[200:] < 50
        inside.append([(misfits[200:] <= limits)[rows].mean() for rows in (low, ~low)])
    assert all(0.87 < share < 0.93 for share in np.mean(inside, axis=0))
    few = local_limits(misfits[:50], position[:50], position)
    assert set(few) == {conformal_limit(misfits[:50])}


def test_what_is_too_few_and_which_group_is_covered_too_rarely_is_said(tmp_path: Path):
    few = calibration_of(predictions("score", 12, 0), 1)
    assert few.lines()[0] == "diving: no 90 % interval: 6 validation actions are too few, 9 are needed"
    one_kind = predictions("score", 300, 0)
    hard = np.array(one_kind.difficulties) > 2.8
    one_kind = Predictions(
        "r", one_kind.task, one_kind.keys, Truth(one_kind.truth.values, [""] * 300),
        {"score": one_kind.truth.values + np.where(hard, 10.0, 1.0) * np.random.default_rng(0).normal(size=300)}, (),
        one_kind.difficulties,
    )  # fmt: skip
    assert any("difficulty 2.75 to 3" in line for line in calibration_of(one_kind, 1).warnings())
    run = RunFolder(tmp_path)
    assert read_calibration(run) is None
    for text in (
        "{",
        "[]",
        '{"task": "score", "epoch": 1, "level": 0.9, "groups": [], "tested": [], "positions": {}, "misfits": {"": ["x"]}}',
    ):
        run.calibration_file.write_text(text)
        with pytest.raises(UserError, match=r"calibration\.json"):
            read_calibration(run)


@given(st.integers(4, 60), st.integers(0, 10), st.booleans())
def test_the_misfits_nearby_are_those_of_the_nearest_positions(count: int, seed: int, own: bool):
    draws = np.random.default_rng(seed)
    misfits, positions = draws.exponential(size=count), draws.normal(size=count)
    places = positions if own else draws.normal(0, 2, size=5)
    distance = np.abs(places[:, None] - positions)
    if own:
        np.fill_diagonal(distance, np.inf)
    nearest = np.argsort(distance, axis=1)[:, : count // 4]
    found = local_misfits(misfits, positions, None if own else places)
    np.testing.assert_allclose(found, misfits[nearest].mean(axis=1), rtol=1e-9)
