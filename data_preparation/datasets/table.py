"""Judged actions of any kind in a table of your own, CSV or JSON.

`--annotation_path` names the table, or the folder with table.csv or table.json. Required columns are video, start_frame and
end_frame. Without the column number, the actions of a video are numbered from 1 in the order of the table. Further columns
are described in data_preparation/README.md; the names of the classes may be in classes.txt beside the table.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_preparation.actions import Action, ActionKey, ScoreRules, list_names, overlap_faults
from data_preparation.annotations import COMMON_CONVERTERS, Columns, load_official_split, parse_rows
from data_preparation.common.errors import UserError
from data_preparation.datasets import AnnotationFiles, DataSet, Split, group_warnings
from data_preparation.similar_files import similar_files_hint
from data_preparation.text_tables import CLASS_NAMES, read_class_names

READS_LISTS = True

_NAMES = ("table.csv", "table.json")
_RANGE = ("low", "high")


def _text(value: Any) -> str:
    if not isinstance(value, (str, int)) or isinstance(value, bool):
        raise TypeError("write text or a whole number")
    return str(value).strip()


def _label(value: Any) -> str:
    text = _text(value)
    if re.fullmatch(r"-[0-9]+", text):
        raise ValueError("labels count from 0")
    return text


def _finite(value: Any) -> float:
    number = COMMON_CONVERTERS["final_score"](value)
    if not math.isfinite(number):
        raise ValueError("write a finite number")
    return number


def _judge_scores(value: Any) -> tuple[float, ...]:
    scores = COMMON_CONVERTERS["judge_scores"](value)
    if not all(map(math.isfinite, scores)):  # a grade of execution in figure skating may be negative
        raise ValueError("write finite numbers")
    return scores


COLUMNS = Columns(
    "action",
    ("number", "action", "dive"),
    ("start_frame", "end_frame"),
    {
        **COMMON_CONVERTERS,
        "judge_scores": _judge_scores,
        "label": _label,
        "kind": _text,
        "group": _text,
        **dict.fromkeys(_RANGE, _finite),
    },
)


def find_table(given: Path) -> Path:
    """The table that a path names, or that is in a folder.

    Raises:
        UserError: there is none, or there are two.
    """
    if not given.is_dir():
        return given
    found = [given / name for name in _NAMES if (given / name).is_file()]
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"{given} has {_NAMES[0]} and {_NAMES[1]}: name one with --annotation_path")
    raise UserError(
        f"{given} has no {' or '.join(_NAMES)}{similar_files_hint(given / _NAMES[0], ('.csv', '.json'))}: name your table with --annotation_path"
    )


# -------------------------------------------------------------------------------------------------------------- labels


def class_labels(texts: Iterable[str], listed: tuple[str, ...]) -> tuple[tuple[str, ...], dict[str, int], list[str]]:
    """(class names in the order of the labels, label of each text in the column label, faults).

    Whole numbers are labels already, and count from 0. Names are sorted, unless `listed` states their order.
    """
    given = sorted(set(texts))
    numbers = all(text.isdecimal() for text in given) and not any(name.isdecimal() for name in listed)
    labels = {text: int(text) for text in given} if numbers else {name: i for i, name in enumerate(listed or given)}
    classes = listed or (tuple(map(str, range(len(given)))) if numbers else tuple(given))
    outside = [text for text in given if labels.get(text, len(classes)) >= len(classes)]
    if not outside:
        return classes, labels, []
    if listed:
        names = ", ".join(listed[:5]) + (", ..." if len(listed) > 5 else "")
        fault = f"{len(outside)} labels ({', '.join(outside[:5])}) are not among the {len(listed)} classes of {CLASS_NAMES} ({names}): correct one of them"
    else:
        fault = f"there are {len(given)} labels, and the highest are {', '.join(outside[:5])}: number the classes from 0 without gaps, or write their names into {CLASS_NAMES}, label 0 first"
    return classes, {}, [fault]


# -------------------------------------------------------------------------------------------------------------- ranges


def score_rules(values: Mapping[ActionKey, Mapping[str, Any]]) -> tuple[dict[str, ScoreRules], list[str]]:
    """(the range of final scores of each kind, faults), from the columns low and high of any row of the kind."""
    stated: dict[tuple[str, str], dict[float, ActionKey]] = {}
    for key, fields in values.items():
        for name in _RANGE:
            if name in fields:
                stated.setdefault((fields.get("kind", ""), name), {}).setdefault(fields[name], key)
    rules, faults = {}, []
    scored = {fields.get("kind", "") for fields in values.values() if "final_score" in fields}
    for kind in sorted(scored | {kind for kind, _ in stated}):
        of_kind = f" of kind '{kind}'" if kind else ""
        ends = [list(stated.get((kind, name), {})) for name in _RANGE]
        for name, found in zip(_RANGE, ends, strict=True):
            if len(found) > 1:
                keys = list_names(stated[kind, name].values())
                faults.append(
                    f"'{name}'{of_kind} is {found[0]:g} in one row and {found[1]:g} in another ({keys}): state one"
                )
        if any(len(found) > 1 for found in ends):
            continue
        if bool(ends[0]) != bool(ends[1]) or (kind and kind in scored and not ends[0]):
            faults.append(
                f"kind '{kind}' has no range of final scores: fill in the columns low and high in one of its rows at least"
                if kind
                else "only one of the columns low and high is filled in: fill in both"
            )
        elif ends[0]:
            low, high = ends[0][0], ends[1][0]
            if low < high:
                rules[kind] = ScoreRules(low, high)
            else:
                faults.append(f"the range {low:g} to {high:g}{of_kind} is empty: 'low' must be less than 'high'")
    return rules, faults


def read(files: AnnotationFiles) -> DataSet:
    """Read the table, its class names and the split lists; lists that are not given are left out.

    Raises:
        UserError: a file as a whole is unreadable.
    """
    path = find_table(files.annotations)
    rows = parse_rows(path, COLUMNS)
    class_file = path.with_name(CLASS_NAMES)
    listed = read_class_names(class_file) if class_file.is_file() else ()
    texts = (fields["label"] for fields in rows.values.values() if "label" in fields)
    classes, labels, label_faults = class_labels(texts, listed)
    rules, range_faults = score_rules(rows.values)
    actions: dict[ActionKey, Action] = {}
    for key, fields in rows.values.items():
        own = {name: value for name, value in fields.items() if name not in (*_RANGE, "label")}
        label = labels.get(fields.get("label", ""))
        actions[key] = Action(*key, **own, label=label, rules=rules.get(own.get("kind", "")))
    faults = [*rows.faults, *label_faults, *range_faults, *_missing_faults(rows.values)]
    faults += [fault for action in actions.values() for fault in action.faults()]
    faults += overlap_faults(a for a in actions.values() if a.start_frame <= a.end_frame)
    faults = [f"{path}: {fault}" for fault in (*faults, *rows.fact_faults)]
    splits, list_faults = load_official_split(files, rows.keys)
    faults += list_faults
    warnings = [*group_warnings(actions, splits), *_unseen_classes(actions, splits, classes)]
    return DataSet(actions, splits, classes, rules, tuple(faults), tuple(warnings), rows.facts, rows.keys)


def _missing_faults(values: Mapping[ActionKey, Mapping[str, Any]]) -> list[str]:
    """Columns that only some rows fill in, and a table without anything to learn."""
    faults = []
    for name in ("final_score", "label", "difficulty"):
        absent = [key for key, fields in values.items() if name not in fields]
        if absent and len(absent) < len(values):
            faults.append(
                f"{len(absent)} actions ({list_names(absent)}) have no {name}, and the others do: fill in the column in every row, or leave it out"
            )
    if values and not any("final_score" in fields or "label" in fields for fields in values.values()):
        faults.append("no action has a final_score or a label: add the column of what is judged")
    return faults


def _unseen_classes(
    actions: Mapping[ActionKey, Action], splits: Mapping[str, Split], classes: Sequence[str]
) -> list[str]:
    """A message about classes without an action in the train list: no model can learn them."""
    if not splits:
        return []
    seen = {actions[key].label for key in splits["official"].train if key in actions}
    if not (unseen := [name for label, name in enumerate(classes) if label not in seen]):
        return []
    return [f"{len(unseen)} of {len(classes)} classes ({', '.join(unseen[:5])}) have no action in the train list"]
