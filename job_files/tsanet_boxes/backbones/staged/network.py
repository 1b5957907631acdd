"""A small 3-D network in two stages, to try methods that compute something between them on a CPU. I3D takes hours there."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from training.backbones.base import Backbone
from training.backbones.i3d.network import Unit


def build(config: Any) -> Staged:
    return Staged()


class Staged(Backbone):
    """(B, 3, T, H, W) -> (B, 1, 64): one vector for the whole clip, which is one window."""

    feature_dim = 64

    def __init__(self) -> None:
        super().__init__()

        def unit(inputs: int, outputs: int, stride: int) -> Unit:
            return Unit(inputs, outputs, 3, stride, eps=1e-3, momentum=0.1)

        self.stem = nn.Sequential(unit(3, 16, 2), unit(16, 24, 2))  # -> (B, 24, T / 4, H / 4, W / 4)
        self.tail = nn.Sequential(unit(24, 48, 2), unit(48, 64, 1))  # -> (B, 64, T / 8, H / 8, W / 8)

    def windows(self, video_BCTHW: torch.Tensor) -> torch.Tensor:
        return video_BCTHW

    def pool(self, maps: torch.Tensor) -> torch.Tensor:
        return maps.mean(dim=(2, 3, 4))[:, None]

    def forward(self, video_BCTHW: torch.Tensor) -> torch.Tensor:
        return self.pool(self.tail(self.stem(self.windows(video_BCTHW))))
