"""TimeSformer: what its last block leaves out, and the kernels of its attention."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.small import config_of
from training.backbones._attention import SelfAttention, attention
from training.backbones.timesformer.flags import ATTENTION_TYPES
from training.backbones.timesformer.network import TimeSformer
from training.cost import multiply_adds
from training.engine.prediction import slow_precision
from training.model import build_model
from training.rows import batch_part


def outputs_and_gradients(model: TimeSformer, video: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The outputs for a clip, and the gradients of their squares; the same random numbers in each call."""
    torch.manual_seed(1)
    model.zero_grad()
    with batch_part(1, 2, len(video)):
        output = model(video)
    output.square().sum().backward()
    return output.detach(), {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("attention_type", ATTENTION_TYPES)
def test_the_class_token_alone_leaves_the_last_block(attention_type: str):
    torch.manual_seed(0)
    model = TimeSformer(32, 8, 5, 24, 3, 2, attention_type, drop_path=0.4).double().train()
    for parameter in model.parameters():  # zeros would hide the temporal attention
        nn.init.normal_(parameter, std=0.3)
    video = torch.rand(6, 3, 5, 32, 32, dtype=torch.float64)
    output, gradients = outputs_and_gradients(model, video)
    drawn = torch.get_rng_state()
    assert model.blocks[-1].class_only
    model.blocks[-1].class_only = False
    expected, all_gradients = outputs_and_gradients(model, video)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert torch.allclose(output, expected, rtol=1e-11, atol=1e-12)
    for name, gradient in all_gradients.items():
        assert torch.allclose(gradients[name], gradient, rtol=1e-9, atol=1e-11), name
        assert ".qkv.bias" in name or gradient.any(), name


def test_the_cost_follows():
    """Queries, keys, values, projection and MLP of the last block: 12 of its 16 products with width^2 weights for each token."""
    tokens, vectors = (config_of(frame_num=4, spatial_size=64, depth=2, use_decoder=d) for d in (True, False))
    saved = multiply_adds(build_model(tokens), tokens) - multiply_adds(build_model(vectors), vectors)
    assert saved / (12 * 768**2 * 4 * 16) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("keys", [1, 8, 17, 48, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("training", [True, False])
def test_attention_by_any_kernel(keys: int, dtype: torch.dtype, training: bool):
    torch.manual_seed(0)
    qkv = torch.randn(3, keys, 3, 4, 16).to(dtype)
    given = [x.clone().requires_grad_() for x in qkv.unbind(dim=2)]
    exact = [x.detach().double().requires_grad_() for x in given]
    output = attention(*given, training=training)
    weights = torch.einsum("bnhd,bmhd->bhnm", exact[0], exact[1]) / 4
    expected = torch.einsum("bhnm,bmhd->bnhd", weights.softmax(dim=-1), exact[2])
    direction = torch.randn_like(expected)
    output.backward(direction.to(dtype))
    expected.backward(direction)
    assert output.dtype == dtype
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 0.03, torch.float64: 1e-12}[dtype]
    for found, wanted in [(output, expected), *((g.grad, e.grad) for g, e in zip(given, exact, strict=True))]:
        assert (found - wanted).abs().max() <= tolerance * max(float(wanted.abs().max()), 1)


@pytest.mark.parametrize("training", [True, False])
def test_the_first_token_alone(training: bool):
    torch.manual_seed(0)
    layer = SelfAttention(24, 3).double().train(training)
    x = torch.randn(5, 9, 24, dtype=torch.float64)
    assert torch.allclose(layer(x, first_only=True), layer(x)[:, :1], rtol=1e-12)


@pytest.mark.parametrize(
    "mask", [None, torch.tensor([2.0, 0, 2, 0, 0], dtype=torch.float64).view(5, 1, 1)], ids=["all", "some"]
)
def test_a_linear_layer_in_the_same_product(mask: torch.Tensor | None):
    torch.manual_seed(0)
    layer, then = SelfAttention(24, 3).double(), nn.Linear(24, 24).double()
    x = torch.randn(5, 9, 24, dtype=torch.float64)
    expected = then(layer(x) if mask is None else layer(x) * mask)
    assert torch.allclose(layer(x, then=then, mask_B11=mask), expected, rtol=1e-12)


def test_compiled_blocks_are_the_blocks(monkeypatch: pytest.MonkeyPatch):
    """Three kinds of block are compiled, whatever the depth; they drop the same paths."""
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    asked, compile_block = [], nn.Module.compile

    def compile_by_backend(block: nn.Module, options: dict[str, object]) -> None:
        asked.append(options)
        compile_block(block, backend=backend)

    monkeypatch.setattr(nn.Module, "compile", compile_by_backend)
    torch.manual_seed(0)
    model = TimeSformer(32, 16, 4, 24, 5, 2, drop_path=0.4).train()
    video = torch.rand(6, 3, 4, 32, 32)
    output, gradients = outputs_and_gradients(model, video)
    model.compile_blocks(cuda_graphs=True)
    compiled, same_gradients = outputs_and_gradients(model, video)
    assert len(graphs) == 3
    assert asked == 5 * [{"triton.cudagraphs": True}]
    assert torch.allclose(compiled, output, rtol=1e-5, atol=1e-6)
    assert all(torch.allclose(same_gradients[n], g, rtol=1e-4, atol=1e-6) for n, g in gradients.items())


def test_a_cpu_without_bf16_units_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    for units in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, units, lambda: False)
    assert "give --precision fp32" in (slow_precision("bf16", torch.device("cpu")) or "")
    assert slow_precision("fp32", torch.device("cpu")) is None
    assert slow_precision("bf16", torch.device("cuda")) is None
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert slow_precision("bf16", torch.device("cpu")) is None
