"""Flags of --method multitask."""

from __future__ import annotations

from dataclasses import dataclass

from data_preparation.common.command_line import flag
from training.methods.rank_loss_flags import RankLossFlags


@dataclass(frozen=True)
class Flags(RankLossFlags):
    heads: str = flag(
        "linear",
        "linear: layers on the mean of a clip's vectors, as C3D-AVG; context: dilated convolutions on its maps, as MSCADC.",
        choices=("linear", "context"),
    )

    @property
    def needs(self) -> str:
        return "volume" if self.heads == "context" else "vectors"
