"""FineDiving (Xu et al., "FineDiving: A Fine-grained Dataset for Procedure-aware Action Quality Assessment", CVPR 2022):
3,000 dives of 135 videos, with the steps of each dive.

Reads the folder of the released pickles. A video is named as there ("01", "FINADivingWorldCup2021_Men3m_final_r1").
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_preparation.actions import (
    COUNTED_JUDGES,
    LAST_FRAME,
    MAX_JUDGE_SCORE,
    ROUNDING,
    ActionKey,
    Dive,
    ScoreRules,
    action_name,
    judge_exceptions,
    list_names,
    middle_three,
    overlap_faults,
    video_name,
)
from data_preparation.common.errors import UserError
from data_preparation.datasets import (
    AnnotationFiles,
    DataSet,
    Split,
    group_warnings,
    repeated_faults,
    split_faults,
)
from data_preparation.pickles import load_pickle
from data_preparation.text_tables import whole_number

READS_LISTS = False

_COARSE = "FineDiving_coarse_annotation.pkl"
_FINE = "FineDiving_fine-grained_annotation.pkl"
_FINE_LISTS = "fine-grained_annotation_aqa.pkl"  # the same as _FINE, as lists
_STEP_NAMES = "Sub_action_Types_Table.pkl"
_TRAIN, _TEST = "train_split.pkl", "test_split.pkl"
_RELEASED = (_COARSE, _FINE, _FINE_LISTS, _STEP_NAMES, _TRAIN, _TEST)
_RELEASED_DIVES, _RELEASED_VIDEOS = 3000, 135
_HIGHEST_SCORE = 114.8  # of the released dives

_COARSE_FIELDS = ("action_type", "dive_score", "difficulty", "start_frame", "end_frame", "judge_scores")
_FINE_FIELDS = ("action_type", "dive_score", "difficulty", "steps_transit_frames", "frames_labels")
_SHARED_FIELDS = _FINE_FIELDS[:3]


def final_score(judges: Sequence[float], difficulty: float | None) -> float | None:
    """The final score by the rules of the judges that are listed: all seven of an individual dive, the three counted ones
    of an individual dive, or the five counted ones of a synchronised dive."""
    if difficulty is None:
        return None
    if len(judges) == 5:
        return 0.6 * sum(judges) * difficulty
    return middle_three(judges, difficulty)


RULES = ScoreRules(0.0, _HIGHEST_SCORE, final_score)


def is_synchronised(video: str) -> bool:
    """Whether the dives of a video are synchronised ones, by its name."""
    return "ync" in video


def event_of(video: str) -> str:
    """The event of a video, by its name: the videos of an event are its rounds (_r1, _r2, ...), with the same athletes."""
    return re.sub(r"_r[0-9]+$", "", video)


# ------------------------------------------------------------------------------------------------------ files -> fields


def _key(raw: Any) -> ActionKey:
    video, number = raw
    if not isinstance(video, str) or int(number) != number:
        raise TypeError("not (text, whole number)")
    return (video_name(video), int(number))


def _keyed(path: Path, faults: list[str]) -> dict[ActionKey, Any]:
    """The entries of a pickled dictionary by action key; faults are appended.

    Raises:
        UserError: the file is unreadable or is not a dictionary.
    """
    raw = load_pickle(path)
    if not isinstance(raw, dict) or not raw:
        raise UserError(f"{path} does not hold a dictionary of dives: download FineDiving's annotations again")
    found: dict[ActionKey, Any] = {}
    bad, twice = [], []
    for raw_key, value in raw.items():
        try:
            key = _key(raw_key)
        except (TypeError, ValueError, OverflowError):
            bad.append(raw_key)
            continue
        if key in found:
            twice.append(key)
        found[key] = value
    if bad:
        faults.append(
            f"{path}: {len(bad)} keys are not (name of a video, number of a dive), such as {bad[0]!r}: download it again"
        )
    if twice:
        faults.append(f"{path}: {len(twice)} dives occur twice ({list_names(twice)}): keep one entry of each")
    return found


def _key_list(path: Path, faults: list[str]) -> tuple[ActionKey, ...]:
    """The keys of a pickled split list; faults are appended.

    Raises:
        UserError: the file is unreadable or is not a list.
    """
    raw = load_pickle(path)
    if not isinstance(raw, (list, tuple)) or not raw:
        raise UserError(f"{path} does not hold a list of dives: download FineDiving's annotations again")
    keys: list[ActionKey] = []
    bad = []
    for item in raw:
        try:
            keys.append(_key(item))
        except (TypeError, ValueError, OverflowError):
            bad.append(item)
    if bad:
        faults.append(
            f"{path}: {len(bad)} entries are not (name of a video, number of a dive), such as {bad[0]!r}: download it again"
        )
    faults += repeated_faults(str(path), keys)
    return tuple(keys)


def _with_fields(
    path: Path, entries: Mapping[ActionKey, Any], names: Sequence[str], faults: list[str]
) -> dict[ActionKey, Mapping[str, Any]]:
    """The entries that have all the fields; a list of five is named first. Entries without them become faults."""
    found: dict[ActionKey, Mapping[str, Any]] = {}
    bad = []
    for key, entry in entries.items():
        if isinstance(entry, (list, tuple)) and len(entry) == len(names):
            entry = dict(zip(names, entry, strict=True))
        if isinstance(entry, dict) and all(name in entry for name in names):
            found[key] = entry
        else:
            bad.append(key)
    if bad:
        faults.append(f"{path}: {len(bad)} dives ({list_names(bad)}) lack one of {', '.join(names)}: download it again")
    return found


def _plain(value: Any) -> Any:
    """Numbers as float and text in lower case, so that equal values of different types are equal."""
    return value.lower() if isinstance(value, str) else float(value)


def _agreement_faults(
    path: Path, entries: Mapping[ActionKey, Mapping[str, Any]], coarse: Mapping[ActionKey, Mapping[str, Any]]
) -> list[str]:
    """Differences between a file and the coarse annotations, which agree on all dives as released."""
    faults = []
    if different := sorted(entries.keys() ^ coarse.keys()):
        faults.append(
            f"{path} and {_COARSE}: {len(different)} dives ({list_names(different)}) are in only one of them: use files of one release"
        )
    for name in _SHARED_FIELDS:
        different = []
        for key, entry in entries.items():
            if key in coarse:
                try:
                    same = _plain(entry[name]) == _plain(coarse[key][name])
                except (TypeError, ValueError, OverflowError):
                    same = False
                if not same:
                    different.append(key)
        if different:
            faults.append(
                f"{path} and {_COARSE} differ in {name} of {len(different)} dives ({list_names(different)}): use files of one release"
            )
    return faults


# ------------------------------------------------------------------------------------------------------ fields -> dives


def step_starts(labels: Sequence[int]) -> list[int]:
    """The indices at which a step begins, from the labels of the frames; the first is 0. A step that returns counts
    again."""
    return [index for index, label in enumerate(labels) if index == 0 or label != labels[index - 1]]


def _items(value: Any) -> list[Any]:
    """The items of a list or of an array."""
    return list(value) if isinstance(value, (list, tuple)) else value.tolist()


def _odd_judges(dive_title: str, judges: Sequence[float], count: int) -> list[str]:
    """What is odd about the judges' scores of a dive, a sentence each."""
    odd = [s for s in judges if not (0 <= s <= MAX_JUDGE_SCORE and s * 2 == int(s * 2))]
    warnings = [
        f"{dive_title}: a judge's score of {score:g} is not one of 0 to {MAX_JUDGE_SCORE:g} in half points: the judges' scores of this dive are not used"
        for score in odd
    ]
    if len(judges) != count and not (count == COUNTED_JUDGES and len(judges) == 7):
        warnings.append(
            f"{dive_title}: it has {len(judges)} judges' scores instead of {count}: the judges' scores of this dive are not used"
        )
    return warnings


def _make_dive(
    key: ActionKey, coarse: Mapping[str, Any], fine: Mapping[str, Any] | None
) -> tuple[Dive | None, list[str], list[str]]:
    """(the dive or None, faults, warnings)."""
    title = f"{Dive.noun} {action_name(key)}"
    try:
        start, end = whole_number(coarse["start_frame"]), whole_number(coarse["end_frame"])
        score, difficulty = float(coarse["dive_score"]), float(coarse["difficulty"])
        number = str(coarse["action_type"]).upper()
        judges: tuple[float, ...] | None = tuple(map(float, _items(coarse["judge_scores"])))
        labels = None if fine is None else [whole_number(label) for label in _items(fine["frames_labels"])]
        transitions = None if fine is None else [whole_number(frame) for frame in _items(fine["steps_transit_frames"])]
    except (TypeError, ValueError, OverflowError, AttributeError) as error:
        return None, [f"{title}: a field cannot be parsed ({error}): download the annotations again"], []
    faults, warnings = [], []
    if labels is not None and len(labels) != end - start + 1:
        faults.append(
            f"{title}: {len(labels)} frame labels for frames {start} to {end}: use annotations of one release"
        )
    starts = step_starts(labels or [])
    if labels is not None and transitions != [index - 1 for index in starts[1:]]:
        warnings.append(
            f"{title}: its transitions {_listed(transitions or [])} do not fit its frame labels, which change after {_listed(i - 1 for i in starts[1:])}: the labels are used"
        )
    if odd := _odd_judges(title, judges or (), 5 if is_synchronised(key[0]) else COUNTED_JUDGES):
        warnings += odd
        judges = None
    steps = tuple(start + index for index in starts) or None
    dive = Dive(
        *key, start, end, difficulty=difficulty, final_score=score, judge_scores=judges, steps=steps, rules=RULES,
        dive_number=number, group=event_of(key[0]),
    )  # fmt: skip
    return dive, faults + _value_faults(dive), warnings


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers)) or "(none)"


def _value_faults(dive: Dive) -> list[str]:
    """Impossible values. Judges' scores and difficulties have typing errors in the release, so a final score that they do
    not allow is a warning instead."""
    faults = []
    if not 1 <= dive.start_frame <= dive.end_frame <= LAST_FRAME:
        faults.append(
            f"{dive.title}: frames {dive.start_frame} to {dive.end_frame} are not a range of frames within 1 to {LAST_FRAME}"
        )
    if not 0 < dive.difficulty < math.inf:
        faults.append(f"{dive.title}: difficulty {dive.difficulty} must be greater than 0")
    if not 0 <= dive.final_score < math.inf:
        faults.append(f"{dive.title}: final score {dive.final_score} must be a number from 0")
    return faults


def _score_warnings(dives: Sequence[Dive]) -> list[str]:
    """A message about the final scores that do not follow from the judges' scores, and one about impossible ones."""
    warnings = []
    if exceptions := judge_exceptions(dives):
        judged = sum(dive.judge_scores is not None for dive in dives)
        warnings.append(
            f"the judges' scores of {len(exceptions)} of {judged} dives do not give the final score ({list_names(d.key for d in exceptions)}): training uses the final score"
        )
    most = COUNTED_JUDGES * MAX_JUDGE_SCORE
    above = [d.key for d in dives if d.final_score > most * d.difficulty + ROUNDING]
    if above:
        warnings.append(
            f"the final scores of {len(above)} dives ({list_names(above)}) are above what judges can give at their difficulty"
        )
    return warnings


def read(files: AnnotationFiles) -> DataSet:
    """Read the folder of FineDiving's six released pickles.

    Raises:
        UserError: files are missing or unreadable as a whole.
    """
    folder = files.annotations
    if absent := [name for name in _RELEASED if not (folder / name).is_file()]:
        raise UserError(
            f"{folder} lacks {', '.join(absent)} of FineDiving: copy the six released pickles there, or name their folder with --annotation_path"
        )
    faults: list[str] = []
    warnings: list[str] = []
    coarse_entries = _keyed(folder / _COARSE, faults)
    coarse = _with_fields(folder / _COARSE, coarse_entries, _COARSE_FIELDS, faults)
    fine: dict[ActionKey, Mapping[str, Any]] = {}
    for name in (_FINE_LISTS, _FINE):
        fine = _with_fields(folder / name, _keyed(folder / name, faults), _FINE_FIELDS, faults)
        faults += _agreement_faults(folder / name, fine, coarse)
    dives: dict[ActionKey, Dive] = {}
    for key, fields in coarse.items():
        dive, own_faults, own_warnings = _make_dive(key, fields, fine.get(key))
        faults += own_faults
        warnings += own_warnings
        if dive is not None:
            dives[key] = dive
    warnings += overlap_faults(d for d in dives.values() if d.start_frame <= d.end_frame)
    warnings += _score_warnings(list(dives.values()))
    warnings += _step_warnings(folder / _STEP_NAMES, fine)
    train, test = _key_list(folder / _TRAIN, faults), _key_list(folder / _TEST, faults)
    faults += split_faults(coarse_entries, train, test)
    if unlisted := sorted(coarse_entries.keys() - set(train) - set(test)):
        warnings.append(f"{len(unlisted)} dives ({list_names(unlisted)}) are in neither list")
    splits = {"official": Split(train, test)}
    warnings += group_warnings(dives, splits)
    videos = len({video for video, _ in coarse_entries})
    if (len(coarse_entries), videos) != (_RELEASED_DIVES, _RELEASED_VIDEOS):
        warnings.append(
            f"{folder} has {len(coarse_entries)} dives of {videos} videos; FineDiving as released has {_RELEASED_DIVES} of {_RELEASED_VIDEOS}"
        )
    return DataSet(
        dict(dives), splits, (), {"": RULES}, tuple(faults), tuple(warnings), {}, frozenset(coarse_entries)
    )  # fmt: skip


def _step_warnings(path: Path, fine: Mapping[ActionKey, Mapping[str, Any]]) -> list[str]:
    """A message about frame labels that the table of steps does not name.

    Raises:
        UserError: the table is unreadable.
    """
    names = load_pickle(path)
    if not isinstance(names, dict):
        raise UserError(f"{path} does not hold a dictionary of steps: download FineDiving's annotations again")
    unknown: dict[Any, ActionKey] = {}
    for key, fields in fine.items():
        try:
            for label in set(_items(fields["frames_labels"])):
                if int(label) not in names:
                    unknown.setdefault(int(label), key)
        except (TypeError, ValueError, OverflowError, AttributeError):
            continue  # _make_dive reports it
    return [
        f"{Dive.noun} {action_name(key)}: frame label {label} is not in {path.name}" for label, key in unknown.items()
    ]
