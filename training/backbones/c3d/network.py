"""C3D: "Learning Spatiotemporal Features with 3D Convolutional Networks" (Tran et al., ICCV 2015), on windows of 16
frames as in C3D-AVG (Parmar and Morris, CVPR 2019).

Parameter names are those of the public PyTorch port of the Sports-1M weights (c3d.pickle).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from training import pooling
from training.backbones._convolutions import in_conv_format
from training.backbones._maps import over_clip
from training.backbones._weights import load_strict
from training.backbones.base import Backbone
from training.backbones.windows import LAYOUTS
from training.config import TrainConfig


def build(config: TrainConfig) -> C3D:
    return C3D(config.spatial_size, config.window_layout)


class C3D(Backbone):
    """(B, 3, T, H, W) -> (B, windows, feature_dim): one vector per window of 16 frames (8192 values at 112 x 112)."""

    input_scale = "imagenet"  # as C3D-AVG; the port of the Sports-1M weights itself expects 0_255, see --input_scale

    def __init__(self, image_size: int = 112, layout: str = "full") -> None:
        super().__init__()
        self.layout = LAYOUTS[layout]

        def conv(inputs: int, outputs: int) -> nn.Conv3d:
            return nn.Conv3d(inputs, outputs, kernel_size=3, padding=1)

        self.conv1, self.conv2 = conv(3, 64), conv(64, 128)
        self.conv3a, self.conv3b = conv(128, 256), conv(256, 256)
        self.conv4a, self.conv4b = conv(256, 512), conv(512, 512)
        self.conv5a, self.conv5b = conv(512, 512), conv(512, 512)
        side = image_size
        for _ in range(4):
            side //= 2
        side = (side + 2 - 2) // 2 + 1  # pool5: kernel 2, stride 2, padding 1
        self.feature_dim = 512 * side * side

    def forward(self, video_BCTHW: torch.Tensor) -> torch.Tensor:
        starts = self.layout.starts(video_BCTHW.shape[2])
        windows = torch.stack(
            [video_BCTHW[:, :, s : s + self.layout.length] for s in starts], dim=1
        )  # (B, N, 3, 16, H, W)
        return self._window_features(in_conv_format(windows.flatten(0, 1))).view(video_BCTHW.shape[0], len(starts), -1)

    def _window_features(self, x: torch.Tensor) -> torch.Tensor:
        for stage in (self._stage1, self._stage2, self._stage3, self._stage4, self._stage5):
            x = self.run_block(stage, x)
        return x.flatten(1)

    # ReLU after the pooling gives the same values and gradients, and has an eighth of the work
    def _stage1(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(pooling.max_pool3d(self.conv1(x), (1, 2, 2)))

    def _stage2(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(pooling.max_pool3d(self.conv2(x), 2))

    def _stage3(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(pooling.max_pool3d(self.conv3b(F.relu(self.conv3a(x))), 2))

    def _stage4(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(pooling.max_pool3d(self.conv4b(F.relu(self.conv4a(x))), 2))

    def _stage5(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(pooling.max_pool3d(self.conv5b(F.relu(self.conv5a(x))), 2, padding=(0, 1, 1)))

    def last_maps(self) -> nn.Module:
        return self.conv5b

    def in_clip(self, maps: torch.Tensor, frames: int) -> torch.Tensor:
        starts = self.layout.starts(frames)
        return over_clip(maps[:, 0].unflatten(0, (-1, len(starts))), starts, self.layout.length, frames)

    def load_pretrained(self, state: dict[str, torch.Tensor]) -> list[str]:
        load_strict(self, {name: t for name, t in state.items() if name.split(".")[0] not in ("fc6", "fc7", "fc8")})
        return ["fully connected layers fc6 to fc8 dropped"]
