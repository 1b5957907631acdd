"""What an explanation holds (imports only numpy)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Reason:
    """What changed one predicted quantity. `map_THW` is from 0 to 1; `effects_T` is by how much each frame raised (positive) or
    lowered the quantity, in `unit`."""

    quantity: str
    value: str
    unit: str
    map_THW: np.ndarray
    effects_T: np.ndarray

    @property
    def strongest(self) -> int:
        """The index of the frame with the largest effect."""
        return int(np.abs(self.effects_T).argmax())


@dataclass(frozen=True, eq=False)
class Explanation:
    """`frames_THWC` (uint8) are the frames that the network saw, `kind` is that of the maps (maps.KINDS), `reasons` has one entry for
    each quantity, the most important first."""

    name: str
    kind: str
    frames_THWC: np.ndarray
    reasons: tuple[Reason, ...]
