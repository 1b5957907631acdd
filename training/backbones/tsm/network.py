"""TSM: "TSM: Temporal Shift Module for Efficient Video Understanding" (Lin, Gan, Han, ICCV 2019), on timm's ResNet.

Parameter names are those of the authors' code without `.net`, which marks their shift wrappers; below base_model. they are also
those of timm and torchvision. Shape letters: B clips, T frames.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn
from torch.nn import functional as F

from training import pooling
from training.backbones._convolutions import conv_norm, in_conv_format
from training.backbones._weights import load_strict
from training.backbones.base import Backbone
from training.backbones.tsm.flags import BLOCKS
from training.config import TrainConfig
from training.rows import RowBatchNorm

STAGES = ("layer1", "layer2", "layer3", "layer4")
CLASSIFIERS = ("fc.", "new_fc.")


def build(config: TrainConfig) -> TSM:
    return TSM(
        config.resnet_depth,
        config.resnet_width,
        shift_div=config.shift_div,
        shift_place=config.shift_place,
        temporal_pool=config.temporal_pool,
        eps=config.bn_eps,
    )


def shift(x: torch.Tensor, frames: int, div: int) -> torch.Tensor:
    """Shift channels in time: (B * T, C, H, W) -> the same shape, zeros at the ends of a clip.

    The first C // div channels are those of the next frame, the following C // div those of the frame before.
    """
    is_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    if is_last:  # with the channels last in the shape, too, torch.cat keeps the memory format
        x = x.permute(0, 2, 3, 1)
    channels = x.ndim if is_last else 2  # of x below
    fold = x.shape[channels - 1] // div
    x = x.unflatten(0, (-1, frames))
    following, before, same = x.split([fold, fold, x.shape[channels] - 2 * fold], dim=channels)
    following = F.pad(following[:, 1:], (0, 0, 0, 0, 0, 0, 0, 1))
    before = F.pad(before[:, :-1], (0, 0, 0, 0, 0, 0, 1, 0))
    shifted = torch.cat([following, before, same], dim=channels).flatten(0, 1)
    return shifted.permute(0, 3, 1, 2) if is_last else shifted


def pool_frames(x: torch.Tensor, frames: int) -> torch.Tensor:
    """Max pooling over three frames with stride 2: (B * T, C, H, W) -> (B * ceil(T / 2), C, H, W)."""
    pooled = pooling.max_pool3d(x.unflatten(0, (-1, frames)).transpose(1, 2), (3, 1, 1), (2, 1, 1), (1, 0, 0))
    return pooled.transpose(1, 2).flatten(0, 1)


class ShiftedConv2d(nn.Conv2d):
    """A convolution of shifted channels. The network sets the number of frames before each forward pass."""

    frames, div = 1, 8

    @classmethod
    def of(cls, conv: nn.Conv2d, div: int) -> ShiftedConv2d:
        """The convolution `conv` of shifted channels, with its weights."""
        shape = (conv.in_channels, conv.out_channels, conv.kernel_size)
        made = cls(*shape, conv.stride, conv.padding, bias=False)  # type: ignore[arg-type]  # tuples of two numbers
        made.weight, made.div = conv.weight, div
        return made

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(shift(x, self.frames, self.div))


class _Folded:
    """The forward pass of timm's residual blocks with `conv_norm`: (B * T, C, H, W) -> (B * T, C', H / stride, W / stride)."""

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        same = x if self.downsample is None else conv_norm(self.downsample[0], self.downsample[1], x)
        if isinstance(self.conv1, ShiftedConv2d):
            x = shift(x, self.conv1.frames, self.conv1.div)
        x = conv_norm(self.conv1, self.bn1, x)
        x = conv_norm(self.conv2, self.bn2, F.relu(x))
        if isinstance(self, Bottleneck):
            x = conv_norm(self.conv3, self.bn3, F.relu(x))
        return F.relu(x + same)


class FoldedBasicBlock(_Folded, BasicBlock): ...


class FoldedBottleneck(_Folded, Bottleneck): ...


class TSM(Backbone):
    """(B, 3, T, H, W) -> (B, T, feature_dim): a vector per frame, in order; half as many with `temporal_pool`."""

    input_scale = "imagenet"

    def __init__(
        self,
        depth: str = "50",
        width: int = 64,
        *,
        shift_div: int = 8,
        shift_place: str = "residual",
        temporal_pool: bool = False,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.base_model = ResNet(
            FoldedBasicBlock if depth in ("18", "34") else FoldedBottleneck,  # type: ignore[arg-type]  # timm means their types
            BLOCKS[depth],
            num_classes=0,
            channels=tuple(width * 2**stage for stage in range(4)),
            norm_layer=lambda channels, **_: RowBatchNorm(
                channels, eps
            ),  # newer versions of timm also give device and dtype
            zero_init_last=False,
        )
        self.feature_dim = self.base_model.num_features
        self.shift_div, self.temporal_pool = shift_div, temporal_pool
        # of very deep networks (ResNet-101) the authors shift in every second block only
        every = 2 if BLOCKS[depth][2] >= 23 and shift_place == "residual" else 1
        self.shifted = {f"{name}.{i}" for name in STAGES for i in range(0, len(getattr(self.base_model, name)), every)}
        self.shifts_blocks = shift_place == "block"
        if not self.shifts_blocks:
            for path in self.shifted:
                block: Any = self.base_model.get_submodule(path)
                block.conv1 = ShiftedConv2d.of(block.conv1, shift_div)

    def end_points(self, video_BCTHW: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield (name, maps (B * T, C, H, W)) of every stage in order."""
        frames = video_BCTHW.shape[2]
        network = self.base_model
        x = in_conv_format(video_BCTHW.transpose(1, 2).flatten(0, 1))
        # ReLU after the pooling gives the same values and gradients, for a quarter of the numbers
        x = network.act1(network.maxpool(conv_norm(cast(nn.Conv2d, network.conv1), network.bn1, x)))
        for name in STAGES:
            if self.temporal_pool and name == "layer2":
                x = pool_frames(x, frames)
                frames = (frames + 1) // 2
            for number, block in enumerate(getattr(network, name)):
                if isinstance(block.conv1, ShiftedConv2d):
                    block.conv1.frames = frames
                elif self.shifts_blocks and f"{name}.{number}" in self.shifted:
                    x = shift(x, frames, self.shift_div)
                x = self.run_block(block, x)
            yield name, x

    def with_maps(self, video_BCTHW: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """(features (B, T, C), {"volume": (B, C, T, H / 32, W / 32)})."""
        maps = dict(self.end_points(video_BCTHW))["layer4"].unflatten(0, (video_BCTHW.shape[0], -1))  # (B, T, C, h, w)
        return maps.mean(dim=(3, 4)), {"volume": maps.transpose(1, 2)}

    def forward(self, video_BCTHW: torch.Tensor) -> torch.Tensor:
        return self.with_maps(video_BCTHW)[0]

    def last_maps(self) -> nn.Module:
        return list(self.get_submodule("base_model.layer4").children())[-1]

    def in_clip(self, maps: torch.Tensor, frames: int) -> torch.Tensor:
        return maps[:, 0].unflatten(0, (-1, (frames + 1) // 2 if self.temporal_pool else frames))

    def load_pretrained(self, state: dict[str, torch.Tensor]) -> list[str]:
        state = {name.removeprefix("base_model."): tensor for name, tensor in state.items()}
        dropped = any(name.startswith(CLASSIFIERS) for name in state)
        state = {
            f"base_model.{name.replace('.net.', '.')}": tensor
            for name, tensor in state.items()
            if not name.startswith(CLASSIFIERS)
        }
        # PyTorch before 0.4.1 saved no num_batches_tracked
        load_strict(self, state, [name for name in self.state_dict() if name.endswith("num_batches_tracked")])
        return ["classifier dropped"] if dropped else []
