"""The text of a run's progress, for squeue and launch.status (pure functions)."""

from __future__ import annotations

import math
import re
from dataclasses import replace

from training.runtime.run_progress import RunProgress


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


def slurm_seconds(text: str) -> int | None:
    """The seconds of a time that Slurm prints ('0:38', '10:00', '00:00:38', '1-02:00:00'); None for other texts, such as
    UNLIMITED."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)(?:\.\d+)?", text.strip())
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def clock_text(text: str) -> str:
    """A time of squeue or sacct in one format: '0:38', '1:02:03', '2-03:04:05'; other texts in lower case."""
    seconds = slurm_seconds(text)
    if seconds is None:
        return text.lower()
    minutes, second = divmod(seconds, 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}-{hour:02d}:{minute:02d}:{second:02d}"
    return f"{hour}:{minute:02d}:{second:02d}" if hour else f"{minute}:{second:02d}"


def number_text(value: float | None, digits: int = 3) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def fraction_text(done: int, total: int | None) -> str:
    """'3/20'; '3/?' if the total is unknown."""
    return f"{done}/{'?' if total is None else total}"


def best_text(progress: RunProgress) -> str:
    """The best validation result and its epoch, '0.730@2'; '-' before the first validation."""
    return f"{number_text(progress.best)}@{progress.best_epoch}" if progress.best_epoch else "-"


def validation_text(progress: RunProgress) -> str:
    """The name and the value of the validation metric of the last epoch, 'rho 0.710'; '-' before the first validation."""
    return "-" if progress.val is None else f"{progress.metric or 'val'} {number_text(progress.val)}"


def progress_text(progress: RunProgress) -> str:
    """The progress in one line, for the comment of a job."""
    parts = [
        progress.state,
        f"epoch {fraction_text(progress.epoch, progress.epochs)}",
        f"step {fraction_text(progress.step, progress.steps)}",
    ]
    if progress.val is not None:
        parts.append(validation_text(progress))
    if progress.best_epoch:
        parts.append(f"best {best_text(progress)}")
    if progress.state == "running":
        parts.append(f"eta {duration_text(progress.eta_s)}")
    return " ".join(parts)


def starting_text(progress: RunProgress | None) -> str:
    """The comment of a job that is starting; `progress` is the progress of an earlier start."""
    return "starting" if progress is None else progress_text(replace(progress, state="starting"))
