"""The ranks of a run: their devices, connecting and disconnecting, collectives, and messages about lost ranks."""

from __future__ import annotations

import gc
import json
import logging
import math
import os
import re
import resource
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist

from data_preparation.common.errors import UserError, first_line
from training.data.batch import Tensors
from training.runtime.interruption import ProcessLost
from training.runtime.ranks import Ranks, allocated_gpus, gpus_on_node, slurm_job_id
from training.runtime.statuses import Status

log = logging.getLogger(__name__)

T = TypeVar("T")

# in messages of torch, gloo and nccl: the source location, and the start of the second sentence
_SOURCE = re.compile(r"\[[^\]\s]*\.(?:cc|cpp|cu|h|hpp):\d+\]\s*|\s+in: \S+\.(?:cc|cpp|cu|h|hpp):\d+(?=,)")
_NEXT_SENTENCE = re.compile(r"\.\s+(?=[A-Z])")

_store: dist.Store | None = None  # of this run, once its ranks are connected
_hosts: list[str] = []  # host of each rank
# The group of collectives whose result the training process needs at once (whether to stop, objects). With nccl it is one of
# gloo, so that such a collective does not wait for the GPU; None is the group of all other collectives
_control: dist.ProcessGroup | None = None


def choose_device(use_gpu: bool, ranks: Ranks) -> torch.device:
    """The device of this rank.

    Raises:
        UserError: Slurm allocated GPUs, but CUDA sees none of them, or fewer than there are ranks on this node.
    """
    if not use_gpu:
        return torch.device("cpu")
    if torch.cuda.is_available():
        seen = torch.cuda.device_count()
        on_node = gpus_on_node() or seen
        # if Slurm binds a GPU to each task, every rank sees its own as number 0
        index = 0 if seen == 1 and ranks.local_rank < on_node else ranks.local_rank
        if index >= seen:
            raise UserError(
                f"local rank {ranks.local_rank} has no GPU of its own ({seen} visible): ask for as many GPUs as tasks on each node"
            )
        torch.cuda.set_device(index)
        return torch.device("cuda", index)
    if given := allocated_gpus():
        raise UserError(
            f"Slurm gave this job GPUs ({given}) and CUDA sees none: {_fix_for_cuda()}, or train on the CPU with --gpu False"
        )
    return torch.device("cpu")


def _fix_for_cuda() -> str:
    """The fix if CUDA sees no GPU. If torch's build and the driver's version show the cause, it comes first."""
    other_build = (
        "set DEEPSPORTS_TORCH_INDEX in job_files/environment.sh to the index of a fitting build, delete the virtual "
        "environment and run bash job_files/setup.sh"
    )
    built_for = torch.version.cuda
    if built_for is None:
        return f"torch {torch.__version__} is a build without CUDA: {other_build}"
    # such as 12040, or 0 without a driver; a build without CUDA does not have the function
    driver: int = getattr(torch._C, "_cuda_getDriverVersion")()  # noqa: B009
    major, minor = (int(part) for part in built_for.split(".")[:2])
    if 0 < driver < major * 1000 + minor * 10:
        supported = f"{driver // 1000}.{driver % 1000 // 10}"
        return f"the node's driver supports CUDA {supported}, torch {torch.__version__} is built for CUDA {built_for}: {other_build}"
    return "fix the node's driver"


def peak_memory_gib(device: torch.device) -> float:
    """The largest memory so far of this process in GiB: the GPU's allocations, or resident memory on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def connect(ranks: Ranks, device: torch.device, timeout: timedelta) -> None:
    """Initialise the process groups: nccl on GPUs (and gloo beside it), gloo on the CPU, none for a single rank. From then on no
    rank waits longer than `timeout` for another one.

    Raises:
        ProcessLost: not all ranks connected within `timeout`; on rank 0 the message names the missing ones.
    """
    if ranks.world_size == 1:
        return
    if ranks.source == "torchrun":  # its agent serves the store and monitors the ranks
        init_method, store = f"tcp://{ranks.address}:{ranks.port}", None
    else:
        init_method, store = None, dist.PrefixStore("group", _rendezvous(ranks, timeout))
    if device.type == "cuda":
        # a call that waits for a lost rank raises; else a thread of torch ends the process before it can save
        os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")
    try:
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            init_method=init_method,
            store=store,
            rank=ranks.rank,
            world_size=ranks.world_size,
            timeout=timeout,
            device_id=device if device.type == "cuda" else None,
        )
        _set_control_group(timeout)
    except (dist.DistError, RuntimeError, ValueError) as error:
        raise ProcessLost(
            f"rank {ranks.rank} of {ranks.world_size} could not connect to the others ({short_reason(error)}): see their logs"
        ) from None


def _set_control_group(timeout: timedelta, main_backend: str | None = None) -> None:
    """Connect the ranks a second time, with gloo, unless that is their backend."""
    global _control
    if (main_backend or dist.get_backend()) != "gloo":
        _control = dist.new_group(backend="gloo", timeout=timeout)


def _rendezvous(ranks: Ranks, timeout: timedelta) -> dist.Store:
    """The key-value store, served by the first rank, once all ranks have registered their host in it."""
    place = f"{ranks.address}:{ranks.port}"
    minutes = f"{timeout.total_seconds() / 60:g} minutes"
    try:
        store = dist.TCPStore(
            ranks.address, ranks.port, ranks.world_size, ranks.is_first, timeout, wait_for_workers=False
        )
    except (dist.DistError, RuntimeError, ValueError, OSError) as error:
        if ranks.is_first:
            raise ProcessLost(
                f"the first rank cannot serve {place} ({short_reason(error)}): another program holds that port, start the job again"
            ) from None
        raise ProcessLost(
            f"rank {ranks.rank} on {socket.gethostname()} found no first rank at {place} within {minutes} ({short_reason(error)}): see the log of rank 0"
        ) from None
    store.set(f"come/{ranks.rank}", socket.gethostname())
    if ranks.is_first:
        deadline = time.monotonic() + timeout.total_seconds()
        missing = list(range(ranks.world_size))
        while missing := [rank for rank in missing if not store.check([f"come/{rank}"])]:
            if time.monotonic() > deadline:
                names = ", ".join(map(str, missing))
                raise ProcessLost(
                    f"of {ranks.world_size} ranks these did not connect to {place} within {minutes}: {names}; see their logs and the state of their nodes"
                )
            time.sleep(0.05)
        store.set("all", json.dumps([store.get(f"come/{rank}").decode() for rank in range(ranks.world_size)]))
    try:
        store.wait(["all"], timeout)
    except (dist.DistError, RuntimeError) as error:
        raise ProcessLost(
            f"rank {ranks.rank} on {socket.gethostname()} waited {minutes} at {place} for the others ({short_reason(error)}): the log of rank 0 names them"
        ) from None
    global _store
    _store, _hosts[:] = store, json.loads(store.get("all"))
    return store


def short_reason(error: BaseException) -> str:
    """The first sentence of an error of torch, gloo or nccl, without source paths, advice and non-ASCII characters."""
    text = _NEXT_SENTENCE.split(_SOURCE.sub("", first_line(error)))[0]
    return " ".join(text.encode("ascii", "ignore").decode().split()).rstrip(".:")


def unresponsive_ranks(patience_s: float = 5) -> list[str]:
    """Ranks, with their hosts, that died or hang: every live rank reports the lost contact in the store, and these did not
    within `patience_s`. Empty if the ranks have no store (torchrun)."""
    if _store is None:
        return []
    missing = list(range(dist.get_world_size()))

    def ask() -> None:
        with suppress(dist.DistError, RuntimeError, ValueError):
            _store.set(f"lost/{dist.get_rank()}", "")
            deadline = time.monotonic() + patience_s
            while missing and time.monotonic() < deadline:
                missing[:] = [rank for rank in missing if not _store.check([f"lost/{rank}"])]
                time.sleep(0.1)
            return
        missing[:] = [0]  # the store does not answer, and rank 0 serves it

    asking = threading.Thread(target=ask, daemon=True)  # a dead node does not even refuse the connection
    asking.start()
    asking.join(patience_s + 1)
    if asking.is_alive():
        missing[:] = [0]
    return [f"rank {rank} on {_hosts[rank]}" for rank in missing if rank != dist.get_rank()]


def peer_failure_text(reason: str, here: str, silent: Sequence[str], job_id: str | None) -> str:
    """One line for the log of a rank (`here`) that lost contact: which ranks do not answer, and where to find the cause,
    since a killed process logs nothing."""
    who = f"no answer from {', '.join(silent)}" if silent else "it is not known which"
    slurm = (
        f"sacct -j {job_id} --format=JobID,State,ExitCode,MaxRSS,NodeList (OUT_OF_MEMORY: ask for more --mem, or give fewer --workers), sinfo -R (a node that went down) and "
        if job_id
        else ""
    )
    return f"{here} lost contact with other ranks of the run ({reason}; {who}): if the log of such a rank ends without an error, it was killed: check {slurm}dmesg on its host"


def describe_peer_failure(error: BaseException) -> str:
    """The log line for an error with `is_peer_failure(error)`; waits a few seconds to find out which ranks do not answer."""
    here = f"rank {dist.get_rank()} on {socket.gethostname()}"
    return peer_failure_text(short_reason(error), here, unresponsive_ranks(), slurm_job_id())


def is_peer_failure(error: Exception) -> bool:
    """Whether an exception means that another rank died or did not answer in time."""
    if not dist.is_initialized():
        return False
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def exit_status(action: Callable[[], int]) -> int:
    """Run a command's `action` and return its exit status. If another rank or a worker is lost, log that and return
    Status.RANK_LOST."""
    try:
        return action()
    # no disconnect: with nccl it can wait for the other ranks, which must see this one fail
    except ProcessLost as loss:
        log.error("%s", loss)
    except RuntimeError as error:
        if not is_peer_failure(error):
            raise
        log.error(describe_peer_failure(error))
    return Status.RANK_LOST


def disconnect() -> None:
    """Destroy the process groups, if there are any. Delete every DistributedDataParallel before.

    One that is deleted later can hang the process (PyTorch 2.13). It then holds the last reference to the group. So its destructor
    holds the GIL and waits for gloo's thread, while that thread may wait for the GIL.
    """
    global _control
    _control = None
    if dist.is_initialized():
        gc.collect()  # deletes networks in reference cycles
        dist.destroy_process_group()


# ------------------------------------------------------------------------------------------------------- collectives


def is_first() -> bool:
    """Whether this is rank 0, or the only one."""
    return not dist.is_initialized() or dist.get_rank() == 0


def world_size() -> int:
    """The number of ranks; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def gather(rows: torch.Tensor) -> torch.Tensor:
    """(b, ...) of each rank -> (world_size * b, ...) on every rank, in rank order, without gradients."""
    if not dist.is_initialized():
        return rows
    gathered = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, rows.contiguous())
    return torch.cat(gathered)


def gather_rows(*groups: Tensors) -> list[Tensors]:
    """`gather` of all tensors (b, ...) of some dictionaries, which may have different types, in one collective."""
    tensors = [tensor for group in groups for tensor in group.values()]
    if not dist.is_initialized() or not tensors:
        return list(groups)
    as_bytes = [t.contiguous().view(len(t), math.prod(t.shape[1:])).view(torch.uint8) for t in tensors]  # (b, bytes)
    parts = gather(torch.cat(as_bytes, dim=1)).split([part.shape[1] for part in as_bytes], dim=1)
    whole = iter(part.contiguous().view(t.dtype).view(-1, *t.shape[1:]) for part, t in zip(parts, tensors, strict=True))
    return [{name: next(whole) for name in group} for group in groups]


def gather_objects(item: object) -> list:
    """A picklable object from each rank -> the list of all, in rank order, on every rank."""
    if not dist.is_initialized():
        return [item]
    items: list = [None] * dist.get_world_size()
    dist.all_gather_object(items, item, group=_control)
    return items


def max_over_ranks(value: int) -> int:
    """The maximum of `value` over the ranks, on every rank."""
    if not dist.is_initialized():
        return value
    maximum = torch.tensor(value)
    dist.all_reduce(maximum, dist.ReduceOp.MAX, group=_control)
    return int(maximum)


def on_first_rank(action: Callable[[], T]) -> T:
    """Run `action` on the first rank only and return its result on every rank. If it raises UserError, every rank does."""
    found: T | None = None
    fault: UserError | None = None
    if is_first():
        try:
            found = action()
        except UserError as error:
            fault = error
    found, fault = gather_objects((found, fault))[0]
    if fault is not None:
        raise fault
    return found


def wait_until_visible(path: Path | None, fingerprint: Callable[[Path], str], patience_s: float = 60) -> Path | None:
    """Wait until every rank sees the first rank's file, with the same fingerprint: a shared file system may show it late.
    Returns the first rank's `path` on every rank, which may be None.

    Raises:
        UserError: the file is missing, or a rank does not see it within `patience_s`.
    """
    path, wanted = gather_objects(
        (path, _fingerprint_or_none(path, fingerprint)) if path and is_first() else (path, "")
    )[0]
    if wanted is None:
        raise UserError(f"{path} is missing: restore it from a copy")
    deadline = time.monotonic() + patience_s
    while (
        not (same := path is None or _fingerprint_or_none(path, fingerprint) == wanted) and time.monotonic() < deadline
    ):
        time.sleep(0.5)
    if blind := [rank for rank, is_same in enumerate(gather_objects(same)) if not is_same]:
        raise UserError(
            f"ranks {', '.join(map(str, blind))} do not see {path} as the first rank does: --runs_dir must be on a file system that all nodes share"
        )
    return path


def _fingerprint_or_none(path: Path, fingerprint: Callable[[Path], str]) -> str | None:
    try:
        return fingerprint(path)
    except OSError:
        return None


def barrier() -> None:
    """Wait until all ranks have called it."""
    if dist.is_initialized():
        dist.barrier(group=_control)
