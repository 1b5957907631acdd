"""What workers hand over to the training process, and its last steps there, on the device and for the whole batch.

Workers leave the pixels as libjpeg-turbo writes them, (..., H, W, 3), and do not flip them: both costs more than a tenth of the
decoding in a worker and next to nothing on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch.utils.data import default_collate

from data_preparation.common.errors import UserError, first_line
from training.data.batch import Batch, Tensors
from training.data.plan import Arrays, View
from training.data.transforms import resize_tensor


class Pixels(NamedTuple):
    """Clips of a batch, resized and cropped: `pixels_BTHWC` uint8, and for each of them whether it is to be flipped."""

    pixels_BTHWC: torch.Tensor
    flips: Sequence[bool]

    def finish(self, device: torch.device) -> torch.Tensor:
        """The clips (B, T, 3, H, W) uint8 on the device. On the CPU they are the same bit for bit as on a GPU, and always a copy: the
        worker writes to these pixels again."""
        clips = self.pixels_BTHWC.to(device, non_blocking=True).permute(0, 1, 4, 2, 3)
        return flip_rows(clips.clone(memory_format=torch.contiguous_format), self.flips)


class Jpegs(NamedTuple):
    """Clips of a batch as JPEGs (--frame_decode gpu): `data` (bytes,) uint8 holds those of all frames, `lengths` their numbers of bytes,
    `views` the view of each clip, all of the same size and without rotation."""

    data: torch.Tensor
    lengths: Sequence[int]
    views: Sequence[View]

    def finish(self, device: torch.device, decode: Decoder | None = None) -> torch.Tensor:
        """The clips (B, T, 3, H, W) uint8 on the device, by default decoded by torchvision on a GPU.

        Raises:
            UserError: the device is not a GPU, or cannot decode a JPEG.
        """
        frames = (decode or decode_on_gpu)(list(self.data.split(list(self.lengths))), device)
        count = len(frames) // len(self.views)  # frames per clip
        clips = torch.empty((len(self.views), count, 3, *self.views[0].size), dtype=torch.uint8, device=device)
        for row, view in enumerate(self.views):
            top, left, height, width = view.crop
            own = frames[row * count : (row + 1) * count]
            parts = [torch.stack(own)] if len({frame.shape for frame in own}) == 1 else [frame[None] for frame in own]
            resized_TCHW = torch.cat([resize_tensor(part, *view.resize, view.nearest) for part in parts])
            clips[row] = resized_TCHW[..., top : top + height, left : left + width]
        return flip_rows(clips, [view.flip for view in self.views])


# JPEGs, each (bytes,) uint8 on the CPU, and a device -> frames, each (3, H, W) uint8 RGB on the device
Decoder = Callable[[list[torch.Tensor], torch.device], list[torch.Tensor]]


def decode_on_gpu(jpegs: list[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    """Decode a batch by torchvision and the hardware of the GPU.

    Raises:
        UserError: the device is not a GPU, or cannot decode a JPEG.
    """
    if device.type != "cuda":
        raise UserError(NEEDS_GPU)
    from training import _torchvision as _torchvision  # before torchvision; imported on first use
    from torchvision.io import ImageReadMode, decode_jpeg  # isort: skip

    try:
        return decode_jpeg(jpegs, mode=ImageReadMode.RGB, device=device)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise UserError(
            f"--frame_decode gpu: this GPU or torchvision cannot decode the frames of a batch ({first_line(error)}): check them with python -m data_preparation.verify, or train another run with --frame_decode full"
        ) from None


NEEDS_GPU = "--frame_decode gpu needs a GPU and this process uses none: run it on a GPU, or train another run with --frame_decode full"

Clips = torch.Tensor | Pixels | Jpegs  # a tensor is ready: features (B, N, D) float32


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
        clips = {name: finished(clip, device) for name, clip in self.clips.items()}
        given, labels = (
            {n: t.to(device, non_blocking=True) for n, t in collated(group).items()}
            for group in (self.given, self.labels)
        )
        return Batch(clips, given, labels, torch.tensor(self.action_index), self.looks)


def finished(clips: Clips, device: torch.device) -> torch.Tensor:
    """The clips on the device, as the network gets them."""
    return clips.to(device, non_blocking=True) if isinstance(clips, torch.Tensor) else clips.finish(device)


def collated(samples: Sequence[Arrays]) -> Tensors:
    """The arrays of some samples as tensors with the sample as first dimension."""
    return default_collate([{name: torch.as_tensor(value) for name, value in each.items()} for each in samples])


def flip_rows(clips_BTCHW: torch.Tensor, flip: Sequence[bool]) -> torch.Tensor:
    """The clips with some of them flipped left to right, in place."""
    for row, is_flipped in enumerate(flip):
        if is_flipped:
            clips_BTCHW[row] = clips_BTCHW[row].flip(-1)
    return clips_BTCHW
