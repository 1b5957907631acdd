"""Checkpoints: written whole or not at all, checked when read, and read as tensors and plain values only.

A checkpoint is torch's file format, a ZIP with a CRC-32 of each of its records; torch writes these sums and does not
look at them when it reads, so `load` does.
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
    """A checkpoint that is torn or whose sums do not fit."""


def save(path: Path, content: dict[str, Any]) -> None:
    """Write under a temporary name, flush to the disk, rename; a kill at any moment leaves the old file or the new.

    Raises:
        UserError: the disk is full or not writable; the file that was there is as it was.
    """
    try:
        with atomic_file(path) as temporary:
            torch.save(content, temporary)
    except (OSError, RuntimeError) as error:  # torch reports a short write as RuntimeError
        raise UserError(
            f"checkpoint {path} could not be written ({first_line(error)}): make room or choose another --runs_dir, then start the run again"
        ) from None


def load(path: Path, device: torch.device | str = "cpu", parts: Set[str] = frozenset()) -> dict[str, Any]:
    """The content that `save` wrote; `parts` are keys that it must have.

    Raises:
        Damaged: the file is torn, changed since it was written, or no checkpoint. UserError: it cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as file:
            torn = file.testzip()  # reads all of it
        if torn is None:
            content = torch.load(path, map_location=device, weights_only=True)
            if isinstance(content, dict) and parts <= set(content):
                return content
            problem = "it is no checkpoint of this program"
        else:
            problem = f"the sum of its record {torn} is wrong"
    except OSError as error:
        raise UserError(f"checkpoint {path} cannot be read ({error.strerror}): mend its folder or disk") from None
    except (zipfile.BadZipFile, RuntimeError, EOFError, ValueError, KeyError, NotImplementedError, zlib.error,
            pickle.UnpicklingError) as error:  # fmt: skip
        content = file_type_of(read_head(path))
        known = content is not None and content.kind not in ("torch", "zip")
        problem = f"it is {content.name}" if known else first_line(error)
    raise Damaged(f"checkpoint {path} is damaged ({problem}): restore it from a copy")


def fingerprint(path: Path) -> str:
    """What tells one checkpoint file from another without reading all of it: the sums in its directory.

    Raises:
        FileNotFoundError: it is not there (yet).
    """
    try:
        with zipfile.ZipFile(path) as file:
            return f"{zlib.crc32(repr([(i.filename, i.file_size, i.CRC) for i in file.infolist()]).encode()):08x}"
    except zipfile.BadZipFile:
        return "damaged"


def copied(value: Any, into: Any = None) -> Any:
    """A state with its tensors copied to the memory of the host, so that training may change its own meanwhile.

    `into` is an earlier copy of such a state that nobody reads any more: its memory is used again where it fits, which
    saves more time than the copying takes.
    """
    if isinstance(value, torch.Tensor):
        fits = isinstance(into, torch.Tensor) and (into.shape, into.dtype) == (value.shape, value.dtype)
        target = into if fits else torch.empty_like(value, device="cpu", pin_memory=value.is_cuda, requires_grad=False)
        return target.copy_(value.detach())
    if isinstance(value, Mapping):
        old = into if isinstance(into, Mapping) else {}
        return type(value)((k, copied(v, old.get(k))) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        old_items = into if isinstance(into, (list, tuple)) and len(into) == len(value) else [None] * len(value)
        return type(value)(copied(v, o) for v, o in zip(value, old_items, strict=True))
    return value


class Writer:
    """Writes checkpoints in a thread, one after the other in the order they were given, so that training goes on.

    An error of the thread is raised by the next `put` or `wait`. It holds one copy of the state in memory.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._under_way: Future[None] | None = None
        self._copy: dict[str, Any] | None = None

    def put(
        self,
        state: dict[str, Any],
        files_of: Callable[[dict[str, Any]], Mapping[Path, dict[str, Any]]],
        before: Callable[[], None] = lambda: None,
        afterwards: Callable[[], None] = lambda: None,
    ) -> None:
        """Copy a state and begin to write the files that `files_of` makes of the copy, in their order; `before` runs in the
        thread before the first, `afterwards` when all are on disk. Waits for what is still being written.

        Raises:
            UserError: what was written before could not be.
        """
        self.wait()
        self._copy = copied(state, self._copy)
        self._under_way = self._thread.submit(self._write, files_of(self._copy), before, afterwards)

    @staticmethod
    def _write(
        files: Mapping[Path, dict[str, Any]], before: Callable[[], None], afterwards: Callable[[], None]
    ) -> None:
        before()
        for path, content in files.items():
            save(path, content)
        afterwards()

    def wait(self) -> None:
        """Return when all that was put is on disk.

        Raises:
            UserError: it could not be written.
        """
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.result()
