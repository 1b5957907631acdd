"""Flags of --model mscadc."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from data_preparation.common.command_line import flag
from training.plugins import BackboneFlags

MIN_FRAMES, MIN_SIZE = 12, 24  # smaller clips leave nothing after the last layer


@dataclass(frozen=True)
class Flags(BackboneFlags):
    offers: ClassVar[frozenset[str]] = frozenset({"vectors", "tokens", "maps", "volume"})
    TINY: ClassVar[tuple[str, ...]] = (
        "--spatial_size", "32", "--frame_num", "12", "--map_width", "8", "--map_dropout", "0.1", "--bn_eps", "0.1",
    )  # fmt: skip

    map_width: int = flag(
        256, "Channels of the last maps; the first layers have an eighth of them and more.", minimum=8
    )
    map_dropout: float = flag(0.5, "Dropout of the last maps.", minimum=0, maximum=1)
    bn_eps: float = flag(1e-5, "Epsilon of the batch norm.", minimum=0)

    def backbone_faults(self) -> list[str]:
        faults = []
        if self.frame_num < MIN_FRAMES:
            faults.append(f"--frame_num {self.frame_num} is too short for --model mscadc: give {MIN_FRAMES} or more")
        if self.spatial_size < MIN_SIZE:
            faults.append(
                f"--spatial_size {self.spatial_size} is too small for --model mscadc: give {MIN_SIZE} or more"
            )
        return faults
