"""Frame archives: one uncompressed ZIP per video, with `000123.jpg` for frame 123 and `provenance.json`.

Any ZIP tool opens it, each frame has a CRC-32, and reading one frame takes one seek. Measured with `python -m
data_preparation.benchmark containers` (10,000 frames): tar has no index (239 ms to open, ZIP 43 ms), a deflated ZIP
takes six times as long to read and saves 2 %, and SQLite is as fast but common tools do not list it. `FrameReader` also
reads loose frames (loose_frames.py), such as `whole_videos_frames/NN/000123.jpg` of the original code.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shlex
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, cached_property
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg

from data_preparation.common.errors import UserError, first_line
from data_preparation.common.files import atomic_file, reporting_write_errors
from data_preparation.common.limits import limit_error_text
from data_preparation.file_types import unreadable_file_error
from data_preparation.frame_index import PROVENANCE, FrameIndex, entry_content, entry_memory, read_index
from data_preparation.layout import ARCHIVE_SUFFIX, archive_file, archived_videos, frame_name, loose_dir
from data_preparation.loose_frames import LooseFrames, clip_folders, find_loose_frames, is_frame_file
from data_preparation.similar_files import names_in, names_like_video, numberings

_MAX_OPEN_READERS = 256
# exceptions that zipfile raises for damaged archives
_ZIP_FAULTS = (OSError, zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError, OverflowError)


@dataclass(frozen=True)
class StoredFrames:
    """How frames are stored: their height in pixels (0: as in the video) and their JPEG quality."""

    height: int = 256
    quality: int = 95


def write_archive(path: Path, frames: Iterable[tuple[int, bytes]], provenance: dict[str, Any]) -> None:
    """Write an archive atomically: temporary name, fsync, rename.

    `frames` yields (frame number, JPEG bytes). `provenance` is written last, so it may be changed while `frames` is
    being consumed.

    Raises:
        UserError: the disk is full or not writable. An exception of `frames` is passed on. No partial file is left.
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
    """The first error in a provenance record: a required field is missing or invalid. None if there is none."""
    if not isinstance(record, dict):
        return "it is not a JSON object"
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
        is_range = isinstance(pair, list) and len(pair) == 2 and all(isinstance(n, int) for n in pair)
        if not (is_range and 1 <= pair[0] <= pair[1] <= record["source"]["frames"]):
            return f"'{pair}' is not a range of frames of its source"
    return None


class FrameReader:
    """Read the frames of one video from its archive or its loose frames.

    `path` is the archive, or the folder of the loose frames (loose_frames.py has the layouts that are read). `numbers`
    (frames,) int64 are the frame numbers, ascending. `loose` says which files loose frames are; it is None for an
    archive. Safe to use after a fork. `file` is the archive, if it is open already.

    Raises (on opening):
        UserError: the archive is damaged, or the frames do not have names or numbers that can be read.
    """

    def __init__(self, path: Path, file: FileIO | None = None) -> None:
        self.path = path
        self.loose: LooseFrames | None = None
        self._file: FileIO | None = None
        self._index: FrameIndex | None = None  # None if only zipfile can read the archive
        self._archive: zipfile.ZipFile | None = None
        self._owner = 0
        if path.suffix == ARCHIVE_SUFFIX and (index := self._open_index(file)):
            self.numbers = index.numbers
        elif path.is_file() or (path.suffix == ARCHIVE_SUFFIX and not path.is_dir()):
            names = self._zip().namelist()
            if fault := archive_names_fault(path, names):
                raise UserError(fault)
            self.numbers = np.array(sorted(int(name[:-4]) for name in names if is_frame_file(name)), dtype=np.int64)
        else:
            self.loose = find_loose_frames(path)
            if self.loose is None:
                raise UserError(folder_fault(path))
            self.numbers = self.loose.numbers

    def close(self) -> None:
        """Close the archive. The next read opens it again."""
        for file in (self._archive, self._file):
            if file is not None:
                file.close()
        self._archive = self._file = self._index = None

    def _open_index(self, file: FileIO | None = None) -> FrameIndex | None:
        """The index of the archive; None if only zipfile can read it, or say what is wrong with it."""
        if self._file is None and self._archive is None:
            with suppress(OSError):
                file = file or FileIO(self.path)
                self._index = read_index(file.fileno())
                self._file = file if self._index else None
        return self._index

    def _entry(self, name: str, number: int | None = None) -> memoryview | None:
        """The content of frame `number`, or without a number of provenance.json; None if only zipfile can read it.

        Raises:
            KeyError: there is no such frame.
        """
        index = self._open_index()
        if index is None or self._file is None:
            return None
        if number is None:
            return entry_content(self._file.fileno(), name, index.provenance)
        place = int(index.numbers.searchsorted(number))
        if place == len(index.numbers) or index.numbers[place] != number:
            raise KeyError(name)
        where = [int(column[place]) for column in (index.offsets, index.sizes, index.checksums)]
        return entry_content(self._file.fileno(), name, where)

    def _zip(self) -> zipfile.ZipFile:
        if self._archive is None or self._owner != os.getpid():
            try:
                self._archive, self._owner = zipfile.ZipFile(self.path), os.getpid()
            except _ZIP_FAULTS as error:
                if text := limit_error_text(error):  # the archive itself may be intact
                    raise UserError(text) from None
                raise unreadable_file_error(
                    self.path,
                    "a readable frame archive",
                    first_line(error),
                    {"zip", "frames"},
                    "delete it and extract the video again",
                ) from None
        return self._archive

    @cached_property
    def content_hash(self) -> bytes:
        """A hash of the names, sizes and checksums in an archive: the same for a copy of it, another after a new extraction."""
        if index := self._open_index():
            columns = (index.numbers, index.sizes, index.checksums)
            return hashlib.sha256(
                b"".join(column.tobytes() for column in columns) + repr(index.provenance).encode()
            ).digest()
        entries = [(entry.filename, entry.file_size, entry.CRC) for entry in self._zip().infolist()]
        return hashlib.sha256(repr(entries).encode()).digest()

    @property
    def provenance(self) -> dict[str, Any]:
        """The record of the source video and the settings of the frames; {} for loose frames, which have none.

        Raises:
            UserError: the record is missing or invalid.
        """
        if self.loose:
            return {}
        try:
            record = json.loads(bytes(self._entry(PROVENANCE) or self._zip().read(PROVENANCE)))
            fault = record_fault(record)
        except (KeyError, *_ZIP_FAULTS) as error:
            fault = first_line(error)
        if fault:
            raise UserError(
                f"{self.path} has no readable {PROVENANCE} ({fault}): delete it and extract the video again"
            )
        return record

    def read(self, number: int) -> bytes:
        """Read the JPEG bytes of a frame.

        Raises:
            UserError: the frame is missing, or its checksum is wrong.
        """
        return bytes(self._content(number))

    def _content(self, number: int) -> bytes | memoryview:
        """`read` without a copy."""
        try:
            if self.loose:
                return self.loose.path(number).read_bytes()
            name = frame_name(number)
            found = self._entry(name, number)
            return self._zip().read(name) if found is None else found
        except (KeyError, FileNotFoundError):
            raise UserError(f"{self.path} has no frame {number}: extract the video again") from None
        except _ZIP_FAULTS as error:
            if text := limit_error_text(error):
                raise UserError(text) from None
            raise UserError(
                f"{self.path}: frame {number} is damaged ({first_line(error)}): delete the archive and extract the video again"
            ) from None

    def jpeg(self, number: int) -> bytes:
        """Read the JPEG bytes of a frame whose pixels are decoded elsewhere.

        Raises:
            UserError: as `read`, or the bytes do not begin as those of a JPEG.
        """
        content = self.read(number)
        try:
            simplejpeg.decode_jpeg_header(content)
        except ValueError as error:
            raise self._unreadable(number, error) from None
        return content

    def image(self, number: int, least: tuple[int, int] | None = None) -> np.ndarray:
        """Read a frame as (H, W, 3) uint8 RGB. `least` is that of `decode_image`.

        Raises:
            UserError: as `read`, or the JPEG cannot be decoded.
        """
        return self._decoded(number, self._content(number), least)

    def images(self, numbers: Sequence[int], least: tuple[int, int] | None = None) -> Iterator[np.ndarray]:
        """Read one frame after the other as `image` does, into the same memory: each is valid until the next.

        Raises:
            UserError: as `image`.
        """
        memory = None
        for number, content in zip(numbers, self._contents(numbers), strict=True):
            frame = self._decoded(number, content, least, memory)
            if memory is None or frame.size > memory.size:
                memory = np.empty(frame.size, np.uint8)
            yield frame

    def _contents(self, numbers: Sequence[int]) -> Iterator[bytes | memoryview]:
        """`_content` of one frame after the other, in the same memory: each is valid until the next."""
        index = self._open_index()
        # all at once: between two frames, whose decoding fills the processor's cache, each line of Python takes long
        places = np.zeros(0, np.int64) if index is None else index.numbers.searchsorted(numbers)
        is_known = index is not None and np.array_equal(index.numbers.take(places, mode="clip"), numbers)
        if index is None or self._file is None or not is_known:
            yield from map(self._content, numbers)
            return
        offsets, sizes, sums = (each[places].tolist() for each in (index.offsets, index.sizes, index.checksums))
        file, memory = self._file.fileno(), entry_memory(max(sizes, default=0))
        for number, *where in zip(numbers, offsets, sizes, sums, strict=True):
            try:
                content = entry_content(file, frame_name(number), where, memory)
            except OSError:
                content = None
            yield self._content(number) if content is None else content  # `_content` says what is wrong

    def _decoded(
        self, number: int, jpeg: bytes | memoryview, least: tuple[int, int] | None, memory: np.ndarray | None = None
    ) -> np.ndarray:
        try:
            return decode_image(jpeg, least, memory)
        except ValueError as error:
            raise self._unreadable(number, error) from None

    def _unreadable(self, number: int, error: ValueError) -> UserError:
        return UserError(
            f"{self.path}: frame {number} is not a readable JPEG ({first_line(error)}): extract the video again"
        )


class FrameReaders:
    """The readers of the videos in a folder of frames, opened when they are needed.

    A set of clips has thousands of archives, so the archive that was not read for the longest time is closed when more
    than `limit` are open. Pickled, it has no reader: each process opens its own, and shares them between the unpickled objects
    of a folder.
    """

    def __init__(self, frames_dir: Path, limit: int | None = None) -> None:
        self.frames_dir = frames_dir
        self.limit = limit or max_open_readers()
        self._readers: OrderedDict[str, FrameReader] = OrderedDict()  # by video, the last one was used last

    def __getitem__(self, video: str) -> FrameReader:
        """The reader of a video.

        Raises:
            UserError: as `open_frames`.
        """
        if video in self._readers:
            self._readers.move_to_end(video)
            return self._readers[video]
        reader = open_frames(self.frames_dir, video)
        if len(self._readers) >= self.limit:
            _, oldest = self._readers.popitem(last=False)
            oldest.close()
        self._readers[video] = reader
        return reader

    def __len__(self) -> int:
        return len(self._readers)

    def __reduce__(self) -> tuple:
        return _readers_of, (self.frames_dir,)


@cache
def _readers_of(frames_dir: Path) -> FrameReaders:
    return FrameReaders(frames_dir)


def max_open_readers() -> int:
    """The number of archives that a process keeps open: a quarter of the files that it may open, at most 256."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MAX_OPEN_READERS if soft == resource.RLIM_INFINITY else max(min(soft // 4, _MAX_OPEN_READERS), 1)


def recorded_rates(frames_dir: Path) -> dict[str, Fraction]:
    """Frames per second of the source videos of all archives in a folder, by video. Skips unreadable archives."""
    rates = {}
    for video in archived_videos(frames_dir):
        with suppress(UserError):
            if rate := source_rate(open_frames(frames_dir, video).provenance):
                rates[video] = rate
    return rates


def source_rate(record: dict[str, Any]) -> Fraction | None:
    """Frames per second of the source video in a provenance record, or None if it is not recorded."""
    try:
        return Fraction(record["source"]["frames_per_second"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None


def decode_image(
    jpeg: bytes | memoryview, least: tuple[int, int] | None = None, memory: np.ndarray | None = None
) -> np.ndarray:
    """Decode a JPEG to (H, W, 3) uint8 RGB, by libjpeg-turbo; into `memory` (bytes,) uint8 if the image fits there.

    With `least` (height, width) it is decoded at half, 3/8, a quarter or an eighth of its size, whichever is the smallest that is at
    least that large in both directions; else in full. (5/8 to 7/8 take longer than the full size.)

    Raises:
        ValueError: the JPEG cannot be decoded.
    """
    smaller = {}
    if least is not None:
        height, width, *_ = simplejpeg.decode_jpeg_header(jpeg)
        if -(-height // 2) >= least[0] and -(-width // 2) >= least[1]:
            smaller = {"min_height": least[0], "min_width": least[1], "min_factor": 1}
    if memory is not None:
        try:
            return simplejpeg.decode_jpeg(jpeg, colorspace="RGB", buffer=memory, **smaller)
        except ValueError:  # too small, or the JPEG is damaged
            pass
    return simplejpeg.decode_jpeg(jpeg, colorspace="RGB", **smaller)


def decode_grey(jpeg: bytes, height: int) -> np.ndarray:
    """Decode a JPEG to (h, w) uint8 grey, with h at least `height`. Decodes at a fraction of the size, which is fast.

    Raises:
        ValueError: the JPEG cannot be decoded.
    """
    return simplejpeg.decode_jpeg(jpeg, colorspace="GRAY", min_height=height, min_width=1, min_factor=1)[:, :, 0]


def open_frames(frames_dir: Path, video: str) -> FrameReader:
    """Open the frames of a video: its archive or, if there is none, its folder of loose frames.

    Raises:
        UserError: both are missing, the archive is damaged, or the frames do not have the expected names or numbers.
    """
    archive, folder = archive_file(frames_dir, video), loose_dir(frames_dir, video)
    with suppress(OSError):  # one operation of a shared file system; to ask for the file first would be two more
        return FrameReader(archive, FileIO(archive))
    if archive.exists():
        return FrameReader(archive)
    if folder.exists() or clip_folders(folder):
        return FrameReader(folder)
    raise UserError(missing_text(frames_dir, video))


# ------------------------------------------------------------------------------ messages about missing and misnamed frames


def adopt_command(folder: Path, *flags: object) -> str:
    """The command that packs the loose frames of a video's folder into an archive, with the right names and numbers."""
    parent = folder.parent
    place = (
        ["--dataset", parent.parent]
        if parent.name == "whole_videos_frames"
        else ["--source", parent, "--output", parent]
    )
    words = ["python", "-m", "data_preparation.adopt", *place, "--videos", folder.name, *flags]
    return shlex.join(map(str, words))


def archive_names_fault(path: Path, names: Sequence[str]) -> str | None:
    """Why the frames of an archive with these entries cannot be used: a sentence, or None."""
    if frame_name(0) in names:
        return f"{path} is numbered from 0 (it has {frame_name(0)}) and labels count from 1, as ffmpeg does, so every action would be read one frame late: delete it and extract the video again"
    if any(map(is_frame_file, names)):
        return None
    found = numberings(name.rsplit("/", 1)[-1] for name in names)
    if not found:
        return None  # an archive without frames: the missing frames are reported elsewhere
    folder = path.with_suffix("")
    return f"{path} has {found[0].text} and none named {frame_name(1)}: unpack it to the folder {folder}, remove it, and run {adopt_command(folder)}"


def folder_fault(path: Path) -> str:
    """Why a folder has no loose frames that can be read as they are."""
    if images := _describe_images(path):
        return f"{images}, which are not read from there: {adopt_command(path)} packs them with the right names"
    names = names_in(path)
    content = f"it has {', '.join(names[:3])}" if names else "it is empty"
    return f"{path} has no images ({content}): remove that folder and extract the video (python -m data_preparation.extract --videos {path.name})"


def _describe_images(folder: Path) -> str:
    """A clause that names the numbered images in a folder or in one of its subfolders, or ''."""
    for place in (folder, *(folder / name for name in names_in(folder) if (folder / name).is_dir())):
        if found := numberings(names_in(place)):
            return f"{place} has {found[0].text}"
    return ""


def extract_first(video: str) -> str:
    """The fix for a video that was not extracted yet."""
    return f"extract the video first (python -m data_preparation.extract --videos {video})"


def missing_text(frames_dir: Path, video: str) -> str:
    """The message about a video without archive and folder of frames. Names a file or folder that may be meant."""
    wanted, names = archive_file(frames_dir, video), names_in(frames_dir)
    if not names:
        return f"{wanted} is missing ({frames_dir} {'is empty' if frames_dir.is_dir() else 'does not exist'}): {extract_first(video)}"
    for name in names_like_video(names, video):
        candidate = frames_dir / name
        images = _describe_images(candidate) if candidate.is_dir() else ""
        if images and not any(map(is_frame_file, names_in(candidate))):
            command = adopt_command(loose_dir(frames_dir, video))
            return f"{wanted} is missing, but {images}: {command} packs them with the right names"
        if images:
            return f"{wanted} is missing, but {images}: rename the folder ({_rename_command(candidate, loose_dir(frames_dir, video).name)}), or extract the video"
        if name.lower().endswith(".zip"):
            return f"{wanted} is missing, but {candidate} exists: rename it ({_rename_command(candidate, wanted.name)})"
        if candidate.is_file() and name.lower().endswith((".tar", ".tgz", ".tar.gz", ".7z", ".rar")):
            return f"{wanted} is missing, but {candidate} exists: unpack it into a folder {video} next to it"
    if "whole_videos_frames" in names:
        return f"{wanted} is missing: give the folder {frames_dir / 'whole_videos_frames'} instead of {frames_dir}"
    if found := numberings(names):
        return f"{wanted} is missing, but {frames_dir} itself has {found[0].text}: move those of video {video} into a subfolder {video}"
    return f"{wanted} is missing: {extract_first(video)}"


def _rename_command(path: Path, name: str) -> str:
    return shlex.join(["mv", str(path), str(path.with_name(name))])
