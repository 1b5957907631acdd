"""Flags of --model st_abn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from data_preparation.common.command_line import flag
from training.plugins import BackboneFlags

BLOCKS = {"10": (1, 1, 1, 1), "18": (2, 2, 2, 2), "34": (3, 4, 6, 3), "50": (3, 4, 6, 3), "101": (3, 4, 23, 3)}


@dataclass(frozen=True)
class Flags(BackboneFlags):
    offers: ClassVar[frozenset[str]] = frozenset({"vectors", "tokens", "maps", "volume", "attention"})
    # a large epsilon, because the last maps of so small a frame have one pixel
    TINY: ClassVar[tuple[str, ...]] = (
        "--spatial_size", "32", "--frame_num", "4", "--resnet_depth", "10", "--resnet_width", "8",
        "--attention_channels", "6", "--bn_eps", "0.1",
    )  # fmt: skip

    resnet_depth: str = flag("50", "Layers of the 3-D ResNet.", choices=tuple(BLOCKS))
    resnet_width: int = flag(64, "Channels of the first stage; weight files have 64.", minimum=8)
    attention_channels: int = flag(
        174,
        "Channels of the attention branch; in the original the number of classes of Something-Something.",
        minimum=1,
    )
    attention_relu: bool = flag(
        False,
        "ReLU behind the weighted maps: False as in the plain PyTorch code of the method, True as in the authors' first code.",
    )
    bn_eps: float = flag(1e-5, "Epsilon of the batch norm.", minimum=0)
