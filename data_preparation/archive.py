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
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg

from data_preparation.cli import UserError, first_line
from data_preparation.files import whole_file, writing
from data_preparation.layout import archive_file, frame_name, loose_dir
from data_preparation.limits import shortage

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
        writing(path),
        whole_file(path) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive,
    ):
        for number, jpeg in frames:
            archive.writestr(frame_name(number), jpeg)
        archive.writestr(PROVENANCE, json.dumps(provenance, indent=2))


def record_fault(record: Any) -> str | None:
    """What a provenance record lacks that others count on, or None."""
    if not isinstance(record, dict):
        return "no set of named fields"
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
        UserError: the archive is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._archive: zipfile.ZipFile | None = None
        self._owner = 0
        names = os.listdir(path) if path.is_dir() else self._zip().namelist()
        found = (match[1] for name in names if (match := _FRAME_FILE.fullmatch(name)))
        self.numbers = np.array(sorted(map(int, found)), dtype=np.int64)

    def _zip(self) -> zipfile.ZipFile:
        if self._archive is None or self._owner != os.getpid():
            try:
                self._archive, self._owner = zipfile.ZipFile(self.path), os.getpid()
            except _ZIP_FAULTS as error:
                if text := shortage(error):  # nothing is wrong with the archive
                    raise UserError(text) from None
                raise UserError(
                    f"{self.path} is no readable frame archive ({first_line(error)}): delete it and extract the video again"
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
            if text := shortage(error):
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


def open_frames(frames_dir: Path, video: int) -> FrameReader:
    """The frames of a video, from its archive or its folder of loose frames.

    Raises:
        UserError: there is neither, or the archive is damaged.
    """
    for path in (archive_file(frames_dir, video), loose_dir(frames_dir, video)):
        if path.exists():
            return FrameReader(path)
    raise UserError(
        f"{archive_file(frames_dir, video)} is missing: extract the video first (python -m data_preparation.extract)"
    )
