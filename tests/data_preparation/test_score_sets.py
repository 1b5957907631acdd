"""AQA-7, JIGSAWS and UNLV-Dive: the released layouts, their numbers, and bad files."""

from __future__ import annotations

import functools
import io
import pickle
import struct
import zlib
from collections import Counter
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from scipy.io import savemat

from data_preparation.annotations import load_annotations, load_split
from data_preparation.common.errors import UserError
from data_preparation.datasets import AnnotationFiles, DataSet, aqa7, read
from data_preparation.identity import mtl_aqa_names
from data_preparation.number_files import read_numbers
from data_preparation.pickles import load_pickle
from tests.conftest import run_main
from tests.data_preparation.layouts_scores import (
    POINTS,
    drawn_unlv_dive,
    write_aqa7,
    write_jigsaws,
    write_unlv_dive,
)
from training.metrics import baselines


def read_set(kind: str, folder: Path) -> DataSet:
    return read(kind, AnnotationFiles(folder))


# ---------------------------------------------------------------------------------------------------------------- AQA-7


@pytest.mark.parametrize("hundredfold", [False, True])
def test_aqa7_reads_both_copies_of_its_lists(tmp_path, hundredfold):
    rows = write_aqa7(tmp_path, hundredfold=hundredfold)
    found = read_set("aqa7", tmp_path)
    assert (found.faults, found.warnings) == ((), ())
    split = found.splits["official"]
    for part, keys in (("train", split.train), ("test", split.test)):
        actions = [found.actions[key] for key in keys]
        assert [a.final_score for a in actions] == rows[part][
            :, 2
        ].tolist()  # points to the last bit, in the list's order
        for number, kind in aqa7.KINDS.items():
            of_kind = [a for a in actions if a.kind == kind.name]
            assert len(of_kind) == getattr(kind.clips, part)
            assert sum(int(a.video.split("/")[1]) for a in of_kind) == getattr(kind.number_sums, part)
            scores = [a.final_score for a in of_kind]
            assert (min(scores), max(scores)) == POINTS[number][part == "test"]
    action = found.actions["diving/054", 1]
    assert (action.start_frame, action.end_frame, action.difficulty, action.group) == (1, 103, None, "")
    assert (action.rules.low, action.rules.high) == (21.6, 102.6)
    assert len(found.actions) == 1106


def test_aqa7_reports_all_faults_at_once(tmp_path):
    rows = write_aqa7(tmp_path, hundredfold=True)
    train, test = rows["train"], rows["test"]
    train[0, 0] = 7  # trampoline
    train[1, 1] = 371
    train[2, 2] = 102.7
    train[3, 2] = np.nan
    train[4] = train[5]
    test[0] = train[6]
    for part, table in rows.items():
        name = f"consolidated_{part}_list"
        savemat(tmp_path / f"{name}.mat", {name: table})
    faults = "\n".join(read_set("aqa7", tmp_path).faults)
    for words in (
        "row 1: class 7 is not one of 1 to 6",
        "row 2: diving has clips 1 to 370, not 371",
        "row 3: score 102.7",
        "row 4: score nan",
        "is listed twice",
        "and in the train list",
        "it has 295 valid clips of diving and the released list 300",
    ):
        assert words in faults


def test_aqa7_warns_of_another_split_and_misses_a_list(tmp_path):
    rows = write_aqa7(tmp_path, hundredfold=True)
    (a, b) = (np.flatnonzero(rows[part][:, 0] == 6)[0] for part in ("train", "test"))
    rows["train"][a], rows["test"][b] = rows["test"][b].copy(), rows["train"][a].copy()
    for part, table in rows.items():
        name = f"consolidated_{part}_list"
        savemat(tmp_path / f"{name}.mat", {name: table})
    found = read_set("aqa7", tmp_path)
    assert found.faults == ()
    assert len(found.warnings) == 2
    assert "sync_diving_10m clips are not those of the released split 4" in found.warnings[0]
    (tmp_path / "consolidated_test_list.mat").unlink()
    with pytest.raises(UserError, match=r"has not both lists of AQA-7 \(only consolidated_train_list\.mat\)"):
        read_set("aqa7", tmp_path)


@functools.cache
def bad_mat_files() -> dict[str, tuple[bytes, str]]:
    """Name -> (content of a .mat file, words of the message)."""

    def saved(**content) -> bytes:
        file = io.BytesIO()
        savemat(file, content, do_compression=False)
        return file.getvalue()

    good = saved(numbers=np.arange(12.0).reshape(4, 3))
    objects, struct_ = saved(numbers=np.array([[1, "text"]], dtype=object)), saved(numbers={"field": 1})
    bomb = zlib.compress(bytes(20 << 20))
    shape = good.index(struct.pack("<IIii", 5, 8, 4, 3))
    return {
        "objects": (objects, "no matrix of numbers"),
        "structure": (struct_, "no matrix of numbers"),
        "text": (saved(numbers="text"), "no matrix of numbers"),
        "complex": (saved(numbers=np.array([1j])), "real numbers"),
        "other name": (saved(other=np.arange(3)), "no matrix of numbers numbers (its matrices of numbers: other)"),
        "bomb": (good[:128] + struct.pack("<II", 15, len(bomb)) + bomb, "unpacks to more than a list needs"),
        "claims": (good.replace(good[shape : shape + 16], struct.pack("<IIii", 5, 8, 2**30, 2**30)), "more than a list needs"),
        "lies": (good.replace(good[shape : shape + 16], struct.pack("<IIii", 5, 8, 40, 30)), "not a readable MATLAB file"),
        "short": (good[:-20], "not a readable MATLAB file"),
        "hdf5": (b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(400), "not a readable MATLAB file"),
        "empty": (b"", "empty"),
        "pickle": (pickle.dumps([1, 2]), "it is a pickle"),
    }  # fmt: skip


@pytest.mark.parametrize("name", bad_mat_files())
def test_bad_mat_files_are_refused(tmp_path, name):
    content, words = bad_mat_files()[name]
    path = tmp_path / "list.mat"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_numbers(path, "numbers")
    message = str(caught.value)
    assert str(path) in message
    assert words in message
    assert "\n" not in message


def test_damaged_npy_files_are_refused(tmp_path):
    path = tmp_path / "list.npy"
    for array, damage in ((np.array([{}], dtype=object), 0), (np.arange(100), 9), (np.array(["a"]), 0)):
        np.save(path, array)
        path.write_bytes(path.read_bytes()[: -damage or None])
        with pytest.raises(UserError, match=r"list\.npy"):
            read_numbers(path)


# -------------------------------------------------------------------------------------------------------------- JIGSAWS


def test_jigsaws_reads_labels_and_folds(tmp_path):
    labels, splits = write_jigsaws(tmp_path, frames=5)
    found = read_set("jigsaws", tmp_path / "annotations")
    assert found.faults == ()
    assert len(found.warnings) == 4  # surgeons in both parts of each fold
    assert "8 groups (B, C, D, E, F, ...)" in found.warnings[0]
    assert Counter(a.kind for a in found.actions.values()) == {"Suturing": 39, "Needle_Passing": 28, "Knot_Tying": 36}
    action = found.actions["Suturing/Suturing_I002_capture1", 1]
    assert action.judge_scores == tuple(labels["Suturing_I002"])
    assert action.final_score == sum(labels["Suturing_I002"]) == action.rules.total(action.judge_scores, None)
    assert (action.group, action.start_frame, action.end_frame) == ("I", 1, 5)
    assert (action.rules.low, action.rules.high) == (6, 30)
    tested = [key for fold in range(1, 5) for key in found.split("official", fold).test]
    assert len(tested) == len(set(tested)) == 103
    for fold in range(1, 5):
        split = found.split("official", fold)
        assert sorted([*split.train, *split.test]) == sorted(found.actions)
        names = {Path(video).name.removesuffix("_capture1") for video, _ in split.test}
        assert names == {name for lists in splits.values() for name in lists[fold - 1]}


def test_jigsaws_reports_all_faults_at_once(tmp_path):
    labels, splits = write_jigsaws(tmp_path)
    labels["Suturing_I002"] = [1, 2, 3]
    labels["Suturing_B001"] = [0, 2, 3, 4, 5, 6]
    labels["Suturing_X001"] = [1] * 6
    labels["Knot_Tying_B001_capture1"] = [1] * 6
    splits["Needle_Passing"][1][0] = splits["Needle_Passing"][0][0]
    splits["Knot_Tying"][3].append("Suturing_C001")
    annotations = tmp_path / "annotations"
    (annotations / "label.pkl").write_bytes(pickle.dumps(labels))
    (annotations / "splits.pkl").write_bytes(pickle.dumps(splits))
    counts = (annotations / "frames.csv").read_text().splitlines(keepends=True)
    (annotations / "frames.csv").write_text("".join(counts[:-1]))
    faults = "\n".join(read_set("jigsaws", annotations).faults)
    for words in (
        "Suturing_I002 has [1, 2, 3]: give 6 whole numbers from 1 to 5",
        "Suturing_B001 has [0, 2, 3, 4, 5, 6]",
        "'Suturing_X001' is not the name of a clip",
        "Knot_Tying_B001 is given twice, with and without _capture1",
        "Suturing has 37 clips and the released file 39 (trials of surgeons B 4 instead of 5, I 4 instead of 5)",
        "is in fold 1 and in fold 2: keep one, the folds must not overlap",
        "fold 4 of Knot_Tying has 10 clips and the released one 9",
        "names 'Suturing_C001', which has no label of that task",
        "1 labelled clips are in no fold",
        "frames.csv lacks the number of frames of 1 clips",
    ):
        assert words in faults


# ------------------------------------------------------------------------------------------------------------ UNLV-Dive


@pytest.mark.parametrize("suffix", [".npy", ".mat"])
def test_unlv_dive_reads_number_based_lists(tmp_path, suffix):
    scores, difficulties, train = drawn_unlv_dive()
    write_unlv_dive(tmp_path, scores, difficulties, train, suffix=suffix)
    found = read_set("unlv_dive", tmp_path)
    assert found.faults == ()
    assert [text[:23] for text in found.warnings] == ["3 groups (01, 02, 03) h"]
    split = found.splits["official"]
    assert (len(split.train), len(split.test)) == (300, 70)
    assert {video for video, _ in split.train} == {f"diving/{n:03d}" for n in train}  # 256 and more, too
    dive = found.actions["diving/256", 1]
    assert (dive.final_score, dive.difficulty) == (scores[255], difficulties[255])
    assert Counter(d.group for d in found.actions.values()) == {"03": 72, "02": 108, "01": 190}


def test_unlv_dive_reports_all_faults_at_once(tmp_path):
    scores, difficulties, train = drawn_unlv_dive()
    scores[4], difficulties[5], train[1] = 103, -1, train[0]
    write_unlv_dive(tmp_path, scores, difficulties, train)
    np.save(tmp_path / "testing_idx.npy", np.array([*range(1, 70), 371], np.uint16))
    faults = "\n".join(read_set("unlv_dive", tmp_path).faults)
    for words in (
        "difficulty -1",
        "score 103 of dive 5",
        f"names dive {train[0]} 2 times",
        "371 is not the number",
        "the train and test lists share ",
    ):
        assert words in faults
    (tmp_path / "training_idx.npy").rename(tmp_path / "train_split_370_4.pkl")
    with pytest.raises(
        UserError, match=r"train_split_370_4\.pkl cannot replace them: 191 of their 370 keys name another"
    ):
        read_set("unlv_dive", tmp_path)


def test_unlv_dive_has_the_published_numbers(tmp_path, shared):
    """All dives are those of three MTL-AQA videos in order; MTL-AQA's keys of the train list give the numbers back."""
    folder = shared / "mtl_aqa"
    annotated = load_annotations(folder / "final_annotations_dict.pkl")
    left_out = {("03", 9), ("01", 70)}  # the only pair for which the sums of both lists are the published ones
    sources = [
        key for video in ("03", "02", "01") for key in sorted(annotated) if key[0] == video and key not in left_out
    ]
    before = {3: 0, 2: 72, 1: 180}
    train = np.array([before[int(v)] + int(n) for v, n in load_pickle(folder / "unlv_train_split_370_4.pkl")])
    scores, difficulties = (
        np.array([getattr(annotated[key], name) for key in sources]) for name in ("final_score", "difficulty")
    )
    write_unlv_dive(tmp_path, scores, difficulties, train)
    found = read_set("unlv_dive", tmp_path)
    assert found.faults == ()
    assert len(found.warnings) == 1  # so the sums of the numbers are 55,942 and 12,693
    split = found.splits["official"]
    known, test = ([found.actions[key] for key in keys] for keys in (split.train, split.test))
    # MTL-AQA gives two dives 0.1 points more or less
    assert sum(d.final_score for d in known) == pytest.approx(23_664.60, abs=0.11)
    assert sum(d.final_score for d in test) == pytest.approx(5_431.90, abs=0.11)
    results = baselines(known, test)
    assert results["train mean"]["mse"] == pytest.approx(243.30, abs=0.1)
    assert results["train mean"]["r_l2_x100"] == pytest.approx(3.708, abs=2e-3)
    seen = {key: set(load_split(folder / f"{key}_split_0.pkl")) for key in ("train", "test")}
    of_number = dict(zip(found.actions, sources, strict=True))
    assert mtl_aqa_names(found.actions.values()) == of_number  # what guards against shared actions finds
    overlap = [sum(of_number[d.key] in seen[part] for d in part_of) for part_of in (known, test) for part in seen]
    assert overlap == [220, 80, 51, 19]


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("aqa7", ["consolidated_train_list.mat", "consolidated_test_list.mat"]),
        ("jigsaws", ["label.pkl", "splits.pkl"]),
        ("unlv_dive", ["training_idx.npy", "testing_idx.npy", "overall_scores.npy", "difficulty_level.npy"]),
    ],
)
def test_all_unreadable_files_are_named(tmp_path, kind, names):
    for name in names:
        (tmp_path / name).write_bytes(pickle.dumps(Fraction(1, 2)) if kind == "jigsaws" else b"MATLAB 5.0 MAT-file")
    with pytest.raises(UserError) as caught:
        read_set(kind, tmp_path)
    assert [line.split(" ")[0].rstrip(":") for line in str(caught.value).splitlines()] == [
        str(tmp_path / n) for n in names
    ]


# ------------------------------------------------------------------------------------------------------ command lines


def test_summaries_count_each_kind(tmp_path):
    write_aqa7(tmp_path / "a" / "annotations")
    write_jigsaws(tmp_path / "j")
    write_unlv_dive(tmp_path / "u" / "annotations", *drawn_unlv_dive())
    printed = {
        kind: run_main(
            "data_preparation.annotations", "summary", "--dataset", tmp_path / kind[0], "--dataset_kind", kind
        ).stdout
        for kind in ("aqa7", "jigsaws", "unlv_dive")
    }
    for kind in aqa7.KINDS.values():
        counts = f"{sum(kind.clips)} actions, {kind.clips.train} to train, {kind.clips.test} to test"
        assert f"({kind.name}: {counts}, range {kind.low:g} to {kind.high:g})" in printed["aqa7"]
    assert "(Needle_Passing: 28 actions, range 6 to 30)" in printed["jigsaws"]
    assert "fold1: 78 to train and 25 to test; fold2: 77" in printed["jigsaws"]
    assert "the rules give the final score of 103" in printed["jigsaws"]
    assert "370 in 370 videos; 300 in the train list, 70 in the test list" in printed["unlv_dive"]


def test_a_clip_of_aqa7_has_103_frames(tmp_path):
    write_aqa7(tmp_path / "annotations")
    folder = tmp_path / "whole_videos" / "diving"
    folder.mkdir(parents=True)
    for name, frames in (("001", 103), ("002", 102)):
        write_clip(folder / f"{name}.avi", frames)
    flags = ["--dataset", tmp_path, "--dataset_kind", "aqa7", "--workers", 1, "--videos"]
    run_main("data_preparation.extract", *flags, "diving/001", "--height", 0)
    assert "All frames of all actions" in run_main("data_preparation.verify", *flags, "diving/001").stdout.replace(
        "dives", "actions"
    )
    failed = run_main("data_preparation.extract", *flags, "diving/002", "--height", 0, check=False)
    assert failed.returncode == 2
    assert "002.avi has 102 frames" in failed.stderr
    failed = run_main("data_preparation.verify", *flags, "diving/002", check=False)
    assert failed.returncode == 2
    assert "--videos diving/002 --dataset_kind aqa7" in failed.stderr


def write_clip(path: Path, frames: int) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(frames):
            picture = np.full((48, 64, 3), number * 2, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        container.mux(stream.encode())
