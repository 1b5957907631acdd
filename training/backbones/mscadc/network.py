"""The body of MSCADC: "What and How Well You Performed? A Multitask Learning Approach to Action Quality Assessment" (Parmar and
Morris, CVPR 2019), a small C3D with batch norm and dilated last layers. Its heads are --method multitask --heads context.

Parameter names are the original's. The last convolution has a padding of 1 at a dilation of 2, so its maps are smaller by two.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from training import pooling
from training.backbones._convolutions import in_conv_format
from training.backbones._weights import load_strict
from training.backbones.base import Backbone
from training.config import TrainConfig
from training.rows import RowBatchNorm, RowDropout

# name: output channels as a share of the last ones, dilation, padding, size of the max pooling behind it
LAYERS: dict[str, tuple[int, int, int, tuple[int, int, int] | None]] = {
    "1": (8, 1, 1, (1, 2, 2)), "2": (4, 1, 1, (2, 2, 2)), "3a": (2, 1, 1, None), "3b": (2, 1, 1, (2, 2, 2)), "4a": (1, 1, 1, None),
    "4b": (1, 1, 1, None), "5a": (1, 2, 2, None), "5b": (1, 2, 1, None),
}  # fmt: skip


def build(config: TrainConfig) -> MSCADC:
    return MSCADC(config.map_width, dropout=config.map_dropout, eps=config.bn_eps)


class MSCADC(Backbone):
    """(B, 3, T, H, W) -> (B, T / 4 - 2, width): the mean of each time position of the last maps, in order."""

    input_scale = "imagenet"

    def __init__(self, width: int = 256, *, dropout: float = 0.5, eps: float = 1e-5) -> None:
        super().__init__()
        self.feature_dim = width
        inputs = 3
        for name, (share, dilation, padding, _) in LAYERS.items():
            outputs = width // share
            self.add_module(f"conv{name}", nn.Conv3d(inputs, outputs, 3, padding=padding, dilation=dilation))
            self.add_module(f"bn{name}", RowBatchNorm(outputs, eps))
            inputs = outputs
        self.dropout = RowDropout(dropout)

    def _layer(self, name: str, x: torch.Tensor) -> torch.Tensor:
        x = self.get_submodule(f"bn{name}")(self.get_submodule(f"conv{name}")(x))
        size = LAYERS[name][3]
        return F.relu(
            x if size is None else pooling.max_pool3d(x, size)
        )  # ReLU after the pooling: fewer values, the same result

    def with_maps(self, video_BCTHW: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """(features (B, N, C), {"volume": (B, C, N, H / 8 - 2, W / 8 - 2)}) with N = T / 4 - 2."""
        x = in_conv_format(video_BCTHW)
        for name in LAYERS:
            x = self.run_block(partial(self._layer, name), x)
        x = self.dropout(x)
        return x.mean(dim=(3, 4)).transpose(1, 2), {"volume": x}

    def forward(self, video_BCTHW: torch.Tensor) -> torch.Tensor:
        return self.with_maps(video_BCTHW)[0]

    def last_maps(self) -> nn.Module:
        return self.get_submodule("bn5b")

    def in_clip(self, maps: torch.Tensor, frames: int) -> torch.Tensor:
        return F.pad(maps, (1, 1) * 3, mode="replicate")[:, 0]  # the last convolution removed one position on each side

    def load_pretrained(self, state: dict[str, torch.Tensor]) -> list[str]:
        load_strict(self, state, [name for name in self.state_dict() if name.endswith("num_batches_tracked")])
        return []
