"""Make a table of evaluated runs: mean and standard deviation over seeds, and baselines on the same test actions.

    python -m training.report runs/a-s0 runs/a-s1 runs/b-s0 ...
    python -m training.report runs/<sweep>      all evaluated points of a sweep
    python -m training.report --html runs/a     make report.html of a run again
    python -m training.report --html runs/a-s0 runs/a-s1 runs/b-s0      make a page that compares runs: comparison.html

Runs that differ only in --seed share a line, named after the run without the seed ("-s0"), or after the sweep and the
point's flags without the seed. Folds of --split event (run names with "-f1" before the seed) also share a line: the mean
over the folds of each seed, then mean and standard deviation over seeds. Prints Markdown; below the table it lists the points
of a sweep that were omitted, and why.
"""

from __future__ import annotations

import os
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from data_preparation.common.command_line import flag, parse, run
from data_preparation.common.errors import UserError
from training.compare import predictions_of
from training.config import TrainConfig, as_record, changeable
from training.html_report.comparison import ComparedRun, comparison_page
from training.html_report.content import Table
from training.html_report.page import write_page, write_report
from training.runtime.run_folder import REPEATS, RunFolder, read_json, sweep_points
from training.tasks import DEFAULT, task_of
from training.tasks.base import Task

HTML = "--html"
WITHOUT_VIDEO = "without video: "
_SUFFIX = re.compile(r"([-_.]?f(old)?\d+)?([-_.]?s(eed)?\d+)?$")


@dataclass(frozen=True)
class OpenedRun:
    """A run whose test split was opened."""

    path: Path
    config: TrainConfig
    summary: dict[str, Any]
    tested: list[list[int]]  # keys of the test actions
    inputs: dict[str, str] = field(default_factory=dict)  # what identifies boxes or features

    @property
    def name(self) -> str:
        return RunFolder(self.path).title

    @property
    def line_name(self) -> str:
        """The name of the run's line in the table: the run name without seed and fold."""
        folder = Path(os.path.abspath(self.path))
        points = sweep_points(folder.parent)
        if folder.name not in points:
            return _SUFFIX.sub("", folder.name) or folder.name
        if not set(points[folder.name]) & REPEATS:
            return self.name
        # launch.sweep names a folder after the point's flags: 'learning_rate-1e-4_seed-0'
        flags = re.sub(rf"(^|_)({'|'.join(sorted(REPEATS))})-\d+(?=_|$)", "", folder.name).strip("_")
        return f"{folder.parent.name}/{flags}" if flags else folder.parent.name

    @property
    def task(self) -> str:
        return self.summary.get("task", DEFAULT)

    @property
    def fold(self) -> int:
        return self.config.fold  # 1 where there are no folds


def read_run(path: Path) -> OpenedRun:
    """Read the configuration and the result of a run folder.

    Raises:
        UserError: the folder holds no run, or its test split was not opened.
    """
    folder = RunFolder(path)
    config, summary = folder.existing_config(), folder.summary()
    if summary is None:
        raise UserError(f"{path} has no result: open its test split first (python -m training.evaluate --run {path})")
    splits = read_json(folder.splits_file)
    if not isinstance(splits, dict) or "test" not in splits:
        raise UserError(
            f"{folder.splits_file} is missing or damaged: restore it from a copy, because it lists the test actions"
        )
    inputs = {name: found for name, found in splits.items() if name not in ("fingerprint", "train", "val", "test")}
    return OpenedRun(path, config, summary, sorted(splits["test"]), inputs)


def opened_points(folder: Path) -> tuple[list[Path], list[str]]:
    """The points of a sweep whose test split was opened, and a message about each other point.

    Raises:
        UserError: no point was opened.
    """
    opened, omitted = [], []
    for name in sweep_points(folder):
        run = RunFolder(folder / name)
        if run.summary() is not None:
            opened.append(run.path)
        else:
            omitted.append(f"{run.title}: {_why_not_opened(run)}")
    if not opened:
        raise UserError(
            f"no point of the sweep {folder} has a result ({'; '.join(omitted)}): open the test split of the point with the best validation result (python -m training.evaluate --run {folder}/POINT)"
        )
    return opened, omitted


def _why_not_opened(run: RunFolder) -> str:
    progress = run.progress()
    if progress is None:
        return "not started"
    if progress.state == "finished":
        return "trained, test split not opened"
    at = f"epoch {progress.epoch} of {'?' if progress.epochs is None else progress.epochs}"
    if progress.state == "failed":
        return f"failed at {at} ({progress.error})"
    return f"not finished ({progress.state}, {at})"


def opened_runs(paths: Sequence[Path]) -> tuple[list[OpenedRun], list[str]]:
    """The runs of the given folders, a sweep replaced by its evaluated points, and messages about the omitted points.

    Raises:
        UserError: see `read_run` and `opened_points`; also if a run is given twice.
    """
    found: dict[Path, Path] = {}
    omitted: list[str] = []
    for path in paths:
        points, not_opened = opened_points(path) if sweep_points(path) else ([path], [])
        omitted += not_opened
        for point in points:
            if (place := point.resolve()) in found:
                raise UserError(f"{point} and {found[place]} are the same run: give each run once")
            found[place] = point
    return [read_run(path) for path in found.values()], omitted


def grouped(runs: Sequence[OpenedRun]) -> list[list[OpenedRun]]:
    """Group runs that differ only in seed and fold, in the order of the first run of each group.

    Runs with other boxes or features are different runs. In folds their fingerprints differ, because the training actions do.
    """
    folds = {each.fold for each in runs}
    groups: dict[str, list[OpenedRun]] = {}
    for each in runs:
        ignored = changeable(each.config) - {"patience"} | {"seed", "fold"}
        flags = {name: value for name, value in as_record(each.config).items() if name not in ignored}
        inputs = sorted(each.inputs.items()) if len(folds) == 1 else []
        groups.setdefault(f"{each.config.epochs} {sorted(flags.items())} {inputs}", []).append(each)
    return list(groups.values())


def mean_and_std(values: Sequence[float | None], digits: int = 3) -> str:
    """'0.912 ± 0.004': mean and sample standard deviation; 'undefined' if a value is None."""
    defined = [value for value in values if value is not None]
    if len(defined) < len(values):
        return "undefined"
    mean = f"{statistics.fmean(defined):.{digits}f}"
    return mean if len(defined) == 1 else f"{mean} ± {statistics.stdev(defined):.{digits}f}"


def mean_over_folds(results: Sequence[dict[str, float | None]]) -> dict[str, float | None]:
    """The mean of each metric; None if it is None in any fold."""
    means: dict[str, float | None] = {}
    for key in results[0]:
        defined = [value for result in results if (value := result[key]) is not None]
        means[key] = statistics.fmean(defined) if len(defined) == len(results) else None
    return means


def by_seed(group: Sequence[OpenedRun], folds: Sequence[int]) -> list[list[OpenedRun]]:
    """The runs of each seed, one per fold.

    Raises:
        UserError: a seed lacks a fold or has two runs of one.
    """
    seeds: dict[int, list[OpenedRun]] = {}
    for each in group:
        seeds.setdefault(each.config.seed, []).append(each)
    for seed, runs in seeds.items():
        given = [each.fold for each in runs]
        for fold in folds:
            names = " and ".join(each.name for each in runs if each.fold == fold)
            where = f"seed {seed}" if len(folds) == 1 else f"fold {fold} of seed {seed}"
            if given.count(fold) > 1:
                raise UserError(f"{names} have the same flags and {where}: give one of them")
            if not names:
                raise UserError(
                    f"{group[0].line_name} has no run for {where} (its other runs of that seed: {', '.join(each.name for each in runs)}): give each fold of each seed once"
                )
    return list(seeds.values())


@dataclass(frozen=True)
class Results:
    """The table of results: its columns, a row for each group of runs and for each baseline, and sentences below it."""

    head: list[str]
    rows: list[list[str]]
    notes: list[str]


def results(runs: Sequence[OpenedRun]) -> Results:
    """The results of the runs and of the baselines that do not use the video.

    Raises:
        UserError: the runs have different tasks, were tested on different actions, or a fold is missing.
    """
    tested: dict[int, list[list[int]]] = {}
    for each in runs:
        if tested.setdefault(each.fold, each.tested) != each.tested or each.config.split != runs[0].config.split:
            raise UserError(
                f"{runs[0].name} and {each.name} were tested on different actions: give runs with the same data and test split"
            )
    actions = sum(map(len, tested.values()))
    whole_events = runs[0].config.split == "event"
    task = task_of(runs[0].task)
    if other := next((each for each in runs if each.task != runs[0].task), None):
        raise UserError(
            f"{runs[0].name} has the task {runs[0].task} and {other.name} the task {other.task}: make a table of each"
        )
    head = ["run", "model", "method", "seeds", *(title for _, title, _ in task.table), "95 % interval"]
    rows = []
    notes = [
        f"{actions} test actions"
        + (f", means over {len(tested)} folds" if len(tested) > 1 or whole_events else "")
        + (" of whole events." if whole_events else ".")
    ]
    for group in grouped(runs):
        name, config = group[0].line_name, group[0].config
        seeds = by_seed(group, list(tested))
        tests = [mean_over_folds([_metrics(task, each.summary["test"]) for each in folds]) for folds in seeds]
        method = ", ".join([config.method, *group[0].summary.get("notes", [])])
        rows.append([name, config.model, method, str(len(seeds)), *_figures(task, tests), _interval(task, group)])
        if group[0].summary["method_metrics"]:
            other_metrics = [mean_over_folds([each.summary["method_metrics"] for each in folds]) for folds in seeds]
            listed = ", ".join(
                f"{key.replace('_', ' ')} {mean_and_std([m[key] for m in other_metrics], 2)}"
                for key in other_metrics[0]
            )
            notes.append(f"{name} also predicts: {listed}.")
    first = by_seed(grouped(runs)[0], list(tested))[0]
    for name in first[0].summary["baselines"]:
        values = mean_over_folds([_metrics(task, each.summary["baselines"][name]) for each in first])
        rows.append([f"{WITHOUT_VIDEO}{name}", "", "", "", *_figures(task, [values]), ""])
    return Results(head, rows, notes)


def table(runs: Sequence[OpenedRun]) -> str:
    """`results` as a Markdown table.

    Raises:
        UserError: as `results`.
    """
    found = results(runs)
    rows = [[f"*{name}*" if name.startswith(WITHOUT_VIDEO) else name, *more] for name, *more in found.rows]
    lines = [found.head, ["---"] * len(found.head), *rows]
    return "\n".join(["| " + " | ".join(cells) + " |" for cells in lines] + [f"\n{note}" for note in found.notes])


def comparison_of(runs: Sequence[OpenedRun], omitted: Sequence[str]) -> str:
    """The page that compares runs, see html_report.comparison.

    Raises:
        UserError: as `results`; or there is one run only, or predictions are missing or damaged.
    """
    if len(runs) < 2:
        raise UserError(
            f"{runs[0].name} is the only evaluated run: give two runs or more to compare, or its own folder"
        )
    found = results(runs)
    compared = [ComparedRun(r.name, r.line_name, r.summary, replace(predictions_of(r.path), name=r.name)) for r in runs]
    table_of_all = Table(found.head, found.rows, " ".join(found.notes), names=3)
    return comparison_page(task_of(runs[0].task), table_of_all, compared, omitted)


def _interval(task: Task, runs: Sequence[OpenedRun]) -> str:
    """The interval of the first column's metric over the test actions: the means of both ends over the runs. Empty for folds,
    which have different test actions."""
    key, _, digits = task.table[0]
    intervals = [each.summary["test"].get(f"{key}_ci95") for each in runs]
    if len({each.fold for each in runs}) > 1 or not all(interval and None not in interval for interval in intervals):
        return ""
    low, high = (statistics.fmean(ends) for ends in zip(*intervals, strict=True))
    return f"{low:.{digits}f} to {high:.{digits}f}"


def _metrics(task: Task, result: dict[str, Any]) -> dict[str, float | None]:
    return {key: result[key] for key, *_ in task.table}


def _figures(task: Task, results: Sequence[dict[str, float | None]]) -> list[str]:
    return [mean_and_std([result[key] for result in results], digits) for key, _, digits in task.table]


@dataclass(frozen=True)
class PageConfig:
    """Flags of --html."""

    root_dir: Path | None = flag(None, "One run: folder of the frames, if they were moved since the training.")
    maps: bool = flag(False, "One run: also show what the network looked at in the examples, which takes longer.")
    output: Path | None = flag(None, "Several runs: file to write; default: comparison.html beside the first run.")


def unused_flags(options: PageConfig, *, one_page: bool, several: bool) -> list[str]:
    """The given flags that do nothing: those of the page of one run, or that of the page of several."""
    of_one = {"--root_dir": options.root_dir is not None, "--maps": options.maps}
    faults = [
        f"{name} is for the page of one run: leave it out, or give --html and one run folder"
        for name, given in of_one.items()
        if given and not one_page
    ]
    if options.output is not None and not several:
        faults.append(
            "--output is for the page of several runs: leave it out, or give --html and two run folders or more"
        )
    return faults


def main(argv: Sequence[str]) -> None:
    if {"-h", "--help"} & set(argv):
        print(__doc__)
        return
    words = [word for word in argv if word != HTML]
    names = [Path(word) for word in takewhile(lambda word: not word.startswith("-"), words)]
    if not names:
        raise UserError(
            "give run folders or the folder of a sweep, for example: python -m training.report runs/a-s0 runs/a-s1"
        )
    options = parse(PageConfig, words[len(names) :], prog="python -m training.report RUN...", description=__doc__)
    is_page = HTML in argv
    is_of_one = is_page and len(names) == 1 and not sweep_points(names[0])
    if faults := unused_flags(options, one_page=is_of_one, several=is_page and not is_of_one):
        raise UserError.of(faults)
    if is_of_one:
        print(write_report(RunFolder(names[0]), options.root_dir, with_maps=options.maps))
        return
    runs, omitted = opened_runs(names)
    if is_page:
        output = options.output or runs[0].path.parent / "comparison.html"
        write_page(output, comparison_of(runs, omitted))
        print(output)
        return
    print(table(runs))
    if omitted:
        print("\nOmitted:\n" + "".join(f"\n- {line}" for line in omitted))


if __name__ == "__main__":
    run(main)
