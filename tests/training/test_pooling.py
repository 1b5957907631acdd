"""Max pooling with an order: PyTorch's results on the CPU, bit for bit, with every way to run a backbone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from training import pooling
from training.backbones import _selective
from training.runtime.determinism import deterministic_algorithms

Pool = Callable[..., torch.Tensor]
AXIS = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(0, 6), st.integers(0, 1))


def output_and_gradient(
    pool: Pool, x: torch.Tensor, *arguments: object, **named: object
) -> tuple[torch.Tensor, torch.Tensor]:
    x = x.clone().requires_grad_()  # in its memory format
    pooled = pool(x, *arguments, **named)
    draws = torch.Generator().manual_seed(1)
    (gradient,) = torch.autograd.grad(pooled, x, torch.randn(pooled.shape, generator=draws).to(pooled.dtype))
    return pooled.detach(), gradient


def are_the_same(found: tuple[torch.Tensor, ...], wanted: tuple[torch.Tensor, ...]) -> bool:
    return all(torch.equal(f, w) and f.dtype == w.dtype for f, w in zip(found, wanted, strict=True))


@given(
    axes=st.tuples(AXIS, AXIS, AXIS),
    ceil_mode=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    is_last=st.booleans(),
    has_ties=st.booleans(),
    seed=st.integers(0, 99),
)
def test_max_pooling_gives_the_bits_of_pytorch(
    axes: tuple[tuple[int, int, int, int], ...],
    ceil_mode: bool,
    dtype: torch.dtype,
    is_last: bool,
    has_ties: bool,
    seed: int,
):
    """Overlapping windows, windows with gaps between them, padding, and windows that reach beyond the end."""
    kernel, stride, more, padded = zip(*axes, strict=True)
    padding = tuple(p * (k // 2) for p, k in zip(padded, kernel, strict=True))
    x = torch.randn(
        2, 3, *(k + m for k, m in zip(kernel, more, strict=True)), generator=torch.Generator().manual_seed(seed)
    )
    x = (x.round() if has_ties else x).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last_3d) if is_last else x
    sizes = (kernel, stride, padding)
    wanted = output_and_gradient(F.max_pool3d, x, *sizes, ceil_mode=ceil_mode)
    assert are_the_same(output_and_gradient(pooling.max_pool3d, x, *sizes, ceil_mode=ceil_mode), wanted)
    with deterministic_algorithms(True):
        assert are_the_same(output_and_gradient(pooling.max_pool3d, x, *sizes, ceil_mode=ceil_mode), wanted)


@given(shape=st.tuples(*[st.integers(2, 12)] * 3), size=st.tuples(*[st.integers(1, 10)] * 3), has_ties=st.booleans())
def test_adaptive_max_pooling_gives_the_bits_of_pytorch(shape: tuple[int, ...], size: pooling.Sizes, has_ties: bool):
    x = torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(0))
    x = x.round() if has_ties else x
    wanted = output_and_gradient(F.adaptive_max_pool3d, x, size)
    with deterministic_algorithms(True):
        assert are_the_same(output_and_gradient(pooling.adaptive_max_pool3d, x, size), wanted)


def test_the_gradient_keeps_the_memory_format():
    x = torch.randn(2, 4, 4, 8, 8).contiguous(memory_format=torch.channels_last_3d)
    with deterministic_algorithms(True):
        found = output_and_gradient(pooling.max_pool3d, x, 2)
    assert all(each.is_contiguous(memory_format=torch.channels_last_3d) for each in found)


@pytest.mark.parametrize("name", ["max_pool3d", "adaptive_max_pool3d"])
def test_autocast_casts_as_for_pytorch(name: str):
    x, size = torch.randn(1, 2, 4, 6, 6).bfloat16(), (2, 3, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        wanted = output_and_gradient(getattr(F, name), x, size)
        with deterministic_algorithms(True):
            assert are_the_same(output_and_gradient(getattr(pooling, name), x, size), wanted)


class Small(nn.Module):
    """Convolutions with pooling of overlapping windows and of others."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv3d(3, 4, 3, padding=1), nn.Conv3d(4, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(pooling.max_pool3d(self.conv1(x), (1, 2, 2)))
        return pooling.max_pool3d(self.conv2(x), 3, 2, 1, ceil_mode=True).mean(dim=(2, 3, 4))


@pytest.fixture
def small() -> tuple[Small, torch.Tensor]:
    torch.manual_seed(0)
    return Small(), torch.randn(2, 3, 4, 12, 12)


def gradients(network: Callable[..., torch.Tensor], x: torch.Tensor, weights: list[torch.Tensor]) -> list[torch.Tensor]:
    return list(torch.autograd.grad(network(x).square().sum(), weights))


WAYS: dict[str, Callable[[nn.Module], Callable[..., torch.Tensor]]] = {
    "checkpointed": lambda network: partial(checkpoint, network, use_reentrant=False),
    "selective": lambda network: partial(checkpoint, network, use_reentrant=False, context_fn=_selective.contexts),
    "compiled": lambda network: torch.compile(network, backend="aot_eager", fullgraph=True),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("half", [False, True])
def test_every_way_to_run_it_gives_the_same_bits(small: tuple[Small, torch.Tensor], way: str, half: bool):
    network, x = small
    weights = list(network.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half), torch.random.fork_rng():
        wanted = gradients(network, x, weights)
        with deterministic_algorithms(True):
            assert all(map(torch.equal, gradients(network, x, weights), wanted))
            assert all(map(torch.equal, gradients(WAYS[way](network), x, weights), wanted))


def test_the_backward_pass_keeps_only_the_places():
    x = torch.randn(1, 2, 4, 8, 8, requires_grad=True)
    kept: list[torch.Tensor] = []
    with deterministic_algorithms(True), torch.autograd.graph.saved_tensors_hooks(kept.append, lambda _: None):  # type: ignore[arg-type,return-value]
        pooling.max_pool3d(x, 2)
    assert [(each.dtype, tuple(each.shape)) for each in kept] == [(torch.int64, (1, 2, 2, 4, 4))]
