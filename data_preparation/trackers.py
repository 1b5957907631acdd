"""Read the output files of trackers and detectors: frames, ids and boxes (imports only common and text_tables)."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_preparation.common.errors import UserError, first_line
from data_preparation.text_tables import csv_cells, read_text

UPRIGHT = ("frame", "x1", "y1", "x2", "y2")  # columns of a CSV of upright boxes
FORMATS = {
    ".txt": "text of MOTChallenge (frame,id,x,y,width,height in each line)",
    ".csv": f"a CSV with the columns {','.join(UPRIGHT)} (two opposite corners)",
    ".npz": "NumPy arrays `frame` (N) and `quads` (N, 8)",
}


class Tracked(NamedTuple):
    """The boxes of a file: `frames` (N,) int64, numbered as there, `ids` (N,) of what was followed, `corners` (N, 4, 2)."""

    frames: np.ndarray
    ids: np.ndarray
    corners: np.ndarray


def read_tracked(path: Path) -> Tracked:
    """Read a file in the format of its suffix (FORMATS).

    Raises:
        UserError: the file is unreadable, or has no boxes.
    """
    reader = {".txt": _motchallenge, ".csv": _upright_table, ".npz": _arrays}[path.suffix.lower()]
    try:
        tracked = reader(path)
    except (OSError, KeyError, ValueError, IndexError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} is not {FORMATS[path.suffix.lower()]} ({first_line(error)}): correct it, or write it again"
        ) from None
    if not len(tracked.frames):
        raise UserError(f"{path} has no boxes: track the athlete again, or remove the file")
    return tracked


def _motchallenge(path: Path) -> Tracked:
    lines = [line.split(",") for line in read_text(path).splitlines() if line.strip()]
    table = np.array([[float(cell) for cell in line[:6]] for line in lines], np.float64).reshape(len(lines), 6)
    corner = table[:, 2:4]
    return Tracked(_whole(table[:, 0]), _whole(table[:, 1]), upright(corner, corner + table[:, 4:]))


def _upright_table(path: Path) -> Tracked:
    header, rows, faults = csv_cells(path)
    if faults:
        raise ValueError(faults[0])
    names = [name.lower() for name in header]
    if missing := [name for name in UPRIGHT if name not in names]:
        raise ValueError(f"its first line has no {', '.join(missing)}")
    values = [[float(row[names.index(name)]) for name in UPRIGHT] for _, row in rows]
    table = np.array(values, np.float64).reshape(len(rows), 5)
    return Tracked(_whole(table[:, 0]), np.zeros(len(rows), np.int64), upright(table[:, 1:3], table[:, 3:]))


def _arrays(path: Path) -> Tracked:
    with np.load(path, allow_pickle=False) as arrays:
        frames, quads = (np.asarray(arrays[name], np.float64) for name in ("frame", "quads"))
    return Tracked(_whole(frames), np.zeros(len(frames), np.int64), quads.reshape(len(frames), 4, 2))


def _whole(numbers: np.ndarray) -> np.ndarray:
    if numbers.ndim != 1 or not np.isfinite(numbers).all() or (numbers != np.floor(numbers)).any():
        raise ValueError("a frame or an id is not a whole number")
    return numbers.astype(np.int64)


def upright(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The corners (N, 4, 2) of upright boxes, clockwise on the screen, from two opposite corners (N, 2)."""
    (left, top), (right, bottom) = np.minimum(first, second).T, np.maximum(first, second).T
    return np.stack([left, top, right, top, right, bottom, left, bottom], axis=-1).reshape(-1, 4, 2)


def one_track(tracked: Tracked, track: str) -> Tracked:
    """Keep the boxes of one id: `track` is that id, or "longest" for the id with the most frames, or "only".

    Raises:
        UserError: there is no such id, or `track` is "only" and there are several.
    """
    ids, counts = np.unique(tracked.ids, return_counts=True)
    by_count = sorted(zip(ids.tolist(), counts.tolist(), strict=True), key=lambda pair: -pair[1])
    listed = ", ".join(f"{number} in {count} frames" for number, count in by_count[:5])
    if track == "only" and len(ids) > 1:
        raise UserError(f"{len(ids)} ids were followed ({listed}): give --track, the id of the athlete, or longest")
    chosen = int(track) if track.isdigit() else by_count[0][0]
    if chosen not in ids:
        raise UserError(f"no box has the id of --track {track}: give one of the file ({listed})")
    return Tracked(*(part[tracked.ids == chosen] for part in tracked))
