"""Slurm's commands; no other module runs them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from training.runtime.ranks import without_slurm

NEVER_SATISFIED = "DependencyNeverSatisfied"  # squeue's reason of a job whose dependency can no longer be met
_FAILED_STATES = {"BOOT_FAIL", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT"}
_TIMEOUT_S = 30  # a busy controller answers late; one that is down must not block the caller


class SlurmError(Exception):
    """A Slurm command is missing, failed or did not answer; the text names the command and the reason."""


def _run(
    *command: str,
    timeout_s: int = _TIMEOUT_S,
    text: str | None = None,
    env: Mapping[str, str] = os.environ,
    folder: Path | None = None,
) -> str:
    if not is_available(command[0]):
        raise SlurmError(f"{command[0]} is not installed on this machine")
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
    """Submit a job file from `folder` with the environment `env`; returns the job id.

    Raises:
        SlurmError: sbatch is missing or refuses.
    """
    return _run("sbatch", "--parsable", *arguments, env=env, folder=folder).strip().split(";")[0]


def test_only(script: str) -> None:
    """Check whether Slurm could start a batch script, without submitting it.

    Raises:
        SlurmError: sbatch is missing, or the script could not start.
    """
    _run("sbatch", "--test-only", text=script)


def nodes_and_partitions() -> tuple[str, str]:
    """The output of `scontrol show --oneliner` about all nodes, and about all partitions.

    Raises:
        SlurmError: scontrol is missing or fails.
    """
    return _run("scontrol", "show", "node", "--oneliner"), _run("scontrol", "show", "partition", "--oneliner")


def cancel(*job_ids: str, signal: str | None = None) -> None:
    """Cancel jobs, or send a signal to their steps.

    Raises:
        SlurmError: scancel is missing or refuses.
    """
    _run("scancel", *([f"--signal={signal}"] if signal else []), *job_ids)


def output_file(job_id: str) -> Path | None:
    """The output file of a job, or None if Slurm does not name it.

    Raises:
        SlurmError: scontrol is missing or does not know the job.
    """
    lines = (line.strip() for line in _run("scontrol", "show", "job", job_id).splitlines())
    return next((Path(line.removeprefix("StdOut=")) for line in lines if line.startswith("StdOut=")), None)


@dataclass(frozen=True)
class QueuedJob:
    """A pending or running job, as squeue lists it. A task of a job array has an id such as '12_3'."""

    job_id: str
    name: str
    state: str
    reason: str
    elapsed: str
    limit: str
    nodes: str


def queue() -> dict[str, QueuedJob]:
    """The user's pending and running jobs by job id.

    Raises:
        SlurmError: squeue is missing or fails.
    """
    text = _run("squeue", "--me", "--noheader", "--array", "--format=%i|%j|%T|%r|%M|%l|%N")
    jobs = (QueuedJob(*line.split("|", 6)) for line in text.splitlines() if line.count("|") >= 6)
    return {job.job_id: job for job in jobs}


@dataclass(frozen=True)
class EndedJob:
    """A job in Slurm's accounting."""

    state: str
    elapsed: str
    limit: str
    nodes: str


def ended(job_ids: Iterable[str]) -> dict[str, EndedJob]:
    """How jobs ended, by job id; jobs that the accounting does not know are left out.

    Raises:
        SlurmError: sacct is missing or fails (accounting off).
    """
    # sacct finds tasks that never started only by the id of their array
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


class JobTimes(NamedTuple):
    """When a start of a job was submitted (or requeued), was eligible to start, and started: seconds since the epoch, whole."""

    submitted: float
    eligible: float
    started: float


def job_times(job_id: str) -> list[JobTimes]:
    """The times of each start of a job that Slurm knows, oldest first. The accounting has all of them, the controller only
    the last one, until some minutes after the job's end.

    Raises:
        SlurmError: neither answers.
    """
    rows: list[list[str]] = []
    errors = []
    try:
        fields = "--format=JobID,Submit,Eligible,Start"
        text = _run("sacct", "--noheader", "--allocations", "--duplicates", "--parsable2", fields, f"--jobs={job_id}")
        rows += [times for name, *times in (line.split("|") for line in text.splitlines()) if name == job_id]
    except SlurmError as error:
        errors.append(error)
    try:
        values = oneliner_fields(_run("scontrol", "show", "job", "--oneliner", job_id))
        rows.append([values.get(f"{name}Time", "") for name in ("Submit", "Eligible", "Start")])
    except SlurmError as error:
        errors.append(error)
    if not rows and errors:
        raise errors[0]
    found = set()
    for row in rows:
        with suppress(ValueError):  # Unknown, None or N/A: it has not started
            found.add(JobTimes(*(datetime.fromisoformat(time).timestamp() for time in row)))
    return sorted(found, key=lambda times: times.started)


def array_tasks(job_id: str) -> list[str]:
    """The job ids of tasks that never started, which sacct lists as one id: '12_[0,2-3%2]'."""
    match = re.fullmatch(r"(\d+)_\[([\d,-]+)(?:%\d+)?\]", job_id)
    if match is None:
        return [job_id]
    spans = [(span.split("-")[0], span.split("-")[-1]) for span in match[2].split(",")]
    return [f"{match[1]}_{number}" for first, last in spans for number in range(int(first), int(last) + 1)]


@dataclass(frozen=True)
class FailedJob:
    """A job that failed. `folder` is its working directory; `output` is None if Slurm does not name it."""

    job_id: str
    name: str
    state: str
    elapsed: str
    limit: str
    folder: Path
    output: Path | None = None


def failed_today() -> list[FailedJob]:
    """The user's jobs that failed within a day, oldest first: from the accounting, and for some minutes after their end
    also from the controller, which has their output files.

    Raises:
        SlurmError: neither answers.
    """
    found = {}
    try:
        fields = "--format=JobID,JobName%100,State,Elapsed,Timelimit,WorkDir%1000"
        period = ("--starttime=now-1days", "--endtime=now", f"--state={','.join(sorted(_FAILED_STATES))}")
        text = _run("sacct", "--noheader", "--allocations", "--parsable2", f"--user={os.getuid()}", *period, fields)
        rows = [line.split("|", 5) for line in text.splitlines() if line.count("|") >= 5]
        found = {
            job_id: FailedJob(job_id, name, state.split()[0], elapsed, limit, Path(folder))
            for job_id, name, state, elapsed, limit, folder in rows
        }
        sacct_error = None
    except SlurmError as error:
        sacct_error = error
    try:
        lines = _run("scontrol", "show", "job", "--oneliner").splitlines()
    except SlurmError:
        if sacct_error is not None:
            raise sacct_error from None
        return list(found.values())
    for values in map(oneliner_fields, lines):
        if values.get("JobState") not in _FAILED_STATES or f"({os.getuid()})" not in values.get("UserId", ""):
            continue
        job_id = values["JobId"]
        if "ArrayTaskId" in values:
            job_id = f"{values['ArrayJobId']}_{values['ArrayTaskId']}"
        found[job_id] = FailedJob(
            job_id,
            values.get("JobName", ""),
            values.get("JobState", ""),
            values.get("RunTime", ""),
            values.get("TimeLimit", ""),
            Path(values.get("WorkDir", "")),
            Path(values.get("StdOut", "")),
        )
    return list(found.values())


def oneliner_fields(line: str) -> dict[str, str]:
    """The fields of a line of `scontrol show --oneliner`; values may contain spaces."""
    return {name: value.strip() for name, value in re.findall(r"(?:^|\s)(\w+)=(.*?)(?=\s+\w+=|\s*$)", line)}


def job_state(job_id: str) -> str:
    """The state of a job or array task, such as RUNNING; '' if scontrol does not print it.

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


def leave_nodes(job_id: str, nodes: Iterable[str]) -> None:
    """Add nodes to those that a pending job avoids (--exclude). Slurm refuses it for a running job.

    Raises:
        SlurmError: scontrol is missing or refuses.
    """
    avoided = oneliner_fields(_run("scontrol", "show", "job", "--oneliner", job_id)).get("ExcNodeList", "(null)")
    listed = ",".join([*([] if avoided == "(null)" else [avoided]), *nodes])
    _run("scontrol", "update", f"jobid={job_id}", f"excnodelist={listed}")


def host_names(nodes: str) -> list[str]:
    """The names in a list of nodes, such as 'n[1-3]'.

    Raises:
        SlurmError: scontrol is missing or refuses.
    """
    return _run("scontrol", "show", "hostnames", nodes).split()


def usable_nodes(partition: str) -> set[str]:
    """The nodes of a partition that can run jobs, now or after other jobs.

    Raises:
        SlurmError: sinfo is missing or fails.
    """
    lines = _run("sinfo", "--noheader", "--Node", f"--partition={partition}", "--format=%N %T").splitlines()
    return {
        node
        for node, state in map(str.split, lines)
        if re.fullmatch("(idle|mixed|allocated|completing|planned).?", state)
    }


def set_comment(job_id: str, comment: str) -> None:
    """Set the comment of a job (squeue's %k).

    Raises:
        SlurmError: scontrol is missing (some sites have none on compute nodes) or refuses.
    """
    _run("scontrol", "update", f"jobid={job_id}", f"comment={comment}", timeout_s=5)  # the training waits meanwhile
