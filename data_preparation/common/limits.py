"""What this machine allows a process, whether that is enough, and what an error says that ran into a limit (leaf:
imports nothing of the project).

What cannot be read (no /proc, another system) is None, and then nothing is refused.
"""

from __future__ import annotations

import errno
import os
import re
import resource
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")
_CGROUPS = Path("/sys/fs/cgroup")
_SOCKET_PATH = 107  # bytes of a socket's path that Linux allows
_SOCKET_NAME = len("/pymp-xxxxxxxx/listener-xxxxxxxx")  # multiprocessing's, below the temporary folder
_MIB = 2**20
_NO_MEMORY = re.compile(r"[Cc]an(no|')t allocate memory")

# the ways out of too little shared memory, also for an error that came while training
_SHARED_FIX = "give the container more (docker run --shm-size, or --ipc=host), or fewer --prefetch, or --workers 0"
_FILES_FIX = "raise the limit (ulimit -n; of a container --ulimit nofile), or give fewer --workers"
_PROCESSES_FIX = "raise the limit (ulimit -u; of a container --pids-limit), or give fewer --workers"
_MEMORY_FIX = "ask for more (--mem of the job; of a container --memory), or give fewer --workers"


@dataclass(frozen=True)
class ResourceNeeds:
    """What a command needs at least; 0 is not looked at."""

    files: int = 0  # open files of the process that has most of them
    processes: int = 0  # processes and threads that it will start on this machine
    workers: bool = False  # whether it starts processes at all: they use semaphores in /dev/shm
    shared_bytes: int = 0  # shared memory on this machine
    memory_bytes: int = 0  # memory on this machine
    address_bytes: int = 0  # further address space of one process
    file_bytes: int = 0  # the largest file, shared memory included


@dataclass(frozen=True)
class ResourceLimits:
    """What there is; None where nothing limits it, or nobody knows."""

    files: int | None = None
    processes: int | None = None
    shared_bytes: int | None = None
    shared_memory_fault: str | None = None  # why nothing can be written to /dev/shm
    memory_bytes: int | None = None
    address_bytes: int | None = None
    file_bytes: int | None = None


# ------------------------------------------------------------------------------------------------------------- reading


def read_resource_limits() -> ResourceLimits:
    """The limits of this process on this machine, now."""
    return ResourceLimits(
        files=_limit(resource.RLIMIT_NOFILE),
        processes=_least(_user_processes_left(), _cgroup_processes_left()),
        shared_bytes=_free_bytes(SHARED_MEMORY),
        shared_memory_fault=_shared_fault(),
        memory_bytes=_cgroup_memory(),
        address_bytes=_address_space_left(),
        file_bytes=_limit(resource.RLIMIT_FSIZE),
    )


def raise_open_file_limit() -> None:
    """Raise the soft limit of open files, which many systems keep at 1024, to the hard one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def open_file_count() -> int:
    """Files that this process has open; 0 where nobody says."""
    with suppress(OSError):
        return len(os.listdir("/proc/self/fd")) - 1
    return 0


def resident_bytes() -> int:
    """Memory of this process, without pages of files, which the system can drop; 0 where nobody says."""
    return _statm(1) - _statm(2)


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_seconds() -> int | None:
    """CPU time after which the system ends this process (ulimit -t), or None."""
    return _limit(resource.RLIMIT_CPU)


def _least(*values: int | None) -> int | None:
    return min((v for v in values if v is not None), default=None)


def _limit(which: int) -> int | None:
    soft, _ = resource.getrlimit(which)
    return None if soft == resource.RLIM_INFINITY else soft


def _statm(field: int) -> int:
    with suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/self/statm").read_text().split()[field]) * resource.getpagesize()
    return 0


def _address_space_left() -> int | None:
    limit = _limit(resource.RLIMIT_AS)
    return None if limit is None else max(limit - _statm(0), 0)


def _free_bytes(folder: Path) -> int | None:
    try:
        there = os.statvfs(folder)
    except OSError:
        return None
    return there.f_bavail * there.f_frsize if there.f_blocks else None  # without a size it has no limit


def _shared_fault() -> str | None:
    if not SHARED_MEMORY.is_dir():
        return "is missing"
    return None if os.access(SHARED_MEMORY, os.W_OK | os.X_OK) else "cannot be written to"


def _user_processes_left() -> int | None:
    """Processes and threads that this user may still start; root may start any number."""
    limit = _limit(resource.RLIMIT_NPROC)
    if limit is None or os.geteuid() == 0:
        return None
    count = 0
    for status in Path("/proc").glob("[0-9]*/status"):
        with suppress(OSError, ValueError, KeyError, IndexError):
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
            count += int(fields["Threads"]) if int(fields["Uid"].split()[0]) == os.getuid() else 0
    return max(limit - count, 0)


def _cgroup_values(kind: str, *names: str) -> Iterator[tuple[int, ...]]:
    """The numbers in the files `names` of this process's control group and of those that hold it, version 1 and 2."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", kind):
            continue
        # a container sees its own group at the top, whatever path it is told
        for folder in (_CGROUPS / controllers / path.lstrip("/"), *(_CGROUPS / controllers / path.lstrip("/")).parents):
            if not folder.is_relative_to(_CGROUPS):
                break
            with suppress(OSError, ValueError):  # not there, or 'max'
                yield tuple(int((folder / name).read_text()) for name in names)


def _cgroup_processes_left() -> int | None:
    return _least(*(max(most - now, 0) for most, now in _cgroup_values("pids", "pids.max", "pids.current")))


def _cgroup_memory() -> int | None:
    """Bytes that this control group may use; version 1 says a huge number where there is no limit."""
    limits = [*_cgroup_values("memory", "memory.max"), *_cgroup_values("memory", "memory.limit_in_bytes")]
    return _least(*(limit for (limit,) in limits if limit < 2**60))


# ----------------------------------------------------------------------------------------------------------- comparing


def _size(n: int) -> str:
    return f"{n / 2**30:.1f} GiB" if n >= 2**30 else f"{n / _MIB:.1f} MiB" if n >= _MIB else f"{n / 1024:.0f} KiB"


def exceeded_limits(need: ResourceNeeds, room: ResourceLimits) -> list[str]:
    """What there is too little of, a sentence each with the fix."""
    found = []

    def short(needed: int, there: int | None) -> bool:
        return bool(needed) and there is not None and there < needed

    if need.workers and room.shared_memory_fault:
        found.append(
            f"{SHARED_MEMORY}, which worker processes need, {room.shared_memory_fault}: mount it writable (a container does so by itself), or give --workers 0 to a training"
        )
    elif short(need.shared_bytes, room.shared_bytes):
        found.append(
            f"{SHARED_MEMORY} has {_size(room.shared_bytes)} of shared memory free and the batches that workers keep ready may take {_size(need.shared_bytes)}: {_SHARED_FIX}"
        )
    if short(need.files, room.files):
        found.append(f"a process may open {room.files} files here and about {need.files} will be needed: {_FILES_FIX}")
    if short(need.processes, room.processes):
        found.append(
            f"{room.processes} more processes and threads may be started here and about {need.processes} will be needed: {_PROCESSES_FIX}"
        )
    if short(need.memory_bytes, room.memory_bytes):
        found.append(
            f"this job may use {_size(room.memory_bytes)} of memory and its processes need {_size(need.memory_bytes)} at least: {_MEMORY_FIX}"
        )
    if short(need.address_bytes, room.address_bytes):
        found.append(
            f"a process may take {_size(room.address_bytes)} more address space here and about {_size(need.address_bytes)} will be needed: raise the limit (ulimit -v unlimited)"
        )
    if short(need.file_bytes, room.file_bytes):
        found.append(
            f"a file may have {_size(room.file_bytes)} here and {_size(need.file_bytes)} will be written: raise the limit (ulimit -f unlimited)"
        )
    return found


def temporary_folder_faults() -> list[str]:
    """Whether worker processes find a temporary folder for their sockets, in a sentence."""
    try:
        folder = tempfile.gettempdir()
    except OSError:
        return [
            "no temporary folder can be written to (TMPDIR, /tmp, /var/tmp): make room there, or set TMPDIR to a folder with a short name and some room"
        ]
    if len(os.fsencode(folder)) + _SOCKET_NAME > _SOCKET_PATH:
        return [
            f"the temporary folder {folder} has too long a name for the sockets of worker processes: set TMPDIR to a folder with a name of at most {_SOCKET_PATH - _SOCKET_NAME} bytes, such as /tmp"
        ]
    return []


def temporary_folder_warning() -> str | None:
    """A sentence where TMPDIR is not what is used."""
    wanted = os.environ.get("TMPDIR")
    with suppress(OSError):
        used = tempfile.gettempdir()
        if wanted and os.path.abspath(wanted) != os.path.abspath(used):
            return f"TMPDIR {wanted} is missing, full or not writable here: {used} is used instead"
        if not wanted and used == os.getcwd() and used not in ("/tmp", "/var/tmp"):
            return f"/tmp and /var/tmp are missing, full or not writable here: {used} is used instead; set TMPDIR to a folder with a short name"
    return None


# --------------------------------------------------------------------------------------------------- errors as sentences


def limit_error_text(error: BaseException) -> str | None:
    """The sentence about an error that says a limit of the machine was reached, or None where it is about something else.

    torch raises many of them as a RuntimeError, and a DataLoader puts a worker's traceback into the text: the text decides
    where there is no number.
    """
    number = error.errno if isinstance(error, OSError) else None
    text = str(error)
    if number in (errno.EMFILE, errno.ENFILE) or "Too many open files" in text or "items of ancdata" in text:
        return (
            f"no more files can be opened ({_limit(resource.RLIMIT_NOFILE) or 'the system'} is the limit): {_FILES_FIX}"
        )
    if "shared memory" in text or "signal: Bus error" in text:
        free = _free_bytes(SHARED_MEMORY)
        left = "" if free is None else f", of which {_size(free)} are free now"
        return f"shared memory ran out ({SHARED_MEMORY}{left}): {_SHARED_FIX}"
    if "can't start new thread" in text or (isinstance(error, BlockingIOError) and "temporarily unavailable" in text):
        stacks = _limit(resource.RLIMIT_AS) is not None  # of threads take address space
        cause = "no more processes or threads can be started"
        return f"{cause}{' in the address space of ulimit -v' if stacks else ''}: {_PROCESSES_FIX}{', or raise ulimit -v' if stacks else ''}"
    if "CUDA out of memory" in text:
        return "the GPU's memory ran out: give more --accumulate, --checkpoint_activations True, fewer dives a step (--batch_size), or a larger GPU"
    if isinstance(error, MemoryError) or number == errno.ENOMEM or _NO_MEMORY.search(text):
        return f"memory ran out: {_MEMORY_FIX} (or raise ulimit -v where it is set)"
    if number == errno.EFBIG:
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}a file grew larger than this shell allows: raise the limit (ulimit -f unlimited)"
    return None
