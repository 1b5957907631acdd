"""python -m training.predict: the scores of validation for the same videos, any video file, and bad input."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from data_preparation.common.errors import UserError
from data_preparation.frame_numbers import scan_video
from tests.conftest import PATIENCE_S, REPOSITORY, run_main
from tests.training.test_scorer import CPU, run_of, saved
from training.clips import Place
from training.data.dataset import ActionDataset
from training.engine.prediction import Predictor, as_arrays
from training.predict import PredictConfig, Scored, as_csv, record_of
from training.runtime.ranks import Ranks
from training.runtime.run_folder import RunFolder, write_json
from training.scorer import Prediction

needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")


@pytest.fixture(scope="module")
def drawn(dataset: Path, tmp_path_factory: pytest.TempPathFactory):
    """A run of an untrained network on the drawn dives: (run folder, configuration, splits, model)."""
    folder = tmp_path_factory.mktemp("drawn")
    config, splits = run_of(folder, dataset, "timesformer", "regression", "--data_aug", "True")
    run, model = saved(folder, config, splits)
    return run, config, splits, model


def predict(run, *flags: object, check: bool = True) -> subprocess.CompletedProcess:
    return run_main("training.predict", "--run", run.path, "--gpu", "False", *flags, check=check)


def test_a_video_is_scored_as_its_archive_is(drawn, dataset: Path, tmp_path: Path):
    """By frame number, and by time for one of the actions."""
    run, config, splits, model = drawn
    data = ActionDataset(splits.val, config, model.method, augment=False, pool=splits.train)
    rows = Predictor(config, Ranks(), CPU).predict(model, data)
    wanted = as_arrays(model.method.predict(rows.outputs, rows.given))["score"]
    lines = ["video,start,end,difficulty"]
    for index, action in enumerate(splits.val):
        video = os.path.relpath(dataset / "whole_videos" / f"{action.video}.mp4", tmp_path)
        rate = scan_video(tmp_path / video).rate
        start = f"{float((action.start_frame - 0.5) / rate):.4f}s" if index == 0 else action.start_frame
        lines.append(f"{video},{start},{action.end_frame},{action.difficulty if index == 1 else ''}")
    (tmp_path / "actions.csv").write_text("\n".join(lines))
    done = predict(run, "--actions", tmp_path / "actions.csv", "--out", tmp_path / "out")
    found = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [each["score"] for each in found["predictions"]] == wanted.tolist()
    assert [(p["start_frame"], p["end_frame"]) for p in found["predictions"]] == [
        (a.start_frame, a.end_frame) for a in splits.val
    ]
    assert found["complete"]
    assert [bool(p["notes"]) for p in found["predictions"]] == [i == 1 for i in range(len(splits.val))]
    assert "its difficulty is not used" in done.stdout
    with open(tmp_path / "out" / "predictions.csv", newline="") as file:
        of_csv = list(csv.DictReader(file))
    assert np.allclose([float(row["score"]) for row in of_csv], wanted, atol=1e-6)
    assert all(
        float(row["execution"]) * float(row["difficulty"]) == pytest.approx(float(row["score"]), abs=1e-3)
        for row in of_csv
    )
    assert "training.calibrate" in done.stdout  # this run has no calibration


@pytest.mark.parametrize("name", ["config.json", "summary.json"])
def test_the_predictions_of_a_run_are_not_overwritten(name: str, tmp_path: Path):
    (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match=f"--out {tmp_path} holds {name} of a run"):
        PredictConfig(run=tmp_path, video=[tmp_path], out=tmp_path)


def test_any_name_of_a_file_can_be_written(tmp_path: Path):
    prediction = Prediction("a", 1, 2, {"score": 3.0}, None, None)
    record = record_of(Scored(0, tmp_path / "bad\udcff\n.mp4", 25.0, prediction, []))
    assert str(record["video"]).endswith("bad\\udcff\\n.mp4")
    as_csv([record]).encode()


def test_a_declined_action_has_empty_cells_for_its_classes():
    records = [{"video": "a", "probabilities": None, "notes": []}, {"video": "b", "probabilities": {"fall": 0.25}, "notes": []}]  # fmt: skip
    assert list(csv.DictReader(io.StringIO(as_csv(records)))) == [
        {"video": "a", "notes": "", "probability_fall": ""},
        {"video": "b", "notes": "", "probability_fall": "0.250000"},
    ]


MADE = {
    "phone.mov": "-f lavfi -i testsrc=size=96x170:rate=30:duration=2 -c:v libx264 -metadata:s:v rotate=90",
    "uneven.mkv": r"-f lavfi -i testsrc=size=128x96:rate=25:duration=2 -vf select=not(mod(n\,7)-3)+gt(mod(n\,3)\,0) -vsync vfr -c:v libx264",
    "hdr10bit.mkv": "-f lavfi -i testsrc2=size=130x98:rate=25:duration=1 -pix_fmt yuv420p10le -c:v libx265 -x265-params log-level=error -color_primaries bt2020 -color_trc smpte2084 -colorspace bt2020nc",
    "grey.mkv": "-f lavfi -i testsrc=size=96x96:rate=25:duration=1 -pix_fmt gray -c:v ffv1",
    "odd.webm": "-f lavfi -i testsrc=size=97x75:rate=25:duration=1 -c:v libvpx-vp9 -deadline realtime -cpu-used 8",
    "loop.gif": "-f lavfi -i testsrc=size=96x96:rate=10:duration=2",
    "raw.y4m": "-f lavfi -i testsrc=size=32x32:rate=10:duration=1 -pix_fmt yuv420p",
    "one.mp4": "-f lavfi -i testsrc=size=96x96:rate=25:duration=0.04 -c:v libx264",
    "sound.m4a": "-f lavfi -i sine=duration=1 -c:a aac",
}  # fmt: skip


@needs_ffmpeg
def test_a_folder_of_mixed_files(drawn, tmp_path: Path):
    """Videos of any kind are scored, each fault is a sentence, the batch goes on, and the exit status tells."""
    run, *_ = drawn
    folder = tmp_path / "mixed" / "inner"
    folder.mkdir(parents=True)
    for name, arguments in MADE.items():
        subprocess.run(["ffmpeg", "-v", "error", *arguments.split(), folder / name], check=True)
    (folder / "cut.mp4").write_bytes((folder / "phone.mov").read_bytes()[:3000])
    (folder / "empty.mp4").touch()
    (folder / "page.mp4").write_text("<html>log in</html>")
    (folder / "notes.txt").write_text("not a video")
    out = tmp_path / "out"
    done = predict(run, "--video", tmp_path / "mixed", "--clips", 2, "--out", out, check=False)
    assert done.returncode == 1, done.stderr
    found = json.loads((out / "predictions.json").read_text())
    scored = {Path(p["video"]).name: p for p in found["predictions"]}
    assert set(scored) == set(MADE) - {"sound.m4a"}
    assert scored["one.mp4"]["notes"] == ["the action has 1 frames and the network reads 4, so some are repeated"]
    assert {Path(f["video"]).name for f in found["failed"]} == {"cut.mp4", "empty.mp4", "page.mp4", "sound.m4a"}
    assert len(done.stderr.strip().splitlines()) == len(found["failed"])
    assert "1 other files are skipped (notes.txt)" in done.stdout
    alone = predict(run, "--video", folder / "empty.mp4", "--out", out, check=False)
    assert alone.returncode == 2
    assert "is empty" in alone.stderr


def test_bad_command_lines(drawn, dataset: Path, tmp_path: Path):
    run, *_ = drawn
    video = dataset / "whole_videos" / "01.mp4"
    (tmp_path / "file").touch()
    (tmp_path / "a.csv").write_text("video,start,end\n01.mp4,soon,5\n,1,2\n")
    for flags, said in (
        ((), "either --video"),
        (("--video", video, "--actions", "a.csv"), "either --video"),
        (("--video", tmp_path / "none.mp4"), "does not exist"),
        (("--video", tmp_path), "holds no video"),
        (("--video", video, "--start", "4.5"), "neither a frame number"),
        (("--video", video, "--start", "9:00:00"), "give one within the video"),
        (("--video", video, "--start", "9", "--end", "8"), "give --start before --end"),
        (("--video", video, "--kind", "vault"), "was trained on"),
        (("--video", video, "--boxes", "x"), "--boxes belongs to --method tsanet"),
        (("--video", video, "--out", tmp_path / "file"), "not a folder"),
        (("--actions", tmp_path / "a.csv"), "row 3: the video is missing"),
    ):
        done = predict(run, *flags, check=False)
        assert done.returncode == 2, (flags, done.stdout)
        assert said in done.stderr, (flags, done.stderr)
    assert run_main("training.predict", "--run", tmp_path, "--video", video, check=False).returncode == 2
    broken = tmp_path / "broken"
    shutil.copytree(run.path, broken)
    record = json.loads((broken / "config.json").read_text())
    write_json(broken / "config.json", {**record, "embed_dim": record["embed_dim"] * 2})
    done = run_main("training.predict", "--run", broken, "--video", video, check=False)
    assert (done.returncode, "does not fit the network" in done.stderr) == (2, True), done.stderr
    (broken / "checkpoints" / "best.pt").unlink()
    done = run_main("training.predict", "--run", broken, "--video", video, check=False)
    assert "no best checkpoint" in done.stderr


def test_a_value_that_the_method_needs_is_asked_for(dataset: Path, tmp_path: Path):
    config, splits = run_of(tmp_path, dataset, "timesformer", "core")
    run, _ = saved(tmp_path, config, splits)
    video = dataset / "whole_videos" / "01.mp4"
    done = predict(run, "--video", video, "--end", 90, check=False)
    assert (done.returncode, "give --difficulty" in done.stderr) == (2, True), done.stderr
    assert "not used" not in predict(run, "--video", video, "--end", 90, "--difficulty", 3.2).stdout


@pytest.mark.slow
def test_two_ranks_share_the_actions(drawn, dataset: Path, tmp_path: Path):
    run, *_ = drawn
    video = dataset / "whole_videos" / "01.mp4"
    rows = "".join(f"{video},{start},{start + 60}\n" for start in (1, 40, 99999, 80))  # the third is not in the video
    (tmp_path / "a.csv").write_text("video,start,end\n" + rows)
    found = []
    for name, launcher in (
        ("one", []),
        ("two", ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "--"]),
    ):
        command = [sys.executable, "-m", *launcher, "training.predict", "--run", run.path, "--gpu", "False"]
        command += ["--actions", tmp_path / "a.csv", "--out", tmp_path / name]
        done = subprocess.run([*map(str, command)], cwd=REPOSITORY, capture_output=True, text=True, timeout=PATIENCE_S)
        assert done.returncode == 1, done.stderr
        found.append(json.loads((tmp_path / name / "predictions.json").read_text()))
    one, two = found
    assert (
        [p["start_frame"] for p in one["predictions"]] == [p["start_frame"] for p in two["predictions"]] == [1, 40, 80]
    )
    # other batches, other rounding
    assert [p["score"] for p in one["predictions"]] == pytest.approx([p["score"] for p in two["predictions"]], rel=1e-5)
    assert len(one["failed"]) == 1
    assert one["failed"] == two["failed"]


@pytest.mark.slow
def test_ctrl_c_leaves_whole_files(drawn, dataset: Path, tmp_path: Path):
    run, *_ = drawn
    row = dataset / "whole_videos" / "01.mp4"
    # so much work that it cannot be done before the signal comes
    (tmp_path / "a.csv").write_text("video,start,end\n" + f"{row},1,91\n" * 20000)
    command = [
        sys.executable,
        "-m",
        "training.predict",
        "--run",
        run.path,
        "--actions",
        tmp_path / "a.csv",
        "--clips",
        "64",
        "--out",
        tmp_path,
    ]
    process = subprocess.Popen(
        [*map(str, command)],
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    maps = Path(f"/proc/{process.pid}/maps")
    deadline = time.monotonic() + PATIENCE_S
    while "torch" not in maps.read_text() or "simplejpeg" not in maps.read_text():  # until it reads frames
        assert time.monotonic() < deadline
        time.sleep(0.2)
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130, out + err
    assert "Traceback" not in err
    assert not list(tmp_path.glob(".*.tmp"))
    files = {file.name for file in tmp_path.glob("predictions.*")}
    assert files in (set(), {"predictions.json", "predictions.csv"})
    if files:
        assert not json.loads((tmp_path / "predictions.json").read_text())["complete"]


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [("1", 1, 1), ("250", 250, 250), ("0s", 1, 1), ("1s", 26, 25), ("0:01.5", 38, 38), ("0:00:10", 251, 250)],
)
def test_times_and_frames(text: str, first: int, last: int, tmp_path: Path):
    place = Place.parse(text)
    assert (place.first_frame(Fraction(25)), place.last_frame(Fraction(25))) == (first, last)
    for wrong in ("0", "-1", "1.5", "a", "1:2:3:4", "٣", ""):
        with pytest.raises(ValueError, match="frame number"):
            Place.parse(wrong)


def test_a_training_writes_its_calibration_and_an_older_run_gets_one(train, drawn, dataset: Path, tmp_path: Path):
    train("--run_name", "a", "--epochs", 1, "--train_val_split_ratio", 0.6)
    run = RunFolder(tmp_path / "runs" / "a")
    written = run.calibration_file.read_text()
    assert json.loads(run.facts_file.read_text())["frames"] == {"height": 72, "quality": 95}
    dive = drawn[2].train[0]
    start, end = dive.start_frame, dive.end_frame
    one = ("--video", dataset / "whole_videos" / f"{dive.video}.mp4", "--start", start, "--end", end)
    done = predict(run, *one, "--out", tmp_path / "out")
    (found,) = json.loads((tmp_path / "out" / "predictions.json").read_text())["predictions"]
    assert found["low"] < found["score"] < found["high"]
    assert "90 % interval: score ±" in done.stdout
    run.calibration_file.unlink()
    run.val_predictions_file.unlink()
    assert predict(run, *one).stdout.count("training.calibrate") == 1
    run_main("training.calibrate", "--run", run.path, "--gpu", "False")
    assert run.calibration_file.read_text() == written
    done = predict(run, *one, "--explain", "True", "--out", tmp_path / "out")
    (found,) = json.loads((tmp_path / "out" / "predictions.json").read_text())["predictions"]
    assert [Path(file).name for file in found["explanation"]] == [
        f"001_{dive.video}_{start}-{end}.{kind}" for kind in ("png", "mp4")
    ], done.stdout
    assert all(Path(file).stat().st_size > 1000 for file in found["explanation"])
    (run.path / "calibration.json").write_text(written.replace('"epoch": 1', '"epoch": 7'))
    assert "a calibration of epoch 7" in predict(run, *one).stdout
    # predictions of an epoch that is not that of best.pt, as after a kill between the two files
    head, *lines = run.val_predictions_file.read_text().splitlines()
    place = head.split(",").index("epoch")
    cells = [line.split(",") for line in lines]
    stale = [",".join([*row[:place], "7", *row[place + 1 :]]) for row in cells]
    run.val_predictions_file.write_text("\n".join([head, *stale, ""]))
    run_main("training.calibrate", "--run", run.path, "--gpu", "False")
    assert run.calibration_file.read_text() == written
