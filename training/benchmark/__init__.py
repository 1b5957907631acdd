"""Measure speed, as ratios of times measured side by side in one run.

    python -m training.benchmark COMMAND [flags]       see --help for the commands

Each file without a leading underscore is a command: its dataclass `Config` has the flags, and `measure(config)` returns the
table. The command `all` runs every command but those whose file says IN_ALL = False. Each table compares this project with the
reference way, which is written plainly here, and with a ceiling that is measured in the same run. The test suite checks that the
commands run, never the times.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType


def commands() -> dict[str, ModuleType]:
    """The modules of the commands, by name."""
    names = [module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")]
    return {name: importlib.import_module(f"{__name__}.{name}") for name in sorted(names)}
