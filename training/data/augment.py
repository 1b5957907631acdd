"""RandAugment for clips: a few strong changes, drawn for each clip, the same for all its frames (pure functions).

"RandAugment: Practical Automated Data Augmentation with a Reduced Search Space" (Cubuk et al., CVPR workshops 2020), with nine
operations at a fixed magnitude of 9 of 10: no shears, translations, equalisation, inversion and cutout, but noise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import ModuleType

import numpy as np
import torch

from training import _torchvision as _torchvision  # before torchvision
from training.data.plan import ClipSpec, Look

OPERATIONS_PER_CLIP = 2
DEGREES = 27.0  # of the rotation, to either side
POSTERISE_BITS = 3
SOLARISE_ABOVE = 230.4
FACTOR = 1.72  # of colour, contrast, brightness and sharpness
NOISE_STD = 51.0  # of pixels from 0 to 255

# Colour operations in the order in which they are applied, after the rotation: (frames (T, 3, H, W) uint8, torchvision's
# functions) -> frames of the same shape and type. Noise is separate, because it is random.
COLOURS: dict[str, Callable[[torch.Tensor, ModuleType], torch.Tensor]] = {
    "posterise": lambda frames, f: f.posterize(frames, POSTERISE_BITS),
    "solarise": lambda frames, f: f.solarize(frames, SOLARISE_ABOVE),
    "colour": lambda frames, f: f.adjust_saturation(frames, FACTOR),
    "contrast": lambda frames, f: f.adjust_contrast(frames, FACTOR),
    "brightness": lambda frames, f: f.adjust_brightness(frames, FACTOR),
    "sharpness": lambda frames, f: f.adjust_sharpness(frames, FACTOR),
    "autocontrast": lambda frames, f: f.autocontrast(frames),
}
OPERATIONS = ("rotation", *COLOURS, "noise")


def randaugment(clip: ClipSpec, rng: np.random.Generator) -> ClipSpec:
    """The clip with two different operations of OPERATIONS, drawn by `rng`. Rotation is part of the view, so boxes follow it."""
    assert clip.view is not None
    drawn = sorted(rng.choice(len(OPERATIONS), size=OPERATIONS_PER_CLIP, replace=False).tolist())
    chosen = [OPERATIONS[i] for i in drawn]
    degrees, noise_seed = DEGREES * (1 if rng.random() < 0.5 else -1), int(rng.integers(2**63))
    view = dataclasses.replace(clip.view, degrees=degrees) if "rotation" in chosen else clip.view
    look = Look(tuple(name for name in chosen if name != "rotation"), noise_seed)
    return dataclasses.replace(clip, view=view, look=look)


def change_colours(frames_TCHW: torch.Tensor, look: Look) -> torch.Tensor:
    """The frames (T, 3, H, W) uint8 with the changes of `look`."""
    for name in look.changes:
        if name == "noise":
            frames_TCHW = add_noise(frames_TCHW, look.noise_seed)
        else:
            frames_TCHW = COLOURS[name](frames_TCHW, torchvision_functions())
    return frames_TCHW


def add_noise(frames_TCHW: torch.Tensor, seed: int) -> torch.Tensor:
    """Add the same Gaussian noise (H, W) to all frames and channels of uint8 frames."""
    height, width = frames_TCHW.shape[-2:]
    noise_HW = np.random.default_rng(seed).normal(scale=NOISE_STD, size=(height, width)).astype(np.float32)
    return (frames_TCHW.float() + torch.from_numpy(noise_HW)).round().clamp(0, 255).to(torch.uint8)


def rotate(frames_TCHW: torch.Tensor, degrees: float) -> torch.Tensor:
    """Rotate uint8 frames counter-clockwise about their centre, bilinear, with black at the edges."""
    functions = torchvision_functions()
    return functions.rotate(frames_TCHW, degrees, functions.InterpolationMode.BILINEAR)


def torchvision_functions() -> ModuleType:
    """torchvision's functions of tensors; imported on first use, which takes a second in each worker."""
    from torchvision.transforms import functional

    return functional
