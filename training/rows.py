"""Layers whose random draws and statistics belong to an action's row of the global batch, not to the process that holds it.

Dropout: each process draws the numbers of the whole batch and takes those of its own rows. Batch norm: statistics are those
of a fixed group of rows. So the same step is the same on any number of processes and with any --accumulate.

A row is an action. Layers may see several entries for each row (windows of a clip, frames), row after row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import skip_init

_part, _parts = 0, 1  # the rows at hand are part `_part` of `_parts` equal ones of the global batch
_recomputing = False  # these rows went through the network before
_count: int | None = None  # how many rows are at hand; None where a module is called on its own


@contextmanager
def batch_part(part: int, parts: int, count: int | None = None, *, recomputing: bool = False) -> Iterator[None]:
    """Inside, the layers below work on part `part` (from 0) of `parts` equal ones of the global batch. `count` is the number of
    rows of this part, by which layers tell rows from windows; without it every entry is a row.

    The backward pass needs it as well, since recomputed activations draw and normalise again. With `again` batch norms remember
    no statistics: they have seen this part before.
    """
    global _part, _parts, _count, _recomputing
    before = _part, _parts, _count, _recomputing
    _part, _parts, _count, _recomputing = part, parts, count, recomputing
    try:
        yield
    finally:
        _part, _parts, _count, _recomputing = before


def keep_mask(shape: tuple[int, ...], rate: float, like: torch.Tensor) -> torch.Tensor:
    """A mask of `shape` (rows first) that is 0 with probability `rate` and 1 / (1 - rate) else, in the type of `like`."""
    rows = shape[0]
    numbers = torch.rand((rows * _parts, *shape[1:]), device=like.device)[rows * _part : rows * (_part + 1)]
    return (numbers >= rate).to(like.dtype) / (1 - rate)


class RowDropout(nn.Module):
    """torch's Dropout ("Dropout", Srivastava et al., 2014) with the draws of rows: (rows, ...) -> (rows, ...)."""

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
    """Stochastic depth ("Deep Networks with Stochastic Depth", Huang et al., 2016) with the draws of rows: whole rows of
    (rows, ...) are dropped. Rows may be clips or parts of clips, clip by clip."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or not self.rate:
            return x
        return x * keep_mask((x.shape[0],) + (1,) * (x.ndim - 1), self.rate, x)


class RowAttention(nn.MultiheadAttention):
    """torch's MultiheadAttention ("Attention Is All You Need", Vaswani et al., 2017), batch first, with the draws of rows:
    query (rows, Q, D), key and value (rows, K, D) -> ((rows, Q, D), None). Parameters have torch's names."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0, device: torch.device | str | None = None) -> None:
        super().__init__(width, heads, batch_first=True, device=device)
        self.row_dropout = RowDropout(dropout)

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **options: object) -> tuple:
        masks = [options.get(name) for name in ("attn_mask", "key_padding_mask")]
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
        q, k, v = projected  # (rows, heads, tokens, width of a head)
        weights = self.row_dropout((q @ k.transpose(-2, -1) / self.head_dim**0.5).softmax(dim=-1))
        return self.out_proj((weights @ v).transpose(1, 2).reshape(rows, -1, width)), None


class RowDecoderLayer(nn.TransformerDecoderLayer):
    """torch's TransformerDecoderLayer, batch first, with the draws of rows. Parameters have torch's names."""

    def __init__(self, width: int, heads: int, dropout: float = 0.1) -> None:
        super().__init__(width, heads, batch_first=True)
        for name in ("self_attn", "multihead_attn"):
            # the weights that torch's layer drew; drawing others would move every draw after them
            weights = getattr(self, name).state_dict()
            setattr(self, name, skip_init(RowAttention, width, heads, dropout))
            getattr(self, name).load_state_dict(weights)
        self.dropout, self.dropout1, self.dropout2, self.dropout3 = (RowDropout(dropout) for _ in range(4))


class RowGRU(nn.GRU):
    """torch's GRU, batch first, with dropout between its layers drawn by rows: (rows, N, inputs) -> (rows, N, hidden) and
    the state (layers, rows, hidden). Parameters have torch's names."""

    def __init__(self, inputs: int, hidden: int, layers: int, dropout: float = 0.0) -> None:
        super().__init__(inputs, hidden, layers, batch_first=True)
        self.row_dropout = RowDropout(dropout)

    def forward(self, x: torch.Tensor, state: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.row_dropout.rate or not self.training:
            return super().forward(x, state)
        if state is None:
            state = x.new_zeros(self.num_layers, len(x), self.hidden_size)
        states = []
        for layer, weights in enumerate(self.all_weights):
            x = self.row_dropout(x) if layer else x
            x, after = torch.gru(x, state[layer : layer + 1].contiguous(), weights, True, 1, 0.0, True, False, True)
            states.append(after)
        return x, torch.cat(states)


class RowBatchNorm(nn.Module):
    """Batch norm ("Batch Normalization", Ioffe and Szegedy, 2015) with statistics over groups of `group` rows:
    (rows * windows, C, ...) -> the same. Parameters and buffers have the names of torch's BatchNorm.

    Windows of a clip are normalised apart, as originals do that send a clip's windows through the network one after the
    other; with `together` all windows of a group share their statistics. In eval mode the running statistics are used.
    Training changes them once a step, when `update_running_statistics` is called; until then the forward passes only remember.
    """

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.channels, self.eps, self.momentum = channels, eps, momentum
        self.group, self.together = 1, False
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0))
        self.step_statistics: dict[
            int, list[torch.Tensor]
        ] = {}  # part of the step -> for each call (updates, 2, C): mean and variance

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
            )
        rows = len(x) if _count is None else _count
        groups, windows = rows // self.group, len(x) // rows
        shape = (groups, self.group, windows, self.channels, *x.shape[2:])
        # what shares statistics goes into batch and space of one call, each set with channels of its own
        order = (1, 2, 0, 3) if self.together else (1, 0, 2, 3)
        order = (*order, *range(4, x.ndim + 2))
        sets = groups if self.together else groups * windows
        apart = x.reshape(shape).permute(order)
        flat = apart.reshape(-1, sets * self.channels, *x.shape[2:])
        mean, var = (torch.zeros(flat.shape[1], device=x.device, dtype=torch.float32) for _ in range(2))
        normal = F.batch_norm(flat, mean, var, training=True, momentum=1.0, eps=self.eps)
        if not _recomputing:
            self.step_statistics.setdefault(_part, []).append(
                torch.stack([mean.view(sets, -1), var.view(sets, -1)], dim=1).detach()
            )
        back = [order.index(axis) for axis in range(len(order))]
        normal = normal.reshape(apart.shape).permute(back).reshape(x.shape)
        broadcast = (1, -1) + (1,) * (x.ndim - 2)
        return normal * self.weight.view(broadcast).to(normal.dtype) + self.bias.view(broadcast).to(normal.dtype)

    def update(self, statistics_U2C: torch.Tensor) -> None:
        """Move the running statistics by the mean and unbiased variance of each group, one after the other."""
        for mean, var in statistics_U2C:
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var, self.momentum)
        self.num_batches_tracked += len(statistics_U2C)

    def extra_repr(self) -> str:
        return f"{self.channels}, eps={self.eps}, momentum={self.momentum}, group={self.group}"


@torch.no_grad()
def update_running_statistics(model: nn.Module, gather: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Move the running statistics of all batch norms by what this step's forward passes remembered, in the order of the
    global batch's rows; the same on every rank. `gather` is distributed.gather: (1, n) of each rank -> (ranks, n)."""
    layers = [m for m in model.modules() if isinstance(m, RowBatchNorm) and m.step_statistics]
    if not layers:
        return
    mine = [
        torch.cat([numbers for part in sorted(layer.step_statistics) for numbers in layer.step_statistics[part]])
        for layer in layers
    ]
    everyones = gather(torch.cat([m.flatten() for m in mine])[None])  # (ranks, all numbers)
    for layer, own, numbers in zip(layers, mine, everyones.split([m.numel() for m in mine], dim=1), strict=True):
        layer.update(numbers.reshape(-1, *own.shape[1:]))
        layer.step_statistics.clear()


def freeze_batch_norm(model: nn.Module) -> None:
    """Let all batch norms use their running statistics, whatever mode the model is in."""
    for layer in model.modules():
        if isinstance(layer, RowBatchNorm):
            layer.eval()


def set_batch_norm(model: nn.Module, *, group: int, together: bool) -> None:
    """Tell all batch norms of a model how many rows share statistics."""
    for layer in model.modules():
        if isinstance(layer, RowBatchNorm):
            layer.group, layer.together = group, together
