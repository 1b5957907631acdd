"""AQA-7 (Parmar and Morris, "Action Quality Assessment Across Multiple Actions", WACV 2019): the six actions of its split 4.

The folder has the lists of the release, Split_4/split_4_train_list.mat and split_4_test_list.mat, or the same lists as
consolidated_train_list.mat and consolidated_test_list.mat. Each row is (class, clip number, score). A clip is a video of 103
frames: Actions/diving/054.avi is the video "diving/054". The split "official" has all six kinds; the splits named after the
kinds have one each. The list's scores have no difficulty; `--split gym_vault` is also known as UNLV-Vault.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_preparation.actions import Action, ActionKey, ScoreRules
from data_preparation.common.errors import UserError, read_all
from data_preparation.datasets import AnnotationFiles, DataSet, Split, released_folder
from data_preparation.number_files import in_points, read_numbers

READS_LISTS = False
FRAMES = 103  # of every clip
_MAX_FAULTS = 20  # reported of the rows of a list

PARTS = ("train", "test")
# the zip file's lists, and those of the authors' PyTorch code
_FILES = ("split_4_{}_list.mat", "consolidated_{}_list.mat")
_FOLDERS = (".", "Split_4", "AQA-7/Split_4", "input")


class Counts(NamedTuple):
    train: int
    test: int


@dataclass(frozen=True)
class Kind:
    """What the release has of a class. The range is that of the final scores of train *and* test list: fixed constants, so that
    results on the 0 to 100 scale compare with those of CoRe (Yu et al., ICCV 2021) and later methods."""

    name: str  # of its folder
    low: float
    high: float
    clips: Counts
    number_sums: Counts  # the sums of the clip numbers, to recognise the split


KINDS = {
    1: Kind("diving", 21.6, 102.6, Counts(300, 70), Counts(55_942, 12_693)),
    2: Kind("gym_vault", 12.3, 16.87, Counts(120, 56), Counts(10_308, 5_268)),
    3: Kind("ski_big_air", 8.0, 50.0, Counts(120, 55), Counts(10_274, 5_126)),
    4: Kind("snowboard_big_air", 8.0, 50.0, Counts(140, 66), Counts(14_276, 7_045)),
    5: Kind("sync_diving_3m", 46.2, 104.88, Counts(60, 28), Counts(2_764, 1_152)),
    6: Kind("sync_diving_10m", 49.8, 99.36, Counts(63, 28), Counts(2_932, 1_254)),
}
RULES = {kind.name: ScoreRules(kind.low, kind.high) for kind in KINDS.values()}


def clip_video(kind: str, number: int) -> str:
    """The name of a clip's video, as in the release: 'diving/054'."""
    return f"{kind}/{number:03d}"


def read(files: AnnotationFiles) -> DataSet:
    """Read both lists.

    Raises:
        UserError: a list is missing, unreadable or not a matrix of three columns.
    """
    paths = _find_lists(files.annotations)
    rows = read_all({part: partial(_rows, paths[part], part) for part in PARTS})
    actions: dict[ActionKey, Action] = {}
    listed: dict[str, list[ActionKey]] = {}
    faults: list[str] = []
    for part in PARTS:
        listed[part] = []
        found, own_faults = _actions(rows[part])
        for action in found:
            if action.key in actions:
                where = (
                    f"and in the {PARTS[0]} list" if action.key in listed[PARTS[0]] and part != PARTS[0] else "twice"
                )
                own_faults.append(f"clip {action.video} is listed {where}: give the released lists")
                continue
            actions[action.key] = action
            listed[part].append(action.key)
        faults += [f"{paths[part]}: {fault}" for fault in shortened(own_faults)]
    faults += list(_count_faults(listed, paths))
    return DataSet(
        actions=actions,
        splits={"official": Split(*(tuple(listed[part]) for part in PARTS))},
        rules=RULES,
        faults=tuple(faults),
        warnings=() if faults else tuple(_split_warnings(rows, paths)),
        keys=frozenset(actions),
    )


def shortened(faults: list[str]) -> list[str]:
    """At most `_MAX_FAULTS` of the faults, and how many more there are."""
    more = len(faults) - _MAX_FAULTS
    return faults[:_MAX_FAULTS] + ([f"and {more} more faults of this kind"] if more > 0 else [])


def _find_lists(given: Path) -> dict[str, Path]:
    """The train and the test list in a folder of the release, or beside one of its lists.

    Raises:
        UserError: a list is missing.
    """
    folder = released_folder(given)
    pairs = [{part: folder / place / name.format(part) for part in PARTS} for place in _FOLDERS for name in _FILES]
    chosen = next((pair for pair in pairs if all(path.is_file() for path in pair.values())), None)
    if chosen is None:
        half = next((path for pair in pairs for path in pair.values() if path.is_file()), None)
        wanted = " and ".join(_FILES[0].format(part) for part in PARTS)
        raise UserError(
            f"{folder} has not both lists of AQA-7 ({'only ' + half.name if half else 'Split_4/' + wanted}): unpack AQA-7.zip and give its folder with --annotation_path"
        )
    return chosen


def _rows(path: Path, part: str) -> np.ndarray:
    """The rows of a list, (N, 3) float64: class, clip number, score in points."""
    rows = read_numbers(path, f"consolidated_{part}_list").astype(np.float64)
    if rows.ndim != 2 or rows.shape[1] != 3 or not len(rows):
        raise UserError(
            f"{path}: its list has the shape {rows.shape}, not one row (class, clip number, score) per clip: give the released list"
        )
    return np.column_stack([rows[:, :2], in_points(rows[:, 2])])


def _actions(rows: np.ndarray) -> tuple[list[Action], list[str]]:
    """The clips of a list in its order, and the faults of its rows."""
    actions, faults = [], []
    for place, (kind_number, number, score) in enumerate(rows.tolist(), start=1):
        kind = KINDS.get(kind_number)  # a float equals the same whole number
        if kind is None:
            faults.append(f"row {place}: class {kind_number:g} is not one of 1 to 6: give the released list")
        elif number not in range(1, sum(kind.clips) + 1):
            faults.append(
                f"row {place}: {kind.name} has clips 1 to {sum(kind.clips)}, not {number:g}: give the released list"
            )
        elif not kind.low <= score <= kind.high:  # also NaN
            faults.append(
                f"row {place}: score {score:g} of clip {clip_video(kind.name, int(number))} is outside {kind.low:g} to {kind.high:g}, the range of {kind.name}: correct it"
            )
        else:
            video = clip_video(kind.name, int(number))
            actions.append(Action(video, 1, 1, FRAMES, final_score=score, kind=kind.name, rules=RULES[kind.name]))
    return actions, faults


def _count_faults(listed: dict[str, list[ActionKey]], paths: dict[str, Path]) -> Iterator[str]:
    for part in PARTS:
        counted = Counter(video.split("/")[0] for video, _ in listed[part])
        for kind in KINDS.values():
            released = getattr(kind.clips, part)
            if counted[kind.name] != released:
                yield f"{paths[part]}: it has {counted[kind.name]} valid clips of {kind.name} and the released list {released}: give the released list"


def _split_warnings(rows: dict[str, np.ndarray], paths: dict[str, Path]) -> Iterator[str]:
    for part in PARTS:
        for number, kind in KINDS.items():
            total = int(rows[part][rows[part][:, 0] == number, 1].sum())
            if total != getattr(kind.number_sums, part):
                yield f"{paths[part]}: its {kind.name} clips are not those of the released split 4 (their numbers add up to {total}, not {getattr(kind.number_sums, part)}): results do not compare with published ones"
