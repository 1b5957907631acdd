"""How a run's progress.json reads in one line, in squeue and in launch.status (pure functions)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def duration_text(seconds: float | None) -> str:
    """'45s', '12m', '3h05m', '2d04h'; '-' for None."""
    if seconds is None or not math.isfinite(seconds):
        return "-"
    minutes = int(seconds // 60)
    if minutes < 1:
        return f"{int(seconds)}s"
    if minutes < 60:
        return f"{minutes}m"
    if minutes < 24 * 60:
        return f"{minutes // 60}h{minutes % 60:02d}m"
    return f"{minutes // 1440}d{minutes % 1440 // 60:02d}h"


def number_text(value: float | None, digits: int = 3) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def progress_text(progress: Mapping[str, Any]) -> str:
    """One line without quotes or commas, as Slurm's comment wants it."""
    parts = [
        progress["state"],
        f"epoch {progress['epoch']}/{progress['epochs']}",
        f"step {progress['step']}/{progress['steps']}",
    ]
    if progress.get("val_spearman") is not None:
        parts.append(f"rho {number_text(progress['val_spearman'])}")
    if progress.get("best_epoch"):
        parts.append(f"best {number_text(progress['best_spearman'])}@{progress['best_epoch']}")
    if progress["state"] == "running":
        parts.append(f"eta {duration_text(progress.get('eta_s'))}")
    return " ".join(parts)
