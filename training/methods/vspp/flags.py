"""Flags of --method vspp."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from data_preparation.common.command_line import flag
from training.plugins import MethodFlags


@dataclass(frozen=True)
class Flags(MethodFlags):
    task: ClassVar[str] = "pretext"
    TINY: ClassVar[tuple[str, ...]] = ("--segments", "2")

    pace_stride: int = flag(
        1, "Frames from one frame of the clip to the next, outside the altered segment: 1 for dives.", minimum=1
    )
    max_pace: int = flag(
        5, "Largest stride of the altered segment; all others from 1 on occur, too, except --pace_stride.", minimum=2
    )
    segments: int = flag(4, "Equal segments of a clip, one of which is altered.", minimum=2)
    speed_classes: str = flag(
        "all",
        "all gives every stride up to --max_pace a class, as PECoP, although --pace_stride never occurs; drawn leaves that class out.",
        choices=("all", "drawn"),
    )
    pretext_dropout: float = flag(0.5, "Dropout before each of the two output layers.", minimum=0, maximum=1)

    @property
    def needs(self) -> str:
        return "frames"

    def method_faults(self) -> list[str]:
        faults = super().method_faults()
        if self.frame_num < 2 * self.segments:
            faults.append(
                f"--frame_num {self.frame_num} gives {self.segments} segments fewer than two frames each: give {2 * self.segments} or more, or fewer --segments"
            )
        if self.evaluate:
            faults.append(
                "--method vspp predicts nothing that was judged, so there is no test split to evaluate: give --evaluate False, and train another --method from its best.pt"
            )
        return faults
