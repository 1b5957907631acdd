"""What a model may know of a data set besides its actions. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from data_preparation.actions import ScoreRules


@dataclass(frozen=True)
class DataFacts:
    """The names of the classes, in the order of the labels, and the score rules of each kind of action. `by_difficulty` says whether
    all actions have a difficulty and one range of scores.

    A run folder stores them (data.json), so its checkpoint can score new videos without the annotations.
    """

    classes: tuple[str, ...] = ()
    rules: Mapping[str, ScoreRules] = field(default_factory=dict)
    by_difficulty: bool = True

    def record(self) -> dict[str, Any]:
        """The facts as JSON types. Of the score rules only the ranges: judges' scores of new videos are not known."""
        ranges = {kind: [rules.low, rules.high] for kind, rules in self.rules.items()}
        return {"classes": list(self.classes), "ranges": ranges, "by_difficulty": self.by_difficulty}

    @staticmethod
    def from_record(record: Mapping[str, Any]) -> DataFacts:
        """The inverse of `record`.

        Raises:
            ValueError: a range of scores is not finite.
        """
        rules = {kind: ScoreRules(low, high) for kind, (low, high) in record["ranges"].items()}
        if not all(math.isfinite(limit) for of_kind in rules.values() for limit in (of_kind.low, of_kind.high)):
            raise ValueError("a range of scores is not finite")
        return DataFacts(tuple(record["classes"]), rules, record.get("by_difficulty", True))


NO_FACTS = DataFacts()
