"""S2VT captioner of MTL-AQA: "Sequence to Sequence - Video to Text" (Venugopalan et al., ICCV 2015) with GRUs, as
C3D-AVG-MTL uses it (Parmar and Morris, CVPR 2019).

Parameter names are the original's (rnn1, rnn2, embedding, out). Shape letters: B clips, N feature vectors of a clip,
D their width, L caption length, V words.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from training.rows import RowGRU

END, START = 0, 1  # <eos> and <sos> of MTL-AQA's vocabulary


def encode_caption(words: Sequence[int], length: int) -> torch.Tensor:
    """Word numbers, `<sos>` first -> (length,) int64, cut to `length` with `<eos>` last, padded with `<eos>`."""
    kept = [*words[:length]]
    if len(kept) == length:
        kept[-1] = END
    return torch.tensor(kept + [END] * (length - len(kept)))


def caption_mask(tokens_BL: torch.Tensor) -> torch.Tensor:
    """(B, L) tokens -> (B, L) bool: the words up to and with the first `<eos>`."""
    ends_before = (tokens_BL == END).cumsum(dim=1) - (tokens_BL == END).long()
    return ends_before == 0


class S2VT(nn.Module):
    """Reads a clip's feature vectors, then writes a sentence, word after word.

    `rnn1` reads the vectors and then zeros; `rnn2` reads rnn1's output beside the word before, zeros while the vectors
    are read.
    """

    def __init__(self, words: int, feature_dim: int, hidden: int = 512, word_dim: int = 512, layers: int = 2) -> None:
        super().__init__()
        dropout = 0.5 if layers > 1 else 0.0
        self.rnn1 = RowGRU(feature_dim, hidden, layers, dropout)
        self.rnn2 = RowGRU(hidden + word_dim, hidden, layers, dropout)
        self.embedding = nn.Embedding(words, word_dim)
        self.out = nn.Linear(hidden, words)

    def _read(self, features_BND: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The states of both GRUs after the feature vectors."""
        seen_BNH, state1 = self.rnn1(features_BND)
        no_words = seen_BNH.new_zeros(*seen_BNH.shape[:2], self.embedding.embedding_dim)
        _, state2 = self.rnn2(torch.cat([seen_BNH, no_words], dim=2))
        return state1, state2

    def forward(self, features_BND: torch.Tensor, tokens_BL: torch.Tensor) -> torch.Tensor:
        """(B, L - 1, V) log-probabilities of the words tokens[:, 1:], each told the true words before it."""
        state1, state2 = self._read(features_BND)
        steps = tokens_BL.shape[1] - 1
        ahead_BLH, _ = self.rnn1(features_BND.new_zeros(len(features_BND), steps, features_BND.shape[2]), state1)
        written_BLH, _ = self.rnn2(torch.cat([ahead_BLH, self.embedding(tokens_BL[:, :-1])], dim=2), state2)
        return self.out(written_BLH).log_softmax(dim=2)

    @torch.no_grad()
    def greedy(self, features_BND: torch.Tensor, length: int) -> torch.Tensor:
        """(B, length - 1) words, each the likeliest after those before it; `<eos>` from where all captions have ended."""
        state1, state2 = self._read(features_BND)
        word_B1 = features_BND.new_full((len(features_BND), 1), START, dtype=torch.long)
        nothing = features_BND.new_zeros(len(features_BND), 1, features_BND.shape[2])
        words: list[torch.Tensor] = []
        ended_B1 = torch.zeros_like(word_B1, dtype=torch.bool)
        while len(words) < length - 1 and not ended_B1.all():
            ahead, state1 = self.rnn1(nothing, state1)
            written, state2 = self.rnn2(torch.cat([ahead, self.embedding(word_B1)], dim=2), state2)
            word_B1 = self.out(written).argmax(dim=2)
            words.append(word_B1)
            ended_B1 |= word_B1 == END
        return F.pad(torch.cat(words, dim=1), (0, length - 1 - len(words)), value=END)
