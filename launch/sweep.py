"""Train with several values of training flags: a job array, a run folder for each point, a table and a plot.

    python -m launch.sweep submit --name rates --grid learning_rate=1e-4,1e-5 batch_size=8,16 [launch flags] [-- training flags]
    python -m launch.sweep show rates
    python -m launch.sweep cancel rates         let all points save, then cancel them

--grid trains every combination; --points FILE has the flags of one point in each line. The same command again submits the
points that failed or are new, and no others. Validation compares the points: unless they differ only in seed and fold, none is
evaluated on the test split until you evaluate the one that you chose.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import math
import re
import shlex
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_preparation.common.command_line import collect_faults, flag, parse, parse_command, parse_named, run, to_argv
from data_preparation.common.errors import UserError, first_line
from data_preparation.common.files import reporting_write_errors, write_atomic
from launch import preflight, snapshot, submit
from launch.config import LaunchConfig, absolute
from launch.job import create_job_folder
from launch.progress import fraction_text, number_text
from launch.status import existing_runs_dir, last_job, query_slurm, run_state, stop_jobs
from training.config import TrainConfig, path_faults
from training.plots import draw_sweep
from training.runtime.run_folder import REPEATS, SWEEP_FILE, RunFolder, resume_faults, sweep_points, write_json
from training.runtime.run_progress import RunProgress
from training.tasks import DEFAULT, task_of
from training.tasks.base import Task

_IS_LAUNCH_FLAG = "it is a launch flag, and a sweep varies training flags"
_MAX_POINTS = 1000  # Slurm's default MaxArraySize is 1001

Point = dict[str, list[str]]  # training flag -> its words


@dataclass(frozen=True)
class SweepConfig(LaunchConfig):
    """Submit the points of a sweep that are neither done nor queued, as one job array."""

    name: str = flag("", "Name of the sweep: the folder of its runs in --runs_dir.")
    grid: tuple[str, ...] = flag(
        (), "Flags with their values, such as learning_rate=1e-4,1e-5 'topology=512 256,128': trains every combination.",
        allowed="flag=value,value",
    )  # fmt: skip
    points: Path | None = flag(
        None, "File with the training flags of one point in each line; relative to the repository."
    )
    parallel: int = flag(8, "Points that train at the same time.", minimum=1)

    def __post_init__(self) -> None:
        faults = []
        if not self.name:
            faults.append("--name is missing: give the sweep a name, such as rates")
        elif not re.fullmatch(r"[A-Za-z0-9_+-][A-Za-z0-9_.+-]*", self.name):
            faults.append(f"--name '{self.name}' is not a folder name: give letters, digits, '-', '_' and '.'")
        if self.cluster != "slurm":
            faults.append(
                "--cluster local does not fit a sweep, which is a job array of Slurm: drop it, or train the points one after another"
            )
        if not self.grid and self.points is None:
            faults.append("the sweep has no points: give --grid learning_rate=1e-4,1e-5 or --points FILE")
        if faults:
            raise UserError.of(faults)


@dataclass(frozen=True)
class ShowConfig:
    """Show a table and a plot of a sweep's points."""

    runs_dir: Path | None = flag(None, "Folder of all run folders; none: DEEPSPORTS_RUNS in job_files/environment.sh.")


@dataclass(frozen=True)
class CancelConfig(ShowConfig):
    """Let all points of a sweep save, then cancel them; the command that submitted the sweep resumes them."""


# ------------------------------------------------------------------------------------------- points (pure functions)


def grid_points(grid: Sequence[str]) -> list[Point]:
    """Every combination of a grid's values.

    Raises:
        UserError: an item is not of the form flag=value,value, or a flag is given twice.
    """
    axes: dict[str, list[list[str]]] = {}
    faults = []
    for item in grid:
        name, _, values = item.partition("=")
        name = name.lstrip("-")
        if not name or not values or name in axes:
            faults.append(f"--grid '{item}': give each flag once, with its values, such as learning_rate=1e-4,1e-5")
            continue
        axes[name] = [value.split() for value in values.split(",")]
        if [] in axes[name]:
            faults.append(f"--grid '{item}' has an empty value: give a value between all commas")
    if faults:
        raise UserError.of(faults)
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def listed_points(text: str) -> list[Point]:
    """The points in a file with the training flags of one point in each line; '#' begins a comment.

    Raises:
        UserError: a line does not begin with a flag, or its quotes do not match.
    """
    points, faults = [], []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            faults.append(f"--points line {number} cannot be read ({error}): close its quotes")
            continue
        point: Point = {}
        for word in words:
            if word.startswith("--"):
                name, equals, value = word.removeprefix("--").partition("=")
                point[name] = [value] if equals else []
            elif point:
                point[list(point)[-1]].append(word)
            else:
                faults.append(f"--points line {number} begins with '{word}': give flags, such as --learning_rate 1e-4")
                break
        if point:
            points.append(point)
    if faults:
        raise UserError.of(faults)
    return points


def point_name(point: Point) -> str:
    """The folder name of a point, made of its flags: 'learning_rate-1e-4_seed-0'."""
    parts = (f"{name}-{'-'.join(Path(word).name for word in words)}" for name, words in point.items())
    return re.sub(r"[^A-Za-z0-9_.+-]", "-", "_".join(parts))


def named_points(points: Iterable[Point]) -> dict[str, Point]:
    """
    Raises:
        UserError: two points would have the same folder.
    """
    named: dict[str, Point] = {}
    for point in points:
        name = point_name(point)
        if name in named:
            raise UserError(f"two points of the sweep would have the same folder {name}: give each combination once")
        named[name] = point
    return named


def varied(points: Iterable[Point]) -> set[str]:
    """The flags in which points differ."""
    every = list(points)
    return {name for point in every for name in point if any(other.get(name) != point[name] for other in every)}


def point_argv(point: Point) -> list[str]:
    return [word for name, words in point.items() for word in (f"--{name}", *words)]


# ------------------------------------------------------------------------------------------------------------ submit


def submit_sweep(argv: Sequence[str]) -> int:
    launch, base, site = submit.read_flags(argv, SweepConfig, "python -m launch.sweep submit", "Submit a sweep.")
    points = _points_of(launch)
    named = named_points(points)
    folder = base.runs_dir / launch.name
    known = sweep_points(folder)
    trainings = _trainings(base, folder, named)
    if twice := _same_training(trainings):
        raise UserError(f"points {twice[0]} and {twice[1]} are the same training: give each value once")
    if fault := _task_fault(folder, known, trainings):
        raise UserError(fault)
    if varied([*known.values(), *named.values()]) - REPEATS:
        trainings = {name: dataclasses.replace(each, evaluate=False) for name, each in trainings.items()}
    trainings = {name: _without_new_epochs(each) for name, each in trainings.items()}
    first = next(iter(trainings.values()))
    faults: list[str] = []
    notes: list[str] = []
    with preflight.checking(launch, first, faults, notes):
        for name, training in trainings.items():
            if training != first:
                own = resume_faults(RunFolder(training.run_dir), training)[0] + path_faults(training)
                own += preflight.request_flag_faults(launch, training)
                faults += [f"point {name}: {fault}" for fault in own if fault not in faults]
        if preflight.slurm_available(launch, faults):
            executor = _executor(launch, folder, snapshot.code_path(folder), list(trainings.values()), site)
            if len(trainings) > 1:
                executor.parameters["map_count"] = len(trainings)  # as submitit sets it for an array
            preflight.check_with_slurm(submit.batch_script(executor, folder / "jobs"), launch, faults, notes)
    if faults:
        raise UserError.of(dict.fromkeys(faults))
    notes += (
        ["not checked: weights and memory of all points but the first"]
        if launch.forecast and len(trainings) > 1
        else []
    )
    for note in notes:
        print(note)
    if launch.dry_run:
        print(submit.batch_script(executor, folder / "jobs"))
        return 0
    with submit.submission_lock(folder):
        write_json(folder / SWEEP_FILE, {"points": {**known, **named}})
        states = point_states(folder, trainings, to_submit=True)
        wanted = {name: each for name, each in trainings.items() if _is_wanted(states[name], each)}
        if wanted:
            _submit_points(launch, folder, wanted, site)
        for name in trainings:
            print(
                f"{name}: {'submitted' if name in wanted else states[name]}{_again_text(states[name], name in wanted)}"
            )
    print(f"table and plot   python -m launch.sweep show {launch.name}")
    return 0


def _is_wanted(state: str, training: TrainConfig) -> bool:
    """Whether to submit a point: it is neither queued nor done, or it has to train for more epochs."""
    if state != "finished":
        return state != "queued"
    saved = RunFolder(training.run_dir).saved_config()
    return saved is not None and saved.epochs < training.epochs


def _without_new_epochs(training: TrainConfig) -> TrainConfig:
    """The training of a point. If its run was evaluated on the test split, it gets no additional epochs: that point stays as
    it is, and the others can train longer."""
    run = RunFolder(training.run_dir)
    try:
        saved = run.saved_config() if run.summary_file.exists() else None
    except UserError:  # reported with all other errors
        return training
    return training if saved is None else dataclasses.replace(training, epochs=min(training.epochs, saved.epochs))


def _text_of(points: Path) -> str:
    try:
        return points.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"--points {points} cannot be read ({first_line(error)}): give a text file with the flags of a point in each line"
        ) from None


def _same_training(trainings: Mapping[str, TrainConfig]) -> tuple[str, str] | None:
    """The names of two points that are the same training, or None."""
    seen: dict[TrainConfig, str] = {}
    for name, training in trainings.items():
        bare = dataclasses.replace(training, run_name="x")
        if bare in seen:
            return seen[bare], name
        seen[bare] = name
    return None


def _task_fault(folder: Path, known: Iterable[str], trainings: Mapping[str, TrainConfig]) -> str | None:
    """The message if the points of a sweep, with those submitted before, do not all have the same task."""
    saved = {name: RunFolder(folder / name).saved_config() for name in known}
    point_of = {config.task: name for name, config in {**saved, **trainings}.items() if config is not None}
    if len(point_of) < 2:
        return None
    (a, point_a), (b, point_b), *_ = point_of.items()
    return f"point {point_a} has the task {a} and point {point_b} the task {b}, and no metric compares them: make a sweep of each"


def _again_text(state: str, again: bool) -> str:
    return f" again (was {state})" if again and state != "new" else ""


def _points_of(launch: SweepConfig) -> list[Point]:
    """The points that --grid and --points give; with both, every combination of them.

    Raises:
        UserError: there are none or too many, or some cannot be read.
    """
    faults: list[str] = []
    points = collect_faults(faults, grid_points, launch.grid) or []
    if launch.points is not None:
        text = collect_faults(faults, _text_of, launch.points)
        listed = collect_faults(faults, listed_points, text or "") or []
        if not listed and not faults:
            faults.append(f"--points {launch.points} has no points: give the flags of a point in each line")
        points = [{**a, **b} for a in points for b in listed] if launch.grid else listed
    if len(points) > _MAX_POINTS:
        faults.append(f"{len(points)} points are more than the {_MAX_POINTS} of most sites' arrays: give fewer values")
    if faults:
        raise UserError.of(faults)
    return points


def _trainings(base: TrainConfig, folder: Path, named: Mapping[str, Point]) -> dict[str, TrainConfig]:
    """The training of each point.

    Raises:
        UserError: the errors in the points' flags, each once.
    """
    trainings: dict[str, TrainConfig] = {}
    where: dict[str, list[str]] = {}  # error -> points
    for name, point in named.items():
        faults: list[str] = []
        training = collect_faults(faults, _training, base, folder, name, point)
        if training is not None:
            trainings[name] = training
        for fault in faults:
            where.setdefault(fault, []).append(name)
    if where:
        raise UserError.of(
            f"point {names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {fault}"
            for fault, names in where.items()
        )
    return trainings


def _training(base: TrainConfig, folder: Path, name: str, point: Point) -> TrainConfig:
    faults = [
        f"--{flag} cannot vary, because the sweep sets it: remove it"
        for flag in ("runs_dir", "run_name")
        if flag in point
    ]
    if "evaluate" in point:
        faults.append("--evaluate cannot vary, because validation does not choose it: remove it")
    own = point_argv(point)
    # drop the flags of the flag file's backbone or method if the point chooses another one
    flags = to_argv(base, only={f.name for f in dataclasses.fields(TrainConfig.for_argv([*to_argv(base), *own]))})
    given = collect_faults(faults, parse, TrainConfig, [*flags, *own], None, None, {_IS_LAUNCH_FLAG: LaunchConfig})
    if given is None or faults:
        raise UserError.of(faults)
    return absolute(dataclasses.replace(given, runs_dir=folder, run_name=name))


def _submit_points(
    launch: SweepConfig, folder: Path, wanted: Mapping[str, TrainConfig], site: Mapping[str, str]
) -> None:
    (folder / "jobs").mkdir(exist_ok=True)
    code = snapshot.copy_code(folder)
    executor = _executor(launch, folder, code, list(wanted.values()), site)
    for job_id, training in zip(submit.submit(executor, list(wanted.values())), wanted.values(), strict=True):
        run_folder = RunFolder(training.run_dir)
        create_job_folder(run_folder, job_id, training, code)
        print(f"job {job_id}   {run_folder.path}")


def _executor(
    launch: SweepConfig, folder: Path, code: Path, trainings: Sequence[TrainConfig], site: Mapping[str, str]
) -> submit.submitit.SlurmExecutor:
    """The executor of the array; submitit submits a single point as a plain job."""
    job = '"$SLURM_JOB_ID"' if len(trainings) == 1 else '"${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"'
    jobs = [f"{shlex.quote(str(RunFolder(training.run_dir).jobs_dir))}/{job}" for training in trainings]
    setup = submit.job_setup(launch, site, code, jobs)
    executor = submit.make_executor(launch, folder / "jobs", launch.name, setup)
    executor.update_parameters(array_parallelism=launch.parallel)
    return executor


def point_states(folder: Path, points: Iterable[str], to_submit: bool) -> dict[str, str]:
    """The state of each point: 'finished', 'queued', 'new' or another one.

    Raises:
        UserError: a progress.json is damaged; or `to_submit`, and squeue fails: points might be submitted twice.
    """
    jobs = {name: last_job(folder / name) for name in points}
    cluster = query_slurm({job for job in jobs.values() if job})
    if to_submit and not cluster.queue_is_known:
        raise UserError(f"unknown: {cluster.unknown[0]}: try again when Slurm answers")
    found = {}
    for name, job in jobs.items():
        progress = RunFolder(folder / name).progress()
        if job in cluster.queued:
            found[name] = "queued"
        elif job is None and progress is None:
            found[name] = "new"
        else:
            found[name] = run_state(progress, None, cluster.ended.get(job or ""), time.time())
    return found


# -------------------------------------------------------------------------------------------------------------- show


def sweep_rows(folder: Path, points: Mapping[str, Point], best: str) -> list[dict[str, Any]]:
    """A record for each point, sorted by its best validation result; points without one are last."""
    states = point_states(folder, points, to_submit=False)
    rows = []
    for name, point in points.items():
        progress = RunFolder(folder / name).progress() or RunProgress("new")
        rows.append(
            {
                "point": name,
                **{flag_name: " ".join(words) for flag_name, words in point.items()},
                "state": states[name],
                "epoch": fraction_text(progress.epoch, progress.epochs),
                best: progress.best if progress.best_epoch else None,
                "best_epoch": progress.best_epoch or None,
            }
        )
    return sorted(rows, key=lambda row: -math.inf if row[best] is None else row[best], reverse=True)


def shared_task(folder: Path, points: Iterable[str]) -> Task:
    """The task of a sweep, which all points share: that of the first point with a run folder."""
    configs = (RunFolder(folder / name).saved_config() for name in points)
    return task_of(next((config.task for config in configs if config is not None), DEFAULT))


def _named_sweep(name: str, runs_dir: Path | None) -> tuple[Path, dict[str, Point]]:
    """The folder and the points of a sweep.

    Raises:
        UserError: the sweep does not exist.
    """
    runs_dir = existing_runs_dir(runs_dir)
    if points := sweep_points(runs_dir / name):
        return runs_dir / name, points
    sweeps = ", ".join(sorted(path.parent.name for path in runs_dir.glob("*/sweep.json"))) or "none"
    raise UserError(
        f"{runs_dir / name} is not a sweep (no sweep.json): give the --name of a sweep; there are: {sweeps}"
    )


def cancel_sweep(argv: Sequence[str]) -> int:
    name, options = parse_named(CancelConfig, argv, prog="python -m launch.sweep cancel SWEEP")
    folder, points = _named_sweep(name, options.runs_dir)
    ended = stop_jobs({job for point in points if (job := last_job(folder / point))})
    if not ended:
        raise UserError(f"no point of {folder} is pending or running: there is nothing to cancel")
    print(f"{len(ended)} of {len(points)} points are cancelled; submit the sweep again to resume")
    return 0


def show_sweep(argv: Sequence[str]) -> int:
    name, options = parse_named(ShowConfig, argv, prog="python -m launch.sweep show SWEEP")
    folder, points = _named_sweep(name, options.runs_dir)
    task = shared_task(folder, points)
    best_key = f"best_val_{task.metric.key}"
    rows = sweep_rows(folder, points, best_key)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    shown = [c for c in columns if c != "point"]
    cells = [[c.upper().replace("_", " ") for c in shown]]
    cells += [
        [number_text(v) if isinstance(v := row.get(c), float) else str("-" if v is None else v) for c in shown]
        for row in rows
    ]
    widths = [max(len(line[i]) for line in cells) for i in range(len(shown))]
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with reporting_write_errors(folder / "sweep.csv"):
        write_atomic(folder / "sweep.csv", text.getvalue().encode())
        draw_sweep(
            rows,
            sorted(varied(points.values())) or sorted(next(iter(points.values()))),
            folder / "sweep.png",
            name,
            task.metric,
        )
    print(f"\n{folder / 'sweep.csv'}\n{folder / 'sweep.png'}")
    best = rows[0]
    if varied(points.values()) - REPEATS and best[best_key] is not None:
        test = f"; its test: python -m training.evaluate --run {folder / best['point']}" if task.has_test else ""
        print(f"best by validation: {best['point']}{test}")
    return 0


def main(argv: Sequence[str]) -> int:
    commands = {"submit": submit_sweep, "show": show_sweep, "cancel": cancel_sweep}
    if argv and argv[0] in commands:
        return commands[argv[0]](argv[1:])
    parse_command({"submit": SweepConfig, "show": ShowConfig, "cancel": CancelConfig}, argv, "python -m launch.sweep")
    return 2


if __name__ == "__main__":
    run(main)
