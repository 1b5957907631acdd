"""Distributions of scores over bins: targets, head, loss and decoding of USDL and MUSDL.

"Uncertainty-aware Score Distribution Learning for Action Quality Assessment" (Tang et al., CVPR 2020).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

HIDDEN = (256, 128)


def gaussian_target(centre: np.ndarray, bins: int, std: float) -> np.ndarray:
    """A normal distribution around each centre (...), evaluated at the bins 0 to bins - 1: (..., bins), each with sum 1.

    `centre` and `std` are in bins. Near the first and last bin the distribution is cut off, so its mean moves inwards.
    """
    exponent = -((np.arange(bins) - np.asarray(centre, np.float64)[..., None]) ** 2) / (2 * std**2)
    density = np.exp(exponent - exponent.max(axis=-1, keepdims=True))
    return density / density.sum(axis=-1, keepdims=True)


def distribution_head(feature_dim: int, bins: int) -> nn.Sequential:
    """(B, feature_dim) -> logits (B, bins)."""
    first, second = HIDDEN
    return nn.Sequential(
        nn.Linear(feature_dim, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU(), nn.Linear(second, bins)
    )


def divergence(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Kullback-Leibler divergence of (B, ..., bins) from the target distributions, as a mean over batch and bins and a sum over
    the other dimensions: that is the true divergence divided by the number of bins, as in the original."""
    total = F.kl_div(logits.log_softmax(dim=-1), target.to(logits.dtype), reduction="sum")
    return total / (logits.shape[0] * logits.shape[-1])


def decoded_bin(logits: torch.Tensor, decode: str) -> torch.Tensor:
    """The bin that a distribution predicts, by --decode: logits (..., bins) -> (...)."""
    if decode == "argmax":
        return logits.argmax(dim=-1).to(logits.dtype)
    return logits.softmax(dim=-1) @ torch.arange(logits.shape[-1], dtype=logits.dtype, device=logits.device)
