"""How long a training takes from the start of its process to its first step, by part."""

from __future__ import annotations

import logging
import os
import re
import time
from pathlib import Path

log = logging.getLogger(__name__)

_LOADED = time.monotonic()
_reached: list[tuple[str, float]] = []  # (part, age of the process at its end)
_logged = False
_LINE = re.compile(r"Start-up: ([\d.]+) s from .* \((.*)\)")


def process_age() -> float:
    """Seconds since this process started; without /proc since this module was imported."""
    try:
        started = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
        return float(Path("/proc/uptime").read_text().split()[0]) - started
    except (OSError, ValueError, IndexError):
        return time.monotonic() - _LOADED


def reached(part: str) -> None:
    """Say that `part` of the start-up, which began where the last part ended, is done."""
    if not _logged:
        _reached.append((part, process_age()))


def log_first_step(batch_s: float, step_s: float) -> None:
    """After each step; the first time, log how long the start-up took. The first batch took `batch_s`, the step `step_s`."""
    global _logged
    if _logged:
        return
    end = process_age()
    parts = [*_reached, ("loop", end - batch_s - step_s), ("first batch", end - step_s), ("first step", end)]
    before = [0.0, *(age for _, age in parts)]
    listed = ", ".join(f"{part} {age - start:.2f}" for (part, age), start in zip(parts, before, strict=False))
    log.info("Start-up: %.2f s from the start of the process to the end of the first step (%s)", end, listed)
    _logged = True


def parts_in(text: str) -> dict[str, float] | None:
    """The seconds of each part in the line of `log_first_step`, and "all"; None without such a line."""
    found = _LINE.search(text)
    if found is None:
        return None
    parts = (part.rsplit(" ", 1) for part in found[2].split(", "))
    return {**{name: float(seconds) for name, seconds in parts}, "all": float(found[1])}
