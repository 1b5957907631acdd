"""Run `python -m data_preparation.synthetic`: dives.py, or clips.py for --task fall and --task actions."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from data_preparation.common.command_line import run
from data_preparation.synthetic import clips, dives


def main(argv: Sequence[str]) -> None:
    chooser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    chooser.add_argument("--task", nargs="?", default="dive")
    task = str(chooser.parse_known_args(argv)[0].task).lower()
    (clips if task in clips.SCENES else dives).main(argv)


if __name__ == "__main__":  # workers import this module under another name
    run(main)
