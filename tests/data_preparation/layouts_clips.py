"""Generated files in the released formats of FineDiving and FR-FS, and lists of labelled clips, with their traps."""

from __future__ import annotations

import json
import pickle
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg

from data_preparation.actions import Action
from data_preparation.archive import write_archive
from data_preparation.layout import DatasetLayout, archive_file

MTL_VIDEOS = ("01", "02", "03", "04", "05", "06", "07", "09", "10", "13", "14", "17", "18", "22", "26")
SLIPS = {
    ("FINAWorldChampionships2019_Women3m_final_r3", 1): 55.5,
    ("04", 49): 45.0,
    ("FINADivingWorldCup2021_Men3mSynchronised_final_r2", 7): 8.9,
}
WRONG_TRANSITIONS = (("03", 24), ("03", 67), ("03", 71), ("14", 3), ("14", 65), ("05", 56))
ZEROS = (("17", 35), ("17", 164))
MISSES = {7: 99, 3: 13, 5: 8}  # dives whose judges' scores do not give the final score, by the number of judges

Key = tuple[str, int]


# ---------------------------------------------------------------------------------------------------------- FineDiving


def _shared_out(total: int, parts: int) -> list[int]:
    return [total // parts + (part < total % parts) for part in range(parts)]


def finediving_keys() -> list[Key]:
    """3,000 keys of 135 videos: MTL-AQA's from 1 with gaps, the others from 0 without."""
    keys: list[Key] = []
    for video, count in zip(MTL_VIDEOS, _shared_out(1369, len(MTL_VIDEOS)), strict=True):
        first = 2 if video == "18" else 1
        numbers = [n for n in range(first, first + 2 * count) if n % 12 or (video, n) in ZEROS][: count - 2]
        wanted = {n for v, n in (*SLIPS, *WRONG_TRANSITIONS, *ZEROS) if v == video}
        more = (n for n in range(first + 2 * count, 9999) if n not in wanted)
        numbers = sorted({*numbers, *wanted})
        while len(numbers) < count:
            numbers.append(next(more))
        keys += [(video, n) for n in numbers[:count]]
    synchronised = ["FINADivingWorldCup2021_Men3mSynchronised_final_r2"]
    synchronised += [f"FINAWorldChampionships2019_Men10mSynchronized_r{n}" for n in range(50)]
    individual = ["FINAWorldChampionships2019_Women3m_final_r3", "FINADivingWorldCup2021_Men3m_final_r1"]
    individual += [f"FINADivingWorldCup2021_Women10m_r{n}" for n in range(67)]
    for videos, total in ((synchronised, 607), (individual, 1024)):
        for video, count in zip(videos, _shared_out(total, len(videos)), strict=True):
            keys += [(video, n) for n in range(count)]
    return keys


def _dive(key: Key, draw: random.Random, missed: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """(coarse, fine) fields of a dive."""
    video, number = key
    judges_count = 7 if video.isdigit() else 5 if "ync" in video else 3
    difficulty = draw.choice([1.9, 2.4, 3.0, 3.2, 3.4])
    judges = [draw.randint(8, 20) / 2 for _ in range(judges_count)]
    counted = sorted(judges)[2:5] if judges_count == 7 else judges
    score = round(sum(counted) * difficulty * (0.6 if judges_count == 5 else 1), 2)
    if missed:
        score = round(score * 0.97, 2)
    if key in SLIPS:
        judges[0] = SLIPS[key]
    if key in ZEROS:
        judges, score = [0.0] * judges_count, 0.0
    frames = draw.choice([63, 95, 101, 101, 104, 273])
    lengths = [frames // 4, frames // 4, frames - 2 * (frames // 4)]
    steps = [draw.choice([1, 3]), draw.choice([15, 27]), 36]
    if number % 5 == 0:  # a step that returns: four transitions, four different steps
        fifth = frames // 5
        steps, lengths = [1, 15, 29, 15, 36], [fifth] * 4 + [frames - 4 * fifth]
    labels = np.repeat(steps, lengths)
    transitions = np.flatnonzero(np.diff(labels))
    if key in WRONG_TRANSITIONS:
        transitions = transitions.copy()
        transitions[0] = -1 if key != ("05", 56) else frames + 50
    start = 1000 + 400 * number
    kind = draw.choice(["407c", "5253b", "101a", "626C"])
    shared = {"action_type": kind.lower(), "difficulty": difficulty}
    coarse = {
        **shared, "start_frame": start, "end_frame": start + frames - 1, "dive_score": np.float64(score),
        "judge_scores": judges,
    }  # fmt: skip
    names = {1: "Forward", 3: "Reverse", 15: "1.5 Soms.Pike", 27: "1 Twist", 29: "2 Twists", 36: "Entry"}
    fine = {
        **shared, "dive_score": np.float64(score), "steps_transit_frames": transitions, "frames_labels": labels,
        "sub-action_types": {int(step): names[int(step)] for step in steps},
    }  # fmt: skip
    return coarse, fine


def dump(path: Path, content: Any) -> None:
    """Pickle with the names of numpy 1, as released."""
    path.write_bytes(pickle.dumps(content, 3).replace(b"numpy._core", b"numpy.core"))


def write_finediving(folder: Path, keys: Iterable[Key] | None = None) -> Path:
    """The six released pickles."""
    folder.mkdir(parents=True, exist_ok=True)
    keys = list(keys if keys is not None else finediving_keys())
    draw = random.Random(0)
    left = dict(MISSES)
    coarse, fine, lists = {}, {}, {}
    for key in keys:
        judges = 7 if key[0].isdigit() else 5 if "ync" in key[0] else 3
        # two of the dives with typing errors in the judges' scores are among the misses, and so are the zeros not
        missed = left[judges] > 0 and key not in (*SLIPS, *ZEROS)
        left[judges] -= missed
        coarse[key], fine[key] = _dive(key, draw, missed)
        row = fine[key]
        lists[key] = [
            row["action_type"], row["dive_score"], row["difficulty"], row["steps_transit_frames"], row["frames_labels"]
        ]  # fmt: skip
    shuffled = keys[:]
    draw.shuffle(shuffled)
    train = round(len(keys) * 2251 / 3000)
    dump(folder / "FineDiving_coarse_annotation.pkl", coarse)
    dump(folder / "FineDiving_fine-grained_annotation.pkl", fine)
    dump(folder / "fine-grained_annotation_aqa.pkl", lists)
    dump(folder / "Sub_action_Types_Table.pkl", {n: f"step {n}" for n in range(1, 43)})
    dump(folder / "train_split.pkl", shuffled[:train])
    dump(folder / "test_split.pkl", shuffled[train:])
    return folder


# --------------------------------------------------------------------------------------------------------------- FR-FS


def frfs_lists(fall_is_one: bool = True) -> tuple[dict[str, float], dict[str, float]]:
    """(train, test) clips with their numbers: 276 landings and 141 falls."""
    falls = {*range(71), *range(209, 279)}
    values = {f"clip{n:03d}": float((n in falls) == fall_is_one) for n in range(417)}
    names = list(values)
    return {n: values[n] for n in names[:209]}, {n: values[n] for n in names[209:]}


def write_frfs(folder: Path, fall_is_one: bool = True, separator: str = ",", before: str = "", end: str = "\n") -> Path:
    """Train.csv and Test.csv, as a spreadsheet program writes them."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, values in zip(("Train", "Test"), frfs_lists(fall_is_one), strict=True):
        lines = [f"video{separator}label", *(f"{name}{separator}{value:g}" for name, value in values.items())]
        (folder / f"{part}.csv").write_bytes((before + end.join(lines) + end).encode())
    return folder


def frfs_boxes(names: Iterable[str]) -> dict[str, list[list[int]]]:
    """103 boxes of each clip; the first has its corners 3 and 4 swapped, as in the release."""
    found = {}
    for index, name in enumerate(names):
        quads = [[80 + n + index % 7, 42, 220 + n, 42, 220 + n, 138, 80 + n, 138] for n in range(103)]
        quads[0] = [*quads[0][:4], *quads[0][6:], *quads[0][4:6]]
        found[name] = quads
    return found


def write_frfs_boxes(path: Path, names: Iterable[str]) -> Path:
    path.write_text(json.dumps(frfs_boxes(names)))
    return path


# -------------------------------------------------------------------------------------------------------------- UCF101

UCF_CLASSES = ("ApplyEyeMakeup", "BaseballPitch", "Punch")


def write_ucf(folder: Path, groups: int = 5, clips: int = 2, folds: int = 2) -> Path:
    """UCF101's lists and frames.csv: group 1 + fold is the test group of each fold."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "classInd.txt").write_text("".join(f"{n} {name}\r\n" for n, name in enumerate(UCF_CLASSES, start=1)))
    names = [
        (number, group, f"{name}/v_{name}_g{group:02d}_c{clip:02d}")
        for number, name in enumerate(UCF_CLASSES, start=1)
        for group in range(1, groups + 1)
        for clip in range(1, clips + 1)
    ]
    for fold in range(1, folds + 1):
        train = [f"{name}.avi {number}\r\n" for number, group, name in names if group != fold]
        test = [f"{name}.avi\r\n" for _, group, name in names if group == fold]
        (folder / f"trainlist0{fold}.txt").write_text("".join(train))
        (folder / f"testlist0{fold}.txt").write_text("".join(test))
    lines = [f"{name},{30 + group}\n" for _, group, name in names]
    (folder / "frames.csv").write_text("clip,frames\n" + "".join(lines))
    return folder


# -------------------------------------------------------------------------------------------------------------- frames


def write_clip(layout: DatasetLayout, video: str, actions: Iterable[Action], left_out: int = 0) -> None:
    """The archive of one video with grey frames of 16 x 16 pixels for its actions, but not the frame `left_out`."""
    numbers = sorted({n for a in actions for n in range(a.start_frame, a.end_frame + 1)} - {left_out})
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    record = {
        "source": {"name": "drawn", "bytes": 1, "width": 16, "height": 16, "frames": numbers[-1]},
        "settings": {"height": 0, "quality": 95}, "ranges": ranges, "notes": [],
    }  # fmt: skip
    jpeg = simplejpeg.encode_jpeg(np.full((16, 16, 3), 128, np.uint8), colorspace="RGB")
    path = archive_file(layout.frames, video)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_archive(path, ((number, jpeg) for number in numbers), record)
