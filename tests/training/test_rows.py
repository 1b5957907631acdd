"""Random samples and statistics per row: dropout in attention and GRU, batch norm in groups."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from training.rows import (
    RowAttention,
    RowBatchNorm,
    RowDecoderLayer,
    RowDropout,
    RowGRU,
    batch_part,
    gather_running_statistics,
    update_running_statistics,
)
from training.runtime.seeding import seed_all


def in_parts(layer: nn.Module, x: torch.Tensor, parts: int, recomputing: bool = False) -> torch.Tensor:
    """The rows of x through the layer, part by part, each with the draws of its rows."""
    out = []
    for part, rows in enumerate(x.chunk(parts)):
        seed_all(3)
        with batch_part(part, parts, len(rows), recomputing=recomputing):
            found = layer(rows) if not isinstance(layer, RowDecoderLayer) else layer(rows, rows)
        out.append(found[0] if isinstance(found, tuple) else found)
    return torch.cat(out)


@pytest.mark.parametrize(
    "layer", [RowDecoderLayer(12, 3, 0.5), RowGRU(12, 8, 2, 0.5), RowDropout(0.5)], ids=lambda m: type(m).__name__
)
def test_dropout_belongs_to_rows(layer: nn.Module):
    x = torch.randn(8, 5, 12, generator=torch.Generator().manual_seed(0))
    whole = in_parts(layer, x, 1)
    for parts in (2, 4):
        assert torch.allclose(in_parts(layer, x, parts), whole, atol=1e-5)
    seed_all(4)
    with batch_part(0, 1):
        other = layer(x, x) if isinstance(layer, RowDecoderLayer) else layer(x)
    assert not torch.allclose(other[0] if isinstance(other, tuple) else other, whole)


def test_without_dropout_they_are_torchs(monkeypatch: pytest.MonkeyPatch):
    x = torch.randn(4, 5, 12)
    for ours, theirs in (
        (RowDecoderLayer(12, 3), nn.TransformerDecoderLayer(12, 3, batch_first=True)),
        (RowGRU(12, 8, 2, 0.5), nn.GRU(12, 8, 2, batch_first=True)),
        (RowAttention(12, 3, 0.5), nn.MultiheadAttention(12, 3, batch_first=True)),
    ):
        theirs.load_state_dict(ours.state_dict())  # the same names
        inputs = {RowGRU: (x,), RowDecoderLayer: (x, x), RowAttention: (x, x, x)}[type(ours)]
        for mode in (ours.eval(), theirs.eval()):
            assert not mode.training
        a, b = ours(*inputs), theirs(*inputs)
        assert torch.allclose(a[0], b[0], atol=1e-6)
    # the code that draws by rows computes the same where it drops next to nothing
    attention = RowAttention(12, 3, 1e-30)
    theirs = nn.MultiheadAttention(12, 3, batch_first=True)
    theirs.load_state_dict(attention.state_dict())
    assert torch.allclose(attention(x, x, x)[0], theirs(x, x, x)[0], atol=1e-6)
    gru, plain = RowGRU(12, 8, 2, 1e-30), nn.GRU(12, 8, 2, batch_first=True)
    plain.load_state_dict(gru.state_dict())
    for a, b in zip(gru(x), plain(x), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_the_decoder_draws_the_weights_that_torchs_draws():
    seed_all(0)
    ours = RowDecoderLayer(12, 3)
    after = torch.rand(1)
    seed_all(0)
    theirs = nn.TransformerDecoderLayer(12, 3, batch_first=True)
    assert torch.equal(after, torch.rand(1))
    assert all(torch.equal(ours.state_dict()[n], t) for n, t in theirs.state_dict().items())


def norm(group: int, together: bool = False) -> RowBatchNorm:
    layer = RowBatchNorm(3, eps=1e-3, momentum=0.3)
    layer.group, layer.together = group, together
    nn.init.normal_(layer.weight)
    return layer


@pytest.mark.parametrize("together", [False, True])
def test_a_group_is_normalised_as_torch_does(together: bool):
    """4 actions of 2 windows: torch's batch norm sees one group of 2 actions, one window (or both) at a time."""
    x = torch.randn(8, 3, 4, 5)
    layer, theirs = norm(2, together), nn.BatchNorm2d(3, eps=1e-3, momentum=0.3)
    theirs.load_state_dict(layer.state_dict())
    with batch_part(0, 1, 4):
        found = layer(x).view(4, 2, 3, 4, 5)
    expected = torch.empty_like(found)
    for group in (slice(0, 2), slice(2, 4)):
        windows = [slice(0, 2)] if together else [slice(0, 1), slice(1, 2)]
        for window in windows:
            part = x.view(4, 2, 3, 4, 5)[group, window]
            expected[group, window] = theirs(part.flatten(0, 1)).view(part.shape)
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.equal(layer.running_mean, torch.zeros(3))  # not before the step's end
    update_running_statistics(gather_running_statistics(layer, lambda numbers: numbers))
    for name in ("running_mean", "running_var"):
        assert torch.allclose(getattr(layer, name), getattr(theirs, name), atol=1e-5)
    assert layer.num_batches_tracked == theirs.num_batches_tracked
    layer.eval(), theirs.eval()
    assert torch.allclose(layer(x), theirs(x), atol=1e-5)


def test_parts_and_ranks_have_the_statistics_of_the_whole():
    x = torch.randn(8, 3, 6)
    whole = norm(2)
    found = in_parts(whole, x, 1)
    update_running_statistics(gather_running_statistics(whole, lambda numbers: numbers))
    for parts in (2, 4):
        layer = norm(2)
        layer.weight = whole.weight
        assert torch.allclose(in_parts(layer, x, parts), found, atol=1e-6)
        in_parts(
            layer, x, parts, recomputing=True
        )  # --accumulate computes each part twice but records its statistics once
        update_running_statistics(gather_running_statistics(layer, lambda numbers: numbers))
        assert torch.allclose(layer.running_mean, whole.running_mean, atol=1e-6)
        assert torch.allclose(layer.running_var, whole.running_var, atol=1e-6)
        assert layer.num_batches_tracked == whole.num_batches_tracked
