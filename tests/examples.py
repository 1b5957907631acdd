"""The examples of .github/CONTRIBUTING.md: a new backbone, method, data set and reader, each made from an existing file.

python -m tests.examples            writes their diffs into .github/CONTRIBUTING.md

tests/test_examples.py runs them as plug-ins.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import NamedTuple

from launch.readme_tables import replace_table
from tests.conftest import REPOSITORY

CONTRIBUTING = REPOSITORY / ".github" / "CONTRIBUTING.md"


class Example(NamedTuple):
    """A file made from an existing one by replacing pieces of text."""

    existing: str  # relative to the repository
    new: str  # relative to the folder of plug-ins, or to the user's own folder
    replacements: tuple[tuple[str, str], ...]

    def text(self) -> str:
        text = (REPOSITORY / self.existing).read_text()
        for old, new in self.replacements:
            assert text.count(old) == 1, f"{self.existing} has {text.count(old)} times: {old}"
            text = text.replace(old, new)
        return text

    def diff(self) -> str:
        old = (REPOSITORY / self.existing).read_text().splitlines()
        package = (
            self.existing.split("/")[0] + "/" if self.new.startswith(("backbones/", "methods/", "datasets/")) else ""
        )
        lines = difflib.unified_diff(old, self.text().splitlines(), self.existing, package + self.new, lineterm="", n=1)
        # without line numbers, so that an edit elsewhere in the file does not change the diff
        shown = ("@@" if line.startswith("@@") else line.rstrip() for line in lines)
        return "\n".join(["```diff", *shown, "```"])


EXAMPLES = {
    "backbone example": (
        Example(
            "training/backbones/c3d/network.py",
            "backbones/c3d_norm/network.py",
            (
                (
                    "        side = image_size\n",
                    "        self.norm5 = nn.GroupNorm(32, 512)\n        side = image_size\n",
                ),
                (
                    "return F.relu(pooling.max_pool3d(self.conv5b(F.relu(self.conv5a(x))), 2",
                    "return F.relu(pooling.max_pool3d(self.norm5(self.conv5b(F.relu(self.conv5a(x)))), 2",
                ),
            ),
        ),
        Example(
            "training/backbones/c3d/flags.py",
            "backbones/c3d_norm/flags.py",
            (("Flags of --model c3d.", "Flags of --model c3d_norm."),),
        ),
    ),
    "method example": (
        Example(
            "training/methods/regression/method.py",
            "methods/huber/method.py",
            (
                (
                    "import torch\nfrom torch import nn\n",
                    "import torch\nfrom torch import nn\nfrom torch.nn.functional import huber_loss\n",
                ),
                ("from training.losses import mse, soft_spearman", "from training.losses import soft_spearman"),
                (
                    'error = mse(outputs["execution_and_difficulty"], labels["execution_and_difficulty"])',
                    'error = huber_loss(outputs["execution_and_difficulty"], labels["execution_and_difficulty"], delta=self.config.huber_delta)',
                ),
                ('parts = {"mse": error}', 'parts = {"huber": error}'),
            ),
        ),
        Example(
            "training/methods/regression/flags.py",
            "methods/huber/flags.py",
            (
                ("Flags of --method regression.", "Flags of --method huber."),
                (
                    "    @property\n    def needs(",
                    '    huber_delta: float = flag(0.1, "Error above which the loss is linear.", minimum=1e-6)\n\n'
                    "    @property\n    def needs(",
                ),
            ),
        ),
    ),
    "reader example": (
        Example(
            "data_preparation/datasets/mtl_aqa.py",
            "datasets/from_zero.py",
            (
                (
                    "    actions = {key: replace(d, caption=captions.get(key, d.caption)) for key, d in read.dives.items()}\n",
                    "    actions = {\n"
                    "        key: replace(\n"
                    "            d,\n"
                    "            start_frame=d.start_frame + 1,\n"
                    "            end_frame=d.end_frame + 1,\n"
                    "            caption=captions.get(key, d.caption),\n"
                    "        )\n"
                    "        for key, d in read.dives.items()\n"
                    "    }\n",
                ),
            ),
        ),
    ),
    "data set example": (
        Example(
            "data_preparation/catalogue.ini",
            "my_dives/catalogue.ini",
            (
                (
                    "[videos/01.mp4]\n",
                    "[videos/27.mp4]\nsources =\n    /path/of/my_dives.mp4\n\n[videos/01.mp4]\n",
                ),
            ),
        ),
    ),
}


def write(name: str, folder: Path) -> None:
    """Write the files of one example below `folder`."""
    for example in EXAMPLES[name]:
        path = folder / example.new
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(example.text())


def blocks() -> dict[str, str]:
    """The Markdown of each example, by the name of its markers in CONTRIBUTING.md."""
    return {name: "\n".join(example.diff() for example in examples) for name, examples in EXAMPLES.items()}


if __name__ == "__main__":
    for block_name, block in blocks().items():
        replace_table(CONTRIBUTING, block_name, block)
