"""The head of MSCADC: "What and How Well You Performed? A Multitask Learning Approach to Action Quality Assessment" (Parmar and
Morris, CVPR 2019). Its context network is that of "Multi-Scale Context Aggregation by Dilated Convolutions" (Yu and Koltun,
ICLR 2016) in three dimensions.

Parameter names are the original's.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from training import pooling
from training.rows import RowBatchNorm

WIDTH = 12
# name: input channels, output channels, dilation
CONTEXT = {"1": (12, 24, 1), "2": (24, 24, 1), "3": (24, 48, 2), "4": (48, 96, 4), "5": (96, 96, 1)}
_MARGIN = sum(
    dilation for _, _, dilation in CONTEXT.values()
)  # by which the context network shrinks its input, on each side
CAPTION_MAPS = (1, 10, 10)  # size of the maps that the captioner reads


class ContextHead(nn.Module):
    """Maps of a clip (B, C, T, H, W) -> (B, 12, (T + 2) // 2, (H + 2) // 2, (W + 2) // 2)."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        # as in the original, the padding of a convolution of one pixel adds a border of biases
        self.head_conv1 = nn.Conv3d(inputs, WIDTH, 1, padding=1)
        for name, (before, after, dilation) in CONTEXT.items():
            self.add_module(f"cntxt_conv{name}", nn.Conv3d(before, after, 3, dilation=dilation))
            self.add_module(f"cntxt_bn{name}", RowBatchNorm(after))
        self.cntxt_conv6 = nn.Conv3d(after, WIDTH, 1)
        self.head_bn1 = RowBatchNorm(WIDTH)
        self.head_conv2 = nn.Conv3d(WIDTH, WIDTH, 3, padding=1)
        self.head_bn2 = RowBatchNorm(WIDTH)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        x = F.pad(self.head_conv1(maps), (_MARGIN,) * 6, mode="replicate")
        for name in CONTEXT:
            x = F.relu(self.get_submodule(f"cntxt_bn{name}")(self.get_submodule(f"cntxt_conv{name}")(x)))
        x = pooling.max_pool3d(F.relu(self.head_bn1(self.cntxt_conv6(x))), 2)
        return F.relu(self.head_bn2(self.head_conv2(x)))


class MeanConv3d(nn.Conv3d):
    """The output layer: a convolution, averaged over all positions. (B, 12, T, H, W) -> (B, outputs)."""

    def __init__(self, outputs: int) -> None:
        super().__init__(WIDTH, outputs, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).mean(dim=(2, 3, 4))


def caption_vector(maps: torch.Tensor) -> torch.Tensor:
    """(B, 12, T, H, W) -> (B, 1, 1200): the only vector that the captioner reads.

    For maps of the published size (2, 11, 11) this is max pooling of size 2 with stride 1.
    """
    return pooling.adaptive_max_pool3d(maps, CAPTION_MAPS).flatten(1)[:, None]
