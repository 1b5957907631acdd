"""The model of a run: a backbone and a method as one module, from the loader's clips to the method's outputs."""

from __future__ import annotations

import logging

import torch
from torch import nn

from training.backbones import build_backbone
from training.backbones._weights import read_state_dict
from training.backbones.base import Backbone
from training.config import INPUT_SCALES, TrainConfig
from training.data.batch import Batch, Tensors
from training.methods import build_method
from training.methods.base import Method, ParameterGroup
from training.rows import freeze_batch_norm, set_batch_norm
from training.runtime.seeding import one_thread, seed_all

log = logging.getLogger(__name__)


class ScoringModel(nn.Module):
    """What is trained, saved and wrapped for several ranks.

    The normalisation of the input is part of it (buffers `input_mean` and `input_std`), so a checkpoint cannot be used
    with another one.
    """

    def __init__(
        self,
        backbone: Backbone,
        method: Method,
        *,
        freeze: bool = False,
        input_scale: str = "unit",
        trains_batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.backbone, self.method, self.frozen, self.trains_batch_norm = backbone, method, freeze, trains_batch_norm
        for name, parameter in backbone.named_parameters():
            parameter.requires_grad_(not freeze and backbone.is_trainable(name))
        self.input_scale = input_scale
        mean, std = INPUT_SCALES[input_scale]
        self.register_buffer("input_mean", torch.tensor(mean))
        self.register_buffer("input_std", torch.tensor(std))

    def train(self, mode: bool = True) -> ScoringModel:
        super().train(mode)
        if self.frozen:  # frozen means frozen: no dropout, no running statistics
            self.backbone.eval()
        if not self.trains_batch_norm:
            freeze_batch_norm(self)
        return self

    def parameter_groups(self, config: TrainConfig) -> list[ParameterGroup]:
        """The trained parameters as the optimizer's groups: the method's, with the backbone's rate scaled."""
        groups = self.method.parameter_groups([name for name, p in self.named_parameters() if p.requires_grad])
        if config.backbone_lr_scale == 1:
            return groups
        scaled: list[ParameterGroup] = []
        for names, rate, decay in groups:
            of_backbone = [name for name in names if name.startswith("backbone.")]
            others = [name for name in names if not name.startswith("backbone.")]
            scaled += [ParameterGroup(of_backbone, rate * config.backbone_lr_scale, decay)] if of_backbone else []
            scaled += [ParameterGroup(others, rate, decay)] if others else []
        return scaled

    def prepare(self, clip: torch.Tensor) -> torch.Tensor:
        """What the backbone sees of a clip as the loader gives it."""
        return self.backbone.prepare(clip, self.input_mean, self.input_std)

    def forward(self, batch: Batch) -> Tensors:
        """Outputs of the method for a batch as the loader gives it."""
        clips = {name: self.prepare(clip) for name, clip in batch.clips.items()}
        return self.method(self.backbone, clips, batch.given, batch.labels)


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
    model = ScoringModel(
        backbone,
        method,
        freeze=config.freeze or method.freezes_backbone,
        input_scale=chosen,
        trains_batch_norm=config.batch_norm == "trained",
    )
    set_batch_norm(model, group=config.bn_group, together=config.bn_windows == "together")
    if own_scale and scale == "auto":
        model.load_state_dict(own_scale, strict=False)
        model.input_scale = "as in the checkpoint"
    return model
