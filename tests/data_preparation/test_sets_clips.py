"""The readers of FineDiving, FR-FS and labelled clips on generated files in the released formats, with their traps."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data_preparation import boxes, count_frames, datasets
from data_preparation.common.errors import UserError
from data_preparation.datasets import AnnotationFiles, DataSet, clips, finediving, frfs, table
from data_preparation.layout import DatasetLayout
from tests.conftest import run_main
from tests.data_preparation import layouts_clips as layouts

SMALL_KEYS = [("04", 49), ("04", 50), ("05", 56), *((f"FINA_Men3mSync_r{n}", i) for n in range(2) for i in range(4))]


def read_finediving(folder: Path) -> DataSet:
    return finediving.read(AnnotationFiles(folder))


def read_frfs(folder: Path) -> DataSet:
    return frfs.read(AnnotationFiles(folder))


def read_clips(folder: Path) -> DataSet:
    return clips.read(AnnotationFiles(folder))


# ---------------------------------------------------------------------------------------------------------- FineDiving


def test_finediving_has_the_counts_of_the_release(tmp_path: Path):
    found = read_finediving(layouts.write_finediving(tmp_path))
    assert found.faults == ()
    assert len(found.actions) == 3000
    assert len({video for video, _ in found.actions}) == 135
    split = found.split("official")
    assert (len(split.train), len(split.test)) == (2251, 749)
    assert {*split.train, *split.test} == set(found.actions)
    judges = Counter(len(dive.judge_scores or ()) for dive in found.actions.values())
    assert judges == {7: 1368, 3: 1023, 5: 606, 0: 3}  # three dives have a typing error in a judge's score
    warnings = "\n".join(found.warnings)
    for score in ("55.5", "45", "8.9"):
        assert f"a judge's score of {score} is not one of 0 to 10 in half points" in warnings
    assert warnings.count("do not fit its frame labels") == len(layouts.WRONG_TRANSITIONS)
    assert f"of {sum(layouts.MISSES.values())} of 2997 dives do not give the final score" in warnings
    assert len(found.warnings) == 3 + len(layouts.WRONG_TRANSITIONS) + 2
    assert (
        "20 groups (01, 02, 03, 04, 05, ...) have actions in the train list and in the test list" in found.warnings[-1]
    )


def test_steps_of_finediving_are_the_first_frames_of_the_labels(tmp_path: Path):
    found = read_finediving(layouts.write_finediving(tmp_path, SMALL_KEYS))
    dive = found.actions["05", 56]  # its transitions are wrong
    labels = pickle.loads((tmp_path / "FineDiving_fine-grained_annotation.pkl").read_bytes())["05", 56]["frames_labels"]
    assert dive.steps is not None
    assert dive.steps[0] == dive.start_frame
    inside = [frame - dive.start_frame for frame in dive.steps]
    assert all(labels[i] != labels[i - 1] for i in inside[1:])
    assert len(inside) == 1 + np.count_nonzero(np.diff(labels))
    assert any("3,000" in w or "3000" in w for w in found.warnings)  # a part of the release


@pytest.mark.parametrize(
    ("judges", "expected"),
    [((8, 8, 8.5, 9, 9, 9.5, 9.5), 26.5 * 2), ((8, 8.5, 9), 25.5 * 2), ((8, 8, 9, 9, 9), 0.6 * 43 * 2), ((8, 9), None)],
)
def test_the_final_score_follows_from_seven_three_or_five_judges(judges: tuple[float, ...], expected: float | None):
    assert finediving.final_score(judges, 2.0) == expected
    assert finediving.final_score(judges, None) is None


class Attack:
    def __reduce__(self):
        return (print, ("executed",))


def test_faults_of_finediving_are_reported_together(tmp_path: Path):
    folder = layouts.write_finediving(tmp_path, SMALL_KEYS)
    coarse = pickle.loads((folder / "FineDiving_coarse_annotation.pkl").read_bytes())
    first, second, third = list(coarse)[:3]
    coarse[first]["end_frame"] += 1
    coarse[second]["difficulty"] = float("nan")
    coarse[third]["dive_score"] = "many"
    coarse[7, 1] = coarse[third]
    layouts.dump(folder / "FineDiving_coarse_annotation.pkl", coarse)
    layouts.dump(folder / "test_split.pkl", [first, first, ("absent", 3)])
    layouts.dump(folder / "train_split.pkl", [first, second])
    faults = "\n".join(read_finediving(folder).faults)
    for text in (
        "frame labels for frames", "difficulty nan must be greater than 0", "a field cannot be parsed",
        "1 keys are not (name of a video, number of a dive), such as (7, 1)", "differ in difficulty of 1 dives",
        "names 1 actions more than once", "the test list names 1 ", "the train and test lists share 1 ",
    ):  # fmt: skip
        assert text in faults


def test_missing_and_malicious_files_of_finediving_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture):
    folder = layouts.write_finediving(tmp_path, SMALL_KEYS)
    (folder / "test_split.pkl").write_bytes(pickle.dumps([Attack()]))
    with pytest.raises(UserError, match=r"test_split\.pkl: refused: the pickle wants to load 'builtins\.print'"):
        read_finediving(folder)
    assert "executed" not in capsys.readouterr().out
    (folder / "test_split.pkl").unlink()
    (folder / "Sub_action_Types_Table.pkl").unlink()
    with pytest.raises(UserError, match=r"lacks Sub_action_Types_Table\.pkl, test_split\.pkl"):
        read_finediving(folder)


# --------------------------------------------------------------------------------------------------------------- FR-FS


@pytest.mark.parametrize("fall_is_one", [True, False])
@pytest.mark.parametrize(
    ("separator", "before", "end"), [(",", "", "\n"), (";", "sep=;\r\n", "\r\n"), ("\t", "\ufeff", "\r\n")]
)
def test_the_number_of_141_clips_means_a_fall(tmp_path: Path, fall_is_one: bool, separator: str, before: str, end: str):
    found = read_frfs(layouts.write_frfs(tmp_path, fall_is_one, separator, before, end))
    assert found.faults == found.warnings == ()
    assert Counter(found.classes[clip.label] for clip in found.actions.values()) == {"fall": 141, "no fall": 276}
    split = found.split("official")
    assert (len(split.train), len(split.test)) == (209, 208)
    landings = sum(found.actions[key].label == 0 for key in split.test)
    assert round(landings / 208, 4) == 0.6635  # the majority baseline
    assert {(clip.start_frame, clip.end_frame) for clip in found.actions.values()} == {(1, 103)}


def test_faults_of_frfs_are_reported_together(tmp_path: Path):
    folder = layouts.write_frfs(tmp_path)
    train = (folder / "Train.csv").read_text().replace("clip005,1", "clip005,one")
    (folder / "Train.csv").write_text(train + "clip003,0\n../x,1\nclip300,1\n")
    pictures = folder / "Images" / "clip007"
    pictures.mkdir(parents=True)
    (pictures / "00000.jpg").touch()
    faults = "\n".join(read_frfs(folder).faults)
    for text in (
        "row 7: it is not the name of a clip and a number", "row 212: '../x': write a video's name",
        "names 1 clips more than once (clip003)", "the train and test lists share 1 actions (clip300/001)",
        "416 clips have fewer than 103 pictures (clip000 has 0",
    ):  # fmt: skip
        assert text in faults


def test_lists_of_frfs_that_do_not_decide_what_a_fall_is_are_refused(tmp_path: Path):
    folder = layouts.write_frfs(tmp_path)
    (folder / "Test.csv").write_text("video,label\na,1\nb,0\n")
    found = read_frfs(folder)
    assert [fault.split(": ", 1)[1][:58] for fault in found.faults] == [
        "72 clips have a number above 0.5 and 139 do not, but 141 of"
    ][:58] or "do not state which number means a fall" in found.faults[0]
    (folder / "Test.csv").rename(folder / "Test.xls")
    (folder / "Train.csv").unlink()
    with pytest.raises(UserError) as error:
        read_frfs(folder)
    assert "Test.xls is a spreadsheet file: save its sheet as CSV" in str(error.value)
    assert "Train.csv is missing" in str(error.value)


def test_groups_of_clips_follow_from_names_that_tell_programmes_apart():
    assert frfs.clip_groups([f"clip{n}" for n in range(50)]) == {}
    names = [f"skater{s}_{n}" for s in range(20) for n in range(3)]
    assert len(set(frfs.clip_groups(names).values())) == 20


def test_boxes_of_frfs_become_side_files(tmp_path: Path, shared: Path):
    """The order of the corners is that of the golden after loading, whichever corner is first."""
    golden = json.loads((shared / "golden" / "tsa.json").read_text())["boxes_cases"]
    (tmp_path / "FRFS_Boxes.json").write_text(json.dumps({case["name"]: case["boxes_in_file"] for case in golden}))
    boxes.main(["frfs", "--dataset", str(tmp_path), "--source", str(tmp_path / "FRFS_Boxes.json")])
    for case in golden:
        found = boxes.read_boxes(boxes.boxes_file(tmp_path / "boxes", case["name"]))
        expected = np.array([case["first_box_after_loading"], *case["boxes_in_file"][1:]], float).reshape(-1, 4, 2)
        assert np.array_equal(found.corners, expected)
        assert found.frames.tolist() == list(range(1, 104))
        assert (boxes.areas(found.corners) > 0).all()
        assert found.fingerprint() == boxes.read_boxes(boxes.boxes_file(tmp_path / "boxes", case["name"])).fingerprint()


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (("frame,width", "frames,width"), "does not begin with the line frame,width,height,x1"),
        (("2,640,360,1", "1,640,360,1"), "not in ascending order or given twice"),
        (("2,640,360,1", "0,640,360,1"), "frame 0: frames are numbered from 1"),
        (("2,640,360,1", "2,640,361,1"), "has 2 sizes of the picture"),
        (("2,640,360,1", "2.5,640,360,1"), "1 rows (row 3) are not 11 numbers"),
        (("2,640,360,1,1,9,1,", "2,640,360,,1,9,1,"), "1 rows (row 3) are not 11 numbers"),
        (("2,640,360,1,1,9,1,", "2,640,360,inf,1,9,1,"), "frame 2 with corners that are not finite"),
        (("9,9,1,9\n2,", "9,9,1,9,7\n2,"), "row 2: 12 cells for 11 columns"),
    ],
)
def test_faults_of_a_side_file_are_reported(tmp_path: Path, edit: tuple[str, str], problem: str):
    text = ",".join(boxes.COLUMNS) + "\n1,640,360,1,1,9,1,9,9,1,9\n2,640,360,1,1,9,1,9,9,1,9\n"
    (tmp_path / "a.csv").write_text(text)
    assert boxes.read_boxes(tmp_path / "a.csv").corners[1].tolist() == [[1, 1], [9, 1], [9, 9], [1, 9]]
    (tmp_path / "a.csv").write_text(text.replace(*edit))
    with pytest.raises(UserError) as error:
        boxes.read_boxes(tmp_path / "a.csv")
    assert problem in str(error.value)


def test_faults_of_boxes_are_reported_together(tmp_path: Path):
    good = layouts.frfs_boxes("abcdefg")
    good["a"] = good["a"][:-1]
    good["b"][4] = good["b"][4][:7]
    good["c"][5][2] = float("nan")
    good["d"][6] = [1, 1, 1, 1, 1, 1, 1, 1]
    good["e"] = [[2 * n + 900 for n in quad] for quad in good["e"]]
    good["../f"] = good.pop("f")
    text = json.dumps(good)[:-1] + ', "g": []}'
    (tmp_path / "b.json").write_text(text)
    with pytest.raises(UserError) as error:
        boxes.main(["frfs", "--dataset", str(tmp_path), "--source", str(tmp_path / "b.json")])
    for problem in (
        "'g' occurs twice", "'a': 102 boxes instead of 103", "'b': the box of frame 5 is not a list of eight numbers",
        "'c': frame 6 with corners that are not finite", "'d': frame 7 with a box of area 0",
        "'e': 103 of 103 boxes lie outside", "'../f': write a video's name", "'g': 0 boxes instead",
    ):  # fmt: skip
        assert problem in str(error.value)
    assert not (tmp_path / "boxes").exists()


# ------------------------------------------------------------------------------------------------------ labelled clips


def test_lists_of_ucf101_are_folds_of_whole_groups(tmp_path: Path):
    found = read_clips(layouts.write_ucf(tmp_path))
    assert found.faults == found.warnings == ()
    assert found.classes == layouts.UCF_CLASSES
    assert set(found.splits) == {"fold1", "fold2"}
    clip = found.actions["Punch/v_Punch_g03_c01", 1]
    assert (clip.label, clip.group, clip.start_frame, clip.end_frame) == (2, "Punch/v_Punch_g03", 1, 33)
    assert {found.actions[key].group[-2:] for key in found.splits["fold2"].test} == {"02"}


def test_faults_of_ucf101_are_reported_together(tmp_path: Path):
    folder = layouts.write_ucf(tmp_path)
    train = (folder / "trainlist01.txt").read_text().splitlines()
    train[0] = train[0].replace(" 1", " 0")  # numbers that count from 0
    train[1] = train[1].replace("ApplyEyeMakeup/", "Applause/")
    test = (folder / "testlist01.txt").read_text().splitlines()
    (folder / "trainlist01.txt").write_text("\n".join([*train, train[2], test[0] + " 1", "a b c"]))
    (folder / "testlist01.txt").write_text("\n".join([*test, "Punch/v_Punch_g02_c09.avi"]))
    found = read_clips(folder)
    faults = "\n".join(found.faults)
    for text in (
        "0 instead of 1 for ApplyEyeMakeup", "row 2 (Applause): its folder is not a class", "more than a file and a number",
        "the train list names 1 actions more than once", "lists share 1 actions (ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01/001)",
        "1 clips of the lists (Punch/v_Punch_g02_c09) are missing",
    ):  # fmt: skip
        assert text in faults
    assert any("1 groups (ApplyEyeMakeup/v_ApplyEyeMakeup_g01) have actions" in w for w in found.warnings)


LISTS = {
    "frames": ("a/x1 30 0\na/x2\t31   1\r\n", "b/x3 32 1\n"),
    "offset": ("a/x1 0 30 0\na/x1 30 40 1\n", "b/x3 5 32 1\n"),
    "video": ("a/x1.mp4 0\na/x2.avi 1\n", "b/x3.webm 1\n"),
}


@pytest.mark.parametrize("form", LISTS)
def test_rows_of_lists_become_ranges_of_frames(tmp_path: Path, form: str):
    for name, text in zip(("train.txt", "test.txt"), LISTS[form], strict=True):
        (tmp_path / name).write_text(text)
    if form == "video":
        with pytest.raises(UserError, match="do not state the number of frames of 3 clips"):
            raise UserError.of(read_clips(tmp_path).faults)
        (tmp_path / "frames.csv").write_text("clip,frames\na/x1,30\na/x2,31\nb/x3,32\n")
    found = read_clips(tmp_path)
    assert found.faults == ()
    ranges = [(a.video, a.number, a.start_frame, a.end_frame, a.label) for a in found.actions.values()]
    if form == "offset":
        assert ranges == [("a/x1", 1, 1, 30, 0), ("a/x1", 2, 31, 70, 1), ("b/x3", 1, 6, 37, 1)]
    else:
        assert ranges == [("a/x1", 1, 1, 30, 0), ("a/x2", 1, 1, 31, 1), ("b/x3", 1, 1, 32, 1)]
    assert [bool("not compared" in w) for w in found.warnings] == ([] if form == "video" else [True])


def test_records_in_json_are_read(tmp_path: Path):
    (tmp_path / "train.json").write_text(
        json.dumps(
            [{"frame_dir": "a", "total_frames": 30, "label": [1]}, {"filename": "c.mp4", "total_frames": 9, "label": 0}]
        )
    )
    (tmp_path / "test.txt").write_text("b 31 1\n")
    (tmp_path / "classes.txt").write_text("no fall\nfall\n")
    found = read_clips(tmp_path)
    assert found.faults == ()
    assert found.classes == ("no fall", "fall")
    assert [found.actions[key].label for key in found.splits["official"].train] == [1, 0]


def test_faults_of_lists_are_reported_together(tmp_path: Path):
    (tmp_path / "train.txt").write_text(
        "a 30 0\nb 0 0\nc 30 x\nd 30\ne f 30 0\n/data/g 30 0\nh/../i 30 0\nj 30 -1\nk 30 7\nl 30 2\na 30 0\n"
    )
    (tmp_path / "test.txt").write_text("a 30 0\nm 31 0\n")
    (tmp_path / "classes.txt").write_text("one\ntwo\nthree\n")
    (tmp_path / "frames.csv").write_text("clip,frames\na,29\nk,30\nm,40\n")
    found = read_clips(tmp_path)
    assert "1 clips have more frames than the lists state (m: 31, has 40)" in found.warnings[0]
    faults = "\n".join(found.faults)
    for text in (
        "row 2 (0): the clip has no frames", "row 3 (x): the label is not a whole number",
        "2 rows, 4 (it has 2), 5 (it has 4): not 3 columns", "row 6 (/data/g): the path is absolute",
        "row 7 (h/../i): the path cannot be the name of a video", "row 8 (-1): the label is negative",
        "1 rows have labels above 2 (the highest is 7)", "every clip has label 0", "1 clips of the lists (l) are missing",
        "1 clips have fewer frames than the lists need (a: 30, has 29)", "the train list names 1 actions more than once",
        "lists share 1 actions (a/001)", "1 of 3 classes (two) have no clip in the train list",
    ):  # fmt: skip
        assert text in faults


@pytest.mark.parametrize("with_split", [True, False])
def test_one_folder_a_class(tmp_path: Path, with_split: bool):
    names = [f"{part}/{c}/{c}_{part}{n}" for part in ("train", "val") for c in ("jump", "fall") for n in range(2)]
    if not with_split:
        names = [name.split("/", 1)[1] for name in names]
    (tmp_path / "frames.csv").write_text("clip,frames\n" + "".join(f"{name},9\n" for name in names))
    found = read_clips(tmp_path)
    assert found.faults == ()
    assert found.classes == ("fall", "jump")
    assert len(found.splits["official"].test) == (4 if with_split else 0)
    assert all(found.classes[a.label] in a.video for a in found.actions.values())
    (tmp_path / "frames.csv").write_text("clip,frames\nfall/a,9\nb,9\n")
    with pytest.raises(UserError, match=r"1 clips \(b\) are not named CLASS/clip"):
        read_clips(tmp_path)
    (tmp_path / "frames.csv").write_text("clip,frames\ntrain/fall/a,9\nval/fall/b,9\ntest/fall/c,9\n")
    with pytest.raises(UserError, match="has clips in test, train, val: put all clips into train and test"):
        read_clips(tmp_path)


def test_a_folder_without_lists_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="has no lists"):
        read_clips(tmp_path)
    (tmp_path / "train.txt").write_text("a 30 0\n")
    (tmp_path / "val_videofolder.txt").write_text("b 30 0\n")
    with pytest.raises(UserError, match=r"only one list, train.txt \(the folder has val_videofolder.txt\)"):
        read_clips(tmp_path)


def test_a_list_of_100_000_rows_is_read(tmp_path: Path):
    rows = [f"clips/{n:06d} {30 + n % 70} {n % 50}" for n in range(100_000)]
    (tmp_path / "train.txt").write_text("\n".join(rows[:90_000]))
    (tmp_path / "test.txt").write_text("\n".join(rows[90_000:]))
    found = read_clips(tmp_path)
    assert (len(found.actions), found.faults) == (100_000, ())
    (tmp_path / "train.txt").write_text("\n".join("/data/" + row for row in rows[:9_000]))
    assert len(read_clips(tmp_path).faults) == 1  # one sentence for 9,000 rows


def test_frames_of_clips_are_counted_once(tmp_path: Path, shared: Path):
    source = tmp_path / "whole_videos"
    (source / "Punch").mkdir(parents=True)
    (source / "Punch" / "v_Punch_g03_c01.avi").symlink_to(shared / "clips" / "sport_ucf101_v_Punch_g03_c01.avi")
    pictures = source / "Pictures" / "a"
    pictures.mkdir(parents=True)
    for number in range(4):
        (pictures / f"img_{number:05d}.jpg").touch()
    output = tmp_path / "frames.csv"
    argv = ["--source", str(source), "--output", str(output), "--workers", "1"]
    count_frames.main(argv)
    assert output.read_text() == "clip,frames\nPictures/a,4\nPunch/v_Punch_g03_c01,108\n"
    assert read_clips(tmp_path).classes == ("Pictures", "Punch")
    output.unlink()
    (pictures / "img_00002.jpg").unlink()
    (source / "Punch" / "empty.mp4").touch()
    with pytest.raises(UserError) as error:
        count_frames.main(argv)
    assert f"{pictures} lacks 1 pictures between img_00000.jpg and img_00003.jpg" in str(error.value)
    assert "empty.mp4 is empty (0 bytes)" in str(error.value)
    (source / "playing guitar").mkdir()
    (source / "playing guitar" / "a.mp4").touch()
    with pytest.raises(UserError, match=r"1 clips \(playing guitar/a\.mp4\) have names that cannot be used: write"):
        count_frames.main(argv)
    assert not output.exists()


# -------------------------------------------------------------------------------------------------------------- tables

TABLE = """video,number,Start Frame,end_frame,kind,group,label,final_score,low,high
vault/a1,1,1,103,vault,Smith,clean,14.5,12.3,16.9
vault/a1,2,200,290,vault,Smith,fall,12.5,,
7,1,5,60,ski,Jones,clean,44,8,50
"""


def read_table(folder: Path, content: str | None = None, name: str = "table.csv", **lists: Path) -> DataSet:
    if content is not None:
        (folder / name).write_text(content)
    return table.read(AnnotationFiles(folder, **lists))


def test_a_table_has_kinds_with_ranges_groups_and_classes(tmp_path: Path):
    for name, keys in (("train", [["vault/a1", 1], [7, 1]]), ("test", [["vault/a1", 2]])):
        (tmp_path / f"{name}.json").write_text(json.dumps(keys))
    found = read_table(tmp_path, TABLE, train=tmp_path / "train.json", test=tmp_path / "test.json")
    assert found.faults == ()
    assert found.classes == ("clean", "fall")
    assert [(a.key, a.label, a.kind, a.group) for a in found.actions.values()] == [
        (("vault/a1", 1), 0, "vault", "Smith"), (("vault/a1", 2), 1, "vault", "Smith"), (("07", 1), 0, "ski", "Jones")
    ]  # fmt: skip
    assert {kind: (r.low, r.high) for kind, r in found.rules.items()} == {"vault": (12.3, 16.9), "ski": (8, 50)}
    assert found.actions["07", 1].rules == found.rules["ski"]
    assert "1 groups (Smith) have actions in the train list and in the test list" in found.warnings[0]
    assert found.warnings[1:] == ("1 of 2 classes (fall) have no action in the train list",)
    (tmp_path / "classes.txt").write_text("fall\nclean\n")
    assert [a.label for a in read_table(tmp_path).actions.values()] == [1, 0, 1]
    rows = [{"video": "a", "start_frame": 1, "end_frame": 9, "label": n} for n in (1, 0)]
    (tmp_path / "table.csv").unlink()
    found = read_table(tmp_path, json.dumps(rows), "table.json")
    assert (found.faults, [a.label for a in found.actions.values()]) == (
        (f"{tmp_path / 'table.json'}: action a/002: frames 1 to 9 overlap those of action a/001 (1 to 9)",), [1, 0]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (("12.3,16.9", ","), "kind 'vault' has no range of final scores: fill in the columns low and high"),
        (("12.5,,", "12.5,12,"), "'low' of kind 'vault' is 12.3 in one row and 12 in another (vault/a1/001, vault/a1/002)"),
        (("8,50", "50,8"), "the range 50 to 8 of kind 'ski' is empty"),
        (("14.5,12.3", "17.5,12.3"), "final score 17.5 is outside 12.3 to 16.9, the range of kind 'vault'"),
        ((",clean,44", ",,44"), "1 actions (07/001) have no label, and the others do"),
        (("a1,2,", "a1,1,"), "action vault/a1/001: given 2 times"),
        (("5,60", "60,5"), "frames 60 to 5 are not a range of frames"),
        (("end_frame", "end"), "no action has 'end_frame'"),
        (("group", "grup"), "column 'grup' is unknown; did you mean group?"),
        (("label,final_score,low,high", "a,b,c,d"), "no action has a final_score or a label"),
        (("clean,14.5", "clean,"), "1 actions (vault/a1/001) have no final_score"),
    ],
)  # fmt: skip
def test_faults_of_a_table(tmp_path: Path, edit: tuple[str, str], problem: str):
    assert problem in "\n".join(read_table(tmp_path, TABLE.replace(*edit)).faults)


@pytest.mark.parametrize(
    ("texts", "listed", "classes", "labels"),
    [
        (["b", "a", "b"], (), ("a", "b"), {"a": 0, "b": 1}),
        (["1", "0"], (), ("0", "1"), {"0": 0, "1": 1}),
        (["1", "0"], ("x", "y", "z"), ("x", "y", "z"), {"0": 0, "1": 1}),
        (["2", "1"], ("1", "2"), ("1", "2"), {"1": 0, "2": 1}),  # names that look like numbers
        (["2", "0"], (), ("0", "1"), "there are 2 labels, and the highest are 2"),
        (["3", "0"], ("x", "y"), ("x", "y"), "1 labels (3) are not among the 2 classes of classes.txt (x, y)"),
        (["w"], ("x", "y"), ("x", "y"), "1 labels (w) are not among"),
    ],
)
def test_labels_of_a_table_are_names_or_numbers(
    texts: list[str], listed: tuple[str, ...], classes: tuple[str, ...], labels: dict[str, int] | str
):
    found_classes, found, faults = table.class_labels(texts, listed)
    assert found_classes == classes
    if isinstance(labels, str):
        assert labels in faults[0]
    else:
        assert (found, faults) == (labels, [])


# -------------------------------------------------------------------------------------------------- summary and verify

WRITERS = {
    "finediving": (lambda folder: layouts.write_finediving(folder, SMALL_KEYS), "FINA_Men3mSync_r1", "dives          11 in 4 videos"),
    "frfs": (layouts.write_frfs, "clip007", "classes        2 (no fall: 276, fall: 141)"),
    "clips": (layouts.write_ucf, "Punch/v_Punch_g03_c01", "fold2: 24 to train and 6 to test"),
    "table": (lambda folder: (folder / "table.csv").write_text(TABLE), "vault/a1", "final score    12.5 to 14.5, median 13.5; 2 distinct (vault: 2 actions, 1 to train, 1 to test, range 12.3 to 16.9)"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRITERS)
def test_summary_and_verify_work_for_each_set(tmp_path: Path, kind: str):
    write, video, line = WRITERS[kind]
    layout = DatasetLayout(tmp_path)
    layout.annotations.mkdir()
    write(layout.annotations)
    argv = ["--dataset", str(tmp_path), "--dataset_kind", kind]
    if kind == "table":
        for name, keys in (("train", [["vault/a1", 1], [7, 1]]), ("test", [["vault/a1", 2]])):
            (layout.annotations / f"{name}.json").write_text(json.dumps(keys))
            argv += [f"--{name}_path", str(layout.annotations / f"{name}.json")]
    assert line in run_main("data_preparation.annotations", "summary", *argv).stdout
    data = datasets.read(kind, AnnotationFiles(layout.annotations))
    own = [action for action in data.actions.values() if action.video == video]
    layouts.write_clip(layout, video, own)
    argv += ["--videos", video, "--workers", "1"]
    assert "total" in run_main("data_preparation.verify", *argv).stdout
    layouts.write_clip(layout, video, own, left_out=own[-1].end_frame)
    done = run_main("data_preparation.verify", *argv, check=False)
    assert done.returncode == 2
    assert f"1 of {own[-1].frame_count} frames are missing" in done.stdout + done.stderr
