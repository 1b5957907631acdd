"""Flags of --model c3d."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from data_preparation.common.command_line import flag
from training.backbones.windows import layout_faults
from training.plugins import BackboneFlags


@dataclass(frozen=True)
class Flags(BackboneFlags):
    offers: ClassVar[frozenset[str]] = frozenset({"vectors", "tokens"})
    TINY: ClassVar[tuple[str, ...]] = ("--spatial_size", "16", "--frame_num", "16")

    window_layout: str = flag(
        "full",
        "Windows of 16 frames: full covers the last frames of the clip; reference omits them, as C3D-AVG's code does.",
        choices=("full", "reference"),
    )

    def backbone_faults(self) -> list[str]:
        return layout_faults(self.frame_num, self.window_layout)
