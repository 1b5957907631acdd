"""Video segment pace prediction, the pretext task of "PECoP: Parameter Efficient Continual Pretraining for Action Quality
Assessment" (Dadashzadeh et al., WACV 2024). It needs no labels.

A clip advances by --pace_stride frames, and in one of its segments by another stride. The network tells which stride and which
segment. Both are drawn, and so is the first frame, so that the clip fits into the action.

Different from the authors' code: segments have equal lengths, the clip continues at its own stride after the altered segment,
and it never jumps back to frame 1. Parameter names, original -> here: logits_p.conv3d -> speed, logits_s.conv3d -> segment.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from data_preparation.actions import Action
from data_preparation.common.errors import UserError
from training.backbones.base import Backbone
from training.config import TrainConfig
from training.data.batch import Tensors
from training.data.dataset import Plan
from training.data.facts import DataFacts
from training.data.plan import Arrays, Sample
from training.methods.base import Method
from training.rows import RowDropout, full_precision
from training.runtime.seeding import generator


class Pace(NamedTuple):
    """What is drawn for a clip: the stride in the altered segment, that segment (from 0), and the clip's first frame."""

    stride: int
    segment: int
    start: int


def pace_steps(length: int, usual: int, stride: int, segment: int, segments: int) -> np.ndarray:
    """The steps (length - 1,) between the frames of a clip: a frame of the altered segment is reached by `stride`."""
    steps = np.full(length, usual)
    steps[segment * length // segments : (segment + 1) * length // segments] = stride
    return steps[1:]


def pace_frames(length: int, usual: int, pace: Pace, segments: int) -> np.ndarray:
    """The frame numbers (length,) of a clip."""
    steps = pace_steps(length, usual, pace.stride, pace.segment, segments)
    return pace.start + np.concatenate([[0], steps.cumsum()])


def build(config: TrainConfig, feature_dim: int, data: DataFacts) -> VSPP:
    return VSPP(config, feature_dim)


class VSPP(Method):
    """Predicts the stride and the segment of an altered clip."""

    def __init__(self, config: TrainConfig, feature_dim: int) -> None:
        super().__init__()
        self.config = config
        self.strides = [stride for stride in range(1, config.max_pace + 1) if stride != config.pace_stride]
        classes = range(1, config.max_pace + 1) if config.speed_classes == "all" else self.strides
        self.class_of_stride = {stride: number for number, stride in enumerate(classes)}
        self.dropout = RowDropout(config.pretext_dropout)
        self.speed = nn.Linear(feature_dim, len(classes))
        self.segment = nn.Linear(feature_dim, config.segments)

    def sample(self, action: Action, plan: Plan) -> Sample:
        unchanging = self._unchanging(action)
        pace = self._draw(action, lambda purpose: plan.rng(purpose) or unchanging(purpose))
        frames = pace_frames(self.config.frame_num, self.config.pace_stride, pace, self.config.segments)
        clip = plan.clip_of(action, tuple(frames.tolist()))
        return Sample({"clip": clip}, self.given(action), self._labels(pace))

    def labels(self, action: Action) -> Arrays:
        """Those of the validation, where the draws are the same in every epoch."""
        return self._labels(self._draw(action, self._unchanging(action)))

    def _labels(self, pace: Pace) -> Arrays:
        return {
            "speed": np.array(self.class_of_stride[pace.stride], np.int64),
            "segment": np.array(pace.segment, np.int64),
        }

    def _unchanging(self, action: Action) -> Callable[[str], np.random.Generator]:
        return lambda purpose: generator(self.config.seed, "validation", purpose, *action.key)

    def _draw(self, action: Action, rng: Callable[[str], np.random.Generator]) -> Pace:
        """Draw the pace of a clip of this action. A short action gets only strides that fit.

        Raises:
            UserError: the action is too short for any stride.
        """
        c = self.config

        def span(stride: int, segment: int) -> int:
            return int(pace_steps(c.frame_num, c.pace_stride, stride, segment, c.segments).sum())

        needed = {stride: max(span(stride, segment) for segment in range(c.segments)) + 1 for stride in self.strides}
        fitting = [stride for stride in self.strides if needed[stride] <= action.frame_count]
        if not fitting:
            raise UserError(
                f"{action.title} has {action.frame_count} frames and --method vspp needs {min(needed.values())}: leave it out of the lists, or give a smaller --frame_num or --pace_stride"
            )
        stride = fitting[int(rng("speed").integers(len(fitting)))]
        segment = int(rng("segment").integers(c.segments))
        last_start = action.end_frame - span(stride, segment)
        return Pace(stride, segment, int(rng("start").integers(action.start_frame, last_start + 1)))

    def encode(self, backbone: Backbone, clip: torch.Tensor) -> Tensors:
        features_BND = backbone(clip)
        with torch.autocast(features_BND.device.type, enabled=False):
            features_BND = full_precision(features_BND)
            # (B, N, classes) -> (B, classes)
            return {
                "speed": self.speed(self.dropout(features_BND)).mean(dim=1),
                "segment": self.segment(self.dropout(features_BND)).mean(dim=1),
            }

    def loss(self, outputs: Tensors, given: Tensors, labels: Tensors) -> Tensors:
        parts = {name: F.cross_entropy(outputs[name], labels[name]) for name in ("speed", "segment")}
        return {"loss": parts["speed"] + parts["segment"], **parts}

    def predict(self, outputs: Tensors, given: Tensors) -> Tensors:
        return {name: outputs[name].softmax(dim=1) for name in ("speed", "segment")}

    def metrics(self, outputs: Tensors, labels: Tensors) -> dict[str, float]:
        """Accuracy of both predictions (0 to 1)."""
        return {
            f"{name}_accuracy": float((outputs[name].argmax(dim=1) == labels[name]).double().mean())
            for name in ("speed", "segment")
        }
