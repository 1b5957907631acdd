"""Groups of label differences, for methods that compare an action with a reference: "Group-aware Contrastive Regression for
Action Quality Assessment" (CoRe, Yu et al., ICCV 2021).

A difference of two labels is described by the group (leaf) that it belongs to, and by its position inside of this group.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import torch
from torch import nn

DECIMALS = 4  # of labels and their differences: quotients such as 46.5 / 3.1 differ in the last bits


def pair_differences(labels: Sequence[float], pools: Sequence[Hashable]) -> np.ndarray:
    """The absolute label differences of all pairs of the same pool, rounded and sorted: (pairs,) float64."""
    members: dict[Hashable, list[float]] = {}
    for label, pool in zip(labels, pools, strict=True):
        members.setdefault(pool, []).append(label)
    found = [np.zeros(0)]
    for values in map(np.array, members.values()):
        first, second = np.triu_indices(len(values), k=1)
        found.append(np.abs(values[first] - values[second]))
    return np.sort(np.round(np.concatenate(found), DECIMALS))


def group_edges(differences: np.ndarray, groups: int, span: float) -> np.ndarray:
    """The edges of `groups` intervals from 0 to `span` that hold about equally many of the sorted `differences`: (groups + 1,).

    The inner edges are quantiles. One that is not above the edge before it becomes the next larger difference. If there is
    none, the interval has zero width and stays empty.
    """
    inner: list[float] = []
    for k in range(1, groups):
        edge = float(differences[k * (len(differences) - 1) // groups])
        before = inner[-1] if inner else 0.0
        if edge <= before:
            larger = differences[differences > before]
            edge = float(larger[0]) if len(larger) else before
        inner.append(min(edge, span))
    return np.array([0.0, *inner, span])


class Groups(nn.Module):
    """The groups of label differences from -`span` to `span`: `leaves` intervals, the most negative one first.

    The intervals of negative differences mirror those of positive ones. A difference equal to an inner edge belongs to the
    interval farther from zero, and 0 to the first positive one. Differences beyond the span belong to the outer interval.
    """

    edges: torch.Tensor  # (leaves / 2 + 1,) float64: 0, the inner edges, span

    def __init__(self, leaves: int, span: float) -> None:
        super().__init__()
        self.leaves, self.span = leaves, span
        self.register_buffer("edges", torch.linspace(0, span, leaves // 2 + 1, dtype=torch.float64))

    def fit(self, differences: np.ndarray) -> None:
        """Choose the edges by the sorted absolute differences of the training pairs, see group_edges."""
        self.edges.copy_(torch.from_numpy(group_edges(differences, self.leaves // 2, self.span)))

    @property
    def intervals(self) -> torch.Tensor:
        """(leaves, 2) float64: left and right end of each group."""
        positive = torch.stack([self.edges[:-1], self.edges[1:]], dim=1)
        return torch.cat([-positive.flip(0, 1), positive])

    def place(self, difference: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The group of each difference, and the position in it from 0 (left end) to 1 (right end).

        (...) float64 -> (...) int64 and (...) float64. Positions beyond the span are below 0 or above 1.
        """
        difference = difference.to(self.edges)
        interval = torch.bucketize(difference.abs(), self.edges[1:-1].contiguous(), right=True)
        half = self.leaves // 2
        leaf = torch.where(difference < 0, half - 1 - interval, half + interval)
        left, width = self._left_and_width(leaf)
        return leaf, (difference - left) / width

    def difference(self, leaf: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """The inverse of `place`: (...) int64 and (...) float -> (...) float64."""
        left, width = self._left_and_width(leaf)
        return left + width * position

    def _left_and_width(self, leaf: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        left, right = self.intervals[leaf].unbind(dim=-1)
        width = right - left
        return left, torch.where(
            width > 0, width, torch.ones_like(width)
        )  # in a group of zero width positions are points


def label_difference(label: torch.Tensor, exemplar_label: torch.Tensor) -> torch.Tensor:
    """label - exemplar_label in float64, rounded so that equal differences are equal numbers."""
    return torch.round(label.double() - exemplar_label.double(), decimals=DECIMALS)


def group_losses(
    log_probabilities: torch.Tensor, positions: torch.Tensor, leaf: torch.Tensor, position: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The two losses of CoRe for B pairs: the mean negative log-likelihood of the true group, and the sum over the groups of
    the mean squared error of the position in each.

    Args:
        log_probabilities, positions: (B, leaves), predicted for each group.
        leaf, position: (B,), of the true difference (Groups.place).
    """
    nll = -log_probabilities.gather(1, leaf[:, None]).mean()
    error = (positions.gather(1, leaf[:, None])[:, 0] - position.to(positions.dtype)).square()
    leaves = log_probabilities.shape[1]
    summed = error.new_zeros(leaves).index_add(0, leaf, error)
    members = torch.bincount(leaf, minlength=leaves)
    return nll, (summed / members.clamp(min=1)).sum()
