"""JIGSAWS (Gao et al., "JHU-ISI Gesture and Skill Assessment Working Set", M2CAI workshop 2014) with the labels and folds of
USDL and MUSDL (Tang et al., "Uncertainty-aware Score Distribution Learning for Action Quality Assessment", CVPR 2020).

The folder has their label.pkl (six sub-scores of each clip) and splits.pkl (four folds of each task), and frames.csv with the
number of frames of each clip (data_preparation.count_frames). The final score is the sum of the sub-scores. The labels name
clips, "Suturing_B001"; only the left view is used, so the video is "Suturing/Suturing_B001_capture1", and `--videos Suturing`
chooses one task. The surgeon is the group: the published folds have surgeons in both parts, `--split event` holds out whole
surgeons.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from data_preparation.actions import Action, ActionKey, ScoreRules
from data_preparation.common.errors import UserError, read_all
from data_preparation.datasets import AnnotationFiles, DataSet, Split, group_warnings, released_folder
from data_preparation.datasets.clips import COUNTS_FILE, count_command, read_counts
from data_preparation.pickles import load_pickle

READS_LISTS = False
FOLDS = 4
SUB_SCORES = (
    "respect for tissue",
    "suture/needle handling",
    "time and motion",
    "flow of operation",
    "overall performance",
    "quality of final product",
)
LOWEST, HIGHEST = 1, 5  # of a sub-score

# the released numbers of trials of each surgeon
TRIALS = {
    "Suturing": {"B": 5, "C": 5, "D": 5, "E": 5, "F": 5, "G": 5, "H": 4, "I": 5},
    "Needle_Passing": {"B": 4, "C": 5, "D": 5, "E": 4, "F": 3, "H": 3, "I": 4},
    "Knot_Tying": {"B": 4, "C": 5, "D": 5, "E": 5, "F": 5, "G": 5, "H": 3, "I": 4},
}
FOLD_SIZES = {"Suturing": (9, 10, 10, 10), "Needle_Passing": (7, 7, 7, 7), "Knot_Tying": (9, 9, 9, 9)}

_NAME = re.compile(rf"({'|'.join(TRIALS)})_([B-I])\d{{3}}")


def sum_of_sub_scores(sub_scores: Sequence[float], difficulty: float | None) -> float | None:
    """The final score: the sum of the six sub-scores, 6 to 30. There is no difficulty."""
    return sum(sub_scores) if len(sub_scores) == len(SUB_SCORES) else None


_RULES = ScoreRules(LOWEST * len(SUB_SCORES), HIGHEST * len(SUB_SCORES), sum_of_sub_scores)
RULES = dict.fromkeys(TRIALS, _RULES)


def clip_video(name: str) -> str:
    """The name of the video of a clip, of its left view: Suturing_B001 -> 'Suturing/Suturing_B001_capture1'."""
    task, _ = _parts(name)
    return f"{task}/{name}_capture1"


def _parts(name: str) -> tuple[str, str]:
    """The task and the surgeon of a clip."""
    match = _NAME.fullmatch(name)
    assert match is not None
    return match[1], match[2]


def read(files: AnnotationFiles) -> DataSet:
    """Read labels and folds.

    Raises:
        UserError: a file is missing, unreadable or does not hold a dictionary.
    """
    folder = released_folder(files.annotations)
    paths = {name: folder / f"{name}.pkl" for name in ("label", "splits")}
    counts_file = folder / COUNTS_FILE
    if missing := [str(path) for path in paths.values() if not path.is_file()]:
        raise UserError(
            f"{' and '.join(missing)} missing: put label.pkl and splits.pkl of USDL (JIGSAWS/data/info) into one folder and give it with --annotation_path"
        )
    contents = read_all({name: partial(_dictionary, path) for name, path in paths.items()})
    labels, label_faults = _labels(contents["label"])
    folds, fold_faults = _folds(contents["splits"], labels)
    counts = read_counts(counts_file) if counts_file.is_file() else {}
    faults = [f"{paths['label']}: {fault}" for fault in (*label_faults, *_trial_faults(labels))]
    faults += [f"{paths['splits']}: {fault}" for fault in fold_faults]
    if uncounted := [clip_video(name) for name in labels if clip_video(name) not in counts]:
        faults.append(
            f"{counts_file} lacks the number of frames of {len(uncounted)} clips ({', '.join(uncounted[:3])}): download them all, then count ({count_command('DATASET/whole_videos', counts_file)})"
        )
    actions: dict[ActionKey, Action] = {}
    for name, sub_scores in labels.items():
        task, surgeon = _parts(name)
        video = clip_video(name)
        if video in counts:
            actions[video, 1] = Action(
                video, 1, 1, counts[video], final_score=float(sum(sub_scores)), judge_scores=sub_scores,
                kind=task, group=surgeon, rules=_RULES,
            )  # fmt: skip
    keys = {name: (clip_video(name), 1) for name in labels}
    splits = {}
    for fold in range(1, FOLDS + 1):
        train, test = (
            tuple(keys[name] for name, own in folds.items() if (own == fold) == in_test) for in_test in (False, True)
        )
        splits[f"fold{fold}"] = Split(train, test)
    return DataSet(
        actions=actions,
        splits=splits,
        rules=RULES,
        faults=tuple(faults),
        warnings=tuple(group_warnings(actions, splits)),
        keys=frozenset(keys.values()),
    )


def _dictionary(path: Path) -> dict[Any, Any]:
    content = load_pickle(path)
    if not isinstance(content, dict) or not content:
        found = "an empty dictionary" if content == {} else f"a {type(content).__name__}"
        raise UserError(f"{path} holds {found}, not a dictionary with entries: give the released file")
    return content


def _labels(content: dict[Any, Any]) -> tuple[dict[str, tuple[float, ...]], list[str]]:
    """The six sub-scores of each clip by its name, and the faults."""
    labels: dict[str, tuple[float, ...]] = {}
    faults = []
    for key, value in content.items():
        name = str(key).removesuffix("_capture1")
        sub_scores = list(value) if hasattr(value, "__iter__") and not isinstance(value, str) else []
        if not _NAME.fullmatch(name):
            faults.append(f"{str(key)!r} is not the name of a clip: write names such as Suturing_B001")
        elif name in labels:
            faults.append(f"{name} is given twice, with and without _capture1: keep one")
        elif len(sub_scores) != len(SUB_SCORES) or not all(_is_sub_score(score) for score in sub_scores):
            faults.append(
                f"{name} has {repr(value)[:60]}: give {len(SUB_SCORES)} whole numbers from {LOWEST} to {HIGHEST} ({', '.join(SUB_SCORES)})"
            )
        else:
            labels[name] = tuple(float(score) for score in sub_scores)
    return labels, faults


def _is_sub_score(value: Any) -> bool:
    try:
        return float(value) in range(LOWEST, HIGHEST + 1)
    except (TypeError, ValueError, OverflowError):
        return False


def _folds(content: dict[Any, Any], labels: dict[str, tuple[float, ...]]) -> tuple[dict[str, int], list[str]]:
    """The fold of each clip (1 to 4), in the order of the file; and the faults."""
    folds: dict[str, int] = {}
    faults = []
    for task, sizes in FOLD_SIZES.items():
        listed = content.get(task)
        if (
            not isinstance(listed, (list, tuple))
            or len(listed) != FOLDS
            or not all(isinstance(names, (list, tuple)) for names in listed)
        ):
            faults.append(f"'{task}' has not {FOLDS} lists of names: give the released file")
            continue
        for fold, names in enumerate(listed, start=1):
            plain = [str(name).removesuffix("_capture1") for name in names]
            if len(plain) != sizes[fold - 1]:
                faults.append(
                    f"fold {fold} of {task} has {len(plain)} clips and the released one {sizes[fold - 1]}: give the released file"
                )
            for name in plain:
                if not name.startswith(f"{task}_") or name not in labels:
                    faults.append(
                        f"fold {fold} of {task} names {name!r}, which has no label of that task: correct the name"
                    )
                elif name in folds:
                    faults.append(
                        f"{name} is in fold {folds[name]} and in fold {fold}: keep one, the folds must not overlap"
                    )
                else:
                    folds[name] = fold
    if absent := [name for name in labels if name not in folds]:
        faults.append(f"{len(absent)} labelled clips are in no fold ({', '.join(absent[:3])}): give the released file")
    if unknown := [str(task) for task in content if task not in FOLD_SIZES]:
        faults.append(f"unknown tasks {', '.join(unknown[:3])}: the tasks are {', '.join(FOLD_SIZES)}")
    return folds, faults


def _trial_faults(labels: dict[str, tuple[float, ...]]) -> Iterator[str]:
    counted = Counter(_parts(name) for name in labels)
    for task, trials in TRIALS.items():
        found = {surgeon: counted[task, surgeon] for surgeon in "BCDEFGHI" if counted[task, surgeon]}
        if found != trials:
            odd = [s for s in "BCDEFGHI" if found.get(s, 0) != trials.get(s, 0)]
            listed = ", ".join(f"{s} {found.get(s, 0)} instead of {trials.get(s, 0)}" for s in odd)
            yield f"{task} has {sum(found.values())} clips and the released file {sum(trials.values())} (trials of surgeons {listed}): give the released file"
