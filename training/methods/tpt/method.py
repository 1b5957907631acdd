"""TPT: "Action Quality Assessment with Temporal Parsing Transformer" (Bai, Zhou, Zhang, Wang, Ding, Guan, Long and Wang, ECCV
2022).

A decoder turns the windows of a clip into a few parts in temporal order. Corresponding parts of an action and an exemplar are
compared, which gives the group of their label difference and the position in the group, as in CoRe. Two more losses keep the
parts in order, and the attention of a part near its centre.

The references of a prediction have the difficulty of the action, and all of them count equally. Others are used only if there is
none, as the authors' weights of 0 for them intend.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from training.config import TrainConfig
from training.data.batch import Tensors
from training.data.facts import DataFacts
from training.methods.base import Bank, ParameterGroup
from training.methods.paired import OtherLoss, PairedRegression
from training.methods.tpt.decoder import PairEncoder, PartDecoder, ranking_loss, sparsity_loss

log = logging.getLogger(__name__)

LEAVES = 16
OUTPUT_HIDDEN = 128


def build(config: TrainConfig, feature_dim: int, data: DataFacts) -> TPT:
    return TPT(config, feature_dim)


class TPT(PairedRegression):
    """Regression of label differences by parts."""

    def __init__(self, config: TrainConfig, feature_dim: int) -> None:
        super().__init__(config, feature_dim, LEAVES)
        self.config, self._warned = config, False
        width = config.part_width
        self.action_decoder = PartDecoder(feature_dim, config.parts, width, config.part_hidden, config.part_dropout)
        self.pair_encoder = PairEncoder(width, config.part_dropout)
        self.cls, self.reg = (
            nn.Sequential(nn.Linear(width, OUTPUT_HIDDEN), nn.ReLU(), nn.Linear(OUTPUT_HIDDEN, LEAVES))
            for _ in range(2)
        )

    def code(self, features_BND: torch.Tensor) -> Tensors:
        if features_BND.shape[1] < self.config.parts and not self._warned:
            self._warned = True
            log.warning(
                "--parts %d and the backbone gives %d vectors of a clip in temporal order, so parts cannot differ: choose another --window_layout, more --frame_num, or other --features",
                self.config.parts, features_BND.shape[1],
            )  # fmt: skip
        parts, attention = self.action_decoder(features_BND)
        return {"features": parts, "attention": attention}

    def compare(self, exemplar: torch.Tensor, exemplar_label: torch.Tensor, other: torch.Tensor) -> Tensors:
        pair = self.pair_encoder(exemplar, other)
        return {"log_probabilities": F.log_softmax(self.cls(pair), dim=1), "positions": self.reg(pair).sigmoid()}

    def other_losses(self, outputs: Tensors) -> Iterator[OtherLoss]:
        # summed over the layers, averaged over all clips
        of_layers = outputs["attention"].unbind(dim=-3)
        ranking = torch.stack([ranking_loss(layer, self.config.ranking_margin) for layer in of_layers]).sum()
        sparsity = torch.stack([sparsity_loss(layer) for layer in of_layers]).sum()
        yield OtherLoss("ranking", ranking, self.config.ranking_weight)
        yield OtherLoss("sparsity", sparsity, self.config.sparsity_weight)

    def remember(self, bank: Bank) -> None:
        encoded = {name: tensor for name, tensor in bank.encoded.items() if name != "attention"}
        super().remember(Bank(bank.keys, encoded, bank.labels))

    def parameter_groups(self, names: Sequence[str]) -> list[ParameterGroup]:
        outputs = [name for name in names if name.startswith(("method.cls.", "method.reg."))]
        others = [name for name in names if name not in outputs]
        return [ParameterGroup(others), ParameterGroup(outputs, rate=self.config.output_lr_scale)]
