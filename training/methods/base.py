"""What every method is: which clips a sample has, what is learned from their features, and how that becomes a prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from data_preparation.dives import Dive, DiveKey
from training.backbones.base import Backbone
from training.data.batch import Rows, Tensors, concat
from training.data.dataset import Plan
from training.data.plan import Arrays, Sample


class ParameterGroup(NamedTuple):
    """Parameters by name with a learning rate and a weight decay of their own, as factors of the flags' values."""

    names: Sequence[str]
    rate: float = 1.0
    decay: float = 1.0


class Method(nn.Module):
    """What is learned and how it becomes a prediction. The engine knows these functions and no method by name.

    `given`, `labels` and outputs are tensors by name whose first dimension is the action, so that the engine can gather
    them over ranks: `loss` and `predict` always see the global batch. The loss may depend on floating-point outputs only.
    """

    freezes_backbone: bool = False  # the backbone's features are used as they are, whatever --freeze says
    fits_features: bool = False  # `fit` learns from all features together: there are no steps and no gradients

    def sample(self, action: Dive, plan: Plan) -> Sample:
        """Which clips the network sees for an action, and what is known of it. Every draw is `plan.rng(purpose)`.

        Raises:
            UserError: the annotation lacks something that this method learns from.
        """
        return Sample({"clip": plan.clip(action)}, self.given(action), self.labels(action))

    def given(self, action: Dive) -> Arrays:
        """What a prediction may look at besides the clip (difficulty, kind, boxes), without the batch dimension."""
        return {}

    def labels(self, action: Dive) -> Arrays:
        """What the loss needs to know of an action, without the batch dimension.

        Raises:
            UserError: the annotation lacks something that this method learns from.
        """
        raise NotImplementedError

    def encode(self, backbone: Backbone, clip: torch.Tensor) -> Tensors:
        """Outputs of one clip alone: (B, 3, T, H, W) normalised video, or (B, N, D) features. The backbone may be called as
        often as the method likes."""
        raise NotImplementedError

    def forward(self, backbone: Backbone, clips: Tensors, given: Tensors, labels: Tensors) -> Tensors:
        """Outputs of a sample, all its clips together. `labels` are there for what the loss needs computed in the network
        (teacher forcing); predictions must not depend on them, and there may be none."""
        return self.encode(backbone, clips["clip"])

    def loss(self, outputs: Tensors, given: Tensors, labels: Tensors) -> Tensors:
        """Scalars; `loss` is what is minimised, the others are for the log. Validation gives it tensors on the CPU."""
        raise NotImplementedError

    def predict(self, outputs: Tensors, given: Tensors) -> Tensors:
        """What the task judges: {"score": (B,) final scores in points}. Validation and test give it tensors on the CPU."""
        raise NotImplementedError

    def metrics(self, outputs: Tensors, labels: Tensors) -> dict[str, float]:
        """What this method predicts besides the score, judged over a whole set: name -> value."""
        return {}

    def columns(self, outputs: Tensors) -> dict[str, list]:
        """What predictions.csv says of each action besides its score: column -> (B,) values."""
        return {}

    def fit(self, train: Rows, val: Rows) -> str:
        """For `fits_features`: learn from the outputs of all training actions, choose on the validation actions; returns
        what was chosen, for the log."""
        raise NotImplementedError

    def parameter_groups(self, names: Sequence[str]) -> list[ParameterGroup]:
        """How the model's trained parameters are grouped for the optimizer; each name in one group."""
        return [ParameterGroup(names)]

    def repeats(self, actions: Sequence[Dive]) -> Sequence[int] | None:
        """How often each training action comes in an epoch, a pure function of the actions' labels
        (data.sampling.balancing_repeats, say); None for once each."""
        return None


@dataclass(frozen=True)
class Bank:
    """Encoded references of a method that compares: tensors (references, ...) with a row for each of `keys`."""

    keys: list[DiveKey]
    encoded: Tensors
    labels: Tensors

    def joined(self, other: Bank) -> Bank:
        """The references of both."""
        encoded, labels = (
            concat([mine, its]) for mine, its in ((self.encoded, other.encoded), (self.labels, other.labels))
        )
        return Bank([*self.keys, *other.keys], encoded, labels)


class ComparingMethod(Method):
    """Base of methods that score an action against references. The engine encodes the references with the weights that
    are validated (`encode`, each once), and calls `remember`. The bank is saved with the weights that it came from, so it
    cannot go stale, and best.pt scores new videos without the training frames."""

    bank: Bank | None = None

    def remember(self, bank: Bank) -> None:
        """Keep the encoded references for `predict`."""
        self.bank = bank

    def get_extra_state(self) -> dict | None:
        return None if self.bank is None else dict(self.bank.__dict__)

    def set_extra_state(self, state: dict | None) -> None:
        self.bank = None if state is None else Bank(**state)
