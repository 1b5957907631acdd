"""Annotation files: the official ones load completely, untrusted ones cannot run code, all faults are reported."""

from __future__ import annotations

import csv
import itertools
import json
import os
import pickle
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_preparation import annotations
from data_preparation.actions import Dive, judge_exceptions, judged_score, overlap_faults, video_name
from data_preparation.annotations import (
    load_annotations,
    load_split,
    load_vocabulary,
    read_annotations,
)
from data_preparation.common.errors import UserError
from data_preparation.datasets import split_faults
from data_preparation.pickles import load_pickle


def test_the_official_files_load_completely(shared: Path):
    folder = shared / "mtl_aqa"
    dives = load_annotations(folder / "final_annotations_dict.pkl", folder / "final_captions_dict.pkl")
    train, test = load_split(folder / "train_split_0.pkl"), load_split(folder / "test_split_0.pkl")
    assert (len(dives), len(train), len(test)) == (1412, 1059, 353)
    assert train[0] == ("18", 67)
    assert split_faults(dives, train, test) == []
    assert {*train, *test} == set(dives)
    first = dives[("01", 1)]
    assert (first.start_frame, first.end_frame, first.frame_count) == (7377, 7462, 86)
    assert (first.difficulty, first.final_score, first.position, first.rotation_type) == (3.2, 88.0, 2, 2)
    assert first.caption[0] == "<sos>"
    assert first.caption[-1] == "<eos>"
    words = load_vocabulary(folder / "vocab.json")
    assert len(words) == 5781
    assert {word for dive in dives.values() for word in dive.caption} <= set(words)


def test_files_with_judges_and_the_unlv_lists_load(shared: Path):
    folder = shared / "mtl_aqa"
    dives = load_annotations(folder / "final_annotations_dict_with_dive_number.pkl")
    assert dives[("01", 1)].dive_number == "407C"
    assert dives[("01", 1)].judge_scores == (9.5, 9.0, 9.5, 9.0, 8.5, 9.5, 8.5)
    unlv = load_split(folder / "unlv_train_split_370_4.pkl")  # numpy.uint8
    assert len(unlv) == 300
    assert all(type(number) is int for _, number in unlv)
    (fault,) = split_faults(dives, unlv, [])
    assert "1 actions without annotation (01/064)" in fault


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


def test_arrays_of_pointers_are_refused(tmp_path: Path):
    """An object array whose 'pointers' are bytes of the file: numpy's own unpickling would follow them."""
    forged = b"\x80\x02cnumpy\nndarray\nK\x01\x85R(K\x01K\x01\x85cnumpy\ndtype\nX\x02\x00\x00\x00O8K\x00K\x01\x87R"
    forged += b"(K\x03X\x01\x00\x00\x00|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    forged += b"\x89c_codecs\nencode\nX\x08\x00\x00\x00AAAAAAAAX\x06\x00\x00\x00latin1\x86Rtb."
    for content in (forged, pickle.dumps(np.array([None, {}], dtype=object)), pickle.dumps(np.zeros(2, "f8,O"))):
        (tmp_path / "evil.pkl").write_bytes(content)
        with pytest.raises(UserError, match=r"evil\.pkl"):
            load_pickle(tmp_path / "evil.pkl")


@pytest.mark.parametrize("keys", ['["11", "12"]', "[[1.9, 1]]", "[[1, 1e999]]"])
def test_split_entries_that_are_not_pairs_of_whole_numbers_are_refused(tmp_path: Path, keys: str):
    (tmp_path / "l.json").write_text(keys)
    with pytest.raises(UserError, match=r"is not a \(video, dive\) pair"):
        load_split(tmp_path / "l.json")
    (tmp_path / "l.csv").write_text("video,dive_no\n1,4\n1,6\n")
    with pytest.raises(UserError, match="needs the columns video and number"):
        load_split(tmp_path / "l.csv")
    (tmp_path / "l.csv").write_text("video\nvault/a2\nvault/a1\n")
    assert load_split(tmp_path / "l.csv", one_each=True) == [("vault/a2", 1), ("vault/a1", 1)]


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
    for load in (load_annotations, load_split):
        with pytest.raises(
            UserError, match=r"missing\.pkl is not a file.*: download MTL-AQA's .*download annotations.*_path"
        ):
            load(tmp_path / "missing.pkl")


def test_all_faults_are_reported_at_once(tmp_path: Path):
    def good(number: int) -> dict:
        return {"start_frame": 100 * number, "end_frame": 100 * number + 80, "difficulty": 3.0, "final_score": 60.0}

    content = {
        (1, 1): good(1),
        (1, 2): {**good(2), "end_frame": 5},
        (1, 3): {**good(3), "difficulty": 0},
        (1, 4): {**good(4), "final_score": float("nan")},
        (1, 5): {k: v for k, v in good(5).items() if k != "final_score"},
        (1, 6): {**good(6), "position": 7},
        (1, 7): {**good(7), "start_frame": "early"},
        (1, 8): None,
        (1, 9): {**good(9), "final_score": 90.5},
        (1, 10): {**good(10), "judge_scores": [7.0, 7.5, 10.5, 7.25]},
        (1, 11): {**good(11), "end_frame": 1350},
        (1, 12): good(12),
        (1, 13): good(13),
    }
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(UserError) as error:
        load_annotations(tmp_path / "a.pkl")
    text = str(error.value)
    for number in range(2, 11):
        assert f"dive 01/{number:03d}: " in text
    assert "dive 01/001" not in text
    assert "final score 90.5 is outside 0 to 90, what judges can give at difficulty 3" in text
    assert "judge score 10.5 is outside 0 to 10 in half points" in text
    assert "judge score 7.25" in text
    # dive 11 overlaps the two dives after it
    assert "dive 01/012: frames 1200 to 1280 overlap those of dive 01/011 (1100 to 1350)" in text
    assert "dive 01/013: frames 1300 to 1380 overlap those of dive 01/011 (1100 to 1350)" in text
    assert len(text.splitlines()) == 12


def test_every_fault_of_a_row_is_reported(tmp_path: Path):
    (tmp_path / "a.csv").write_text(
        "video,dive,start_frame,end_frame,difficulty,final_score\n1,1,5.5,9,3,x\n1,2,20,29,,50\n"
    )
    read = read_annotations(tmp_path / "a.csv")
    assert [fault.split(": ", 1)[1] for fault in read.faults] == [
        "dive 01/001: start_frame '5.5' cannot be parsed: not a whole number",
        "dive 01/001: final_score 'x' cannot be parsed: could not convert string to float: 'x'",
        "dive 01/002: difficulty is missing",
    ]
    assert read.keys == {("01", 1), ("01", 2)}
    assert split_faults(read.keys, [("01", 1)], [("01", 2)]) == []


@pytest.mark.parametrize("content", [{}, [], "text", [(1, 2, 3)], [5], [(1, 2), (1, 2)]])
def test_malformed_lists_are_refused(tmp_path: Path, content):
    (tmp_path / "l.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(UserError):
        load_split(tmp_path / "l.pkl")
    with pytest.raises(UserError):
        load_annotations(tmp_path / "l.pkl")


def test_overlapping_splits_are_refused():
    first, second = ("01", 1), ("01", 2)
    (fault,) = split_faults([first, second], [first, second], [second])
    assert "share 1 actions (01/002)" in fault
    assert split_faults([first, second], [first], [second]) == []


# -------------------------------------------------------------------------------------------------- a user's own files


CSV = """\ufeffvideo_num;start_frame;end_frame;difficulty;final_score;position;rotation_type;armstand;judge_scores;dive_number;caption
1;100;180;3.2;88.0;tuck;Inward;no;9.5 9 9.5 9 8.5 9.5 8.5;407C;A very good dive
1;300;390;3.0;60;B;1;0;;;

2;100;180;1.5;30;0;back;TRUE;;;
"""


def test_a_users_own_csv_becomes_dives(tmp_path: Path):
    (tmp_path / "own.csv").write_text(CSV)
    dives = load_annotations(tmp_path / "own.csv")
    assert list(dives) == [("01", 1), ("01", 2), ("02", 1)]
    first, second, third = dives.values()
    assert (first.position, first.rotation_type, first.armstand, first.dive_number) == (2, 2, 0, "407C")
    assert first.judge_scores == (9.5, 9.0, 9.5, 9.0, 8.5, 9.5, 8.5)
    assert first.caption == ("<sos>", "a", "very", "good", "dive", "<eos>")
    assert (second.position, second.rotation_type, second.judge_scores, second.caption) == (1, 1, None, None)
    assert (third.armstand, third.position, third.ss_no) == (1, 0, None)
    (tmp_path / "train.csv").write_text("video,dive\n1,1\n2,1\n")
    (tmp_path / "test.json").write_text("[[1, 2]]")
    train, test = load_split(tmp_path / "train.csv"), load_split(tmp_path / "test.json")
    assert split_faults(dives, train, test) == []
    assert [*train, *test] == [("01", 1), ("02", 1), ("01", 2)]


def test_csv_and_json_hold_what_the_official_pickle_holds(shared: Path, tmp_path: Path):
    official = load_annotations(shared / "mtl_aqa" / "final_annotations_dict_with_dive_number.pkl")
    rows = [
        {
            "video": d.video,
            "dive": d.number,
            **{k: v for k, v in vars(d).items() if k not in ("video", "number", "caption", "rules")},
        }
        for d in official.values()
    ]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    with open(tmp_path / "a.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows({**row, "judge_scores": " ".join(map(str, row["judge_scores"]))} for row in rows)
    assert load_annotations(tmp_path / "a.json") == load_annotations(tmp_path / "a.csv") == official


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", "has no dives: write one row per dive with the columns video, dive, start_frame"),
        ("a.csv", "dive,start_frame\n1,5\n", "entry 1 has no 'video'"),
        ("a.csv", "video,dive,start_frame,end_frame,difficulty,final_score\n1,1,5.5,9,3,50\n", "start_frame '5.5' cannot be parsed: not a whole number"),
        ("a.csv", "video,dive,start_frame,end_frame,difficulty,final_score\n1,1,5,9,3,50\n1,1,15,19,3,50\n", "dive 01/001: given 2 times"),
        ("a.csv", "video,dive,start_frame,end_frame,difficulty,final_score,position\n1,1,5,9,3,50,layout\n", "position 'layout' cannot be parsed: allowed: free, pike, tuck, d, b, c"),
        ("a.csv", "video,dive,start_frame,end_frame,DD,final_score\n1,1,5,9,3,50\n", r"no dive has 'difficulty'; the columns are .*DD"),
        ("a.csv", "video,dive,start_frame,end_frame,difficulty,final_score,positon\n1,1,5,9,3,50,B\n", "column 'positon' is unknown; did you mean position"),
        ("a.csv", "video,dive,start_frame,end_frame,difficulty,final_score,judges\n1,1,5,9,3,50,9\n", "column 'judges' is unknown; did you mean judge_scores"),
        ("a.csv", "video,dive,start_frame,end_frame,difficulty,final_score\n1,1,5,9,3,0,50,5\n", "row 2: 8 cells for 6 columns"),
        ("a.csv", "video,dive,start_frame,end_frame,difficulty,final_score,final_score\n", "column 'final_score' occurs 2 times"),
        ("a.csv", "video,dive,start_frame,end_frame,difficulty,final_score\n1,1,5,9,3,50\n1,,15,19,3,50\n", "entry 2: give every dive a number"),
        ("a.csv", 'video,dive,start_frame,end_frame,difficulty,final_score,caption\n1,1,5,9,3,50,"open\n1,2,15,19,3,50,x\n', "is not a readable CSV .*check its quotes"),
        ("a.json", "{", "is not JSON"),
        ("a.json", "{}", "is not a JSON list"),
        ("a.json", "[5]", "entry 1 is not a set of named fields"),
        ("a.json", '[{"video": "../x", "dive": 1}]', "video '../x', dive '1': write the name of the video"),
        ("a.csv", b"\xff\xfe\x00", "cannot be read"),
    ],
)  # fmt: skip
def test_faults_of_own_files_are_reported(tmp_path: Path, name: str, content: str | bytes, message: str):
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError, match=message):
        load_annotations(tmp_path / name)


PAIRS = [(2, 1), (1, 4), (1, 2)]


@pytest.mark.parametrize(
    ("saved", "expected"),
    [
        (np.array(PAIRS), PAIRS), (np.array(PAIRS, np.uint8), PAIRS), (np.array(PAIRS, float), PAIRS),
        ([np.array(pair) for pair in PAIRS], PAIRS), (tuple(map(list, PAIRS)), PAIRS),
        (set(PAIRS), sorted(PAIRS)), (frozenset(PAIRS), sorted(PAIRS)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("protocol", [4, 5])
def test_split_lists_in_any_container_load(tmp_path: Path, saved: object, expected: list, protocol: int):
    (tmp_path / "l.pkl").write_bytes(pickle.dumps(saved, protocol))
    expected = [(video_name(video), number) for video, number in expected]
    assert load_split(tmp_path / "l.pkl") == expected
    if isinstance(saved, np.ndarray):
        np.save(tmp_path / "l.npy", saved)
        assert load_split(tmp_path / "l.npy") == expected


@pytest.mark.parametrize(
    ("saved", "words"),
    [
        (dict.fromkeys(PAIRS, 1), r"a dictionary of 3 entries .*pickle list\(dictionary\)"),
        ({"train": PAIRS}, "'train'.*pickle one of its values"),
        (np.array([*PAIRS, (3, 3)]).T, "2 rows of 4 numbers: save it transposed"),
        ({(1, 2), 5}, r"'5' is not a \(video, dive\) pair"),
        ("text", "holds a str"),
    ],
)
def test_a_split_list_in_a_wrong_format_is_refused_with_the_fix(tmp_path: Path, saved: object, words: str):
    (tmp_path / "l.pkl").write_bytes(pickle.dumps(saved))
    with pytest.raises(UserError, match=words):
        load_split(tmp_path / "l.pkl")


HEADER = "video;dive;start_frame;end_frame;difficulty;final_score"
SPREADSHEET_CSVS = {
    "decimal comma": f"{HEADER}\n1;1;5;9;3,4;88,5\n",
    "tabs": HEADER.replace(";", "\t") + "\n1\t1\t5\t9\t3,4\t88,5\n",
    "quoted": HEADER.replace(";", ",") + '\n1,1,5,9,"3,4","88,5"\n',
    "sep": f"sep=;\r\n{HEADER}\r\n1;1;5;9;3,4;88,5\r\n",
    "sep, mark, quotes": f'\ufeff"sep=;"\r\n{HEADER}\r\n1;1;5;9;3,4;88,5\r\n',
    "sep, trailing separators": f"sep=;;;;;;\r\n{HEADER};\r\n1;1;5;9;3,4;88,5;\r\n",
    "capitals": "Video,DIVE,Start_Frame,End Frame,difficulty ,finalScore\n1,1,5,9,3.4,88.5\n",
}


@pytest.mark.parametrize("content", SPREADSHEET_CSVS.values(), ids=SPREADSHEET_CSVS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_csvs_as_spreadsheets_write_them_load(tmp_path: Path, content: str, encoding: str):
    (tmp_path / "a.csv").write_bytes(content.encode(encoding))
    (dive,) = load_annotations(tmp_path / "a.csv").values()
    assert (dive.key, dive.start_frame, dive.difficulty, dive.final_score) == (("01", 1), 5, 3.4, 88.5)


def test_json_and_pickles_with_capitals_or_lists_of_objects_load(tmp_path: Path):
    row = {"Video": 1, "Dive": 1, "Start_Frame": 5, "End_Frame": 9, "Difficulty": "3,4", "Final_Score": 88.5}
    (tmp_path / "a.json").write_text(json.dumps([row]))
    (tmp_path / "a.pkl").write_bytes(pickle.dumps([row]))
    (tmp_path / "b.pkl").write_bytes(pickle.dumps({(1, 1): row}))
    loaded = [load_annotations(tmp_path / name)[("01", 1)] for name in ("a.json", "a.pkl", "b.pkl")]
    assert {(d.start_frame, d.difficulty, d.final_score) for d in loaded} == {(5, 3.4, 88.5)}
    (tmp_path / "l.json").write_text(json.dumps([{"Video": 1, "Dive": 4}, {"Video": 2, "Dive": 1}]))
    assert load_split(tmp_path / "l.json") == [("01", 4), ("02", 1)]


@pytest.mark.parametrize(
    ("judges", "expected"),
    [
        ("9,5 9 8,5", (9.5, 9.0, 8.5)), ("9.5, 9, 8.5", (9.5, 9.0, 8.5)), ("9.5,9,8.5", (9.5, 9.0, 8.5)),
        ("9,5;9;8,5", (9.5, 9.0, 8.5)), ("9,5,9,8", None),
    ],
)  # fmt: skip
def test_judges_scores_are_parsed_if_their_commas_are_unambiguous(tmp_path: Path, judges: str, expected: tuple | None):
    (tmp_path / "a.csv").write_text(f'{HEADER};judge_scores\n1;1;5;9;3,4;60;"{judges}"\n')
    if expected is not None:
        assert load_annotations(tmp_path / "a.csv")[("01", 1)].judge_scores == expected
        return
    with pytest.raises(UserError, match="Put spaces between the scores"):
        load_annotations(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (
            "a.csv",
            HEADER.replace(";", ",") + "\n1,1,5,9,3,4,88,5\n",
            "row 2: 8 cells for 6 columns .*Write a decimal point",
        ),
        ("a.csv", HEADER.replace(";", ",") + ",ss_no\n1,1,5,9,3,0,5,\n1,2,15,19,3.0,5,1\n", "row 2: 8 cells for 7"),
        ("a.csv", f"{HEADER}\n1;1;1.204;1.310;3,4;60\n", "start_frame '1.204' .*thousands separator"),
        ("a.csv", "1,1,5,9,3.4,88\n", "its first line has numbers"),
        ("a.csv", "Video,video,dive\n1,1,4\n", "column 'video' occurs 2 times"),
        ("a.csv", f"{HEADER};caption\n1;1;5;9;3;60;sch\u00f6n\n".encode("cp1252"), "save it again as UTF-8"),
        ("a.json", '{"video": 1}\n{"video": 2}', "put the objects of its lines into one list"),
        ("a.json", '{"train": []}', "an object with 'train'"),
        ("a.xlsx", "PK", "save the sheet as CSV"),
    ],
)
def test_ambiguous_files_are_refused_with_cause_and_fix(tmp_path: Path, name: str, content: str | bytes, words: str):
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError, match=words):
        load_annotations(tmp_path / name)


def test_the_message_about_a_missing_file_names_similar_files(tmp_path: Path):
    (tmp_path / "Dives.csv").write_text("x")
    with pytest.raises(UserError, match=r"dives.pkl is not a file \(.* has Dives.csv\)"):
        load_annotations(tmp_path / "dives.pkl")
    with pytest.raises(UserError, match=r"the folder .*/missing does not exist either"):
        load_split(tmp_path / "missing" / "train.csv")


def test_facts_of_videos_are_read_and_must_agree(tmp_path: Path):
    rows = "{0},Frames_Per_Second,video_frames\n1,1,5,9,3,60,29.97,100\n1,2,15,19,3,60,{1},\n2,1,5,9,3,60,,\n"
    path = tmp_path / "a.csv"
    path.write_text(rows.format(HEADER.replace(";", ","), "29.97"))
    facts = read_annotations(path).facts
    assert list(facts) == ["01"]
    assert (float(facts["01"].frames_per_second), facts["01"].frames, facts["01"].stated_by) == (29.97, 100, "a.csv")
    for other, words in (
        ("25", r"video 01: frames_per_second is .* in one row and 25 in another \(dive 01/002\)"),
        ("fast", "frames_per_second 'fast' cannot be parsed"),
        ("30000/0", "frames_per_second '30000/0' cannot be parsed"),
    ):
        path.write_text(rows.format(HEADER.replace(";", ","), other))
        with pytest.raises(UserError, match=words):
            load_annotations(path)
    path.write_text(f"{HEADER};video_frames\n1;1;5;109;3;60;100\n")
    with pytest.raises(UserError, match="ends at frame 109, but video_frames states that its video has 100"):
        load_annotations(path)


# ------------------------------------------------------------------------------------------------------ rules, summary


def test_the_judges_rule_holds_for_all_but_27_of_the_real_dives(shared: Path):
    dives = load_annotations(shared / "mtl_aqa" / "final_annotations_dict_with_dive_number.pkl")
    exceptions = judge_exceptions(dives.values())
    assert len(exceptions) == 27
    assert {("01", 70), ("02", 1), ("26", 39)} <= {d.key for d in exceptions}
    assert judged_score(dives[("01", 70)]) == pytest.approx(37.95)


@given(
    st.lists(st.integers(0, 20).map(lambda half: half / 2), min_size=7, max_size=7),
    st.sampled_from([1.5, 2.6, 3.2, 4.1]),
)
def test_a_score_by_the_rules_has_no_fault_and_is_not_an_exception(judges: list[float], difficulty: float):
    score = sum(sorted(judges)[2:5]) * difficulty
    dive = Dive("01", 1, 1, 9, difficulty=difficulty, final_score=score, judge_scores=tuple(judges))
    assert dive.faults() == []
    assert judge_exceptions([dive]) == []
    assert judge_exceptions([replace(dive, final_score=score + 1)]) != []


@given(st.lists(st.tuples(st.integers(1, 2), st.integers(1, 60), st.integers(0, 20)), max_size=7, unique=True))
def test_overlap_faults_are_exactly_the_dives_that_share_frames(spans: list[tuple[int, int, int]]):
    dives = [
        Dive(video_name(v), i, start, start + length, difficulty=3.0, final_score=60.0)
        for i, (v, start, length) in enumerate(spans)
    ]
    shared = {
        max(a, b, key=lambda d: (d.start_frame, d.end_frame)).name
        for a, b in itertools.combinations(dives, 2)
        if a.video == b.video and a.start_frame <= b.end_frame and b.start_frame <= a.end_frame
    }
    assert {fault.split(":")[0].removeprefix("dive ") for fault in overlap_faults(dives)} == shared


def test_the_summary_of_the_official_files(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    folder = shared / "mtl_aqa"
    lists = ["--train_path", str(folder / "train_split_0.pkl"), "--test_path", str(folder / "test_split_0.pkl")]
    numbered = str(folder / "final_annotations_dict_with_dive_number.pkl")
    annotations.main(["summary", "--annotation_path", numbered, *lists])
    output = capsys.readouterr().out
    assert "1412 in 15 videos; 1059 in the train list, 353 in the test list, 0 in neither" in output
    assert "151364 in dives" in output
    assert "free: 152, pike: 702, tuck: 558" in output
    assert "the judges' scores of 27 dives do not give the final score" in output
    assert re.search(r"^ +26 +124 +91 +33 +19546 +271724 +12881$", output, re.MULTILINE)


def test_overlapping_lists_are_refused_and_can_be_made_disjoint(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    """A smaller training set that shares dives with the test list, as MTL-AQA's do."""
    folder = shared / "mtl_aqa"
    train, test = load_split(folder / "train_split_0.pkl"), load_split(folder / "test_split_0.pkl")
    (tmp_path / "small.pkl").write_bytes(pickle.dumps([*train[:107], *test[:36]]))
    numbered, listed = str(folder / "final_annotations_dict.pkl"), ["--test_path", str(folder / "test_split_0.pkl")]
    small = ["--train_path", str(tmp_path / "small.pkl")]
    with pytest.raises(UserError, match=r"share 36 actions .*annotations disjoint .*smaller training sets"):
        annotations.main(["summary", "--annotation_path", numbered, *small, *listed])
    annotations.main(["disjoint", *small, *listed, "--output", str(tmp_path / "clean.pkl")])
    assert "107 dives; 36 that are in the test list were left out" in capsys.readouterr().out
    assert load_split(tmp_path / "clean.pkl") == train[:107]
    for name in ("clean.csv", "clean.json"):
        annotations.main(["disjoint", *small, *listed, "--output", str(tmp_path / name)])
        assert load_split(tmp_path / name) == train[:107]
    with pytest.raises(UserError, match=r"give a name that ends in \.pkl, \.csv, \.json"):
        annotations.main(["disjoint", *small, *listed, "--output", str(tmp_path / "clean.txt")])
    with pytest.raises(UserError, match="--output missing"):
        annotations.main(["disjoint", *small, *listed])


def test_a_file_is_parsed_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    parsed: list[Path] = []
    rows = annotations._rows
    monkeypatch.setattr(annotations, "_rows", lambda path, columns: parsed.append(path) or rows(path, columns))
    path = tmp_path / "own.csv"
    path.write_text(CSV)
    first = load_annotations(path)
    first.clear()
    read_annotations(path).facts.clear()
    assert len(load_annotations(str(path))) == 3
    assert len(parsed) == 1
    times = path.stat()
    path.write_text(CSV.replace("88.0", "87.0"))  # same size and same modification time
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert load_annotations(path)[("01", 1)].final_score == 87.0
    assert len(parsed) == 2
