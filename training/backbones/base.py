"""The interface of backbones: from a clip to features (B, N, D), a sequence of N vectors with D = `feature_dim` values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, noop_context_fn

from training import _torchvision as _torchvision  # before timm
from training.backbones import _selective
from training.config import TrainConfig
from training.data.transforms import to_video


class Staged(Protocol):
    """A network in stages, for methods that compute something between them (BackboneFlags.offers "stages").

    pool(tail(stem(windows(video)))) has the shape (B * windows, positions, feature_dim).
    """

    def windows(self, video_BCTHW: torch.Tensor) -> torch.Tensor: ...

    def stem(self, windows: torch.Tensor) -> torch.Tensor: ...

    def tail(self, maps: torch.Tensor) -> torch.Tensor: ...

    def pool(self, maps: torch.Tensor) -> torch.Tensor: ...


class Mapped(Protocol):
    """A network that also returns named feature maps, for methods that use them (BackboneFlags.offers "maps")."""

    def with_maps(self, video_BCTHW: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the features, as `forward` does, and the maps by name, each with B as its first dimension."""
        ...


class Backbone(nn.Module):
    """Base class of backbones: forward maps (B, 3, T, H, W) float to (B, N, feature_dim).

    `input_scale` is the input normalisation (a key of config.INPUT_SCALES) that the weights were trained with;
    `load_pretrained` sets it to that of the file. Of the N vectors, the first `clip_vectors` describe the whole clip; the others
    are in temporal order.
    """

    feature_dim: int
    clip_vectors: int = 0
    input_scale: str = "unit"
    checkpoint_activations: str = "False"  # a value of --checkpoint_activations

    def prepare(self, clip: torch.Tensor, mean_C: torch.Tensor, std_C: torch.Tensor) -> torch.Tensor:
        """Convert a clip of the DataLoader to the input of `forward`: (B, T, 3, H, W) uint8 -> (B, 3, T, H, W) float32.

        Pixels are scaled to [0, 1], then normalised per channel.
        """
        return to_video(clip, mean_C, std_C)

    def example(self, config: TrainConfig, clips: int) -> torch.Tensor:
        """An input of `forward` filled with zeros, used to estimate cost and memory."""
        return torch.zeros(clips, 3, config.frame_num, *config.input_size)

    def is_trainable(self, name: str) -> bool:
        """Whether to train the parameter `name`, unless --freeze freezes the whole backbone."""
        return True

    def run_block(self, block: Callable[..., Any], *inputs: torch.Tensor | None) -> Any:
        """Return block(*inputs). With `checkpoint_activations` store only the inputs ("selective": and the results of convolutions,
        matrix products and attention), and compute the rest again, with the same dropout masks, in the backward pass."""
        if self.checkpoint_activations == "False" or not torch.is_grad_enabled():
            return block(*inputs)
        contexts = _selective.contexts if self.checkpoint_activations == "selective" else noop_context_fn
        return checkpoint(block, *inputs, use_reentrant=False, context_fn=contexts)

    def compile_blocks(self, *, cuda_graphs: bool = False) -> None:
        """Compile the network with torch.compile when it first runs: here as a whole, which takes minutes. A network of equal
        blocks overrides this and compiles the block. With `cuda_graphs` (--cuda_graphs) its kernels are replayed as CUDA graphs."""
        # with fallback_random a compiled network drops the same activations as an uncompiled one
        self.compile(options={"fallback_random": True, "triton.cudagraphs": cuda_graphs})

    def load_pretrained(self, state: dict[str, torch.Tensor]) -> list[str]:
        """Load the tensors of a published weight file; return one log message per adaptation.

        Raises:
            UserError: the tensors belong to another network, or their shapes do not fit.
        """
        raise NotImplementedError

    # what explanations of its predictions show unless another kind is asked for: see training.explain.maps.KINDS
    explained_by: str = "gradient"

    def last_maps(self) -> nn.Module | None:
        """The module whose output, the last maps of places (B', C, ...), Grad-CAM reads; None if there is none."""
        return None

    def in_clip(self, maps: torch.Tensor, frames: int) -> torch.Tensor:
        """One channel of the output of `last_maps()` for a clip of so many frames, in the clip's time: (B', 1, ...) ->
        (B, t, h, w)."""
        return maps[:, 0]

    def own_maps(self, video_BCTHW: torch.Tensor) -> dict[str, torch.Tensor]:
        """Maps (B, t, h, w) >= 0 by which the network itself weights places and times, by their kind; {} if there are none."""
        return {}

    def flop_counters(self) -> dict[str, Any]:
        """fvcore operator handles for operators that fvcore does not support."""
        return {}
