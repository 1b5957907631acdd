"""Run `python -m training.benchmark COMMAND`."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from types import ModuleType

from data_preparation.common.command_line import parse_command, run, to_argv
from training import benchmark
from training.benchmark._result import finish


def commands() -> dict[str, ModuleType]:
    """The modules of the commands, by name."""
    names = [module.name for module in pkgutil.iter_modules(benchmark.__path__) if not module.name.startswith("_")]
    return {name: importlib.import_module(f"{benchmark.__name__}.{name}") for name in sorted(names)}


def main(argv: Sequence[str]) -> int:
    found = commands()
    configs = {name: module.Config for name, module in found.items()}
    name, config = parse_command(configs, argv, "python -m training.benchmark")
    finish(found[name].measure(config), [name, *to_argv(config)], config.json)
    return 0


if __name__ == "__main__":
    run(main)
