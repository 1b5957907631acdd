"""MUSDL: "Uncertainty-aware Score Distribution Learning for Action Quality Assessment" (Tang et al., CVPR 2020).

The score of each judge is predicted as a distribution; the final score follows from the predicted scores by the rules of the
sport. Judges are taken in the order of the annotations.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from data_preparation.actions import COUNTED_JUDGES, Action
from data_preparation.common.errors import UserError
from training.backbones.base import Backbone
from training.config import TrainConfig
from training.data.batch import Tensors
from training.data.facts import DataFacts
from training.data.plan import Arrays
from training.methods.base import Method
from training.methods.distribution import decoded_bin, distribution_head, divergence, gaussian_target
from training.rows import full_precision


def build(config: TrainConfig, feature_dim: int, data: DataFacts) -> MUSDL:
    return MUSDL(config, feature_dim)


class MUSDL(Method):
    """Predicts a distribution of the score of each judge."""

    def __init__(self, config: TrainConfig, feature_dim: int) -> None:
        super().__init__()
        self.config = config
        self.low, self.high = config.judge_range
        self.heads = nn.ModuleList(distribution_head(feature_dim, config.judge_bins) for _ in range(config.judges))

    def given(self, action: Action) -> Arrays:
        if self.config.judges_total == "sum":
            return {}
        return {"difficulty": np.array(action.need("difficulty"), np.float64)}

    def labels(self, action: Action) -> Arrays:
        scores = np.array(action.need("judge_scores"), np.float64)
        if len(scores) != self.config.judges:
            raise UserError(
                f"{action.title} has {len(scores)} judges' scores and --judges is {self.config.judges}: give the number of the data set, or leave such actions out"
            )
        outside = [f"{score:g}" for score in scores if not self.low <= score <= self.high]
        if outside:
            raise UserError(
                f"{action.title} has judges' scores ({', '.join(outside)}) outside of --judge_range {self.low:g} {self.high:g}: correct them, or give the range of the data set"
            )
        centre = (scores - self.low) / (self.high - self.low) * (self.config.judge_bins - 1)
        return {
            "distributions": gaussian_target(centre, self.config.judge_bins, self.config.target_std)
        }  # (judges, bins)

    def encode(self, backbone: Backbone, clip: torch.Tensor) -> Tensors:
        features_BND = backbone(clip)[:, backbone.clip_vectors :]
        with torch.autocast(features_BND.device.type, enabled=False):
            features_BD = full_precision(features_BND).mean(dim=1)
            return {"logits": torch.stack([head(features_BD) for head in self.heads], dim=1)}  # (B, judges, bins)

    def loss(self, outputs: Tensors, given: Tensors, labels: Tensors) -> Tensors:
        return {"loss": divergence(outputs["logits"], labels["distributions"])}

    def judges(self, outputs: Tensors) -> torch.Tensor:
        """The predicted score of each judge: (B, judges)."""
        bins = decoded_bin(outputs["logits"], self.config.decode)
        return self.low + bins / (self.config.judge_bins - 1) * (self.high - self.low)

    def details(self, outputs: Tensors) -> dict[str, list]:
        return {f"judge {i}": scores.tolist() for i, scores in enumerate(self.judges(outputs).unbind(dim=1), start=1)}

    def predict(self, outputs: Tensors, given: Tensors) -> Tensors:
        scores = self.judges(outputs)
        if self.config.judges_total == "sum":
            return {"score": scores.sum(dim=1)}
        dropped = (self.config.judges - COUNTED_JUDGES) // 2
        counted = scores.sort(dim=1).values[:, dropped : dropped + COUNTED_JUDGES]
        return {"score": counted.sum(dim=1) * given["difficulty"].to(scores)}

    def notes(self) -> list[str]:
        return [] if self.config.judges_total == "sum" else ["difficulty given"]
