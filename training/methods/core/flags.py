"""Flags of --method core."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from data_preparation.common.command_line import flag
from training.methods.pairing_flags import PairingFlags


@dataclass(frozen=True)
class Flags(PairingFlags):
    TINY: ClassVar[Sequence[str]] = ("--tree_depth", "3", "--tree_width", "16", "--voters", "4")

    tree_depth: int = flag(
        5, "Levels of the regression tree, the root included; 5 gives 16 groups of differences.", minimum=2, maximum=8
    )
    tree_width: int = flag(256, "Width of each node of the regression tree.", minimum=1)
