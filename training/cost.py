"""Parameters and multiply-adds of a model, counted by fvcore over one forward pass."""

from __future__ import annotations

import logging
import warnings

import torch
from fvcore.nn import FlopCountAnalysis, parameter_count

from training.config import TrainConfig
from training.model import ScoringModel


def parameters(model: torch.nn.Module) -> tuple[int, int]:
    """(all, trainable) numbers of parameters."""
    return parameter_count(model)[""], sum(p.numel() for p in model.parameters() if p.requires_grad)


def multiply_adds(model: ScoringModel, config: TrainConfig) -> float:
    """Multiply-adds of one clip's forward pass (convolutions and matrix products, attention included)."""
    device = next(model.parameters()).device
    backbone = model.backbone.eval()
    video = torch.zeros(1, 3, config.frame_num, config.spatial_size, config.spatial_size, device=device)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the tracer's remarks on shapes that depend on the input
        count = FlopCountAnalysis(backbone, video).set_op_handle(**backbone.flop_counters())
        count.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        logging.getLogger("fvcore").setLevel(logging.ERROR)
        return float(count.total())


def describe_cost(model: ScoringModel, config: TrainConfig) -> str:
    """One line for the log."""
    total, trainable = parameters(model)
    return f"{total / 1e6:.2f} M parameters ({trainable / 1e6:.2f} M trained), {multiply_adds(model, config) / 1e9:.4g} GMAC a clip (fvcore)"
