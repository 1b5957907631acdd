"""Backbones: video (B, 3, T, H, W) -> features (B, N, D), a sequence of N vectors of `feature_dim` values.

A backbone NAME is the file NAME.py with a function `build(config: TrainConfig) -> Backbone`. Nothing else lists it.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import nn

from training import _torchvision as _torchvision  # before timm
from training.config import TrainConfig


class Backbone(nn.Module):
    """Base of all backbones: forward maps (B, 3, T, H, W) float to (B, N, feature_dim)."""

    feature_dim: int

    def load_pretrained(self, state: dict[str, torch.Tensor]) -> list[str]:
        """Start from a published weight file's tensors; returns what was done with them, a sentence each.

        Raises:
            UserError: tensors that do not belong to this network, or do not fit.
        """
        raise NotImplementedError

    def flop_counters(self) -> dict[str, Any]:
        """fvcore operator handles for operations that fvcore does not know."""
        return {}


def build_backbone(config: TrainConfig) -> Backbone:
    """The backbone that --model names, with random weights."""
    return import_module(f"training.backbones.{config.model}").build(config)
