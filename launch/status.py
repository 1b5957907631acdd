"""A table of runs and jobs with their states, progress, scores and errors.

    python -m launch.status [PATTERN ...] [--state failed] [--last 10] [--watch] [--runs_dir runs]
    python -m launch.status logs RUN            follow the log of its newest job
    python -m launch.status cancel RUN          let it save, then cancel its job

RUN is a name in the table, such as timesformer or sweep/point. A PATTERN is a RUN, a sweep, or contains *: 'rates/*seed-0'.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import shutil
import signal
import socket
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from data_preparation.common.command_line import flag, parse, parse_named, run
from data_preparation.common.errors import UserError, first_line
from launch import health, slurm
from launch.config import site_environment
from launch.job import OUTPUT, REFUSAL
from launch.progress import (
    best_text,
    clock_text,
    duration_text,
    fraction_text,
    number_text,
    slurm_seconds,
    validation_text,
)
from launch.slurm import EndedJob, FailedJob, QueuedJob, SlurmError
from training.runtime.run_folder import RunFolder, read_json
from training.runtime.run_progress import RunProgress
from training.tasks import DEFAULT, task_of

_SILENT_S = 600  # a run without progress for so long has probably died
_SAVE_S = 180  # time to save after the signal, before a job is cancelled anyway
_TAIL_BYTES = 64 * 1024
_MAX_ERROR_LINES = 6
_MAX_FAILED_JOBS = 5  # failed jobs without a run folder

# a job that is pending for one of these reasons never starts
_NEVER_STARTS = {
    "PartitionConfig": "it requests more than the nodes of the partition have: cancel it, and request less (python -m launch.submit shows what is too much)",
    "PartitionNodeLimit": "it requests more nodes than the partition has or allows: cancel it, and request fewer",
    "PartitionTimeLimit": "it requests more time than the partition allows: cancel it, and request less",
    "BadConstraints": "no node has what it requests: cancel it, and request less",
    "DependencyNeverSatisfied": "the job that it depends on has failed: cancel it",
    "JobHeldUser": "it is held: release it with scontrol release JOB",
    "JobHeldAdmin": "it is held by an administrator: ask your site's support",
}

# states of runs that are running or will run
ACTIVE = ("running", "starting", "pending", "configuring", "completing", "suspended")

# columns with their priority: a narrow terminal shows those with the lowest numbers
COLUMNS = {
    "RUN": 0, "STATE": 1, "JOB": 5, "NODES": 14, "TIME": 8, "EPOCH": 2, "STEP": 7, "DIVES/S": 10, "DATA": 11, "LOSS": 13,
    "VAL": 6, "BEST": 3, "TEST": 9, "ETA": 4, "RESTARTS": 12, "MEMORY": 15, "SEEN": 16,
}  # fmt: skip


_RUNS_DIR_HELP = "Folder of all run folders; none: DEEPSPORTS_RUNS in job_files/environment.sh."


@dataclass(frozen=True)
class StatusConfig:
    """List runs with their states, progress and results."""

    runs_dir: Path | None = flag(None, _RUNS_DIR_HELP)
    watch: bool = flag(False, "Refresh the table until Ctrl-C.")
    every: float = flag(5.0, "Seconds between two refreshes of --watch.", minimum=0.5)
    state: tuple[str, ...] = flag(
        (), "Show only runs in these states, such as running failed.", allowed="states of the table's STATE column"
    )
    last: int = flag(0, "Show only so many runs, the latest first; 0: all, by name.", minimum=0)


@dataclass(frozen=True)
class LogsConfig:
    """Follow the log of a run's newest job."""

    runs_dir: Path | None = flag(None, _RUNS_DIR_HELP)
    follow: bool = flag(True, "Follow the log until Ctrl-C; False: print it and exit.")


@dataclass(frozen=True)
class CancelConfig(LogsConfig):
    """Let a run save, then cancel its job; the command that started the run resumes it. (--follow is for logs only.)"""


# ----------------------------------------------------------------------------------------------------------- reading


@dataclass
class Cluster:
    """The answers of squeue and sacct. `unknown` has a line for each command that failed."""

    queued: dict[str, QueuedJob] = field(default_factory=dict)
    queue_is_known: bool = True
    ended: dict[str, EndedJob] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)


def query_slurm(job_ids: set[str]) -> Cluster:
    """Run squeue, and sacct for those of the jobs that are no longer queued."""
    found = Cluster()
    try:
        found.queued = slurm.queue()
    except SlurmError as error:
        found.queue_is_known = False
        found.unknown.append(f"which jobs are pending or running: {error}")
    ended = sorted(job_ids - set(found.queued))
    try:
        if ended or found.unknown:
            found.ended = slurm.ended(ended)
    except SlurmError as error:
        found.unknown.append(f"how jobs ended: {error}")
    return found


def run_folders(runs_dir: Path) -> dict[str, RunFolder]:
    """All runs in a folder by name; the points of a sweep are named sweep/point."""

    def inside(folder: Path) -> Iterator[Path]:
        for path in sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")):
            if (path / "sweep.json").exists():
                yield from inside(path)
            elif (path / "config.json").exists() or last_job(path):
                yield path

    return {str(path.relative_to(runs_dir)): RunFolder(path) for path in inside(runs_dir)}


def last_job(folder: Path) -> str | None:
    """The id of the newest job with a folder in the run, or None."""
    jobs = [p for p in (folder / "jobs").glob("*") if re.fullmatch(r"\d+(_\d+)?", p.name) and p.is_dir()]
    return max(jobs, key=lambda p: p.stat().st_mtime).name if jobs else None


def ran_on_this_machine(progress: RunProgress) -> bool:
    """Whether a training runs or ran on this machine without a job."""
    return progress.job_id is None and progress.host == socket.gethostname()


def is_a_training(pid: object) -> bool:
    """Whether a process id of this machine belongs to a training: the system reuses ids."""
    if not isinstance(pid, int) or pid <= 1:
        return False
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return any(word in words for word in (b"training.train", b"launch.job", b"submitit"))


def run_state(progress: RunProgress | None, job: QueuedJob | None, ended: EndedJob | None, now: float) -> str:
    """The state of a run, from its progress.json and Slurm's answers; `now` is in seconds since 1970."""
    if job is not None:
        if job.state == "PENDING":
            return f"pending ({job.reason})"
        began = now - (slurm_seconds(job.elapsed) or 0)
        # progress.json may be from an earlier start of the job
        is_starting = job.state == "RUNNING" and (progress is None or progress.updated < began)
        return "starting" if is_starting else job.state.lower()
    how = ended.state.lower() if ended else ""
    if progress is None:
        return how or "no progress yet"
    if progress.state in ("finished", "failed"):
        return progress.state
    if how and how != "completed":
        return how
    if progress.state == "running":
        if ran_on_this_machine(progress) and not is_a_training(progress.pid):
            return "killed"
        if now - progress.updated > _SILENT_S:
            return "silent"
    return progress.state


def log_files(folder: RunFolder, job_id: str | None) -> list[Path]:
    """The existing log files of a job: its output, then the log of rank 0. Without a job id, those of a local training."""
    if job_id is None:
        printed = sorted(folder.jobs_dir.glob("*_0_log.out"), key=lambda path: path.stat().st_mtime)[-1:]
        return [path for path in (*printed, folder.job_dir("local") / "rank0.log") if path.is_file()]
    printed = [where / "jobs" / f"{job_id}_0_log.out" for where in (folder.path, folder.path.parent)]
    printed.append(folder.job_dir(job_id) / OUTPUT)
    if not any(path.is_file() for path in printed):
        with suppress(SlurmError):  # Slurm has forgotten the job
            if (path := slurm.output_file(job_id)) is not None:
                printed.append(path)
    return [path for path in (*printed, folder.job_dir(job_id) / "rank0.log") if path.is_file()]


def last_error_line(folder: RunFolder, job_id: str | None) -> str:
    """The last line about an error in a job's logs; '' if there is none."""
    return next(filter(None, map(error_line, log_files(folder, job_id))), "")


def error_line(path: Path) -> str:
    """The last line about an error in a file; '' if there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    about_errors = [line for line in lines if re.search(r"error|Error|ERROR|[Oo]ut [Oo]f [Mm]emory", line)]
    own = [line for line in about_errors if line.startswith("error: ")]  # the project's own errors name the fix
    others = [line for line in about_errors if not line.startswith(("srun: ", "slurmstepd"))]
    found = own or others or about_errors
    return found[-1].strip() if found else ""


def refusal(folder: RunFolder, job_id: str | None) -> str:
    """Why the last start of a job was refused (launch.job begin), or ''."""
    try:
        return (folder.job_dir(job_id or "") / REFUSAL).read_text(errors="replace").strip()
    except OSError:
        return ""


def jobs_without_run(runs_dir: Path, runs: Mapping[str, RunFolder]) -> list[FailedJob]:
    """The user's jobs of this project that failed within a day and have no run folder, oldest first: for example after a
    wrong flag of `sbatch job_files/train_model.job`.

    Raises:
        SlurmError: neither sacct nor scontrol answers.
    """
    known = {path.name for folder in runs.values() for path in folder.jobs_dir.glob("*")}
    failed = slurm.failed_today()
    return [job for job in failed if job.name.startswith("deepsports-") and job.job_id not in known]


def output_of(job: FailedJob, runs_dir: Path) -> Path | None:
    """The output file of a failed job: the one that Slurm names, or the one in the folders that this project uses."""
    if job.output is not None and job.output.is_file():
        return job.output
    name = f"*-{job.job_id}.out"
    places = (job.folder / "slurm_logs", job.folder)
    found = [path for place in places for path in place.glob(name)] + list(runs_dir.glob(f"*/pipeline/{name}"))
    return found[0] if found else None


# ----------------------------------------------------------------------------------------------------------- table


def run_row(name: str, folder: RunFolder, cluster: Cluster, now: float) -> tuple[dict[str, str], str]:
    """(cells by column, last error or '') of a run. A damaged file becomes the error of this row."""
    try:
        cells, error = _cells(folder, cluster, now)
    except (UserError, KeyError, TypeError, ValueError, AttributeError) as damage:
        cells, error = (
            {"STATE": "damaged"},
            f"progress.json or summary.json of {folder.path} is damaged ({first_line(damage)})",
        )
    return {column: plain({"RUN": name, **cells}.get(column, "-")) for column in COLUMNS}, plain(error)


def plain(text: str) -> str:
    """The text in one line without control characters, at most 2000 characters."""
    return "".join(c if c.isprintable() else " " for c in text[:2000])


def _cells(folder: RunFolder, cluster: Cluster, now: float) -> tuple[dict[str, str], str]:
    progress, summary, job_id = folder.progress(), read_json(folder.summary_file), last_job(folder.path)
    job, ended = cluster.queued.get(job_id or ""), cluster.ended.get(job_id or "")
    refused = refusal(folder, job_id) if job is None else ""
    state = "failed" if refused else run_state(progress, job, ended, now)
    place = job or ended
    cells = {
        "STATE": state,
        "JOB": job_id or "-",
        "NODES": place.nodes if place and place.nodes not in ("", "None assigned") else "-",
        "TIME": f"{clock_text(place.elapsed)}/{clock_text(place.limit)}" if place else "-",
        "TEST": test_text(summary) if summary else "-",
    }
    if progress is not None:
        p = progress
        cells |= {
            "EPOCH": fraction_text(p.epoch, p.epochs),
            "STEP": fraction_text(p.step, p.steps),
            "DIVES/S": number_text(p.dives_per_s, 1),
            "DATA": "-" if p.data_share is None else f"{p.data_share:.0%}",
            "LOSS": number_text(p.train_loss),
            "VAL": validation_text(p),
            "BEST": best_text(p),
            "ETA": duration_text(p.eta_s) if state == "running" else "-",
            "RESTARTS": str(p.restarts),
            "MEMORY": "-" if p.peak_memory_gib is None else f"{number_text(p.peak_memory_gib, 1)}G",
            "SEEN": f"{duration_text(max(now - p.updated, 0))} ago",
        }
    if job is not None and job.state == "PENDING" and job.reason in _NEVER_STARTS:
        return cells, _NEVER_STARTS[job.reason]
    if job is not None and state != "running" and (sick := health.read_sick_nodes(folder.job_dir(job.job_id))):
        return cells, f"the job has left {health.sick_text(sick)}"
    if state == "running" and progress is not None and progress.slow_ranks:
        return cells, progress.slow_ranks
    has_no_error = state.startswith((*ACTIVE, "finished", "interrupted", "cancelled", "no progress"))
    return cells, "" if has_no_error else refused or (progress and progress.error) or last_error_line(folder, job_id)


def test_text(summary: Mapping[str, Any]) -> str:
    """The metric of the test split in summary.json that the run's task names first."""
    return number_text(summary["test"][task_of(summary.get("task", DEFAULT)).metric.key])


def table(rows: Sequence[tuple[Mapping[str, str], str]], width: float, height: float = math.inf) -> str:
    """The rows aligned in columns, each followed by its error. Columns and rows that do not fit into `width` characters and
    `height` lines are left out; the header is always shown."""
    shown = list(COLUMNS)
    widths = {c: max(len(c), *(len(cells[c]) for cells, _ in rows)) for c in COLUMNS}
    while sum(widths[c] + 2 for c in shown) - 2 > width and len(shown) > 2:
        shown.remove(max(shown, key=COLUMNS.__getitem__))
    left = width - sum(widths[c] + 2 for c in shown[1:])
    if widths["RUN"] > left:  # shorten names only if dropping columns is not enough
        widths["RUN"] = max(int(left), 12)

    def line(cells: Mapping[str, str]) -> str:
        fitted = (cut(cells[c], widths[c]).ljust(widths[c]) for c in shown)
        return "  ".join(fitted).rstrip()

    most = _MAX_ERROR_LINES if height == math.inf else 2
    blocks = [[line(cells), *error_lines(error, width, most)] for cells, error in rows]
    foot = []
    if (left_out := [c for c in COLUMNS if c not in shown]) and height > 8:
        foot.append(cut(f"(in a wider window: {', '.join(left_out)})", width))
    fitting, more = fitting_blocks(blocks, height - 1 - len(foot))
    if more:
        foot.insert(0, cut(f"... {more} more row{'s' if more > 1 else ''} (a higher window, --state or --last)", width))
    return "\n".join([line({c: c for c in COLUMNS}), *(text for block in fitting for text in block), *foot])


def error_lines(error: str, width: float, most: int) -> list[str]:
    """An error wrapped into at most `most` lines. A long one loses its middle, because the cause may be at either end."""
    if not error or width == math.inf:
        return [f"  └ {error}"] if error else []
    width = max(int(width), 12)
    for length in range(most * (width - 4), 0, -1):  # wrapped lines are not full
        lines = textwrap.wrap(
            cut(error, length), width, initial_indent="  └ ", subsequent_indent="    ", break_on_hyphens=False
        )
        if len(lines) <= most:
            return lines
    return []


def fitting_blocks(blocks: Sequence[list[str]], height: float) -> tuple[Sequence[list[str]], int]:
    """(the first blocks of lines that fit, number of those left out). One line stays free for a note about the others."""
    if sum(map(len, blocks)) <= height:
        return blocks, 0
    shown: list[list[str]] = []
    for block in blocks:
        if sum(map(len, shown)) + len(block) > height - 1:
            break
        shown.append(block)
    return shown, len(blocks) - len(shown)


def cut(text: str, width: float) -> str:
    """The text, shortened to `width` characters by an ellipsis in the middle."""
    if len(text) <= width:
        return text
    half = (int(width) - 1) // 2
    return text[: int(width) - 1 - half] + "…" + (text[-half:] if half else "")


@dataclass(frozen=True)
class Row:
    """A run in the table; `changed` is the time of its last change, in seconds since 1970."""

    cells: Mapping[str, str]
    error: str
    changed: float

    @property
    def state(self) -> str:
        return self.cells["STATE"]


def last_change(folder: RunFolder) -> float:
    """The time at which a run last wrote its progress or got a job, in seconds since 1970."""
    times = [0.0]
    for path in (folder.progress_file, folder.jobs_dir, folder.config_file):
        with suppress(OSError):
            times.append(path.stat().st_mtime)
    return max(times)


def latest_first(rows: Sequence[Row]) -> list[Row]:
    """Pending and running runs, then the others, the latest first."""
    return sorted(rows, key=lambda row: (not row.state.startswith(ACTIVE), -row.changed))


def chosen_runs(runs: Mapping[str, RunFolder], patterns: Sequence[str]) -> dict[str, RunFolder]:
    """The runs that match one of the patterns: a name, the name of a sweep for all its points, or a pattern with '*'.

    Raises:
        UserError: a pattern matches no run.
    """
    if not patterns:
        return dict(runs)

    def matches(name: str, pattern: str) -> bool:
        return fnmatchcase(name, pattern) or name.startswith(f"{pattern.rstrip('/')}/")

    faults = []
    for pattern in patterns:
        if not any(matches(name, pattern) for name in runs):
            close = difflib.get_close_matches(pattern, [*runs, "logs", "cancel"], 1)
            names = cut(", ".join(runs), 300) or "none"
            faults.append(
                f"no run is named '{pattern}'; " + (f"did you mean {close[0]}?" if close else f"there are: {names}")
            )
    if faults:
        raise UserError.of(faults)
    return {name: folder for name, folder in runs.items() if any(matches(name, pattern) for pattern in patterns)}


def overview(
    runs_dir: Path,
    width: float,
    height: float = math.inf,
    patterns: Sequence[str] = (),
    states: Sequence[str] = (),
    last: int = 0,
) -> str:
    """The text of the whole screen: the table, jobs without a run, commands that failed. Runs are sorted by name; with
    `last`, or if they do not fit into `height` lines, the latest are first."""
    every = run_folders(runs_dir)
    runs = chosen_runs(every, patterns)
    jobs = {name: last_job(folder.path) for name, folder in runs.items()}
    cluster = query_slurm({job for job in jobs.values() if job})
    now = time.time()
    rows = [Row(*run_row(name, folder, cluster, now), last_change(folder)) for name, folder in runs.items()]
    present = dict.fromkeys(row.state.split(" (")[0] for row in rows)
    rows = [row for row in rows if not states or row.state.lower().startswith(tuple(states))]
    if last:
        rows = latest_first(rows)[:last]
    others = [] if patterns or states or last else other_jobs(runs_dir, every, cluster, width)
    others += [cut(f"unknown: {line}", width) for line in cluster.unknown]
    if not rows:
        none = (
            f"No run is {' or '.join(states)}; there are: {', '.join(present)}."
            if runs
            else f"No run in {runs_dir} yet."
        )
        return "\n".join([cut(none, width), *first_lines(others, height - 1, width)])
    pairs = [(row.cells, row.error) for row in rows]
    whole = table(pairs, width, math.inf).count("\n") + 1
    others = first_lines(others, max(height - whole, height // 4), width)
    table_height = height - len(others)
    if whole > table_height and not last:
        pairs = [(row.cells, row.error) for row in latest_first(rows)]
    return "\n".join([table(pairs, width, math.inf if whole <= table_height else table_height), *others])


def first_lines(lines: list[str], most: float, width: float) -> list[str]:
    """The first `most` lines; if there are more, the last one says how many."""
    if len(lines) <= most:
        return lines
    if most < 1:
        return []
    most = int(most)
    return [*lines[: most - 1], cut(f"... {len(lines) - most + 1} more lines", width)]


def other_jobs(runs_dir: Path, runs: Mapping[str, RunFolder], cluster: Cluster, width: float) -> list[str]:
    """Lines about jobs without a run: pending and running ones, and those of this project that failed within a day."""
    known = {last_job(folder.path) for folder in runs.values()}
    lines = []
    for job in cluster.queued.values():
        if job.job_id not in known:
            times = f"{clock_text(job.elapsed)}/{clock_text(job.limit)}"
            words = f"job {job.job_id} {job.name}: {job.state.lower()} ({job.reason}) {times} {job.nodes}"
            lines.append(cut(words.rstrip(), width))
            lines += error_lines(_NEVER_STARTS.get(job.reason, ""), width, 2)
    try:
        failed = jobs_without_run(runs_dir, runs)
    except SlurmError:  # already reported
        return lines
    for ended in reversed(failed[-_MAX_FAILED_JOBS:]):
        output = output_of(ended, runs_dir)
        summary = f"job {ended.job_id} {ended.name}: {ended.state.lower()} after {clock_text(ended.elapsed)}"
        lines.append(cut(summary, width))
        error = error_line(output) if output else ""
        where = f"its output: {output}" if output else f"its output is not in {ended.folder}"
        lines += error_lines(plain(f"{error} ({where})" if error else where), width, _MAX_ERROR_LINES)
    if len(failed) > _MAX_FAILED_JOBS:
        lines.append(f"... {len(failed) - _MAX_FAILED_JOBS} more jobs failed today (sacct --state=FAILED)")
    return lines


def screen_width() -> float:
    """Characters in a line of the terminal; infinity for a file or a pipe."""
    if sys.stdout.isatty() or "COLUMNS" in os.environ:
        return shutil.get_terminal_size().columns
    return math.inf


def screen_height() -> float:
    """Lines of the terminal; infinity for a file or a pipe."""
    if sys.stdout.isatty() or "LINES" in os.environ:
        return shutil.get_terminal_size().lines
    return math.inf


# ----------------------------------------------------------------------------------------------------------- commands


def existing_runs_dir(given: Path | None) -> Path:
    runs_dir = given or Path(os.environ.get("DEEPSPORTS_RUNS") or site_environment()["DEEPSPORTS_RUNS"])
    if not runs_dir.is_dir():
        raise UserError(f"--runs_dir {runs_dir} is not a folder: give the folder that holds the runs")
    return runs_dir


def named_run(runs_dir: Path, name: str) -> RunFolder:
    """
    Raises:
        UserError: the run does not exist.
    """
    runs = run_folders(runs_dir)
    if name not in runs:
        raise UserError(f"no run '{name}' in {runs_dir}; there are: {', '.join(runs) or 'none'}")
    return runs[name]


def show_log(folder: RunFolder, follow: bool) -> int:
    job_id = last_job(folder.path)
    files = log_files(folder, job_id)
    if not files:
        raise UserError(f"{folder.path} has no log yet, because its job has not started: see python -m launch.status")
    print(f"==> {files[0]} <==", flush=True)
    if not follow:
        print(files[0].read_text(errors="replace"), end="")
        return 0
    os.execvp("tail", ["tail", "-n", "200", "-F", str(files[0])])


def cancel_run(folder: RunFolder) -> int:
    """Signal a run to stop, wait until it has saved, and cancel its job."""
    progress, job_id = folder.progress(), last_job(folder.path)
    if job_id and stop_jobs({job_id}):
        print(f"job {job_id} is cancelled; submit {folder.path.name} again to resume")
        return 0
    pid = progress.pid if progress and progress.state == "running" and ran_on_this_machine(progress) else None
    if pid is not None and is_a_training(pid):
        os.kill(pid, signal.SIGTERM)
        print(f"process {pid} is signaled to save and exit; start the training again to resume")
        return 0
    raise UserError(f"{folder.path} is neither pending nor running: there is nothing to cancel")


def stop_jobs(job_ids: set[str]) -> list[str]:
    """Let running jobs save, then cancel all; returns the ids of those that were pending or running.

    Raises:
        UserError: Slurm does not answer.
    """
    try:
        jobs = [job for job in slurm.queue().values() if job.job_id in job_ids]
        # pending ones first: when a task of an array ends, the next one would start
        waiting = [job.job_id for job in jobs if job.state == "PENDING"]
        if waiting:
            slurm.cancel(*waiting)
        running = {job.job_id for job in jobs if job.state == "RUNNING"}
        if running:
            slurm.cancel(*sorted(running), signal="INT")
            print(f"{_jobs_text(running)} signaled to save and exit", flush=True)
        deadline = time.monotonic() + _SAVE_S
        while running and time.monotonic() < deadline and running & set(slurm.queue()):
            time.sleep(2)
        if left := (job_ids & set(slurm.queue())) - set(waiting):
            slurm.cancel(*sorted(left))
    except SlurmError as error:
        raise UserError(f"the job cannot be cancelled ({error}): try again when Slurm answers") from None
    return [job.job_id for job in jobs]


def _jobs_text(job_ids: set[str]) -> str:
    return f"job {next(iter(job_ids))} is" if len(job_ids) == 1 else f"{len(job_ids)} jobs are"


def split_patterns(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """(patterns, flags) of a command line: patterns are the words before the first flag, and words after --watch."""
    words = list(argv)
    first = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    patterns, flags = words[:first], words[first:]
    if "--watch" in flags:
        after = flags.index("--watch") + 1
        while after < len(flags) and not flags[after].startswith("-") and flags[after].lower() not in ("true", "false"):
            patterns.append(flags.pop(after))
    return patterns, flags


def main(argv: Sequence[str]) -> int:
    if argv and argv[0] in ("logs", "cancel"):
        command, *rest = argv
        options_of = LogsConfig if command == "logs" else CancelConfig
        name, of_run = parse_named(options_of, rest, prog=f"python -m launch.status {command} RUN")
        folder = named_run(existing_runs_dir(of_run.runs_dir), name)
        return show_log(folder, of_run.follow) if command == "logs" else cancel_run(folder)
    about = f"{__doc__.splitlines()[0]} Give names or patterns of runs ('rates/*seed-0') first to show only those. See also: launch.status logs RUN follows a log, launch.status cancel RUN lets a run save and cancels its job."
    patterns, flags = split_patterns(argv)
    options = parse(StatusConfig, flags, prog="python -m launch.status", description=about)
    states = [word.lower() for words in options.state for word in words.split(",") if word]
    runs_dir = existing_runs_dir(options.runs_dir)
    if not options.watch:
        print(overview(runs_dir, screen_width(), math.inf, patterns, states, options.last))
        return 0
    try:
        while True:
            text = overview(runs_dir, screen_width(), screen_height() - 1, patterns, states, options.last)
            title = cut(f"{time.strftime('%H:%M:%S')}, every {options.every:g} s; Ctrl-C to stop", screen_width())
            print(
                f"\x1b[H\x1b[2J{title}\n{text}", end="", flush=True
            )  # a final line break would scroll the title out of the window
            time.sleep(options.every)
    except KeyboardInterrupt:
        print()
        return 0


if __name__ == "__main__":
    run(main)
