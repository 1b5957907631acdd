"""Atomic file writes, file locks and checksums (imports only common.errors and what it needs)."""

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
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any

from data_preparation.common.errors import UserError, first_line

log = logging.getLogger(__name__)

# Processes on other hosts are not visible here: their files count as stale after this time without a write.
_STALE_AFTER_S = 24 * 3600
_FSYNC_THREADS = 8  # a file system commits files together that are synced at the same time


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to, and rename it to `path` (after fsync) when the block succeeds.

    If the block raises, `path` is unchanged and the temporary file is deleted. Temporary files of `path` that killed
    writers left are deleted first.

    Raises:
        OSError: the disk is full or not writable. UserError: `path` is a folder, device or pipe.
    """
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is not a regular file, so it is not replaced: choose another name")
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_stale_temporaries(path)
    temporary = _temporary(path)
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder to fill, and rename it to `path` when the block succeeds; like `atomic_file`.

    Raises:
        OSError: the disk is full or not writable, or `path` exists.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_stale_temporaries(path)
    temporary = _temporary(path)
    temporary.mkdir()
    try:
        yield temporary
        with ThreadPoolExecutor(_FSYNC_THREADS) as threads:
            list(threads.map(_fsync, filter(Path.is_file, temporary.rglob("*"))))
        os.rename(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _fsync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")


def write_atomic(path: Path, content: bytes) -> None:
    """Write a small file atomically.

    Raises:
        OSError: the disk is full or not writable.
    """
    with atomic_file(path) as temporary:
        temporary.write_bytes(content)


def write_error(path: Path, error: OSError) -> UserError:
    """The error for a `path` that could not be written: the cause, and the fix."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        fix = "make room on that disk"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        fix = "change its folder's permissions, or choose another place"
    else:
        fix = "repair its folder, or choose another place"
    return UserError(f"{path} could not be written ({error.strerror or first_line(error)}): {fix}")


@contextmanager
def reporting_write_errors(path: Path) -> Iterator[None]:
    """Turn an OSError of the block into a UserError about `path`.

    Raises:
        UserError: the block could not write `path`.
    """
    try:
        yield
    except OSError as error:
        raise write_error(path, error) from None


_WARNED_DEVICES: set[int] = set()  # file systems without locks, for which the warning was logged


def lock(file: IO, wait: bool) -> bool:
    """Lock an open file for this process; the kernel releases the lock when the process ends.

    A file opened for writing gets an exclusive lock. A file opened for reading gets a shared lock, to find out whether
    a writer holds the lock. Returns False if `wait` is False and another process holds the lock. If the file system
    does not support locks, log a warning (once per file system) and return True as if locked.
    """
    return _lock(file, wait) is not False


def _lock(file: IO, wait: bool) -> bool | None:
    """Like `lock`, but None if the file system does not support locks."""
    kind = fcntl.LOCK_EX if file.writable() else fcntl.LOCK_SH
    try:
        # POSIX locks belong to the process: children do not inherit them
        fcntl.lockf(file, kind | (0 if wait else fcntl.LOCK_NB))
    except (BlockingIOError, PermissionError):  # POSIX allows either if another process holds the lock
        return False
    except OSError as error:  # ENOSYS, ENOLCK, EOPNOTSUPP, EINVAL ...: the file system does not support locks
        device = os.fstat(file.fileno()).st_dev
        if device not in _WARNED_DEVICES:
            _WARNED_DEVICES.add(device)
            log.warning(
                "%s cannot be locked (%s), as on Lustre mounted without flock: do not run the same command there twice at the same time",
                file.name,
                error.strerror,
            )
        return None
    return True


@contextmanager
def exclusive_lock(path: Path, what: str) -> Iterator[None]:
    """Hold an exclusive lock on the lock file `path` while the block runs, and delete the file afterwards.

    If the file system does not support locks, a file PATH.owner names the owner instead. Then two processes on two
    hosts could both take over a stale owner file.

    Raises:
        UserError: another process holds the lock; `what` begins the message.
        OSError: the folder cannot be written.
    """
    with open(path, "w") as file:
        locked = _lock(file, wait=False)
        # no link left: the process that held the lock has just deleted the file
        if locked is False or os.fstat(file.fileno()).st_nlink == 0:
            raise UserError(f"{what} by another process: wait for it, or stop it")
        with nullcontext() if locked else _owner_file(path.with_name(path.name + ".owner"), what):
            try:
                yield
            finally:
                path.unlink(missing_ok=True)


@contextmanager
def _owner_file(path: Path, what: str) -> Iterator[None]:
    """Hold a lock by creating `path` exclusively; the file of a process that was killed is taken over."""
    for _ in range(3):  # another process may take over the same file at the same moment
        try:
            with open(path, "x") as file:
                file.write(f"{socket.gethostname()} {os.getpid()}")
            break
        except FileExistsError:
            owner = _read_owner(path)
            if owner is None:  # deleted meanwhile
                continue
            host, pid = owner
            if _may_be_in_use(path, host, pid):
                raise UserError(
                    f"{what} by process {pid} on {host}: wait for it, or stop it; if it no longer runs, delete {path}"
                ) from None
            path.unlink(missing_ok=True)
    else:
        raise UserError(f"{what} by another process: wait for it, or stop it; if no such process runs, delete {path}")
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _read_owner(path: Path) -> tuple[str, int] | None:
    """(host, process id) in an owner file, None if the file does not exist. A file that is still empty has an unknown owner."""
    try:
        host, _, pid = path.read_text().partition(" ")
        return (host, int(pid)) if pid.isdigit() else ("an unknown host", 0)
    except FileNotFoundError:
        return None


class Cancelled(Exception):
    """The user interrupted the command (Ctrl-C), so this part of the work was given up."""


def sha256(
    path: Path, is_cancelled: Callable[[], bool] = lambda: False, on_bytes: Callable[[int], Any] | None = None
) -> str:
    """The SHA-256 of a file, in hexadecimal; `on_bytes(n)` is called after every n bytes read.

    Raises:
        OSError: the file cannot be read.
        Cancelled: `is_cancelled()` returned True.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            if is_cancelled():
                raise Cancelled
            digest.update(block)
            if on_bytes:
                on_bytes(len(block))
    return digest.hexdigest()


def remove_stale_temporaries(path: Path) -> None:
    """Delete the temporary files of `path` whose writers no longer run."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.(?P<host>.+)\.(?P<pid>\d+)\.tmp")
    for name in os.listdir(path.parent):
        if not name.startswith(f".{path.name}."):  # quick: a folder may have 10,000 archives
            continue
        if (match := pattern.fullmatch(name)) and not _may_be_in_use(
            path.parent / name, match["host"], int(match["pid"])
        ):
            stale = path.parent / name
            shutil.rmtree(stale) if stale.is_dir() else stale.unlink(missing_ok=True)


def _may_be_in_use(path: Path, host: str, pid: int) -> bool:
    # a file with this process's own id was left by an earlier process that had the same id
    own_pid = host == socket.gethostname() and pid == os.getpid()
    return not own_pid and is_writer_alive(path, host, pid, _STALE_AFTER_S)


def is_writer_alive(path: Path, host: str, pid: int, within_s: float) -> bool:
    """Whether the process that writes a file still runs.

    On this host: whether a process `pid` exists. On another host: whether the file was written to within `within_s`
    seconds.
    """
    if host != socket.gethostname():
        try:
            return time.time() - path.stat().st_mtime < within_s
        except FileNotFoundError:
            return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # the process exists and belongs to another user
        pass
    return True
