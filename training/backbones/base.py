"""What every backbone is: a clip to features (B, N, D), a sequence of N vectors of `feature_dim` values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from training import _torchvision as _torchvision  # before timm
from training.config import TrainConfig
from training.data.transforms import to_video


class Staged(Protocol):
    """A network in parts, for methods that work between them (BackboneFlags.offers "stages"):
    pool(tail(stem(windows(video)))) is (B * windows, positions, feature_dim)."""

    def windows(self, video_BCTHW: torch.Tensor) -> torch.Tensor: ...

    def stem(self, windows: torch.Tensor) -> torch.Tensor: ...

    def tail(self, maps: torch.Tensor) -> torch.Tensor: ...

    def pool(self, maps: torch.Tensor) -> torch.Tensor: ...


class Mapped(Protocol):
    """A network with named maps beside its features, for methods that look at them (BackboneFlags.offers "maps")."""

    def with_maps(self, video_BCTHW: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """(features as `forward` gives them, maps by name, each with the clip in its first dimension)."""
        ...


class Backbone(nn.Module):
    """Base of all backbones: forward maps (B, 3, T, H, W) float to (B, N, feature_dim).

    `input_scale` names the normalisation of config.INPUT_SCALES that the present weights want; `load_pretrained` sets it
    to the file's.
    """

    feature_dim: int
    input_scale: str = "unit"
    checkpoint_activations: bool = False

    def prepare(self, clip: torch.Tensor, mean_C: torch.Tensor, std_C: torch.Tensor) -> torch.Tensor:
        """The input of `forward` from a clip as the loader gives it: (B, T, 3, H, W) uint8 -> (B, 3, T, H, W) float32,
        pixels in [0, 1] normalised by channel."""
        return to_video(clip, mean_C, std_C)

    def example(self, config: TrainConfig, clips: int) -> torch.Tensor:
        """An input of `forward` of the right shape, zeros, for counting what it costs."""
        return torch.zeros(clips, 3, config.frame_num, config.spatial_size, config.spatial_size)

    def is_trainable(self, name: str) -> bool:
        """Whether a parameter is trained where the backbone is not frozen as a whole."""
        return True

    def run_block(self, block: Callable[..., Any], *inputs: torch.Tensor) -> Any:
        """block(*inputs); with `checkpoint_activations` only the inputs are kept and the backward pass computes it again,
        with the same dropout."""
        if self.checkpoint_activations and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)

    def load_pretrained(self, state: dict[str, torch.Tensor]) -> list[str]:
        """Start from a published weight file's tensors; returns what was done with them, a sentence each.

        Raises:
            UserError: tensors that do not belong to this network, or do not fit.
        """
        raise NotImplementedError

    def flop_counters(self) -> dict[str, Any]:
        """fvcore operator handles for operations that fvcore does not know."""
        return {}
