"""Dropout and batch norm layers whose results do not depend on how the global batch is split.

Each rank holds some rows of the global batch; a row is one action. Dropout: each rank samples the random numbers of the whole
batch and uses those of its own rows. Batch norm: statistics are computed over fixed groups of rows. A step therefore gives the
same result on any number of ranks and with any --accumulate.

A layer may see several entries per row (windows of a clip, frames). The entries of a row are adjacent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import skip_init

# set by batch_part
_part, _parts = 0, 1  # the present rows are part `_part` of `_parts` equal parts of the global batch
_recomputing = False  # the forward pass of these rows ran before
_rows: int | None = None  # number of present rows; None if a layer is called outside of batch_part


@contextmanager
def batch_part(part: int, parts: int, rows: int | None = None, *, recomputing: bool = False) -> Iterator[None]:
    """Tell the layers of this module which part of the global batch they compute: `part` (from 0) of `parts` equal parts.

    `rows` is the number of rows in the part; layers use it to separate rows from windows. Without it every entry is a row.
    Use this context for the backward pass too: activation checkpointing runs the forward pass again there. With `recomputing`
    batch norms do not record statistics, because the first forward pass of this part recorded them.
    """
    global _part, _parts, _rows, _recomputing
    before = _part, _parts, _rows, _recomputing
    _part, _parts, _rows, _recomputing = part, parts, rows, recomputing
    try:
        yield
    finally:
        _part, _parts, _rows, _recomputing = before


def full_precision(x: torch.Tensor) -> torch.Tensor:
    """`x` in float32; float64 stays as it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def keep_mask(shape: tuple[int, ...], rate: float, like: torch.Tensor) -> torch.Tensor:
    """Sample a mask of `shape` (rows first): 0 with probability `rate`, else 1 / (1 - rate). Device and dtype are those of `like`."""
    rows = shape[0]
    numbers = torch.rand((rows * _parts, *shape[1:]), device=like.device)[rows * _part : rows * (_part + 1)]
    return (numbers >= rate).to(like.dtype) / (1 - rate)


class RowDropout(nn.Module):
    """nn.Dropout ("Dropout", Srivastava et al., 2014) with a mask that does not depend on the split of the batch:
    (rows, ...) -> (rows, ...)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or not self.rate:
            return x
        return x * keep_mask(tuple(x.shape), self.rate, x) if self.rate < 1 else torch.zeros_like(x)

    def extra_repr(self) -> str:
        return f"rate={self.rate}"


class RowDropPath(RowDropout):
    """Stochastic depth ("Deep Networks with Stochastic Depth", Huang et al., 2016): drops whole entries of the first
    dimension. (rows, ...) -> (rows, ...); an entry may be a clip or a part of one, the parts of a clip adjacent."""

    def mask(self, rows: int, device: torch.device) -> torch.Tensor | None:
        """A mask (rows, 1, 1) in float32 by which the entries are multiplied; None if none is dropped."""
        if not self.training or not self.rate:
            return None
        return keep_mask((rows, 1, 1), self.rate, torch.empty(0, device=device))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or not self.rate:
            return x
        return x * keep_mask((x.shape[0],) + (1,) * (x.ndim - 1), self.rate, x)


class RowAttention(nn.MultiheadAttention):
    """nn.MultiheadAttention ("Attention Is All You Need", Vaswani et al., 2017), batch first, with RowDropout:
    query (rows, Q, D), key and value (rows, K, D) -> ((rows, Q, D), None). Parameter names are torch's."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0, device: torch.device | str | None = None) -> None:
        super().__init__(width, heads, batch_first=True, device=device)
        self.row_dropout = RowDropout(dropout)

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_padding_mask: torch.Tensor | None = None,
        need_weights: bool = True,
        attn_mask: torch.Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        masks = (key_padding_mask, attn_mask)
        assert all(mask is None for mask in masks), "masks are not supported"
        if not self.row_dropout.rate or not self.training:
            return super().forward(query, key, value, need_weights=False)[0], None
        rows, width = len(query), self.embed_dim
        projected = (
            F.linear(x, weight, bias).view(rows, -1, self.num_heads, self.head_dim).transpose(1, 2)
            for x, weight, bias in zip(
                (query, key, value), self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3), strict=True
            )
        )
        q, k, v = projected  # (rows, heads, tokens, head_dim)
        weights = self.row_dropout((q @ k.transpose(-2, -1) / self.head_dim**0.5).softmax(dim=-1))
        return self.out_proj((weights @ v).transpose(1, 2).reshape(rows, -1, width)), None


class RowDecoderLayer(nn.TransformerDecoderLayer):
    """nn.TransformerDecoderLayer, batch first, with RowDropout. Parameter names are torch's."""

    def __init__(self, width: int, heads: int, dropout: float = 0.1) -> None:
        super().__init__(width, heads, batch_first=True)
        for name in ("self_attn", "multihead_attn"):
            # reuse the weights that torch's layer initialised: another initialisation would shift all later random numbers
            weights = getattr(self, name).state_dict()
            setattr(self, name, skip_init(RowAttention, width, heads, dropout))
            getattr(self, name).load_state_dict(weights)
        for name in ("dropout", "dropout1", "dropout2", "dropout3"):
            setattr(self, name, RowDropout(dropout))


class RowGRU(nn.GRU):
    """nn.GRU, batch first, with RowDropout between its layers: (rows, N, inputs) -> (rows, N, hidden) and the state
    (layers, rows, hidden). Parameter names are torch's."""

    def __init__(self, inputs: int, hidden: int, layers: int, dropout: float = 0.0) -> None:
        super().__init__(inputs, hidden, layers, batch_first=True)
        self.row_dropout = RowDropout(dropout)

    def forward(  # type: ignore[override]  # torch's also accepts a PackedSequence
        self, x: torch.Tensor, state: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.row_dropout.rate or not self.training:
            return super().forward(x, state)
        if state is None:
            state = x.new_zeros(self.num_layers, len(x), self.hidden_size)
        states = []
        for layer, weights in enumerate(self.all_weights):
            x = self.row_dropout(x) if layer else x
            initial = state[layer : layer + 1].contiguous()
            x, final = torch.gru(
                x, initial, [*weights],
                has_biases=True, num_layers=1, dropout=0.0, train=True, bidirectional=False, batch_first=True,
            )  # fmt: skip
            states.append(final)
        return x, torch.cat(states)


class RowBatchNorm(nn.Module):
    """Batch norm ("Batch Normalization", Ioffe and Szegedy, 2015) with statistics over groups of `group` rows.

    (rows * windows, C, ...) -> the same shape. Names of parameters and buffers are those of nn.BatchNorm3d.

    Each window position has statistics of its own, as in code that sends the windows of a clip through the network one after
    the other; with `together` all windows of a group share statistics. In eval mode the layer uses the running statistics.
    Forward passes only record their statistics; `gather_running_statistics` and `update_running_statistics` apply them once per step.
    """

    running_mean: torch.Tensor
    running_var: torch.Tensor
    num_batches_tracked: torch.Tensor

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.channels, self.eps, self.momentum = channels, eps, momentum
        self.group, self.together = 1, False
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0))
        # index of the batch part -> one (statistics, 2, C) tensor per forward call: mean and unbiased variance
        self.step_statistics: dict[int, list[torch.Tensor]] = {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
            )
        rows = len(x) if _rows is None else _rows
        groups, windows = rows // self.group, len(x) // rows
        shape = (groups, self.group, windows, self.channels, *x.shape[2:])
        # F.batch_norm computes one set of statistics per channel: move groups (and windows) into the channel dimension
        order = (1, 2, 0, 3) if self.together else (1, 0, 2, 3)
        order = (*order, *range(4, x.ndim + 2))
        sets = groups if self.together else groups * windows
        separated = x.reshape(shape).permute(order)
        flat = separated.reshape(-1, sets * self.channels, *x.shape[2:])
        mean, var = (full_precision(flat.new_zeros(flat.shape[1])) for _ in range(2))
        normalized = F.batch_norm(flat, mean, var, training=True, momentum=1.0, eps=self.eps)
        if not _recomputing:
            statistics = torch.stack([mean.view(sets, -1), var.view(sets, -1)], dim=1)  # (sets, 2, C)
            self.step_statistics.setdefault(_part, []).append(statistics.detach())
        inverse = [order.index(axis) for axis in range(len(order))]
        normalized = normalized.reshape(separated.shape).permute(inverse).reshape(x.shape)
        per_channel = (1, -1) + (1,) * (x.ndim - 2)
        weight, bias = (p.view(per_channel).to(normalized.dtype) for p in (self.weight, self.bias))
        return normalized * weight + bias

    def update(self, statistics_U2C: torch.Tensor, counts_U: torch.Tensor) -> None:
        """Update the running statistics with the mean and unbiased variance of each group, one group after the other. `counts_U`
        (bool) tells which groups count."""
        left_U = counts_U.flip(0).cumsum(0).flip(0)  # groups that count, from each one to the last
        kept = 1 - self.momentum  # of the running statistics, by each group
        shares_U = torch.where(counts_U, self.momentum * kept ** (left_U - 1).to(statistics_U2C.dtype), 0.0)
        counted_U2C = torch.where(counts_U[:, None, None], statistics_U2C, 0.0)  # also without NaN
        added_2C = (shares_U[:, None, None] * counted_U2C).sum(dim=0)
        for running_C, added_C in zip((self.running_mean, self.running_var), added_2C, strict=True):
            running_C.mul_(kept ** left_U[0].to(running_C.dtype)).add_(added_C)
        self.num_batches_tracked += left_U[0]

    def extra_repr(self) -> str:
        return f"{self.channels}, eps={self.eps}, momentum={self.momentum}, group={self.group}"


class MaskedBatchNorm(RowBatchNorm):
    """Batch norm of a varying number of positions: (rows, C, N) with valid (rows, N) bool -> (rows, C, N).

    Each row has statistics of its own, those of its valid positions, whatever `group` is. Outputs at other positions mean nothing.
    A row with fewer than two valid positions does not change the running statistics.
    """

    def forward(self, x: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:  # type: ignore[override]  # takes a mask
        if not self.training:
            return super().forward(x)
        is_valid, counts = valid[:, None].to(x.dtype), valid.sum(dim=1)[:, None].to(x.dtype)  # (rows, 1, N), (rows, 1)
        mean = (x * is_valid).sum(dim=2) / counts.clamp(min=1)  # (rows, C)
        centred = (x - mean[..., None]) * is_valid
        squares = centred.square().sum(dim=2)
        if not _recomputing:
            # every row records its statistics, because the ranks gather equal numbers; `update` leaves out NaN
            var = squares / torch.where(counts > 1, counts - 1, torch.nan)
            self.step_statistics.setdefault(_part, []).append(torch.stack([mean, var], dim=1).detach())
        deviation = (squares / counts.clamp(min=1) + self.eps).sqrt()
        return centred / deviation[..., None] * self.weight[:, None] + self.bias[:, None]

    def update(self, statistics_U2C: torch.Tensor, counts_U: torch.Tensor) -> None:
        super().update(statistics_U2C, counts_U & statistics_U2C.isfinite().flatten(1).all(dim=1))


RunningStatistics = list[tuple[RowBatchNorm, torch.Tensor]]  # (statistics, 2, C) for each batch norm


@torch.no_grad()
def gather_running_statistics(model: nn.Module, gather: Callable[[torch.Tensor], torch.Tensor]) -> RunningStatistics:
    """The statistics that each batch norm recorded in this step, of all ranks, in the row order of the global batch.

    The result is the same on every rank. `gather` concatenates over ranks: (1, n) -> (ranks, n), as collectives.gather does.
    """
    layers = [m for m in model.modules() if isinstance(m, RowBatchNorm) and m.step_statistics]
    if not layers:
        return []
    local = [
        torch.cat([s for part in sorted(layer.step_statistics) for s in layer.step_statistics[part]])
        for layer in layers
    ]
    gathered = gather(torch.cat([s.flatten() for s in local])[None])  # (ranks, all numbers)
    split = gathered.split([s.numel() for s in local], dim=1)
    for layer in layers:
        layer.step_statistics.clear()
    return [
        (layer, of_ranks.reshape(-1, *own.shape[1:])) for layer, own, of_ranks in zip(layers, local, split, strict=True)
    ]


@torch.no_grad()
def update_running_statistics(gathered: RunningStatistics, failed: torch.Tensor | None = None) -> None:
    """Update the running statistics of all batch norms with what `gather_running_statistics` returned, unless `failed` (a bool
    tensor on their device, which is not waited for)."""
    for layer, statistics_U2C in gathered:
        counts = torch.ones((), dtype=torch.bool, device=statistics_U2C.device) if failed is None else ~failed
        layer.update(statistics_U2C, counts.expand(len(statistics_U2C)))


def freeze_batch_norm(model: nn.Module) -> None:
    """Put all batch norms into eval mode, so that they use their running statistics, whatever the mode of the model."""
    for layer in model.modules():
        if isinstance(layer, RowBatchNorm):
            layer.eval()


def set_batch_norm(model: nn.Module, *, group: int, together: bool) -> None:
    """Set `group` and `together` of all batch norms of a model (see RowBatchNorm)."""
    for layer in model.modules():
        if isinstance(layer, RowBatchNorm):
            layer.group, layer.together = group, together
