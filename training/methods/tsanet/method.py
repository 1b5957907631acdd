"""TSA-Net: "TSA-Net: Tube Self-Attention Network for Action Quality Assessment" (Wang et al., ACM MM 2021).

A tracker follows the athlete. Between two stages of the network, the positions inside the boxes of all frames attend to each
other. The published task is fall or no fall in figure skating; the score is predicted as in USDL.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from data_preparation.actions import Action
from data_preparation.boxes import Boxes, boxes_file, read_boxes
from data_preparation.common.errors import UserError
from training.backbones._weights import load_strict
from training.backbones.base import Backbone, Staged
from training.config import TrainConfig
from training.data.batch import Tensors
from training.data.dataset import Plan
from training.data.facts import DataFacts
from training.data.plan import Arrays, ClipSpec, Sample
from training.methods.base import Method
from training.methods.distribution import HIDDEN
from training.methods.tsanet.tube import TubeAttention, released_cells, touched_cells
from training.methods.usdl.method import USDL
from training.rows import RowDropout, full_precision


def build(config: TrainConfig, feature_dim: int, data: DataFacts) -> TSANet:
    return (TubeClassifier if config.predicts == "label" else TubeUSDL)(config, feature_dim, data)


class TSANet(Method):
    """Base class of both tasks: the features of a clip with attention within the tube, for a `head`."""

    config: TrainConfig
    head: nn.Sequential
    attention: TubeAttention | None

    def add_attention(self, channels: int) -> None:
        """Add the attention on maps of this many channels, unless --boxes is none."""
        self.attention = TubeAttention(channels) if self.config.boxes_folder else None

    def sample(self, action: Action, plan: Plan) -> Sample:
        clip = plan.clip(action)
        tube = {"tube": self.tube_of(clip)} if self.attention else {}
        return Sample({"clip": clip}, {**self.given(action), **tube}, plan.labels(self))

    def tube_of(self, clip: ClipSpec) -> np.ndarray:
        """The cells of the feature map that the boxes of a clip touch: (T, rows, columns) uint8."""
        assert clip.view is not None
        boxes, (height, width) = self.boxes_of(clip.action), clip.view.size
        numbers = np.asarray(clip.frames)
        place = np.searchsorted(boxes.frames, numbers).clip(max=len(boxes.frames) - 1)
        corners = np.where((boxes.frames[place] == numbers)[:, None, None], boxes.corners[place], np.nan)  # (T, 4, 2)
        if self.config.released_tube:
            corners, cells_of = corners * (width, height) / (boxes.width, boxes.height), released_cells
        else:
            corners, cells_of = clip.view.points(corners, boxes.height, boxes.width), touched_cells
        stride = self.config.stem_stride
        return cells_of(corners / stride, -(-height // stride), -(-width // stride)).astype(np.uint8)

    def boxes_of(self, action: Action) -> Boxes:
        """The boxes of the action's video.

        Raises:
            UserError: there are none, or none in the frames of the action.
        """
        folder = self.config.boxes_folder
        assert folder is not None
        boxes = _boxes_in(boxes_file(folder, action.video))
        if not ((action.start_frame <= boxes.frames) & (boxes.frames <= action.end_frame)).any():
            raise UserError(
                f"action {action.name} has no boxes: {boxes_file(folder, action.video)} has none of frames {action.start_frame} to {action.end_frame}; track the athlete in them, or leave out the action"
            )
        return boxes

    def given(self, action: Action) -> Arrays:
        if self.attention:
            self.boxes_of(action)  # an action without boxes is refused before the training
        return {}

    def why_no_onnx(self) -> str | None:
        return None if self.attention is None else "it reads boxes"

    def record(self, actions: Sequence[Action]) -> dict[str, str]:
        if self.attention is None:
            return {}
        videos = sorted({action.video: self.boxes_of(action).fingerprint() for action in actions}.items())
        return {"boxes": hashlib.sha256(repr(videos).encode()).hexdigest()[:16]}

    def features(self, backbone: Staged, video_BCTHW: torch.Tensor, given: Tensors) -> torch.Tensor:
        """(B, D), the mean over the windows of a clip."""
        maps = backbone.stem(backbone.windows(video_BCTHW))  # (B * windows, C, steps, rows, columns)
        if self.attention:
            maps = self.attended(backbone, maps, given["tube"])
        features_BND = backbone.pool(backbone.tail(maps)).unflatten(0, (len(video_BCTHW), -1)).flatten(1, 2)
        return full_precision(features_BND).mean(dim=1)

    def attended(self, backbone: Staged, maps: torch.Tensor, tube_BTHW: torch.Tensor) -> torch.Tensor:
        """Apply the attention to the maps of all windows of a clip together: (B * windows, C, steps, rows, columns) -> the same."""
        assert self.attention is not None
        clips, (_, channels, steps, rows, columns) = len(tube_BTHW), maps.shape
        tube = backbone.windows(tube_BTHW[:, None].float())  # (B * windows, 1, frames, rows, columns)
        tube = F.adaptive_max_pool3d(tube, maps.shape[2:]) > 0  # a step has the cells of all its frames
        joined = maps.unflatten(0, (clips, -1)).transpose(1, 2)  # (B, C, windows, steps, rows, columns)
        attended = self.attention(joined.flatten(2), tube.reshape(clips, -1))  # (B, C, positions)
        windows = joined.shape[2]
        if self.config.released_tube:  # window w gets the steps w, w + windows, w + 2 * windows, ... of all
            split = attended.reshape(clips, channels, steps, windows, rows, columns).transpose(2, 3)
        else:
            split = attended.reshape(clips, channels, windows, steps, rows, columns)
        return split.transpose(1, 2).flatten(0, 1)

    def forward(self, backbone: Backbone, clips: Tensors, given: Tensors, labels: Tensors) -> Tensors:
        features_BD = self.features(cast(Staged, backbone), clips["clip"], given)
        with torch.autocast(features_BD.device.type, enabled=False):
            return {"logits": self.head(features_BD)}

    def load_pretrained(self, parts: Mapping[str, Tensors]) -> list[str]:
        if self.attention is None or "TSA_module" not in parts:
            return []
        load_strict(self.attention, {n.removeprefix("NL_1D."): t for n, t in parts["TSA_module"].items()})
        return ["tube attention loaded"]


@lru_cache(maxsize=1024)
def _boxes_in(path: Path) -> Boxes:
    return read_boxes(path)


class TubeClassifier(TSANet):
    """Predicts a probability for each class. Two classes have one logit, and the loss is the binary cross-entropy."""

    def __init__(self, config: TrainConfig, feature_dim: int, data: DataFacts) -> None:
        super().__init__()
        self.config = config
        sizes = pairwise((feature_dim, *HIDDEN))
        hidden = [part for sides in sizes for part in (nn.Linear(*sides), RowDropout(config.head_dropout), nn.ReLU())]
        # the logit of the first class is 0
        self.head = nn.Sequential(*hidden, nn.Linear(HIDDEN[-1], max(len(data.classes) - 1, 1)))
        self.add_attention(config.stem_channels)

    def labels(self, action: Action) -> Arrays:
        return {"label": np.array(action.need("label"), np.int64)}

    def loss(self, outputs: Tensors, given: Tensors, labels: Tensors) -> Tensors:
        return {"loss": F.cross_entropy(F.pad(outputs["logits"], (1, 0)), labels["label"])}

    def predict(self, outputs: Tensors, given: Tensors) -> Tensors:
        return {"probability": F.pad(outputs["logits"], (1, 0)).softmax(dim=1)}

    def load_pretrained(self, parts: Mapping[str, Tensors]) -> list[str]:
        messages = super().load_pretrained(parts)
        if "evaluator" in parts:
            load_strict(self.head, {_own_name(name): tensor for name, tensor in parts["evaluator"].items()})
            messages.append("head loaded")
        return messages


def _own_name(name: str) -> str:
    """The name of a released head's parameter in ours: evaluator.layer2.weight -> 3.weight."""
    layer, kind = name.split(".")[-2:]
    return f"{3 * (int(layer.removeprefix('layer')) - 1)}.{kind}"


class TubeUSDL(TSANet, USDL):
    """Predicts a distribution of the final score, as USDL."""

    def __init__(self, config: TrainConfig, feature_dim: int, data: DataFacts) -> None:
        USDL.__init__(self, config, feature_dim, data)
        self.add_attention(config.stem_channels)

    def given(self, action: Action) -> Arrays:
        return {**TSANet.given(self, action), **USDL.given(self, action)}
