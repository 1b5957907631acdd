"""Rules that correct classes: the published ones, the choice on validation, boxes of a detector, the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_preparation.actions import Action
from data_preparation.boxes import Boxes, boxes_file, write_boxes
from data_preparation.common.errors import UserError
from data_preparation.detections import Detection, coverage_faults, in_frames_of, read_detections
from data_preparation.synthetic import detector
from training import combine, postprocess
from training.config import TrainConfig, as_record
from training.data.splits import load_splits
from training.postprocess.base import Case, Rules, apply_rules, better_rules, cases_of, with_labels
from training.predictions import predictions_csv
from training.tasks import task_of
from training.tasks.base import Predictions, Truth

AICONNECT = postprocess.rules_of("aiconnect")
CLASSES = (
    "putup_umbrella", "ride_kick", "fall_down", "driveway_walk", "jay_walk", "ride_moto", "ride_cycle", "fighting", "normal",
)  # fmt: skip


def case_of(probabilities: list[float], kicks: int = 0, falls: int = 0) -> Case:
    rest = [0.0] * (len(CLASSES) - len(probabilities))
    boxes = [Detection(1, "ride_kick", 0.91, (0, 0, 1, 1))] * kicks + [
        Detection(1, "fall_down", 0.51, (0, 0, 1, 1))
    ] * falls
    boxes += [Detection(1, "ride_kick", 0.9, (0, 0, 1, 1))] * 50  # not above the threshold
    return Case(dict(zip(CLASSES, probabilities + rest, strict=True)), boxes)


@pytest.mark.parametrize(
    ("case", "after"),
    [
        # the umbrella is not certain, the third class is near the second, then 21 kickboards, then 11 falls
        (case_of([0.9, 0.06, 0, 0.04]), ["ride_kick", "driveway_walk", "driveway_walk"]),
        (case_of([0.9, 0.06, 0, 0.04], kicks=20, falls=10), ["ride_kick", "driveway_walk", "driveway_walk"]),
        (case_of([0.9, 0.06, 0, 0.04], kicks=21), ["ride_kick", "driveway_walk", "ride_kick"]),
        (case_of([0.9, 0.06, 0, 0.04], kicks=21, falls=11), ["ride_kick", "driveway_walk", "fall_down"]),
        (case_of([0.96, 0.03, 0, 0.01], kicks=99, falls=99), ["putup_umbrella"] * 3),
        # normal becomes jay_walk, which does not go on to driveway_walk
        (case_of([0, 0, 0, 0.1, 0.3, 0, 0, 0, 0.6]), ["normal", "jay_walk", "jay_walk"]),
        (case_of([0, 0, 0, 0.3, 0.6, 0, 0, 0, 0.1]), ["jay_walk", "driveway_walk", "driveway_walk"]),
        (case_of([0, 0, 0.1, 0.05, 0.05, 0.2, 0, 0, 0.6], falls=11), ["normal", "normal", "fall_down"]),
    ],
)
def test_the_published_rules_act_in_their_order(case: Case, after: list[str]):
    assert AICONNECT.names == ["umbrella", "near", "detector"]
    assert [apply_rules(AICONNECT.rules[:n], [case])[0] for n in (1, 2, 3)] == after


def test_a_rule_is_kept_only_if_it_helps_those_before_it():
    worth = {(): 0.5, ("a",): 0.5, ("b",): 0.7, ("b", "c"): 0.6, ("b", "d"): 0.8}
    assert better_rules(["a", "b", "c", "d"], lambda applied: worth[tuple(applied)]) == [False, True, False, True]


@given(st.lists(st.integers(0, 3), min_size=4, max_size=4), st.integers(0, 3))
def test_the_chosen_class_gets_the_largest_probability(weights: list[int], chosen: int):
    """Also of equal ones; the others keep their order, and the sum stays one."""
    before = (np.array([weights]) + 0.25) / (sum(weights) + 1)
    after = with_labels({"probability": before}, ["abcd"[chosen]], "abcd")["probability"]
    assert after.argmax() == chosen
    assert after.sum() == pytest.approx(1, abs=1e-5)
    if before.argmax() == chosen:
        assert np.array_equal(after, before)


def test_boxes_are_joined_by_video_and_frame_and_all_faults_are_named(tmp_path: Path):
    file = tmp_path / "boxes.csv"
    head = "video,frame,class,score,x1,y1,x2,y2\n"
    file.write_text(head + "7,3,fall,0.5,0,0,9,9\n7,9,fall,1,0,0,9,9\nb,,,,,,,\n")
    found = read_detections(file)
    action = Action(video="07", number=1, start_frame=1, end_frame=8)
    assert in_frames_of(found, action) == [Detection(3, "fall", 0.5, (0, 0, 9, 9))]
    others = [Action(video=video, number=1, start_frame=1, end_frame=8) for video in ("b", "c")]
    assert coverage_faults(file, found, [action], [action, others[0]]) == []
    missing, foreign = coverage_faults(file, found, [action, *others], [action, others[1]])
    assert "no row of 1 videos (c): run the detector on them" in missing
    assert "has 1 videos that the data set does not have (b)" in foreign
    file.write_text(
        head
        + "a,0,f,0.5,0,0,9,9\na,1,f,1.5,0,0,9,9\na,1,f,0.5,9,0,9,9\na,1,f,x,0,0,9,9\n,1,f,1,0,0,9,9\na,1,,1,0,0,9,9\na,1,f,1,0,0,nan,9\na\na,2,f,1,0,0,1,1\n"
    )
    with pytest.raises(UserError) as error:
        read_detections(file)
    for words in (
        "counted from 1 in row 2", "between 0 and 1 in row 3", "no area, or x1,y1 is not its upper left corner in 2 rows (4, 8)",
        "not a number in row 5", "not the name of a video in row 6", "class is missing in row 7", "1 videos (a) have boxes and a row",
    ):  # fmt: skip
        assert words in str(error.value)
    file.write_text("frame,video\n")
    with pytest.raises(UserError, match="does not begin with the line video,frame,class"):
        read_detections(file)
    with pytest.raises(UserError, match="is not a file"):
        read_detections(tmp_path / "none.csv")


# ----------------------------------------------------------------------------------------------------------- command

NAMES = ("wave", "jump", "squat")
RULES = """
from training.postprocess.base import Rules

def seen(label, case):
    return "squat" if case.count("crouched", above=0.5) > 2 else label

def harmful(label, case):
    return "wave"

RULES = Rules(("wave", "squat"), (harmful, seen), needs_boxes=True)
"""


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set of 60 clips of three classes, a detector that finds all squats, and two runs that confuse squat with jump."""
    rows = [f"v{i:02},1,20,{NAMES[i % 3]},g{i // 3}" for i in range(60)]
    (tmp_path / "table.csv").write_text("video,start_frame,end_frame,label,group\n" + "\n".join(rows) + "\n")
    (tmp_path / "classes.txt").write_text("\n".join(NAMES) + "\n")
    for part, clips in (("train", range(45)), ("test", range(45, 60))):
        (tmp_path / f"{part}.csv").write_text("video,number\n" + "".join(f"v{i:02},1\n" for i in clips))
    boxes = [f"v{i:02},{k},crouched,0.9,0,0,5,5" for i in range(2, 60, 3) for k in (1, 2, 3)]
    boxes += [f"v{i:02},,,,,,," for i in range(60) if i % 3 != 2]
    (tmp_path / "boxes.csv").write_text("video,frame,class,score,x1,y1,x2,y2\n" + "\n".join(boxes) + "\n")
    (tmp_path / "plugins/postprocess").mkdir(parents=True)
    (tmp_path / "plugins/postprocess/drawn.py").write_text(RULES)
    monkeypatch.setattr(postprocess, "__path__", [*postprocess.__path__, str(tmp_path / "plugins/postprocess")])
    config = TrainConfig(
        method="classify", dataset_kind="table", annotation_path=tmp_path / "table.csv", train_path=tmp_path / "train.csv",
        test_path=tmp_path / "test.csv", train_val_split_ratio=0.6,
    )  # fmt: skip
    splits, label = load_splits(config), task_of("label")
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(as_record(config)))
        for part, file in ((splits.val, "val_predictions.csv"), (splits.test, "predictions.csv")):
            probability = np.eye(3)[[min(a.label, 1) for a in part]] + rng.uniform(0, 0.9, (len(part), 3))
            probability /= probability.sum(axis=1, keepdims=True)
            predicted = {"probability": probability}
            (folder / file).write_text(predictions_csv(label, predicted, part, NAMES))
        summary = {"task": "label", "checkpoint": {"epoch": 1, "val_accuracy": 0.5}, "method_metrics": {}}
        summary |= label.summary(predicted, splits.known, splits.test, NAMES)
        (folder / "summary.json").write_text(json.dumps(summary))
    return tmp_path


def flags(runs: Path, **more) -> combine.CombineConfig:
    return combine.CombineConfig(**{"output": runs / "ab", "postprocess": "drawn", "boxes": runs / "boxes.csv", **more})


def test_rules_are_chosen_on_validation_and_applied_once(runs: Path):
    paths = [runs / "a", runs / "b"]
    table = combine.validate(paths, flags(runs, output=None, test=False))
    assert table[0].split() == ["validation", "accuracy", "macro", "F1"]
    assert [line[:9].strip() for line in table[-2:]] == ["+ harmful", "+ seen"]
    assert "left out" in table[-2]
    assert "left out" not in table[-1]
    assert not (runs / "ab").exists()

    combine.combine(paths, flags(runs))
    lines = combine.stored_lines(runs / "ab")
    assert ", then rules: seen" in lines[0]
    assert set(table) <= set(lines)
    summary = json.loads((runs / "ab/summary.json").read_text())
    assert summary["checkpoint"]["rules"] == ["seen"]
    assert summary["checkpoint"]["val_accuracy"] == pytest.approx(float(table[-1].split()[2]), abs=1e-4)
    assert summary["groups"]["class"]["squat"]["recall"] == 1
    # the test actions changed no choice, and the same call opens nothing again
    combine.check_same_runs(paths, flags(runs))
    for other in (dict(rules="all"), dict(postprocess="none", boxes=None)):
        with pytest.raises(UserError, match="made with other rules or boxes"):
            combine.check_same_runs(paths, flags(runs, **other))
    with pytest.raises(UserError, match="was chosen by another --metric"):
        combine.check_same_runs(paths, flags(runs, metric="macro_f1"))

    # one run, and all rules as they stand: the last one wins
    combine.combine(paths[:1], flags(runs, output=runs / "one", rules="all", weights="equal"))
    one = json.loads((runs / "one/summary.json").read_text())
    assert one["checkpoint"]["rules"] == ["harmful", "seen"]
    assert one["checkpoint"]["val_accuracy"] is None
    assert [one["groups"]["class"][name]["recall"] for name in NAMES] == [1, 0, 1]


def test_a_rule_for_a_rare_class_is_kept_by_macro_f1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It finds the one squat and loses two of 20 jumps: accuracy falls, macro F1 rises."""
    label, true = task_of("label"), np.array([0] * 20 + [1] * 20 + [2])
    probability = np.eye(3)[[*true[:-1], 1]] * 0.6 + 0.1
    probability[[20, 21, 40], 2] = 0.65
    run = Predictions(
        "a", label, [("v", i) for i in range(41)], Truth(true, [""] * 41), {"probability": probability}, NAMES
    )
    rules = Rules(NAMES, (lambda found, case: "squat" if case.probability["squat"] > 0.5 else found,))
    monkeypatch.setattr(combine, "validation_predictions_of", lambda path: run)
    monkeypatch.setattr(postprocess, "rules_of", lambda name: rules)
    kept = {}
    for metric in ("default", "macro_f1"):
        config = combine.CombineConfig(output=tmp_path / "a", postprocess="drawn_actions", metric=metric)
        choice = combine.choose([tmp_path], config, lambda run, mean: cases_of(mean, [None] * 41, NAMES, None))
        kept[metric] = len(choice.rules)
    assert kept == {"default": 0, "macro_f1": 1}
    with pytest.raises(
        UserError,
        match="--metric spearman is not a result of these runs that is better when larger: give one of accuracy, macro_f1",
    ):
        combine.metric_key(label, "spearman")
    with pytest.raises(UserError, match=r"--metric r_l2_x100 is not .*: give one of spearman"):
        combine.metric_key(task_of("score"), "r_l2_x100")  # an error: the largest one is the worst
    with pytest.raises(UserError, match="--metric macro_f1 has nothing to choose"):
        combine.CombineConfig(output=tmp_path / "a", weights="equal", metric="macro_f1")


def test_what_does_not_fit_is_refused(runs: Path):
    paths = [runs / "a", runs / "b"]
    for more, words in (
        (dict(boxes=None), "needs the boxes of a detector: give --boxes FILE"),
        (dict(postprocess="none"), "--postprocess none uses no boxes: leave --boxes out"),
        (dict(output=None), "--output is missing"),
        (dict(boxes=runs / "none.csv"), "none.csv is not a file"),
        (
            dict(postprocess="aiconnect"),
            "names putup_umbrella, ride_kick, .* the data set has the classes wave, jump, squat",
        ),
    ):
        with pytest.raises(UserError, match=words):
            combine.combine(paths, flags(runs, **more))
    text = (runs / "boxes.csv").read_text()
    (runs / "boxes.csv").write_text(text.replace("v58,,,,,,,\n", ""))
    with pytest.raises(UserError, match=r"no row of 1 videos \(v58\)"):
        combine.combine(paths, flags(runs))
    (runs / "boxes.csv").write_text(text)
    (runs / "b/val_predictions.csv").write_text((runs / "b/predictions.csv").read_text())
    with pytest.raises(UserError, match=r"give --weights equal, .* \(and --rules all"):
        combine.combine(paths, flags(runs, weights="equal"))
    assert not (runs / "ab").exists()


def test_the_drawn_detector_sees_one_frame_at_a_time(tmp_path: Path):
    """Upright, leaning and off the floor; its file is one that rules accept."""
    upright = np.array([[30.0, 10], [40, 10], [40, 66], [30, 66]])
    lean = np.radians(40)
    bent = (upright - 40) @ np.array([[np.cos(lean), np.sin(lean)], [-np.sin(lean), np.cos(lean)]]) + (40, 45)
    boxes = Boxes(np.arange(1, 31), np.stack([upright, bent, upright - (0, 9)] * 10), 72, 72)
    assert detector.shapes(boxes).tolist() == [0, 1, 2] * 10
    for video in ("a", "b"):
        write_boxes(boxes_file(tmp_path / "boxes", video), boxes)
    file = tmp_path / "found.csv"
    command = ["--dataset", str(tmp_path), "--output", str(file)]
    detector.main(command)
    found = read_detections(file)
    assert sorted(found) == ["a", "b"]
    assert 10 < len(found["a"]) < 30
    assert found["a"] != found["b"]
    right = [detector.CLASSES[(each.frame - 1) % 3] == each.name for each in found["a"] + found["b"]]
    assert 0.7 < np.mean(right) < 1
    content = file.read_bytes()
    detector.main(command)
    assert file.read_bytes() == content
    detector.main([*command, "--missed", "1"])
    assert read_detections(file) == {"a": [], "b": []}
    for video in ("a", "b"):
        boxes_file(tmp_path / "boxes", video).unlink()
    with pytest.raises(UserError, match="holds no boxes"):
        detector.main(command)
