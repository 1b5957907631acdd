"""Final scores on a scale of 0 to 1, for actions without difficulty or of kinds with different ranges of scores.

0 and 1 are the ends of the range that the data set states for the kind of the action. Predictions outside it stay as they are.
"""

from __future__ import annotations

import numpy as np
import torch

from data_preparation.actions import Action
from data_preparation.common.errors import UserError
from training.data.batch import Tensors
from training.data.facts import DataFacts
from training.data.plan import Arrays


class ScoreScale:
    """The ranges of the kinds of a data set."""

    def __init__(self, data: DataFacts) -> None:
        self.ranges = {kind: (rules.low, rules.high) for kind, rules in data.rules.items()}

    def range_of(self, action: Action) -> tuple[float, float]:
        """The lowest and the highest final score of the action's kind.

        Raises:
            UserError: the data set states no range for the kind.
        """
        own = (action.rules.low, action.rules.high) if action.rules else (0.0, 0.0)
        low, high = self.ranges.get(action.kind, own)
        if not low < high:
            kind = f"of kind '{action.kind}'" if action.kind else "of this data set"
            raise UserError(
                f"actions {kind} have no range of final scores, which this method needs where there is no difficulty: state it in the annotations, leave them out, or choose another --method"
            )
        return low, high

    def scaled(self, action: Action) -> float:
        """The final score of an action mapped to 0 to 1.

        Raises:
            UserError: the action has no final score, or its kind no range.
        """
        low, high = self.range_of(action)
        return (action.need("final_score") - low) / (high - low)

    def given(self, action: Action) -> Arrays:
        """What `points` needs of an action."""
        return {"score_range": np.array(self.range_of(action), np.float64)}

    @staticmethod
    def points(scaled_B: torch.Tensor, given: Tensors) -> torch.Tensor:
        """Scores of 0 to 1 (B,) -> points (B,)."""
        low_B, high_B = given["score_range"].unbind(dim=1)
        return low_B + scaled_B * (high_B - low_B)
