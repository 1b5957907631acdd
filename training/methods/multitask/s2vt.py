"""S2VT captioner of MTL-AQA: "Sequence to Sequence - Video to Text" (Venugopalan et al., ICCV 2015) with GRUs, as
C3D-AVG-MTL uses it (Parmar and Morris, CVPR 2019).

Parameter names are the original's (rnn1, rnn2, embedding, out). Shape letters: B clips, N feature vectors per clip,
D their dimension, H hidden size, L caption length, V vocabulary size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from training.rows import RowGRU

END, START = 0, 1  # <eos> and <sos> of MTL-AQA's vocabulary


def encode_caption(words: Sequence[int], length: int) -> torch.Tensor:
    """Word indices, `<sos>` first -> (length,) int64: truncated so that `<eos>` is last, or padded with `<eos>`."""
    tokens = [*words[:length]]
    if len(tokens) == length:
        tokens[-1] = END
    return torch.tensor(tokens + [END] * (length - len(tokens)))


def caption_mask(tokens_BL: torch.Tensor) -> torch.Tensor:
    """(B, L) tokens -> (B, L) bool: True for the words up to and including the first `<eos>`."""
    ends_before = (tokens_BL == END).cumsum(dim=1) - (tokens_BL == END).long()
    return ends_before == 0


class S2VT(nn.Module):
    """Encodes the feature vectors of a clip, then decodes a sentence word by word.

    The input of `rnn1` is the vectors, then zeros while decoding. The input of `rnn2` is the output of `rnn1` concatenated
    with the embedding of the previous word, or zeros while encoding.
    """

    def __init__(self, words: int, feature_dim: int, hidden: int = 512, word_dim: int = 512, layers: int = 2) -> None:
        super().__init__()
        dropout = 0.5 if layers > 1 else 0.0
        self.rnn1 = RowGRU(feature_dim, hidden, layers, dropout)
        self.rnn2 = RowGRU(hidden + word_dim, hidden, layers, dropout)
        self.embedding = nn.Embedding(words, word_dim)
        self.out = nn.Linear(hidden, words)

    def _encode(self, features_BND: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The states of both GRUs after encoding the feature vectors."""
        encoded_BNH, state1 = self.rnn1(features_BND)
        no_words = encoded_BNH.new_zeros(*encoded_BNH.shape[:2], self.embedding.embedding_dim)
        _, state2 = self.rnn2(torch.cat([encoded_BNH, no_words], dim=2))
        return state1, state2

    def forward(self, features_BND: torch.Tensor, tokens_BL: torch.Tensor) -> torch.Tensor:
        """Log-probabilities (B, L - 1, V) of the words tokens[:, 1:], each given the true words before it (teacher forcing)."""
        state1, state2 = self._encode(features_BND)
        steps = tokens_BL.shape[1] - 1
        hidden_BLH, _ = self.rnn1(features_BND.new_zeros(len(features_BND), steps, features_BND.shape[2]), state1)
        decoded_BLH, _ = self.rnn2(torch.cat([hidden_BLH, self.embedding(tokens_BL[:, :-1])], dim=2), state2)
        return self.out(decoded_BLH).log_softmax(dim=2)

    @torch.no_grad()
    def greedy(self, features_BND: torch.Tensor, length: int) -> torch.Tensor:
        """Greedy decoding: (B, length - 1) word indices. Stops once all captions have ended; pads with `<eos>`."""
        state1, state2 = self._encode(features_BND)
        word_B1 = features_BND.new_full((len(features_BND), 1), START, dtype=torch.long)
        zeros = features_BND.new_zeros(len(features_BND), 1, features_BND.shape[2])
        words: list[torch.Tensor] = []
        ended_B1 = torch.zeros_like(word_B1, dtype=torch.bool)
        while len(words) < length - 1 and not ended_B1.all():
            hidden, state1 = self.rnn1(zeros, state1)
            decoded, state2 = self.rnn2(torch.cat([hidden, self.embedding(word_B1)], dim=2), state2)
            word_B1 = self.out(decoded).argmax(dim=2)
            words.append(word_B1)
            ended_B1 |= word_B1 == END
        return F.pad(torch.cat(words, dim=1), (0, length - 1 - len(words)), value=END)
