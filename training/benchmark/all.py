"""Every benchmark in one table."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from dataclasses import dataclass
from typing import Any

from training.benchmark._result import Common, Result, Row

NAMES = ("loader", "step", "start", "resume", "augment")  # resume includes saving


@dataclass(frozen=True)
class Config(Common):
    """Every benchmark in one table: loader, step, start, resume (with saving) and augment."""


def measure(config: Config) -> Result:
    rows: list[Row] = []
    legend: list[str] = []
    extra: dict[str, Any] = {}
    for name in NAMES:
        print(f"{name} ...", file=sys.stderr, flush=True)
        module = importlib.import_module(f"training.benchmark.{name}")
        shared = {field.name: getattr(config, field.name) for field in dataclasses.fields(Common)}
        result = module.measure(module.Config(**shared))
        rows += [Row(name.upper()), *result.rows]
        legend += [f"{name}:", *result.legend]
        extra[name] = result.extra
    return Result(rows, legend, extra)
