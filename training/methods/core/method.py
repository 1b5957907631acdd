"""CoRe: "Group-aware Contrastive Regression for Action Quality Assessment" (Yu, Rao, Zhao, Lu and Zhou, ICCV 2021).

The features of a clip are averaged over its windows. A tree compares those of an action and an exemplar.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from training.backbones._weights import load_strict
from training.config import TrainConfig
from training.data.batch import Tensors
from training.data.facts import DataFacts
from training.methods.core.tree import RegressionTree
from training.methods.paired import PairedRegression


def build(config: TrainConfig, feature_dim: int, data: DataFacts) -> CoRe:
    return CoRe(config, feature_dim)


class CoRe(PairedRegression):
    """Regression of label differences by a tree of groups."""

    def __init__(self, config: TrainConfig, feature_dim: int) -> None:
        tree = RegressionTree(2 * feature_dim + 1, config.tree_depth, config.tree_width)
        super().__init__(config, feature_dim, tree.leaves)
        self.tree = tree

    def code(self, features_BND: torch.Tensor) -> Tensors:
        return {"features": features_BND.mean(dim=1)}

    def compare(self, exemplar: torch.Tensor, exemplar_label: torch.Tensor, other: torch.Tensor) -> Tensors:
        scaled = (exemplar_label / self.pairing.span).to(exemplar.dtype)
        log_probabilities, positions = self.tree(torch.cat([exemplar, other, scaled[:, None]], dim=1))
        return {"log_probabilities": log_probabilities, "positions": positions}

    def load_pretrained(self, parts: Mapping[str, Tensors]) -> list[str]:
        if "regressor" not in parts:
            return []
        load_strict(self.tree, parts["regressor"])
        return ["regression tree loaded"]
