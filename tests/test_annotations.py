"""Annotation files: the real ones load whole, untrusted ones cannot run code, faults are all named."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from data_preparation.annotations import (
    check_disjoint,
    load_annotations,
    load_split,
    load_vocabulary,
    select,
)
from data_preparation.cli import UserError
from data_preparation.pickles import load_pickle


def test_the_official_files_load_whole(shared: Path):
    folder = shared / "mtl_aqa"
    dives = load_annotations(folder / "final_annotations_dict.pkl", folder / "final_captions_dict.pkl")
    train, test = load_split(folder / "train_split_0.pkl"), load_split(folder / "test_split_0.pkl")
    assert (len(dives), len(train), len(test)) == (1412, 1059, 353)
    assert train[0] == (18, 67)
    check_disjoint(train, test)
    assert {d.key for d in [*select(dives, train, "train"), *select(dives, test, "test")]} == set(dives)
    first = dives[(1, 1)]
    assert (first.start_frame, first.end_frame, first.frame_count) == (7377, 7462, 86)
    assert (first.difficulty, first.final_score, first.position, first.rotation_type) == (3.2, 88.0, 2, 2)
    assert first.caption[0] == "<sos>"
    assert first.caption[-1] == "<eos>"
    words = load_vocabulary(folder / "vocab.json")
    assert len(words) == 5781
    assert all(word in set(words) for dive in dives.values() for word in dive.caption)


def test_the_files_with_judges_and_of_unlv_load(shared: Path):
    folder = shared / "mtl_aqa"
    dives = load_annotations(folder / "final_annotations_dict_with_dive_number.pkl")
    assert dives[(1, 1)].dive_number == "407C"
    assert dives[(1, 1)].judge_scores == (9.5, 9.0, 9.5, 9.0, 8.5, 9.5, 8.5)
    unlv = load_split(folder / "unlv_train_split_370_4.pkl")  # numpy.uint8
    assert len(unlv) == 300
    assert all(type(part) is int for key in unlv for part in key)
    with pytest.raises(UserError, match=r"1 dives without annotation \(01/064\)"):
        select(dives, unlv, "the UNLV list")


class Malicious:
    def __init__(self, function, *arguments) -> None:
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "attack", [Malicious(os.system, "touch pwned"), Malicious(eval, "open('pwned', 'w')"), Malicious(np.load, "x")]
)
def test_a_malicious_pickle_is_refused_by_name(tmp_path: Path, protocol: int, attack: Malicious):
    path = tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps({(1, 1): attack}, protocol))
    with pytest.raises(
        UserError, match=r"refused: the pickle wants to load '(posix|nt|builtins|__builtin__|numpy\S*)\."
    ):
        load_pickle(path)
    assert not Path("pwned").exists()


@pytest.mark.parametrize("protocol", range(6))
def test_numpy_scalars_and_arrays_of_any_protocol_load(tmp_path: Path, protocol: int):
    content = {(np.uint8(1), np.int64(2)): np.array([1.5, 2.0]), "words": ["a", None, True]}
    (tmp_path / "n.pkl").write_bytes(pickle.dumps(content, protocol))
    found = load_pickle(tmp_path / "n.pkl")
    assert found[(1, 2)].tolist() == [1.5, 2.0]


@pytest.mark.parametrize("content", [b"", b"\x80\x04garbage", b"<html>", pickle.dumps([1])[:-2]])
def test_a_damaged_pickle_is_one_sentence(tmp_path: Path, content: bytes):
    (tmp_path / "d.pkl").write_bytes(content)
    with pytest.raises(UserError, match=r"d\.pkl is not a readable pickle"):
        load_pickle(tmp_path / "d.pkl")
    with pytest.raises(UserError, match="cannot be read"):
        load_pickle(tmp_path / "missing.pkl")


def test_all_faults_are_named_at_once(tmp_path: Path):
    good = {"start_frame": 10, "end_frame": 90, "difficulty": 3.0, "final_score": 60.0}
    content = {
        (1, 1): good,
        (1, 2): {**good, "end_frame": 5},
        (1, 3): {**good, "difficulty": 0},
        (1, 4): {**good, "final_score": float("nan")},
        (1, 5): {k: v for k, v in good.items() if k != "final_score"},
        (1, 6): {**good, "position": 7},
        (1, 7): {**good, "start_frame": "early"},
        (1, 8): None,
    }
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(UserError) as error:
        load_annotations(tmp_path / "a.pkl")
    lines = str(error.value).splitlines()
    assert len(lines) == 7
    for number, line in zip(range(2, 9), lines, strict=True):
        assert f"dive 01/{number:03d}" in line


@pytest.mark.parametrize("content", [{}, [], "text", [(1, 2, 3)], [5], [(1, 2), (1, 2)]])
def test_odd_lists_are_refused(tmp_path: Path, content):
    (tmp_path / "l.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(UserError):
        load_split(tmp_path / "l.pkl")
    with pytest.raises(UserError):
        load_annotations(tmp_path / "l.pkl")


def test_overlapping_splits_are_refused():
    with pytest.raises(UserError, match=r"share 1 dives, the first of them \(1, 2\)"):
        check_disjoint([(1, 1), (1, 2)], [(1, 2)])
