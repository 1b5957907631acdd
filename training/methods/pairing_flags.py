"""Flags of methods that compare an action with references."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from data_preparation.common.command_line import flag
from training.plugins import MethodFlags

PAIRS = ("difficulty", "number", "kind", "free")


@dataclass(frozen=True)
class PairingFlags(MethodFlags):
    clips_per_sample: ClassVar[int] = 2

    pairs: str = flag(
        "difficulty",
        "Compare an action with those of the same difficulty, the same dive number, the same kind (AQA-7's sport; scores mapped to 0..100), or with any (free). The last two do not use the difficulty.",
        choices=PAIRS,
    )
    voters: str = flag(
        "10",
        "Number of references that a prediction averages, drawn by --split_seed and the action; all uses every one of the same difficulty (number, kind).",
        allowed="whole number from 1, all",
    )
    difficulty: str = flag(
        "given",
        "Difficulty of the action to score: given (an input, as in the published results), or predicted from the video.",
        choices=("given", "predicted"),
    )

    @property
    def voter_count(self) -> int | None:
        """The number of voters, or None for all."""
        return None if self.voters.lower() == "all" else int(self.voters)

    def method_faults(self) -> list[str]:
        faults = super().method_faults()
        if self.voters.lower() != "all" and not (self.voters.isdecimal() and int(self.voters)):
            faults.append(f"--voters {self.voters} is neither a number from 1 nor all: give for example 10")
        if self.difficulty == "predicted" and self.pairs != "difficulty":
            faults.append(
                f"--difficulty predicted requires --pairs difficulty, not --pairs {self.pairs}: leave one of them out"
            )
        return faults
