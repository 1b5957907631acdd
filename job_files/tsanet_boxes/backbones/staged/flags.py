"""Flags of --model staged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from training.plugins import BackboneFlags


@dataclass(frozen=True)
class Flags(BackboneFlags):
    offers: ClassVar[frozenset[str]] = frozenset({"vectors", "stages"})
    any_size: ClassVar[bool] = True
    stem_channels: ClassVar[int] = 24
    stem_stride: ClassVar[int] = 4
    TINY: ClassVar[tuple[str, ...]] = ("--spatial_size", "32", "--frame_num", "8")
