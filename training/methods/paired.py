"""The base of methods that see an action and an exemplar whose score is known, and predict the difference of their labels: first
its group (training.methods.grouping), then the position in the group. A prediction is the mean over several references.

"Group-aware Contrastive Regression for Action Quality Assessment" (CoRe, Yu et al., ICCV 2021).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from data_preparation.actions import Action
from data_preparation.common.errors import UserError
from training.backbones.base import Backbone
from training.config import TrainConfig
from training.data.batch import Tensors
from training.data.dataset import Plan
from training.data.plan import Arrays, Sample
from training.methods.base import ComparingMethod
from training.methods.grouping import Groups, group_losses, label_difference, pair_differences
from training.methods.pairing import Pairing, in_parts, mean_vote, pairs_of
from training.rows import full_precision


class OtherLoss(NamedTuple):
    """A loss besides those of the pairs, and its weight."""

    name: str
    value: torch.Tensor
    weight: float


class PairedRegression(ComparingMethod):
    """Regression of label differences in groups, in both directions of each training pair.

    With --difficulty predicted, a linear layer on the features of a clip is trained beside it to predict the standardised
    difficulty (mean squared error). Predictions then use this difficulty to choose the references and to multiply by.
    """

    difficulty_mean_and_deviation: torch.Tensor  # (2,) float64, of the training actions

    def __init__(self, config: TrainConfig, feature_dim: int, leaves: int) -> None:
        super().__init__()
        self.pairing = Pairing(config)
        self.groups = Groups(leaves, self.pairing.span)
        if not self.pairing.difficulty_given:
            self.difficulty_layer = nn.Linear(feature_dim, 1)
            self.register_buffer("difficulty_mean_and_deviation", torch.tensor([3.0, 0.3], dtype=torch.float64))

    # ------------------------------------------------------------------------------------------- what a method defines

    def code(self, features_BND: torch.Tensor) -> Tensors:
        """What is kept of single clips: "features" (B, ...), which pairs are compared by, and others that only losses use."""
        raise NotImplementedError

    def compare(self, exemplar: torch.Tensor, exemplar_label: torch.Tensor, other: torch.Tensor) -> Tensors:
        """The predicted label difference other - exemplar.

        Features of P pairs (P, ...), and the exemplars' labels (P,) -> {"log_probabilities", "positions"}, each (P, leaves).
        """
        raise NotImplementedError

    def other_losses(self, outputs: Tensors) -> Iterator[OtherLoss]:
        """Losses of single clips."""
        yield from ()

    # ------------------------------------------------------------------------------------------------------- samples

    def observe(self, train_actions: Sequence[Action]) -> None:
        labels, pools = self.pairing.differences_of(train_actions)
        differences = pair_differences(labels, pools)
        if not len(differences):
            raise UserError(
                f"no two of the {len(train_actions)} training actions can be compared by --pairs {self.pairing.pairs}: use more --videos, or --pairs free"
            )
        self.groups.fit(differences)
        if not self.pairing.difficulty_given:
            known = np.array([action.difficulty for action in train_actions])
            self.difficulty_mean_and_deviation.copy_(torch.tensor([known.mean(), max(known.std(), 0.1)]))

    def sample(self, action: Action, plan: Plan) -> Sample:
        exemplar = self.pairing.exemplar(plan)
        given, labels = self.given(action), plan.labels(self)
        clips = {"clip": plan.clip(action)}
        if exemplar is not None:
            clips["exemplar"] = plan.clip(exemplar, "exemplar clip")
            given["exemplar_label"] = np.array(self.pairing.label(exemplar))
            if not self.pairing.difficulty_given:
                labels["exemplar_difficulty"] = self.pairing.labels(exemplar)["difficulty"]
        return Sample(clips, given, labels)

    def given(self, action: Action) -> Arrays:
        return self.pairing.given(action)

    def labels(self, action: Action) -> Arrays:
        return self.pairing.labels(action)

    # ------------------------------------------------------------------------------------------------------- network

    def encode(self, backbone: Backbone, clip: torch.Tensor) -> Tensors:
        features_BND = backbone(clip)[:, backbone.clip_vectors :]
        with torch.autocast(features_BND.device.type, enabled=False):
            features_BND = full_precision(features_BND)
            encoded = self.code(features_BND)
            if not self.pairing.difficulty_given:
                encoded["difficulty"] = self.difficulty_layer(features_BND.mean(dim=1))[:, 0]
        return encoded

    def forward(self, backbone: Backbone, clips: Tensors, given: Tensors, labels: Tensors) -> Tensors:
        if "exemplar" not in clips:
            return self.encode(backbone, clips["clip"])
        # both clips of a pair side by side, so that the rows of the batch stay what dropout and batch norm take them for
        pairs = torch.stack([clips["exemplar"], clips["clip"]], dim=1)  # (B, 2, ...)
        encoded = {name: t.unflatten(0, (-1, 2)) for name, t in self.encode(backbone, pairs.flatten(0, 1)).items()}
        first, second = encoded.pop("features").unbind(dim=1)  # (B, ...)
        with torch.autocast(first.device.type, enabled=False):
            forth = self.compare(first, given["exemplar_label"], second)
            back = self.compare(second, labels["label"], first)
        directions = {name: torch.stack([forth[name], back[name]], dim=1) for name in forth}  # (B, 2, leaves)
        return {**directions, **encoded}

    # ----------------------------------------------------------------------------------------------- loss, prediction

    def loss(self, outputs: Tensors, given: Tensors, labels: Tensors) -> Tensors:
        if "log_probabilities" in outputs:
            directions = outputs
            differences = label_difference(labels["label"], given["exemplar_label"])
        else:
            directions, differences = self._against_voters(outputs, given, labels)
        of_directions = []
        for direction, sign in enumerate((1, -1)):
            leaf, position = (t.to(differences.device) for t in self.groups.place(sign * differences))
            log_probabilities, positions = directions["log_probabilities"], directions["positions"]
            losses = group_losses(log_probabilities[:, direction], positions[:, direction], leaf, position)
            of_directions.append(torch.stack(losses))
        parts = dict(zip(("nll", "position"), torch.stack(of_directions).sum(dim=0), strict=True))
        if not self.pairing.difficulty_given:
            parts["difficulty"] = self._difficulty_loss(outputs["difficulty"], labels)
        loss = torch.stack(list(parts.values())).sum()
        for other in self.other_losses(outputs):
            parts[other.name] = other.value
            loss = loss + other.weight * other.value
        return {"loss": loss, **parts}

    def _difficulty_loss(self, predicted: torch.Tensor, labels: Tensors) -> torch.Tensor:
        """Mean squared error of the standardised difficulties of all clips: (B, 2) exemplar first, or (B,)."""
        true = labels["difficulty"]
        if predicted.ndim == 2:
            true = torch.stack([labels["exemplar_difficulty"], true], dim=1)
        mean, deviation = self.difficulty_mean_and_deviation.to(true.device)
        return (predicted - ((true - mean) / deviation).to(predicted.dtype)).square().mean()

    @property
    def _device(self) -> torch.device:
        return next(self.parameters()).device

    @torch.no_grad()
    def _against_voters(self, outputs: Tensors, given: Tensors, labels: Tensors) -> tuple[Tensors, torch.Tensor]:
        """What `forward` gives for the pairs of each action with its voters (P, 2, leaves), and their differences (P,)."""
        bank = self._filled_bank()
        rows, references = pairs_of(self._voters(outputs, given))
        features, label = outputs["features"], labels["label"]

        def both_directions(rows: torch.Tensor, references: torch.Tensor) -> Tensors:
            device = self._device
            other, exemplar = features[rows].to(device), bank.encoded["features"][references].to(device)
            forth = self.compare(exemplar, bank.labels["label"][references].to(device), other)
            back = self.compare(other, label[rows].to(device), exemplar)
            return {name: torch.stack([forth[name], back[name]], dim=1) for name in forth}

        found = in_parts(both_directions, rows, references)
        return found, label_difference(label[rows], bank.labels["label"][references])

    @torch.no_grad()
    def predict(self, outputs: Tensors, given: Tensors) -> Tensors:
        bank = self._filled_bank()
        rows, references = pairs_of(self._voters(outputs, given))
        features = outputs["features"]

        def vote(rows: torch.Tensor, references: torch.Tensor) -> Tensors:
            device = self._device
            exemplar, label = (t[references].to(device) for t in (bank.encoded["features"], bank.labels["label"]))
            found = self.compare(exemplar, label, features[rows].to(device))
            leaf = found["log_probabilities"].argmax(dim=1)
            position = found["positions"].gather(1, leaf[:, None])[:, 0]
            return {"label": label + self.groups.difference(leaf, position)}

        votes = in_parts(vote, rows, references)["label"]
        label = mean_vote(votes, rows, len(features))
        if self.pairing.difficulty_given:
            offset, factor = given["scale"].cpu().unbind(dim=1)
        else:
            offset, factor = torch.zeros(()), self._predicted_difficulty(outputs)
        return {"score": offset + factor * label}

    def _predicted_difficulty(self, outputs: Tensors) -> torch.Tensor:
        mean, deviation = self.difficulty_mean_and_deviation.cpu()
        return mean + deviation * outputs["difficulty"].cpu().double()

    def details(self, outputs: Tensors) -> dict[str, list]:
        return {} if self.pairing.difficulty_given else {"difficulty": self._predicted_difficulty(outputs).tolist()}

    def _voters(self, outputs: Tensors, given: Tensors) -> list[np.ndarray]:
        predicted = None if self.pairing.difficulty_given else self._predicted_difficulty(outputs)
        return self.pairing.voters(given, self._filled_bank(), predicted)

    def notes(self) -> list[str]:
        return [
            f"difficulty {'given' if self.pairing.difficulty_given else 'predicted'}"
        ] * self.pairing.uses_difficulty
