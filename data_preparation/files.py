"""Writing files that are complete or absent, and telling whether they still are (leaf: imports only cli)."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from data_preparation.cli import UserError, first_line

log = logging.getLogger(__name__)

_ABANDONED_AFTER = 24 * 3600  # seconds without a write, on another host whose processes cannot be asked


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to. When the block ends well it becomes `path`, flushed to the disk and
    renamed; when it raises, `path` is as it was and nothing is left. What killed writers left of `path` is removed.

    Raises:
        OSError: the disk is full or not writable.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path)
    temporary = _temporary(path)
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """The same for a folder: what is put into the temporary one appears as `path` when the block ends well.

    Raises:
        OSError: the disk is full or not writable, or `path` is there already.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path)
    temporary = _temporary(path)
    temporary.mkdir()
    try:
        yield temporary
        for name in temporary.rglob("*"):
            if name.is_file():
                with open(name, "rb") as file:
                    os.fsync(file.fileno())
        os.rename(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")


def write_whole(path: Path, content: bytes) -> None:
    """Write a small file whole or not at all.

    Raises:
        OSError: the disk is full or not writable.
    """
    with whole_file(path) as temporary:
        temporary.write_bytes(content)


def write_fault(path: Path, error: OSError) -> UserError:
    """The sentence about a path that could not be written, with what mends it."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        mend = "make room on that disk"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        mend = "change its folder's permissions, or choose another place"
    else:
        mend = "mend its folder, or choose another place"
    return UserError(f"{path} could not be written ({error.strerror or first_line(error)}): {mend}")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """
    Raises:
        UserError: the block could not write `path`.
    """
    try:
        yield
    except OSError as error:
        raise write_fault(path, error) from None


def lock(file: IO, wait: bool) -> bool:
    """Lock an open file for this process alone, which loses the lock however it ends; False where another one has it and
    `wait` is False. Where the file system has no locks, that is said, and taken for a lock."""
    try:
        # of this process alone: its children do not inherit it
        fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except (BlockingIOError, PermissionError):  # POSIX allows either for a lock that another holds
        return False
    except OSError as error:
        log.warning("%s cannot be locked (%s): see yourself that nothing works there twice", file.name, error.strerror)
    return True


class Stopped(Exception):
    """The command was interrupted: what is under way is given up."""


def sha256(
    path: Path, stopped: Callable[[], bool] = lambda: False, on_bytes: Callable[[int], Any] | None = None
) -> str:
    """The SHA-256 of a file, in hexadecimal; `on_bytes(n)` is called as bytes are read.

    Raises:
        OSError: the file cannot be read.
        Stopped: `stopped()` became true.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            if stopped():
                raise Stopped
            digest.update(block)
            if on_bytes:
                on_bytes(len(block))
    return digest.hexdigest()


def remove_abandoned(path: Path) -> None:
    """Delete the temporary files of `path` whose writers were killed; those of living writers stay."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.(?P<host>.+)\.(?P<pid>\d+)\.tmp")
    for name in os.listdir(path.parent):
        if (match := pattern.fullmatch(name)) and not _may_live(path.parent / name, match["host"], int(match["pid"])):
            abandoned = path.parent / name
            shutil.rmtree(abandoned) if abandoned.is_dir() else abandoned.unlink(missing_ok=True)


def _may_live(temporary: Path, host: str, pid: int) -> bool:
    if host != socket.gethostname():
        try:
            return time.time() - temporary.stat().st_mtime < _ABANDONED_AFTER
        except FileNotFoundError:
            return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return pid != os.getpid()
