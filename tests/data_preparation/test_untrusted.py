"""Files that were made to break their readers: each gives sentences that name the file and its fix, and nothing hangs."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_preparation import datasets
from data_preparation.common.errors import UserError
from data_preparation.common.files import write_atomic
from data_preparation.datasets import AnnotationFiles
from data_preparation.loose_frames import frame_files
from data_preparation.pickles import load_pickle
from tests.data_preparation.layouts_scores import drawn_unlv_dive, write_jigsaws, write_unlv_dive
from training.runtime.run_folder import read_json
from training.tasks.score import ScoreTask

TABLE = "video,start_frame,end_frame,{}\n"


def npy_header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def references(width: int, depth: int) -> list:
    content: list[Any] = [0]
    for _ in range(depth):
        content = [content] * width
    return content


def nested(depth: int) -> bytes:
    return b"\x80\x04" + b"]" * depth + b"a" * (depth - 1) + b"."


def faults_of(kind: str, path: Path) -> str:
    try:
        return "\n".join(datasets.read(kind, AnnotationFiles(path)).faults)
    except UserError as error:
        return str(error)


@pytest.mark.parametrize("content", [b"PK\x03\x04" + bytes(99), npy_header("((((((\n"), npy_header("(" * 9000)])
def test_damaged_arrays_of_numbers(tmp_path: Path, content: bytes):
    write_unlv_dive(tmp_path, *drawn_unlv_dive())
    (tmp_path / "overall_scores.npy").write_bytes(content)
    assert "overall_scores.npy is not a readable array" in faults_of("unlv_dive", tmp_path)


@pytest.mark.parametrize("part", [1, [1, 2, 3, 4], [None] * 4, np.array(3), {}, [range(10**6)] * 4])
def test_folds_of_other_types(tmp_path: Path, part: Any):
    write_jigsaws(tmp_path)
    folder = tmp_path / "annotations"
    (folder / "splits.pkl").write_bytes(pickle.dumps(dict.fromkeys(("Suturing", "Needle_Passing", "Knot_Tying"), part)))
    assert "splits.pkl" in faults_of("jigsaws", folder)


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps({"a": 10**400}),
        pickle.dumps(references(10, 12)),
        pickle.dumps(range(9_000_000)),
        nested(50_000),
        b"\x80\x04cnumpy\nndarray\n)\x81.",
        pickle.dumps({"\ud800": 1}),
    ],
    ids=["huge number", "references", "range", "nested", "half-built array", "surrogate"],
)
def test_pickles_that_expand(tmp_path: Path, content: bytes):
    (tmp_path / "a.pkl").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.pkl: refused") as raised:
        load_pickle(tmp_path / "a.pkl")
    assert len(str(raised.value).splitlines()) == 1


def text(name: str, content: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_text(content)
        return folder if name in ("train.txt", "test.txt", "classInd.txt") else folder / name

    return write


DIGITS = "9" * 5000


@pytest.mark.parametrize(
    ("kind", "write"),
    [
        ("table", text("a.csv", TABLE.format("label") + f"1,1,9,{DIGITS}\n")),
        ("clips", text("classInd.txt", f"{DIGITS} Punch\n")),
        ("pecop_list", text("list.txt", f"a 0 {DIGITS} b\n")),
        (
            "table",
            text("a.json", '[{"video": 1, "start_frame": 1, "end_frame": 9, "final_score": 1, "kind": "\\ud800"}]'),
        ),
        ("table", text("a.json", f'[{{"video": 1, "start_frame": {"9" * 400}, "end_frame": 9, "final_score": 1}}]')),
        ("table", text("a.json", "[" * 100_000)),
    ],
)
def test_numbers_and_text_of_tables(tmp_path: Path, kind: str, write: Callable[[Path], Path]):
    found = faults_of(kind, write(tmp_path))
    assert str(tmp_path) in found
    assert DIGITS not in found


@pytest.mark.parametrize("content", ["[" * 100_000, DIGITS, "{"])
def test_damaged_records_of_runs(tmp_path: Path, content: str):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config\.json is not JSON"):
        read_json(tmp_path / "config.json")


def test_many_faults_are_shortened(tmp_path: Path):
    rows = [{"video": n, "start_frame": 9, "end_frame": 1, "final_score": 1} for n in range(3000)]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    found = faults_of("table", tmp_path / "a.json").splitlines()
    assert (len(found), found[-1]) == (51, "and 2950 more faults")


def test_a_message_has_no_control_characters():
    assert str(UserError("a\x1b[2Jb\ud800")) == "a\\x1b[2Jb\\ud800"


def test_a_pipe_is_not_replaced(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="not a regular file"):
        write_atomic(tmp_path / "pipe", b"")
    assert os.listdir(tmp_path) == ["pipe"]


@pytest.mark.parametrize(
    ("columns", "cells", "words"),
    [
        ("final_score,judge_scores", "1,nan 1", "write finite numbers"),
        ("final_score,low,high", "1,-inf,inf", "write a finite number"),
        ("final_score,low,high", "1,nan,2", "write a finite number"),
        ("label", "-1", "labels count from 0"),
    ],
)
def test_impossible_values_of_tables(tmp_path: Path, columns: str, cells: str, words: str):
    (tmp_path / "a.csv").write_text(TABLE.format(columns) + f"1,1,9,{cells}\n")
    assert words in faults_of("table", tmp_path / "a.csv")


def test_true_is_not_a_number(tmp_path: Path):
    (tmp_path / "a.json").write_text(json.dumps([{"video": 1, "start_frame": True, "end_frame": 9, "final_score": 1}]))
    assert "true and false are not numbers" in faults_of("table", tmp_path / "a.json")


@pytest.mark.parametrize(
    ("train", "test", "words"),
    [
        ("a 0 9 0\nb 0 9 1\n", "a 5 9 0\nc 0 9 1\n", "have frames of a clip of the other list"),
        ("a 0 9 0\na 0 8 0\nb 0 9 1\n", "c 0 9 1\n", "different numbers of frames"),
        ("a 0 9 0\nb 0 9 1\n", "a 9 9 0\nc 0 9 1\n", ""),
    ],
)
def test_clips_of_both_lists_share_no_frames(tmp_path: Path, train: str, test: str, words: str):
    (tmp_path / "train.txt").write_text(train)
    (tmp_path / "test.txt").write_text(test)
    found = faults_of("clips", tmp_path)
    assert words in found if words else not found


def test_lists_without_folds_have_no_second_fold(tmp_path: Path):
    data = datasets.DataSet({}, {"official": datasets.Split((), ())})
    with pytest.raises(UserError, match="leave out --fold 2"):
        data.split("official", 2)


def test_a_frame_number_of_many_digits(tmp_path: Path):
    (tmp_path / "99999999999999999999.jpg").touch()
    with pytest.raises(UserError, match="too many digits"):
        frame_files(tmp_path)


@pytest.mark.parametrize("score", ["1e308", "-1e10", "nan"])
def test_predictions_of_impossible_size(score: str):
    with pytest.raises(ValueError, match="a score is"):
        ScoreTask().read([{"true_score": "1", "predicted_score": score}])


@pytest.mark.parametrize("kind", ["aqa7", "unlv_dive", "jigsaws"])
def test_a_missing_folder_is_named(tmp_path: Path, kind: str):
    assert faults_of(kind, tmp_path / "absent" / "folder").startswith(f"{tmp_path}/absent/folder does not exist")


def test_a_table_without_separators(tmp_path: Path):
    (tmp_path / "a.csv").write_text("video start_frame end_frame label\n1 1 9 a\n")
    assert "separate the cells with commas" in faults_of("table", tmp_path / "a.csv")


def test_a_wrong_label_of_clips_is_one_fault(tmp_path: Path):
    (tmp_path / "train.txt").write_text("a 0 9 0\nb 0 9 0\n")
    (tmp_path / "test.txt").write_text("c 0 9 5\n")
    assert len(faults_of("clips", tmp_path).splitlines()) == 1
