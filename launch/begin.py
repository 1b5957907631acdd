"""What a training job does on its first node before its processes start (job_files/begin.sh calls it).

    eval "$(python -m launch.begin runs/<name>/jobs/<job id>)"

It refuses a job that has used up its restarts or that got nowhere since the last one, and finds a free port for the
processes to meet at. Imports no torch.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from data_preparation.common.command_line import run
from data_preparation.common.errors import UserError
from data_preparation.common.files import reporting_write_errors, write_atomic
from launch.config import LaunchConfig
from launch.progress import starting_text
from launch.slurm import SlurmError, set_comment
from training.runtime.ranks import PORT_VARIABLE, raw_job_number, rendezvous_port, restart_count, slurm_job_id
from training.runtime.run_folder import RunFolder

REFUSAL = "refused"  # file in the job's folder: why its last start was refused
OUTPUT = "output"  # link in the job's folder to the file that its batch script writes to
_FRUITLESS = 2  # starts in a row from the same position after which the next one is refused
_NEAR_LIMIT = "near its time limit"  # the words of job_files/requeue.sh
_LONG_S = 600  # a start that was told to stop sooner (preempted, say) has not shown that it gets nowhere
_TRIES = 200


def position(run_folder: RunFolder) -> str:
    """How far a run is, as a word that changes with every step that is saved."""
    newest = run_folder.checkpoints()
    return newest[0].stem if newest and newest[0] != run_folder.checkpoint_file(0, 0) else "the beginning"


def check_restart(job: Path, restarts: int, budget: int, now_at: str) -> None:
    """Write down this start of a job, unless it must not start any more.

    Raises:
        UserError: its restarts are used up, or it makes no progress.
    """
    if restarts > budget:
        raise UserError(
            f"{job.name} was restarted {budget} times, which is all that --requeues (DEEPSPORTS_REQUEUES) allows: submit the run again to go on"
        )
    file = job / "starts.jsonl"
    before = [start for start in _starts(file) if start["restart"] < restarts]
    here = list(itertools.takewhile(lambda start: start["position"] == now_at, reversed(before)))
    if sum(_got_nowhere(job, start) for start in here) >= _FRUITLESS:
        last = f", and the last {len(here)} starts" if len(here) < len(before) else " and"
        raise UserError(
            f"{job.name} started {len(before)} times{last} saved no step after {now_at}: see in {job} what ends it (a time limit too short for a step or a validation, too little memory), then submit the run again"
        )
    record = {"restart": restarts, "position": now_at, "time": time.time(), "node": socket.gethostname()}
    with reporting_write_errors(file):
        write_atomic(file, "".join(json.dumps(each) + "\n" for each in [*before, record]).encode())
        end = job / f"ended-{restarts}"
        end.mkdir(exist_ok=True)  # now, while there is room on the disk
        for left in end.iterdir():  # of a job that had the same number
            left.unlink()


def _starts(file: Path) -> list[dict[str, Any]]:
    """The earlier starts of a job; damaged lines, which decide nothing important, are left out."""
    found = []
    for line in file.read_text(errors="replace").splitlines() if file.exists() else []:
        with suppress(ValueError, TypeError, KeyError):
            start = json.loads(line)
            found.append(
                {"restart": int(start["restart"]), "position": str(start["position"]), "time": float(start["time"])}
            )
    return found


def _got_nowhere(job: Path, start: dict[str, Any]) -> bool:
    """Whether a start that saved nothing is to blame for it: it was killed, or had its time before it was told to stop
    (job_files/requeue.sh wrote down why, and when): all that its time limit gives, or _LONG_S. Where Slurm requeued it, a
    node died or it was preempted."""
    why = job / f"ended-{start['restart']}" / "why"
    try:
        told = why.read_text()
        return "told to stop" not in told or _NEAR_LIMIT in told or why.stat().st_mtime - start["time"] > _LONG_S
    except OSError:
        return False


def free_port(job_number: int) -> int:
    """A port of this node that nobody holds now.

    Raises:
        UserError: none is free.
    """
    for attempt in range(_TRIES):
        port = rendezvous_port(job_number, attempt=attempt)
        with socket.socket() as candidate:
            try:
                candidate.bind(("", port))
            except OSError:
                continue
            return port
    raise UserError(f"none of {_TRIES} ports of {socket.gethostname()} is free: start the job again")


def main(argv: Sequence[str], env: Mapping[str, str] = os.environ) -> int:
    if len(argv) != 1:
        raise UserError("give the job's folder: python -m launch.begin runs/<name>/jobs/<job id>")
    job = Path(argv[0]).resolve()
    text = env.get("DEEPSPORTS_REQUEUES") or str(LaunchConfig.requeues)
    if not re.fullmatch("[0-9]+", text):
        raise UserError(f"DEEPSPORTS_REQUEUES '{text}' is no number: mend job_files/environment.sh")
    keep_output_place(job)
    run_folder = RunFolder(job.parent.parent)
    try:
        check_restart(job, restart_count(), int(text), position(run_folder))
        port = free_port(raw_job_number())
    except UserError as error:  # launch.status tells it when Slurm has forgotten the job
        with reporting_write_errors(job):
            write_atomic(job / REFUSAL, str(error).encode())
        raise
    (job / REFUSAL).unlink(missing_ok=True)
    tell_start(run_folder, env)
    print(f"export {PORT_VARIABLE}={port}")
    return 0


def keep_output_place(job: Path) -> None:
    """Link the file that the batch script writes to into the job's folder: Slurm forgets where it is."""
    with suppress(OSError):
        output = Path(os.readlink("/proc/self/fd/2"))
        if output.is_file():
            job.mkdir(parents=True, exist_ok=True)
            (job / OUTPUT).unlink(missing_ok=True)
            (job / OUTPUT).symlink_to(output)


def tell_start(run_folder: RunFolder, env: Mapping[str, str]) -> None:
    """Replace the comment of the start before, which says how that one ended."""
    words = env.get("DEEPSPORTS_COMMENT", "")
    if job_id := slurm_job_id(env):
        with suppress(SlurmError, UserError):  # damaged progress, or no scontrol on compute nodes
            told = starting_text(run_folder.progress())
            set_comment(job_id, f"{words}: {told}" if words else told)


if __name__ == "__main__":
    run(main)
