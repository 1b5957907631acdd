"""Flags of --model i3d."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from data_preparation.common.command_line import flag
from training.backbones.windows import LAYOUTS, layout_faults
from training.plugins import BackboneFlags


@dataclass(frozen=True)
class Flags(BackboneFlags):
    offers: ClassVar[frozenset[str]] = frozenset({"vectors", "tokens", "stages", "maps"})
    # two windows; a large epsilon, since so small a clip leaves one position for each channel, whose variance is often nothing
    TINY: ClassVar[tuple[str, ...]] = (
        "--spatial_size", "32", "--frame_num", "13", "--window_layout", "20x8", "--bn_eps", "0.1",
    )  # fmt: skip

    window_layout: str = flag(
        "10x16",
        "Windows of a clip, named by what they are for 103 frames: 10x16 is CoRe's, 10x16_end USDL's, 20x8 TPT's, full 7 x 16.",
        choices=tuple(name for name in LAYOUTS if name != "reference"),
    )
    bn_eps: float = flag(1e-3, "Epsilon of I3D's batch norm; 0.00001 for released CoRe and TPT checkpoints.", minimum=0)
    bn_momentum: float = flag(
        0.1, "Momentum of I3D's running statistics; 0.01 is that of USDL's and TSA-Net's code.", minimum=0, maximum=1
    )

    def backbone_faults(self) -> list[str]:
        return layout_faults(self.frame_num, self.window_layout)
