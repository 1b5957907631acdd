"""Flags of --method classify."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from data_preparation.common.command_line import flag
from training.plugins import MethodFlags


@dataclass(frozen=True)
class Flags(MethodFlags):
    task: ClassVar[str] = "label"
    TINY: ClassVar[tuple[str, ...]] = ("--head_dropout", "0.1", "--hidden_units", "256")

    label_smoothing: float = flag(
        0.0, "Share of the target that is spread evenly over all classes (label smoothing).", minimum=0, maximum=1
    )
    hidden_units: int = flag(0, "Units of a hidden layer of the head; 0: only an output layer.", minimum=0)
    head_dropout: float = flag(0.5, "Dropout before each layer of the head.", minimum=0, maximum=1)
    head_on_each: bool = flag(
        False, "Apply the head to each vector of a clip and average the logits, as TSM; False applies it to their mean."
    )
    head_init_std: float = flag(
        0.0,
        "Standard deviation of the initial weights of the output layer (TSM: 0.001); 0: those of PyTorch.",
        minimum=0,
    )
    balance: bool = flag(
        False, "Repeat the actions of rare classes in an epoch, so that all classes occur about equally often."
    )
