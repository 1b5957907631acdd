"""Flags of --method classify."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from data_preparation.common.command_line import flag
from training.plugins import MethodFlags

MOST_REPEATS = 1000


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
    class_repeats: tuple[str, ...] = flag(
        ("none",),
        "How often the actions of a class occur in an epoch, such as fall=3 ride=2; classes that are not named occur once.",
        allowed="none, or one or more CLASS=NUMBER",
    )

    @property
    def repeats_of_class(self) -> dict[str, int]:
        """The repeats of each class that --class_repeats names; empty for none.

        Raises:
            ValueError: a value is not CLASS=NUMBER, or names a class again.
        """
        if [word.lower() for word in self.class_repeats] == ["none"]:
            return {}
        found: dict[str, int] = {}
        for word in self.class_repeats:
            name, _, number = word.rpartition("=")
            if not name or not number.isdecimal() or not 1 <= int(number) <= MOST_REPEATS or name in found:
                raise ValueError(word)
            found[name] = int(number)
        return found

    def method_faults(self) -> list[str]:
        try:
            repeats = self.repeats_of_class
        except ValueError as error:
            return [
                f"--class_repeats {error} is not CLASS=NUMBER with a number from 1 to {MOST_REPEATS}, each class once: give for example fall=3"
            ]
        if repeats and self.balance:
            return ["--class_repeats and --balance True both set how often classes occur: give one of them"]
        return []
