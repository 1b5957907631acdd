"""The plots of a run: what people look at instead of the log."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from data_preparation.dives import Dive
from data_preparation.files import whole_file, writing

TRAIN, VALIDATION, BEST = "#1f77b4", "#d95f02", "#2ca02c"


def _save(figure: Figure, path: Path) -> None:
    """Write the figure as PNG, with all that it shows: what the layout has left outside makes the picture larger."""
    with writing(path), whole_file(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png", bbox_inches="tight", pad_inches=0.1)
    plt.close(figure)


def _short(text: str, most: int = 24) -> str:
    """A value as a tick label: the end of a long one, such as a path."""
    return text if len(text) <= most else f"…{text[-most:]}"


def draw_losses(epochs: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """Write the PNG of a run so far: train and validation loss, validation Spearman, the best epoch marked.

    `epochs` are the "epoch" records of metrics.jsonl.
    """
    if not epochs:
        return
    x = [e["epoch"] for e in epochs]
    rho = [math.nan if e["val_spearman"] is None else e["val_spearman"] for e in epochs]  # null: it was undefined
    known = [i for i, r in enumerate(rho) if not math.isnan(r)]
    best = max(known, key=lambda i: rho[i]) if known else 0
    marker = "o" if len(x) <= 40 else None

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    figure.suptitle(textwrap.fill(f"{title}: {len(x)} epoch{'s' if len(x) > 1 else ''}", 110))
    left.plot(x, [e["train_loss"] for e in epochs], color=TRAIN, marker=marker, markersize=3, label="train")
    left.plot(x, [e["val_loss"] for e in epochs], color=VALIDATION, marker=marker, markersize=3, label="validation")
    left.set(title="Loss", xlabel="epoch", ylabel="loss")
    right.plot(x, rho, color=VALIDATION, marker=marker, markersize=3, label="validation")
    right.set(title="Spearman correlation of the final score", xlabel="epoch", ylabel="Spearman correlation")
    if known:
        right.plot(x[best], rho[best], "*", color=BEST, markersize=14, label=f"best: {rho[best]:.3f} (epoch {x[best]})")
        right.set_ylim(min(0, min(rho[i] for i in known)) - 0.02, 1.02)
    for axes in (left, right):
        if known:
            axes.axvline(x[best], color=BEST, linewidth=1, linestyle=":")
        axes.grid(alpha=0.3)
        axes.legend(loc="best")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlim(min(x) - 0.5, max(x) + 0.5)
    _save(figure, path)


def draw_scores(predicted: Sequence[float], dives: Sequence[Dive], path: Path, title: str) -> None:
    """Write the PNG of predicted against true final scores of the test dives, coloured by difficulty."""
    true = [d.final_score for d in dives]
    low, high = min([*true, *predicted]) - 2, max([*true, *predicted]) + 2
    figure, axes = plt.subplots(figsize=(7.5, 6.5), layout="constrained")
    figure.suptitle(textwrap.fill(title, 110), fontsize=9)
    axes.plot([low, high], [low, high], color="black", linewidth=0.8, linestyle=":", label="predicted = true")
    points = axes.scatter(true, predicted, c=[d.difficulty for d in dives], cmap="viridis", s=16, alpha=0.8)
    figure.colorbar(points, ax=axes, label="difficulty")
    axes.set(xlabel="true final score (points)", ylabel="predicted final score (points)", aspect="equal")
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left")
    _save(figure, path)


def draw_sweep(rows: Sequence[Mapping[str, Any]], flags: Sequence[str], path: Path, title: str) -> None:
    """Write the PNG of a sweep: for each flag that was varied, the best validation Spearman of every point by its value.

    A row has the flags' values as text, `state`, and `best_val_spearman` (None where there is none yet).
    """
    done = [row for row in rows if row["best_val_spearman"] is not None]
    columns = min(len(flags), 3)
    shape = (-(-len(flags) // columns), columns)
    figure, panels = plt.subplots(
        *shape, figsize=(5 * columns, 4 * shape[0]), layout="constrained", squeeze=False, sharey=True
    )
    without = len(rows) - len(done)
    figure.suptitle(f"{title}: {len(rows)} points" + (f", {without} without a number" if without else ""))
    for axes, flag in zip(panels.flat, flags, strict=False):
        values = sorted({str(row.get(flag, "default")) for row in rows}, key=_as_number)
        for row in done:
            x = values.index(str(row.get(flag, "default")))
            ended = row["state"] == "finished"
            axes.plot(x, row["best_val_spearman"], "o", color=TRAIN, fillstyle="full" if ended else "none", alpha=0.8)
        if done:
            best = max(done, key=lambda row: row["best_val_spearman"])
            label = f"best: {best['best_val_spearman']:.3f}"
            axes.plot(values.index(str(best.get(flag, "default"))), best["best_val_spearman"], "*", color=BEST, markersize=14, label=label)  # fmt: skip
            axes.legend(loc="best")
        labels = [_short(value) for value in values]
        slanted = dict(rotation=30, ha="right", rotation_mode="anchor")
        axes.set_xticks(range(len(values)), labels, **(slanted if len("  ".join(labels)) > 40 else {}))
        axes.set(xlabel=flag, xlim=(-0.5, len(values) - 0.5))
        axes.grid(alpha=0.3)
    for axes in panels[:, 0]:
        axes.set_ylabel("best validation Spearman")
    for axes in panels.flat[len(flags) :]:
        axes.set_visible(False)
    _save(figure, path)


def _as_number(text: str) -> tuple[float, str]:
    try:
        return float(text), text
    except ValueError:
        return math.inf, text
