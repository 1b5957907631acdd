"""Convolutions: their memory format, and batch norm with fixed statistics as a part of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from training.rows import RowBatchNorm

_CONV: dict[int, Any] = {4: F.conv2d, 5: F.conv3d}
_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def has_channels_last(dtype: torch.dtype) -> bool:
    """Whether convolutions compute in channels-last memory format: in half precision, which tensor cores and oneDNN compute
    faster in it. float32 stays contiguous."""
    return dtype in (torch.bfloat16, torch.float16)


def in_conv_format(x: torch.Tensor) -> torch.Tensor:
    """Maps (B, C, [T,] H, W) in the memory format in which convolutions compute them. Layers keep the format of their input, so
    that the weights and the files of them stay as they are."""
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    return x.contiguous(memory_format=_CHANNELS_LAST[x.ndim]) if has_channels_last(dtype) else x


def conv_norm(
    conv: nn.Conv2d | nn.Conv3d, norm: nn.Module, x: torch.Tensor, padding: tuple[int, ...] | None = None
) -> torch.Tensor:
    """norm(conv(x)), with another padding if one is given. A batch norm in eval mode is a scale and a shift of each channel: they
    go into the weights, so the maps are written once and only the output is kept for the backward pass."""
    assert isinstance(norm, RowBatchNorm)
    padding = conv.padding if padding is None else padding  # type: ignore[assignment]  # never a word
    weight, bias = conv.weight, conv.bias
    if not norm.training:
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()  # (C,)
        shift = norm.bias - norm.running_mean * scale
        weight = weight * scale.view(-1, *[1] * (weight.ndim - 1))
        bias = shift if bias is None else shift + bias * scale
    maps = _CONV[x.ndim](x, weight, bias, conv.stride, padding, conv.dilation, conv.groups)
    return norm(maps) if norm.training else maps
