"""Flags of --model features."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from data_preparation.common.command_line import flag
from training.plugins import BackboneFlags


@dataclass(frozen=True)
class Flags(BackboneFlags):
    reads: ClassVar[str] = "features"
    offers: ClassVar[frozenset[str]] = frozenset({"vectors", "tokens"})

    features: Path = flag(
        Path("features.npz"),
        "Feature file (.npz, .npy, .h5), written by python -m training.extract_features or another program.",
        path=True,
        may_change=True,
    )
