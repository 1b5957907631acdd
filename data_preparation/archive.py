"""The frame archive: one uncompressed ZIP a video, `000123.jpg` for frame 123 and `provenance.json`.

Any ZIP tool opens it; each frame has a CRC-32; reading one frame is one seek. Chosen by `python -m
data_preparation.benchmark containers` (10,000 frames): tar has no index (239 ms to open, ZIP 43), deflating costs six
times the reading and saves 2 %, SQLite is as fast but no stranger's tool lists it. The original's loose layout
`whole_videos_frames/NN/000123.jpg` is read through the same class.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg

from data_preparation.common.errors import UserError, first_line
from data_preparation.common.files import atomic_file, reporting_write_errors
from data_preparation.common.limits import limit_error_text
from data_preparation.file_types import unreadable_file_error
from data_preparation.layout import archive_file, frame_name, loose_dir, prepared_videos, video_name
from data_preparation.similar_files import names_in, names_with_number, numberings

PROVENANCE = "provenance.json"
_FRAME_FILE = re.compile(r"([0-9]{6}|[1-9][0-9]{6,8})\.jpg")
# what zipfile raises on damaged archives
_ZIP_FAULTS = (OSError, zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError, OverflowError)


def write_archive(path: Path, frames: Iterable[tuple[int, bytes]], provenance: dict[str, Any]) -> None:
    """Write an archive whole or not at all: temporary name, fsync, rename.

    `frames` are (frame number, JPEG); `provenance` may be filled while they are drawn, it is written last.

    Raises:
        UserError: the disk is full or not writable. Whatever `frames` raises passes through; nothing is left behind.
    """
    with (
        reporting_write_errors(path),
        atomic_file(path) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive,
    ):
        for number, jpeg in frames:
            archive.writestr(frame_name(number), jpeg)
        archive.writestr(PROVENANCE, json.dumps(provenance, indent=2))


def record_fault(record: Any) -> str | None:
    """What a provenance record lacks that others count on, or None."""
    if not isinstance(record, dict):
        return "it is not a set of named fields"
    numbers = {"source": ("bytes", "width", "height", "frames"), "settings": ("height", "quality")}
    for part, names in numbers.items():
        fields = record.get(part)
        for name in names:
            if not isinstance(fields, dict) or not isinstance(fields.get(name), int):
                return f"no number {part}.{name}"
    ranges = record.get("ranges")
    if not isinstance(ranges, list) or not ranges:
        return "no ranges"
    for pair in ranges:
        whole = isinstance(pair, list) and len(pair) == 2 and all(isinstance(n, int) for n in pair)
        if not (whole and 1 <= pair[0] <= pair[1] <= record["source"]["frames"]):
            return f"'{pair}' is no range of its source's frames"
    return None


class FrameReader:
    """The frames of one video: `numbers` (sorted int64), `read(number)` -> JPEG bytes, `provenance`.

    May be used in any process, also after a fork: each opens the file for itself.

    Raises (on opening):
        UserError: the archive is damaged, or its frames are named or numbered otherwise than ours.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._archive: zipfile.ZipFile | None = None
        self._owner = 0
        names = os.listdir(path) if path.is_dir() else self._zip().namelist()
        found = (match[1] for name in names if (match := _FRAME_FILE.fullmatch(name)))
        self.numbers = np.array(sorted(map(int, found)), dtype=np.int64)
        if fault := numbering_fault(path, names):
            raise UserError(fault)

    def _zip(self) -> zipfile.ZipFile:
        if self._archive is None or self._owner != os.getpid():
            try:
                self._archive, self._owner = zipfile.ZipFile(self.path), os.getpid()
            except _ZIP_FAULTS as error:
                if text := limit_error_text(error):  # nothing is wrong with the archive
                    raise UserError(text) from None
                raise unreadable_file_error(
                    self.path,
                    "a readable frame archive",
                    first_line(error),
                    {"zip", "frames"},
                    "delete it and extract the video again",
                ) from None
        return self._archive

    @property
    def provenance(self) -> dict[str, Any]:
        """Where the frames come from; {} for loose frames, which carry no record."""
        if self.path.is_dir():
            return {}
        try:
            record = json.loads(self._zip().read(PROVENANCE))
            fault = record_fault(record)
        except (KeyError, *_ZIP_FAULTS) as error:
            fault = first_line(error)
        if fault:
            raise UserError(
                f"{self.path} has no readable {PROVENANCE} ({fault}): delete it and extract the video again"
            )
        return record

    def read(self, number: int) -> bytes:
        """The JPEG of a frame.

        Raises:
            UserError: the frame is not there, or its checksum is wrong.
        """
        try:
            if self.path.is_dir():
                return (self.path / frame_name(number)).read_bytes()
            return self._zip().read(frame_name(number))
        except (KeyError, FileNotFoundError):
            raise UserError(f"{self.path} has no frame {number}: extract the video again") from None
        except _ZIP_FAULTS as error:
            if text := limit_error_text(error):
                raise UserError(text) from None
            raise UserError(
                f"{self.path}: frame {number} is damaged ({first_line(error)}): delete the archive and extract the video again"
            ) from None

    def image(self, number: int) -> np.ndarray:
        """A frame as (H, W, 3) uint8 RGB.

        Raises:
            UserError: as `read`, or the JPEG cannot be decoded.
        """
        try:
            return simplejpeg.decode_jpeg(self.read(number), colorspace="RGB")
        except ValueError as error:
            raise UserError(
                f"{self.path}: frame {number} is no readable JPEG ({first_line(error)}): extract the video again"
            ) from None


def recorded_rates(frames_dir: Path) -> dict[int, Fraction]:
    """Frames per second of the sources of all archives of a folder, by video; unreadable ones are left out."""
    rates = {}
    for video in prepared_videos(frames_dir):
        with suppress(UserError):
            if rate := source_rate(open_frames(frames_dir, video).provenance):
                rates[video] = rate
    return rates


def source_rate(record: dict[str, Any]) -> Fraction | None:
    """Frames per second of the source in a provenance record, None where it does not say."""
    try:
        return Fraction(record["source"]["frames_per_second"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None


def decode_grey(jpeg: bytes, height: int) -> np.ndarray:
    """A JPEG as (h, w) uint8 grey of at least `height` pixels, decoded at a fraction of its size, which is quick.

    Raises:
        ValueError: it cannot be decoded.
    """
    return simplejpeg.decode_jpeg(jpeg, colorspace="GRAY", min_height=height, min_width=1, min_factor=1)[:, :, 0]


def open_frames(frames_dir: Path, video: int) -> FrameReader:
    """The frames of a video, from its archive or its folder of loose frames.

    Raises:
        UserError: there is neither, the archive is damaged, or the frames are named or numbered otherwise than ours.
    """
    for path in (archive_file(frames_dir, video), loose_dir(frames_dir, video)):
        if path.exists():
            return FrameReader(path)
    raise UserError(missing_text(frames_dir, video))


# ---------------------------------------------------------------------------------- frames that are not where they belong


def is_frame_file(name: str) -> bool:
    """Whether a file name is that of one of our frames."""
    return _FRAME_FILE.fullmatch(name) is not None


def adopt_command(folder: Path, *flags: object) -> str:
    """The command that packs the loose frames of a video's folder with the right names and numbers."""
    parent = folder.parent
    named = (
        ["--dataset", parent.parent]
        if parent.name == "whole_videos_frames"
        else ["--source", parent, "--output", parent]
    )
    words = ["python", "-m", "data_preparation.adopt", *named, "--videos", folder.name, *flags]
    return shlex.join(map(str, words))


def numbering_fault(path: Path, names: Sequence[str]) -> str | None:
    """Why the frames of an archive or a folder cannot be read as they are, in one sentence, or None.

    A frame 0 shows that somebody counted from 0, so each picture is one number early: labels would silently be one frame
    late.
    """
    loose = path.is_dir()
    ours = [name for name in names if is_frame_file(name)]
    if frame_name(0) in ours:
        fix = (
            f"{adopt_command(path)} packs them with the right numbers"
            if loose
            else "delete it and extract the video again"
        )
        return f"{path} is numbered from 0 ({frame_name(0)} is there) and labels count from 1, as ffmpeg does, so every dive would be read one frame late: {fix}"
    if ours:
        return None
    if not loose:
        found = numberings(name.rsplit("/", 1)[-1] for name in names)
        if not found:
            return None  # an archive without frames: the frames that are missing are told of
        folder = path.with_suffix("")
        return f"{path} has {found[0].text} and none named {frame_name(1)}: unpack it to the folder {folder}, remove it, and give {adopt_command(folder)}"
    if found := _pictures_in(path):
        return f"{found}, but none named {frame_name(1)}: {adopt_command(path)} packs them with the right names"
    there = f"its entries are {', '.join(sorted(names)[:3])}" if names else "it is empty"
    return f"{path} has no pictures ({there}): remove that folder and extract the video (python -m data_preparation.extract --videos {path.name})"


def _pictures_in(folder: Path) -> str:
    """A clause about the numbered pictures in a folder or a folder in it, or ''."""
    for place in (folder, *(folder / name for name in names_in(folder) if (folder / name).is_dir())):
        if found := numberings(names_in(place)):
            return f"{place} has {found[0].text}"
    return ""


def extract_first(video: int) -> str:
    """What to do about a video of which nothing was extracted yet."""
    return f"extract the video first (python -m data_preparation.extract --videos {video_name(video)})"


def missing_text(frames_dir: Path, video: int) -> str:
    """The sentence about a video that has neither an archive nor a folder of frames: what lies there instead."""
    wanted, names = archive_file(frames_dir, video), names_in(frames_dir)
    if not names:
        return f"{wanted} is missing ({frames_dir} is {'empty' if frames_dir.is_dir() else 'not there'}): {extract_first(video)}"
    for name in names_with_number(names, video):
        there = frames_dir / name
        if there.is_dir() and not any(map(is_frame_file, names_in(there))) and (found := _pictures_in(there)):
            command = adopt_command(loose_dir(frames_dir, video))
            return f"{wanted} is missing, but {found}: {command} packs them with the right names"
        if there.is_dir() and (found := _pictures_in(there)):
            return f"{wanted} is missing, but {found}: rename the folder ({_rename(there, video_name(video))}), or extract the video"
        if name.lower().endswith(".zip"):
            return f"{wanted} is missing, but {there} is there: rename it ({_rename(there, wanted.name)})"
        if there.is_file() and name.lower().endswith((".tar", ".tgz", ".tar.gz", ".7z", ".rar")):
            return f"{wanted} is missing, but {there} is there: unpack it to a folder {video_name(video)} beside it"
    if "whole_videos_frames" in names:
        return f"{wanted} is missing: name the folder {frames_dir / 'whole_videos_frames'} instead of {frames_dir}"
    if found := numberings(names):
        return f"{wanted} is missing, but {frames_dir} itself has {found[0].text}: move those of video {video_name(video)} to a folder {video_name(video)} in it"
    return f"{wanted} is missing: {extract_first(video)}"


def _rename(path: Path, name: str) -> str:
    return shlex.join(["mv", str(path), str(path.with_name(name))])
