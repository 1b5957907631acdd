"""Decoded frames on a node, filled on first use and shared by all workers and ranks there (--cache).

A folder holds one file for each archive and size of frames. Frame i of FrameReader.numbers has its slot at i * (slot size):
(H, W, 3) uint8, then a mark of the archive and the frame, in whole pages. A mark is written after its frame and read before it, so a frame that is half written, lost with a
truncated file or never written counts as missing. Two processes that fill a slot at the same time write the same bytes. The
files are read by `preadv`: a memory map would kill the process if its file shrank.

The training process opens the folder (`opened`) and holds a shared lock on FOLDER.lock, which the kernel releases when the
process ends in any way. Who gets the exclusive lock removes a folder that nobody uses.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import shutil
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_preparation.archive import FrameReader, max_open_readers
from data_preparation.common.errors import UserError, first_line
from data_preparation.common.files import write_atomic
from data_preparation.common.limits import SHARED_MEMORY
from training.config import TrainConfig
from training.data.plan import View

log = logging.getLogger(__name__)

_PREFIX = f"deepsports-cache-{os.getuid()}-"
_LIMITS, _LEDGER, _LOCK = "limits", "ledger", ".lock"
_WARNINGS = ("lost", "full", "fault", "loose")  # FOLDER.KIND exists once a process has warned
_MARK_BYTES = 16
_PAGE = 4096

Decode = Callable[[int], np.ndarray]  # the number of a frame -> (H, W, 3) uint8, resized


def cache_folder(config: TrainConfig) -> Path | None:
    """The folder of the cache of a run on this node, which may not exist; None without --cache.

    Its name differs after each start of the machine: files that were written shortly before a crash may have holes.
    """
    if config.cache.lower() == "none" or config.reads != "video":
        return None
    boot = ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
    key = hashlib.sha256(f"1 {boot} {config.root_dir.resolve()}".encode()).hexdigest()[:16]
    return _parent(config) / (_PREFIX + key)


def _in_memory(config: TrainConfig) -> bool:
    return config.cache.lower() == "ram"


def _parent(config: TrainConfig) -> Path:
    return SHARED_MEMORY if _in_memory(config) else Path(config.cache)


class FrameCache:
    """Reads and fills the cache folder of a run in one process. Pickled, it has no open files.

    Without the folder, as in a command other than a training, every frame is decoded.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: OrderedDict[tuple, tuple[FrameReader, _SlotFile]] = OrderedDict()  # the last one was used last
        self._ledger = -1
        self._limits: tuple[int, int] | None = None  # (bytes of the cache, free bytes to leave on its disk)
        self._is_open = self._fills = True

    def __reduce__(self) -> tuple:
        return FrameCache, (self.folder,)

    def write_crop(
        self, reader: FrameReader, numbers: Sequence[int], view: View, out_THWC: np.ndarray, decode: Decode
    ) -> None:
        """Write frames after the resizing and the crop of a view to `out_THWC` (T, height, width, 3) uint8. Frames that are missing
        are decoded and stored."""
        top, left, height, width = view.crop
        file = self._file(reader, view)
        slots = np.searchsorted(reader.numbers, numbers).tolist()
        for slot, number, out_HWC in zip(slots, numbers, out_THWC, strict=True):
            if file is not None and file.read(slot, number, view.crop, out_HWC):
                continue
            frame_HWC = decode(number)
            out_HWC[...] = frame_HWC[top : top + height, left : left + width]
            if file is not None:
                self._fill(file, slot, number, frame_HWC)

    def _file(self, reader: FrameReader, view: View) -> _SlotFile | None:
        """The file of an archive and size; None if there is no cache (any more)."""
        if not self._is_open:
            return None
        if reader.loose:
            self._warn(
                "loose", f"{reader.path} has loose frames, which are not cached (adopt packs them into archives)"
            )
            return None
        key = (reader.path, view.resize, view.nearest)
        known = self._files.get(key)
        if known is not None and known[0] is reader:
            self._files.move_to_end(key)
            return known[1]
        text = f"{reader.content_hash()} {view.resize} {view.nearest}"
        try:
            if self._limits is None:
                whole, free = (self.folder / _LIMITS).read_text().split()
                self._limits = int(whole), int(free)
                self._ledger = os.open(self.folder / _LEDGER, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
            file = _SlotFile(self.folder, text, view.resize)
        except (OSError, ValueError) as error:
            self._is_open = False
            if self._limits is not None or not isinstance(error, FileNotFoundError):
                self._warn("lost", f"the cache {self.folder} cannot be used any more ({first_line(error)})")
            return None
        if known is not None or len(self._files) >= max_open_readers():
            self._files.pop(key if known is not None else next(iter(self._files)))[1].close()
        self._files[key] = (reader, file)
        return file

    def _fill(self, file: _SlotFile, slot: int, number: int, frame_HWC: np.ndarray) -> None:
        """Store a frame, if there is room."""
        if not self._fills:
            return
        try:
            if self._reserve(file.slot_bytes):
                file.write(slot, number, frame_HWC)
            else:
                self._fills = False
                self._warn("full", f"the cache {self.folder} is full")
        except OSError as error:  # no space left, a quota, a disk that fails
            self._fills = False
            self._warn("fault", f"the cache {self.folder} cannot be filled further ({first_line(error)})")

    def _reserve(self, size: int) -> bool:
        """Count the bytes of a slot. All processes append to the ledger, one byte for each page of the cache."""
        assert self._limits is not None
        most, leave_free = self._limits
        disk = os.statvfs(self.folder)
        pages = size // _PAGE
        if (os.fstat(self._ledger).st_size + pages) * _PAGE > most or disk.f_bavail * disk.f_frsize < leave_free + size:
            return False
        os.write(self._ledger, bytes(pages))
        return True

    def _warn(self, kind: str, text: str) -> None:
        """Warn, once for all processes of the node."""
        with suppress(OSError):
            try:
                os.close(os.open(f"{self.folder}.{kind}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            except FileExistsError:
                return
        log.warning("%s: other frames are read from the archives, which is slower", text)


class _SlotFile:
    """One file of the cache. `text` names the archive's content and how its frames were decoded."""

    def __init__(self, folder: Path, text: str, size: tuple[int, int]) -> None:
        digest = hashlib.sha256(text.encode()).digest()
        self._descriptor = os.open(
            folder / f"{digest.hex()[:32]}.frames", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600
        )
        height, self.width = size
        self._digest, self._buffer_HWC = digest, np.empty((0, self.width, 3), np.uint8)
        self.frame_bytes = height * self.width * 3
        self.slot_bytes = -(-(self.frame_bytes + _MARK_BYTES) // _PAGE) * _PAGE

    def _mark(self, number: int) -> bytes:
        return hashlib.blake2b(self._digest + number.to_bytes(8), digest_size=_MARK_BYTES).digest()

    def read(self, slot: int, number: int, crop: tuple[int, int, int, int], out_HWC: np.ndarray) -> bool:
        """Copy a crop (top, left, height, width) of a frame to `out_HWC`; False if the frame is missing."""
        top, left, height, width = crop
        start, mark = slot * self.slot_bytes, self._mark(number)

        def is_marked() -> bool:
            return os.pread(self._descriptor, _MARK_BYTES, start + self.frame_bytes) == mark

        try:
            if not is_marked():
                return False
            is_wide = width == self.width and out_HWC.flags.c_contiguous
            rows_HWC = out_HWC if is_wide else self._rows(height)
            if os.preadv(self._descriptor, [rows_HWC], start + top * self.width * 3) < rows_HWC.nbytes:
                return False
            if not is_wide:
                out_HWC[...] = rows_HWC[:, left : left + width]
            return is_marked()  # again: the file may have been truncated meanwhile
        except OSError:  # the disk fails
            return False

    def _rows(self, height: int) -> np.ndarray:
        """A buffer (height, W, 3), the same one for all frames, so that it stays in the processor's cache."""
        if len(self._buffer_HWC) != height:
            self._buffer_HWC = np.empty((height, self.width, 3), np.uint8)
        return self._buffer_HWC

    def write(self, slot: int, number: int, frame_HWC: np.ndarray) -> None:
        """Store a frame.

        Raises:
            OSError: it cannot be written.
        """
        start = slot * self.slot_bytes
        _write_all(self._descriptor, memoryview(np.ascontiguousarray(frame_HWC)).cast("B"), start)
        _write_all(self._descriptor, memoryview(self._mark(number)), start + self.frame_bytes)

    def close(self) -> None:
        os.close(self._descriptor)


def _write_all(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written


# ------------------------------------------------------------------------------------------------- in the training process


class Room(NamedTuple):
    """What a job leaves for the cache of a node: bytes of memory, None if unknown, beside `shared_need` bytes of /dev/shm that its
    batches take."""

    shared_need: int = 0
    memory_left: int | None = None


@contextmanager
def opened(config: TrainConfig, room: Room) -> Iterator[None]:
    """Make the cache folder of a run usable while the block runs; do nothing without --cache. At the end the last process of a
    node removes a cache in memory.

    Raises:
        UserError: the folder cannot be used, or has less room than --cache_gb.
    """
    folder = cache_folder(config)
    if folder is None:
        yield
        return
    with ExitStack() as stack:
        try:
            most = _prepared(config, folder, room, stack)
        except OSError as error:
            raise UserError(
                f"--cache {config.cache}: {folder} cannot be used ({error.strerror or first_line(error)}): give a folder on a disk of the node"
            ) from None
        log.info("Cache: up to %.1f GiB of decoded frames in %s", most / 2**30, folder)
        yield


def _prepared(config: TrainConfig, folder: Path, room: Room, stack: ExitStack) -> int:
    """Lock the folder, create it and write its limits; return the size of the cache. `stack` releases it."""
    in_memory = _in_memory(config)
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_unused(folder.parent, keep=None if in_memory else folder)
    if in_memory:
        stack.callback(_remove_unused, folder.parent)
    stack.callback(os.close, _locked(folder))
    for kind in _WARNINGS:
        Path(f"{folder}.{kind}").unlink(missing_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise UserError(f"{folder} belongs to another user: give another folder to --cache")
    most = _cache_bytes(config, folder, room)
    write_atomic(folder / _LIMITS, f"{most} {room.shared_need if in_memory else 0}".encode())
    return most


def _cache_bytes(config: TrainConfig, folder: Path, room: Room) -> int:
    """The size of the cache in bytes.

    Raises:
        UserError: there is less room than --cache_gb.
    """
    disk, ledger = os.statvfs(folder), folder / _LEDGER
    free = disk.f_bavail * disk.f_frsize
    if _in_memory(config):
        free -= room.shared_need
        free = free if room.memory_left is None else min(free, room.memory_left)
    # of a cache that other ranks of this node fill already
    free = max(free, 0) + (ledger.stat().st_size * _PAGE if ledger.exists() else 0)
    if not config.cache_gb:
        return free // 2
    if (most := int(config.cache_gb * 2**30)) > free:
        raise UserError(
            f"--cache_gb {config.cache_gb:g}: {folder.parent} has {free / 2**30:.1f} GiB for it beside what this job needs: give less, or request more (--mem of the job)"
        )
    return most


def _locked(folder: Path) -> int:
    """A descriptor with a shared lock on FOLDER.lock."""
    while True:
        descriptor = os.open(f"{folder}{_LOCK}", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        if os.fstat(descriptor).st_nlink:  # else a process that found the folder unused has just removed both
            return descriptor
        os.close(descriptor)


def _remove_unused(parent: Path, keep: Path | None = None) -> None:
    """Remove this user's cache folders in `parent` that no process uses: their training ended, or was killed."""
    names = {name.partition(".")[0] for name in os.listdir(parent) if name.startswith(_PREFIX)}
    for folder in sorted(parent / name for name in names):
        if folder == keep:
            continue
        descriptor = os.open(f"{folder}{_LOCK}", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_nlink:
                shutil.rmtree(folder, ignore_errors=True)
                for file in parent.glob(f"{folder.name}.*"):
                    file.unlink(missing_ok=True)
        except BlockingIOError:
            pass
        finally:
            os.close(descriptor)
