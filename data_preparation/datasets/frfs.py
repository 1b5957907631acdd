"""FR-FS, falls in figure skating (Wang et al., "TSA-Net: Tube Self-Attention Network for Action Quality Assessment",
ACM MM 2021): 417 clips, of which 141 show a fall.

Reads the folder with Train.csv and Test.csv, made from the released Train.xls and Test.xls. Boxes are side files
(`data_preparation.boxes`).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from data_preparation.actions import Action, ActionKey, video_name
from data_preparation.common.errors import UserError
from data_preparation.datasets import AnnotationFiles, DataSet, Split, group_warnings, shared_faults
from data_preparation.similar_files import names_in, similar_files_hint
from data_preparation.text_tables import csv_cells

READS_LISTS = False

CLASSES = ("no fall", "fall")
FRAMES = 103  # of each clip; further pictures are not used
_PARTS = ("Train", "Test")
_RELEASED_FALLS = 141
_RELEASED_SIZES = {"Train": 209, "Test": 208}
_PICTURES = "Images"  # folder of the released pictures, with a folder for each clip


def _list_file(folder: Path, part: str) -> Path:
    """
    Raises:
        UserError: there is no CSV.
    """
    path = folder / f"{part}.csv"
    if path.is_file():
        return path
    if (folder / f"{part}.xls").is_file():
        raise UserError(
            f"{folder / part}.xls is a spreadsheet file: save its sheet as CSV (UTF-8) beside it once (libreoffice --headless --convert-to csv --outdir {folder} {folder / part}.xls)"
        )
    raise UserError(
        f"{path} is missing{similar_files_hint(path, ('.csv', '.xls'))}: save the sheet of FR-FS's {part}.xls as CSV there"
    )


def _read_list(path: Path) -> tuple[dict[str, int], list[str]]:
    """(the value, 0 or 1, of each clip; faults) of one list. The first column has names, the second numbers."""
    header, rows, faults = csv_cells(path)
    if len(header) < 2 or _is_number(header[1]):
        raise UserError(f"{path}: its first line is not a header of two columns: insert the line video,label above it")
    values: dict[str, int] = {}
    twice: list[str] = []
    for number, row in rows:
        if len(row) < 2 or not row[0] or not _is_number(row[1]):
            faults.append(f"{path}, row {number}: it is not the name of a clip and a number: correct it")
            continue
        try:
            name = video_name(row[0])
        except ValueError as error:
            faults.append(f"{path}, row {number}: '{row[0]}': {error}")
            continue
        if name in values:
            twice.append(name)
        values[name] = int(float(row[1].replace(",", ".")) > 0.5)
    if twice:
        faults.append(
            f"{path} names {len(twice)} clips more than once ({', '.join(twice[:5])}): keep one row of each, with the right number"
        )
    return values, faults


def _is_number(cell: str) -> bool:
    try:
        return math.isfinite(float(cell.replace(",", ".")))
    except ValueError:
        return False


def fall_value(values: Mapping[str, int]) -> int | None:
    """The value (0 or 1) that means a fall: the one of 141 clips. None if that decides nothing, since the release does
    not state it."""
    counts = Counter(values.values())
    found = [value for value in (0, 1) if counts[value] == _RELEASED_FALLS]
    return found[0] if len(found) == 1 else None


def clip_groups(names: list[str]) -> dict[str, str]:
    """The group of each clip: its name without the number at the end, if names tell programmes or skaters apart.

    They do not if they have no such number, or if one group has more than a tenth of all clips.
    """
    stems = {name: re.sub(r"[_-]?[0-9]+$", "", name) for name in names}
    largest = Counter(stems.values()).most_common(1)
    if not largest or largest[0][1] * 10 > len(names):
        return {}
    return {name: stem for name, stem in stems.items() if stem}


def _picture_faults(folder: Path, names: list[str]) -> list[str]:
    """Clips with fewer pictures than are used, if the released folder of pictures is beside the lists."""
    pictures = folder / _PICTURES
    if not pictures.is_dir():
        return []
    short = []
    for name in names:
        count = sum(file.lower().endswith(".jpg") for file in names_in(pictures / name))
        if count < FRAMES:
            short.append(f"{name} has {count}")
    if not short:
        return []
    return [
        f"{pictures}: {len(short)} clips have fewer than {FRAMES} pictures ({', '.join(short[:5])}): copy all of each clip"
    ]


def read(files: AnnotationFiles) -> DataSet:
    """Read the folder with Train.csv and Test.csv.

    Raises:
        UserError: a list is missing or unreadable as a whole.
    """
    folder = files.annotations
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: name the folder with FR-FS's Train.csv and Test.csv")
    lists, faults = {}, []
    missing = []
    for part in _PARTS:
        try:
            lists[part], own_faults = _read_list(_list_file(folder, part))
            faults += own_faults
        except UserError as error:
            missing.append(str(error))
    if missing:
        raise UserError.of(missing)
    splits = {"official": Split(*(tuple((name, 1) for name in lists[part]) for part in _PARTS))}
    faults += [f"{folder}: {fault}" for fault in shared_faults(splits["official"].train, splits["official"].test)]
    values = {**lists["Train"], **lists["Test"]}
    fall = fall_value(values)
    if fall is None and not faults:
        ones = sum(values.values())
        faults.append(
            f"{folder}: {ones} clips have a number above 0.5 and {len(values) - ones} do not, but {_RELEASED_FALLS} of the 417 clips of FR-FS are falls and the files do not state which number means a fall: use the complete released lists"
        )
    faults += _picture_faults(folder, list(values))
    groups = clip_groups(list(values))
    actions: dict[ActionKey, Action] = {}
    for name, value in values.items():
        label = None if fall is None else int(value == fall)
        actions[(name, 1)] = Action(name, 1, 1, FRAMES, label=label, group=groups.get(name, ""))
    warnings = [
        f"{folder / part}.csv has {len(lists[part])} clips; FR-FS as released has {size}"
        for part, size in _RELEASED_SIZES.items()
        if len(lists[part]) != size
    ]
    warnings += group_warnings(actions, splits)
    return DataSet(actions, splits, CLASSES, {}, tuple(faults), tuple(warnings), {}, frozenset(actions))
