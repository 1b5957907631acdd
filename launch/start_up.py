"""Where the time from sbatch to the first step goes, for each start of a job.

    python -m launch.start_up --run RUN [--job ID] [--runs_dir runs]

The times come from Slurm, from the start that launch.job begin records, and from the log of rank 0. They compare clocks of
several machines, and Slurm's are whole seconds, so a short part may be wrong by a second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from data_preparation.common.command_line import flag, parse, run
from data_preparation.common.errors import UserError
from launch import slurm
from launch.job import recorded_starts
from launch.slurm import JobTimes, SlurmError
from launch.status import existing_runs_dir, last_job, named_run
from training.runtime.start_up import parts_in

COLUMNS = {
    "HELD": "the job was submitted (or requeued) until it could start: dependencies, and Slurm's pause before a restart",
    "QUEUE": "it waited for nodes",
    "SCRIPT": "the batch script until launch.job begin: environment.sh, and at the first start the copy of the code",
    "SRUN": "from there until the process of rank 0 started: srun, and Slurm's answer to the job's comment",
    "PROCESS": "from there to the end of the first step, by part in the last column",
    "TOTAL": "all of it",
}
_NO_SLURM = "HELD, QUEUE, SCRIPT and TOTAL of start {} are unknown: {}"
_NO_STEP = "SRUN, PROCESS and TOTAL of start {} are unknown: the log of rank 0 shows no first step (it ended before, is not there yet, or --loglevel hides it)"


@dataclass(frozen=True)
class StartUpConfig:
    """Print where the time from sbatch to the first step went, for each start of a job."""

    run: str = flag("default", "Name of the run, as python -m launch.status shows it.")
    job: str = flag("", "Job id; empty: the run's newest job.")
    runs_dir: Path | None = flag(None, "Folder that holds the runs. Default: DEEPSPORTS_RUNS of environment.sh.")


def first_steps(log: str) -> list[tuple[float, dict[str, float]]]:
    """(time of the end of the first step in seconds since the epoch, seconds of each part) of each start in rank 0's log."""
    found = []
    for line in log.splitlines():
        if (parts := parts_in(line)) is not None:
            with suppress(ValueError):  # a damaged line
                found.append((datetime.fromisoformat(line[:23].replace(",", ".")).timestamp(), parts))
    return found


def start_row(
    begun: float, until: float, submissions: Sequence[JobTimes], steps: Sequence[tuple[float, Mapping[str, float]]]
) -> dict[str, str]:
    """The cells of a start whose launch.job begin ran at `begun`; the next start's ran at `until`. Unknown cells are "-"."""
    times = max((times for times in submissions if times.started <= begun + 1), key=lambda t: t.started, default=None)
    end, parts = next(((end, parts) for end, parts in steps if begun <= end < until), (None, {"all": 0.0}))
    seconds: dict[str, float | None] = dict.fromkeys(COLUMNS)
    if times is not None:
        eligible = min(times.eligible, times.started)  # a requeued job may have that of its next start here
        seconds["HELD"] = eligible - times.submitted
        seconds["QUEUE"] = times.started - eligible
        seconds["SCRIPT"] = begun - times.started
    if end is not None:
        seconds["SRUN"] = end - parts["all"] - begun
        seconds["PROCESS"] = parts["all"]
    if times is not None and end is not None:
        seconds["TOTAL"] = end - times.submitted
    cells = {name: "-" if value is None else f"{value:.1f}" for name, value in seconds.items()}
    return {**cells, "PARTS": ", ".join(f"{part} {s:.2f}" for part, s in parts.items() if part != "all") or "-"}


def report(rows: Mapping[int, Mapping[str, str]], no_slurm: str) -> str:
    """The rows, by number of the start, as a table in seconds, with a sentence about what is unknown. `no_slurm` says why
    Slurm's times are missing."""
    lines = [{"START": str(start), **cells} for start, cells in rows.items()]
    names = list(lines[0])
    widths = {name: max(len(name), *(len(line[name]) for line in lines)) for name in names[:-1]}

    def text(cells: Mapping[str, str]) -> str:
        return "  ".join([*(cells[name].rjust(width) for name, width in widths.items()), cells["PARTS"]])

    def without(column: str) -> str:
        return ", ".join(line["START"] for line in lines if line[column] == "-")

    unknown = [_NO_SLURM.format(starts, no_slurm)] if (starts := without("QUEUE")) else []
    unknown += [_NO_STEP.format(starts)] if (starts := without("PROCESS")) else []
    return "\n".join(map(str.rstrip, [text({name: name for name in names}), *map(text, lines), *unknown]))


def main(argv: Sequence[str]) -> int:
    about = f"{__doc__.splitlines()[0]} Columns, in seconds: {'; '.join(f'{n}: {t}' for n, t in COLUMNS.items())}."
    options = parse(StartUpConfig, argv, prog="python -m launch.start_up", description=about)
    folder = named_run(existing_runs_dir(options.runs_dir), options.run)
    job_id = options.job or last_job(folder.path) or ""
    job = folder.job_dir(job_id)
    starts = recorded_starts(job / "starts.jsonl") if job_id else []
    if not starts:
        what = f"job {job_id} of {folder.path} has not started" if job_id else f"{folder.path} has no Slurm job"
        raise UserError(f"{what}: give a run or --job that has, as python -m launch.status shows them")
    submissions, no_slurm = [], "Slurm has forgotten it"
    try:
        submissions = slurm.job_times(job_id)
    except SlurmError as error:
        no_slurm = f"Slurm does not tell ({error})"
    log = job / "rank0.log"
    steps = first_steps(log.read_text(errors="replace") if log.exists() else "")
    ends = [*(start["time"] for start in starts[1:]), float("inf")]
    rows = {s["restart"]: start_row(s["time"], end, submissions, steps) for s, end in zip(starts, ends, strict=True)}
    print(report(rows, no_slurm))
    return 0


if __name__ == "__main__":
    run(main)
