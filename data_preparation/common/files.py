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
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any

from data_preparation.common.errors import UserError, first_line

log = logging.getLogger(__name__)

_ABANDONED_AFTER = 24 * 3600  # seconds without a write, on another host whose processes cannot be asked


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to. When the block ends well it becomes `path`, flushed to the disk and
    renamed; when it raises, `path` is as it was and nothing is left. What killed writers left of `path` is removed.

    Raises:
        OSError: the disk is full or not writable.
    """
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
    """The same for a folder: what is put into the temporary one appears as `path` when the block ends well.

    Raises:
        OSError: the disk is full or not writable, or `path` is there already.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_stale_temporaries(path)
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


def write_atomic(path: Path, content: bytes) -> None:
    """Write a small file whole or not at all.

    Raises:
        OSError: the disk is full or not writable.
    """
    with atomic_file(path) as temporary:
        temporary.write_bytes(content)


def write_error(path: Path, error: OSError) -> UserError:
    """The sentence about a path that could not be written, with what mends it."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        mend = "make room on that disk"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        mend = "change its folder's permissions, or choose another place"
    else:
        mend = "mend its folder, or choose another place"
    return UserError(f"{path} could not be written ({error.strerror or first_line(error)}): {mend}")


@contextmanager
def reporting_write_errors(path: Path) -> Iterator[None]:
    """
    Raises:
        UserError: the block could not write `path`.
    """
    try:
        yield
    except OSError as error:
        raise write_error(path, error) from None


_UNLOCKABLE: set[int] = set()  # devices whose missing locks were said


def lock(file: IO, wait: bool) -> bool:
    """Lock an open file for this process alone, which loses the lock however it ends; False where another one has it and
    `wait` is False. A file that is open for reading only is locked against those that write: it tells whether one has it.
    Where the file system has no locks, that is said once, and taken for a lock."""
    return _lock(file, wait) is not False


def _lock(file: IO, wait: bool) -> bool | None:
    """The same; None where the file system has no locks."""
    kind = fcntl.LOCK_EX if file.writable() else fcntl.LOCK_SH
    try:
        # of this process alone: its children do not inherit it
        fcntl.lockf(file, kind | (0 if wait else fcntl.LOCK_NB))
    except (BlockingIOError, PermissionError):  # POSIX allows either for a lock that another holds
        return False
    except OSError as error:  # ENOSYS, ENOLCK, EOPNOTSUPP, EINVAL ...: no other process is the reason
        device = os.fstat(file.fileno()).st_dev
        if device not in _UNLOCKABLE:
            _UNLOCKABLE.add(device)
            log.warning(
                "%s cannot be locked (%s), as on Lustre mounted without flock: do not start the same work there twice",
                file.name,
                error.strerror,
            )
        return None
    return True


@contextmanager
def exclusive_lock(path: Path, what: str) -> Iterator[None]:
    """Hold `path`, a file made for this, against other processes while the block runs. A file system without locks gets
    a file beside it that names the owner; two processes on two hosts could still both take over an abandoned one.

    Raises:
        UserError: another process holds it; `what` begins the sentence.
        OSError: the folder cannot be written.
    """
    with open(path, "w") as file:
        locked = _lock(file, wait=False)
        # without a name: the other process has just finished and deleted it
        if locked is False or os.fstat(file.fileno()).st_nlink == 0:
            raise UserError(f"{what} by another process: wait for it, or stop it")
        with nullcontext() if locked else _owner_file(path.with_name(path.name + ".owner"), what):
            try:
                yield
            finally:
                path.unlink(missing_ok=True)


@contextmanager
def _owner_file(path: Path, what: str) -> Iterator[None]:
    """Hold a name by a file that only one process can create. That of a process that was killed is taken over."""
    for _ in range(3):  # another process may take over the same file at the same moment
        try:
            with open(path, "x") as file:
                file.write(f"{socket.gethostname()} {os.getpid()}")
            break
        except FileExistsError:
            owner = _words_of(path)
            if owner is None:  # gone meanwhile
                continue
            host, pid = owner
            if _may_live(path, host, pid):
                raise UserError(
                    f"{what} by process {pid} on {host}: wait for it, or stop it; if it is gone, delete {path}"
                ) from None
            path.unlink(missing_ok=True)
    else:
        raise UserError(f"{what} by another process: wait for it, or stop it; if there is none, delete {path}")
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _words_of(path: Path) -> tuple[str, int] | None:
    """(host, process) of an owner file; None where it is gone. One that is still empty has an unknown owner."""
    try:
        host, _, pid = path.read_text().partition(" ")
        return (host, int(pid)) if pid.isdigit() else ("an unknown host", 0)
    except FileNotFoundError:
        return None


class Cancelled(Exception):
    """The command was interrupted: what is under way is given up."""


def sha256(
    path: Path, stopped: Callable[[], bool] = lambda: False, on_bytes: Callable[[int], Any] | None = None
) -> str:
    """The SHA-256 of a file, in hexadecimal; `on_bytes(n)` is called as bytes are read.

    Raises:
        OSError: the file cannot be read.
        Cancelled: `stopped()` became true.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            if stopped():
                raise Cancelled
            digest.update(block)
            if on_bytes:
                on_bytes(len(block))
    return digest.hexdigest()


def remove_stale_temporaries(path: Path) -> None:
    """Delete the temporary files of `path` whose writers were killed; those of living writers stay."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.(?P<host>.+)\.(?P<pid>\d+)\.tmp")
    for name in os.listdir(path.parent):
        if (match := pattern.fullmatch(name)) and not _may_live(path.parent / name, match["host"], int(match["pid"])):
            abandoned = path.parent / name
            shutil.rmtree(abandoned) if abandoned.is_dir() else abandoned.unlink(missing_ok=True)


def _may_live(temporary: Path, host: str, pid: int) -> bool:
    its_own = host == socket.gethostname() and pid == os.getpid()  # what an earlier process of this number left
    return not its_own and is_writer_alive(temporary, host, pid, _ABANDONED_AFTER)


def is_writer_alive(path: Path, host: str, pid: int, within_s: float) -> bool:
    """Whether the process that keeps a file is at work: on this host if there is such a process, on another one if the file
    was written to within `within_s` seconds."""
    if host != socket.gethostname():
        try:
            return time.time() - path.stat().st_mtime < within_s
        except FileNotFoundError:
            return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        pass
    return True
