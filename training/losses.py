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
    """Ranks 1..B, ties sharing their average rank, as scipy.stats.rankdata gives them; float32, no gradient."""
    values_B = values_B.detach()
    below = (values_B[None, :] < values_B[:, None]).sum(dim=1)
    equal = (values_B[None, :] == values_B[:, None]).sum(dim=1)
    return (below + (equal + 1) / 2).to(torch.float32)


def soft_spearman(
    predicted_B: torch.Tensor, target_B: torch.Tensor, strength: float = 1.0, norm: str = "l2"
) -> torch.Tensor:
    """Differentiable Spearman correlation of a batch of scores: two (B,) tensors -> a scalar in [-1, 1].

    The predicted scores get soft ranks (Blondel et al., "Fast Differentiable Sorting and Ranking", ICML 2020, through
    torchsort), which rank along the *batch*; the targets get average ranks. `strength` is in the unit of the scores:
    the smaller, the nearer to scipy.stats.spearmanr and the rarer a gradient. Computed in float32 whatever the input.
    A batch that has no order (one dive, all predictions or all targets equal) gives 0 and no gradient; a prediction that
    is no number gives NaN and no gradient.
    """
    import torchsort  # here, so that a run with --loss_spcoef_weight 0 does not need it

    if not torch.isfinite(predicted_B).all():
        return torch.nan_to_num(predicted_B, 0, 0, 0).sum() * 0 + torch.nan
    device = predicted_B.device
    if not _ranks_on_gpu():
        predicted_B, target_B = predicted_B.cpu(), target_B.cpu()
    predicted_B = predicted_B.float()
    centred_target = average_ranks(target_B)
    centred_target = centred_target - centred_target.mean()
    # torchsort ranks the last dimension of a 2-D tensor: the batch must be that dimension
    soft_ranks = torchsort.soft_rank(predicted_B[None, :], regularization=norm, regularization_strength=strength)[0]
    centred = soft_ranks - soft_ranks.mean()
    spread = centred.square().sum() * centred_target.square().sum()
    if spread <= 1e-10:
        return (predicted_B.sum() * 0).to(device)
    return ((centred * centred_target).sum() / spread.sqrt()).to(device)


def mse(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean squared error over all elements, in float32."""
    return F.mse_loss(predicted.float(), target.float())
