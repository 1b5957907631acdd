"""Boxes of a detector: one CSV file for all videos, input of rules that correct labels (training/postprocess).

A row is one box: `video,frame,class,score,x1,y1,x2,y2`. Any detector may write it. Frames are numbered from 1 as in the
archives, scores are between 0 and 1, and the box reaches from the corner x1,y1 to x2,y2 in pixels of the video. A row with the
name of a video and seven empty cells says that the detector saw nothing in it; a video without a row was not read.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from data_preparation.actions import LAST_FRAME, Action, video_name
from data_preparation.common.errors import UserError
from data_preparation.text_tables import csv_cells

COLUMNS = ("video", "frame", "class", "score", "x1", "y1", "x2", "y2")
_MOST_LISTED = 5


class Detection(NamedTuple):
    """A box of class `name` in one frame; `corners` are x1, y1, x2, y2 in pixels of the video."""

    frame: int
    name: str
    score: float
    corners: tuple[float, float, float, float]


Detections = dict[str, list[Detection]]  # by video


def read_detections(path: Path) -> Detections:
    """Read and check the boxes of a detector.

    Raises:
        UserError: the file is missing, or naming all its faults.
    """
    if not path.is_file():
        raise UserError(f"{path} is not a file: give the boxes of a detector ({','.join(COLUMNS)})")
    header, rows, faults = csv_cells(path)
    if tuple(name.lower() for name in header) != COLUMNS:
        raise UserError(f"{path} does not begin with the line {','.join(COLUMNS)}: write the boxes in that format")
    found: Detections = {}
    bad: dict[str, list[int]] = defaultdict(list)  # reason -> rows
    empty: set[str] = set()
    for number, row in rows:
        cells = [*row, *[""] * (len(COLUMNS) - len(row))][: len(COLUMNS)]
        try:
            video = video_name(cells[0])
        except ValueError:
            bad["the first cell is not the name of a video"].append(number)
            continue
        boxes = found.setdefault(video, [])
        if any(cells[1:]):
            try:
                boxes.append(_detection(cells))
            except ValueError as error:
                bad[str(error)].append(number)
        else:
            empty.add(video)
    for reason, numbers in bad.items():
        faults.append(f"{path}: {reason} in {_rows_text(numbers)}: correct that")
    if both := sorted(video for video in empty if found[video]):
        faults.append(
            f"{path}: {len(both)} videos ({_listed(both)}) have boxes and a row that says there are none: remove that row"
        )
    if faults:
        raise UserError.of(faults)
    return found


def _detection(cells: Sequence[str]) -> Detection:
    """
    Raises:
        ValueError: naming what is wrong with the row.
    """
    name = cells[2]
    if not name:
        raise ValueError("the class is missing")
    try:
        frame, score = int(cells[1]), float(cells[3])
        x1, y1, x2, y2 = map(float, cells[4:])
    except ValueError:
        raise ValueError("the frame is not a whole number, or score or a corner is not a number") from None
    if not 1 <= frame <= LAST_FRAME:
        raise ValueError("the frame is not counted from 1")
    if not 0 <= score <= 1:
        raise ValueError("the score is not between 0 and 1")
    if not (-math.inf < x1 < x2 < math.inf and -math.inf < y1 < y2 < math.inf):
        raise ValueError("the box has no area, or x1,y1 is not its upper left corner")
    return Detection(frame, name, score, (x1, y1, x2, y2))


def in_frames_of(detections: Detections, action: Action) -> list[Detection]:
    """The boxes in the frames of an action."""
    return [each for each in detections[action.video] if action.start_frame <= each.frame <= action.end_frame]


def coverage_faults(
    path: Path, detections: Detections, needed: Iterable[Action], data_set: Iterable[Action]
) -> list[str]:
    """Messages about videos that the detector did not read, and videos that the data set does not have."""
    faults = []
    if missing := sorted({action.video for action in needed} - set(detections)):
        faults.append(
            f"{path} has no row of {len(missing)} videos ({_listed(missing)}): run the detector on them; a video without boxes has one row with its name and empty cells"
        )
    if foreign := sorted(set(detections) - {action.video for action in data_set}):
        faults.append(
            f"{path} has {len(foreign)} videos that the data set does not have ({_listed(foreign)}): write the names of the annotations, without the suffix of the file"
        )
    return faults


def _rows_text(numbers: Sequence[int]) -> str:
    return f"row {numbers[0]}" if len(numbers) == 1 else f"{len(numbers)} rows ({_listed(list(map(str, numbers)))})"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_MOST_LISTED]) + (", ..." if len(names) > _MOST_LISTED else "")
