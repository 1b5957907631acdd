"""The plots of losses and of sweeps, and what all plots share. The plot of a test split belongs to its task."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_preparation.common.files import atomic_file, reporting_write_errors

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from training.tasks.base import Metric

TRAIN, VALIDATION, BEST, FAILED = "#1f77b4", "#d95f02", "#2ca02c", "#d62728"


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of a size in inches. It belongs to no window, so it needs no display and no closing.

    Matplotlib is imported here, because that takes half a second and most processes draw nothing.
    """
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Figure, path: Path) -> None:
    """Write the figure as PNG. Artists outside the layout make the picture larger instead of being cut off."""
    with reporting_write_errors(path), atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png", bbox_inches="tight", pad_inches=0.1)


def _short(text: str, most: int = 24) -> str:
    """A tick label; of a long value, such as a path, only the end."""
    return text if len(text) <= most else f"…{text[-most:]}"


def draw_losses(epochs: Sequence[Mapping[str, Any]], path: Path, title: str, metric: Metric) -> None:
    """Plot train and validation loss and the validation metric of the epochs so far; the best epoch is marked.

    `epochs` are the "epoch" records of metrics.jsonl, `metric` is the one that chooses.
    """
    if not epochs:
        return
    x = [e["epoch"] for e in epochs]
    logged = [e[f"val_{metric.key}"] for e in epochs]
    values = [math.nan if value is None else value for value in logged]  # None: undefined
    known = [i for i, value in enumerate(values) if not math.isnan(value)]
    best = max(known, key=lambda i: values[i]) if known else 0
    marker = "o" if len(x) <= 40 else None

    from matplotlib.ticker import MaxNLocator

    figure = new_figure(11, 4.5)
    left, right = figure.subplots(1, 2)
    figure.suptitle(textwrap.fill(f"{title}: {len(x)} epoch{'s' if len(x) > 1 else ''}", 110))
    left.plot(x, [e["train_loss"] for e in epochs], color=TRAIN, marker=marker, markersize=3, label="train")
    left.plot(x, [e["val_loss"] for e in epochs], color=VALIDATION, marker=marker, markersize=3, label="validation")
    left.set(title="Loss", xlabel="epoch", ylabel="loss")
    right.plot(x, values, color=VALIDATION, marker=marker, markersize=3, label="validation")
    right.set(title=metric.title, xlabel="epoch", ylabel=metric.label)
    if known:
        label = f"best: {values[best]:.3f} (epoch {x[best]})"
        right.plot(x[best], values[best], "*", color=BEST, markersize=14, label=label)
        if metric.limit is not None:
            right.set_ylim(min(0, min(values[i] for i in known)) - 0.02, metric.limit + 0.02)
    for axes in (left, right):
        if known:
            axes.axvline(x[best], color=BEST, linewidth=1, linestyle=":")
        axes.grid(alpha=0.3)
        axes.legend(loc="best")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlim(min(x) - 0.5, max(x) + 0.5)
    save_figure(figure, path)


def draw_sweep(rows: Sequence[Mapping[str, Any]], flags: Sequence[str], path: Path, title: str, metric: Metric) -> None:
    """Plot a sweep: for each varied flag, the best validation result of every point over the flag's value.

    Failed points have a marker of their own; points without a result are drawn below all others. A row holds the values of
    the flags as text, `state` and "best_val_" with the key of the metric (None if there is no result yet).
    """
    key = f"best_val_{metric.key}"
    done = [row for row in rows if row[key] is not None]
    missing = [row for row in rows if row[key] is None]
    columns = min(len(flags), 3)
    shape = (-(-len(flags) // columns), columns)
    figure = new_figure(5 * columns, 4 * shape[0])
    panels = figure.subplots(*shape, squeeze=False, sharey=True)
    figure.suptitle(f"{title}: {len(rows)} points" + (f", {len(missing)} without a result" if missing else ""))
    numbers = [row[key] for row in done] or [0.0, 1.0]
    margin = max(max(numbers) - min(numbers), 0.02) * 0.12
    floor = min(numbers) - 2 * margin  # y position of points without a result
    for axes, flag in zip(panels.flat, flags, strict=False):
        values = sorted({str(row.get(flag, "default")) for row in rows}, key=_as_number)
        kinds: dict[str, tuple[list[int], list[float]]] = {}
        for row in rows:
            x, y = kinds.setdefault(_sweep_mark(row), ([], []))
            x.append(values.index(str(row.get(flag, "default"))))
            y.append(floor if row[key] is None else row[key])
        for kind in (kind for kind in _SWEEP_MARKS if kind in kinds):
            label = None if kind == "finished" else f"{kind}: {len(kinds[kind][0])}"
            axes.plot(*kinds[kind], linestyle="none", alpha=0.8, label=label, **_SWEEP_MARKS[kind])
        if done:
            best = max(done, key=lambda row: row[key])
            label = f"best: {best[key]:.3f}"
            axes.plot(values.index(str(best.get(flag, "default"))), best[key], "*", color=BEST, markersize=14, label=label)  # fmt: skip
        if missing:
            axes.axhline(floor + margin, color="grey", linewidth=0.8, linestyle=":")
        labels = [_short(value) for value in values]
        slanted = dict(rotation=30, ha="right", rotation_mode="anchor")
        axes.set_xticks(range(len(values)), labels, **(slanted if len("  ".join(labels)) > 40 else {}))
        axes.set(xlabel=flag, xlim=(-0.5, len(values) - 0.5))
        bottom = floor - margin if missing else min(numbers) - margin
        lowest = floor + margin if missing else bottom  # no tick labels next to points without a result
        axes.set_ylim(bottom, max(numbers) + margin)
        axes.set_yticks([tick for tick in axes.get_yticks() if lowest < tick < max(numbers) + margin])
        axes.grid(alpha=0.3)
    for axes in panels[:, 0]:
        axes.set_ylabel(f"best validation {metric.name}" + ("\n(below the line: no result)" if missing else ""))
    for axes in panels.flat[len(flags) :]:
        axes.set_visible(False)
    marks, labels = panels[0, 0].get_legend_handles_labels()
    if labels:
        figure.legend(marks, labels, loc="outside lower center", ncols=min(len(labels), 2 * columns))
    save_figure(figure, path)


_SWEEP_MARKS: dict[str, dict[str, Any]] = {
    "finished": {"marker": "o", "color": TRAIN},
    "not finished": {"marker": "o", "color": TRAIN, "fillstyle": "none"},
    "failed": {"marker": "x", "color": FAILED, "markersize": 9, "markeredgewidth": 2},
}
_BAD_ENDS = ("boot_fail", "damaged", "deadline", "failed", "killed", "node_fail", "out_of_memory", "timeout")


def _sweep_mark(row: Mapping[str, Any]) -> str:
    if row["state"].startswith(_BAD_ENDS):
        return "failed"
    return "finished" if row["state"] == "finished" else "not finished"


def _as_number(text: str) -> tuple[float, str]:
    try:
        return float(text), text
    except ValueError:
        return math.inf, text
