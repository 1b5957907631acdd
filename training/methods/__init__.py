"""Methods: features -> loss and score.

A method NAME is the file NAME.py with a function `build(config: TrainConfig, feature_dim: int) -> Method`. Nothing else
lists it.
"""

from __future__ import annotations

from importlib import import_module

import torch
from torch import nn

from data_preparation.dives import Dive
from training.backbones import Backbone
from training.config import TrainConfig

Tensors = dict[str, torch.Tensor]


class Method(nn.Module):
    """What is learned and how it becomes a score. The engine knows these functions and no method by name.

    Outputs and targets are dictionaries of tensors whose first dimension is the dive, so that the engine can gather
    them over ranks: `loss` and `scores` always see the global batch. The loss may depend on floating-point outputs only.
    """

    freezes_backbone: bool = False  # the backbone's features are used as they are, whatever --freeze says
    fits_at_once: bool = False  # `fit` learns from all features together: there are no steps and no gradients

    def targets(self, dive: Dive) -> Tensors:
        """What the loss needs to know of a dive, without the batch dimension.

        Raises:
            UserError: the dive's annotation lacks something that this method learns from.
        """
        raise NotImplementedError

    def forward(self, backbone: Backbone, batch: Tensors) -> Tensors:
        """Outputs for a batch: `video` (B, 3, T, H, W) and this method's targets, which a prediction must not look at. A
        method may call the backbone as often as it likes."""
        raise NotImplementedError

    def loss(self, outputs: Tensors, targets: Tensors) -> Tensors:
        """Scalars; `loss` is what is minimised, the others are for the log."""
        raise NotImplementedError

    def scores(self, outputs: Tensors) -> torch.Tensor:
        """(B,) final scores in points."""
        raise NotImplementedError

    def metrics(self, outputs: Tensors, targets: Tensors) -> dict[str, float]:
        """What this method predicts besides the score, judged over a whole set: name -> value."""
        return {}

    def columns(self, outputs: Tensors) -> dict[str, list]:
        """What predictions.csv says of each dive besides its score: column -> (B,) values."""
        return {}

    def fit(self, outputs: Tensors, targets: Tensors, val_outputs: Tensors, val_targets: Tensors) -> str:
        """For `fits_at_once`: learn from the outputs of all training dives, choose on the validation dives; says what was
        chosen."""
        raise NotImplementedError


def build_method(config: TrainConfig, feature_dim: int) -> Method:
    """The method that --method names, with random weights."""
    return import_module(f"training.methods.{config.method}").build(config, feature_dim)
