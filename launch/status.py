"""Runs and jobs in one table: what runs, how far it is, how good it is, what went wrong.

    python -m launch.status [PATTERN ...] [--state failed] [--last 10] [--watch] [--runs_dir runs]
    python -m launch.status logs RUN            follow the log of its newest job
    python -m launch.status cancel RUN          let it save, then end it

RUN is a name in the table, such as timesformer, or sweep/point. A PATTERN is a name, a sweep, or has * in it: 'rates/*seed-0'.
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

from data_preparation.common.command_line import flag, parse, parse_named, run
from data_preparation.common.errors import UserError, first_line
from launch import slurm
from launch.config import site_environment
from launch.job import OUTPUT, REFUSAL
from launch.progress import best_text, clock_text, duration_text, number_text, share_text, slurm_seconds
from launch.slurm import EndedJob, FailedJob, QueuedJob, SlurmError
from training.runtime.run_folder import RunFolder, read_json
from training.runtime.run_progress import RunProgress

_QUIET_S = 600  # a run that says nothing for so long has probably stopped
_STOP_S = 180  # how long a job that was told to stop may take to save before it is cancelled all the same
_TAIL_BYTES = 64 * 1024
_ERROR_LINES = 6  # of the window's width
_FAILED_SHOWN = 5  # jobs without a run that ended badly

# a job that waits for one of these reasons waits for ever
_NEVER_STARTS = {
    "PartitionConfig": "it asks for more than the nodes of the partition have: cancel it, and ask for less (python -m launch.submit says what is too much)",
    "PartitionNodeLimit": "it asks for more nodes than the partition has or allows: cancel it, and ask for fewer",
    "PartitionTimeLimit": "it asks for more time than the partition allows: cancel it, and ask for less",
    "BadConstraints": "no node has what it asks for: cancel it, and ask for less",
    "DependencyNeverSatisfied": "the job that it waits for has failed: cancel it",
    "JobHeldUser": "it is held: scontrol release JOB lets it go on",
    "JobHeldAdmin": "it is held by an administrator: ask your site's support",
}

# states of runs that do something or are about to
ACTIVE = ("running", "starting", "pending", "configuring", "completing", "suspended")

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
    state: tuple[str, ...] = flag(
        (), "Show the runs in these states only, such as running failed.", allowed="states of the table's STATE column"
    )
    last: int = flag(0, "Show so many runs only, the latest first; 0 shows all, by name.", minimum=0)


@dataclass(frozen=True)
class LogsConfig:
    """Follow the log of a run's newest job."""

    runs_dir: Path | None = StatusConfig.__dataclass_fields__["runs_dir"]
    follow: bool = flag(True, "Go on showing what is added, until Ctrl-C; False ends where the log ends now.")


@dataclass(frozen=True)
class CancelConfig(LogsConfig):
    """Let a run save, then end its job; the command that started it goes on. (--follow is for logs only.)"""


# ----------------------------------------------------------------------------------------------------------- looking


@dataclass
class Cluster:
    """What Slurm says; `unknown` holds what it could not say, a line each, and `queue_is_known` whether squeue answered."""

    queued: dict[str, QueuedJob] = field(default_factory=dict)
    queue_is_known: bool = True
    ended: dict[str, EndedJob] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)


def query_slurm(job_ids: set[str]) -> Cluster:
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


def ran_here(progress: RunProgress) -> bool:
    """Whether a training was started on this machine without a job."""
    return progress.job_id is None and progress.host == socket.gethostname()


def is_a_training(pid: object) -> bool:
    """Whether a process number of this machine is a training's: numbers are used again."""
    if not isinstance(pid, int) or pid <= 1:
        return False
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return any(word in words for word in (b"training.train", b"launch.job", b"submitit"))


def run_state(progress: RunProgress | None, job: QueuedJob | None, ended: EndedJob | None, now: float) -> str:
    """What a person would call the run's state, from its own words and Slurm's."""
    if job is not None:
        if job.state == "PENDING":
            return f"pending ({job.reason})"
        began = now - (slurm_seconds(job.elapsed) or 0)
        # what the start before has left tells nothing of this one
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
        if ran_here(progress) and not is_a_training(progress.pid):
            return "killed"
        if now - progress.updated > _QUIET_S:
            return "silent"
    return progress.state


def log_files(folder: RunFolder, job_id: str | None) -> list[Path]:
    """What a job printed, then what its first rank logged, as far as they are there; without a job, what was started here."""
    if job_id is None:
        printed = sorted(folder.jobs_dir.glob("*_0_log.out"), key=lambda path: path.stat().st_mtime)[-1:]
        return [path for path in (*printed, folder.job_dir("local") / "rank0.log") if path.is_file()]
    printed = [where / "jobs" / f"{job_id}_0_log.out" for where in (folder.path, folder.path.parent)]
    printed.append(folder.job_dir(job_id) / OUTPUT)
    if not any(path.is_file() for path in printed):
        with suppress(SlurmError):  # the controller has forgotten the job
            if (path := slurm.output_file(job_id)) is not None:
                printed.append(path)
    return [path for path in (*printed, folder.job_dir(job_id) / "rank0.log") if path.is_file()]


def last_error_line(folder: RunFolder, job_id: str | None) -> str:
    """The last line of a job's logs that speaks of an error; '' where none does."""
    return next(filter(None, map(error_line, log_files(folder, job_id))), "")


def error_line(path: Path) -> str:
    """The last line of a file that speaks of an error; '' where none does."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    speaking = [line for line in lines if re.search(r"error|Error|ERROR|[Oo]ut [Oo]f [Mm]emory", line)]
    own = [line for line in speaking if line.startswith("error: ")]  # the sentence that says what to fix
    others = [line for line in speaking if not line.startswith(("srun: ", "slurmstepd"))]
    found = own or others or speaking
    return found[-1].strip() if found else ""


def refusal(folder: RunFolder, job_id: str | None) -> str:
    """Why the last start of a job was refused (launch.job begin), or ''."""
    try:
        return (folder.job_dir(job_id or "") / REFUSAL).read_text(errors="replace").strip()
    except OSError:
        return ""


def jobs_without_run(runs_dir: Path, runs: Mapping[str, RunFolder]) -> list[FailedJob]:
    """The user's jobs of this project that ended badly within a day and left no run, such as those of
    `sbatch job_files/train_model.job` with a wrong flag, oldest first.

    Raises:
        SlurmError: Slurm does not tell.
    """
    known = {path.name for folder in runs.values() for path in folder.jobs_dir.glob("*")}
    failed = slurm.failed_today()
    return [job for job in failed if job.name.startswith("deepsports-") and job.job_id not in known]


def output_of(job: FailedJob, runs_dir: Path) -> Path | None:
    """The output file of a failed job: where Slurm says, else where the job files and the pipeline put it."""
    if job.output is not None and job.output.is_file():
        return job.output
    name = f"*-{job.job_id}.out"
    places = (job.folder / "slurm_logs", job.folder)
    found = [path for place in places for path in place.glob(name)] + list(runs_dir.glob(f"*/pipeline/{name}"))
    return found[0] if found else None


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
        "TEST": number_text(summary["test"]["spearman"]) if summary else "-",
    }
    if progress is not None:
        p = progress
        cells |= {
            "EPOCH": share_text(p.epoch, p.epochs),
            "STEP": share_text(p.step, p.steps),
            "DIVES/S": number_text(p.dives_per_s, 1),
            "DATA": "-" if p.data_share is None else f"{p.data_share:.0%}",
            "LOSS": number_text(p.train_loss),
            "RHO": number_text(p.val_spearman),
            "BEST": best_text(p),
            "ETA": duration_text(p.eta_s) if state == "running" else "-",
            "RESTARTS": str(p.restarts),
            "MEMORY": "-" if p.peak_memory_gib is None else f"{number_text(p.peak_memory_gib, 1)}G",
            "SEEN": f"{duration_text(max(now - p.updated, 0))} ago",
        }
    if job is not None and job.state == "PENDING" and job.reason in _NEVER_STARTS:
        return cells, _NEVER_STARTS[job.reason]
    well = state.startswith((*ACTIVE, "finished", "interrupted", "cancelled", "no progress"))
    return cells, "" if well else refused or (progress and progress.error) or last_error_line(folder, job_id)


def table(rows: Sequence[tuple[Mapping[str, str], str]], width: float, height: float = math.inf) -> str:
    """The rows aligned in columns, as many columns as fit into `width` characters and as many rows as fit into `height`
    lines, the header always; errors on lines of their own below their rows."""
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

    most = _ERROR_LINES if height == math.inf else 2
    blocks = [[line(cells), *error_lines(error, width, most)] for cells, error in rows]
    foot = []
    if (left_out := [c for c in COLUMNS if c not in shown]) and height > 8:
        foot.append(cut(f"(in a wider window: {', '.join(left_out)})", width))
    blocks, more = fitting_blocks(blocks, height - 1 - len(foot))
    if more:
        foot.insert(0, cut(f"... {more} more row{'s' if more > 1 else ''} (a higher window, --state or --last)", width))
    return "\n".join([line({c: c for c in COLUMNS}), *(text for block in blocks for text in block), *foot])


def error_lines(error: str, width: float, most: int) -> list[str]:
    """An error below its row, wrapped; of a long one the middle is left out, since the cause may stand at either end."""
    if not error or width == math.inf:
        return [f"  └ {error}"] if error else []
    width = max(int(width), 12)
    for length in range(most * (width - 4), 0, -1):  # words do not fill the lines
        lines = textwrap.wrap(
            cut(error, length), width, initial_indent="  └ ", subsequent_indent="    ", break_on_hyphens=False
        )
        if len(lines) <= most:
            return lines
    return []


def fitting_blocks(blocks: Sequence[list[str]], height: float) -> tuple[Sequence[list[str]], int]:
    """(the first blocks of lines, as many as fit, how many are left out); a line is kept for saying that some are."""
    if sum(map(len, blocks)) <= height:
        return blocks, 0
    shown: list[list[str]] = []
    for block in blocks:
        if sum(map(len, shown)) + len(block) > height - 1:
            break
        shown.append(block)
    return shown, len(blocks) - len(shown)


def cut(text: str, width: float) -> str:
    """The text, or as much of it as fits, with an ellipsis in the middle: both ends of a name tell."""
    if len(text) <= width:
        return text
    half = (int(width) - 1) // 2
    return text[: int(width) - 1 - half] + "…" + (text[-half:] if half else "")


@dataclass(frozen=True)
class Row:
    """A run in the table; `moved` is when it last did something, in seconds since 1970."""

    cells: Mapping[str, str]
    error: str
    moved: float

    @property
    def state(self) -> str:
        return self.cells["STATE"]


def last_change(folder: RunFolder) -> float:
    """When a run last wrote its progress or got a job."""
    times = [0.0]
    for path in (folder.progress_file, folder.jobs_dir, folder.config_file):
        with suppress(OSError):
            times.append(path.stat().st_mtime)
    return max(times)


def latest_first(rows: Sequence[Row]) -> list[Row]:
    """Those that wait or run, then the others, the latest first."""
    return sorted(rows, key=lambda row: (not row.state.startswith(ACTIVE), -row.moved))


def chosen_runs(runs: Mapping[str, RunFolder], patterns: Sequence[str]) -> dict[str, RunFolder]:
    """The runs that one of the patterns names: a name, a sweep's name for all its points, or a pattern with '*'.

    Raises:
        UserError: patterns that name no run.
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
    """The whole screen: the table, jobs that belong to no run, what is not known. By name, unless `last` asks for the latest
    or they do not fit into `height` lines."""
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
    others += [cut(f"not known, {line}", width) for line in cluster.unknown]
    if not rows:
        none = (
            f"No run is {' or '.join(states)}; there are: {', '.join(present)}."
            if runs
            else f"No run in {runs_dir} yet."
        )
        return "\n".join([cut(none, width), *few_lines(others, height - 1, width)])
    pairs = [(row.cells, row.error) for row in rows]
    whole = table(pairs, width, math.inf).count("\n") + 1
    others = few_lines(others, max(height - whole, height // 4), width)
    room = height - len(others)
    if whole > room and not last:
        pairs = [(row.cells, row.error) for row in latest_first(rows)]
    return "\n".join([table(pairs, width, math.inf if whole <= room else room), *others])


def few_lines(lines: list[str], most: float, width: float) -> list[str]:
    """The first lines, and how many more there are where they are more than `most`."""
    if len(lines) <= most:
        return lines
    if most < 1:
        return []
    most = int(most)
    return [*lines[: most - 1], cut(f"... {len(lines) - most + 1} more lines", width)]


def other_jobs(runs_dir: Path, runs: Mapping[str, RunFolder], cluster: Cluster, width: float) -> list[str]:
    """Lines about jobs that belong to no run: those that wait or run, and those of this project that ended badly today."""
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
    except SlurmError:  # said already where Slurm does not answer
        return lines
    for job in reversed(failed[-_FAILED_SHOWN:]):
        output = output_of(job, runs_dir)
        lines.append(cut(f"job {job.job_id} {job.name}: {job.state.lower()} after {clock_text(job.elapsed)}", width))
        error = error_line(output) if output else ""
        where = f"its output: {output}" if output else f"its output is not in {job.folder}"
        lines += error_lines(plain(f"{error} ({where})" if error else where), width, _ERROR_LINES)
    if len(failed) > _FAILED_SHOWN:
        lines.append(f"... {len(failed) - _FAILED_SHOWN} more jobs failed today (sacct --state=FAILED)")
    return lines


def screen_width() -> float:
    """Characters of a line; no limit where nobody looks (a file, a pipe)."""
    if sys.stdout.isatty() or "COLUMNS" in os.environ:
        return shutil.get_terminal_size().columns
    return math.inf


def screen_height() -> float:
    """Lines of the window; no limit where nobody looks."""
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
    progress, job_id = folder.progress(), last_job(folder.path)
    if job_id and end_jobs({job_id}):
        print(f"job {job_id} is cancelled; submit {folder.path.name} again to go on")
        return 0
    if progress is not None and progress.state == "running" and ran_here(progress) and is_a_training(progress.pid):
        os.kill(progress.pid, signal.SIGTERM)
        print(f"process {progress.pid} is told to save and end; start it again to go on")
        return 0
    raise UserError(f"nothing of {folder.path} waits or runs: there is nothing to cancel")


def end_jobs(job_ids: set[str]) -> list[str]:
    """Let jobs save and end; returns those that waited or ran.

    Raises:
        UserError: Slurm does not answer.
    """
    try:
        jobs = [job for job in slurm.queue().values() if job.job_id in job_ids]
        # those that wait first: a task of an array that ends would let the next one start
        waiting = [job.job_id for job in jobs if job.state == "PENDING"]
        if waiting:
            slurm.cancel(*waiting)
        running = {job.job_id for job in jobs if job.state == "RUNNING"}
        if running:
            slurm.cancel(*sorted(running), signal="INT")
            print(f"{_jobs_text(running)} told to save and end", flush=True)
        deadline = time.monotonic() + _STOP_S
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
    """(patterns, flags) of a command line: words before the first flag, and what stands after --watch that is no switch."""
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
        name, options = parse_named(options_of, rest, prog=f"python -m launch.status {command} RUN")
        folder = named_run(existing_runs_dir(options.runs_dir), name)
        return show_log(folder, options.follow) if command == "logs" else cancel_run(folder)
    about = f"{__doc__.splitlines()[0]} Names or patterns of runs ('rates/*seed-0'), which stand first, show those only. Besides: launch.status logs RUN follows a log, launch.status cancel RUN lets a run save and ends it."
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
            title = cut(f"{time.strftime('%H:%M:%S')}, every {options.every:g} s; Ctrl-C ends", screen_width())
            print(
                f"\x1b[H\x1b[2J{title}\n{text}", end="", flush=True
            )  # a line end would move the title out of the window
            time.sleep(options.every)
    except KeyboardInterrupt:
        print()
        return 0


if __name__ == "__main__":
    run(main)
