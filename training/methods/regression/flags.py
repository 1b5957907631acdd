"""Flags of --method regression."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from data_preparation.common.command_line import flag
from training.methods.rank_loss_flags import RankLossFlags

ACTIVATIONS = ("None", "ReLU", "LeakyReLU", "ELU", "GELU")


@dataclass(frozen=True)
class Flags(RankLossFlags):
    TINY: ClassVar[tuple[str, ...]] = ("--topology", "16", "--dropout", "0.1", "--activation", "GELU")

    topology: tuple[int, ...] = flag((512, 256), "Hidden sizes of the MLP head.", short="-top", minimum=1)
    dropout: tuple[float, ...] = flag(
        (0.5, 0.5),
        "Dropout before each hidden layer of the head, one value per size in --topology; the last value also precedes the output layer.",
        short="-dr",
        minimum=0,
        maximum=1,
    )
    activation: str = flag("None", "Activation after each hidden layer of the head.", short="-act", choices=ACTIVATIONS)
    use_decoder: bool = flag(
        False, "Use a Transformer decoder over the clip's tokens as the head, in place of the MLP."
    )

    @property
    def needs(self) -> str:
        return "tokens" if self.use_decoder else "vectors"

    def method_faults(self) -> list[str]:
        if len(self.topology) == len(self.dropout):
            return super().method_faults()
        return [
            *super().method_faults(),
            f"--topology has {len(self.topology)} values and --dropout {len(self.dropout)}: give one dropout for each hidden layer",
        ]
