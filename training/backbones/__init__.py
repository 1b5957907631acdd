"""Backbones: video (B, 3, T, H, W) -> features (B, N, D), a sequence of N vectors of `feature_dim` values.

A backbone NAME is the file NAME.py with a function `build(config: TrainConfig) -> Backbone`. Nothing else lists it.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from training import _torchvision as _torchvision  # before timm
from training.config import TrainConfig


class Backbone(nn.Module):
    """Base of all backbones: forward maps (B, 3, T, H, W) float to (B, N, feature_dim).

    `input_scale` names the normalisation of config.INPUT_SCALES that the present weights want; `load_pretrained` sets it
    to the file's.
    """

    feature_dim: int
    input_scale: str = "unit"
    checkpoint_activations: bool = False

    def run_block(self, block: Callable[..., Any], *inputs: torch.Tensor) -> Any:
        """block(*inputs); with `checkpoint_activations` only the inputs are kept and the backward pass computes it again,
        with the same dropout."""
        if self.checkpoint_activations and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)

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
    backbone: Backbone = import_module(f"training.backbones.{config.model}").build(config)
    backbone.checkpoint_activations = config.checkpoint_activations
    return backbone
