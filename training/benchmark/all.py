"""The other benchmarks in one table."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from typing import Any

from data_preparation.common.command_line import flag
from training.benchmark import commands
from training.benchmark._result import Common, Result, Row

IN_ALL = False


@dataclass(frozen=True)
class Config(Common):
    """The other benchmarks in one table."""

    rounds: int = flag(2, "Rounds of each benchmark.", minimum=1)


def measure(config: Config) -> Result:
    rows: list[Row] = []
    legend: list[str] = []
    extra: dict[str, Any] = {}
    shared = {field.name: getattr(config, field.name) for field in dataclasses.fields(Common)}
    for name, module in commands().items():
        if not getattr(module, "IN_ALL", True):
            continue
        print(f"{name} ...", file=sys.stderr, flush=True)
        result = module.measure(module.Config(**shared))
        rows += [Row(name.upper()), *result.rows]
        legend += [f"{name}:", *result.legend]
        extra[name] = result.extra
    return Result(rows, legend, extra)
