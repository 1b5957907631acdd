"""Flags of --method usdl."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from data_preparation.common.command_line import flag
from training.methods.distribution_flags import DistributionFlags


@dataclass(frozen=True)
class Flags(DistributionFlags):
    TINY: ClassVar[Sequence[str]] = ("--score_bins", "11", "--target_std", "1")

    score_bins: int = flag(
        101, "Bins between the lowest and the highest final score of the action's kind; 25 for JIGSAWS.", minimum=2
    )
