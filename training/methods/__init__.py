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
    """What is learned and how it becomes a score. The engine knows these four functions and no method by name.

    Outputs and targets are dictionaries of tensors whose first dimension is the dive, so that the engine can gather
    them over ranks: `loss` and `scores` always see the global batch.
    """

    def targets(self, dive: Dive) -> Tensors:
        """What the loss needs to know of a dive, without the batch dimension.

        Raises:
            UserError: the dive's annotation lacks something that this method learns from.
        """
        raise NotImplementedError

    def forward(self, backbone: Backbone, batch: Tensors) -> Tensors:
        """Outputs for a batch whose `video` is (B, 3, T, H, W); a method may call the backbone as often as it likes."""
        raise NotImplementedError

    def loss(self, outputs: Tensors, targets: Tensors) -> Tensors:
        """Scalars; `loss` is what is minimised, the others are for the log."""
        raise NotImplementedError

    def scores(self, outputs: Tensors) -> torch.Tensor:
        """(B,) final scores in points."""
        raise NotImplementedError


def build_method(config: TrainConfig, feature_dim: int) -> Method:
    """The method that --method names, with random weights."""
    return import_module(f"training.methods.{config.method}").build(config, feature_dim)
