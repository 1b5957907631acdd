"""Checkpoints: written atomically, verified when read, and read with weights_only=True.

torch.save writes a ZIP file with a CRC-32 of each record. torch.load does not check these sums, so `load` does.
"""

from __future__ import annotations

import pickle
import zipfile
import zlib
from collections.abc import Callable, Mapping, Set
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from data_preparation.common.errors import UserError, first_line
from data_preparation.common.files import atomic_file
from data_preparation.file_types import file_type_of, read_head


class Damaged(UserError):
    """A checkpoint that is truncated or fails its checksums."""


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a temporary file, fsync and rename it, so that a kill at any moment leaves the old file or the new one.

    Raises:
        UserError: the disk is full or not writable; an old file is unchanged.
    """
    try:
        with atomic_file(path) as temporary:
            torch.save(content, temporary)
    except (OSError, RuntimeError) as error:  # torch reports a short write as RuntimeError
        raise UserError(
            f"checkpoint {path} could not be written ({first_line(error)}): make room or choose another --runs_dir, then start the run again"
        ) from None


def load(path: Path, device: torch.device | str = "cpu", required: Set[str] = frozenset()) -> dict[str, Any]:
    """The content that `save` wrote; `required` are keys that it must have.

    Raises:
        Damaged: the file is truncated, changed since it was written, or not a checkpoint. UserError: it cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as file:
            bad_record = file.testzip()  # reads the whole file
        if bad_record is None:
            content = torch.load(path, map_location=device, weights_only=True)
            if isinstance(content, dict) and required <= set(content):
                return content
            problem = "it is not a checkpoint of this project"
        else:
            problem = f"the checksum of its record {bad_record} is wrong"
    except OSError as error:
        raise UserError(f"checkpoint {path} cannot be read ({error.strerror}): fix its folder or disk") from None
    except (zipfile.BadZipFile, RuntimeError, EOFError, ValueError, KeyError, NotImplementedError, zlib.error,
            pickle.UnpicklingError) as error:  # fmt: skip
        found = file_type_of(read_head(path))
        is_other_type = found is not None and found.kind not in ("torch", "zip")
        problem = f"it is {found.name}" if found is not None and is_other_type else first_line(error)
    raise Damaged(f"checkpoint {path} is damaged ({problem}): restore it from a copy")


def fingerprint(path: Path) -> str:
    """A hash of the checksums in the ZIP directory; identifies a checkpoint without reading all of it.

    Raises:
        FileNotFoundError: the file does not exist (yet).
    """
    try:
        with zipfile.ZipFile(path) as file:
            return f"{zlib.crc32(repr([(i.filename, i.file_size, i.CRC) for i in file.infolist()]).encode()):08x}"
    except zipfile.BadZipFile:
        return "damaged"


def copy_to_host(value: Any, reuse: Any = None, pinned: bool = True) -> Any:
    """A copy of a state with its tensors in host memory, so that training may change the original meanwhile.

    `reuse` is an earlier copy that is no longer needed. Tensors of the same shape and type are copied into its memory:
    allocating new memory takes longer than copying. A copy of a GPU's tensors is in `pinned` memory, which is faster to copy to;
    to allocate that can wait for all work of the GPU.
    """
    if isinstance(value, torch.Tensor):
        fits = isinstance(reuse, torch.Tensor) and (reuse.shape, reuse.dtype) == (value.shape, value.dtype)
        target = (
            reuse
            if fits
            else torch.empty_like(value, device="cpu", pin_memory=pinned and value.is_cuda, requires_grad=False)
        )
        return target.copy_(value.detach())
    if isinstance(value, dict):
        old = reuse if isinstance(reuse, dict) else {}
        return type(value)((k, copy_to_host(v, old.get(k), pinned)) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        old_items = reuse if isinstance(reuse, (list, tuple)) and len(reuse) == len(value) else [None] * len(value)
        return type(value)(copy_to_host(v, o, pinned) for v, o in zip(value, old_items, strict=True))
    return value


class Writer:
    """Writes checkpoints in a background thread, one after the other.

    The next `put` or `wait` raises an error of the thread. The writer holds one copy of the state in host memory.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._pending: Future[None] | None = None
        self._copy: dict[str, Any] | None = None

    def put(
        self,
        state: dict[str, Any],
        files_of: Callable[[dict[str, Any]], Mapping[Path, dict[str, Any]]],
        before: Callable[[], None] = lambda: None,
        afterwards: Callable[[], None] = lambda: None,
    ) -> None:
        """Copy a state and start to write the files that `files_of` makes of the copy, in that order.

        The thread calls `before` before it writes, and `afterwards` when all files are on disk. First waits for the
        previous `put`.

        Raises:
            UserError: the files of the previous `put` could not be written.
        """
        self.wait()
        self._copy = copy_to_host(state, self._copy)
        self._pending = self._thread.submit(self._write, files_of(self._copy), before, afterwards)

    @staticmethod
    def _write(
        files: Mapping[Path, dict[str, Any]], before: Callable[[], None], afterwards: Callable[[], None]
    ) -> None:
        before()
        for path, content in files.items():
            save(path, content)
        afterwards()

    def wait(self) -> None:
        """Wait until the files of the last `put` are on disk.

        Raises:
            UserError: they could not be written.
        """
        if (pending := self._pending) is not None:
            try:
                pending.result()
            finally:
                self._pending = None
