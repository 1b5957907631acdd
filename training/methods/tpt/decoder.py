"""The networks of TPT (Bai et al., ECCV 2022): parts of an action by cross-attention, the encoder of pairs, and the two losses of
the attention. Parameter names are those of the authors' code.

Shape letters: B clips, T windows of a clip, K parts, L layers, D width of a part.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from training.methods.tpt.flags import HEADS
from training.rows import RowAttention, RowDropout

INITIAL_TEMPERATURE = 0.07


class PartLayer(nn.Module):
    """A decoder layer: each part attends to all windows, then a feed-forward network, then perhaps attention between parts.

    The softmax is over the windows, for each part. Its input is divided by D and by a learned temperature.
    """

    def __init__(self, inputs: int, width: int, hidden: int, dropout: float, *, self_attention: bool) -> None:
        super().__init__()
        self.temp = nn.Parameter(torch.tensor(INITIAL_TEMPERATURE))
        self.key_embed, self.value_embed = nn.Linear(inputs, width), nn.Linear(inputs, width)
        self.query_embed = nn.Linear(width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.linear1, self.linear2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.dropout = RowDropout(dropout)
        self.self_attn = RowAttention(width, HEADS, dropout) if self_attention else None
        self.norm3 = nn.LayerNorm(width) if self_attention else None

    def forward(
        self, parts_BKD: torch.Tensor, queries_KD: torch.Tensor, windows_BTM: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """-> the parts (B, K, D) and the attention (B, T, K)."""
        key_BTD, query_BKD = self.key_embed(windows_BTM), self.query_embed(parts_BKD + queries_KD)
        logits_BTK = key_BTD @ query_BKD.transpose(1, 2) / key_BTD.shape[2] / self.temp
        attention_BTK = logits_BTK.softmax(dim=1)
        attended_BKD = attention_BTK.transpose(1, 2) @ self.value_embed(windows_BTM)
        parts_BKD = self.norm1(parts_BKD + self.dropout(attended_BKD))
        hidden = self.linear2(self.dropout(F.relu(self.linear1(parts_BKD))))
        parts_BKD = self.norm2(parts_BKD + self.dropout(hidden))
        if self.self_attn is not None and self.norm3 is not None:
            query = parts_BKD + queries_KD
            among_parts = self.self_attn(query, query, parts_BKD)[0]
            parts_BKD = self.norm3(parts_BKD + self.dropout(among_parts))
        return parts_BKD, attention_BTK


class PartDecoder(nn.Module):
    """The windows of a clip (B, T, inputs) -> its parts (B, K, D), and the attention of every layer (B, L, T, K)."""

    def __init__(self, inputs: int, parts: int, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.query_embed = nn.Embedding(parts, width)
        self.layers = nn.ModuleList(
            PartLayer(inputs, width, hidden, dropout, self_attention=is_first) for is_first in (True, False)
        )
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, windows_BTM: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        queries_KD = self.query_embed.weight
        parts_BKD = torch.zeros_like(queries_KD).expand(len(windows_BTM), -1, -1)
        attention = []
        for layer in self.layers:
            parts_BKD, attention_BTK = layer(parts_BKD, queries_KD, windows_BTM)
            attention.append(attention_BTK)
        return parts_BKD, torch.stack(attention, dim=1)


class PairEncoder(nn.Module):
    """The parts of two clips (B, K, D) -> (B, D): corresponding parts are compared, then averaged."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), RowDropout(dropout), nn.Linear(width, width))

    def forward(self, first_BKD: torch.Tensor, second_BKD: torch.Tensor) -> torch.Tensor:
        return self.mlp(torch.cat([first_BKD, second_BKD], dim=2)).mean(dim=1)


def centres(attention: torch.Tensor) -> torch.Tensor:
    """The mean window (from 1 to T) of each part: attention (..., T, K) -> (..., K)."""
    windows = torch.arange(1, attention.shape[-2] + 1, device=attention.device, dtype=attention.dtype)
    return (windows[:, None] * attention).sum(dim=-2)


def ranking_loss(attention: torch.Tensor, margin: float) -> torch.Tensor:
    """How far parts are from being `margin` windows apart, in order, from the first window to the last: the sum over
    neighbours, averaged over all but the last two dimensions of (..., T, K)."""
    centre = centres(attention)
    first, last = torch.ones_like(centre[..., :1]), torch.full_like(centre[..., :1], attention.shape[-2])
    distance = torch.cat([first, centre, last], dim=-1).diff(dim=-1)  # (..., K + 1)
    return F.relu(margin - distance).flatten(0, -2).mean(dim=0).sum()


def sparsity_loss(attention: torch.Tensor) -> torch.Tensor:
    """The mean distance of the attended windows from the part's centre, over all parts: attention (..., T, K)."""
    windows = torch.arange(1, attention.shape[-2] + 1, device=attention.device, dtype=attention.dtype)
    distance = (windows[:, None] - centres(attention)[..., None, :]).abs()
    return (distance * attention).sum(dim=-2).mean()
