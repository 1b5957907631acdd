"""PECoP's lists of clips (Dadashzadeh et al., WACV 2024), for training without labels.

Reads one list, or a folder with train.txt and perhaps test.txt. A row is "name label frames performer", separated by blanks or
tabs. The frames of the clip are those of the video performer/name: whole_videos_frames/performer/name.zip, which
data_preparation.adopt makes from the folder performer/name with img_00001.jpg, img_00002.jpg, ... The label is checked and
not used. A performer's clips are never split between training and validation.
"""

from __future__ import annotations

from pathlib import Path

from data_preparation.actions import LAST_FRAME, Action, video_name
from data_preparation.common.errors import UserError
from data_preparation.datasets import AnnotationFiles, DataSet, Split, group_warnings, repeated_faults, shared_faults
from data_preparation.datasets.clips import Faults
from data_preparation.text_tables import read_text

READS_LISTS = False

_LISTS = {"train": "train.txt", "test": "test.txt"}


def parse_list(path: Path) -> tuple[list[Action], list[str]]:
    """(clips, faults) of a list.

    Raises:
        UserError: the file is not text, or it has no rows.
    """
    faults = Faults(path)
    actions: list[Action] = []
    lines = [(number, line.split()) for number, line in enumerate(read_text(path).splitlines(), start=1)]
    lines = [(number, cells) for number, cells in lines if cells]
    if not lines:
        raise UserError(f"{path} is empty: write one row 'name label frames performer' for each clip")
    for number, cells in lines:
        if len(cells) != 4:
            faults.add(
                number, "not the four columns 'name label frames performer'", "correct it", f"it has {len(cells)}"
            )
            continue
        name, label, frames, performer = cells
        if not label.lstrip("-").isdecimal() or not frames.isdecimal():
            faults.add(number, "label or frames is not a whole number", "correct it", f"{label} {frames}")
        elif not 1 <= int(frames) <= LAST_FRAME:
            faults.add(number, "the clip has no frames", "remove the row, or write the right number", frames)
        elif fault := _name_fault(performer, name):
            faults.add(number, "performer and name cannot be the name of a video", fault, f"{performer}/{name}")
        else:
            actions.append(Action(video_name(f"{performer}/{name}"), 1, 1, int(frames), group=performer))
    return actions, [*faults.sentences(), *repeated_faults(str(path), [action.key for action in actions])]


def _name_fault(performer: str, name: str) -> str:
    try:
        video_name(f"{performer}/{name}")
    except ValueError as error:
        return str(error)
    return ""


def read(files: AnnotationFiles) -> DataSet:
    """Read a list, or a folder with train.txt and perhaps test.txt.

    Raises:
        UserError: a file as a whole is unreadable, or there is no list.
    """
    given = files.annotations
    paths = {part: given / name for part, name in _LISTS.items()} if given.is_dir() else {"train": given}
    if not paths["train"].is_file():
        raise UserError(
            f"{paths['train']} is not a file: name a list of rows 'name label frames performer', or a folder with train.txt, with --annotation_path"
        )
    actions: dict = {}
    keys: dict[str, tuple] = {"train": (), "test": ()}
    faults: list[str] = []
    for part, path in paths.items():
        if path.is_file():
            found, own_faults = parse_list(path)
            faults += own_faults
            keys[part] = tuple(dict.fromkeys(action.key for action in found))
            actions |= {action.key: action for action in found}
    faults += shared_faults(keys["train"], keys["test"])
    splits = {"official": Split(keys["train"], keys["test"])}
    warnings = tuple(group_warnings(actions, splits))
    return DataSet(actions, splits, faults=tuple(faults), warnings=warnings, keys=frozenset(actions))
