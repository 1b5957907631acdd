"""The plain classifier: features, averaged over their vectors, dropout and one or two linear layers, trained with cross-entropy.

Label smoothing is that of "Rethinking the Inception Architecture for Computer Vision" (Szegedy et al., CVPR 2016).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from data_preparation.actions import Action
from data_preparation.common.errors import UserError
from training.backbones.base import Backbone
from training.config import TrainConfig
from training.data.batch import Tensors
from training.data.facts import DataFacts
from training.data.plan import Arrays
from training.data.sampling import balancing_repeats
from training.methods.base import Method
from training.rows import RowDropout, full_precision


def build(config: TrainConfig, feature_dim: int, data: DataFacts) -> Classifier:
    if unknown := [name for name in config.repeats_of_class if name not in data.classes]:
        raise UserError(
            f"--class_repeats names {', '.join(unknown)} and the data set has the classes {', '.join(data.classes)}: name one of these"
        )
    repeats = {data.classes.index(name): count for name, count in config.repeats_of_class.items()}
    return Classifier(config, head_of(config, feature_dim, len(data.classes)), repeats)


def head_of(config: TrainConfig, feature_dim: int, classes: int) -> nn.Sequential:
    """(..., feature_dim) -> (..., classes)."""
    hidden: list[nn.Module] = []
    if config.hidden_units:
        hidden = [RowDropout(config.head_dropout), nn.Linear(feature_dim, config.hidden_units), nn.GELU()]
    output = nn.Linear(config.hidden_units or feature_dim, classes)
    if config.head_init_std:
        nn.init.normal_(output.weight, std=config.head_init_std)
        nn.init.zeros_(output.bias)
    return nn.Sequential(*hidden, RowDropout(config.head_dropout), output)


class Classifier(Method):
    """Predicts a probability for each class of the data set."""

    def __init__(self, config: TrainConfig, head: nn.Module, repeats_of_label: Mapping[int, int]) -> None:
        super().__init__()
        self.config, self.head, self.repeats_of_label = config, head, repeats_of_label

    def labels(self, action: Action) -> Arrays:
        return {"label": np.array(action.need("label"), np.int64)}

    def encode(self, backbone: Backbone, clip: torch.Tensor) -> Tensors:
        features = backbone(clip)  # (B, N, D)
        if not self.config.head_on_each:
            features = features.mean(dim=1, keepdim=True)
        with torch.autocast(features.device.type, enabled=False):  # the head always computes in float32
            return {"logits": self.head(full_precision(features)).mean(dim=1)}  # (B, classes)

    def loss(self, outputs: Tensors, given: Tensors, labels: Tensors) -> Tensors:
        smoothing = self.config.label_smoothing
        return {"loss": F.cross_entropy(outputs["logits"], labels["label"], label_smoothing=smoothing)}

    def predict(self, outputs: Tensors, given: Tensors) -> Tensors:
        return {"probability": outputs["logits"].softmax(dim=1)}

    def repeats(self, actions: Sequence[Action]) -> Sequence[int] | None:
        labels = [action.need("label") for action in actions]
        if self.repeats_of_label:
            return [self.repeats_of_label.get(label, 1) for label in labels]
        return balancing_repeats(labels) if self.config.balance else None
