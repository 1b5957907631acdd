"""Runs and jobs in one table: what runs, how far it is, how good it is, what went wrong.

    python -m launch.status [--watch] [--runs_dir runs]
    python -m launch.status logs RUN            follow the log of its newest job
    python -m launch.status cancel RUN          let it save, then end it

RUN is a name in the table, such as timesformer, or sweep/point.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_preparation.cli import UserError, first_line, flag, parse, run
from launch import slurm
from launch.config import site_environment
from launch.progress import duration_text, number_text
from launch.slurm import EndedJob, QueuedJob, SlurmError
from training.run_folder import RunFolder, read_json

_QUIET_S = 600  # a run that says nothing for so long has probably stopped
_STOP_S = 180  # how long a job that was told to stop may take to save before it is cancelled all the same
_TAIL_BYTES = 64 * 1024

# name and importance of each column: where the terminal is narrow, the least important ones are left out
COLUMNS = {
    "RUN": 0, "STATE": 1, "JOB": 5, "NODES": 14, "TIME": 8, "EPOCH": 2, "STEP": 7, "DIVES/S": 10, "DATA": 11, "LOSS": 13,
    "RHO": 6, "BEST": 3, "TEST": 9, "ETA": 4, "RESTARTS": 12, "MEMORY": 15, "SEEN": 16,
}  # fmt: skip


@dataclass(frozen=True)
class StatusConfig:
    """List runs with their state, progress and results."""

    runs_dir: Path | None = flag(
        None, "Folder of all run folders; none takes DEEPSPORTS_RUNS of job_files/environment.sh."
    )
    watch: bool = flag(False, "Show the table again and again until Ctrl-C.")
    every: float = flag(5.0, "Seconds between two tables of --watch.", minimum=0.5)


@dataclass(frozen=True)
class CommandConfig:
    """The flags of logs and cancel."""

    runs_dir: Path | None = StatusConfig.__dataclass_fields__["runs_dir"]
    follow: bool = flag(True, "Go on showing what is added, until Ctrl-C; False ends where the log ends now.")


# ----------------------------------------------------------------------------------------------------------- looking


@dataclass
class Cluster:
    """What Slurm says; `unknown` holds what it could not say, a line each, and `queue_is_known` whether squeue answered."""

    queued: dict[str, QueuedJob] = field(default_factory=dict)
    queue_is_known: bool = True
    ended: dict[str, EndedJob] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)


def look_at_cluster(job_ids: set[str]) -> Cluster:
    """Ask squeue, and sacct about those jobs that are no longer queued."""
    found = Cluster()
    try:
        found.queued = slurm.queue()
    except SlurmError as error:
        found.queue_is_known = False
        found.unknown.append(f"which jobs wait or run: {error}")
    gone = sorted(job_ids - set(found.queued))
    try:
        if gone or found.unknown:
            found.ended = slurm.ended(gone)
    except SlurmError as error:
        found.unknown.append(f"how jobs ended: {error}")
    return found


def run_folders(runs_dir: Path) -> dict[str, RunFolder]:
    """All runs of a folder by name; the points of a sweep are called sweep/point."""

    def inside(folder: Path) -> Iterator[Path]:
        for path in sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")):
            if (path / "sweep.json").exists():
                yield from inside(path)
            elif (path / "config.json").exists() or last_job(path):
                yield path

    return {str(path.relative_to(runs_dir)): RunFolder(path) for path in inside(runs_dir)}


def last_job(folder: Path) -> str | None:
    """The newest job that has a folder in the run, or None."""
    jobs = [p for p in (folder / "jobs").glob("*") if re.fullmatch(r"\d+(_\d+)?", p.name) and p.is_dir()]
    return max(jobs, key=lambda p: p.stat().st_mtime).name if jobs else None


def process_is_gone(progress: Mapping[str, Any]) -> bool:
    """Whether a training without a job ran on this machine and does not any more."""
    if progress.get("job_id") is not None or progress.get("host") != socket.gethostname():
        return False
    return not is_a_training(progress.get("pid"))


def is_a_training(pid: object) -> bool:
    """Whether a process number of this machine is a training's: numbers are used again."""
    if not isinstance(pid, int) or pid <= 1:
        return False
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return any(word in words for word in (b"training.train", b"launch.job", b"submitit"))


def run_state(progress: Mapping[str, Any] | None, job: QueuedJob | None, ended: EndedJob | None, now: float) -> str:
    """What a person would call the run's state, from its own words and Slurm's."""
    if job is not None:
        return job.state.lower() if job.state != "PENDING" else f"pending ({job.reason})"
    how = ended.state.lower() if ended else ""
    if progress is None:
        return how or "no progress yet"
    if progress["state"] in ("finished", "failed"):
        return progress["state"]
    if how and how != "completed":
        return how
    if progress["state"] == "running":
        if process_is_gone(progress):
            return "killed"
        if now - progress["updated"] > _QUIET_S:
            return "silent"
    return progress["state"]


def log_files(folder: RunFolder, job_id: str | None) -> list[Path]:
    """What a job printed, then what its first rank logged, as far as they are there; without a job, what was started here."""
    if job_id is None:
        printed = sorted(folder.jobs_dir.glob("*_0_log.out"), key=lambda path: path.stat().st_mtime)[-1:]
        return [path for path in (*printed, folder.job_dir("local") / "rank0.log") if path.is_file()]
    printed = [where / "jobs" / f"{job_id}_0_log.out" for where in (folder.path, folder.path.parent)]
    try:
        if (path := slurm.output_file(job_id)) is not None:
            printed.append(path)
    except SlurmError:
        pass  # the controller has forgotten the job
    return [path for path in (*printed, folder.job_dir(job_id) / "rank0.log") if path.is_file()]


def last_error_line(folder: RunFolder, job_id: str | None) -> str:
    """The last line of a job's logs that speaks of an error; '' where none does."""
    for path in log_files(folder, job_id):
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
        speaking = [line for line in lines if re.search(r"error|Error|ERROR|[Oo]ut [Oo]f [Mm]emory", line)]
        own = [line for line in speaking if line.startswith("error: ")]  # the sentence that says what to mend
        others = [line for line in speaking if not line.startswith(("srun: ", "slurmstepd"))]
        if found := own or others or speaking:
            return found[-1].strip()
    return ""


# ----------------------------------------------------------------------------------------------------------- showing


def run_row(name: str, folder: RunFolder, cluster: Cluster, now: float) -> tuple[dict[str, str], str]:
    """(the cells of one run by column, its last error or ''). A damaged file is said, and ends nobody else's row."""
    try:
        cells, error = _cells(folder, cluster, now)
    except (UserError, KeyError, TypeError, ValueError, AttributeError) as damage:
        cells, error = (
            {"STATE": "damaged"},
            f"progress.json or summary.json of {folder.path} is damaged ({first_line(damage)})",
        )
    return {column: plain({"RUN": name, **cells}.get(column, "-")) for column in COLUMNS}, plain(error)


def plain(text: str) -> str:
    """The text in one line, without what would move a terminal's cursor, and of bearable length."""
    return "".join(c if c.isprintable() else " " for c in text[:2000])


def _cells(folder: RunFolder, cluster: Cluster, now: float) -> tuple[dict[str, str], str]:
    progress, summary, job_id = read_json(folder.progress_file), read_json(folder.summary_file), last_job(folder.path)
    job, ended = cluster.queued.get(job_id or ""), cluster.ended.get(job_id or "")
    state = run_state(progress, job, ended, now)
    place = job or ended
    cells = {
        "STATE": state,
        "JOB": job_id or "-",
        "NODES": place.nodes if place and place.nodes not in ("", "None assigned") else "-",
        "TIME": f"{place.elapsed}/{place.limit}" if place else "-",
        "TEST": number_text(summary["test"]["spearman"]) if summary else "-",
    }
    if progress is not None:
        p = progress
        cells |= {
            "EPOCH": f"{p['epoch']}/{p['epochs']}",
            "STEP": f"{p['step']}/{p['steps']}",
            "DIVES/S": number_text(p.get("dives_per_s"), 1),
            "DATA": "-" if p.get("data_share") is None else f"{p['data_share']:.0%}",
            "LOSS": number_text(p.get("train_loss")),
            "RHO": number_text(p.get("val_spearman")),
            "BEST": f"{number_text(p['best_spearman'])}@{p['best_epoch']}" if p["best_epoch"] else "-",
            "ETA": duration_text(p.get("eta_s")) if state == "running" else "-",
            "RESTARTS": str(p.get("restarts", 0)),
            "MEMORY": f"{number_text(p.get('peak_memory_gib'), 1)}G",
            "SEEN": f"{duration_text(max(now - p['updated'], 0))} ago",
        }
    well = state.startswith(("running", "pending", "finished", "completing", "interrupted", "cancelled", "no progress"))
    return cells, "" if well else (progress or {}).get("error") or last_error_line(folder, job_id)


def table(rows: Sequence[tuple[Mapping[str, str], str]], width: float) -> str:
    """The rows aligned in columns, as many as fit into `width` characters; errors on lines of their own below their rows."""
    shown = list(COLUMNS)
    widths = {c: max(len(c), *(len(cells[c]) for cells, _ in rows)) for c in COLUMNS}
    while sum(widths[c] + 2 for c in shown) - 2 > width and len(shown) > 2:
        shown.remove(max(shown, key=COLUMNS.__getitem__))
    room = width - sum(widths[c] + 2 for c in shown[1:])
    if widths["RUN"] > room:  # a long name gives way last
        widths["RUN"] = max(int(room), 12)

    def line(cells: Mapping[str, str]) -> str:
        fitted = (cut(cells[c], widths[c]).ljust(widths[c]) for c in shown)
        return "  ".join(fitted).rstrip()

    lines = [line({c: c for c in COLUMNS})]
    for cells, error in rows:
        lines.append(line(cells))
        if error:
            lines.append(cut(f"  └ {error}", width))
    if left_out := [c for c in COLUMNS if c not in shown]:
        lines.append(cut(f"(in a wider window: {', '.join(left_out)})", width))
    return "\n".join(lines)


def cut(text: str, width: float) -> str:
    """The text, or as much of it as fits, with an ellipsis in the middle: both ends of a name tell."""
    if len(text) <= width:
        return text
    half = (int(width) - 1) // 2
    return text[: int(width) - 1 - half] + "…" + (text[-half:] if half else "")


def overview(runs_dir: Path, width: float) -> str:
    """The whole screen: the table, jobs that belong to no run, what is not known."""
    runs = run_folders(runs_dir)
    jobs = {name: last_job(folder.path) for name, folder in runs.items()}
    cluster = look_at_cluster({job for job in jobs.values() if job})
    rows = [run_row(name, folder, cluster, time.time()) for name, folder in runs.items()]
    lines = [table(rows, width)] if rows else [f"No run in {runs_dir} yet."]
    for job in cluster.queued.values():
        if job.job_id not in jobs.values():
            words = (
                f"job {job.job_id} {job.name}: {job.state.lower()} ({job.reason}) {job.elapsed}/{job.limit} {job.nodes}"
            )
            lines.append(cut(words.rstrip(), width))
    lines += [cut(f"not known, {line}", width) for line in cluster.unknown]
    return "\n".join(lines)


def screen_width() -> float:
    """Characters of a line; no limit where nobody looks (a file, a pipe)."""
    if sys.stdout.isatty() or "COLUMNS" in os.environ:
        return shutil.get_terminal_size().columns
    return math.inf


# ----------------------------------------------------------------------------------------------------------- commands


def existing_runs_dir(given: Path | None) -> Path:
    runs_dir = given or Path(os.environ.get("DEEPSPORTS_RUNS") or site_environment()["DEEPSPORTS_RUNS"])
    if not runs_dir.is_dir():
        raise UserError(f"--runs_dir {runs_dir} is no folder: give the folder that holds the runs")
    return runs_dir


def named_run(runs_dir: Path, name: str) -> RunFolder:
    """
    Raises:
        UserError: there is no such run.
    """
    runs = run_folders(runs_dir)
    if name not in runs:
        raise UserError(f"no run '{name}' in {runs_dir}; there are: {', '.join(runs) or 'none'}")
    return runs[name]


def show_log(folder: RunFolder, follow: bool) -> int:
    job_id = last_job(folder.path)
    files = log_files(folder, job_id)
    if not files:
        raise UserError(f"{folder.path} has no log yet: its job has not started (python -m launch.status)")
    print(f"==> {files[0]} <==", flush=True)
    if not follow:
        print(files[0].read_text(errors="replace"), end="")
        return 0
    os.execvp("tail", ["tail", "-n", "200", "-F", str(files[0])])


def cancel_run(folder: RunFolder) -> int:
    """Tell the run to stop, wait until it has saved, and see that its job ends."""
    progress, job_id = read_json(folder.progress_file) or {}, last_job(folder.path)
    try:
        job = slurm.queue().get(job_id) if job_id else None
        if job is not None:
            if job.state == "RUNNING":
                slurm.cancel(job.job_id, signal="INT")
                print(f"job {job.job_id} is told to save and end", flush=True)
                deadline = time.monotonic() + _STOP_S
                while time.monotonic() < deadline and job.job_id in slurm.queue():
                    time.sleep(2)
            if job.job_id in slurm.queue():
                slurm.cancel(job.job_id)
            print(f"job {job.job_id} is cancelled; submit {folder.path.name} again to go on")
            return 0
    except SlurmError as error:
        raise UserError(f"the job cannot be cancelled ({error}): try again when Slurm answers") from None
    if (
        progress.get("state") == "running"
        and progress.get("job_id") is None
        and progress.get("host") == socket.gethostname()
        and is_a_training(progress.get("pid"))
    ):
        os.kill(progress["pid"], signal.SIGTERM)
        print(f"process {progress['pid']} is told to save and end; start it again to go on")
        return 0
    raise UserError(f"nothing of {folder.path} waits or runs: there is nothing to cancel")


def main(argv: Sequence[str]) -> int:
    if argv and argv[0] in ("logs", "cancel"):
        command, *rest = argv
        if not rest or rest[0].startswith("-"):
            raise UserError(f"name the run: python -m launch.status {command} RUN")
        options = parse(CommandConfig, rest[1:], prog=f"python -m launch.status {command} RUN")
        folder = named_run(existing_runs_dir(options.runs_dir), rest[0])
        return show_log(folder, options.follow) if command == "logs" else cancel_run(folder)
    about = f"{__doc__.splitlines()[0]} Besides: launch.status logs RUN follows a log, launch.status cancel RUN lets a run save and ends it."
    options = parse(StatusConfig, argv, prog="python -m launch.status", description=about)
    runs_dir = existing_runs_dir(options.runs_dir)
    if not options.watch:
        print(overview(runs_dir, screen_width()))
        return 0
    try:
        while True:
            text = overview(runs_dir, screen_width())
            clock = time.strftime("%H:%M:%S")
            print(f"\x1b[H\x1b[2J{clock}, every {options.every:g} s; Ctrl-C ends\n{text}", flush=True)
            time.sleep(options.every)
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    run(main)
