"""The index of a frame archive as arrays, read in one piece.

zipfile makes an object for each entry: for 10,000 frames 38 ms and 5 MB, which is too much for data sets of thousands of
archives. The archives of this project (archive.write_archive) have uncompressed entries with names of equal length, so their
index is an array of records. `read_index` returns None for every other file, and for every damage: zipfile then reads it, and
says what is wrong.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_END = struct.Struct("<4s4H2LH")
_LOCAL_HEADER_BYTES = 30
_NAME_LENGTHS = 26  # where the lengths of the name and of the extra field are in it
PROVENANCE = "provenance.json"  # the last entry
_NAME_BYTES = 10  # 000123.jpg
_ENTRY = np.dtype(
    [
        ("signature", "S4"), ("versions", "<u4"), ("flags", "<u2"), ("method", "<u2"), ("time", "<u4"), ("crc", "<u4"),
        ("packed", "<u4"), ("size", "<u4"), ("name_bytes", "<u2"), ("extra_bytes", "<u2"), ("comment_bytes", "<u2"),
        ("disk", "<u2"), ("attributes", "V6"), ("offset", "<u4"), ("name", "u1", (_NAME_BYTES,)),
    ]
)  # fmt: skip
_DIGITS = 6


class FrameIndex(NamedTuple):
    """Where the frames are in an archive, ascending by number; each array has one value per frame. `provenance` is
    the (offset, size, checksum) of the other entry."""

    numbers: np.ndarray  # int64
    offsets: np.ndarray
    sizes: np.ndarray
    checksums: np.ndarray
    provenance: tuple[int, int, int]


def read_index(file: int) -> FrameIndex | None:
    """The index of the archive that is open as the descriptor `file`; None if zipfile must read it.

    Raises:
        OSError: the file cannot be read.
    """
    length = os.fstat(file).st_size
    tail = os.pread(file, _END.size, max(length - _END.size, 0))
    if len(tail) < _END.size:
        return None
    signature, disk, first_disk, here, count, index_bytes, index_offset, comment_bytes = _END.unpack(tail)
    if signature != b"PK\5\6" or disk or first_disk or comment_bytes or here != count:
        return None
    if index_offset + index_bytes + _END.size != length:
        return None
    index = os.pread(file, index_bytes, index_offset)
    frames = count - 1
    rest = index[frames * _ENTRY.itemsize :] if frames > 0 else b""
    if len(index) != index_bytes or len(rest) < _ENTRY.itemsize:
        return None
    entries = np.frombuffer(index, _ENTRY, frames)
    if (provenance := _last_entry(rest)) is None or not _are_frames(entries):
        return None
    digits = entries["name"][:, :_DIGITS].astype(np.int64) - ord("0")
    numbers = digits @ 10 ** np.arange(_DIGITS - 1, -1, -1)
    order = np.argsort(numbers, kind="stable")
    numbers = numbers[order]
    if numbers[0] < 1 or (np.diff(numbers) < 1).any():
        return None
    offsets, sizes, checksums = (np.ascontiguousarray(entries[name][order]) for name in ("offset", "size", "crc"))
    return FrameIndex(numbers, offsets, sizes, checksums, provenance)


def _are_frames(entries: np.ndarray) -> bool:
    """Whether all entries are uncompressed files named as frames, without anything else in their records."""
    names = entries["name"]
    digits = names[:, :_DIGITS]
    return bool(
        (entries["signature"] == b"PK\1\2").all()
        and not entries["flags"].any()
        and not entries["method"].any()
        and not entries["disk"].any()
        and not (entries["extra_bytes"].any() or entries["comment_bytes"].any())
        and (entries["name_bytes"] == _NAME_BYTES).all()
        and (entries["packed"] == entries["size"]).all()
        and ((digits >= ord("0")) & (digits <= ord("9"))).all()
        and (names[:, _DIGITS:] == np.frombuffer(b".jpg", np.uint8)).all()
    )


def _last_entry(record: bytes) -> tuple[int, int, int] | None:
    """(offset, size, checksum) of the last entry, provenance.json; None if it is not as `write_archive` writes it."""
    fixed = _ENTRY.itemsize - _NAME_BYTES
    entry = np.frombuffer(record[: _ENTRY.itemsize], _ENTRY)[0]
    plain = not (entry["flags"] or entry["method"] or entry["disk"] or entry["extra_bytes"] or entry["comment_bytes"])
    plain = plain and entry["packed"] == entry["size"]
    named = record[fixed:] == PROVENANCE.encode() and entry["name_bytes"] == len(PROVENANCE)
    if entry["signature"] != b"PK\1\2" or not plain or not named:
        return None
    return int(entry["offset"]), int(entry["size"]), int(entry["crc"])


def entry_memory(size: int) -> memoryview:
    """Memory for `entry_content` of entries of at most `size` bytes."""
    return memoryview(bytearray(_LOCAL_HEADER_BYTES + _NAME_BYTES + size))


def entry_content(file: int, name: str, where: Sequence[int], memory: memoryview | None = None) -> memoryview | None:
    """The content of an entry, which is at `where` (offset, size, checksum), in one read; None if it is damaged.
    With `memory` (entry_memory) it lies there.

    Raises:
        OSError: the file cannot be read.
    """
    offset, size, checksum = where
    begin = _LOCAL_HEADER_BYTES + len(name)
    data = (memoryview(bytearray(begin + size)) if memory is None else memory)[: begin + size]
    if os.preadv(file, [data], offset) < begin + size:
        return None
    if data[:4] != b"PK\3\4" or data[_NAME_LENGTHS:begin] != struct.pack("<HH", len(name), 0) + name.encode():
        return None
    content = data[begin:]
    return content if zlib.crc32(content) == checksum else None
