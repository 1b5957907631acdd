"""The two branches of ST-ABN: "ST-ABN: Visual Explanation Taking into Account Spatio-temporal Information for Video Recognition"
(Mitsuhara, Hirakawa, Yamashita, Fujiyoshi, 2021).

The attention branch predicts from its own maps, the perception branch from the features of the whole network. Both have the same
target, and the loss is the sum of their losses. The prediction is that of the perception branch. Parameter names are those of the
plain PyTorch code (fc, conv_att_out, fc_att_out).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from data_preparation.actions import Action
from training.backbones.base import Backbone, Mapped
from training.config import TrainConfig
from training.data.batch import Tensors
from training.data.facts import DataFacts
from training.data.plan import Arrays
from training.data.sampling import balancing_repeats
from training.methods.base import Method
from training.methods.regression.method import Regression, ScaledRegression
from training.methods.scale import ScoreScale
from training.rows import RowDropout, full_precision

ATTENTION = "attention_"  # prefix of the outputs of the attention branch


def build(config: TrainConfig, feature_dim: int, data: DataFacts) -> TwoBranches:
    if config.predicts == "label":
        return TwoBranches(config, feature_dim, ClassTarget(), "logits", len(data.classes))
    nothing = nn.Identity()
    if data.by_difficulty:
        return TwoBranches(config, feature_dim, Regression(nothing, config), "execution_and_difficulty", 2)
    return TwoBranches(config, feature_dim, ScaledRegression(nothing, config, ScoreScale(data)), "scaled_score", 1)


class ClassTarget(Method):
    """Labels, loss and prediction for the logits (B, classes) of one branch."""

    def labels(self, action: Action) -> Arrays:
        return {"label": np.array(action.need("label"), np.int64)}

    def loss(self, outputs: Tensors, given: Tensors, labels: Tensors) -> Tensors:
        return {"loss": F.cross_entropy(outputs["logits"], labels["label"])}

    def predict(self, outputs: Tensors, given: Tensors) -> Tensors:
        return {"probability": outputs["logits"].softmax(dim=1)}


class TwoBranches(Method):
    """Both branches have an output `name` of `size` numbers, which `target` turns into losses and predictions."""

    def __init__(self, config: TrainConfig, feature_dim: int, target: Method, name: str, size: int) -> None:
        super().__init__()
        self.target, self.name, self.balance = target, name, config.balance
        channels = config.attention_channels
        self.dropout = RowDropout(config.branch_dropout)
        self.fc = nn.Linear(feature_dim, size)
        self.conv_att_out = nn.Sequential(nn.Conv3d(channels, channels, 1, bias=False))
        self.fc_att_out = nn.Linear(channels * config.frame_num, size)

    def given(self, action: Action) -> Arrays:
        return self.target.given(action)

    def labels(self, action: Action) -> Arrays:
        return self.target.labels(action)

    def encode(self, backbone: Backbone, clip: torch.Tensor) -> Tensors:
        features_BTD, maps = cast(Mapped, backbone).with_maps(clip)
        with torch.autocast(features_BTD.device.type, enabled=False):
            vectors_BD = full_precision(features_BTD).mean(dim=1)
            channels_BKT = self.conv_att_out(full_precision(maps["attention"])).mean(dim=(3, 4))
            perception = self.fc(self.dropout(vectors_BD))
            attention = self.fc_att_out(self.dropout(channels_BKT.flatten(1)))
        if self.name == "scaled_score":
            perception, attention = perception[:, 0], attention[:, 0]
        return {self.name: perception, f"{ATTENTION}{self.name}": attention}

    def loss(self, outputs: Tensors, given: Tensors, labels: Tensors) -> Tensors:
        perception, attention = (
            self.target.loss({self.name: outputs[f"{prefix}{self.name}"]}, given, labels)["loss"]
            for prefix in ("", ATTENTION)
        )
        return {"loss": perception + attention, "perception": perception, "attention": attention}

    def predict(self, outputs: Tensors, given: Tensors) -> Tensors:
        return self.target.predict(outputs, given)

    def details(self, outputs: Tensors) -> dict[str, list]:
        return self.target.details(outputs)

    def quantities(self, outputs: Tensors, given: Tensors) -> Tensors:
        return self.target.quantities(outputs, given)

    def metrics(self, outputs: Tensors, labels: Tensors) -> dict[str, float]:
        """For classes, the accuracy of the attention branch (0 to 1)."""
        if self.name != "logits":
            return {}
        right = outputs[f"{ATTENTION}logits"].argmax(dim=1) == labels["label"]
        return {"attention_accuracy": float(right.double().mean())}

    def repeats(self, actions: Sequence[Action]) -> Sequence[int] | None:
        return balancing_repeats([action.need("label") for action in actions]) if self.balance else None
