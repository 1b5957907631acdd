"""Boxes of trackers: output files become side files, are checked, and are drawn into frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_preparation import boxes
from data_preparation.common.errors import UserError
from data_preparation.layout import frame_name

SIZE = ("--width", "640", "--height", "360")
QUADS = np.array([[10, 20, 60, 20, 60, 90, 10, 90], [12, 22, 62, 22, 62, 92, 12, 92], [20, 30, 70, 30, 70, 99, 20, 99]])


def converted(source: Path, dataset: Path, *flags: str) -> boxes.Boxes:
    dataset.mkdir(exist_ok=True)
    boxes.main(["convert", "--dataset", str(dataset), "--source", str(source), *SIZE, *flags])
    return boxes.read_boxes(dataset / "boxes" / "a.csv")


def write_motchallenge(path: Path) -> Path:
    """Two persons; the second one is followed in fewer frames."""
    path.write_text(
        "1,4,10,20,50,70,0.9,-1,-1,-1\n2,4,12,22,50,70,0.9,-1,-1,-1\n2,7,300,20,40,40,0.8,-1,-1,-1\n5,4,20,30,50,69,0.7,-1,-1,-1\n"
    )
    return path


def test_output_files_of_trackers_become_the_same_side_file(tmp_path: Path, capsys: pytest.CaptureFixture):
    expected = QUADS.reshape(-1, 4, 2)
    np.savez(tmp_path / "a.npz", frame=[1, 2, 5], quads=QUADS)
    (tmp_path / "a.csv").write_text("frame,score,x1,y1,x2,y2\n0,1,10,20,60,90\n1,1,62,92,12,22\n4,1,20,30,70,99\n")
    sources = [
        (write_motchallenge(tmp_path / "a.txt"), ("--track", "4")),
        (tmp_path / "a.txt", ("--track", "longest")),
        (tmp_path / "a.npz", ()),
        (tmp_path / "a.csv", ("--first_frame", "0")),
    ]
    for source, flags in sources:
        found = converted(source, tmp_path / "set", *flags)
        assert np.array_equal(found.corners, expected), source
        assert found.frames.tolist() == [1, 2, 5]
        assert (found.width, found.height) == (640, 360)
    assert (
        "2 frames between the first and the last box have none, in 1 gaps; the longest is 3 to 4"
        in capsys.readouterr().out
    )


def test_faults_of_all_output_files_are_reported_before_any_is_written(tmp_path: Path):
    source = tmp_path / "tracked"
    source.mkdir()
    write_motchallenge(source / "several.txt")
    np.savez(source / "twice.npz", frame=[1, 1, 2], quads=QUADS)
    np.savez(source / "outside.npz", frame=[1, 2, 3], quads=QUADS + 2000)
    np.savez(source / "other.npz", frames=[1])
    (source / "empty.csv").write_text("frame,x1,y1,x2,y2\n")
    (source / "column.csv").write_text("frame,x,y\n1,2,3\n")
    np.savez(source / "good.npz", frame=[1, 2, 3], quads=QUADS)
    with pytest.raises(UserError) as error:
        converted(source, tmp_path / "set")
    for problem in (
        "several.txt: 2 ids were followed (4 in 3 frames, 7 in 1 frames): give --track", "twice.npz: frame 1 not in ascending",
        "outside.npz: 3 of 3 boxes lie outside", "other.npz is not NumPy arrays", "empty.csv has no boxes",
        "column.csv is not a CSV with the columns frame,x1,y1,x2,y2 (two opposite corners) (its first line has no x1, y1, x2, y2)",
    ):  # fmt: skip
        assert problem in str(error.value), problem
    assert not (tmp_path / "set" / "boxes").exists()
    with pytest.raises(UserError, match=r"--width and --height are missing.*\n.*--track best is not an id"):
        boxes.main(["convert", "--source", str(source), "--track", "best"])
    with pytest.raises(UserError, match="no box has the id of --track 5: give one of the file"):
        converted(source / "several.txt", tmp_path / "set", "--track", "5")


def test_boxes_are_drawn_into_frames_of_another_size(tmp_path: Path):
    """The frames are half as large as the pictures that the tracker saw; the box is drawn round the white athlete."""
    folder = tmp_path / "set" / "whole_videos_frames" / "a"
    folder.mkdir(parents=True)
    for number in range(1, 6):
        frame = np.zeros((180, 320, 3), np.uint8)
        frame[10:45, 5:30] = 255
        Image.fromarray(frame).save(folder / frame_name(number), quality=95)
    quads = np.tile(QUADS[:1], (5, 1))
    np.savez(tmp_path / "a.npz", frame=np.arange(1, 6), quads=quads)
    converted(tmp_path / "a.npz", tmp_path / "set")
    boxes.main(["check", "--dataset", str(tmp_path / "set"), "--sheets", str(tmp_path / "sheets")])
    sheet = np.asarray(Image.open(tmp_path / "sheets" / "a.png").convert("RGB")).astype(int)
    cell = sheet[:160, :284]  # a frame of 284 x 160
    yellow = (np.abs(cell - boxes.BOX_COLOUR).max(axis=2) < 40).nonzero()
    assert (yellow[0].min(), yellow[0].max()) == pytest.approx((20 * 160 / 360, 90 * 160 / 360), abs=1)
    assert (yellow[1].min(), yellow[1].max()) == pytest.approx((10 * 284 / 640, 60 * 284 / 640), abs=1)
    with pytest.raises(UserError, match="has no boxes: write them"):
        boxes.main(["check", "--dataset", str(tmp_path)])


def test_shuffled_boxes_are_those_of_another_video(tmp_path: Path):
    box = np.array([[0.0, 0], [4, 0], [4, 4], [0, 4]])
    for at, (name, frames) in enumerate({"a": 3, "b": 5, "sub/c": 4}.items()):
        moving = box + 10 * at + np.arange(frames)[:, None, None]
        found = boxes.Boxes(np.arange(1, frames + 1), moving, 64, 48)
        boxes.write_boxes(boxes.boxes_file(tmp_path / "boxes", name), found)
    boxes.main(["shuffle", "--dataset", str(tmp_path), "--output", str(tmp_path / "mixed")])
    owners = []
    for name, frames in {"a": 3, "b": 5, "sub/c": 4}.items():
        mixed = boxes.read_boxes(boxes.boxes_file(tmp_path / "mixed", name))
        assert mixed.frames.tolist() == list(range(1, frames + 1))
        owners.append(int(mixed.corners[0, 0, 0] // 10))
        first, last = mixed.corners[[0, -1], 0, 0]
        assert last - first == {0: 2, 1: 4, 2: 3}[owners[-1]]  # from the first box of the other video to its last
    assert sorted(owners) == [0, 1, 2]
    assert all(owner != at for at, owner in enumerate(owners))
    with pytest.raises(UserError, match="mixed is not empty: give a new folder"):
        boxes.main(["shuffle", "--dataset", str(tmp_path), "--output", str(tmp_path / "mixed")])
