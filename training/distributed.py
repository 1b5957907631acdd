"""Who am I among the training processes? The only file that reads torchrun's and Slurm's variables.

`read_ranks` decides in this order and never guesses: torchrun, a Slurm step (srun, submitit), a single process.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from data_preparation.cli import UserError, first_line

log = logging.getLogger(__name__)

JOIN_TIMEOUT = timedelta(minutes=10)  # nodes of one allocation start within seconds; the rest is slow file systems
_PORTS = range(20000, 30000)  # below Linux's ephemeral ports (32768 and up), so nothing random sits there


@dataclass(frozen=True)
class Ranks:
    """This process's place. `local_rank` counts within the node; `source` says who told us."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    address: str = ""
    port: int = 0
    source: str = "single process"

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise UserError(
                f"{self.source} gives rank {self.rank} of {self.world_size} processes, which cannot be: start the job again"
            )

    @property
    def is_first(self) -> bool:
        return self.rank == 0


def first_host(nodelist: str) -> str:
    """The first host of a Slurm node list: 'gpu[003-010,012],cpu1' -> 'gpu003'."""
    match = re.match(r"([^,\[]+)(?:\[([^\],-]+)[^\]]*\]([^,]*))?", nodelist)
    if not match:
        raise UserError(f"SLURM_STEP_NODELIST '{nodelist}' names no host: start the job with srun")
    prefix, number, suffix = match.groups()
    return prefix + (number or "") + (suffix or "")


def rendezvous_port(job_id: int, step_id: int) -> int:
    """A port that all processes of a step know without talking, and that two jobs on a node hardly share."""
    return _PORTS[(job_id * 31 + step_id) % len(_PORTS)]


def _number(env: Mapping[str, str], name: str, source: str) -> int:
    try:
        return int(env[name])
    except KeyError:
        raise UserError(f"{source} did not set {name}: start the job again, or as a single process") from None
    except ValueError:
        raise UserError(f"{source} set {name}='{env[name]}', which is no number: start the job again") from None


def read_ranks(env: Mapping[str, str] = os.environ) -> Ranks:
    """This process's place among the processes of the run.

    Raises:
        UserError: the variables contradict each other, or an allocation of several tasks was entered without srun.
    """
    if "TORCHELASTIC_RUN_ID" in env or ("RANK" in env and "WORLD_SIZE" in env):
        source = "torchrun"
        return Ranks(
            _number(env, "RANK", source),
            _number(env, "WORLD_SIZE", source),
            _number(env, "LOCAL_RANK", source),
            env.get("MASTER_ADDR", ""),
            _number(env, "MASTER_PORT", source),
            source,
        )
    if "SLURM_STEP_ID" in env and "SLURM_PROCID" in env:
        source = "Slurm"
        return Ranks(
            _number(env, "SLURM_PROCID", source),
            _number(env, "SLURM_STEP_NUM_TASKS", source),
            _number(env, "SLURM_LOCALID", source),
            first_host(env.get("SLURM_STEP_NODELIST", "")),
            rendezvous_port(_number(env, "SLURM_JOB_ID", source), _number(env, "SLURM_STEP_ID", source)),
            source,
        )
    if int(env.get("SLURM_NTASKS") or 1) > 1:
        raise UserError(
            f"the allocation has {env['SLURM_NTASKS']} tasks and this process was not started by srun, so they would not find each other: use 'srun bash model_train_config.sh'"
        )
    return Ranks()


def slurm_job_id(env: Mapping[str, str] = os.environ) -> str | None:
    """The job this process belongs to, as squeue names it ('123' or '123_4'), or None."""
    if "SLURM_ARRAY_JOB_ID" in env:
        return f"{env['SLURM_ARRAY_JOB_ID']}_{env['SLURM_ARRAY_TASK_ID']}"
    return env.get("SLURM_JOB_ID")


def allocated_gpus(env: Mapping[str, str] = os.environ) -> str | None:
    """The GPUs that Slurm gave this process ('0,1'), or None where Slurm gave none or is not there."""
    if "SLURM_JOB_ID" not in env:
        return None
    given = env.get("SLURM_STEP_GPUS") or env.get("SLURM_JOB_GPUS") or env.get("CUDA_VISIBLE_DEVICES")
    return given if given and given not in ("NoDevFiles", "-1") else None


def allocated_cpus(env: Mapping[str, str] = os.environ) -> int | None:
    """The CPU cores that Slurm gave each task, or None where it does not say."""
    return int(env["SLURM_CPUS_PER_TASK"]) if env.get("SLURM_CPUS_PER_TASK") else None


def choose_device(use_gpu: bool, ranks: Ranks, env: Mapping[str, str] = os.environ) -> torch.device:
    """The device of this process.

    Raises:
        UserError: the allocation was given GPUs and CUDA sees none, or fewer than its processes on this node need.
    """
    if not use_gpu:
        return torch.device("cpu")
    if torch.cuda.is_available():
        seen = torch.cuda.device_count()
        on_node = int(env.get("SLURM_GPUS_ON_NODE") or seen)
        # where Slurm binds a GPU to each task, every process sees its own as number 0
        index = 0 if seen == 1 and ranks.local_rank < on_node else ranks.local_rank
        if index >= seen:
            raise UserError(
                f"local rank {ranks.local_rank} has no GPU of its own ({seen} visible): ask for as many GPUs as tasks on each node"
            )
        torch.cuda.set_device(index)
        return torch.device("cuda", index)
    if given := allocated_gpus(env):
        raise UserError(
            f"Slurm gave this job GPUs ({given}) and CUDA sees none: mend the driver or the torch build of this environment, or say --gpu False"
        )
    return torch.device("cpu")


def join(ranks: Ranks, device: torch.device) -> None:
    """Connect the processes of the run (nccl on GPUs, gloo on the CPU); nothing to do for a single one.

    Raises:
        UserError: the others did not come within JOIN_TIMEOUT.
    """
    if ranks.world_size == 1:
        return
    try:
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            init_method=f"tcp://{ranks.address}:{ranks.port}",
            rank=ranks.rank,
            world_size=ranks.world_size,
            timeout=JOIN_TIMEOUT,
            device_id=device if device.type == "cuda" else None,
        )
    except (dist.DistError, RuntimeError, ValueError) as error:
        raise UserError(
            f"rank {ranks.rank} of {ranks.world_size} could not join the others at {ranks.address}:{ranks.port} ({first_line(error)}): see the logs of the other ranks, one of them did not start"
        ) from None


def leave() -> None:
    """Disconnect, if connected."""
    if dist.is_initialized():
        dist.destroy_process_group()


# ------------------------------------------------------------------------------------------------------- collectives


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


class _GatherWithGradient(torch.autograd.Function):
    """Concatenation over ranks whose backward hands each rank the gradient of its own rows.

    Every rank computes the same loss from the same gathered rows, so no gradient has to travel back: summing the
    parameter gradients over the ranks (DDP) completes the chain rule.
    """

    @staticmethod
    def forward(ctx, rows: torch.Tensor) -> torch.Tensor:
        gathered = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, rows.contiguous())
        ctx.rows = len(rows)
        return torch.cat(gathered)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        start = dist.get_rank() * ctx.rows
        return gradient[start : start + ctx.rows]


def gather(rows: torch.Tensor) -> torch.Tensor:
    """(b, ...) of each rank -> (world_size * b, ...) on every rank, in rank order, with gradients."""
    return _GatherWithGradient.apply(rows) if dist.is_initialized() else rows


def gather_objects(item: object) -> list:
    """One picklable object of each rank, in rank order, on every rank."""
    if not dist.is_initialized():
        return [item]
    items: list = [None] * dist.get_world_size()
    dist.all_gather_object(items, item)
    return items


def largest(value: int, device: torch.device) -> int:
    """The largest of the ranks' values, on every rank."""
    if not dist.is_initialized():
        return value
    everyones = torch.tensor(value, device=device)
    dist.all_reduce(everyones, dist.ReduceOp.MAX)
    return int(everyones)


def on_first_rank(action: Callable[[], object]) -> None:
    """Run the action on the first rank only; the others wait, and fail with its UserError if it fails."""
    fault: str | None = None
    if not dist.is_initialized() or dist.get_rank() == 0:
        try:
            action()
        except UserError as error:
            fault = str(error)
    fault = gather_objects(fault)[0]
    if fault is not None:
        raise UserError(fault)


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()
