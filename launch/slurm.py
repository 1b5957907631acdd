"""The only code that runs Slurm's commands."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass

_TIMEOUT_S = 30  # a busy controller answers late; a dead one must not hang the caller


class SlurmError(Exception):
    """A Slurm command that is missing, failed or did not answer; its text says which and why."""


def _run(*command: str, timeout_s: int = _TIMEOUT_S) -> str:
    if shutil.which(command[0]) is None:
        raise SlurmError(f"{command[0]} is not on this machine")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{command[0]} did not answer within {timeout_s} s") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise SlurmError(f"{command[0]}: {lines[-1]}")
    return done.stdout


@dataclass(frozen=True)
class QueuedJob:
    """A line of squeue."""

    job_id: str
    name: str
    state: str
    reason: str
    elapsed: str
    limit: str
    nodes: str


def queue() -> dict[str, QueuedJob]:
    """The user's jobs that wait or run, by job id.

    Raises:
        SlurmError: squeue is missing or fails.
    """
    text = _run("squeue", "--me", "--noheader", "--array", "--format=%i|%j|%T|%r|%M|%l|%N")
    jobs = (QueuedJob(*line.split("|", 6)) for line in text.splitlines() if line)
    return {job.job_id: job for job in jobs}


def finished_state(job_id: str) -> str:
    """How the accounting says a job ended ('COMPLETED', 'FAILED', ...); '' where it does not know the job.

    Raises:
        SlurmError: sacct is missing or fails (accounting off).
    """
    text = _run("sacct", "--noheader", "--allocations", "--parsable2", "--format=State", f"--jobs={job_id}")
    return text.splitlines()[0].split()[0] if text.strip() else ""


def set_comment(job_id: str, comment: str) -> None:
    """Write a running job's comment (squeue's %k).

    Raises:
        SlurmError: scontrol is missing (some sites have none on compute nodes) or refuses.
    """
    _run("scontrol", "update", f"jobid={job_id}", f"comment={comment}", timeout_s=5)  # the training waits for it
