"""Support vector regression on frozen features, the classical baseline (C3D-SVR): "Learning to Score Olympic Events" (Parmar
and Morris, CVPRW 2017), with scikit-learn's SVR.

The features of a clip are averaged over its windows and standardised. An SVR is fitted to the training actions for every
combination of KERNELS, COSTS and EPSILONS; the one with the highest validation Spearman is selected.

Where actions have no difficulty, or kinds with different ranges of scores, the target is the final score mapped to 0 to 100 by
the range of its kind (methods/scale.py), and Spearman's correlation is the mean over the kinds.
"""

from __future__ import annotations

import math
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from data_preparation.actions import Action
from training.backbones.base import Backbone
from training.config import TrainConfig
from training.data.batch import Rows, Tensors
from training.data.facts import DataFacts
from training.data.plan import Arrays
from training.losses import mse
from training.methods.base import Method
from training.methods.scale import ScoreScale
from training.metrics import mean_correlation, spearman

if TYPE_CHECKING:
    from sklearn.svm import SVR

KERNELS, COSTS, EPSILONS = ("linear", "rbf"), (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0), (0.5, 2.0)  # epsilon in points


def build(config: TrainConfig, feature_dim: int, data: DataFacts) -> SupportVectorRegression:
    return SupportVectorRegression() if data.by_difficulty else ScaledSupportVectorRegression(data)


class SupportVectorRegression(Method):
    """Stores the fitted SVR as tensors, so that a checkpoint holds no pickled scikit-learn objects."""

    freezes_backbone = True
    fits_features = True

    def __init__(self) -> None:
        super().__init__()
        self.fitted: dict[str, Any] = {}

    def labels(self, action: Action) -> Arrays:
        return {"final_score": np.array(action.final_score, np.float64)}

    def correlation(self, predicted: np.ndarray, labels: Tensors) -> float:
        """Spearman's correlation on the validation actions, which chooses; NaN if it is undefined."""
        return spearman(predicted, labels["final_score"].numpy())

    def encode(self, backbone: Backbone, clip: torch.Tensor) -> Tensors:
        return {"features": backbone(clip).float().mean(dim=1)}  # (B, D)

    def fit(self, train: Rows, val: Rows) -> str:
        # here, because only the first rank fits and the import takes a second
        from sklearn.preprocessing import StandardScaler
        from sklearn.svm import SVR

        (features, scores), (val_features, val_scores) = (
            (rows.outputs["features"].double().numpy(), rows.labels["final_score"].numpy()) for rows in (train, val)
        )
        scaler = StandardScaler().fit(features)
        features, val_features = scaler.transform(features), scaler.transform(val_features)

        def quality(model: SVR) -> tuple[float, float]:
            """Validation Spearman, then the negative mean squared error to break ties."""
            predicted = model.predict(val_features)
            rho = self.correlation(predicted, val.labels)
            return (-math.inf if math.isnan(rho) else rho, -float(np.mean((predicted - val_scores) ** 2)))

        gamma = 1 / features.shape[1]  # the features are standardised
        grid = [
            SVR(kernel=kernel, C=cost, epsilon=epsilon, gamma=gamma).fit(features, scores)
            for kernel, cost, epsilon in product(KERNELS, COSTS, EPSILONS)
        ]
        best = max(grid, key=quality)
        self.fitted = {
            "kernel": best.kernel,
            "gamma": gamma,
            "mean": torch.from_numpy(scaler.mean_),
            "scale": torch.from_numpy(scaler.scale_),
            "support": torch.from_numpy(best.support_vectors_),
            "dual": torch.from_numpy(best.dual_coef_[0]),
            "intercept": float(best.intercept_[0]),
        }
        return f"SVR with {best.kernel} kernel, C {best.C:g}, epsilon {best.epsilon:g}, {len(best.support_)} support vectors"

    def why_no_onnx(self) -> str | None:
        rbf = self.fitted.get("kernel") == "rbf"
        return "the distances of its RBF kernel need a batch of known size" if rbf else None

    def get_extra_state(self) -> dict[str, Any]:
        return self.fitted

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.fitted = state

    def loss(self, outputs: Tensors, given: Tensors, labels: Tensors) -> Tensors:
        error = mse(self.decision(outputs), labels["final_score"])
        return {"loss": error, "mse": error}

    def predict(self, outputs: Tensors, given: Tensors) -> Tensors:
        return {"score": self.decision(outputs)}

    def decision(self, outputs: Tensors) -> torch.Tensor:
        """The decision function (B,) of the fitted SVR in float64: the weighted kernel values plus the intercept."""
        fitted = {name: v.cpu() if isinstance(v, torch.Tensor) else v for name, v in self.fitted.items()}
        x = (outputs["features"].double().cpu() - fitted["mean"]) / fitted["scale"]
        if fitted["kernel"] == "linear":
            kernel_BS = x @ fitted["support"].T
        else:
            kernel_BS = torch.exp(-fitted["gamma"] * torch.cdist(x, fitted["support"]).square())
        return kernel_BS @ fitted["dual"] + fitted["intercept"]


class ScaledSupportVectorRegression(SupportVectorRegression):
    """Fits final scores on the scale of 0 to 100 of their kind."""

    def __init__(self, data: DataFacts) -> None:
        super().__init__()
        self.scale, self.kinds = ScoreScale(data), sorted(data.rules)

    def given(self, action: Action) -> Arrays:
        return self.scale.given(action)

    def labels(self, action: Action) -> Arrays:
        score_of_100 = np.array(100 * self.scale.scaled(action), np.float64)
        return {"final_score": score_of_100, "kind": np.array(self.kinds.index(action.kind))}

    def correlation(self, predicted: np.ndarray, labels: Tensors) -> float:
        kinds, true = labels["kind"].numpy(), labels["final_score"].numpy()
        return mean_correlation([spearman(predicted[kinds == kind], true[kinds == kind]) for kind in np.unique(kinds)])

    def predict(self, outputs: Tensors, given: Tensors) -> Tensors:
        return {"score": self.scale.points(self.decision(outputs) / 100, given)}
