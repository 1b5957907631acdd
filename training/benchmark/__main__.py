"""Run `python -m training.benchmark COMMAND`."""

from __future__ import annotations

from collections.abc import Sequence

from data_preparation.common.command_line import parse_command, run, to_argv
from training.benchmark import commands
from training.benchmark._result import finish


def main(argv: Sequence[str]) -> int:
    found = commands()
    configs = {name: module.Config for name, module in found.items()}
    name, config = parse_command(configs, argv, "python -m training.benchmark")
    finish(found[name].measure(config), [name, *to_argv(config)], config.json)
    return 0


if __name__ == "__main__":
    run(main)
