"""Cameras that show the same scene with other light, contrast and colours, and with noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

GREY = np.array([0.299, 0.587, 0.114])  # luminance of red, green and blue


@dataclass(frozen=True)
class Camera:
    """How a camera changes the colours of a scene. 1 leaves them as they are."""

    brightness: float
    contrast: float
    saturation: float
    cast: tuple[float, float, float]  # factors of red, green and blue
    noise: float  # standard deviation, in steps of 255

    def shows(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """The picture of this camera; `rng` draws its noise."""
        pixels_HWC = np.asarray(image).astype(np.float64)
        grey_HW1 = (pixels_HWC @ GREY)[..., None]
        pixels_HWC = grey_HW1 + (pixels_HWC - grey_HW1) * self.saturation
        pixels_HWC = 128 + (pixels_HWC - 128) * self.contrast
        pixels_HWC = pixels_HWC * self.brightness * np.array(self.cast)
        pixels_HWC += rng.normal(scale=self.noise, size=(*pixels_HWC.shape[:2], 1))
        return Image.fromarray(pixels_HWC.round().clip(0, 255).astype(np.uint8))


def sample_camera(rng: np.random.Generator) -> Camera:
    """Sample a camera."""
    return Camera(
        brightness=float(rng.uniform(0.5, 1.4)),
        contrast=float(rng.uniform(0.45, 1.5)),
        saturation=float(rng.uniform(0.1, 1.8)),
        cast=tuple(rng.uniform(0.75, 1.25, size=3).tolist()),
        noise=float(rng.uniform(0, 16)),
    )
