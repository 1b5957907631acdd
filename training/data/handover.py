"""What workers hand over to the training process, and its last steps there, on the device and for the whole batch.

Workers leave the pixels as libjpeg-turbo writes them, (..., H, W, 3), and do not flip them: both costs more than a tenth of the
decoding in a worker and next to nothing on a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch.utils.data import default_collate, get_worker_info

from training.data.batch import Batch, Tensors
from training.data.plan import Arrays


class Pixels(NamedTuple):
    """Clips of a batch, resized and cropped: `pixels_BTHWC` uint8, and for each of them whether it is to be flipped."""

    pixels_BTHWC: torch.Tensor
    flips: Sequence[bool]

    def finish(self, device: torch.device) -> torch.Tensor:
        """The clips (B, T, 3, H, W) uint8 on the device. On the CPU they are the same bit for bit as on a GPU."""
        clips = self.pixels_BTHWC.to(device, non_blocking=True).permute(0, 1, 4, 2, 3).contiguous()
        return flip_rows(clips, self.flips)


Clips = torch.Tensor | Pixels  # a tensor is ready: features (B, N, D) float32


class Loaded(NamedTuple):
    """A batch as a worker hands it over; `finish` makes a Batch of it. `given` and `labels` are those of each sample. They are arrays,
    because a worker shares each tensor in a file of its own."""

    clips: Mapping[str, Clips]
    given: Sequence[Arrays]
    labels: Sequence[Arrays]
    action_index: Sequence[int]
    looks: Tensors

    def finish(self, device: torch.device) -> Batch:
        """The batch on the device, but for `action_index` and `looks`, which the training process reads."""
        clips = {
            name: clip.to(device, non_blocking=True) if isinstance(clip, torch.Tensor) else clip.finish(device)
            for name, clip in self.clips.items()
        }
        given, labels = (
            {n: t.to(device, non_blocking=True) for n, t in collated(group).items()}
            for group in (self.given, self.labels)
        )
        return Batch(clips, given, labels, torch.tensor(self.action_index), self.looks)


def collated(samples: Sequence[Arrays]) -> Tensors:
    """The arrays of some samples as tensors with the sample as first dimension."""
    return default_collate([{name: torch.as_tensor(value) for name, value in each.items()} for each in samples])


def flip_rows(clips_BTCHW: torch.Tensor, flip: Sequence[bool]) -> torch.Tensor:
    """The clips with some of them flipped left to right, in place."""
    for row, is_flipped in enumerate(flip):
        if is_flipped:
            clips_BTCHW[row] = clips_BTCHW[row].flip(-1)
    return clips_BTCHW


def empty_batch(*shape: int) -> torch.Tensor:
    """An uninitialised uint8 tensor, in a worker in shared memory, so that it is not copied for the hand-over."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    storage = torch.UntypedStorage._new_shared(math.prod(shape))
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)
