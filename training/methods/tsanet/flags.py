"""Flags of --method tsanet."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from data_preparation.common.command_line import flag
from training.methods.usdl import flags as usdl


@dataclass(frozen=True)
class Flags(usdl.Flags):
    # crops, so that the tests move boxes; a wider tube than one position
    TINY: ClassVar[tuple[str, ...]] = ("--data_aug", "True", "--score_bins", "11", "--target_std", "1")

    boxes: str = flag(
        "./boxes",
        "Folder of the boxes, one file for each video (python -m data_preparation.boxes); none trains without attention (Plain-Net).",
        allowed="path, none",
        path=True,
        may_change=True,
    )
    predicts: str = flag(
        "label",
        "label predicts the class, such as fall or no fall; score the final score, as --method usdl (--score_bins, --target_std, --decode).",
        choices=("label", "score"),
    )
    released_tube: bool = flag(
        False,
        "Repeat two mistakes of the authors' code, for their checkpoints: boxes are scaled as if the network saw whole frames, and windows get the steps of others.",
    )
    head_dropout: float = flag(0.0, "Dropout before each ReLU of the head of --predicts label.", minimum=0, maximum=1)

    @property
    def task(self) -> str:  # type: ignore[override]  # depends on a flag
        return self.predicts

    @property
    def needs(self) -> str:
        return "stages"

    @property
    def boxes_folder(self) -> Path | None:
        return None if self.boxes.lower() == "none" else Path(self.boxes)
