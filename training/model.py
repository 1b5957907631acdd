"""The model of a run: a backbone and a method as one module."""

from __future__ import annotations

import logging

from torch import nn

from training.backbones import Backbone, build_backbone
from training.backbones._weights import read_state_dict
from training.config import TrainConfig
from training.methods import Method, Tensors, build_method
from training.seeding import seed_all

log = logging.getLogger(__name__)


class ScoringModel(nn.Module):
    """What is trained, saved and wrapped for several ranks."""

    def __init__(self, backbone: Backbone, method: Method, freeze: bool) -> None:
        super().__init__()
        self.backbone, self.method, self.frozen = backbone, method, freeze
        backbone.requires_grad_(not freeze)

    def train(self, mode: bool = True) -> ScoringModel:
        super().train(mode)
        if self.frozen:  # frozen means frozen: no dropout, no running statistics
            self.backbone.eval()
        return self

    def forward(self, batch: Tensors) -> Tensors:
        return self.method(self.backbone, batch)


def build_model(config: TrainConfig, *, pretrained: bool = True) -> ScoringModel:
    """The model with its starting weights, the same on every rank.

    Raises:
        UserError: a weight file that is unreadable or does not fit.
    """
    seed_all(config.seed, "weights")
    backbone = build_backbone(config)
    method = build_method(config, backbone.feature_dim)
    if pretrained and config.weight_file:
        for note in backbone.load_pretrained(read_state_dict(config.weight_file)):
            log.info("%s: %s", config.weight_file.name, note)
    return ScoringModel(backbone, method, config.freeze)
