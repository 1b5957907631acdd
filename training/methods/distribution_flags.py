"""Flags of methods that predict a distribution of scores."""

from __future__ import annotations

from dataclasses import dataclass

from data_preparation.common.command_line import flag
from training.plugins import MethodFlags


@dataclass(frozen=True)
class DistributionFlags(MethodFlags):
    target_std: float = flag(
        5.0,
        "Standard deviation of the target distribution, in bins. The published value for JIGSAWS is 1.",
        minimum=1e-3,
    )
    decode: str = flag(
        "argmax",
        "Prediction from a distribution: argmax takes the most probable bin, as published; expectation takes the mean, which is not rounded to bins.",
        choices=("argmax", "expectation"),
    )
