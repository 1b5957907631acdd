"""The group-aware regression tree of CoRe (Yu et al., ICCV 2021)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class RegressionTree(nn.Module):
    """From a pair (B, inputs) to the log-probability of each group of differences and the position in it, each (B, leaves).

    At every level a node divides its probability between its two children, and computes the features of each. Node j of a
    level has the children 2j and 2j + 1. Parameter names are those of the authors' checkpoints.
    """

    def __init__(self, inputs: int, depth: int = 5, width: int = 256) -> None:
        super().__init__()
        self.leaves = 2 ** (depth - 1)
        self.first_layer = nn.Sequential(nn.Linear(inputs, width), nn.ReLU())
        nodes = [2**level for level in range(depth - 1)]
        # one group of channels for each node
        self.feature_layers = nn.ModuleList(
            nn.Sequential(nn.Conv1d(n * width, 2 * n * width, 1, groups=n), nn.ReLU()) for n in nodes
        )
        self.clf_layers = nn.ModuleList(nn.Conv1d(n * width, 2 * n, 1, groups=n) for n in nodes)
        self.reg_layer = nn.Conv1d(self.leaves * width, self.leaves, 1, groups=self.leaves)

    def forward(self, pairs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        levels, positions = self.levels(pairs)
        return levels[-1], positions

    def levels(self, pairs: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """The log-probabilities (B, nodes) of the nodes of every level below the root, and the positions (B, leaves)."""
        features = self.first_layer(pairs)[None]  # (nodes, B, width)
        found = [pairs.new_zeros(len(pairs), 1)]
        for divide, expand in zip(self.clf_layers, self.feature_layers, strict=True):
            children = F.log_softmax(per_node(divide, features), dim=2)  # (nodes, B, 2)
            found.append((found[-1][:, :, None] + children.transpose(0, 1)).flatten(1))
            of_children = F.relu(per_node(expand.get_submodule("0"), features)).unflatten(
                2, (2, -1)
            )  # (nodes, B, 2, width)
            features = of_children.transpose(1, 2).flatten(0, 1)
        return found[1:], per_node(self.reg_layer, features)[:, :, 0].T


def per_node(layer: nn.Module, features: torch.Tensor) -> torch.Tensor:
    """Apply a convolution of kernel size 1 with one group for each node: (nodes, B, width) -> (nodes, B, outputs of a node).

    A batched matrix product is several times faster than the grouped convolution.
    """
    nodes, _, width = features.shape
    assert isinstance(layer, nn.Conv1d)
    assert layer.bias is not None
    weight, bias = layer.weight.view(nodes, -1, width), layer.bias.view(nodes, 1, -1)
    return torch.baddbmm(bias, features, weight.transpose(1, 2))
