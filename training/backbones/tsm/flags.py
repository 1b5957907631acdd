"""Flags of --model tsm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from data_preparation.common.command_line import flag
from training.plugins import BackboneFlags

BLOCKS = {"18": (2, 2, 2, 2), "34": (3, 4, 6, 3), "50": (3, 4, 6, 3), "101": (3, 4, 23, 3)}  # of each stage, by depth


@dataclass(frozen=True)
class Flags(BackboneFlags):
    any_size: ClassVar[bool] = True
    offers: ClassVar[frozenset[str]] = frozenset({"vectors", "tokens", "maps", "volume"})
    # a large epsilon, because the last maps of so small a frame have one pixel
    TINY: ClassVar[tuple[str, ...]] = (
        "--spatial_size", "32", "--frame_num", "4", "--resnet_depth", "18", "--resnet_width", "8", "--bn_eps", "0.1",
    )  # fmt: skip

    resnet_depth: str = flag("50", "Layers of the ResNet.", choices=tuple(BLOCKS))
    resnet_width: int = flag(64, "Channels of the first stage; weight files have 64.", minimum=8)
    shift_div: int = flag(
        8,
        "One of so many channels is shifted from the next frame to this one, and another one from the frame before.",
        minimum=2,
    )
    shift_place: str = flag(
        "residual",
        "Where channels are shifted: residual, before the first convolution of a block, as published, or block, before the whole block.",
        choices=("residual", "block"),
    )
    temporal_pool: bool = flag(False, "Halve the number of frames before the second stage (max pooling).")
    bn_eps: float = flag(1e-5, "Epsilon of the batch norm.", minimum=0)
