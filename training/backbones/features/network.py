"""Precomputed features as a backbone without weights, for every method that needs vectors."""

from __future__ import annotations

import torch

from data_preparation.common.errors import UserError
from training.backbones.base import Backbone
from training.config import TrainConfig
from training.data.features import feature_file


def build(config: TrainConfig) -> Features:
    return Features(feature_file(config.features).width)


class Features(Backbone):
    """(B, N, D) float32, returned unchanged."""

    def __init__(self, feature_dim: int) -> None:
        super().__init__()
        self.feature_dim = feature_dim

    def prepare(self, clip: torch.Tensor, mean_C: torch.Tensor, std_C: torch.Tensor) -> torch.Tensor:
        return clip

    def forward(self, features_BND: torch.Tensor) -> torch.Tensor:
        return features_BND

    def example(self, config: TrainConfig, clips: int) -> torch.Tensor:
        return torch.zeros(clips, 1, self.feature_dim)

    def load_pretrained(self, state: dict[str, torch.Tensor]) -> list[str]:
        raise UserError("--model features has no weights: leave --pretrained_model out")
