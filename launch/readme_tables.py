"""Write the flag tables of README.md anew from the dataclasses; with a file, its results table too.

python -m launch.readme_tables [results.md]                    job_files/results_table.sh makes that file
"""

from __future__ import annotations

import dataclasses
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

TABLES = {
    "training flags": TrainConfig,
    "launch flags": LaunchConfig,
    "extraction flags": ExtractConfig,
    "download flags": DownloadConfig,
}


def with_tables(text: str) -> str:
    """The text with what stands between each pair of markers replaced by its table.

    Raises:
        UserError: a pair of markers is missing.
    """
    for name, config in TABLES.items():
        text = _replaced(text, name, markdown_table(config))
    for kind, flag_name in plugins.FLAG_OF.items():
        text = _replaced(text, f"{kind} flags", plugin_tables(kind, flag_name))
    return text


def plugin_tables(kind: str, flag_name: str) -> str:
    """A heading and a table for each plug-in of a kind that has flags of its own."""
    parts = []
    for name in plugins.names(kind):
        flags = plugins.flags_of(kind, name)
        none = "no flags of its own" if not dataclasses.fields(flags) else ""
        parts.append(f"`--{flag_name} {name}`" + (f": {none}" if none else f"\n\n{markdown_table(flags)}"))
    return "\n\n".join(["", *parts, ""])


def _replaced(text: str, name: str, table: str) -> str:
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
    if not pattern.search(text):
        raise UserError(f"README.md has no markers for the {name}: restore <!-- {name} --> and <!-- end of {name} -->")
    return pattern.sub(lambda found: f"{found[1]}{table}\n{found[2]}", text)


def main(argv: Sequence[str]) -> None:
    readme = REPOSITORY / "README.md"
    text = with_tables(readme.read_text())
    for name in argv[:1]:
        text = _replaced(text, "results", "\n" + Path(name).read_text())
    readme.write_text(text)


if __name__ == "__main__":
    run(main)
