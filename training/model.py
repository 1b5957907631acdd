"""The model of a run: a backbone and a method as one module, from the clips of a batch to the outputs of the method."""

from __future__ import annotations

import logging

import torch
from torch import nn

from training.backbones import build_backbone
from training.backbones._weights import read_weights
from training.backbones.base import Backbone
from training.config import INPUT_SCALES, TrainConfig
from training.data.batch import Batch, Tensors
from training.data.facts import NO_FACTS, DataFacts
from training.methods import build_method
from training.methods.base import Method, ParameterGroup
from training.rows import freeze_batch_norm, set_batch_norm
from training.runtime.seeding import one_thread, seed_all

log = logging.getLogger(__name__)


class ScoringModel(nn.Module):
    """The module that is trained, saved and wrapped by DistributedDataParallel.

    The input normalisation is part of it (buffers `input_mean` and `input_std`), so a checkpoint always comes with its own.
    """

    input_mean: torch.Tensor  # (3,)
    input_std: torch.Tensor  # (3,)

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
        if self.frozen:  # no dropout and no update of running statistics in a frozen backbone
            self.backbone.eval()
        if not self.trains_batch_norm:
            freeze_batch_norm(self)
        return self

    def parameter_groups(self, config: TrainConfig) -> list[ParameterGroup]:
        """The optimizer's parameter groups: those of the method, with the backbone's rate multiplied by --backbone_lr_scale."""
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
        """Convert a clip of the DataLoader to the input of the backbone, see Backbone.prepare."""
        return self.backbone.prepare(clip, self.input_mean, self.input_std)

    def forward(self, batch: Batch) -> Tensors:
        """The outputs of the method for a batch of the DataLoader."""
        clips = {name: self.prepare(clip) for name, clip in batch.clips.items()}
        return self.method(self.backbone, clips, batch.given, batch.labels)


def build_model(config: TrainConfig, data: DataFacts = NO_FACTS) -> ScoringModel:
    """Build the model with its initial weights, which are the same on every rank.

    Raises:
        UserError: the weight file is unreadable or does not fit.
    """
    seed_all(config.seed, "weights")
    with one_thread():
        backbone = build_backbone(config)
        method = build_method(config, backbone.feature_dim, data)
    saved_scale: Tensors = {}
    if config.weight_file:
        state, parts = read_weights(config.weight_file)
        if any(name.startswith("backbone.") for name in state):  # a checkpoint of another run: use its backbone
            saved_scale = {name: state[name] for name in ("input_mean", "input_std") if name in state}
            state = {n.removeprefix("backbone."): t for n, t in state.items() if n.startswith("backbone.")}
        for message in backbone.load_pretrained(state):
            log.info("%s: %s", config.weight_file.name, message)
        for message in method.load_pretrained(parts):
            log.info("%s: %s", config.weight_file.name, message)
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
    if saved_scale and scale == "auto":
        model.load_state_dict(saved_scale, strict=False)
        model.input_scale = "as in the checkpoint"
    return model
