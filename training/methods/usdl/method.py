"""USDL: "Uncertainty-aware Score Distribution Learning for Action Quality Assessment" (Tang et al., CVPR 2020).

The final score is predicted as a distribution over bins between the lowest and the highest score of the action's kind. The
difficulty is not used.
"""

from __future__ import annotations

import numpy as np
import torch

from data_preparation.actions import Action
from training.backbones.base import Backbone
from training.config import TrainConfig
from training.data.batch import Tensors
from training.data.facts import DataFacts
from training.data.plan import Arrays
from training.methods.base import Method
from training.methods.distribution import decoded_bin, distribution_head, divergence, gaussian_target
from training.methods.scale import ScoreScale
from training.rows import full_precision


def build(config: TrainConfig, feature_dim: int, data: DataFacts) -> USDL:
    return USDL(config, feature_dim, data)


class USDL(Method):
    """Predicts a distribution of the final score."""

    def __init__(self, config: TrainConfig, feature_dim: int, data: DataFacts) -> None:
        super().__init__()
        self.config, self.scale = config, ScoreScale(data)
        self.head = distribution_head(feature_dim, config.score_bins)

    def given(self, action: Action) -> Arrays:
        return self.scale.given(action)

    def labels(self, action: Action) -> Arrays:
        centre = self.scale.scaled(action) * (self.config.score_bins - 1)
        return {"distribution": gaussian_target(np.array(centre), self.config.score_bins, self.config.target_std)}

    def encode(self, backbone: Backbone, clip: torch.Tensor) -> Tensors:
        features_BND = backbone(clip)[:, backbone.clip_vectors :]
        with torch.autocast(features_BND.device.type, enabled=False):
            return {"logits": self.head(full_precision(features_BND).mean(dim=1))}  # (B, bins)

    def loss(self, outputs: Tensors, given: Tensors, labels: Tensors) -> Tensors:
        return {"loss": divergence(outputs["logits"], labels["distribution"])}

    def predict(self, outputs: Tensors, given: Tensors) -> Tensors:
        scaled = decoded_bin(outputs["logits"], self.config.decode) / (self.config.score_bins - 1)
        return {"score": self.scale.points(scaled, given)}
