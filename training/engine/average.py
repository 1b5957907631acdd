"""The exponential moving average of the weights (--ema)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from training.model import ScoringModel


def weight_average(
    model: ScoringModel, decay: float, failed: Callable[[], torch.Tensor], *, on_gpu: bool
) -> AveragedModel:
    """A copy of the model that follows its weights and buffers: average = decay * average + (1 - decay) * weights.

    It does not change in a step that failed: `failed` returns a bool tensor on the device of the model. On a GPU the training
    process does not wait for it.
    """
    torchs = get_ema_multi_avg_fn(decay)

    @torch.no_grad()
    def follow(averages: Any, current: Any, count: Any) -> None:
        if not on_gpu:
            if not failed():
                torchs(averages, current, count)
        elif averages[0].is_floating_point():
            moves = torch._foreach_sub(current, averages)
            torch._foreach_mul_(moves, torch.where(failed(), 0.0, 1 - decay).to(averages[0].dtype))
            torch._foreach_add_(averages, moves)
        else:  # the batch counts of batch norms
            for average, value in zip(averages, current, strict=True):
                average.copy_(torch.where(failed(), average, (average * decay + value * (1 - decay)).to(average.dtype)))

    return AveragedModel(model, multi_avg_fn=follow, use_buffers=True)
