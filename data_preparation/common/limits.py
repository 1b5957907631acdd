"""Resource limits of this machine (imports nothing of the project).

Reads the limits, compares them with what a command needs, and makes messages for errors that limits cause. A limit that
cannot be read (no /proc, another operating system) is None, which counts as unlimited.
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
_MAX_SOCKET_PATH = 107  # bytes; Linux allows no longer path of a socket
_SOCKET_NAME = len("/pymp-xxxxxxxx/listener-xxxxxxxx")  # multiprocessing's sockets, in the temporary folder
_MIB = 2**20
_NO_MEMORY = re.compile(r"[Cc]an(no|')t allocate memory")

# fixes, for limits that are too low before the start and for errors during training
_SHARED_FIX = "give the container more (docker run --shm-size, or --ipc=host), or fewer --prefetch, or --workers 0"
_FILES_FIX = "raise the limit (ulimit -n; of a container --ulimit nofile), or give fewer --workers"
_PROCESSES_FIX = "raise the limit (ulimit -u; of a container --pids-limit), or give fewer --workers"
_MEMORY_FIX = "ask for more (--mem of the job; of a container --memory), or give fewer --workers"


@dataclass(frozen=True)
class ResourceNeeds:
    """The minimum that a command needs; 0 is not checked."""

    files: int = 0  # open files, of the process that opens most
    processes: int = 0  # processes and threads that it starts on this machine
    workers: bool = False  # whether it starts worker processes, which use semaphores in /dev/shm
    shared_bytes: int = 0  # shared memory on this machine
    memory_bytes: int = 0  # memory on this machine
    address_bytes: int = 0  # additional address space of one process
    file_bytes: int = 0  # the largest file or block of shared memory that it writes


@dataclass(frozen=True)
class ResourceLimits:
    """What is available; None if it is unlimited or unknown."""

    files: int | None = None
    processes: int | None = None
    shared_bytes: int | None = None
    shared_memory_fault: str | None = None  # why /dev/shm cannot be used
    memory_bytes: int | None = None
    address_bytes: int | None = None
    file_bytes: int | None = None


# ------------------------------------------------------------------------------------------------------------- reading


def read_resource_limits() -> ResourceLimits:
    """The present limits of this process on this machine."""
    return ResourceLimits(
        files=_limit(resource.RLIMIT_NOFILE),
        processes=_minimum(_user_processes_left(), _cgroup_processes_left()),
        shared_bytes=_free_bytes(SHARED_MEMORY),
        shared_memory_fault=_shared_memory_fault(),
        memory_bytes=_cgroup_memory(),
        address_bytes=_address_space_left(),
        file_bytes=_limit(resource.RLIMIT_FSIZE),
    )


def raise_open_file_limit() -> None:
    """Raise the soft limit of open files (1024 on many systems) to the hard limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def open_file_count() -> int:
    """Number of files that this process has open; 0 if unknown."""
    with suppress(OSError):
        return len(os.listdir("/proc/self/fd")) - 1
    return 0


def resident_bytes() -> int:
    """Resident memory of this process without file-backed pages, which the kernel can evict; 0 if unknown."""
    return _statm(1) - _statm(2)


def available_memory() -> int | None:
    """Bytes of this machine's memory that new processes can use, whatever the job may use of them; None if unknown."""
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def total_memory() -> int | None:
    """Bytes of this machine's memory; None if unknown."""
    with suppress(OSError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_seconds() -> int | None:
    """CPU seconds after which the kernel kills this process (ulimit -t), or None."""
    return _limit(resource.RLIMIT_CPU)


def _minimum(*values: int | None) -> int | None:
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
        status = os.statvfs(folder)
    except OSError:
        return None
    return status.f_bavail * status.f_frsize if status.f_blocks else None  # a tmpfs without a size is unlimited


def _shared_memory_fault() -> str | None:
    if not SHARED_MEMORY.is_dir():
        return "is missing"
    return None if os.access(SHARED_MEMORY, os.W_OK | os.X_OK) else "cannot be written to"


def _user_processes_left() -> int | None:
    """Number of processes and threads that this user may still start; None for root, which has no limit."""
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
    """The numbers in the files `names` of this process's control group and of its parents, version 1 and 2."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", kind):
            continue
        # a container sees its own group at the top, whatever its path outside
        for folder in (_CGROUPS / controllers / path.lstrip("/"), *(_CGROUPS / controllers / path.lstrip("/")).parents):
            if not folder.is_relative_to(_CGROUPS):
                break
            with suppress(OSError, ValueError):  # no such file, or 'max'
                yield tuple(int((folder / name).read_text()) for name in names)


def _cgroup_processes_left() -> int | None:
    return _minimum(*(max(most - now, 0) for most, now in _cgroup_values("pids", "pids.max", "pids.current")))


def _cgroup_memory() -> int | None:
    """Bytes that this control group may use; version 1 has a huge number if there is no limit."""
    limits = [*_cgroup_values("memory", "memory.max"), *_cgroup_values("memory", "memory.limit_in_bytes")]
    return _minimum(*(limit for (limit,) in limits if limit < 2**60))


# ----------------------------------------------------------------------------------------------------------- comparing


def _size(n: int) -> str:
    return f"{n / 2**30:.1f} GiB" if n >= 2**30 else f"{n / _MIB:.1f} MiB" if n >= _MIB else f"{n / 1024:.0f} KiB"


def exceeded_limits(need: ResourceNeeds, limits: ResourceLimits) -> list[str]:
    """A message with the fix for each limit that is lower than `need`."""
    found = []
    if need.workers and limits.shared_memory_fault:
        found.append(
            f"{SHARED_MEMORY}, which worker processes need, {limits.shared_memory_fault}: mount it writable (containers do so by default), or give --workers 0 to a training"
        )
    elif limits.shared_bytes is not None and limits.shared_bytes < need.shared_bytes:
        found.append(
            f"{SHARED_MEMORY} has {_size(limits.shared_bytes)} of shared memory free and the batches that workers prefetch may take {_size(need.shared_bytes)}: {_SHARED_FIX}"
        )
    if limits.files is not None and limits.files < need.files:
        found.append(f"a process may open {limits.files} files here and needs about {need.files}: {_FILES_FIX}")
    if limits.processes is not None and limits.processes < need.processes:
        found.append(
            f"{limits.processes} more processes and threads may be started here and about {need.processes} are needed: {_PROCESSES_FIX}"
        )
    if limits.memory_bytes is not None and limits.memory_bytes < need.memory_bytes:
        found.append(
            f"this job may use {_size(limits.memory_bytes)} of memory and its processes need at least {_size(need.memory_bytes)}: {_MEMORY_FIX}"
        )
    if limits.address_bytes is not None and limits.address_bytes < need.address_bytes:
        found.append(
            f"a process may take {_size(limits.address_bytes)} more address space here and needs about {_size(need.address_bytes)}: raise the limit (ulimit -v unlimited)"
        )
    if limits.file_bytes is not None and limits.file_bytes < need.file_bytes:
        found.append(
            f"a file may be at most {_size(limits.file_bytes)} here and {_size(need.file_bytes)} will be written: raise the limit (ulimit -f unlimited)"
        )
    return found


def temporary_folder_faults() -> list[str]:
    """A message if worker processes have no usable temporary folder for their sockets."""
    try:
        folder = tempfile.gettempdir()
    except OSError:
        return [
            "no temporary folder can be written to (TMPDIR, /tmp, /var/tmp): free space there, or set TMPDIR to a writable folder with a short path"
        ]
    if len(os.fsencode(folder)) + _SOCKET_NAME > _MAX_SOCKET_PATH:
        return [
            f"the path of the temporary folder {folder} is too long for the sockets of worker processes: set TMPDIR to a folder with a path of at most {_MAX_SOCKET_PATH - _SOCKET_NAME} bytes, such as /tmp"
        ]
    return []


def temporary_folder_warning() -> str | None:
    """A warning if another folder than TMPDIR is used, or None."""
    wanted = os.environ.get("TMPDIR")
    with suppress(OSError):
        used = tempfile.gettempdir()
        if wanted and os.path.abspath(wanted) != os.path.abspath(used):
            return f"TMPDIR {wanted} is missing, full or not writable here: {used} is used instead"
        if not wanted and used == os.getcwd() and used not in ("/tmp", "/var/tmp"):
            return f"/tmp and /var/tmp are missing, full or not writable here: {used} is used instead; set TMPDIR to a folder with a short path"
    return None


# -------------------------------------------------------------------------------------------- errors that limits cause


def limit_error_text(error: BaseException) -> str | None:
    """A message with the fix if an error means that a limit of the machine was reached, else None.

    PyTorch raises many of these as a RuntimeError, and a DataLoader copies a worker's traceback into the message. So
    the message is searched if there is no errno.
    """
    number = error.errno if isinstance(error, OSError) else None
    text = str(error)
    if number in (errno.EMFILE, errno.ENFILE) or "Too many open files" in text or "items of ancdata" in text:
        return f"no more files can be opened (the limit is {_limit(resource.RLIMIT_NOFILE) or 'that of the system'}): {_FILES_FIX}"
    if "shared memory" in text or "signal: Bus error" in text:
        free = _free_bytes(SHARED_MEMORY)
        left = "" if free is None else f", of which {_size(free)} are free now"
        return f"shared memory ran out ({SHARED_MEMORY}{left}): {_SHARED_FIX}"
    if "can't start new thread" in text or (isinstance(error, BlockingIOError) and "temporarily unavailable" in text):
        stacks = _limit(resource.RLIMIT_AS) is not None  # the stack of each thread takes address space
        cause = "no more processes or threads can be started"
        return f"{cause}{' in the address space of ulimit -v' if stacks else ''}: {_PROCESSES_FIX}{', or raise ulimit -v' if stacks else ''}"
    if "CUDA out of memory" in text:
        return "the GPU's memory ran out: give more --accumulate, --checkpoint_activations True, fewer dives per step (--batch_size), or a larger GPU"
    if isinstance(error, MemoryError) or number == errno.ENOMEM or _NO_MEMORY.search(text):
        return f"memory ran out: {_MEMORY_FIX} (or raise ulimit -v if it is set)"
    if isinstance(error, OSError) and number == errno.EFBIG:
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}a file grew larger than this shell allows: raise the limit (ulimit -f unlimited)"
    return None
