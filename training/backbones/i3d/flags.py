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
    stem_channels: ClassVar[int] = 480
    stem_stride: ClassVar[int] = 16
    # two windows; a large epsilon, because such a small clip leaves one position per channel, often with zero variance
    TINY: ClassVar[tuple[str, ...]] = (
        "--spatial_size", "32", "--frame_num", "13", "--window_layout", "20x8", "--bn_eps", "0.1",
    )  # fmt: skip

    window_layout: str = flag(
        "10x16",
        "Windows of a clip, named after those of a 103-frame clip: 10x16 as CoRe, 10x16_end as USDL, 20x8 as TPT, 4x32 as PECoP (one for a clip of 32 frames); full gives 7 of 16.",
        choices=tuple(name for name in LAYOUTS if name != "reference"),
    )
    bn_eps: float = flag(
        1e-3, "Epsilon of the batch norm; use 0.00001 with released CoRe and TPT checkpoints.", minimum=0
    )
    bn_momentum: float = flag(
        0.1, "Momentum of the running statistics; the code of USDL and TSA-Net has 0.01.", minimum=0, maximum=1
    )

    adapters: bool = flag(
        False,
        "Add an adapter after each Mixed block, as PECoP; only the adapters are trained, unless --adapters_only is False.",
    )
    adapters_only: bool = flag(
        True, "With --adapters True: freeze the backbone except for the adapters. False trains all of it."
    )
    adapter_init: str = flag(
        "random",
        "Initial weights of an adapter's last layer. With zero the adapters change nothing at first; PECoP's code has random.",
        choices=("random", "zero"),
    )

    def backbone_faults(self) -> list[str]:
        return layout_faults(self.frame_num, self.window_layout)
