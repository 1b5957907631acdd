"""The optimizers of --optimizer, over the parameter groups of a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from training.config import TrainConfig
from training.model import ScoringModel

# (parameter groups, configuration, whether to use torch's fused kernels); torch has none for RMSprop
_OPTIMIZERS: dict[str, Callable[[Any, TrainConfig, bool], torch.optim.Optimizer]] = {
    "Adam": lambda p, c, fused: torch.optim.Adam(
        p, c.learning_rate, weight_decay=c.weight_decay, amsgrad=c.amsgrad, fused=fused
    ),
    "AdamW": lambda p, c, fused: torch.optim.AdamW(
        p, c.learning_rate, weight_decay=c.weight_decay, amsgrad=c.amsgrad, fused=fused
    ),
    "SGD": lambda p, c, fused: torch.optim.SGD(
        p, c.learning_rate, weight_decay=c.weight_decay, momentum=c.momentum, nesterov=c.nesterov, fused=fused
    ),
    "RMSProp": lambda p, c, fused: torch.optim.RMSprop(
        p, c.learning_rate, weight_decay=c.weight_decay, momentum=c.momentum
    ),
}
# entries of a parameter group that follow from the flags and the device, not from a checkpoint
_NOT_RESTORED = ("rate", "weight_decay", "fused", "foreach")


def build_optimizer(model: ScoringModel, config: TrainConfig, fused: bool = True) -> torch.optim.Optimizer:
    """The optimizer over the model's parameter groups. "rate" in a group scales the learning rate.

    Fused kernels update all parameters at once, and can skip a step on the device.
    """
    parameters = dict(model.named_parameters())
    groups: list[dict[str, Any]] = [
        {
            "params": [parameters[name] for name in group.names],
            "rate": group.rate,
            "weight_decay": config.weight_decay * group.decay,
        }
        for group in model.parameter_groups(config)
    ]
    optimizer = _OPTIMIZERS[config.optimizer](groups, config, fused)
    _fill_momentum(optimizer)
    return optimizer


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Restore the `state_dict` of an optimizer, also one of older versions, which had no fused kernels and no "rate"."""
    groups = [
        {**saved, **{name: group[name] for name in _NOT_RESTORED if name in group}}
        for saved, group in zip(state["param_groups"], optimizer.param_groups, strict=True)
    ]
    optimizer.load_state_dict({**state, "param_groups": groups})
    _fill_momentum(optimizer)


def _fill_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Start the momentum of SGD at zero, which gives the same first step. Without it, fused kernels that skip the first step leave
    the momentum undefined."""
    if not isinstance(optimizer, torch.optim.SGD):
        return
    for group in optimizer.param_groups:
        for parameter in group["params"] if group["momentum"] else ():
            if optimizer.state[parameter].get("momentum_buffer") is None:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def step_unless(optimizer: torch.optim.Optimizer, failed: torch.Tensor) -> None:
    """Update the parameters unless `failed` (a bool tensor on their device). Only optimizers without fused kernels wait for it."""
    if optimizer.param_groups[0].get("fused"):
        optimizer.found_inf = failed.float()  # type: ignore[attr-defined]  # as torch.amp.GradScaler sets it
        optimizer.step()
    elif not failed:
        optimizer.step()
