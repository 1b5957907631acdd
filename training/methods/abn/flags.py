"""Flags of --method abn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from data_preparation.common.command_line import flag
from training.methods.rank_loss_flags import RankLossFlags


@dataclass(frozen=True)
class Flags(RankLossFlags):
    TINY: ClassVar[tuple[str, ...]] = ("--branch_dropout", "0.1")

    predicts: str = flag(
        "label",
        "What both branches predict: the class (cross-entropy) or the score (losses of --method regression).",
        choices=("label", "score"),
    )
    branch_dropout: float = flag(0.5, "Dropout before the output layer of each branch.", minimum=0, maximum=1)
    balance: bool = flag(
        False, "Repeat the actions of rare classes in an epoch, so that all classes occur about equally often."
    )

    def method_faults(self) -> list[str]:
        without_classes = self.balance and self.predicts != "label"
        fault = "--balance True requires classes: give --predicts label, or leave --balance out"
        return [*super().method_faults(), *([fault] if without_classes else [])]

    @property
    def needs(self) -> str:
        return "attention"

    @property
    def task(self) -> str:  # type: ignore[override]  # a class variable in the base class
        return self.predicts
