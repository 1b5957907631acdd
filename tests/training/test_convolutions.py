"""Batch norm inside of convolutions, padding by the layers themselves and channels-last maps change nothing but rounding."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.small import VIDEO_MODELS, clips_of, fits, tiny_config
from training.backbones import _convolutions, build_backbone
from training.backbones._convolutions import conv_norm
from training.backbones.i3d.network import Pool, pad_same
from training.backbones.tsm.network import shift
from training.rows import RowBatchNorm


@pytest.mark.parametrize("bias", [True, False])
def test_a_frozen_batch_norm_is_a_part_of_the_convolution(bias: bool) -> None:
    torch.manual_seed(0)
    conv, norm = nn.Conv3d(4, 6, 3, stride=2, padding=1, bias=bias), RowBatchNorm(6)
    for tensor in (norm.weight, norm.running_var):
        nn.init.uniform_(tensor, 0.5, 2.0)
    nn.init.normal_(norm.running_mean)
    x = torch.rand(2, 4, 5, 7, 7, requires_grad=True)
    leaves = [x, *conv.parameters(), *norm.parameters()]
    for layers in (norm.eval(), norm.train()):
        found, wanted = conv_norm(conv, layers, x), layers(conv(x))
        assert torch.allclose(found, wanted, atol=1e-5)
        toward = torch.rand_like(found)
        for a, b in zip(*(torch.autograd.grad(y, leaves, toward) for y in (found, wanted)), strict=True):
            assert torch.allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kernel", "stride"), [((3, 3, 3), (1, 1, 1)), ((3, 3, 3), (2, 2, 2)), ((1, 3, 3), (1, 2, 2)), ((2, 2, 2), (2, 2, 2))])  # fmt: skip
def test_pooling_pads_after_a_relu_as_with_zeros(kernel, stride) -> None:
    """Values and gradients, of maps of any size; maps of any sign get the zeros."""
    pool, signed = Pool(kernel, stride), Pool(kernel, stride)
    pool.after_relu = True
    for sizes in itertools.product((1, 2, 5, 6), repeat=3):
        raw = torch.randn(1, 2, *sizes, generator=torch.Generator().manual_seed(sum(sizes))).requires_grad_()
        x = F.relu(raw)
        found, wanted = pool(x), F.max_pool3d(pad_same(x, kernel, stride), kernel, stride)
        assert torch.equal(found, wanted)
        gradients = [torch.autograd.grad(y.square().sum(), raw, retain_graph=True)[0] for y in (found, wanted)]
        assert torch.allclose(*gradients, rtol=1e-6)
        assert torch.equal(signed(-x), F.max_pool3d(pad_same(-x, kernel, stride), kernel, stride))


@pytest.mark.parametrize("model", [m for m in VIDEO_MODELS if m != "timesformer"])
def test_channels_last_maps_give_the_same_features(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32 the formats can be compared; weights and their gradients stay contiguous, so checkpoints do not change."""
    config = tiny_config(model, next(m for m in ("regression", "abn", "multitask") if fits(model, m)))
    backbone = build_backbone(config).eval()
    video = clips_of(config, 2).transpose(1, 2).float() / 255
    found = {}
    for last in (False, True):
        monkeypatch.setattr(_convolutions, "has_channels_last", lambda dtype, last=last: last)
        backbone.zero_grad()
        features = backbone(video)
        features.square().sum().backward()
        found[last] = (features, *(p.grad for p in backbone.parameters() if p.grad is not None))
    for plain, last in zip(*found.values(), strict=True):
        assert (plain - last).norm() <= 1e-4 * plain.norm() + 1e-6
    assert all(p.is_contiguous() and (p.grad is None or p.grad.is_contiguous()) for p in backbone.parameters())


def test_the_shift_keeps_the_memory_format() -> None:
    x = torch.rand(6, 16, 4, 4)
    last = shift(x.contiguous(memory_format=torch.channels_last), 3, 8)
    assert torch.equal(last, shift(x, 3, 8))
    assert last.is_contiguous(memory_format=torch.channels_last)
