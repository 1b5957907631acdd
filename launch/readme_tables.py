"""Write the flag tables of README.md anew from the dataclasses.

python -m launch.readme_tables
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from data_preparation.cli import UserError, markdown_table, run
from data_preparation.download import DownloadConfig
from data_preparation.extract import ExtractConfig
from launch.config import REPOSITORY, LaunchConfig
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
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
        if not pattern.search(text):
            raise UserError(
                f"README.md has no markers for the {name}: restore <!-- {name} --> and <!-- end of {name} -->"
            )
        table = markdown_table(config).replace("\\", r"\\")
        text = pattern.sub(rf"\g<1>{table}\n\g<2>", text)
    return text


def main(argv: Sequence[str]) -> None:
    readme = REPOSITORY / "README.md"
    readme.write_text(with_tables(readme.read_text()))


if __name__ == "__main__":
    run(main)
