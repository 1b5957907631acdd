"""Dropout and stochastic depth whose draws belong to a dive's row of the global batch, not to the process that holds it.

Each process draws the numbers of the whole batch and takes those of its own rows, so the same step has the same noise on
any number of processes and with any --accumulate.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

_part, _parts = 0, 1  # the rows at hand are part `_part` of `_parts` equal ones of the global batch


@contextmanager
def rows_of(part: int, parts: int) -> Iterator[None]:
    """Inside, the modules below draw for part `part` (from 0) of `parts` equal ones of the global batch."""
    global _part, _parts
    before = _part, _parts
    _part, _parts = part, parts
    try:
        yield
    finally:
        _part, _parts = before


def kept(shape: tuple[int, ...], rate: float, like: torch.Tensor) -> torch.Tensor:
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
        return x * kept(tuple(x.shape), self.rate, x) if self.rate < 1 else torch.zeros_like(x)

    def extra_repr(self) -> str:
        return f"rate={self.rate}"


class RowDropPath(RowDropout):
    """Stochastic depth ("Deep Networks with Stochastic Depth", Huang et al., 2016) with the draws of rows: whole rows of
    (rows, ...) are dropped. Rows may be clips or parts of clips, clip by clip."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or not self.rate:
            return x
        return x * kept((x.shape[0],) + (1,) * (x.ndim - 1), self.rate, x)
