"""Backbones: video (B, 3, T, H, W), or vectors of a feature file, to features (B, N, D). One folder each; see training.plugins."""

from __future__ import annotations

from typing import TYPE_CHECKING

from training.plugins import BACKBONES, build_function, search_path

if TYPE_CHECKING:  # needs torch, which login nodes may lack
    from training.backbones.base import Backbone
    from training.config import TrainConfig

__path__ = search_path(__path__, BACKBONES)


def build_backbone(config: TrainConfig) -> Backbone:
    """The backbone that --model names, with random weights."""
    backbone: Backbone = build_function(BACKBONES, config.model)(config)
    backbone.checkpoint_activations = str(config.checkpoint_activations)
    return backbone
