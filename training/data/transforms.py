"""Decoded frames to model input: resize, crop and flip uint8 in the workers, normalise on the device (pure functions)."""

from __future__ import annotations

import dataclasses
from functools import partial

import numpy as np
import torch
from torch.nn import functional as F

from training.config import TrainConfig
from training.data.augment import rotate
from training.data.plan import View, crop_source_size


def resize(frames_THWC: np.ndarray, height: int, width: int, nearest: bool = False) -> torch.Tensor:
    """(T, H, W, 3) uint8 -> (T, 3, height, width) uint8, bilinear with antialiasing or the nearest pixel; a view if the size
    is the same."""
    return resize_tensor(torch.from_numpy(frames_THWC).permute(0, 3, 1, 2), height, width, nearest)


def resize_tensor(frames_TCHW: torch.Tensor, height: int, width: int, nearest: bool = False) -> torch.Tensor:
    """`resize` of (T, 3, H, W) uint8 on any device. A GPU resizes in floating point, and rounds some pixels to the next level."""
    if frames_TCHW.shape[-2:] == (height, width):
        return frames_TCHW
    if nearest:
        return F.interpolate(frames_TCHW, (height, width), mode="nearest-exact")
    resized = partial(F.interpolate, size=(height, width), mode="bilinear", antialias=True)
    if frames_TCHW.device.type == "cpu":
        return resized(frames_TCHW)
    return resized(frames_TCHW.float()).round_().clamp_(0, 255).to(torch.uint8)


def resized_size(config: TrainConfig) -> tuple[int, int]:
    """(height, width) to which all views of a run resize frames, before the crop."""
    return crop_view(config.spatial_size, None, config.geometry).resize if config.data_aug else config.input_size


def resize_image(frame_HWC: np.ndarray, height: int, width: int, nearest: bool = False) -> np.ndarray:
    """`resize` of one frame (H, W, 3) uint8, to (height, width, 3)."""
    if frame_HWC.shape[:2] == (height, width):
        return frame_HWC
    writable = np.require(frame_HWC[None], requirements="W")  # PyTorch warns of others
    return resize(writable, height, width, nearest)[0].permute(1, 2, 0).numpy()


def squash_view(size: int | tuple[int, int], rng: np.random.Generator | None = None) -> View:
    """The whole frame, resized to a square of `size`, or to (height, width), regardless of its aspect ratio.

    With `rng` it is flipped with probability 0.5.
    """
    height, width = (size, size) if isinstance(size, int) else size
    return View((height, width), (0, 0, height, width), flip=rng is not None and bool(rng.random() < 0.5))


def crop_view(size: int, rng: np.random.Generator | None, geometry: str = "standard") -> View:
    """A square crop of `size`, the same for all frames of the clip.

    With `rng` it has a random position and a random flip with probability 0.5 (--data_aug of DeepSports). Without, it is
    the centre crop. `geometry` is a value of --geometry.
    """
    height, width = crop_source_size(size)
    if geometry.startswith("swapped"):
        height, width = width, height
    top, left, flip = (height - size) // 2, (width - size) // 2, False
    if rng is not None:
        if geometry != "centre_crop":
            top, left = (int(rng.integers(0, extent - size + 1)) for extent in (height, width))
        flip = bool(rng.random() < 0.5)
    return View((height, width), (top, left, size, size), flip, nearest=geometry == "swapped_nearest")


def crop_views(size: int, crops: int, geometry: str = "standard", full_res: bool = False) -> list[View]:
    """The crops of a test with --test_crops, the centre crop first; `geometry` is a value of --geometry.

    3 are the centre and both ends of the long side; 5 are the centre and the corners; 10 are these five and then their flips
    ("ImageNet Classification with Deep Convolutional Neural Networks", Krizhevsky et al., 2012). With `full_res` a crop is as
    high as the short side of the resized frames (TSM, ICCV 2019), else `size`.
    """
    centre = crop_view(size, None, geometry)
    height, width = centre.resize
    side = min(height, width) if full_res else size
    bottom, right = height - side, width - side
    middle = (bottom // 2, right // 2)
    if crops == 3:
        ends = [(0, middle[1]), (bottom, middle[1])] if height > width else [(middle[0], 0), (middle[0], right)]
    else:
        ends = [(0, 0), (0, right), (bottom, 0), (bottom, right)]
    places = [middle] if crops == 1 else [middle, *ends]
    views = [dataclasses.replace(centre, crop=(*place, side, side)) for place in places]
    return views + [dataclasses.replace(view, flip=True) for view in views] if crops == 10 else views


def apply_view(view: View, frames_THWC: np.ndarray) -> torch.Tensor:
    """Resize, crop, flip and rotate: (T, H, W, 3) uint8 -> (T, 3, *view.size) uint8."""
    return crop_flip_rotate(view, resize(frames_THWC, *view.resize, view.nearest))


def crop_flip_rotate(view: View, frames_TCHW: torch.Tensor) -> torch.Tensor:
    """The part of a view after the resizing: (T, 3, *view.resize) uint8 -> (T, 3, *view.size) uint8."""
    top, left, height, width = view.crop
    frames_TCHW = frames_TCHW[..., top : top + height, left : left + width]
    frames_TCHW = (frames_TCHW.flip(-1) if view.flip else frames_TCHW).contiguous()
    return rotate(frames_TCHW, view.degrees) if view.degrees else frames_TCHW


def to_video(clip_BTCHW: torch.Tensor, mean_C: torch.Tensor, std_C: torch.Tensor) -> torch.Tensor:
    """(B, T, 3, H, W) uint8 -> (B, 3, T, H, W) float32: scaled to [0, 1], then normalised per channel."""
    video_BCTHW = (
        clip_BTCHW.permute(0, 2, 1, 3, 4).to(torch.float32, copy=True).div_(255)
    )  # in place: a third of the memory
    return video_BCTHW.sub_(mean_C.view(1, 3, 1, 1, 1)).div_(std_C.view(1, 3, 1, 1, 1))
