"""Boxes of trackers and detectors: a side file for each video, DATASET/boxes/NAME.csv.

    python -m data_preparation.boxes frfs --source FRFS_Boxes.json --dataset DIR
    python -m data_preparation.boxes convert --source FILE_OR_FOLDER --width 640 --height 360 --dataset DIR
    python -m data_preparation.boxes check --dataset DIR [--sheets FOLDER]
    python -m data_preparation.boxes shuffle --dataset DIR --output FOLDER     boxes of other videos, to compare with

A row is the box of one frame: `frame,width,height,x1,y1,x2,y2,x3,y3,x4,y4`. Frames are numbered from 1 as in the
archives. The corners of the box (any quadrilateral) follow each other round it, in pixels of a picture of width x height,
from 0,0 at its upper left corner; stored frames may have another size. Frames without a row have no box. Boxes are inputs
of some methods, and not fields of the records.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from data_preparation.actions import LAST_FRAME, video_name
from data_preparation.archive import FrameReader, open_frames
from data_preparation.common.command_line import flag, parse_command, run
from data_preparation.common.errors import UserError, first_line, read_all
from data_preparation.common.files import atomic_file, reporting_write_errors, write_atomic
from data_preparation.layout import dataset_layout
from data_preparation.text_tables import csv_cells, load_json, read_text
from data_preparation.trackers import FORMATS, one_track, read_tracked

COLUMNS = ("frame", "width", "height", *(f"{axis}{corner}" for corner in (1, 2, 3, 4) for axis in "xy"))
FRFS_FRAMES = 103  # boxes of each clip of FR-FS
FRFS_SIZE = (640, 360)  # width and height of its pictures


@dataclass(frozen=True, eq=False)
class Boxes:
    """The boxes of one video: `frames` (N,) int64 ascend from 1 or later; `corners` (N, 4, 2) float64 are x and y in
    pixels of a picture of `width` x `height`."""

    frames: np.ndarray
    corners: np.ndarray
    width: int
    height: int

    def fingerprint(self) -> str:
        """The SHA-256 of the boxes, in hexadecimal."""
        return hashlib.sha256(_csv_text(self).encode()).hexdigest()


def boxes_file(folder: Path, video: str) -> Path:
    """The side file of one video in the folder of all boxes."""
    return folder / f"{video}.csv"


# ---------------------------------------------------------------------------------------------------------- geometry


def in_sequence(corners: np.ndarray) -> np.ndarray:
    """Order the corners (..., 4, 2) of boxes by their angle around the centre, from the first given corner on.

    All boxes then have the same orientation, and a bow-tie becomes the box that was meant.
    """
    from_centre = corners - corners.mean(axis=-2, keepdims=True)
    angles = np.arctan2(from_centre[..., 1], from_centre[..., 0])  # (..., 4)
    order = np.argsort((angles - angles[..., :1]) % (2 * np.pi), axis=-1, kind="stable")
    return np.take_along_axis(corners, order[..., None], axis=-2)


def areas(corners: np.ndarray) -> np.ndarray:
    """The signed areas (...,) of quadrilaterals (..., 4, 2) in square pixels, by the shoelace formula."""
    x, y = corners[..., 0], corners[..., 1]
    return 0.5 * (x * np.roll(y, -1, axis=-1) - y * np.roll(x, -1, axis=-1)).sum(axis=-1)


def box_faults(boxes: Boxes) -> list[str]:
    """A message for each kind of fault, with the frames that have it."""
    faults = []
    if boxes.width < 1 or boxes.height < 1:
        faults.append(f"a picture of {boxes.width}x{boxes.height} pixels: state the size that the corners refer to")
    if len(boxes.frames) and boxes.frames.min() < 1:
        faults.append(f"frame {boxes.frames.min()}: frames are numbered from 1")
    if (np.diff(boxes.frames) <= 0).any():
        again = boxes.frames[1:][np.diff(boxes.frames) <= 0]
        faults.append(f"{_frames_text(again)} not in ascending order or given twice: write one row for each frame")
    finite = np.isfinite(boxes.corners).all(axis=(-2, -1))
    if not finite.all():
        faults.append(f"{_frames_text(boxes.frames[~finite])} with corners that are not finite numbers")
        return faults
    if (flat := areas(boxes.corners) == 0).any():
        faults.append(f"{_frames_text(boxes.frames[flat])} with a box of area 0: leave out the row if there is no box")
    outside = _centres_outside(boxes)
    if outside.sum() * 2 > len(boxes.frames):
        faults.append(
            f"{outside.sum()} of {len(boxes.frames)} boxes lie outside of the picture of {boxes.width}x{boxes.height} pixels: state the size of the picture that the tracker saw"
        )
    return faults


def box_warnings(boxes: Boxes) -> list[str]:
    """What is odd about boxes without faults."""
    found = []
    if count := int(_centres_outside(boxes).sum()):
        found.append(f"{count} of {len(boxes.frames)} boxes have their centre outside of the picture")
    steps = np.diff(boxes.frames)
    if (steps > 1).any():
        at = int(steps.argmax())
        found.append(
            f"{int((steps - 1).sum())} frames between the first and the last box have none, in {int((steps > 1).sum())} gaps; the longest is {boxes.frames[at] + 1} to {boxes.frames[at + 1] - 1}"
        )
    return found


def _centres_outside(boxes: Boxes) -> np.ndarray:
    centres = boxes.corners.mean(axis=-2)  # (N, 2)
    return ((centres < 0) | (centres > (boxes.width, boxes.height))).any(axis=-1)


def _frames_text(frames: Iterable[int], most: int = 5) -> str:
    listed = [str(frame) for frame in frames]
    names = ", ".join(listed[:most]) + (", ..." if len(listed) > most else "")
    return f"frame {names}" if len(listed) == 1 else f"{len(listed)} frames ({names})"


# -------------------------------------------------------------------------------------------------------------- files


def _csv_text(boxes: Boxes) -> str:
    lines = [",".join(COLUMNS)]
    for frame, corners in zip(boxes.frames.tolist(), boxes.corners.reshape(-1, 8).tolist(), strict=True):
        numbers = (frame, boxes.width, boxes.height, *corners)
        lines.append(",".join(f"{number:.10g}" for number in numbers))
    return "\n".join(lines) + "\n"


def write_boxes(path: Path, boxes: Boxes) -> None:
    """Write the side file of one video atomically.

    Raises:
        UserError: it cannot be written.
    """
    with reporting_write_errors(path):
        write_atomic(path, _csv_text(boxes).encode())


def read_boxes(path: Path) -> Boxes:
    """Read and check the side file of one video.

    Raises:
        UserError: the file is missing, or naming all its faults.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing: write the boxes of this video there")
    header, rows, longer = csv_cells(path)
    if longer:
        raise UserError.of(longer)
    if tuple(name.lower() for name in header) != COLUMNS:
        raise UserError(f"{path} does not begin with the line {','.join(COLUMNS)}: write the boxes in that format")
    values, faults = [], []
    for number, row in rows:
        try:
            values.append([float(cell) for cell in row])
            if len(row) != len(COLUMNS) or any(
                not 0 <= value <= LAST_FRAME or value != int(value) for value in values[-1][:3]
            ):
                raise ValueError
        except (ValueError, OverflowError):
            faults.append(number)
    if faults:
        raise UserError(
            f"{path}: {len(faults)} rows ({_frames_text(faults).replace('frame', 'row')}) are not {len(COLUMNS)} numbers of which the first three are whole: correct them"
        )
    table = np.asarray(values, np.float64).reshape(-1, len(COLUMNS))
    sizes = {(int(width), int(height)) for width, height in table[:, 1:3]}
    if len(sizes) != 1:
        raise UserError(f"{path} has {len(sizes)} sizes of the picture: write the boxes of one video with one size")
    boxes = Boxes(table[:, 0].astype(np.int64), table[:, 3:].reshape(-1, 4, 2), *sizes.pop())
    if found := box_faults(boxes):
        raise UserError.of(f"{path}: {fault}" for fault in found)
    return boxes


# ---------------------------------------------------------------------------------------------- FR-FS as it was released


def parse_frfs(source: Path, width: int, height: int) -> dict[str, Boxes]:
    """The boxes of each clip in FRFS_Boxes.json (TSA-Net, Wang et al., ACM MM 2021), in pixels of width x height.

    The file has 103 boxes of eight numbers for each clip. The corners of the first box are in another order than those of
    the others; all are put in sequence.

    Raises:
        UserError: the file is unreadable, or naming all its faults.
    """
    try:
        content, repeated = load_json(read_text(source))
    except ValueError as error:
        raise UserError(f"{source} is not JSON ({first_line(error)}): download it again") from None
    if not isinstance(content, dict) or not content:
        raise UserError(f"{source} is not a JSON object with the boxes of each clip: give FRFS_Boxes.json")
    faults = [f"{source}: clip '{name}' occurs twice: keep one entry" for name in repeated]
    found: dict[str, Boxes] = {}
    for name, boxes in content.items():
        try:
            found[video_name(name)] = _frfs_boxes(boxes, width, height)
            faults += [f"{source}, clip '{name}': {fault}" for fault in box_faults(found[video_name(name)])]
        except (TypeError, ValueError, OverflowError) as error:
            faults.append(f"{source}, clip '{name}': {first_line(error)}: correct it, or download the file again")
    if faults:
        raise UserError.of(faults)
    return found


def _frfs_boxes(raw: Any, width: int, height: int) -> Boxes:
    """
    Raises:
        ValueError: it is not a list of 103 boxes of eight numbers.
    """
    if not isinstance(raw, list) or len(raw) != FRFS_FRAMES:
        count = f"{len(raw)} boxes" if isinstance(raw, list) else f"a {type(raw).__name__}"
        raise ValueError(f"{count} instead of {FRFS_FRAMES} boxes")
    for frame, box in enumerate(raw, start=1):
        if not isinstance(box, list) or len(box) != 8 or not all(type(number) in (int, float) for number in box):
            raise ValueError(f"the box of frame {frame} is not a list of eight numbers")
    corners = np.asarray(raw, np.float64).reshape(-1, 4, 2)
    if np.isfinite(corners).all():  # box_faults names the others
        corners = in_sequence(corners)
    return Boxes(np.arange(1, FRFS_FRAMES + 1), corners, width, height)


# ---------------------------------------------------------------------------------------------- output files of trackers


def tracker_boxes(path: Path, width: int, height: int, track: str, first_frame: int) -> Boxes:
    """The boxes of one video in the output file of a tracker, which numbers frames from `first_frame` on (trackers.py).

    Raises:
        UserError: the file is unreadable, or naming all its faults.
    """
    read = read_tracked(path)
    try:
        tracked = one_track(read, track)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    order = np.argsort(tracked.frames, kind="stable")
    corners = tracked.corners[order]
    if np.isfinite(corners).all():  # box_faults names the others
        corners = in_sequence(corners)
    boxes = Boxes(tracked.frames[order] + 1 - first_frame, corners, width, height)
    if faults := box_faults(boxes):
        raise UserError.of(f"{path}: {fault}" for fault in faults)
    return boxes


# ------------------------------------------------------------------------------------------------------- contact sheets

SHEET_COLUMNS, SHEET_FRAMES = 6, 12
SHEET_HEIGHT = 160  # pixels of a frame
BOX_COLOUR = (250, 220, 40)


def contact_sheet(reader: FrameReader, boxes: Boxes) -> Image.Image:
    """Frames of a video, evenly spread over its boxes, each with its box and its number."""
    shared = np.intersect1d(reader.numbers, np.arange(boxes.frames[0], boxes.frames[-1] + 1))
    numbers = shared[np.unique(np.linspace(0, len(shared) - 1, SHEET_FRAMES).round().astype(int))]
    cells = []
    for number in numbers.tolist():
        frame = Image.fromarray(reader.image(number))
        size = (round(frame.width * SHEET_HEIGHT / frame.height), SHEET_HEIGHT)
        frame, draw_at = frame.resize(size), np.array(size) / (boxes.width, boxes.height)
        draw = ImageDraw.Draw(frame)
        for corners in boxes.corners[boxes.frames == number]:
            draw.polygon([tuple(corner) for corner in (corners * draw_at).tolist()], outline=BOX_COLOUR)
        draw.text((3, 2), str(number), fill="white", stroke_width=1, stroke_fill="black")
        cells.append(frame)
    columns = min(len(cells), SHEET_COLUMNS)
    width, gap = max(cell.width for cell in cells), 2
    sheet = Image.new("RGB", (columns * (width + gap), -(-len(cells) // columns) * (SHEET_HEIGHT + gap)), "white")
    for index, cell in enumerate(cells):
        sheet.paste(cell, (index % columns * (width + gap), index // columns * (SHEET_HEIGHT + gap)))
    return sheet


def draw_sheet(frames_dir: Path, video: str, boxes: Boxes, sheets: Path) -> None:
    """Write the contact sheet of a video.

    Raises:
        UserError: the video has no frames, or none with a box.
    """
    reader = open_frames(frames_dir, video)
    if not np.isin(reader.numbers, boxes.frames).any():
        raise UserError(f"video {video}: no stored frame has a box: check the numbers of the frames, or --first_frame")
    sheet = sheets / f"{video}.png"
    with reporting_write_errors(sheet):
        sheet.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(sheet) as temporary:
            contact_sheet(reader, boxes).save(temporary, format="PNG")


# -------------------------------------------------------------------------------------------------------- command line


@dataclass(frozen=True)
class FrfsConfig:
    """Write the boxes of FR-FS as side files, one for each clip."""

    dataset: Path | None = flag(None, "Data set folder; none uses DEEPSPORTS_DATASET of job_files/environment.sh.")
    source: Path | None = flag(None, "FRFS_Boxes.json; none uses that of the data set's annotations.")
    width: int = flag(FRFS_SIZE[0], "Width of the pictures that the tracker saw, in pixels.", minimum=1)
    height: int = flag(FRFS_SIZE[1], "Height of the pictures that the tracker saw, in pixels.", minimum=1)


@dataclass(frozen=True)
class ConvertConfig:
    """Write the output files of a tracker (MOTChallenge .txt, .csv, .npz) as side files, one for each video."""

    dataset: Path | None = flag(None, "Data set folder; none uses DEEPSPORTS_DATASET of job_files/environment.sh.")
    source: Path | None = flag(
        None, "File of one video, named after it, or a folder of such files (in folders, as the videos)."
    )
    width: int = flag(0, "Width of the pictures that the tracker saw, in pixels.", minimum=0)
    height: int = flag(0, "Height of the pictures that the tracker saw, in pixels.", minimum=0)
    track: str = flag(
        "only",
        "The id of the athlete, where a tracker follows several, or longest for the id with the most frames; only refuses several.",
        allowed="only, longest, whole number",
    )
    first_frame: int = flag(1, "Number that the tracker gives the first frame of a video.", minimum=0, maximum=1)

    def __post_init__(self) -> None:
        faults = []
        if self.source is None:
            faults.append("--source is missing: give the output file of the tracker, or a folder of them")
        if not (self.width and self.height):
            faults.append("--width and --height are missing: give the size of the pictures that the tracker saw")
        if self.track not in ("only", "longest") and not self.track.isdigit():
            faults.append(f"--track {self.track} is not an id: give a whole number, longest or only")
        if faults:
            raise UserError.of(faults)


@dataclass(frozen=True)
class ShuffleConfig:
    """Give each video the boxes of another one. A method that uses boxes must be better with the true ones."""

    dataset: Path | None = flag(None, "Data set folder; none uses DEEPSPORTS_DATASET of job_files/environment.sh.")
    output: Path | None = flag(None, "New folder for the shuffled boxes.")
    seed: int = flag(0, "Random seed.", minimum=0)

    def __post_init__(self) -> None:
        if self.output is None:
            raise UserError("--output is missing: give a new folder for the shuffled boxes")


@dataclass(frozen=True)
class CheckConfig:
    """Check the side files: one box a frame, inside the picture, gaps. --sheets draws them into the frames."""

    dataset: Path | None = flag(None, "Data set folder; none uses DEEPSPORTS_DATASET of job_files/environment.sh.")
    sheets: Path | None = flag(None, "Folder for a contact sheet of each video; without it none are drawn.")


def _print_warnings(found: Mapping[str, Boxes]) -> None:
    for name, boxes in found.items():
        for warning in box_warnings(boxes):
            print(f"warning: {name}: {warning}")


def _write_all(folder: Path, found: Mapping[str, Boxes]) -> None:
    for name, boxes in found.items():
        write_boxes(boxes_file(folder, name), boxes)
    _print_warnings(found)


def _convert_frfs(config: FrfsConfig) -> None:
    layout = dataset_layout(config.dataset)
    source = config.source or layout.annotations / "FRFS_Boxes.json"
    found = parse_frfs(source, config.width, config.height)
    _write_all(layout.root / "boxes", found)
    print(f"{layout.root / 'boxes'}: boxes of {len(found)} clips in pixels of {config.width}x{config.height}")


def _convert(config: ConvertConfig) -> None:
    assert config.source is not None
    layout = dataset_layout(config.dataset)
    if not config.source.exists():
        raise UserError(f"--source {config.source} is not a file or folder: give the output of the tracker")
    base = config.source if config.source.is_dir() else config.source.parent
    files = sorted(base.rglob("*")) if config.source.is_dir() else [config.source]
    files = [file for file in files if file.suffix.lower() in FORMATS]
    if not files:
        raise UserError(f"--source {config.source} has no file of a tracker: give {'; '.join(FORMATS.values())}")
    videos = [_named_by(file, base) for file in files]
    if twice := [name for name, count in Counter(videos).items() if count > 1]:
        raise UserError(f"--source {config.source} has two files of video {twice[0]}: keep one of them")
    settings = (config.width, config.height, config.track, config.first_frame)
    readers = {name: partial(tracker_boxes, file, *settings) for name, file in zip(videos, files, strict=True)}
    found = read_all(readers)
    _write_all(layout.root / "boxes", found)
    print(f"{layout.root / 'boxes'}: boxes of {len(found)} videos in pixels of {config.width}x{config.height}")


def _named_by(file: Path, base: Path) -> str:
    """The video that a file in the folder `base` is named after."""
    try:
        return video_name(file.relative_to(base).with_suffix("").as_posix())
    except ValueError as error:
        raise UserError(f"{file} is not named after a video ({error}): rename it") from None


def _read_folder(folder: Path) -> dict[str, Boxes]:
    """The boxes of all videos in a folder."""
    files = {file.relative_to(folder).with_suffix("").as_posix(): file for file in sorted(folder.rglob("*.csv"))}
    if not files:
        raise UserError(f"{folder} has no boxes: write them with python -m data_preparation.boxes convert")
    return read_all({name: partial(read_boxes, file) for name, file in files.items()})


def shuffled(found: Mapping[str, Boxes], seed: int) -> dict[str, Boxes]:
    """Give each video the boxes of another one: the frames stay, and each gets the other's box at the same part of the video.

    Raises:
        UserError: there is one video only, or one without any box.
    """
    if len(found) < 2 or not all(len(boxes.frames) for boxes in found.values()):
        raise UserError("boxes can be shuffled among two or more videos that all have some: give more boxes")
    order = np.random.default_rng(seed).permutation(sorted(found)).tolist()  # in a ring, so that none keeps its own
    mixed = {}
    for name, other in zip(order, [*order[1:], order[0]], strict=True):
        frames, boxes = found[name].frames, found[other]
        part = np.linspace(0, len(boxes.frames) - 1, len(frames)).round().astype(int)
        mixed[name] = Boxes(frames, boxes.corners[part], boxes.width, boxes.height)
    return mixed


def _shuffle(config: ShuffleConfig) -> None:
    assert config.output is not None
    layout = dataset_layout(config.dataset)
    if config.output.exists() and any(config.output.iterdir()):
        raise UserError(f"--output {config.output} is not empty: give a new folder for the shuffled boxes")
    mixed = shuffled(_read_folder(layout.root / "boxes"), config.seed)
    for name, boxes in mixed.items():
        write_boxes(boxes_file(config.output, name), boxes)
    print(f"{config.output}: each of {len(mixed)} videos has the boxes of another one")


def _check(config: CheckConfig) -> None:
    layout = dataset_layout(config.dataset)
    folder = layout.root / "boxes"
    found = _read_folder(folder)
    _print_warnings(found)
    print(f"{folder}: {sum(len(boxes.frames) for boxes in found.values())} boxes of {len(found)} videos")
    if sheets := config.sheets:
        read_all({name: partial(draw_sheet, layout.frames, name, boxes, sheets) for name, boxes in found.items()})
        print(f"contact sheets: {sheets}")


def main(argv: Sequence[str]) -> None:
    commands: dict[str, tuple[type, Callable[[Any], None]]] = {
        "frfs": (FrfsConfig, _convert_frfs),
        "convert": (ConvertConfig, _convert),
        "shuffle": (ShuffleConfig, _shuffle),
        "check": (CheckConfig, _check),
    }
    name, config = parse_command(
        {name: cls for name, (cls, _) in commands.items()}, argv, prog="python -m data_preparation.boxes"
    )
    commands[name][1](config)


if __name__ == "__main__":
    run(main)
