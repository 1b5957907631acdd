"""The reference way to load a clip: loose JPEGs of full size, PIL, floats."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import Dataset

from data_preparation.layout import frame_name
from training.data.plan import ClipSpec


def load_clip(folder: Path, clip: ClipSpec) -> torch.Tensor:
    """Frame by frame: decode all of it, convert to float, resize, crop, flip, normalise: (3, T, H, W) float32."""
    assert clip.view is not None
    top, left, height, width = clip.view.crop
    frames = []
    for number in clip.frames:
        image = np.array(Image.open(folder / frame_name(number)).convert("RGB"))
        frame_CHW = torch.from_numpy(image).permute(2, 0, 1).contiguous().float().div(255)
        frame_CHW = F.interpolate(frame_CHW[None], clip.view.resize, mode="bilinear", align_corners=False)[0]
        frame_CHW = frame_CHW[:, top : top + height, left : left + width]
        frame_CHW = frame_CHW.flip(-1) if clip.view.flip else frame_CHW
        frames.append((frame_CHW - 0.45) / 0.225)
    return torch.stack(frames, dim=1)


class ClipDataset(Dataset):
    """Clips of loose JPEGs for a plain DataLoader."""

    def __init__(self, folder: Path, clips: Sequence[ClipSpec]) -> None:
        self.folder, self.clips = folder, clips

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> torch.Tensor:
        return load_clip(self.folder, self.clips[index])
