"""The model of a run: a backbone and a method as one module, from the loader's clips to the method's outputs."""

from __future__ import annotations

import logging

import torch
from torch import nn

from training.backbones import Backbone, build_backbone
from training.backbones._weights import read_state_dict
from training.config import INPUT_SCALES, TrainConfig
from training.data.transforms import to_video
from training.methods import Method, Tensors, build_method
from training.seeding import one_thread, seed_all

log = logging.getLogger(__name__)


class ScoringModel(nn.Module):
    """What is trained, saved and wrapped for several ranks.

    The normalisation of the input is part of it (buffers `input_mean` and `input_std`), so a checkpoint cannot be used
    with another one.
    """

    def __init__(self, backbone: Backbone, method: Method, *, freeze: bool = False, input_scale: str = "unit") -> None:
        super().__init__()
        self.backbone, self.method, self.frozen = backbone, method, freeze
        backbone.requires_grad_(not freeze)
        self.input_scale = input_scale
        mean, std = INPUT_SCALES[input_scale]
        self.register_buffer("input_mean", torch.tensor(mean))
        self.register_buffer("input_std", torch.tensor(std))

    def train(self, mode: bool = True) -> ScoringModel:
        super().train(mode)
        if self.frozen:  # frozen means frozen: no dropout, no running statistics
            self.backbone.eval()
        return self

    def forward(self, batch: Tensors) -> Tensors:
        """Outputs of the method for a batch whose `clip` is (B, T, 3, S, S) uint8."""
        video_BCTHW = to_video(batch["clip"], self.input_mean, self.input_std)
        return self.method(self.backbone, {**batch, "video": video_BCTHW})


def build_model(config: TrainConfig) -> ScoringModel:
    """The model with its starting weights, the same on every rank.

    Raises:
        UserError: a weight file that is unreadable or does not fit.
    """
    seed_all(config.seed, "weights")
    with one_thread():
        backbone = build_backbone(config)
        method = build_method(config, backbone.feature_dim)
    own_scale: Tensors = {}
    if config.weight_file:
        state = read_state_dict(config.weight_file)
        if any(
            name.startswith("backbone.") for name in state
        ):  # an earlier run's checkpoint: its backbone starts this one
            own_scale = {name: state[name] for name in ("input_mean", "input_std") if name in state}
            state = {n.removeprefix("backbone."): t for n, t in state.items() if n.startswith("backbone.")}
        for note in backbone.load_pretrained(state):
            log.info("%s: %s", config.weight_file.name, note)
    scale = "mtl_aqa" if config.normalize else config.input_scale
    chosen = backbone.input_scale if scale == "auto" else scale
    model = ScoringModel(backbone, method, freeze=config.freeze or method.freezes_backbone, input_scale=chosen)
    if own_scale and scale == "auto":
        model.load_state_dict(own_scale, strict=False)
        model.input_scale = "as in the checkpoint"
    return model
