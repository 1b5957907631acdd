"""Place the maps of windows, and of networks that read fewer time positions than frames, in the clip."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F


def over_clip(maps_BNthw: torch.Tensor, starts: Sequence[int], length: int, frames: int) -> torch.Tensor:
    """Maps of N windows, which begin at the frames `starts` (from 0) and have `length` frames: -> (B, frames, h, w).

    Where windows overlap it is their mean. Frames in no window get 0.
    """
    b, n, _, h, w = maps_BNthw.shape
    in_time = F.interpolate(maps_BNthw.flatten(0, 1)[:, None], (length, h, w), mode="trilinear")[:, 0]
    total, count = maps_BNthw.new_zeros(b, frames, h, w), maps_BNthw.new_zeros(frames, 1, 1)
    for start, window in zip(starts, in_time.unflatten(0, (b, n)).unbind(dim=1), strict=True):
        total[:, start : start + length] += window
        count[start : start + length] += 1
    return total / count.clamp(min=1)
