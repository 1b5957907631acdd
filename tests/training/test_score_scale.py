"""Scores without difficulty or of several kinds: the scale of 0 to 1, means over kinds, and folds."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from data_preparation.actions import Action, ScoreRules
from data_preparation.common.errors import UserError
from data_preparation.datasets import AnnotationFiles, DataSet, aqa7, read
from tests.conftest import run_main
from tests.data_preparation.layouts_scores import write_aqa7, write_jigsaws
from tests.small import config_of, labels_of
from training.data.facts import DataFacts
from training.data.splits import facts_of
from training.folds import mean_text
from training.methods import build_method
from training.metrics import LARGEST_CORRELATION, fisher_mean, mean_correlation
from training.tasks import task_of

RULES = {"vault": ScoreRules(12.3, 16.87), "ski": ScoreRules(8.0, 50.0)}
FACTS = DataFacts(rules=RULES, by_difficulty=False)


def action(number: int, kind: str, score: float) -> Action:
    return Action(f"{kind}/{number:03d}", 1, 1, 103, final_score=score, kind=kind, rules=RULES.get(kind))


def test_fisher_mean_is_the_published_one():
    assert fisher_mean([0.8099, 0.7570, 0.6538, 0.7109, 0.9166, 0.8878]) == pytest.approx(0.8102, abs=5e-5)
    assert fisher_mean([0.8969, 0.8043, 0.7336, 0.6965, 0.9456, 0.9545]) == pytest.approx(0.8714, abs=5e-5)
    assert fisher_mean([1.0, 1.0]) == pytest.approx(LARGEST_CORRELATION)  # not infinite
    assert math.isnan(fisher_mean([0.5, math.nan]))
    assert mean_correlation([0.5, math.nan]) == pytest.approx(math.tanh(math.atanh(0.5) / 2))
    assert math.isnan(mean_correlation([math.nan, math.nan]))


def test_metrics_of_kinds_are_those_of_scipy():
    rng = np.random.default_rng(0)
    actions = [action(i, kind, float(s)) for kind in RULES for i, s in enumerate(rng.uniform(13, 16, 20).round(1), 1)]
    predicted = np.array([a.final_score for a in actions]) + rng.normal(size=40)
    task = task_of("score")
    found = task.metrics({"score": predicted}, task.truth(actions))
    rhos, errors = [], []
    for kind, rules in RULES.items():
        rows = [i for i, a in enumerate(actions) if a.kind == kind]
        true = np.array([actions[i].final_score for i in rows])
        rhos.append(spearmanr(predicted[rows], true).statistic)
        errors.append(np.mean(((predicted[rows] - true) / (rules.high - rules.low) * 100) ** 2))
        assert found[f"spearman_{kind}"] == pytest.approx(rhos[-1])
        assert found[f"l2_of_100_{kind}"] == pytest.approx(errors[-1])
    assert found["spearman"] == pytest.approx(np.tanh(np.mean(np.arctanh(rhos))))
    assert found["l2_of_100"] == pytest.approx(np.mean(errors))


@pytest.mark.parametrize("method", ["regression", "svr"])
def test_scores_go_to_the_scale_and_back(method: str):
    built = build_method(config_of("features", method), 4, FACTS)
    actions = [action(1, "vault", 12.3), action(2, "vault", 16.87), action(3, "ski", 29.0), action(4, "ski", 8.0)]
    given, labels = (labels_of(built, actions, part) for part in ("given", "labels"))
    name, unit = ("scaled_score", 1) if method == "regression" else ("final_score", 100)
    assert torch.allclose(labels[name].double(), torch.tensor([0, 1, 0.5, 0]).double() * unit)
    assert built.scale.points(torch.tensor([0.0, 1, 0.5, -0.1]), given).tolist() == pytest.approx(
        [12.3, 16.87, 29, 3.8]
    )
    with pytest.raises(UserError, match="actions of kind 'luge' have no range of final scores"):
        built.given(action(5, "luge", 3.0))


def test_only_actions_with_difficulty_and_one_range_are_scored_by_difficulty():
    dive = dataclasses.replace(action(1, "ski", 20.0), difficulty=3.0)
    data = DataSet({}, rules=RULES)
    assert facts_of(data, [dive]).by_difficulty
    assert not facts_of(data, [dive, action(2, "ski", 20.0)]).by_difficulty
    assert not facts_of(data, [dive, dataclasses.replace(dive, kind="vault")]).by_difficulty
    assert DataFacts.from_record(FACTS.record()).by_difficulty is False
    assert DataFacts.from_record({"classes": [], "ranges": {}}).by_difficulty  # data.json before this field


def test_equal_predictions_of_a_fold_or_a_kind_count_as_0():
    assert mean_text([0.5, None, math.nan, 0.3]) == "0.500 0.000 0.000 0.300, mean 0.200, Fisher-z mean 0.211"
    actions = [action(i, kind, 13.0 + i) for kind in RULES for i in range(3)]
    predicted = np.array([1.0, 2, 3, 5, 5, 5])  # in order, and all the same
    task = task_of("score")
    found = task.metrics({"score": predicted}, task.truth(actions))
    assert found["spearman"] == pytest.approx(math.tanh(math.atanh(LARGEST_CORRELATION) / 2))
    summary = {
        **task.summary({"score": predicted}, actions, actions, ()),
        "checkpoint": {"epoch": 1},
        "method_metrics": {},
    }
    lines = task.result_lines(json.loads(json.dumps(summary).replace("NaN", "null")))
    assert "  The predictions of ski are all the same: Spearman counts as 0 in the mean." in lines
    assert "  A Spearman of 1 (vault) counts as 0.999999 in the Fisher-z mean." in lines


# ------------------------------------------------------------------------------------------------- complete trainings


def write_features(data: DataSet, path: Path) -> None:
    """Eight numbers for each action, the first of which tells its score."""
    rng = np.random.default_rng(0)
    rows = {}
    for a in data.actions.values():
        rows[a.name] = rng.normal(size=8).astype(np.float32)
        rows[a.name][0] = 3 * (a.final_score - a.rules.low) / (a.rules.high - a.rules.low) + rng.normal() / 3
    np.savez(path, **rows)


def train(folder: Path, kind: str, name: str, *flags: object) -> dict:
    """Train on features, test, and return summary.json."""
    head = ["--topology", "8", "--dropout", "0", "--activation", "GELU"] if "svr" not in flags else []
    run_main(
        "training.train", "--dataset_kind", kind, "--annotation_path", folder / "annotations", "--model", "features",
        "--features", folder / "features.npz", "--runs_dir", folder / "runs", "--run_name", name, "--gpu", "False",
        "--learning_rate", "0.02", "--evaluate", "True", *head, *flags,
    )  # fmt: skip
    return json.loads((folder / "runs" / name / "summary.json").read_text())


def predictions(folder: Path, name: str) -> list[dict[str, str]]:
    with open(folder / "runs" / name / "predictions.csv") as file:
        return list(csv.DictReader(file))


def of_kind(rows: Sequence[dict[str, str]], kind: str) -> tuple[np.ndarray, np.ndarray]:
    chosen = [(float(row["predicted_score"]), float(row["true_score"])) for row in rows if row["kind"] == kind]
    return tuple(np.array(chosen).T)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["regression", "svr"])
def test_aqa7_is_trained_and_reported_by_kind(tmp_path: Path, method: str):
    write_aqa7(tmp_path / "annotations")
    write_features(read("aqa7", AnnotationFiles(tmp_path / "annotations")), tmp_path / "features.npz")
    summary = train(tmp_path, "aqa7", "a", "--method", method, "--epochs", 3, "--batch_size", 64)
    rows = predictions(tmp_path, "a")
    rhos = []
    for kind in aqa7.KINDS.values():
        predicted, true = of_kind(rows, kind.name)
        assert len(true) == kind.clips.test
        rhos.append(spearmanr(predicted, true).statistic)
        of = summary["groups"]["kind"][kind.name]
        assert of["spearman"] == pytest.approx(rhos[-1], abs=1e-4)
        l2 = np.mean(((predicted - true) / (kind.high - kind.low) * 100) ** 2)
        assert of["l2_of_100"] == pytest.approx(l2, rel=1e-4)
    assert summary["test"]["spearman"] == pytest.approx(np.tanh(np.mean(np.arctanh(rhos))), abs=1e-4)
    assert summary["test"]["spearman"] > 0.8


@pytest.mark.slow
def test_four_folds_of_jigsaws_give_one_result(tmp_path: Path):
    write_jigsaws(tmp_path)
    data = read("jigsaws", AnnotationFiles(tmp_path / "annotations"))
    write_features(data, tmp_path / "features.npz")
    flags = ["--videos", "Suturing", "--epochs", 3, "--batch_size", 8]
    for fold in range(1, 5):
        train(tmp_path, "jigsaws", f"j-f{fold}", *flags, "--fold", fold)
    runs = [tmp_path / "runs" / f"j-f{fold}" for fold in range(1, 5)]
    printed = run_main("training.folds", *runs).stdout
    rows = [predictions(tmp_path, run.name) for run in runs]
    rhos = [spearmanr(*of_kind(own, "Suturing")).statistic for own in rows]
    pooled = spearmanr(*of_kind([row for own in rows for row in own], "Suturing")).statistic
    fisher = np.tanh(np.mean(np.arctanh(rhos)))
    assert "Suturing: 39 actions, 9 10 10 10 in the folds" in printed
    assert f"{' '.join(f'{r:.3f}' for r in rhos)}, mean {np.mean(rhos):.3f}, Fisher-z mean {fisher:.3f}" in printed
    assert f"Spearman of all folds together {pooled:.3f} (95 % interval" in printed
    logged = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in runs]
    published = np.mean([[e["val_spearman"] for e in own if "val_spearman" in e] for own in logged])
    assert f"mean over the last 3 epochs and the folds: {published:.3f}" in printed
    # the mean score of the surgeon in the training actions; the published folds have each surgeon in both parts
    means = []
    for fold in range(1, 5):
        split = data.split("official", fold)
        train_part, test = (
            [data.actions[k] for k in keys if k[0].startswith("Suturing")] for keys in (split.train, split.test)
        )
        guess = [np.mean([a.final_score for a in train_part if a.group == b.group]) for b in test]
        means.append(spearmanr(guess, [b.final_score for b in test]).statistic)
    assert f"without video, group mean: {' '.join(f'{m:.3f}' for m in means)}" in printed
    failed = run_main("training.folds", *runs[:3], check=False)
    assert failed.returncode == 2
    assert "these 3 folds test 29 of 39 actions" in failed.stderr
    assert "means over 4 folds." in run_main("training.report", *runs).stdout
