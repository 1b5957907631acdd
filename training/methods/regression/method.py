"""Regression of execution and difficulty, as in DeepSports: score = execution * difficulty * 30.

Targets are (final score / difficulty) / 30 and difficulty. The loss is a weighted sum of their mean squared error and the
negative soft Spearman correlation of the final scores over the batch.

Where actions have no difficulty, or kinds with different ranges of scores, the target is the final score mapped to 0 to 1 by the
range of its kind (methods/scale.py).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from data_preparation.actions import Action
from training.backbones.base import Backbone
from training.config import TrainConfig
from training.data.batch import Tensors
from training.data.facts import DataFacts
from training.data.plan import Arrays
from training.losses import mse, soft_spearman
from training.methods.base import Method
from training.methods.rank_loss_flags import RANK_LOSS_ADVICE
from training.methods.scale import ScoreScale
from training.rows import RowDecoderLayer, RowDropout

PERFECT_EXECUTION = 30.0  # points: three judges give 10 each, before the multiplication with the difficulty

_ACTIVATIONS = {"ReLU": nn.ReLU, "LeakyReLU": nn.LeakyReLU, "ELU": nn.ELU, "GELU": nn.GELU}


def build(config: TrainConfig, feature_dim: int, data: DataFacts) -> HeadMethod:
    outputs = 2 if data.by_difficulty else 1
    head = TokenDecoder(feature_dim, outputs) if config.use_decoder else mlp_head(feature_dim, config, outputs)
    return Regression(head, config) if data.by_difficulty else ScaledRegression(head, config, ScoreScale(data))


def mlp_head(feature_dim: int, config: TrainConfig, outputs: int = 2) -> nn.Sequential:
    """(B, feature_dim) -> (B, outputs): dropout, linear layer and --activation for each hidden size, then dropout and output
    layer."""
    layers: list[nn.Module] = []
    inputs = feature_dim
    for width, dropout in zip(config.topology, config.dropout, strict=True):
        layers += [RowDropout(dropout), nn.Linear(inputs, width)]
        if config.activation != "None":
            layers.append(_ACTIVATIONS[config.activation]())
        inputs = width
    return nn.Sequential(*layers, RowDropout(config.dropout[-1]), nn.Linear(inputs, outputs))


class TokenDecoder(nn.Module):
    """(B, N, D) -> (B, outputs): a Transformer decoder on the N tokens of each clip; uses its output for the first (class) token."""

    def __init__(self, feature_dim: int, outputs: int = 2, layers: int = 4, heads: int = 8) -> None:
        super().__init__()
        heads = max(h for h in range(1, heads + 1) if feature_dim % h == 0)
        self.decoder = nn.TransformerDecoder(RowDecoderLayer(feature_dim, heads), layers)
        self.output = nn.Linear(feature_dim, outputs)

    def forward(self, tokens_BND: torch.Tensor) -> torch.Tensor:
        return self.output(self.decoder(tokens_BND, tokens_BND)[:, 0])


class HeadMethod(Method):
    """A head on the features of a clip, trained with a squared error and the rank correlation of the batch."""

    against_constant = RANK_LOSS_ADVICE

    def __init__(self, head: nn.Module, config: TrainConfig) -> None:
        super().__init__()
        self.head, self.config = head, config

    def head_outputs(self, backbone: Backbone, clip: torch.Tensor) -> torch.Tensor:
        """(B, outputs) float32."""
        features_BND = backbone(clip)
        tokens = features_BND if isinstance(self.head, TokenDecoder) else features_BND.mean(dim=1)
        # the head always computes in float32: in bf16 a difficulty has steps of 0.016, which is half a point of score
        with torch.autocast(tokens.device.type, enabled=False):
            return self.head(tokens.float())

    def total_loss(self, error: torch.Tensor, scores_B: torch.Tensor, true_B: torch.Tensor) -> Tensors:
        """The weighted sum of an error and of the negative rank correlation of scores."""
        c = self.config
        parts = {"mse": error}
        loss = c.loss_mse_weight * error
        if c.loss_spcoef_weight:
            correlation = soft_spearman(scores_B, true_B, c.spcoef_strength, c.spcoef_norm)
            parts["soft_spearman"] = correlation
            loss = loss - c.loss_spcoef_weight * correlation
        return {"loss": loss, **parts}


class Regression(HeadMethod):
    """Predicts the execution (0 to 1) and the difficulty of each action."""

    def labels(self, action: Action) -> Arrays:
        execution = action.need("final_score") / action.need("difficulty") / PERFECT_EXECUTION
        return {
            "execution_and_difficulty": np.array([execution, action.difficulty], np.float32),
            "final_score": np.array(action.final_score, np.float32),
        }

    def encode(self, backbone: Backbone, clip: torch.Tensor) -> Tensors:
        return {"execution_and_difficulty": self.head_outputs(backbone, clip)}  # (B, 2)

    def loss(self, outputs: Tensors, given: Tensors, labels: Tensors) -> Tensors:
        error = mse(outputs["execution_and_difficulty"], labels["execution_and_difficulty"])
        return self.total_loss(error, self.predict(outputs, given)["score"], labels["final_score"])

    def predict(self, outputs: Tensors, given: Tensors) -> Tensors:
        return {"score": outputs["execution_and_difficulty"].prod(dim=1) * PERFECT_EXECUTION}

    def details(self, outputs: Tensors) -> dict[str, list]:
        execution, difficulty = outputs["execution_and_difficulty"].double().unbind(dim=1)
        return {"execution": (execution * PERFECT_EXECUTION).tolist(), "difficulty": difficulty.tolist()}

    def quantities(self, outputs: Tensors, given: Tensors) -> Tensors:
        execution, difficulty = outputs["execution_and_difficulty"].unbind(dim=1)
        return self.predict(outputs, given) | {"execution": execution * PERFECT_EXECUTION, "difficulty": difficulty}


class ScaledRegression(HeadMethod):
    """Predicts the final score on the scale of 0 to 1 of its kind."""

    def __init__(self, head: nn.Module, config: TrainConfig, scale: ScoreScale) -> None:
        super().__init__(head, config)
        self.scale = scale

    def given(self, action: Action) -> Arrays:
        return self.scale.given(action)

    def labels(self, action: Action) -> Arrays:
        return {"scaled_score": np.array(self.scale.scaled(action), np.float32)}

    def encode(self, backbone: Backbone, clip: torch.Tensor) -> Tensors:
        return {"scaled_score": self.head_outputs(backbone, clip)[:, 0]}  # (B,)

    def loss(self, outputs: Tensors, given: Tensors, labels: Tensors) -> Tensors:
        predicted_B, true_B = outputs["scaled_score"], labels["scaled_score"]
        # the strength of the soft ranks is in points: 100 of them are the range
        return self.total_loss(mse(predicted_B, true_B), 100 * predicted_B, 100 * true_B)

    def predict(self, outputs: Tensors, given: Tensors) -> Tensors:
        return {"score": self.scale.points(outputs["scaled_score"], given)}
