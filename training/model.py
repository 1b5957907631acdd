"""The model of a run: a backbone and a method as one module, from the clips of a batch to the outputs of the method."""

from __future__ import annotations

import logging
from typing import Literal

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
from training.rows import RowBatchNorm, freeze_batch_norm, set_batch_norm
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
        trains_batch_norm: bool | Literal["first"] = False,
    ) -> None:
        super().__init__()
        self.backbone, self.method, self.frozen, self.trains_batch_norm = backbone, method, freeze, trains_batch_norm
        for name, parameter in backbone.named_parameters():
            parameter.requires_grad_(not freeze and backbone.is_trainable(name))
        if trains_batch_norm == "first":
            for layer in self._later_batch_norms():
                layer.requires_grad_(False)
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
        elif self.trains_batch_norm == "first":
            for layer in self._later_batch_norms():
                layer.eval()
        return self

    def _later_batch_norms(self) -> list[RowBatchNorm]:
        """All batch norms of the backbone but the first."""
        return [layer for layer in self.backbone.modules() if isinstance(layer, RowBatchNorm)][1:]

    def parameter_groups(self, config: TrainConfig) -> list[ParameterGroup]:
        """The optimizer's parameter groups: those of the method, divided and scaled as --backbone_lr_scale, --bias_lr_scale and
        --decay_of say."""
        groups = self.method.parameter_groups([name for name, p in self.named_parameters() if p.requires_grad])
        if (config.backbone_lr_scale, config.bias_lr_scale, config.decay_of) == (1, 1, "all"):
            return groups
        of_norms = {
            f"{path}.{name}"
            for path, layer in self.named_modules()
            if isinstance(layer, (RowBatchNorm, nn.LayerNorm))
            for name, _ in layer.named_parameters(recurse=False)
        }

        def factors(name: str) -> tuple[float, float]:
            """The factors of a parameter's learning rate and weight decay."""
            rate = config.backbone_lr_scale if name.startswith("backbone.") else 1.0
            is_bias = "bias" in name.rpartition(".")[2] and name not in of_norms
            without_decay = config.decay_of == "weights" and (is_bias or name in of_norms)
            return rate * (config.bias_lr_scale if is_bias else 1.0), 0.0 if without_decay else 1.0

        scaled: list[ParameterGroup] = []
        for names, rate, decay in groups:
            divided: dict[tuple[float, float], list[str]] = {}
            for name in sorted(names, key=lambda name: not name.startswith("backbone.")):
                divided.setdefault(factors(name), []).append(name)
            scaled += [ParameterGroup(part, rate * r, decay * d) for (r, d), part in divided.items()]
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
        trains_batch_norm="first" if config.batch_norm == "first" else config.batch_norm == "trained",
    )
    set_batch_norm(model, group=config.bn_group, together=config.bn_windows == "together")
    if saved_scale and scale == "auto":
        model.load_state_dict(saved_scale, strict=False)
        model.input_scale = "as in the checkpoint"
    return model
