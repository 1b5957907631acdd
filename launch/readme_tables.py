"""Write the tables of the README files from the dataclasses of the flags, and the results table from a file.

python -m launch.readme_tables [FILE MARK]         job_files/results_table.sh calls it with a table of results
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path

from data_preparation.common.command_line import markdown_table, run
from data_preparation.common.errors import UserError
from data_preparation.download import DownloadConfig
from data_preparation.extract import ExtractConfig
from launch.config import REPOSITORY, LaunchConfig
from training import plugins
from training.config import TrainConfig
from training.runtime import statuses

RESULTS_README = "training/README.md"


def tables() -> dict[str, dict[str, str]]:
    """The generated tables: README file (relative to the repository) to {name of the markers: table}."""
    of_plugins = {f"{kind} flags": plugin_tables(kind, flag_name) for kind, flag_name in plugins.FLAG_OF.items()}
    return {
        "data_preparation/README.md": {
            "extraction flags": markdown_table(ExtractConfig),
            "download flags": markdown_table(DownloadConfig),
        },
        "training/README.md": {"training flags": markdown_table(TrainConfig), **of_plugins},
        "launch/README.md": {"launch flags": markdown_table(LaunchConfig)},
        "job_files/README.md": {"exit statuses": statuses.markdown_table()},
    }


def plugin_tables(kind: str, flag_name: str) -> str:
    """A heading and a table for each plug-in of a kind that has flags of its own."""
    parts = []
    for name in plugins.names(kind):
        flags = plugins.flags_of(kind, name)
        none = "no flags of its own" if not dataclasses.fields(flags) else ""
        parts.append(f"`--{flag_name} {name}`" + (f": {none}" if none else f"\n\n{markdown_table(flags)}"))
    return "\n\n".join(["", *parts, ""])


def replace_table(readme: Path, name: str, table: str) -> None:
    """Replace what is between `<!-- name -->` and `<!-- end of name -->` in a README file.

    Raises:
        UserError: the file has no such pair of markers.
    """
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
    text = readme.read_text()
    if not pattern.search(text):
        raise UserError(f"{readme} has no markers for the {name}: add <!-- {name} --> and <!-- end of {name} -->")
    readme.write_text(pattern.sub(lambda found: f"{found[1]}{table}\n{found[2]}", text))


def main(argv: Sequence[str]) -> None:
    if os.environ.get(plugins.VARIABLE):
        raise UserError(f"unset {plugins.VARIABLE} first: the README files list the plug-ins of this repository only")
    for file, of_file in tables().items():
        for name, table in of_file.items():
            replace_table(REPOSITORY / file, name, table)
    if argv:
        file, mark = argv
        replace_table(REPOSITORY / RESULTS_README, mark, "\n" + Path(file).read_text())


if __name__ == "__main__":
    run(main)
