"""ST-ABN: "ST-ABN: Visual Explanation Taking into Account Spatio-temporal Information for Video Recognition" (Mitsuhara, Hirakawa,
Yamashita, Fujiyoshi, 2021), a 3-D ResNet whose third stage is weighted by a spatial and a temporal attention.

Parameter names are those of the plain PyTorch code (SpatioTemporalAttentionBranchNetwork). Files of the authors' first code load, too,
and 2-D ResNets of torchvision or timm, whose weights are repeated in time. The temporal attention has a weight for each pair of
frames, so all clips must have the number of frames that the network was built for. Shape letters: B clips, T frames, K attention
channels.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import nn
from torch.nn import functional as F

from training import pooling
from training.backbones._convolutions import conv_norm, in_conv_format
from training.backbones._weights import load_strict
from training.backbones.base import Backbone
from training.backbones.st_abn.flags import BLOCKS
from training.config import TrainConfig
from training.rows import RowBatchNorm

CLASSIFIERS = ("fc.", "fc_att_out.", "conv_att_out.")
# the authors' first code -> here
ORIGINAL = {
    "att_layer4": "layer_att_common", "bn_att": "conv_att_common.0", "att_conv": "conv_att_common.1", "bn_att2": "conv_att_common.2",
    "att_conv2": "conv_att_out.0", "att_conv3": "conv_spatial_att.0", "bn_att3": "conv_spatial_att.1",
    "t_att_conv": "conv_temp_att1.0", "t_bn_att": "conv_temp_att1.1", "t_att_conv2": "conv_temp_att2.0",
    "fc1": "conv_temp_att3.0", "fc2": "conv_temp_att3.2", "t_att_conv3": "conv_att_mechanism.0", "bn_att4": "conv_att_mechanism.1",
}  # fmt: skip
STEM = 64  # channels of the first convolution, as in timm's ResNet of any width
STAGES_OF_RESNET = ("conv1.", "bn1.", "layer1.", "layer2.", "layer3.", "layer4.")


def build(config: TrainConfig) -> STABN:
    return STABN(
        config.resnet_depth,
        config.resnet_width,
        frames=config.frame_num,
        channels=config.attention_channels,
        relu=config.attention_relu,
        eps=config.bn_eps,
    )


class Block(nn.Module):
    """A residual block (B, C, T, H, W) -> (B, C', T, H / stride, W / stride): convolutions with batch norm, added to the input."""

    def __init__(
        self, inputs: int, outputs: int, kernels: list[tuple[int, int, int]], width: int, stride: int, eps: float
    ) -> None:
        super().__init__()
        self.count = len(kernels)
        # a bottleneck strides in its second convolution, the other kind of block in its first
        striding = 2 if self.count == 3 else 1
        sizes = [inputs, *[width] * (self.count - 1), outputs]
        for number, kernel in enumerate(kernels, start=1):
            strides = (1, stride, stride) if number == striding else (1, 1, 1)
            padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
            conv = nn.Conv3d(sizes[number - 1], sizes[number], kernel, strides, padding, bias=False)
            self.add_module(f"conv{number}", conv)
            self.add_module(f"bn{number}", RowBatchNorm(sizes[number], eps))
        self.downsample: nn.Sequential | None = None
        if stride > 1 or inputs != outputs:
            conv = nn.Conv3d(inputs, outputs, 1, (1, stride, stride), bias=False)
            self.downsample = nn.Sequential(conv, RowBatchNorm(outputs, eps))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        same = x if self.downsample is None else conv_norm(cast(nn.Conv3d, self.downsample[0]), self.downsample[1], x)
        for number in range(1, self.count + 1):
            x = conv_norm(getattr(self, f"conv{number}"), getattr(self, f"bn{number}"), x)
            x = F.relu(x if number < self.count else x + same)
        return x


class STABN(Backbone):
    """(B, 3, T, H, W) -> (B, T, feature_dim): a vector per frame, in order."""

    input_scale = "imagenet"

    def __init__(
        self,
        depth: str = "50",
        width: int = 64,
        *,
        frames: int = 32,
        channels: int = 174,
        relu: bool = False,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.relu, self.frames = relu, frames
        is_bottleneck = depth in ("50", "101")
        expansion = 4 if is_bottleneck else 1
        blocks = BLOCKS[depth]

        def stage(number: int, stride: int) -> nn.Sequential:
            inner = width * 2 ** (number - 1)
            outputs = expansion * inner
            first: tuple[int, int, int] = (3, 1, 1) if number >= 3 else (1, 1, 1)
            kernels = [first, (1, 3, 3), (1, 1, 1)] if is_bottleneck else [(3, 3, 3), (3, 3, 3)]
            inputs = STEM if number == 1 else outputs // 2
            made = [
                Block(outputs if i else inputs, outputs, kernels, inner, 1 if i else stride, eps)
                for i in range(blocks[number - 1])
            ]
            return nn.Sequential(*made)

        def norm(channels: int) -> RowBatchNorm:
            return RowBatchNorm(channels, eps)

        self.conv1 = nn.Conv3d(3, STEM, (1, 7, 7), (1, 2, 2), (0, 3, 3), bias=False)
        self.bn1 = norm(STEM)
        self.layer1, self.layer2, self.layer3 = stage(1, 1), stage(2, 2), stage(3, 2)
        inner, self.feature_dim = 4 * width * expansion, 8 * width * expansion
        self.layer_att_common = stage(4, 1)
        self.conv_att_common = nn.Sequential(
            norm(self.feature_dim), nn.Conv3d(self.feature_dim, channels, 1, bias=False), norm(channels)
        )
        self.conv_spatial_att = nn.Sequential(nn.Conv3d(channels, 1, 1, bias=False), norm(1))
        self.conv_temp_att1 = nn.Sequential(nn.Conv3d(channels, 1, 3, padding=1, bias=False), norm(1))
        self.conv_temp_att2 = nn.Sequential(nn.Conv2d(frames, frames, 1, bias=False), nn.ReLU())
        self.conv_temp_att3 = nn.Sequential(nn.Linear(frames, frames), nn.ReLU(), nn.Linear(frames, frames))
        self.conv_att_mechanism = nn.Sequential(nn.Conv3d(2 * inner, inner, 1, bias=False), norm(inner))
        self.layer4 = stage(4, 2)

    def _stem(self, video: torch.Tensor) -> torch.Tensor:
        maps = conv_norm(self.conv1, self.bn1, in_conv_format(video))
        return F.relu(pooling.max_pool3d(maps, (1, 3, 3), (1, 2, 2), (0, 1, 1)))

    def _stage(self, stage: nn.Sequential, x: torch.Tensor) -> torch.Tensor:
        for block in stage:
            x = self.run_block(block, x)
        return x

    def with_maps(self, video_BCTHW: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Features (B, T, C) and maps, with h = H / 16 and w = W / 16:

        "attention" (B, K, T, h, w), of the attention branch; "spatial_attention" (B, 1, T, h, w) and "temporal_attention" (B, T),
        from 0 to 1; "volume" (B, C, T, h / 2, w / 2), the last maps.
        """
        x = self.run_block(self._stem, video_BCTHW)
        for layer in (self.layer1, self.layer2, self.layer3):
            x = self._stage(layer, x)
        attention = F.relu(self.conv_att_common(self._stage(self.layer_att_common, x)))
        spatial = torch.sigmoid(self.conv_spatial_att(attention))
        of_frames = F.relu(self.conv_temp_att1(attention))[:, 0]  # (B, T, h, w)
        temporal = torch.sigmoid(self.conv_temp_att3(self.conv_temp_att2(of_frames).mean(dim=(2, 3))))  # (B, T)
        weighted = torch.cat([x * (1 + spatial), x * temporal[:, None, :, None, None]], dim=1)
        x = self.conv_att_mechanism(weighted)
        x = self._stage(self.layer4, F.relu(x) if self.relu else x)
        maps = {"attention": attention, "spatial_attention": spatial, "temporal_attention": temporal, "volume": x}
        return x.mean(dim=(3, 4)).transpose(1, 2), maps

    def last_maps(self) -> nn.Module:
        return self.layer4[-1]

    def own_maps(self, video_BCTHW: torch.Tensor) -> dict[str, torch.Tensor]:
        """The product of the spatial and the temporal attention: {"attention": (B, T, h, w)}, from 0 to 1."""
        maps = self.with_maps(video_BCTHW)[1]
        return {"attention": maps["spatial_attention"][:, 0] * maps["temporal_attention"][..., None, None]}

    def forward(self, video_BCTHW: torch.Tensor) -> torch.Tensor:
        return self.with_maps(video_BCTHW)[0]

    def load_pretrained(self, state: dict[str, torch.Tensor]) -> list[str]:
        messages = []
        renamed = {}
        for name, tensor in state.items():
            first, _, rest = name.partition(".")
            renamed[f"{ORIGINAL.get(first, first)}.{rest}"] = tensor
        if any(name.startswith(CLASSIFIERS) for name in renamed):
            messages.append("classifiers dropped")
        state = {name: tensor for name, tensor in renamed.items() if not name.startswith(CLASSIFIERS)}
        own = self.state_dict()
        # PyTorch before 0.4.1 saved no num_batches_tracked
        optional = [name for name in own if name.endswith("num_batches_tracked")]
        if "conv1.weight" in state and state["conv1.weight"].ndim == 4:
            messages.append("2-D weights repeated in time; the attention starts with its initial weights")
            state = {name: inflated(tensor, own[name]) if name in own else tensor for name, tensor in state.items()}
            optional += [name for name in own if not name.startswith(STAGES_OF_RESNET)]
        load_strict(self, state, optional)
        return messages


def inflated(weight: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The weights (O, I, h, w) of a 2-D convolution as those of a 3-D one with the shape of `like`; other tensors as they are.

    They are repeated in time and divided by the number of repetitions, so a clip of equal frames gives the same maps.
    """
    if weight.ndim != 4 or like.ndim != 5:
        return weight
    return weight[:, :, None].repeat(1, 1, like.shape[2], 1, 1) / like.shape[2]
