"""CoRe: "Group-aware Contrastive Regression for Action Quality Assessment" (Yu, Rao, Zhao, Lu and Zhou, ICCV 2021).

The network sees the action and an exemplar whose score is known, and predicts the difference of their labels: first its group
(training.methods.grouping), then the position in the group. A prediction is the mean over several references.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from data_preparation.actions import Action
from data_preparation.common.errors import UserError
from training.backbones.base import Backbone
from training.config import TrainConfig
from training.data.batch import Tensors
from training.data.dataset import Plan
from training.data.facts import DataFacts
from training.data.plan import Arrays, Sample
from training.methods.base import ComparingMethod
from training.methods.core.tree import RegressionTree
from training.methods.grouping import Groups, group_losses, label_difference, pair_differences
from training.methods.pairing import Pairing, in_parts, mean_vote, pairs_of


def build(config: TrainConfig, feature_dim: int, data: DataFacts) -> CoRe:
    return CoRe(config, feature_dim)


class CoRe(ComparingMethod):
    """Regression of label differences by a tree of groups, in both directions of each training pair.

    With --difficulty predicted, a linear layer on the features of a clip is trained beside it to predict the standardised
    difficulty (mean squared error). Predictions then use this difficulty to choose the references and to multiply by.
    """

    difficulty_mean_and_deviation: torch.Tensor  # (2,) float64, of the training actions

    def __init__(self, config: TrainConfig, feature_dim: int) -> None:
        super().__init__()
        self.pairing = Pairing(config)
        self.tree = RegressionTree(2 * feature_dim + 1, config.tree_depth, config.tree_width)
        self.groups = Groups(self.tree.leaves, self.pairing.span)
        if not self.pairing.difficulty_given:
            self.difficulty_layer = nn.Linear(feature_dim, 1)
            self.register_buffer("difficulty_mean_and_deviation", torch.tensor([3.0, 0.3], dtype=torch.float64))

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
        given, labels = self.given(action), self.labels(action)
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
        features = backbone(clip).mean(dim=1)
        with torch.autocast(features.device.type, enabled=False):
            return self._encoded(features.to(self._dtype))

    def _encoded(self, features: torch.Tensor) -> Tensors:
        """(..., D) -> the features and, if it is predicted, the standardised difficulty (...)."""
        if self.pairing.difficulty_given:
            return {"features": features}
        return {"features": features, "difficulty": self.difficulty_layer(features)[..., 0]}

    @property
    def _dtype(self) -> torch.dtype:
        return self.tree.reg_layer.weight.dtype

    def forward(self, backbone: Backbone, clips: Tensors, given: Tensors, labels: Tensors) -> Tensors:
        if "exemplar" not in clips:
            return self.encode(backbone, clips["clip"])
        # both clips of a pair side by side, so that the rows of the batch stay what dropout and batch norm take them for
        pairs = torch.stack([clips["exemplar"], clips["clip"]], dim=1)  # (B, 2, ...)
        features = backbone(pairs.flatten(0, 1)).mean(dim=1)  # (2B, D)
        with torch.autocast(features.device.type, enabled=False):
            encoded = self._encoded(features.to(self._dtype).unflatten(0, (-1, 2)))  # (B, 2, D)
            first, second = encoded.pop("features").unbind(dim=1)
            forth = self._compare(first, given["exemplar_label"], second)
            back = self._compare(second, labels["label"], first)
        directions = {name: torch.stack([forth[name], back[name]], dim=1) for name in forth}  # (B, 2, leaves)
        return {**directions, **encoded}

    def _compare(self, exemplar: torch.Tensor, exemplar_label: torch.Tensor, other: torch.Tensor) -> Tensors:
        """The predicted difference other - exemplar: features (P, D) twice and labels (P,) -> (P, leaves) twice."""
        scaled = (exemplar_label / self.pairing.span).to(self._dtype)
        log_probabilities, positions = self.tree(torch.cat([exemplar, other, scaled[:, None]], dim=1))
        return {"log_probabilities": log_probabilities, "positions": positions}

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
        return {"loss": torch.stack(list(parts.values())).sum(), **parts}

    def _difficulty_loss(self, predicted: torch.Tensor, labels: Tensors) -> torch.Tensor:
        """Mean squared error of the standardised difficulties of all clips: (B, 2) exemplar first, or (B,)."""
        true = labels["difficulty"]
        if predicted.ndim == 2:
            true = torch.stack([labels["exemplar_difficulty"], true], dim=1)
        mean, deviation = self.difficulty_mean_and_deviation.to(true.device)
        return (predicted - ((true - mean) / deviation).to(predicted.dtype)).square().mean()

    def _against_voters(self, outputs: Tensors, given: Tensors, labels: Tensors) -> tuple[Tensors, torch.Tensor]:
        """What `forward` gives for the pairs of each action with its voters (P, 2, leaves), and their differences (P,)."""
        bank = self._filled_bank()
        rows, references = pairs_of(self._voters(outputs, given))
        features, label = outputs["features"], labels["label"]

        def compare(rows: torch.Tensor, references: torch.Tensor) -> Tensors:
            device = self.tree.reg_layer.weight.device
            other, exemplar = features[rows].to(device), bank.encoded["features"][references].to(device)
            forth = self._compare(exemplar, bank.labels["label"][references].to(device), other)
            back = self._compare(other, label[rows].to(device), exemplar)
            return {name: torch.stack([forth[name], back[name]], dim=1) for name in forth}

        return in_parts(compare, rows, references), label_difference(label[rows], bank.labels["label"][references])

    def predict(self, outputs: Tensors, given: Tensors) -> Tensors:
        bank = self._filled_bank()
        rows, references = pairs_of(self._voters(outputs, given))
        features = outputs["features"]

        def vote(rows: torch.Tensor, references: torch.Tensor) -> Tensors:
            device = self.tree.reg_layer.weight.device
            exemplar, label = (t[references].to(device) for t in (bank.encoded["features"], bank.labels["label"]))
            found = self._compare(exemplar, label, features[rows].to(device))
            leaf = found["log_probabilities"].argmax(dim=1)
            position = found["positions"].gather(1, leaf[:, None])[:, 0]
            return {"label": label + self.groups.difference(leaf, position)}

        with torch.no_grad():
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

    def _voters(self, outputs: Tensors, given: Tensors) -> list[np.ndarray]:
        predicted = None if self.pairing.difficulty_given else self._predicted_difficulty(outputs)
        return self.pairing.voters(given, self._filled_bank(), predicted)

    # ------------------------------------------------------------------------------------------ weight files, results

    def load_pretrained(self, state: Tensors) -> list[str]:
        from training.backbones._weights import load_strict

        own = {n.removeprefix("regressor."): t for n, t in state.items() if n.startswith("regressor.")}
        if not own:
            return []
        load_strict(self.tree, own)
        return ["regression tree of CoRe loaded"]

    def notes(self) -> list[str]:
        return [
            f"difficulty {'given' if self.pairing.difficulty_given else 'predicted'}"
        ] * self.pairing.uses_difficulty
