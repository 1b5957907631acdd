"""Flags of --method musdl."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from data_preparation.common.command_line import flag
from training.methods.distribution_flags import DistributionFlags


@dataclass(frozen=True)
class Flags(DistributionFlags):
    TINY: ClassVar[Sequence[str]] = ("--judge_bins", "5", "--target_std", "1")

    judges: int = flag(7, "Number of judges (of sub-scores in JIGSAWS: 6), each with a distribution.", minimum=1)
    judge_range: tuple[float, ...] = flag(
        (0.0, 10.0), "The lowest and the highest score of a judge; 1 5 for JIGSAWS.", minimum=0
    )
    judge_bins: int = flag(21, "Bins between them: 21 are half points from 0 to 10; 5 for JIGSAWS.", minimum=2)
    judges_total: str = flag(
        "diving",
        "Final score from the judges' scores: diving adds the middle three and multiplies by the annotated difficulty, which is an input then; sum adds all, as in JIGSAWS.",
        choices=("diving", "sum"),
    )

    def method_faults(self) -> list[str]:
        faults = super().method_faults()
        if len(self.judge_range) != 2 or not self.judge_range[0] < self.judge_range[-1]:
            given = " ".join(f"{value:g}" for value in self.judge_range)
            faults.append(f"--judge_range {given}: give the lowest and the highest score of a judge, such as 0 10")
        if self.judges_total == "diving" and self.judges < 3:
            faults.append(f"--judges {self.judges} are too few for --judges_total diving: give 3 or more, or sum")
        return faults
