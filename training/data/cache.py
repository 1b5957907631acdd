"""Decoded frames on a node, filled on first use and shared by all workers and ranks there (--cache).

The frames lie in one block of slots of equal size: anonymous memory (`memfd_create`), or a file on a disk of the node that has no
name. So nothing can delete or cut it while a training runs, and the kernel frees it when the last process ends, also by SIGKILL.
The memory is sealed against shrinking, so a memory map of it never ends the process by SIGBUS; a file is read by `preadv`.

A slot is written once, by the process that took its number from the ledger: (H, W, 3) uint8, then a mark, which is a hash of
the archive's content and the frame number. Then its number is entered in the index, a hash table. A reader compares the mark, so
a wrong or lost entry of the index means that the frame is decoded again.

Every rank holds the block open; its workers open it as /proc/PID/fd/N, and so does a rank that starts later, which finds PID and N
in a small file in /dev/shm.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import mmap
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from weakref import finalize

import numpy as np

from data_preparation.archive import FrameReader
from data_preparation.common.errors import UserError, first_line
from data_preparation.common.limits import SHARED_MEMORY, available_memory
from training.config import TrainConfig
from training.data.plan import View
from training.data.transforms import crop_view, squash_view

log = logging.getLogger(__name__)

_MARK_BYTES = 16
_ALIGNMENT = 64
_PROBES = 32  # entries of the index that are searched for a frame
_HEADER = 64  # bytes of the index before its entries: which warnings were logged
_FULL, _FAULT, _LOOSE = range(3)

Decode = Callable[[int], np.ndarray]  # the number of a frame -> (H, W, 3) uint8, resized


@dataclass(frozen=True)
class Handle:
    """How to open the cache of a node: as descriptors of process `pid`, of the slots, the index and the ledger."""

    pid: int
    descriptors: tuple[int, ...]
    inodes: tuple[int, ...]
    slots: int
    height: int
    width: int
    nearest: bool
    in_memory: bool

    @property
    def frame_bytes(self) -> int:
        return self.height * self.width * 3

    @property
    def slot_bytes(self) -> int:
        return -(-(self.frame_bytes + _MARK_BYTES) // _ALIGNMENT) * _ALIGNMENT

    @property
    def entries(self) -> int:
        """Entries of the index: a power of two, at least twice the slots."""
        return 2 ** max(2 * self.slots, 2 * _PROBES).bit_length()


class FrameCache:
    """The cache of this node in one process."""

    def __init__(self, handle: Handle) -> None:
        self.handle = handle
        self._slots, descriptor, self._ledger = (
            _reopened(handle.pid, *file)
            for file in zip(handle.descriptors, handle.inodes, (0, 0, os.O_APPEND), strict=True)
        )
        index = mmap.mmap(descriptor, 0)
        os.close(descriptor)
        finalize(self, os.close, self._slots)
        finalize(self, os.close, self._ledger)
        self._warned = memoryview(index)[:_HEADER]
        self._entries = memoryview(index)[_HEADER:].cast("Q")  # (key, 1 + slot), (key, 1 + slot), ...
        self._memory = None
        if handle.in_memory:
            self._memory = np.frombuffer(mmap.mmap(self._slots, 0, prot=mmap.PROT_READ), np.uint8)
        self._fills, self._lock = True, threading.Lock()

    def write_crop(
        self, reader: FrameReader, numbers: Sequence[int], view: View, out_THWC: np.ndarray, decode: Decode
    ) -> None:
        """Write frames after the resizing and the crop of a view to `out_THWC` (T, height, width, 3) uint8. Frames that are missing
        are decoded and stored."""
        is_stored = self._stores(reader, view)
        # one for all frames, so that it stays in the processor's cache
        buffer = np.empty(self.handle.frame_bytes + _MARK_BYTES, np.uint8)
        for number, out_HWC in zip(numbers, out_THWC, strict=True):
            mark = _mark(reader, number) if is_stored else b""
            if is_stored and self._read(mark, view.crop, out_HWC, buffer):
                continue
            frame_HWC = decode(number)
            top, left, height, width = view.crop
            out_HWC[...] = frame_HWC[top : top + height, left : left + width]
            if is_stored and self._fills:
                with self._lock:
                    self._store(mark, frame_HWC)

    def _stores(self, reader: FrameReader, view: View) -> bool:
        if reader.loose:
            self._warn(_LOOSE, f"{reader.path} has loose frames, which are not cached: adopt packs them into archives")
            return False
        return (*view.resize, view.nearest) == (self.handle.height, self.handle.width, self.handle.nearest)

    # ------------------------------------------------------------------------------------------------------- reading

    def _read(self, mark: bytes, crop: tuple[int, int, int, int], out_HWC: np.ndarray, buffer: np.ndarray) -> bool:
        """Copy a crop (top, left, height, width) of a frame to `out_HWC`; False if the frame is missing. `buffer` (frame and mark)
        is overwritten."""
        slot = self._find(mark)
        if slot is None:
            return False
        top, left, height, width = crop
        start, row_bytes = slot * self.handle.slot_bytes, self.handle.width * 3
        if self._memory is not None:
            rest = self._memory[start + top * row_bytes : start + self.handle.frame_bytes + _MARK_BYTES]
        else:
            rest = buffer[top * row_bytes :]
            try:  # one call for the rows and the mark behind them
                if os.preadv(self._slots, [rest.data], start + top * row_bytes) < len(rest):
                    return False
            except OSError:  # the disk fails
                return False
        if rest[-_MARK_BYTES:].tobytes() != mark:
            return False
        out_HWC[...] = rest[: height * row_bytes].reshape(height, -1, 3)[:, left : left + width]
        return True

    def _find(self, mark: bytes) -> int | None:
        """The slot of a frame by the index."""
        key, entries = int.from_bytes(mark[:8]), self._entries
        for entry in self._probed(key):
            if entries[entry] == key:
                slot = entries[entry + 1] - 1
                return slot if 0 <= slot < self.handle.slots else None
            if not entries[entry]:
                return None
        return None

    def _probed(self, key: int) -> Iterator[int]:
        """The places in `_entries` that may hold a key."""
        count = self.handle.entries
        return (2 * ((key + i) % count) for i in range(_PROBES))

    # ------------------------------------------------------------------------------------------------------- filling

    def _store(self, mark: bytes, frame_HWC: np.ndarray) -> None:
        """Store a frame, if there is room."""
        if self._find(mark) is not None:  # another process was faster
            return
        try:
            os.write(self._ledger, b".")  # appends
            slot = os.lseek(self._ledger, 0, os.SEEK_CUR) - 1
            if slot >= self.handle.slots:
                self._fills = False
                gib = self.handle.slots * self.handle.slot_bytes / 2**30
                self._warn(_FULL, f"the cache is full ({gib:.2f} GiB): the other frames are read from the archives")
                return
            content = np.ascontiguousarray(frame_HWC).data.cast("B")
            _write_all(self._slots, content, slot * self.handle.slot_bytes)
            _write_all(self._slots, memoryview(mark), slot * self.handle.slot_bytes + self.handle.frame_bytes)
        except OSError as error:  # no space left, a quota, a disk that fails
            self._fills = False
            self._warn(
                _FAULT,
                f"the cache cannot be filled further ({first_line(error)}): the other frames are read from the archives",
            )
            return
        key, entries = int.from_bytes(mark[:8]), self._entries
        for entry in self._probed(key):
            if not entries[entry]:
                entries[entry + 1] = slot + 1
                entries[entry] = key
                return

    def _warn(self, which: int, text: str) -> None:
        """Warn, once for all processes of the node."""
        if not self._warned[which]:
            self._warned[which] = 1
            log.warning("%s", text)


def _mark(reader: FrameReader, number: int) -> bytes:
    return hashlib.blake2b(reader.content_hash + int(number).to_bytes(8), digest_size=_MARK_BYTES).digest()


def _write_all(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written


def _reopened(pid: int, descriptor: int, inode: int, flags: int = 0) -> int:
    """A descriptor of this process for a file that process `pid` holds open.

    Raises:
        OSError: the process has ended, or is not visible from here.
    """
    own = os.open(f"/proc/{pid}/fd/{descriptor}", os.O_RDWR | os.O_CLOEXEC | flags)
    if os.fstat(own).st_ino != inode:  # the number belongs to another file by now
        os.close(own)
        raise FileNotFoundError(f"process {pid} has closed its cache")
    return own


# ------------------------------------------------------------------------------------------------- in the training process

_opened: Handle | None = None  # the cache of the training that runs in this process


def open_handle(config: TrainConfig) -> Handle | None:
    """The cache that a source made now uses; None without --cache, and in a command other than a training."""
    return None if config.cache.lower() == "none" else _opened


@cache
def frame_cache(handle: Handle) -> FrameCache | None:
    """The cache in this process; None, with a warning, if it cannot be opened."""
    try:
        return FrameCache(handle)
    except (OSError, ValueError) as error:
        log.warning("the cache cannot be opened (%s): frames are read from the archives", first_line(error))
        return None


@contextmanager
def opened(config: TrainConfig, memory_left: int | None = None) -> Iterator[None]:
    """Hold the cache of a run open while the block runs; do nothing without --cache.

    `memory_left` are the bytes of memory that this job may use besides its needs, None if unknown.

    Raises:
        UserError: the cache cannot be made, or there is less room than --cache_gb.
    """
    global _opened
    if config.cache.lower() == "none" or config.reads != "video":
        yield
        return
    with ExitStack() as stack:
        try:
            _opened = _joined(config, memory_left, stack)
        except OSError as error:
            raise UserError(
                f"--cache {config.cache} cannot be used ({first_line(error)}): give ram, or a folder on a disk of the node"
            ) from None
        try:
            yield
        finally:
            _opened = None
            frame_cache.cache_clear()


def _joined(config: TrainConfig, memory_left: int | None, stack: ExitStack) -> Handle | None:
    """Open the cache of another rank of this node, or make one; `stack` closes it."""
    view = crop_view(config.spatial_size, None, config.geometry) if config.data_aug else squash_view(config.input_size)
    settings = f"{config.root_dir.resolve()} {config.cache} {view.resize} {view.nearest} {config.frame_decode}"
    note = SHARED_MEMORY / f"deepsports-cache-{os.getuid()}-{hashlib.sha256(settings.encode()).hexdigest()[:16]}"
    with _alone(note) as (descriptor, is_used):
        # shared by all processes that use the cache; the kernel releases it when a process ends in any way
        stack.callback(_leave, note, descriptor)
        if is_used:
            handle = _opened_by_another(os.pread(descriptor, 10_000, 0), stack)
        else:
            handle = _made(config, memory_left, view, stack)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(asdict(handle)).encode(), 0)
            log.info(
                "Cache: up to %.2f GiB of decoded frames of %d x %d pixels, %s",
                handle.slots * handle.slot_bytes / 2**30, handle.width, handle.height,
                "in memory" if handle.in_memory else f"on the disk of {config.cache}",
            )  # fmt: skip
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    return handle


@contextmanager
def _alone(note: Path) -> Iterator[tuple[int, bool]]:
    """(a descriptor of the note, whether a process uses the cache), while no other process starts or leaves."""
    while True:
        descriptor = os.open(note, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        fcntl.lockf(descriptor, fcntl.LOCK_EX)  # independent of flock
        if os.fstat(descriptor).st_nlink:
            break
        os.close(descriptor)  # the last process has just removed it
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_used = False
        except BlockingIOError:
            is_used = True
        yield descriptor, is_used
    finally:
        fcntl.lockf(descriptor, fcntl.LOCK_UN)


def _leave(note: Path, descriptor: int) -> None:
    """Release the lock, and remove the note if no other process uses the cache."""
    os.close(descriptor)
    with suppress(OSError):
        with _alone(note) as (again, is_used):
            if not is_used:
                note.unlink()
        os.close(again)


def _made(config: TrainConfig, memory_left: int | None, view: View, stack: ExitStack) -> Handle:
    """A new, empty cache."""
    in_memory = config.cache.lower() == "ram"
    if in_memory:
        room = min((n for n in (memory_left, available_memory()) if n is not None), default=0)
    else:
        Path(config.cache).mkdir(parents=True, exist_ok=True)
        disk = os.statvfs(config.cache)
        room = disk.f_bavail * disk.f_frsize
    most = int(config.cache_gb * 2**30) if config.cache_gb else room // 2
    handle = Handle(os.getpid(), (0, 0, 0), (0, 0, 0), 0, *view.resize, view.nearest, in_memory)
    if not handle.slot_bytes <= most <= room:
        raise UserError(
            f"--cache {config.cache} has {room / 2**30:.2f} GiB of room and would take {most / 2**30:.2f} GiB: give another --cache_gb, more memory (--mem of the job), or another disk"
        )
    handle = replace(handle, slots=most // handle.slot_bytes)
    size = handle.slots * handle.slot_bytes
    if in_memory:
        slots = _memory(size, stack)
    else:
        slots, name = tempfile.mkstemp(dir=config.cache)
        stack.callback(os.close, slots)
        os.unlink(name)
        os.ftruncate(slots, size)
    descriptors = slots, _memory(_HEADER + 16 * handle.entries, stack), _memory(0, stack)
    return replace(handle, descriptors=descriptors, inodes=tuple(os.fstat(each).st_ino for each in descriptors))


def _memory(size: int, stack: ExitStack) -> int:
    """Anonymous memory that cannot shrink. It takes no room until it is written to."""
    descriptor = os.memfd_create("deepsports-cache", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    stack.callback(os.close, descriptor)
    os.ftruncate(descriptor, size)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    return descriptor


def _opened_by_another(note: bytes, stack: ExitStack) -> Handle | None:
    """The cache that another process has made, held open by this one; None, with a warning, if that process is not visible."""
    own = []
    try:
        fields = json.loads(note)
        other = Handle(**{**fields, "descriptors": tuple(fields["descriptors"]), "inodes": tuple(fields["inodes"])})
        for descriptor, inode in zip(other.descriptors, other.inodes, strict=True):
            own.append(_reopened(other.pid, descriptor, inode))
            stack.callback(os.close, own[-1])
    except (OSError, ValueError, TypeError, KeyError) as error:
        log.warning(
            "the cache of another rank of this node cannot be opened (%s): this rank reads frames from the archives",
            first_line(error),
        )
        return None
    return replace(other, pid=os.getpid(), descriptors=tuple(own))
