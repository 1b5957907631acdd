"""Runs and jobs in one table: what runs, how far it is, how good it is.

python -m launch.status [--runs_dir runs]
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_preparation.cli import UserError, flag, parse, run
from launch.progress import duration_text, number_text
from launch.slurm import QueuedJob, SlurmError, finished_state, queue

HEADER = ("RUN", "STATE", "JOB", "EPOCH", "STEP", "LOSS", "RHO", "BEST", "TEST", "ETA", "SEEN")
_QUIET_S = 600  # a run that says nothing for so long has probably stopped


@dataclass(frozen=True)
class StatusConfig:
    """List runs with their state, progress and results."""

    runs_dir: Path | None = flag(None, "Folder of all run folders; none takes DEEPSPORTS_RUNS, else ./runs.")


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError):
        return None


def last_job(folder: Path) -> str | None:
    """The newest Slurm job that has a folder in the run, or None."""
    jobs = [p for p in (folder / "jobs").glob("*") if p.name[:1].isdigit()]
    return max(jobs, key=lambda p: p.stat().st_mtime).name if jobs else None


def run_state(progress: Mapping[str, Any] | None, job: QueuedJob | None, ended: str, now: float) -> str:
    """What a person would call the run's state, from its own words and Slurm's.

    `ended` is the accounting's word for a job that is no longer queued, '' where unknown.
    """
    if job is not None:
        return job.state.lower() if job.state != "PENDING" else f"pending ({job.reason})"
    if progress is None:
        return ended.lower() or "no progress yet"
    if progress["state"] == "finished":
        return "finished"
    if ended and ended != "COMPLETED":
        return ended.lower()
    if progress["state"] == "running" and now - progress["updated"] > _QUIET_S:
        return "silent"
    return progress["state"]


def run_row(folder: Path, jobs: Mapping[str, QueuedJob], accounting: bool, now: float) -> tuple[str, ...]:
    """One line of the table for one run folder."""
    progress, summary, job_id = _read(folder / "progress.json"), _read(folder / "summary.json"), last_job(folder)
    ended = finished_state(job_id) if accounting and job_id and job_id not in jobs else ""
    state = run_state(progress, jobs.get(job_id or ""), ended, now)
    test = number_text(summary["test"]["spearman"]) if summary else "-"
    if progress is None:
        return (folder.name, state, job_id or "-", "-", "-", "-", "-", "-", test, "-", "-")
    best = f"{number_text(progress['best_spearman'])}@{progress['best_epoch']}" if progress["best_epoch"] else "-"
    return (
        folder.name,
        state,
        job_id or "-",
        f"{progress['epoch']}/{progress['epochs']}",
        f"{progress['step']}/{progress['steps']}",
        number_text(progress.get("train_loss")),
        number_text(progress.get("val_spearman")),
        best,
        test,
        duration_text(progress.get("eta_s")) if state == "running" else "-",
        f"{duration_text(max(now - progress['updated'], 0))} ago",
    )


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows aligned in columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def main(argv: Sequence[str]) -> int:
    options = parse(StatusConfig, argv, prog="python -m launch.status", description=__doc__.splitlines()[0])
    runs_dir = options.runs_dir or Path(os.environ.get("DEEPSPORTS_RUNS", "./runs"))
    if not runs_dir.is_dir():
        raise UserError(f"--runs_dir {runs_dir} is no folder: give the folder that holds the runs")
    folders = sorted(p for p in runs_dir.iterdir() if (p / "config.json").exists() or (p / "jobs").is_dir())
    unknown: list[str] = []
    jobs: dict[str, QueuedJob] = {}
    try:
        jobs = queue()
    except SlurmError as error:
        unknown.append(f"jobs that wait or run: {error}")
    accounting = not unknown
    if accounting:
        try:
            finished_state("1")
        except SlurmError as error:
            accounting = False
            unknown.append(f"how jobs ended: {error}")
    print(table([HEADER, *(run_row(folder, jobs, accounting, time.time()) for folder in folders)]))
    shown = {last_job(folder) for folder in folders}
    for job in jobs.values():
        if job.job_id not in shown:
            print(f"job {job.job_id} {job.name}: {job.state} {job.reason} {job.elapsed}/{job.limit} {job.nodes}")
    for line in unknown:
        print(f"not known, {line}")
    return 0


if __name__ == "__main__":
    run(main)
