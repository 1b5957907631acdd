"""I3D: "Quo Vadis, Action Recognition? A New Model and the Kinetics Dataset" (Carreira and Zisserman, CVPR 2017), inflated
Inception-v1 on RGB, applied to windows of a clip. With adapters: "PECoP: Parameter Efficient Continual Pretraining for Action
Quality Assessment" (Dadashzadeh et al., WACV 2024).

Parameter names are those of one public PyTorch port (model_rgb.pth: conv3d_1a_7x7, mixed_3b.branch_1.0 ...). Files of the
other port (rgb_i3d_pretrained.pt: Conv3d_1a_7x7, Mixed_3b.b1a ...) load too. Padding is TensorFlow's SAME, computed from
the input size.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import cast

import torch
from torch import nn
from torch.nn import functional as F

from training import pooling
from training.backbones._convolutions import conv_norm, in_conv_format
from training.backbones._maps import over_clip
from training.backbones._weights import load_strict
from training.backbones.base import Backbone
from training.backbones.windows import LAYOUTS
from training.config import TrainConfig
from training.rows import RowBatchNorm

# input channels, then output channels: 1x1, 1x1 -> 3x3x3, 1x1 -> 3x3x3, pool -> 1x1
MIXED = {
    "3b": (192, 64, 96, 128, 16, 32, 32), "3c": (256, 128, 128, 192, 32, 96, 64), "4b": (480, 192, 96, 208, 16, 48, 64),
    "4c": (512, 160, 112, 224, 24, 64, 64), "4d": (512, 128, 128, 256, 24, 64, 64), "4e": (512, 112, 144, 288, 32, 64, 64),
    "4f": (528, 256, 160, 320, 32, 128, 128), "5b": (832, 256, 160, 320, 32, 128, 128),
    "5c": (832, 384, 192, 384, 48, 128, 128),
}  # fmt: skip
CLASSIFIERS = ("conv3d_0c_1x1.", "logits.", "logits_p.", "logits_s.")  # the last two: PECoP's pretext heads
ADAPTER = "tuning_module"


def build(config: TrainConfig) -> I3D:
    model = I3D(config.window_layout, eps=config.bn_eps, momentum=config.bn_momentum)
    if config.adapters:
        model.add_adapters(zero=config.adapter_init == "zero", only=config.adapters_only)
    return model


Sizes = tuple[int, int, int]


def same_padding(x: torch.Tensor, kernel: Sizes, stride: Sizes) -> tuple[Sizes, Sizes]:
    """(before, after): TensorFlow's SAME padding of (B, C, T, H, W) in T, H and W; an odd total puts the extra element at the end."""
    t, h, w = (
        max(k - s if size % s == 0 else k - size % s, 0) for size, k, s in zip(x.shape[2:], kernel, stride, strict=True)
    )
    return (t // 2, h // 2, w // 2), (t - t // 2, h - h // 2, w - w // 2)


def pad_same(x: torch.Tensor, kernel: Sizes, stride: Sizes) -> torch.Tensor:
    """Zero-pad (B, C, T, H, W) like TensorFlow's SAME."""
    before, after = same_padding(x, kernel, stride)
    return F.pad(x, (before[2], after[2], before[1], after[1], before[0], after[0])) if any(after) else x


class Unit(nn.Module):
    """Convolution without bias, batch norm, ReLU, SAME padding."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, eps: float, momentum: float) -> None:
        super().__init__()
        self.kernel, self.stride = (kernel,) * 3, (stride,) * 3
        self.conv3d = nn.Conv3d(inputs, outputs, kernel, stride, bias=False)
        self.batch3d = RowBatchNorm(outputs, eps, momentum)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        before, after = same_padding(x, self.kernel, self.stride)
        if before != after:  # the convolution itself pads both ends alike
            x, before = pad_same(x, self.kernel, self.stride), (0, 0, 0)
        return F.relu(conv_norm(self.conv3d, self.batch3d, x, before))


class Pool(nn.Module):
    """Max pooling with SAME padding of zeros. Where `after_relu` says that no input is negative, leaving out the padding gives the
    same, and needs no copy of the maps."""

    def __init__(self, kernel: Sizes, stride: Sizes) -> None:
        super().__init__()
        self.kernel, self.stride, self.after_relu = kernel, stride, False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.after_relu:
            return pooling.max_pool3d(pad_same(x, self.kernel, self.stride), self.kernel, self.stride)
        before, after = same_padding(x, self.kernel, self.stride)
        # with ceil_mode the last window may reach beyond the end
        return pooling.max_pool3d(x, self.kernel, self.stride, before, ceil_mode=before != after)


class Adapter(nn.Module):
    """PECoP's 3D adapter, added to its input: x + se * conv2(ReLU(conv1(x))), the same shape (B, C, T, H, W).

    conv1 (3x3x3) reduces each four channels to one, conv2 (1x1x1) mixes the channels, `se` scales each channel. With `zero`
    conv2 starts with zeros, so the adapter starts as the identity.
    """

    def __init__(self, channels: int, *, zero: bool) -> None:
        super().__init__()
        width = channels // 4
        self.se = nn.Parameter(torch.ones(1, channels, 1, 1, 1))
        self.conv1 = nn.Conv3d(channels, width, 3, padding=1, groups=width)
        self.conv2 = nn.Conv3d(width, channels, 1)
        if zero:
            nn.init.zeros_(self.conv2.weight)
            nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]  # there is a bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.se * self.conv2(F.relu(self.conv1(x)))


class Mixed(nn.Module):
    """Inception block: four branches, concatenated, then the adapter if there is one."""

    def __init__(self, channels: tuple[int, ...], eps: float, momentum: float) -> None:
        super().__init__()
        self.tuning_module: Adapter | None = None
        inputs, b0, b1a, b1b, b2a, b2b, b3 = channels
        self.channels = b0 + b1b + b2b + b3

        def unit(inputs: int, outputs: int, kernel: int) -> Unit:
            return Unit(inputs, outputs, kernel, 1, eps, momentum)

        self.branch_0 = unit(inputs, b0, 1)
        self.branch_1 = nn.Sequential(unit(inputs, b1a, 1), unit(b1a, b1b, 3))
        self.branch_2 = nn.Sequential(unit(inputs, b2a, 1), unit(b2a, b2b, 3))
        self.branch_3 = nn.Sequential(Pool((3, 3, 3), (1, 1, 1)), unit(inputs, b3, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = torch.cat([self.branch_0(x), self.branch_1(x), self.branch_2(x), self.branch_3(x)], dim=1)
        return maps if self.tuning_module is None else self.tuning_module(maps)


class I3D(Backbone):
    """(B, 3, T, H, W) -> (B, windows, 1024): one vector per window, or per temporal position in longer windows."""

    feature_dim = 1024
    input_scale = "imagenet"  # as in published action quality assessment with these weights; the original is vit

    def __init__(self, layout: str = "10x16", eps: float = 1e-3, momentum: float = 0.1) -> None:
        super().__init__()
        self.layout = LAYOUTS[layout]

        def unit(inputs: int, outputs: int, kernel: int, stride: int = 1) -> Unit:
            return Unit(inputs, outputs, kernel, stride, eps, momentum)

        self.conv3d_1a_7x7 = unit(3, 64, 7, 2)
        self.maxPool3d_2a_3x3 = Pool((1, 3, 3), (1, 2, 2))
        self.conv3d_2b_1x1 = unit(64, 64, 1)
        self.conv3d_2c_3x3 = unit(64, 192, 3)
        self.maxPool3d_3a_3x3 = Pool((1, 3, 3), (1, 2, 2))
        self.mixed_3b, self.mixed_3c = (Mixed(MIXED[name], eps, momentum) for name in ("3b", "3c"))
        self.maxPool3d_4a_3x3 = Pool((3, 3, 3), (2, 2, 2))
        for name in ("4b", "4c", "4d", "4e", "4f"):
            self.add_module(f"mixed_{name}", Mixed(MIXED[name], eps, momentum))
        self.maxPool3d_5a_2x2 = Pool((2, 2, 2), (2, 2, 2))
        self.mixed_5b, self.mixed_5c = (Mixed(MIXED[name], eps, momentum) for name in ("5b", "5c"))
        self._say_after_relu(True)
        # methods may change the maps between stem and tail
        cast(Pool, self.get_submodule("mixed_4b.branch_3.0")).after_relu = False
        self.adapters_only = False

    def _say_after_relu(self, after_relu: bool) -> None:
        for layer in self.modules():
            if isinstance(layer, Pool):
                layer.after_relu = after_relu

    def add_adapters(self, *, zero: bool, only: bool) -> None:
        """Add an adapter to each Mixed block; with `only`, nothing else of the backbone is trained."""
        for block in self.children():
            if isinstance(block, Mixed):
                block.tuning_module = Adapter(block.channels, zero=zero)
        self._say_after_relu(False)
        self.adapters_only = only

    def is_trainable(self, name: str) -> bool:
        return not self.adapters_only or f".{ADAPTER}." in name

    def end_points(self, x: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield (name, feature maps) of every layer in order."""
        x = in_conv_format(x)
        for name, layer in self.named_children():
            x = self.run_block(layer, x)
            yield name, x

    def windows(self, video_BCTHW: torch.Tensor) -> torch.Tensor:
        """(B, 3, T, H, W) -> (B * N, 3, length, H, W), clip by clip."""
        length, starts, _ = self.layout
        return torch.stack([video_BCTHW[:, :, s : s + length] for s in starts(video_BCTHW.shape[2])], dim=1).flatten(
            0, 1
        )

    def stem(self, windows: torch.Tensor) -> torch.Tensor:
        """Run the layers up to maxPool3d_4a_3x3: windows (B', 3, T, H, W) -> (B', 480, T / 4, H / 16, W / 16)."""
        for name, maps in self.end_points(windows):
            if name == "maxPool3d_4a_3x3":
                return maps
        raise AssertionError("unreachable")

    def tail(self, maps: torch.Tensor) -> torch.Tensor:
        """Run the layers up to mixed_5c on the output of `stem`: -> (B', 1024, T / 8, H / 32, W / 32)."""
        maps = in_conv_format(maps)
        layers = dict(self.named_children())
        names = list(layers)
        for name in names[names.index("maxPool3d_4a_3x3") + 1 :]:
            maps = self.run_block(layers[name], maps)
        return maps

    def pool(self, maps: torch.Tensor) -> torch.Tensor:
        """Average the output of `tail` over space and over two adjacent temporal positions: -> (B', positions, 1024)."""
        over_space = maps.mean(dim=(3, 4))  # (B', 1024, T')
        return F.avg_pool1d(over_space, min(2, over_space.shape[2]), stride=1).transpose(1, 2)

    def with_maps(self, video_BCTHW: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """(features (B, N, 1024), {"mixed_5c": (B, windows, 1024, T / 8, H / 32, W / 32)})."""
        maps = self.tail(self.stem(self.windows(video_BCTHW)))
        clips = video_BCTHW.shape[0]
        features = self.pool(maps).reshape(clips, -1, self.feature_dim)
        return features, {"mixed_5c": maps.unflatten(0, (clips, -1))}

    def forward(self, video_BCTHW: torch.Tensor) -> torch.Tensor:
        return self.with_maps(video_BCTHW)[0]

    def last_maps(self) -> nn.Module:
        return self.mixed_5c

    def in_clip(self, maps: torch.Tensor, frames: int) -> torch.Tensor:
        starts = self.layout.starts(frames)
        return over_clip(maps[:, 0].unflatten(0, (-1, len(starts))), starts, self.layout.length, frames)

    def load_pretrained(self, state: dict[str, torch.Tensor]) -> list[str]:
        messages = []
        if any(name.startswith("Conv3d_1a_7x7.") for name in state):
            state = {own_name(name): tensor for name, tensor in state.items()}
            messages.append("parameter names converted from the piergiaj port")
        if any(name.startswith(CLASSIFIERS) for name in state):
            messages.append("classifier dropped")
        state = {name: tensor for name, tensor in state.items() if not name.startswith(CLASSIFIERS)}
        own = self.state_dict()
        # PyTorch before 0.4.1 saved no num_batches_tracked
        optional = [name for name in own if name.endswith("num_batches_tracked")]
        adapters = [name for name in own if f".{ADAPTER}." in name]
        if adapters and not any(f".{ADAPTER}." in name for name in state):
            messages.append("it has no adapters, so they start with their initial weights")
            optional += adapters
        load_strict(self, state, allow_missing=optional)
        return messages


_BRANCHES = {"b0": "branch_0", "b1a": "branch_1.0", "b1b": "branch_1.1", "b2a": "branch_2.0", "b2b": "branch_2.1", "b3b": "branch_3.1"}  # fmt: skip


def own_name(name: str) -> str:
    """Convert a parameter name of the piergiaj port to ours: 'Mixed_3b.b1a.bn.weight' -> 'mixed_3b.branch_1.0.batch3d.weight'."""
    name = re.sub(r"^(Conv3d|Mixed)_", lambda found: f"{found[1].lower()}_", name).replace(".bn.", ".batch3d.")
    return re.sub(r"\.(b\d[ab]?)\.", lambda found: f".{_BRANCHES[found[1]]}.", name)
