"""RandAugment for clips: a few strong changes, drawn for each clip, the same for all its frames (pure functions).

"RandAugment: Practical Automated Data Augmentation with a Reduced Search Space" (Cubuk et al., CVPR workshops 2020), with nine
operations at a fixed magnitude of 9 of 10: no shears, translations, equalisation, inversion and cutout, but noise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from types import ModuleType

import numpy as np
import torch

from training import _torchvision as _torchvision  # before torchvision
from training.data.batch import Batch, Tensors
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
            frames_TCHW = add_noise(frames_TCHW, noise_of(look.noise_seed, *frames_TCHW.shape[-2:]))
        else:
            frames_TCHW = COLOURS[name](frames_TCHW, torchvision_functions())
    return frames_TCHW


def noise_of(seed: int, height: int, width: int) -> torch.Tensor:
    """Gaussian noise (H, W) float32 for all frames and channels of a clip."""
    return torch.from_numpy(
        np.random.default_rng(seed).normal(scale=NOISE_STD, size=(height, width)).astype(np.float32)
    )


def add_noise(frames: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Add noise, which is broadcast, to uint8 frames."""
    return (frames.float() + noise).round().clamp(0, 255).to(torch.uint8)


def rotate(frames_TCHW: torch.Tensor, degrees: float) -> torch.Tensor:
    """Rotate uint8 frames counter-clockwise about their centre, bilinear, with black at the edges."""
    functions = torchvision_functions()
    return functions.rotate(frames_TCHW, degrees, functions.InterpolationMode.BILINEAR)


# ------------------------------------------------------------------------------------- on the device (--augment_on device)
#
# The same functions of torchvision as in the workers, on all clips of a batch that have the operation: on a CPU the pixels are
# the same bit for bit. A worker sends the draws of a clip in place of its changed pixels.


def as_tensor(clip: ClipSpec) -> torch.Tensor:
    """The draws of a clip for `augment_batch`: for each of OPERATIONS 0 or 1 (rotation to the right: -1), then the seed of the
    noise; (len(OPERATIONS) + 1,) int64."""
    assert clip.look is not None
    assert clip.view is not None
    colours = [int(name in clip.look.changes) for name in OPERATIONS[1:]]
    return torch.tensor([round(clip.view.degrees / DEGREES), *colours, clip.look.noise_seed])


def without_changes(clip: ClipSpec) -> ClipSpec:
    """The clip as a worker reads it for a later `augment_batch`: not rotated, with its own colours."""
    assert clip.view is not None
    return dataclasses.replace(clip, view=dataclasses.replace(clip.view, degrees=0.0), look=None)


def augment_batch(batch: Batch, looks: Tensors) -> Batch:
    """The batch with the changes `looks` of its clips, as `as_tensor` returns them, by name of the clip (B, ...)."""
    clips = {n: augment_clips(clip, looks[n].tolist()) if n in looks else clip for n, clip in batch.clips.items()}
    return batch._replace(clips=clips, looks={})


def augment_clips(clips_BTCHW: torch.Tensor, looks: Sequence[Sequence[int]]) -> torch.Tensor:
    """The changed clips (B, T, 3, H, W) uint8. A clip's result does not depend on the others in the batch."""
    clips_BTCHW = clips_BTCHW.clone()
    functions, (height, width) = torchvision_functions(), clips_BTCHW.shape[-2:]
    for place, name in enumerate(OPERATIONS):
        for value in (-1, 1):
            rows = [row for row, look in enumerate(looks) if look[place] == value]
            if not rows:
                continue
            chosen = clips_BTCHW[rows]  # (clips with this operation, T, 3, H, W)
            if name == "rotation":
                changed = rotate(chosen.flatten(0, 1), value * DEGREES).view_as(chosen)
            elif name == "noise":
                noise = torch.stack([noise_of(looks[row][-1], height, width) for row in rows])
                changed = add_noise(chosen, noise[:, None, None].to(chosen.device, non_blocking=True))
            else:
                changed = COLOURS[name](chosen.flatten(0, 1), functions).view_as(chosen)
            clips_BTCHW[rows] = changed
    return clips_BTCHW


def torchvision_functions() -> ModuleType:
    """torchvision's functions of tensors; imported on first use, which takes a second in each worker."""
    from torchvision.transforms import functional

    return functional
