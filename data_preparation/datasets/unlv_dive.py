"""UNLV-Dive (Parmar and Morris, "Learning to Score Olympic Events", CVPRW 2017): 370 dives from the men's 10 m platform.

The folder has the lists of dive numbers (training_idx and testing_idx) and, by dive number, the final scores (overall_scores)
and difficulties (difficulty_level); each as .mat or .npy. The clips are those of the kind diving of AQA-7, so dive 54 is the
video "diving/054", and this set and aqa7.py share their frames.

All dives are also in MTL-AQA, but the lists train_split_370_4.pkl and test_split_370_4.pkl released with MTL-AQA give 191 of the
370 dives the key of another dive, so they are not read here. Weights trained on one of the two sets have seen test dives of the
other. The group is the broadcast, as the number of its video in MTL-AQA.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from data_preparation.actions import ActionKey, Dive
from data_preparation.common.errors import UserError, read_all
from data_preparation.datasets import AnnotationFiles, DataSet, Split, group_warnings, released_folder, shared_faults
from data_preparation.datasets.aqa7 import FRAMES, KINDS, RULES, clip_video, shortened
from data_preparation.number_files import in_points, read_numbers

READS_LISTS = False
KIND = KINDS[1]
DIVES = sum(KIND.clips)
BROADCASTS = ((72, "03"), (180, "02"), (DIVES, "01"))  # the last dive of each broadcast, and its video in MTL-AQA

_SUFFIXES = (".npy", ".mat")
_FOLDERS = (".", "data_files", "split_300_70")
# names of the files: of the released data and of the authors' of S3D (Xiang et al., "S3D: Stacking Segmental P3D for Action
# Quality Assessment", ICIP 2018)
_FILES = {
    "training_idx": ("training_idx",),
    "testing_idx": ("testing_idx",),
    "scores": ("overall_scores", "diving_overall_scores"),
    "difficulty": ("difficulty_level", "diving_difficulty_level"),
}


def read(files: AnnotationFiles) -> DataSet:
    """Read lists, scores and difficulties.

    Raises:
        UserError: a file is missing or unreadable, or has another number of values than the release.
    """
    paths = _find_files(files.annotations)
    arrays = read_all({name: partial(read_numbers, path) for name, path in paths.items()})
    values = {name: array.ravel() for name, array in arrays.items()}
    lists = {"train": values["training_idx"], "test": values["testing_idx"]}
    list_paths = {"train": paths["training_idx"], "test": paths["testing_idx"]}
    scores, difficulties = in_points(values["scores"]), in_points(values["difficulty"], limit=10)
    if wrong := [
        f"{paths[name]} has {len(found)} values, not one for each of the {DIVES} dives: give the released file"
        for name, found in (("scores", scores), ("difficulty", difficulties))
        if len(found) != DIVES
    ]:
        raise UserError.of(wrong)
    actions: dict[ActionKey, Dive] = {}
    faults = []
    for number, (score, difficulty) in enumerate(zip(scores.tolist(), difficulties.tolist(), strict=True), start=1):
        broadcast = next(video for last, video in BROADCASTS if number <= last)
        dive = Dive(
            clip_video(KIND.name, number), 1, 1, FRAMES, difficulty=difficulty, final_score=score,
            kind=KIND.name, group=broadcast, rules=RULES[KIND.name],
        )  # fmt: skip
        actions[dive.key] = dive
        faults += dive.faults()
        if not KIND.low <= score <= KIND.high:
            faults.append(
                f"{paths['scores']}: score {score:g} of dive {number} is outside {KIND.low:g} to {KIND.high:g}: give the released file"
            )
    faults = shortened(faults)
    for part, numbers in lists.items():
        faults += shortened(
            [f"{list_paths[part]}: {fault}" for fault in _list_faults(numbers, getattr(KIND.clips, part))]
        )
    keys = {
        part: tuple((clip_video(KIND.name, int(n)), 1) for n in numbers.tolist() if n in range(1, DIVES + 1))
        for part, numbers in lists.items()
    }
    faults += shared_faults(keys["train"], keys["test"], "give the released lists")
    splits = {"official": Split(keys["train"], keys["test"])}
    warnings = [] if faults else [*_warnings(lists, list_paths), *group_warnings(actions, splits)]
    return DataSet(
        actions=dict(actions),
        splits=splits,
        rules={KIND.name: RULES[KIND.name]},
        faults=tuple(faults),
        warnings=tuple(warnings),
        keys=frozenset(actions),
    )


def _find_files(given: Path) -> dict[str, Path]:
    """The four files in a folder, beside a file, or in the folders in which they were released.

    Raises:
        UserError: files are missing.
    """
    folder = released_folder(given)
    found: dict[str, Path] = {}
    for wanted, names in _FILES.items():
        places = [folder / place / f"{name}{suffix}" for place in _FOLDERS for name in names for suffix in _SUFFIXES]
        if path := next((path for path in places if path.is_file()), None):
            found[wanted] = path
    if missing := [names[0] for wanted, names in _FILES.items() if wanted not in found]:
        pickles = sorted(path.name for path in folder.glob("*_split_370_4.*"))
        trap = (
            f" ({', '.join(pickles)} cannot replace them: 191 of their 370 keys name another dive)" if pickles else ""
        )
        raise UserError(
            f"{folder} has no {', '.join(f'{name}.npy (or .mat)' for name in missing)}{trap}: put the number-based lists of UNLV-Dive there"
        )
    return found


def _list_faults(numbers: np.ndarray, released: int) -> Iterator[str]:
    if len(numbers) != released:
        yield f"it names {len(numbers)} dives and the released list {released}: give the released list"
    for number, count in Counter(numbers.tolist()).items():
        if number not in range(1, DIVES + 1):
            yield f"{number:g} is not the number of a dive, 1 to {DIVES}: give the released list"
        elif count > 1:
            yield f"it names dive {number:g} {count} times: keep one"


def _warnings(lists: dict[str, np.ndarray], paths: dict[str, Path]) -> Iterator[str]:
    for part, numbers in lists.items():
        wanted = getattr(KIND.number_sums, part)
        if numbers.sum() != wanted:
            yield f"{paths[part]}: its dives are not those of the released split 4 (their numbers add up to {numbers.sum():g}, not {wanted}): results do not compare with published ones"
