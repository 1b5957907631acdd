"""Tasks: metrics, means over kinds and intervals, against scipy and scikit-learn."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import stats
from sklearn.dummy import DummyClassifier

from data_preparation.actions import Action
from launch import sweep
from tests.conftest import data_flags, run_main, run_python, tiny_model
from tests.small import DIVES
from training.config import TrainConfig
from training.metrics import bootstrap_interval, fisher_mean, relative_l2, score_metrics, spearman
from training.predictions import predictions_csv, read_predictions
from training.runtime.run_folder import RunFolder
from training.tasks import label, names, task_of
from training.tasks.base import Truth
from training.tasks.score import interval

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
    assert constant["spearman"] == pytest.approx(np.tanh(np.arctanh(1 - 1e-6) / 2))  # the constant kind counts as 0
    assert np.isnan(constant["spearman_b"])
    assert constant["spearman_a"] == spearman(true[:3], true[:3]) == 1


# ------------------------------------------------------------------------------------------------------------- classes

LABEL = task_of("label")
CLASSES = ("fall", "no fall", "unclear")


def drawn_labels(seed: int, count: int, classes: int, accuracy: float = 0.6) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and true classes; the last class is rare or absent."""
    rng = np.random.default_rng(seed)
    true = np.minimum(rng.geometric(0.4, count) - 1, classes - 1)
    return np.where(rng.random(count) < accuracy, true, rng.integers(0, classes, count)), true


@given(st.integers(0, 1000), st.integers(1, 60), st.integers(2, 6))
def test_metrics_of_classes_are_scikit_learns(seed: int, count: int, classes: int):
    predicted, true = drawn_labels(seed, count, classes)
    found = LABEL.metrics({"probability": np.eye(classes)[predicted]}, Truth(true, [""] * count))
    assert found["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(true, predicted))
    assert found["macro_f1"] == pytest.approx(sklearn.metrics.f1_score(true, predicted, average="macro"))
    counts = label.confusion_matrix(predicted, true, classes)
    names = list(range(classes))
    assert counts.tolist() == sklearn.metrics.confusion_matrix(true, predicted, labels=names).tolist()
    recall = sklearn.metrics.recall_score(true, predicted, average=None, labels=names, zero_division=np.nan)
    assert label.recall(counts) == pytest.approx(recall, nan_ok=True)
    weights = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), 3).astype(float)
    resampled = [np.repeat(np.arange(count), row.astype(int)) for row in weights]
    expected = [sklearn.metrics.f1_score(true[rows], predicted[rows], average="macro") for rows in resampled]
    assert label._f1_of_resamples(predicted, true, weights) == pytest.approx(expected)


@given(st.integers(0, 300), st.integers(0, 300))
def test_wilsons_interval_and_mcnemars_test_are_scipys(a: int, b: int):
    if a + b:
        found = stats.binomtest(a, a + b)
        interval = found.proportion_ci(method="wilson")
        assert label.wilson_interval(a, a + b) == pytest.approx((interval.low, interval.high), abs=1e-12)
        assert label.mcnemar(a, b) == pytest.approx(found.pvalue, rel=1e-9)
    assert label.mcnemar(0, 0) == 1


def test_baselines_of_classes():
    """Their expected values, which scikit-learn's DummyClassifier reaches on average."""
    _, train = drawn_labels(0, 400, 3)
    _, test = drawn_labels(1, 300, 3)
    found = label.label_baselines(train, test, 3)
    majority = DummyClassifier(strategy="most_frequent").fit(train[:, None], train).predict(test[:, None])
    assert found["majority"]["accuracy"] == pytest.approx(np.mean(majority == test))
    assert found["majority"]["macro_f1"] == pytest.approx(sklearn.metrics.f1_score(test, majority, average="macro"))
    draws = [DummyClassifier(strategy="stratified", random_state=seed).fit(train[:, None], train).predict(test[:, None]) for seed in range(200)]  # fmt: skip
    assert found["prior"]["accuracy"] == pytest.approx(np.mean([d == test for d in draws]), abs=0.01)
    mean_f1 = np.mean([sklearn.metrics.f1_score(test, d, average="macro") for d in draws])
    assert found["prior"]["macro_f1"] == pytest.approx(mean_f1, abs=0.01)


def labelled(labels: Sequence[int | None]) -> list[Action]:
    return [Action("falls/a", i, 1 + 100 * i, 80 + 100 * i, label=y) for i, y in enumerate(labels)]


def probabilities(seed: int, true: np.ndarray, strength: float) -> np.ndarray:
    """Probabilities of three classes that agree with the truth the more, the greater `strength` is."""
    logits = np.random.default_rng(seed).normal(size=(len(true), 3)) + strength * np.eye(3)[true]
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def test_classifiers_are_summarised_drawn_written_and_compared(tmp_path: Path):
    _, true = drawn_labels(3, 120, 3)
    actions = labelled(true.tolist())
    for name, strength in (("weak", 0.1), ("strong", 3)):
        predicted = {"probability": probabilities(1, true, strength)}
        summary = {
            **LABEL.summary(predicted, actions, actions, CLASSES),
            "method_metrics": {},
            "checkpoint": {"epoch": 2},
        }
        test, chosen = summary["test"], predicted["probability"].argmax(axis=1)
        assert test["accuracy"] == np.mean(chosen == true)
        assert test["accuracy_ci95"][0] < test["accuracy"] < test["accuracy_ci95"][1]
        assert test["macro_f1_ci95"][0] < test["macro_f1"] < test["macro_f1_ci95"][1]
        assert list(summary["groups"]["class"]) == list(CLASSES)
        lines = LABEL.result_lines(json.loads(json.dumps(summary)))
        assert lines[0].startswith(f"Test accuracy {test['accuracy']:.3f} (95 % interval ")
        assert any("better than always predicting" in line for line in lines) == (name == "weak")
        LABEL.draw(predicted, actions, CLASSES, tmp_path / f"{name}.png", lines[0])
        (tmp_path / name).mkdir()
        (tmp_path / name / "predictions.csv").write_text(predictions_csv(LABEL, predicted, actions, CLASSES))
        read = read_predictions(tmp_path / name / "predictions.csv", name)
        assert read.task is LABEL
        assert read.classes == CLASSES
        assert read.keys == [action.key for action in actions]
        assert read.truth.values.tolist() == true.tolist()
        assert LABEL.metrics(read.predicted, read.truth) == LABEL.metrics(predicted, LABEL.truth(actions))
    out = run_main("training.compare", tmp_path / "weak", tmp_path / "strong").stdout
    print(out)
    weak, strong = (probabilities(1, true, strength).argmax(axis=1) == true for strength in (0.1, 3))
    only = int((weak & ~strong).sum()), int((~weak & strong).sum())
    p = stats.binomtest(only[0], sum(only)).pvalue
    assert f"only A is right for {only[0]} actions, only B for {only[1]}: McNemar's exact test gives p = {p:.3g}" in out
    assert "B better (accuracy) in 100.0% of the resamples" in out
    scores = tmp_path / "scores"
    scores.mkdir()
    (scores / "predictions.csv").write_text(predictions_csv(SCORE, {"score": np.arange(8.0)}, DIVES))
    done = run_main("training.compare", tmp_path / "weak", scores, check=False)
    assert done.returncode == 2
    assert "weak and scores predict different things (scores or classes)" in done.stderr


def test_labels_that_are_missing_or_not_classes_are_refused():
    faults = LABEL.faults(labelled([0, None, 3, 2, -1, None]), CLASSES)
    assert faults == [
        "2 actions have no class label (falls/a/001, falls/a/005): label them, or leave them out of the lists",
        "2 actions (falls/a/002, falls/a/004) have labels outside 0 to 2 (-1 3): correct them, or the classes (fall, no fall, unclear)",
    ]
    assert "the data set has 0 classes" in LABEL.faults(labelled([0]), ())[0]
    assert LABEL.faults(labelled([0, 1, 2]), CLASSES) == []
    assert "3 actions have no final score" in SCORE.faults(labelled([0, 1, 2]), CLASSES)[0]


@pytest.mark.parametrize("classes", [2, 12, 101])
def test_a_confusion_matrix_is_drawn_for_any_number_of_classes(tmp_path: Path, classes: int):
    names = [
        f"class {k}" if classes != 12 else f"{k} and a half somersaults with a twist, pike" for k in range(classes)
    ]
    predicted, true = drawn_labels(classes, 20 * classes, classes)
    counts = label.confusion_matrix(predicted, true, classes)
    label.draw_confusion(
        counts, names, tmp_path / "confusion.png", "a run: Test accuracy 0.712 (95 % interval 0.6 to 0.8)"
    )
    assert min(Image.open(tmp_path / "confusion.png").size) > 500


# ------------------------------------------------------------------------------------------------------------- trainings


@pytest.fixture(scope="module")
def falls(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The flags of a drawn data set of falls and landings."""
    folder = tmp_path_factory.mktemp("falls")
    run_python(
        "-m", "data_preparation.synthetic", "--task", "fall", "--dataset", folder, "--clips", 24, "--performers", 8
    )
    run_main("data_preparation.extract", "--dataset", folder, "--dataset_kind", "table", "--height", 72)
    flags = data_flags(folder)
    flags[flags.index("--annotation_path") + 1] = str(folder / "annotations/table.csv")
    return [*flags, "--dataset_kind", "table"]


@pytest.mark.slow
def test_a_classifier_trains_resumes_and_is_evaluated(falls: list[str], tmp_path: Path):
    method = ["--method", "classify", "--balance", "True", "--label_smoothing", "0.1", "--batch_size", 4]
    flags = [*falls, "--runs_dir", tmp_path, "--run_name", "a", *tiny_model(*method), *method]
    run_main("training.train", *flags, "--epochs", 1)
    run_main("training.train", *flags, "--epochs", 2, "--evaluate", "True")
    run = RunFolder(tmp_path / "a")
    assert {"confusion.png", "losses.png", "predictions.csv"} <= {path.name for path in run.path.iterdir()}
    epochs, progress, summary = run.metrics("epoch"), run.progress(), run.summary()
    assert (progress.metric, progress.best) == ("acc", max(epoch["val_accuracy"] for epoch in epochs))
    assert summary["checkpoint"]["val_accuracy"] == progress.best
    read = read_predictions(run.predictions_file, "a")
    assert LABEL.metrics(read.predicted, read.truth)["accuracy"] == summary["test"]["accuracy"]
    assert "without video, majority" in run_main("training.evaluate", "--run", run.path).stdout
    assert "| run | model | method | seeds | accuracy | macro F1 |" in run_main("training.report", run.path).stdout


@pytest.mark.slow
def test_a_pretraining_needs_no_test_list_and_has_no_test(falls: list[str], tmp_path: Path):
    method = ["--method", "vspp", "--segments", 2, "--max_pace", 2, "--batch_size", 4, "--test_path", "/not/there.pkl"]
    flags = [*falls, "--runs_dir", tmp_path, "--run_name", "p", *tiny_model(*method), *method]
    refused = run_main("training.train", *flags, "--evaluate", "True", check=False)
    assert refused.returncode == 2
    assert "--evaluate True does not fit --method vspp, a pretraining without a test split" in refused.stderr
    assert not (tmp_path / "p").exists()
    run_main("training.train", *flags, "--epochs", 2)
    run = RunFolder(tmp_path / "p")
    assert run.progress().best == -min(epoch["val_loss"] for epoch in run.metrics("epoch"))
    refused = run_main("training.evaluate", "--run", run.path, check=False)
    assert refused.returncode == 2
    assert "is a pretraining and has no test split" in refused.stderr


def test_a_data_set_without_classes_is_refused_before_the_run_folder_is_made(dataset: Path, tmp_path: Path):
    method = ["--method", "classify"]
    flags = [*data_flags(dataset), "--runs_dir", tmp_path / "runs", *tiny_model(*method), *method]
    refused = run_main("training.train", *flags, check=False)
    assert refused.returncode == 2
    assert "the data set has 0 classes and classification needs two or more" in refused.stderr
    assert not (tmp_path / "runs").exists()


def test_the_points_of_a_sweep_share_a_task(tmp_path: Path):
    points = {"a": TrainConfig(), "b": TrainConfig(method="classify")}
    assert "point a has the task score and point b the task label" in str(sweep._task_fault(tmp_path, [], points))
    RunFolder(tmp_path / "a").create(points["a"])
    assert sweep._task_fault(tmp_path, ["a"], {"b": points["b"]})
    assert sweep._task_fault(tmp_path, ["a"], {"c": TrainConfig(seed=1)}) is None
    assert sweep.shared_task(tmp_path, ["x", "a"]) is SCORE
