"""The interface of methods: the clips of a sample, its labels, the loss and the prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from data_preparation.actions import Action, ActionKey
from data_preparation.common.errors import UserError
from training.backbones.base import Backbone
from training.data.batch import Rows, Tensors, concat
from training.data.dataset import Plan
from training.data.plan import Arrays, Sample


class ParameterGroup(NamedTuple):
    """Parameter names with factors for the learning rate and the weight decay of the flags."""

    names: Sequence[str]
    rate: float = 1.0
    decay: float = 1.0


class Method(nn.Module):
    """Base class of methods. The engine calls only these functions.

    `given`, `labels` and outputs are dictionaries of tensors with the action as first dimension. The engine gathers them over
    ranks, so `loss` and `predict` always see the global batch. The loss may depend on floating-point outputs only.
    """

    # freeze the backbone, whatever the value of --freeze
    freezes_backbone: bool = False
    # train by one call of `fit` on the features of all actions, without gradient steps
    fits_features: bool = False
    # what else may help if all predictions are the same, the end of a warning
    against_constant: str = ""

    def observe(self, train_actions: Sequence[Action]) -> None:
        """Compute buffers from the training actions, such as the edges of groups. Called once, before the optimizer is built.

        The buffers must be a pure function of the actions. When a run resumes, those of the checkpoint replace them.

        Raises:
            UserError: the method cannot train on these actions.
        """

    def sample(self, action: Action, plan: Plan) -> Sample:
        """The clips, given values and labels (`plan.labels(self)`) of an action. Take every random generator from
        `plan.rng(purpose)`.

        Raises:
            UserError: the annotation lacks a value that this method needs.
        """
        return Sample({"clip": plan.clip(action)}, self.given(action), plan.labels(self))

    def given(self, action: Action) -> Arrays:
        """Inputs of a prediction besides the clip (difficulty, kind, boxes), without the batch dimension."""
        return {}

    def labels(self, action: Action) -> Arrays:
        """Targets of the loss for an action, without the batch dimension.

        Raises:
            UserError: the annotation lacks a value that this method needs.
        """
        raise NotImplementedError

    def encode(self, backbone: Backbone, clip: torch.Tensor) -> Tensors:
        """Outputs for a batch of single clips: (B, 3, T, H, W) normalised video, or (B, N, D) features.

        The method may call the backbone any number of times.
        """
        raise NotImplementedError

    def forward(self, backbone: Backbone, clips: Tensors, given: Tensors, labels: Tensors) -> Tensors:
        """Outputs for a batch of samples with all their clips.

        `labels` are for computations of the loss inside the network (teacher forcing). They may be empty, and predictions must
        not depend on them.
        """
        return self.encode(backbone, clips["clip"])

    def loss(self, outputs: Tensors, given: Tensors, labels: Tensors) -> Tensors:
        """Scalar losses by name: `loss` is minimised, the others are logged. In validation all tensors are on the CPU."""
        raise NotImplementedError

    def predict(self, outputs: Tensors, given: Tensors) -> Tensors:
        """Predictions as the task of the method takes them: {"score": (B,) final scores in points} for the task score,
        {"probability": (B, classes)} for label, anything finite for pretext. In validation and test all tensors are on the CPU."""
        raise NotImplementedError

    def metrics(self, outputs: Tensors, labels: Tensors) -> dict[str, float]:
        """Metrics of what the method predicts besides the values of its task, over a whole set: name -> value."""
        return {}

    def columns(self, outputs: Tensors) -> dict[str, list]:
        """Further columns of predictions.csv: column name -> (B,) values."""
        return {}

    def details(self, outputs: Tensors) -> dict[str, list]:
        """What a person is told of an action besides the values of the task, such as its execution: name -> (B,) numbers or
        words."""
        return {}

    def quantities(self, outputs: Tensors, given: Tensors) -> Tensors:
        """What explanations of a prediction explain, the most important first: numbers (B,), or probabilities (B, classes).

        Explanations by gradient need differentiable ones.
        """
        return self.predict(outputs, given)

    def fit(self, train: Rows, val: Rows) -> str:
        """If `fits_features`: fit to the outputs of all training actions and choose hyperparameters on the validation actions.

        Returns a description of the chosen model for the log.
        """
        raise NotImplementedError

    def parameter_groups(self, names: Sequence[str]) -> list[ParameterGroup]:
        """Group the trained parameters of the model for the optimizer; each name belongs to one group."""
        return [ParameterGroup(names)]

    def load_pretrained(self, parts: Mapping[str, Tensors]) -> list[str]:
        """Load what a weight file of --pretrained_model holds beside the backbone: state dicts by their names in the file.

        Return one log message for each that is loaded. By default they are ignored.

        Raises:
            UserError: the tensors do not fit.
        """
        return []

    def notes(self) -> list[str]:
        """What a reader of the results must know about the predictions, such as that an annotated value is an input."""
        return []

    def why_no_onnx(self) -> str | None:
        """Why a network with this method cannot be written as ONNX, such as "it reads boxes", or None."""
        return None

    def record(self, actions: Sequence[Action]) -> dict[str, str]:
        """What splits.json records of these actions besides labels and clips: a run resumes only if it is the same."""
        return {}

    def repeats(self, actions: Sequence[Action]) -> Sequence[int] | None:
        """How often each training action occurs in an epoch; None means once.

        Must be a pure function of the labels, such as data.sampling.balancing_repeats.
        """
        return None


@dataclass(frozen=True)
class Bank:
    """Encoded references of a ComparingMethod: tensors (references, ...) with one row for each of `keys`."""

    keys: list[ActionKey]
    encoded: Tensors
    labels: Tensors

    def extended(self, other: Bank) -> Bank:
        """A bank with the references of this one, then those of `other`."""
        encoded, labels = (concat([a, b]) for a, b in ((self.encoded, other.encoded), (self.labels, other.labels)))
        return Bank([*self.keys, *other.keys], encoded, labels)

    def on_cpu(self) -> Bank:
        """This bank with all tensors on the CPU; a checkpoint may have been loaded to another device."""
        return Bank(self.keys, *({n: t.cpu() for n, t in part.items()} for part in (self.encoded, self.labels)))


class ComparingMethod(Method):
    """Base class of methods that score an action by comparison with references.

    Before each validation the engine encodes every reference once, with the weights to be validated, and calls `remember`.
    Checkpoints hold the bank together with the weights that computed it, so the two always match, and best.pt can score new
    videos without the training frames.
    """

    bank: Bank | None = None

    def remember(self, bank: Bank) -> None:
        """Store the encoded references for `predict`."""
        self.bank = bank

    def why_no_onnx(self) -> str | None:
        return "it looks for references of each clip"

    def _filled_bank(self) -> Bank:
        """The encoded references. Raises UserError: there are none."""
        if self.bank is None:
            raise UserError("the method has no encoded references to compare with: train it for at least one epoch")
        return self.bank

    def get_extra_state(self) -> dict | None:
        return None if self.bank is None else dict(self.bank.__dict__)

    def set_extra_state(self, state: dict | None) -> None:
        self.bank = None if state is None else Bank(**state).on_cpu()
