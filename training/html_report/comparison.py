"""The page that compares evaluated runs: results with intervals, paired tests, and how many test actions a claim takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from training.html_report.content import Picture, Section, Table, Tile
from training.html_report.figures import WIDE, GroupRow, groups, shortened
from training.html_report.page import cell, interval_text, render
from training.power import ALPHA, POWER, about
from training.tasks.base import Comparison, Predictions, Task

_MOST_DRAWN = 40  # runs in a drawing


@dataclass(frozen=True)
class ComparedRun:
    """An evaluated run: its name, the line of the table that it belongs to (runs that differ only in seed and fold share one), its
    summary and its test predictions."""

    name: str
    line: str
    summary: Mapping[str, Any]
    predictions: Predictions


def comparison_page(task: Task, results: Table, runs: Sequence[ComparedRun], omitted: Sequence[str]) -> str:
    """The page of two runs or more. The first run is the one that the others are compared with.

    `results` is the table over seeds and folds, `omitted` names the points of a sweep that have no result.
    """
    sections = [Section("Results", tables=[results]), each_run_section(task, runs)]
    first = runs[0].predictions
    same = [run for run in runs[1:] if run.predictions.keys == first.keys]
    compared = [(run, task.compare(first, run.predictions)) for run in same]
    if compared:
        sections += [paired_section(task, runs[0], compared, len(runs) - 1 - len(same))]
    else:
        sections.append(Section("Paired test", text=f"No run was tested on the same actions as {runs[0].name}."))
    best = max(_result(run, task.metric.key) for run in runs)
    sections += claims_section(task, runs[0], compared, best)
    return render(
        "comparison.html",
        title=f"{runs[0].name} and {len(runs) - 1} other run{'s' if len(runs) > 2 else ''}",
        tiles=_tiles(task, runs),
        sections=sections,
        omitted=omitted,
    )


def _result(run: ComparedRun, key: str) -> float:
    """A test result of a run; minus infinity if it is undefined."""
    value = run.summary["test"].get(key)
    return -np.inf if value is None else value


def _tiles(task: Task, runs: Sequence[ComparedRun]) -> list[Tile]:
    key, title, digits = task.table[0]
    ordered = sorted(runs, key=lambda run: -_result(run, key))
    tiles = []
    for label, run in (("Best", ordered[0]), ("Lowest", ordered[-1])):
        between = interval_text(run.summary["test"].get(f"{key}_ci95"), digits)
        tiles.append(
            Tile(
                f"{label} {title}: {run.name}",
                cell(run.summary["test"].get(key), digits),
                f"95 % interval {between}" if between else "test split",
            )
        )
    return [*tiles, Tile("Test actions", f"{len(runs[0].predictions.keys):,}", f"{len(runs)} runs")]


def each_run_section(task: Task, runs: Sequence[ComparedRun]) -> Section:
    """Every run with the intervals of its metrics."""
    key, title, _ = task.table[0]
    rows = []
    for run in runs:
        test = run.summary["test"]
        cells = [
            text
            for k, _, digits in task.table
            for text in (cell(test.get(k), digits), interval_text(test.get(f"{k}_ci95"), digits))
        ]
        rows.append([run.name, *cells])
    has = [any(row[i] for row in rows) for i in range(len(rows[0]))]
    head = ["run", *(text for _, name, _ in task.table for text in (name, "95 % interval"))]
    table = Table(
        [name for name, kept in zip(head, has, strict=True) if kept],
        [[text for text, kept in zip(row, has, strict=True) if kept] for row in rows],
        "Every run alone. Intervals are over the test actions, not over seeds.",
    )
    drawn = [
        GroupRow(run.name, None, run.summary["test"].get(key), run.summary["test"].get(f"{key}_ci95"))
        for run in runs[:_MOST_DRAWN]
    ]
    baselines = {n: v.get(key) for n, v in runs[0].summary["baselines"].items() if v.get(key) is not None}
    name, best = max(baselines.items(), key=lambda item: item[1], default=("", None))
    picture = Picture(
        groups(
            drawn,
            title,
            "run, 95 % interval",
            line=best,
            line_label=f"best without video: {name}" if name else "",
            width=WIDE,
        ),
        f"{title} of {len(drawn)} runs with 95 % intervals, from {cell(min(r.value or 0 for r in drawn), 3)} to {cell(max(r.value or 0 for r in drawn), 3)}.",
        "Intervals of two runs that overlap do not show that the runs are equal: see the paired test.",
        wide=True,
    )
    return Section("Every run", [picture], [table])


def paired_section(
    task: Task, first: ComparedRun, compared: Sequence[tuple[ComparedRun, Comparison]], others: int
) -> Section:
    """The differences of the other runs from the first one."""
    title = task.metric.name
    rows = []
    for run, found in compared:
        name = f"{run.name} (same flags)" if run.line == first.line else run.name
        for difference in found.differences:
            gain = difference.b - difference.a
            better = f"{found.better:.1%}" if difference.title == title else ""
            interval = interval_text([float(end) for end in difference.interval], 4, "+")
            rows.append([name, difference.title, cell(difference.b, 4), cell(gain, 4, "+"), interval, better])
            name = ""
    drawn = []
    for run, found in compared[:_MOST_DRAWN]:
        of_metric = next(d for d in found.differences if d.title == title)
        drawn.append(GroupRow(run.name, None, of_metric.b - of_metric.a, of_metric.interval))
    picture = Picture(
        groups(
            drawn,
            f"{title} minus that of {shortened(first.name)}",
            "difference, 95 % interval",
            line=0.0,
            line_label="no difference",
            width=WIDE,
        ),
        f"Differences of {title} from {first.name} with 95 % intervals.",
        "An interval that contains 0: these test actions do not show a difference. The larger value is the better one."
        if task.metric.limit is not None
        else "An interval that contains 0: these test actions do not show a difference.",
        wide=True,
    )
    by_chance = (
        f" Of {len(compared)} comparisons, about one in twenty shows a difference by chance."
        if len(compared) > 2
        else ""
    )
    skipped = f" {others} runs have other test actions and are left out." if others else ""
    text = (
        f"Each run is compared with {first.name} on the same test actions by a paired bootstrap. The interval does not cover the variation between seeds: differences between runs of the same flags show it."
        f"{by_chance}{skipped}"
    )
    head = ["run", "metric", "value", f"minus {shortened(first.name, 20)}", "95 % interval", "better in"]
    tables = [Table(head, rows, "Better in: the share of the resamples in which the run is better.", names=2)]
    notes = [[run.name, note] for run, found in compared for note in found.notes]
    if notes:
        tables.append(Table(["run", f"A = {first.name}, B = the run"], notes, "Exact tests.", names=2))
    return Section("Paired test", [picture], tables, text)


def claims_section(
    task: Task, first: ComparedRun, compared: Sequence[tuple[ComparedRun, Comparison]], best: float
) -> list[Section]:
    """How many test actions it takes to show the differences found, and others."""
    count, title = len(first.predictions.keys), task.metric.name
    tables = []
    rows = []
    for run, found in compared:
        of_metric = next(d for d in found.differences if d.title == title)
        needed = about(found.needed)
        enough = "" if found.needed is None else "yes" if found.needed <= count else "no"
        rows.append([run.name, f"{of_metric.b:.4f} against {of_metric.a:.4f}", needed, f"{count:,}", enough])
    if rows:
        head = ["run", title, "needed", "available", "enough"]
        caption = f"Test actions that it takes to show a difference of this size, if it is real, in {POWER:.0%} of test splits (level {ALPHA:.0%}, two-sided)."
        tables.append(Table(head, rows, caption, names=2))
    if (general := task.claims(best)) is not None:
        tables.append(general)
    return [Section("How many test actions a claim takes", tables=tables)] if tables else []
