"""Flags of --method multitask."""

from __future__ import annotations

from dataclasses import dataclass

from training.methods.rank_loss_flags import RankLossFlags


@dataclass(frozen=True)
class Flags(RankLossFlags):
    pass
