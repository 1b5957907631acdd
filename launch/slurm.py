"""The only code that runs Slurm's commands."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from training.runtime.ranks import without_slurm

NEVER_SATISFIED = "DependencyNeverSatisfied"  # the reason of a job that is about to leave the queue
_BAD_ENDS = {"BOOT_FAIL", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT"}
_TIMEOUT_S = 30  # a busy controller answers late; a dead one must not hang the caller


class SlurmError(Exception):
    """A Slurm command that is missing, failed or did not answer; its text says which and why."""


def _run(
    *command: str,
    timeout_s: int = _TIMEOUT_S,
    text: str | None = None,
    env: Mapping[str, str] = os.environ,
    folder: Path | None = None,
) -> str:
    if not is_available(command[0]):
        raise SlurmError(f"{command[0]} is not on this machine")
    try:
        done = subprocess.run(
            command,
            input=text,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            env=without_slurm(env),
            cwd=folder,
        )
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{command[0]} did not answer within {timeout_s} s") from None
    except OSError as error:
        raise SlurmError(f"{command[0]} cannot be run ({error.strerror})") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit status {done.returncode}"]
        raise SlurmError(f"{command[0]}: {lines[-1].removeprefix(command[0] + ': ').removeprefix('error: ')}")
    return done.stdout


def is_available(command: str = "sbatch") -> bool:
    """Whether this machine has Slurm's commands."""
    return shutil.which(command) is not None


def sbatch(*arguments: str, env: Mapping[str, str], folder: Path) -> str:
    """Submit a job file from a folder, with an environment; returns the job id.

    Raises:
        SlurmError: sbatch is missing or refuses.
    """
    return _run("sbatch", "--parsable", *arguments, env=env, folder=folder).strip().split(";")[0]


def test_only(script: str) -> None:
    """Ask whether a batch script could ever start, without submitting it.

    Raises:
        SlurmError: sbatch is missing or says why it could not.
    """
    _run("sbatch", "--test-only", text=script)


def nodes_and_partitions() -> tuple[str, str]:
    """What `scontrol show --oneliner` says of all nodes and of all partitions.

    Raises:
        SlurmError: scontrol is missing or fails.
    """
    return _run("scontrol", "show", "node", "--oneliner"), _run("scontrol", "show", "partition", "--oneliner")


def cancel(*job_ids: str, signal: str | None = None) -> None:
    """Cancel jobs, or send a signal to their processes.

    Raises:
        SlurmError: scancel is missing or refuses.
    """
    _run("scancel", *([f"--signal={signal}"] if signal else []), *job_ids)


def output_file(job_id: str) -> Path | None:
    """The file of a job's output, or None where the controller has forgotten the job.

    Raises:
        SlurmError: scontrol is missing or does not know the job.
    """
    lines = (line.strip() for line in _run("scontrol", "show", "job", job_id).splitlines())
    return next((Path(line.removeprefix("StdOut=")) for line in lines if line.startswith("StdOut=")), None)


@dataclass(frozen=True)
class QueuedJob:
    """A line of squeue. A waiting array task is named '12_3', as a running one is."""

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
    jobs = (QueuedJob(*line.split("|", 6)) for line in text.splitlines() if line.count("|") >= 6)
    return {job.job_id: job for job in jobs}


@dataclass(frozen=True)
class EndedJob:
    """What the accounting says of a job."""

    state: str
    elapsed: str
    limit: str
    nodes: str


def ended(job_ids: Iterable[str]) -> dict[str, EndedJob]:
    """How jobs ended, by job id, as far as the accounting knows them.

    Raises:
        SlurmError: sacct is missing or fails (accounting off).
    """
    # sacct finds tasks that never started by their array's number only
    listed = ",".join(sorted({job_id.split("_")[0] for job_id in job_ids}))
    fields = "--format=JobID,State,Elapsed,Timelimit,NodeList"
    text = _run("sacct", "--noheader", "--allocations", "--parsable2", fields, f"--jobs={listed or '0'}")
    rows = (line.split("|", 4) for line in text.splitlines() if line.count("|") >= 4)
    return {
        task: EndedJob(state.split()[0], *others)
        for job_id, state, *others in rows
        if state
        for task in array_tasks(job_id)
    }


def array_tasks(job_id: str) -> list[str]:
    """The tasks of an array that ended before they started, which sacct names together: '12_[0,2-3%2]'."""
    match = re.fullmatch(r"(\d+)_\[([\d,-]+)(?:%\d+)?\]", job_id)
    if match is None:
        return [job_id]
    spans = [(span.split("-")[0], span.split("-")[-1]) for span in match[2].split(",")]
    return [f"{match[1]}_{number}" for first, last in spans for number in range(int(first), int(last) + 1)]


@dataclass(frozen=True)
class FailedJob:
    """A job that ended badly. `folder` is where it ran; `output` is None where Slurm does not tell it."""

    job_id: str
    name: str
    state: str
    elapsed: str
    limit: str
    folder: Path
    output: Path | None = None


def failed_today() -> list[FailedJob]:
    """The user's jobs that ended badly within a day, oldest first, as far as Slurm still knows: from the accounting, and
    for some minutes after their end also from the controller, which knows their output files.

    Raises:
        SlurmError: neither answers.
    """
    found = {}
    try:
        fields = "--format=JobID,JobName%100,State,Elapsed,Timelimit,WorkDir%1000"
        period = ("--starttime=now-1days", "--endtime=now", f"--state={','.join(sorted(_BAD_ENDS))}")
        text = _run("sacct", "--noheader", "--allocations", "--parsable2", f"--user={os.getuid()}", *period, fields)
        rows = [line.split("|", 5) for line in text.splitlines() if line.count("|") >= 5]
        found = {
            job_id: FailedJob(job_id, name, state.split()[0], elapsed, limit, Path(folder))
            for job_id, name, state, elapsed, limit, folder in rows
        }
        failed_to_ask = None
    except SlurmError as error:
        failed_to_ask = error
    try:
        lines = _run("scontrol", "show", "job", "--oneliner").splitlines()
    except SlurmError:
        if failed_to_ask is not None:
            raise failed_to_ask from None
        return list(found.values())
    for values in map(oneliner_fields, lines):
        if values.get("JobState") not in _BAD_ENDS or f"({os.getuid()})" not in values.get("UserId", ""):
            continue
        job_id = values["JobId"]
        if "ArrayTaskId" in values:
            job_id = f"{values['ArrayJobId']}_{values['ArrayTaskId']}"
        known = [values.get(name, "") for name in ("JobName", "JobState", "RunTime", "TimeLimit", "WorkDir")]
        found[job_id] = FailedJob(job_id, *known[:4], Path(known[4]), Path(values.get("StdOut", "")))
    return list(found.values())


def oneliner_fields(line: str) -> dict[str, str]:
    """The fields of a line of `scontrol show --oneliner`; values may have spaces in them."""
    return {name: value.strip() for name, value in re.findall(r"(?:^|\s)(\w+)=(.*?)(?=\s+\w+=|\s*$)", line)}


def job_state(job_id: str) -> str:
    """The state of a job or array task, such as RUNNING; '' if Slurm does not say.

    Raises:
        SlurmError: scontrol is missing or fails.
    """
    return oneliner_fields(_run("scontrol", "show", "job", "--oneliner", job_id)).get("JobState", "")


def time_left(job_number: int) -> str:
    """The time until a job's limit, as squeue prints it.

    Raises:
        SlurmError: squeue is missing or fails.
    """
    return _run("squeue", "--noheader", f"--jobs={job_number}", "--format=%L").strip()


def requeue(job_id: str) -> None:
    """Requeue a running job.

    Raises:
        SlurmError: scontrol is missing (some sites have none on compute nodes) or refuses.
    """
    _run("scontrol", "requeue", job_id)


def set_comment(job_id: str, comment: str) -> None:
    """Write a running job's comment (squeue's %k).

    Raises:
        SlurmError: scontrol is missing (some sites have none on compute nodes) or refuses.
    """
    _run("scontrol", "update", f"jobid={job_id}", f"comment={comment}", timeout_s=5)  # the training waits for it
