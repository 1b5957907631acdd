"""The rank of this process, and the resources that Slurm allocated to the job. Imports no torch.

The only file that reads the environment variables of torchrun, Slurm and submitit. `read_ranks` checks in this order:
torchrun, a Slurm step (srun, submitit), submitit without Slurm, a single process. Contradictory variables are an error.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from data_preparation.common.errors import UserError

PORT_VARIABLE = "DEEPSPORTS_PORT"  # a free port of the first node, found by launch.job begin
_PORTS = range(20000, 30000)  # below the ephemeral ports of Linux (32768 and up)


@dataclass(frozen=True)
class Ranks:
    """The rank of this process. `local_rank` is the rank within the node, `source` what set the variables."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    address: str = ""
    port: int = 0
    source: str = "single process"

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise UserError(
                f"{self.source} gives rank {self.rank} of {self.world_size} ranks, which is impossible: start the job again"
            )

    @property
    def is_first(self) -> bool:
        return self.rank == 0


def first_host(nodelist: str) -> str:
    """The first host of a Slurm node list: 'gpu[003-010,012],cpu1' -> 'gpu003'."""
    each_first = re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", nodelist)  # the first number of each bracket
    host = each_first.split(",")[0]
    if not host:
        raise UserError(f"SLURM_STEP_NODELIST '{nodelist}' names no host: start the job with srun")
    return host


def rendezvous_port(job_id: int, step_id: int = 0, attempt: int = 0) -> int:
    """A port that is the same for all ranks of a step, and rarely that of another job on the node."""
    return _PORTS[(job_id * 31 + step_id + attempt * 997) % len(_PORTS)]


def _number(env: Mapping[str, str], name: str, source: str) -> int:
    try:
        return int(env[name])
    except KeyError:
        raise UserError(f"{source} did not set {name}: start the job again, or as a single process") from None
    except ValueError:
        raise UserError(f"{source} set {name}='{env[name]}', which is not a number: start the job again") from None


def read_ranks(env: Mapping[str, str] = os.environ) -> Ranks:
    """The rank of this process, from its environment variables.

    Raises:
        UserError: the variables contradict each other, or the job has several tasks and the process was not started by srun.
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
        job, step = _number(env, "SLURM_JOB_ID", source), _number(env, "SLURM_STEP_ID", source)
        return Ranks(
            _number(env, "SLURM_PROCID", source),
            _number(env, "SLURM_STEP_NUM_TASKS", source),
            _number(env, "SLURM_LOCALID", source),
            first_host(env.get("SLURM_STEP_NODELIST", "")),
            _number(env, PORT_VARIABLE, "the job") if PORT_VARIABLE in env else rendezvous_port(job, step),
            source,
        )
    if "SUBMITIT_LOCAL_GLOBALID" in env:
        source = "submitit"
        return Ranks(
            _number(env, "SUBMITIT_LOCAL_GLOBALID", source),
            _number(env, "SUBMITIT_LOCAL_NTASKS", source),
            _number(env, "SUBMITIT_LOCAL_LOCALID", source),
            "127.0.0.1",
            _number(env, PORT_VARIABLE, source),
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


def raw_job_number(env: Mapping[str, str] = os.environ) -> int:
    """SLURM_JOB_ID, which differs between the tasks of an array, or 0 outside a job."""
    return int(env.get("SLURM_JOB_ID") or 0)


def rank_of_task(env: Mapping[str, str] = os.environ) -> str:
    """The number of this process within its Slurm step, as text; '0' outside."""
    return env.get("SLURM_PROCID", "0")


def task_count(env: Mapping[str, str] = os.environ) -> int:
    """The number of tasks of this Slurm job."""
    return int(env.get("SLURM_NTASKS") or 1)


def is_first_on_node(env: Mapping[str, str] = os.environ) -> bool:
    """Whether this is the first task of its Slurm step on its node; True outside."""
    return env.get("SLURM_LOCALID", "0") == "0"


@dataclass(frozen=True)
class JobNodes:
    """The nodes of this Slurm job; `nodelist` is in Slurm's short form ('n[1-3]'), `node` is this one, all '' outside of a job."""

    count: int
    nodelist: str
    partition: str
    node: str


def job_nodes(env: Mapping[str, str] = os.environ) -> JobNodes:
    return JobNodes(
        int(env.get("SLURM_NNODES") or 1),
        env.get("SLURM_JOB_NODELIST", ""),
        env.get("SLURM_JOB_PARTITION", ""),
        env.get("SLURMD_NODENAME", ""),
    )


def restart_count(env: Mapping[str, str] = os.environ) -> int:
    """How often Slurm has started this job again."""
    return int(env.get("SLURM_RESTART_COUNT") or 0)


def allocated_gpus(env: Mapping[str, str] = os.environ) -> str | None:
    """The GPUs that Slurm gave this process ('0,1'), or None without Slurm or without GPUs."""
    if "SLURM_JOB_ID" not in env:
        return None
    given = env.get("SLURM_STEP_GPUS") or env.get("SLURM_JOB_GPUS") or env.get("CUDA_VISIBLE_DEVICES")
    return given if given and given not in ("NoDevFiles", "-1") else None


def gpus_on_node(env: Mapping[str, str] = os.environ) -> int | None:
    """The GPUs of this node that belong to the job, or None if Slurm does not set it."""
    return int(env["SLURM_GPUS_ON_NODE"]) if env.get("SLURM_GPUS_ON_NODE") else None


def allocated_cpus(env: Mapping[str, str] = os.environ) -> int | None:
    """The CPU cores that Slurm gave each task, or None if Slurm does not set it."""
    return int(env["SLURM_CPUS_PER_TASK"]) if env.get("SLURM_CPUS_PER_TASK") else None


def ranks_on_node(ranks: Ranks, env: Mapping[str, str] = os.environ) -> int:
    """How many processes of the run are on this node."""
    if ranks.source == "torchrun":
        return int(env.get("LOCAL_WORLD_SIZE") or 1)
    if ranks.source == "Slurm":
        counts = tasks_of_nodes(env.get("SLURM_STEP_TASKS_PER_NODE") or "")
        node = int(env.get("SLURM_NODEID") or 0)
        return counts[node] if node < len(counts) else 1
    return ranks.world_size


def tasks_of_nodes(text: str) -> list[int]:
    """Slurm's short form of the number of tasks of each node: '2(x3),1' -> [2, 2, 2, 1]."""
    found: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        found += [int(count)] * int(times or 1)
    return found


def allocated_memory(env: Mapping[str, str] = os.environ) -> int | None:
    """Bytes of this node's memory that Slurm gave the job, or None if Slurm does not set it."""
    if env.get("SLURM_MEM_PER_NODE"):
        return int(env["SLURM_MEM_PER_NODE"]) * 2**20 or None  # 0 is all
    if env.get("SLURM_MEM_PER_CPU") and env.get("SLURM_CPUS_ON_NODE"):
        return int(env["SLURM_MEM_PER_CPU"]) * int(env["SLURM_CPUS_ON_NODE"]) * 2**20 or None
    return None


def job_times(env: Mapping[str, str] = os.environ) -> tuple[float, float] | None:
    """When this start of the job began and when its time limit ends it (seconds since 1970), or None if Slurm does not set
    them (before 22.05, or outside a job)."""
    try:
        return float(env["SLURM_JOB_START_TIME"]), float(env["SLURM_JOB_END_TIME"])
    except (KeyError, ValueError):
        return None


def without_slurm(env: Mapping[str, str]) -> dict[str, str]:
    """The environment without an enclosing job's variables, which would leak into jobs that are submitted from it, and
    without those of sbatch and srun, which would override the options in a job's script."""
    leaking = ("SLURM_", "SUBMITIT_", "SBATCH_", "SRUN_", PORT_VARIABLE, "DEEPSPORTS_JOB")
    return {k: v for k, v in env.items() if not k.startswith(leaking) or k == "SLURM_CONF"}
