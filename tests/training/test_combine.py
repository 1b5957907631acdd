"""Combinations of runs: members are chosen on validation predictions, and the test predictions are averaged once."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_preparation.actions import Dive, sort_key
from tests.conftest import run_main
from training.combine import average, greedy_weights, quality_of
from training.metrics import spearman
from training.predictions import predictions_csv, read_predictions
from training.tasks import task_of
from training.tasks.base import Predictions, Truth

SCORE = task_of("score")


def of_scores(name: str, scores: np.ndarray, true: np.ndarray) -> Predictions:
    return Predictions(
        name, SCORE, [("01", i) for i in range(len(true))], Truth(true, [""] * len(true)), {"score": scores}
    )


@given(st.lists(st.lists(st.floats(-5, 5), min_size=4, max_size=4), min_size=1, max_size=5))
def test_the_selection_is_never_worse_than_the_best_member(directions):
    """Each member adds its row to the sum; the quality is a concave function of the mean."""
    rows = np.array(directions)

    def quality(counts) -> float:
        mean = np.array(counts) @ rows / sum(counts)
        return math.nan if not mean.any() else -float(((mean - 1) ** 2).sum())

    weights = greedy_weights(len(rows), quality)
    alone = [quality(row) for row in np.eye(len(rows))]
    defined = [value for value in alone if not math.isnan(value)]
    if defined:
        assert quality(weights) >= max(defined)
    assert sum(weights) > 0


def test_two_members_with_opposite_errors_are_averaged_and_a_useless_one_is_left_out():
    rng = np.random.default_rng(0)
    true, error = rng.normal(60, 15, 80), rng.normal(0, 9, 80)
    members = [of_scores("a", true + error, true), of_scores("b", true - error, true), of_scores("c", rng.normal(60, 15, 80), true)]  # fmt: skip
    weights = greedy_weights(3, lambda counts: quality_of(members, counts))
    assert weights[0] == weights[1] > 0 == weights[2]
    assert average(members, weights)["score"] == pytest.approx(true)


def test_class_probabilities_are_averaged():
    label, true = task_of("label"), np.array([0, 1, 1, 0])
    unsure = [[0.9, 0.4, 0.1, 0.9], [0.6, 0.1, 0.2, 0.2], [0.1, 0.9, 0.9, 0.1]]  # probability of class 0
    members = [
        Predictions(name, label, [("01", i) for i in range(4)], Truth(true, [""] * 4), {"probability": np.stack([p, 1 - np.array(p)], 1)})
        for name, p in zip("abc", unsure, strict=True)
    ]  # fmt: skip
    members[0].predicted["probability"][0] = 0.4, 0.6  # a is wrong about the first action, b about the last one
    weights = greedy_weights(3, lambda counts: quality_of(members, counts))
    assert quality_of(members, weights) == 1 > max(quality_of([each], [1]) for each in members)
    assert average(members, weights)["probability"].sum(axis=1) == pytest.approx(np.ones(4))


def test_runs_are_combined_once(train, dataset: Path, tmp_path: Path):
    runs = tmp_path / "runs"
    train("--run_name", "a", "--epochs", 2, "--evaluate", "True")
    train("--run_name", "b", "--epochs", 1, "--loss_spcoef_weight", 1, "--evaluate", "True")
    train("--run_name", "c", "--method", "svr", "--evaluate", "True")
    train("--run_name", "other", "--epochs", 1, "--seed", 7, "--evaluate", "True")

    # the stored validation predictions are those of the epoch that validation chose
    best = json.loads((runs / "a" / "summary.json").read_text())["checkpoint"]
    validated = read_predictions(runs / "a" / "val_predictions.csv", "a")
    assert spearman(validated.predicted["score"], validated.truth.values) == pytest.approx(
        best["val_spearman"], abs=1e-4
    )
    parts = json.loads((runs / "a" / "splits.json").read_text())
    assert sorted(validated.keys) == sorted((f"{video:02d}", number) for video, number in parts["val"])
    with open(runs / "a" / "val_predictions.csv", newline="") as file:
        assert {row["epoch"] for row in csv.DictReader(file)} == {str(best["epoch"])}
    # a run of an older version has none: its finished training writes them again, the same
    for name in ("a", "c"):
        file, flags = runs / name / "val_predictions.csv", ["--method", "svr"] if name == "c" else []
        content = file.read_text()
        file.unlink()
        train("--run_name", name, "--epochs", 2 if name == "a" else 5, *flags, "--evaluate", "True")
        assert file.read_text() == content

    out = runs / "abc"
    combine = ["training.combine", runs / "a", runs / "b", runs / "c", "--output", out]
    text = run_main(*combine).stdout
    print(text)
    record = json.loads((out / "combination.json").read_text())
    weights = [each["weight"] for each in record["runs"]]
    assert sum(weights) == pytest.approx(1)
    tested = [read_predictions(runs / name / "predictions.csv", name) for name in "abc"]
    combined = read_predictions(out / "predictions.csv", "abc")
    assert combined.keys == tested[0].keys == sorted(combined.keys, key=sort_key)
    expected = sum(w * each.predicted["score"] for w, each in zip(weights, tested, strict=True))
    assert combined.predicted["score"] == pytest.approx(expected, abs=1e-5)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["test"]["spearman"] == pytest.approx(spearman(expected, combined.truth.values), abs=1e-6)
    assert f"mean of {sum(w > 0 for w in weights)} run" in text
    assert "paired bootstrap" in text
    assert (out / "scores.png").stat().st_size > 1000

    before = {file.name: file.read_bytes() for file in out.iterdir()}
    assert run_main(*combine).stdout == text  # the stored result
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    assert "A = a, B = abc" in run_main("training.compare", runs / "a", out).stdout

    for arguments, words in (
        ([runs / "a", runs / "b", "--output", out], "is not the combination of these runs"),
        (
            [runs / "a", runs / "other", "--output", runs / "x"],
            "members cannot be chosen on them; give --weights equal",
        ),
        ([runs / "a", runs / "a", "--output", runs / "x"], "give two different run folders"),
        ([runs / "a", out, "--output", runs / "x"], "holds no run"),
        ([runs / "a", runs / "b"], "--output is missing"),
    ):
        done = run_main("training.combine", *arguments, check=False)
        assert (done.returncode, words in done.stderr) == (2, True), done.stderr
    assert not (runs / "x").exists()
    run_main("training.combine", runs / "a", runs / "other", "--output", runs / "x", "--weights", "equal")
    (runs / "b" / "predictions.csv").write_text(
        predictions_csv(SCORE, {"score": np.arange(3.0)}, [Dive("01", i, 1, 9, difficulty=3.0, final_score=50.0) for i in range(3)])
    )  # fmt: skip
    done = run_main("training.combine", runs / "a", runs / "b", "--output", runs / "y", check=False)
    assert (done.returncode, "was tested on" in done.stderr) == (2, True)
