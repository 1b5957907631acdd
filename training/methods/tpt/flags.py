"""Flags of --method tpt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from data_preparation.common.command_line import flag
from training.methods.pairing_flags import PairingFlags

HEADS = 8  # of the self-attention between parts


@dataclass(frozen=True)
class Flags(PairingFlags):
    TINY: ClassVar[Sequence[str]] = (
        "--parts", "2", "--part_width", "16", "--part_hidden", "16", "--ranking_margin", "0.5", "--voters", "4",
    )  # fmt: skip

    parts: int = flag(5, "Parts that an action is divided into.", minimum=2)
    part_width: int = flag(512, "Width of the vector of a part.", minimum=HEADS)
    part_hidden: int = flag(512, "Width of the hidden layer of the decoder's feed-forward networks.", minimum=1)
    part_dropout: float = flag(0.1, "Dropout of the decoder and of the pair encoder.", minimum=0, maximum=1)
    ranking_margin: float = flag(
        3.2, "Windows by which the centre of a part should at least be after that of the part before.", minimum=0
    )
    ranking_weight: float = flag(1.0, "Weight of the ranking loss, which keeps the parts in order.", minimum=0)
    sparsity_weight: float = flag(
        0.05, "Weight of the sparsity loss, which keeps the attention of a part near its centre.", minimum=0
    )
    output_lr_scale: float = flag(
        10.0, "Multiplies the learning rate of the two output networks (groups and positions).", minimum=0
    )

    @property
    def needs(self) -> str:
        return "tokens"

    def method_faults(self) -> list[str]:
        faults = super().method_faults()
        if self.part_width % HEADS:
            faults.append(f"--part_width {self.part_width} is not a multiple of {HEADS}: give for example 512")
        return faults
