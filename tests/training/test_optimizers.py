"""The optimizers of --optimizer: fused kernels, as a GPU uses them, give what plain loops give, and skip a step on the device."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from tests.small import config_of
from training.engine.optimizers import build_optimizer, load_optimizer_state, step_unless
from training.model import ScoringModel, build_model

SMALL = {
    "spatial_size": 32,
    "embed_dim": 24,
    "depth": 1,
    "num_heads": 2,
    "frame_num": 4,
    "topology": (16,),
    "dropout": (0.0,),
}
FLAGS: dict[str, dict[str, Any]] = {
    "Adam": {"optimizer": "Adam"},
    "AdamW-amsgrad": {"optimizer": "AdamW", "amsgrad": True},
    "SGD": {"optimizer": "SGD", "nesterov": True},
    "RMSProp": {"optimizer": "RMSProp"},
}
NO, YES = torch.tensor(False), torch.tensor(True)


def made(flags: dict[str, Any], fused: bool = True) -> tuple[ScoringModel, torch.optim.Optimizer]:
    """A model in float64 with an optimizer of two groups, whose rates and decays differ."""
    config = config_of(**SMALL, **flags, weight_decay=0.1, bias_lr_scale=2.0, decay_of="weights")
    model = build_model(config).double()
    return model, build_optimizer(model, config, fused)


def train(model: ScoringModel, optimizer: torch.optim.Optimizer, steps: range, failed: torch.Tensor = NO) -> None:
    """Steps with gradients and learning rates that follow from their numbers."""
    for number in steps:
        draws = torch.Generator().manual_seed(number)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=draws, dtype=torch.float64)
        for group in optimizer.param_groups:
            group["lr"] = 0.01 / (1 + number) * group["rate"]
        step_unless(optimizer, failed)


@pytest.mark.parametrize("name", FLAGS)
def test_fused_kernels_give_what_plain_loops_give_and_old_checkpoints_go_on(name: str):
    (model, optimizer), (resumed_model, resumed) = made(FLAGS[name]), made(FLAGS[name])
    plain_model, plain = made(FLAGS[name], fused=False)
    train(model, optimizer, range(5))
    train(plain_model, plain, range(3))
    old = copy.deepcopy(plain.state_dict())
    for group in old["param_groups"]:
        del group["rate"]
    resumed_model.load_state_dict(plain_model.state_dict())
    load_optimizer_state(resumed, old)
    assert resumed.param_groups[0].get("fused") == (None if name == "RMSProp" else True)
    train(plain_model, plain, range(3, 5))
    train(resumed_model, resumed, range(3, 5))
    for found in (model, resumed_model):
        for parameter, expected in zip(found.parameters(), plain_model.parameters(), strict=True):
            assert torch.allclose(parameter, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", FLAGS)
def test_a_skipped_step_changes_neither_weights_nor_later_steps(name: str, fused: bool):
    """Not even if it is the first one, before the optimizer has a state."""
    (model, optimizer), (skipping_model, skipping) = made(FLAGS[name], fused), made(FLAGS[name], fused)
    start = copy.deepcopy(model.state_dict())
    train(skipping_model, skipping, range(7, 8), YES)
    assert all(torch.equal(tensor, start[n]) for n, tensor in skipping_model.state_dict().items())
    train(model, optimizer, range(2))
    train(skipping_model, skipping, range(2))
    for parameter, expected in zip(skipping_model.parameters(), model.parameters(), strict=True):
        assert torch.equal(parameter, expected)
