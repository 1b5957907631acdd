"""Flags of --model timesformer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from data_preparation.common.command_line import flag
from training.plugins import BackboneFlags

ATTENTION_TYPES = ("divided_space_time", "space_only", "joint_space_time")


@dataclass(frozen=True)
class Flags(BackboneFlags):
    offers: ClassVar[frozenset[str]] = frozenset({"vectors", "tokens"})
    weights_licence: ClassVar[str] = "The authors' TimeSformer files are under CC BY-NC 4.0."
    TINY: ClassVar[tuple[str, ...]] = (
        "--spatial_size", "32", "--frame_num", "4", "--embed_dim", "24", "--depth", "2", "--num_heads", "2",
    )  # fmt: skip

    attention_type: str = flag("divided_space_time", "Attention of the blocks.", short="-at", choices=ATTENTION_TYPES)
    patch_size: int = flag(16, "Patch size in pixels.", short="-ps", minimum=1)
    embed_dim: int = flag(768, "Embedding dimension.", short="-ed", minimum=1)
    depth: int = flag(12, "Number of blocks.", minimum=1)
    num_heads: int = flag(12, "Attention heads of each block.", minimum=1)
    drop_path: float = flag(
        0.1, "Stochastic depth rate of the last block; it grows linearly from 0 at the first.", minimum=0, maximum=0.99
    )
    time_embed_resize: str = flag(
        "nearest",
        "Interpolation of a weight file's time embedding to another --frame_num; the original uses nearest.",
        choices=("nearest", "linear"),
    )

    def backbone_faults(self) -> list[str]:
        faults = []
        if self.spatial_size % self.patch_size:
            faults.append(
                f"--spatial_size {self.spatial_size} is not a multiple of --patch_size {self.patch_size}: change one of them"
            )
        if self.embed_dim % self.num_heads:
            faults.append(
                f"--embed_dim {self.embed_dim} is not a multiple of --num_heads {self.num_heads}: change one of them"
            )
        return faults
