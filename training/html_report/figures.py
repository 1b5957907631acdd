"""The drawings of the pages: Matplotlib figures as SVG in the page itself.

Colours are those of Okabe and Ito ("Color universal design", 2008), which colour-blind people can tell apart; each series also has a
marker or a line style of its own, so that it is readable in grey.
"""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, RED, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
INK, FAINT = "#222222", "#767676"
_KINDS = ((BLUE, "o"), (RED, "^"), (GREEN, "s"), (PURPLE, "D"), (ORANGE, "v"), (SKY, "P"), (BLACK, "x"))

WIDE, HALF = 10.4, 5.0  # inches; half of the page's width and all of it
_MOST_POINTS = 3000  # of a scatter plot as vectors; more are drawn as pixels
_MOST_GROUPS = 24  # in a drawing of groups
_MOST_NUMBERED = 20  # classes; a larger confusion matrix has no numbers

_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text, in the fonts of the page
    "text.parse_math": False,  # names may hold a dollar sign
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.6,
}
_UNUSED_ID = re.compile(
    r' id="[a-z0-9]+_\d+"'
)  # such as "axes_1": nothing refers to them, and pages have several figures


def draw(paint: Callable[[Axes], None], width: float = HALF, height: float = 3.4) -> str:
    """A figure of a size in inches as an <svg> element; `paint` draws into its axes."""
    import matplotlib
    from matplotlib.figure import Figure

    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": "deepsports"}):
        figure = Figure(figsize=(width, height), layout="constrained")
        paint(figure.subplots())
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<svg [^>]*viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true" focusable="false">', svg)
    return _UNUSED_ID.sub("", svg).replace("xlink:href", "href")


def shortened(name: str, most: int = 28) -> str:
    """A name for a label of a drawing; of a long one the beginning and the end."""
    return name if len(name) <= most else f"{name[: most - 9]}…{name[-8:]}"


# ------------------------------------------------------------------------------------------------------------ training


class Line(NamedTuple):
    """A line of a drawing over the steps of a training."""

    label: str
    steps: Sequence[float]
    values: Sequence[float | None]  # None where undefined


def over_steps(
    lines: Sequence[Line],
    label: str,
    *,
    restarts: Sequence[int] = (),
    best: int | None = None,
    low: float | None = None,
) -> str:
    """Lines over the steps of a training. A restart is a dashed vertical line, the best epoch (its step) a dotted one."""

    def paint(axes: Axes) -> None:
        styles = ((BLUE, "-", "o"), (RED, "--", "o"), (GREEN, "-.", "s"))
        for line, (colour, style, marker) in zip(lines, cycle(styles), strict=False):
            values = np.array([np.nan if value is None else value for value in line.values], np.float64)
            few = marker if len(values) <= 25 else ""
            axes.plot(line.steps, values, color=colour, linestyle=style, marker=few, markersize=3.5, label=line.label)
        for i, step in enumerate(restarts):
            axes.axvline(step, color=FAINT, linewidth=1, linestyle=(0, (4, 2)), label="restart" if i == 0 else None)
        if best is not None:
            axes.axvline(best, color=GREEN, linewidth=1.4, linestyle=":", label="best epoch")
        axes.set(xlabel="step", ylabel=label)
        axes.set_xlim(left=0)
        if low is not None:
            axes.set_ylim(bottom=low)
        axes.legend(loc="best")

    return draw(paint)


# -------------------------------------------------------------------------------------------------------------- scores


def predicted_over_true(
    true: np.ndarray, predicted: np.ndarray, kinds: Mapping[str, np.ndarray], limits: np.ndarray | None
) -> str:
    """Predicted over judged scores: (A,) each, in points. `kinds` has the indices of each kind, empty for one kind; `limits`
    (A,) are half the widths of the intervals of the judged score, drawn as a band."""
    low, high = min(true.min(), predicted.min()), max(true.max(), predicted.max())
    margin = max((high - low) * 0.04, 0.5)
    ends = np.array([low - margin, high + margin])

    def paint(axes: Axes) -> None:
        axes.plot(ends, ends, color=INK, linewidth=1, linestyle=(0, (4, 2)), label="predicted = judged")
        if limits is not None:
            order = np.argsort(predicted)
            p, half = predicted[order], limits[order]
            axes.fill_betweenx(p, p - half, p + half, color=SKY, alpha=0.25, linewidth=0, label="90 % interval")
        as_pixels = len(true) > _MOST_POINTS
        for (name, rows), (colour, marker) in zip(
            (kinds or {"": np.arange(len(true))}).items(), cycle(_KINDS), strict=False
        ):
            axes.scatter(
                true[rows], predicted[rows], s=14, alpha=0.65, color=colour, marker=marker, linewidths=0.6,
                label=shortened(name) or None, rasterized=as_pixels,
            )  # fmt: skip
        axes.set(xlabel="judged score (points)", ylabel="predicted score (points)", xlim=ends, ylim=ends)
        axes.set_aspect("equal")
        axes.legend(loc="upper left")

    return draw(paint, HALF, 4.6)


def histogram(values: np.ndarray, label: str) -> str:
    """A histogram of (A,) values, with a line at 0."""

    def paint(axes: Axes) -> None:
        axes.hist(values, bins=min(40, max(8, len(values) // 8)), color=SKY, edgecolor="white", linewidth=0.5)
        axes.axvline(0, color=INK, linewidth=1, linestyle=(0, (4, 2)))
        axes.set(xlabel=label, ylabel="test actions")

    return draw(paint, HALF, 4.6)


def mean_true_over_predicted(
    predicted: np.ndarray, true: np.ndarray, label: str, true_label: str, bins: int = 10
) -> str:
    """A calibration curve: in groups of equal size by the predicted value, the mean true value over the mean predicted one, with
    95 % intervals of the mean. The inputs are (A,)."""
    groups = [rows for rows in np.array_split(np.argsort(predicted, kind="stable"), min(bins, len(true))) if len(rows)]
    x = np.array([predicted[rows].mean() for rows in groups])
    y = np.array([true[rows].mean() for rows in groups])
    error = np.array([1.96 * true[rows].std(ddof=1) / len(rows) ** 0.5 if len(rows) > 1 else 0.0 for rows in groups])
    ends = [min(x.min(), (y - error).min()), max(x.max(), (y + error).max())]

    def paint(axes: Axes) -> None:
        axes.plot(ends, ends, color=INK, linewidth=1, linestyle=(0, (4, 2)), label="calibrated")
        axes.errorbar(x, y, yerr=error, color=BLUE, marker="o", markersize=4, capsize=2, elinewidth=1, label="mean of a group, 95 % interval")  # fmt: skip
        axes.set(xlabel=label, ylabel=true_label)
        axes.legend(loc="upper left")

    return draw(paint)


def coverage_curve(levels: Sequence[float], observed: Sequence[float], tested: int, validated: int) -> str:
    """Observed over stated coverage of prediction intervals, with the range in which 95 % of such results lie: the width comes from
    `validated` actions, and it is counted on `tested` ones."""
    stated = np.array(levels)
    spread = 1.96 * np.sqrt(stated * (1 - stated) * (1 / tested + 1 / validated))

    def paint(axes: Axes) -> None:
        percent = 100 * stated
        axes.fill_between(
            percent, 100 * (stated - spread), 100 * np.minimum(stated + spread, 1), color="#cccccc", linewidth=0,
            alpha=0.6, label="expected by chance (95 %)",
        )  # fmt: skip
        axes.plot(percent, percent, color=INK, linewidth=1, linestyle=(0, (4, 2)))
        axes.plot(percent, 100 * np.array(observed), color=BLUE, marker="o", markersize=4, label="this run")
        axes.set(xlabel="stated coverage (%)", ylabel="test actions inside the interval (%)")
        axes.legend(loc="upper left")

    return draw(paint)


class GroupRow(NamedTuple):
    """A row of a drawing, such as a group of actions: its name, the number of its actions, a value and, if known, its 95 % interval."""

    name: str
    size: int | None
    value: float | None
    interval: Sequence[float | None] | None = None
    second: float | None = None  # another value of the group


def groups(
    rows: Sequence[GroupRow],
    label: str,
    first: str,
    second: str = "",
    line: float | None = None,
    line_label: str = "",
    width: float = HALF,
) -> str:
    """A dot for each row and a hollow diamond for its second value. `line` is a value to compare with."""

    def paint(axes: Axes) -> None:
        places = np.arange(len(rows))[::-1]
        values = np.array([np.nan if row.value is None else row.value for row in rows], np.float64)
        for place, row in zip(places, rows, strict=True):
            if row.interval and None not in row.interval:
                axes.plot(np.array(row.interval, np.float64), [place, place], color=BLUE, linewidth=1.4)
        if line is not None:
            axes.axvline(line, color=INK, linewidth=1, linestyle=(0, (4, 2)), label=line_label or None)
        axes.plot(values, places, "o", color=BLUE, markersize=5.5, label=first)
        if second:
            others = [np.nan if row.second is None else row.second for row in rows]
            axes.axvline(0, color=FAINT, linewidth=0.8)
            axes.plot(others, places, "D", color=RED, markersize=5, markerfacecolor="white", label=second)
        axes.set_yticks(places, [shortened(row.name) + ("" if row.size is None else f" ({row.size})") for row in rows])
        axes.set_ylim(-0.7, len(rows) - 0.3)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(label)
        if second or line_label:
            axes.figure.legend(loc="outside upper left", ncols=3)

    return draw(paint, width, 1.2 + 0.24 * len(rows))


def extreme(rows: Sequence[GroupRow], *, lowest: bool = False) -> list[GroupRow]:
    """All rows, or of many those with the largest (or lowest) values, in their order."""
    values = np.array([row.value or 0 for row in rows])
    kept = np.argsort(values if lowest else -values, kind="stable")[:_MOST_GROUPS]
    return [rows[i] for i in sorted(kept)]


# ------------------------------------------------------------------------------------------------------------- classes


def confusion(counts: np.ndarray, classes: Sequence[str]) -> str:
    """A confusion matrix (K, K) of counts; the shade is the share of the true class (the row)."""
    with np.errstate(invalid="ignore"):
        shares = np.nan_to_num(counts / counts.sum(axis=1, keepdims=True))
    number = len(classes)
    side = min(max(2.6, 0.42 * number), 8.0)

    def paint(axes: Axes) -> None:
        axes.grid(visible=False)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, rasterized=True)
        size = 8.5 if number <= 12 else 6.5 if number <= 40 else 4
        axes.set_xticks(range(number), [shortened(name, 18) for name in classes], rotation=40 if number > 3 else 0,
                        ha="right" if number > 3 else "center", rotation_mode="anchor", fontsize=size)  # fmt: skip
        axes.set_yticks(range(number), [shortened(name, 18) for name in classes], fontsize=size)
        axes.set(xlabel="predicted class", ylabel="true class")
        for spine in axes.spines.values():
            spine.set_visible(False)
        if number <= _MOST_NUMBERED:
            for i, j in np.ndindex(number, number):
                colour = "white" if shares[i, j] > 0.55 else INK
                axes.text(j, i, f"{counts[i, j]:,}", ha="center", va="center", color=colour, fontsize=size)

    return draw(paint, max(side + 2.0, HALF), side + 1.0)
