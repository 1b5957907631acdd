"""Losses: pure functions of tensors over the global batch."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch
from torch.nn import functional as F


@cache
def _ranks_on_gpu() -> bool:
    """Whether torchsort was compiled with the CUDA toolkit. If not, a batch's scores are ranked on the CPU."""
    return find_spec("torchsort.isotonic_cuda") is not None


def average_ranks(values_B: torch.Tensor) -> torch.Tensor:
    """Ranks 1..B (B,), ties get their average rank, as in scipy.stats.rankdata; float32, without gradient."""
    values_B = values_B.detach()
    below = (values_B[None, :] < values_B[:, None]).sum(dim=1)
    equal = (values_B[None, :] == values_B[:, None]).sum(dim=1)
    return (below + (equal + 1) / 2).to(torch.float32)


def soft_spearman(
    predicted_B: torch.Tensor, target_B: torch.Tensor, strength: float = 1.0, norm: str = "l2"
) -> torch.Tensor:
    """Differentiable Spearman correlation of a batch of scores: two (B,) tensors -> a scalar in [-1, 1].

    The predicted scores get soft ranks over the *batch* (Blondel et al., "Fast Differentiable Sorting and Ranking", ICML
    2020; torchsort), the targets get average ranks. `strength` is the regularisation strength in the unit of the scores: with
    smaller values the result is closer to scipy.stats.spearmanr and fewer scores get a gradient. Always computed in float32.
    Returns 0 without gradient if the correlation is undefined (one action, equal predictions or equal targets), and NaN without
    gradient if a prediction is NaN or infinite.
    """
    import torchsort  # here, so that a run with --loss_spcoef_weight 0 does not need it

    device = predicted_B.device
    if not _ranks_on_gpu():
        predicted_B, target_B = predicted_B.cpu(), target_B.cpu()
    if not torch.isfinite(predicted_B).all():
        return (torch.nan_to_num(predicted_B, 0, 0, 0).sum() * 0 + torch.nan).to(device)
    predicted_B = predicted_B.float()
    centred_target = average_ranks(target_B)
    centred_target = centred_target - centred_target.mean()
    # torchsort ranks along the last dimension of a 2-D tensor, so the shape is (1, B)
    soft_ranks = torchsort.soft_rank(predicted_B[None, :], regularization=norm, regularization_strength=strength)[0]
    centred_predicted = soft_ranks - soft_ranks.mean()
    product = centred_predicted.square().sum() * centred_target.square().sum()
    if product <= 1e-10:
        return (predicted_B.sum() * 0).to(device)
    return ((centred_predicted * centred_target).sum() / product.sqrt()).to(device)


def mse(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean squared error over all elements, in float32."""
    return F.mse_loss(predicted.float(), target.float())
