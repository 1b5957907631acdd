"""Training of a head on the features of a frozen backbone. They are computed once at each start; no clip may change over the epochs.

The features depend neither on the number of ranks nor on the epoch at which a run resumes: every start computes all of them, in
the same batches.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from data_preparation.actions import Action, ActionKey
from data_preparation.common.errors import UserError
from data_preparation.common.limits import available_memory
from training.backbones.base import Backbone
from training.config import TrainConfig
from training.data.batch import Batch, Tensors
from training.data.dataset import ActionDataset, ClipAlone, Plan
from training.data.plan import ClipSpec
from training.data.sources import Source, WithoutFrames
from training.engine.loop import Engine
from training.engine.prediction import autocast, resolve_precision
from training.fitting import host_memory
from training.model import ScoringModel

log = logging.getLogger(__name__)


class FrozenEngine(Engine):
    """Trains with gradient steps on stored features. Checkpoints hold the whole model, as those of Engine do."""

    def fit(self, train_data: ActionDataset, val_data: ActionDataset) -> None:
        """Compute the features of all clips on all ranks, then train as Engine does.

        Raises:
            StoppedBySignal, UserError: as Engine. UserError: the features do not fit in the memory.
        """
        if self.position.epoch >= self.epochs:  # nothing is left to train
            return super().fit(train_data, val_data)
        started, backbones = time.perf_counter(), [self.model.backbone, self.step.validated_model.backbone]
        actions = list({action.key: action for data in (train_data, val_data) for action in data.actions}.values())
        self._check_memory(len(actions))
        clips = ActionDataset(actions, self.config, ClipAlone(), augment=False, source=train_data.source)
        self.model.eval()
        rows = self.predictor.forward_all(self._features, clips)
        features = StoredFeatures(dict(zip((a.key for a in actions), rows.outputs["features"], strict=True)))
        log.info(
            "The backbone is frozen and no clip changes over the epochs: the features of %d clips were computed in %.1f s",
            len(actions), time.perf_counter() - started,
        )  # fmt: skip
        config, predictor = self.config, self.predictor
        self.config = replace(config, workers=0)
        self.predictor = replace(predictor, config=self.config)
        try:
            with passing_features(backbones):
                return super().fit(*(data.reading(features) for data in (train_data, val_data)))
        finally:
            self.config, self.predictor = config, predictor

    def _features(self, batch: Batch) -> Tensors:
        return {"features": self.model.backbone(self.model.prepare(batch.clips["clip"]))}  # (B, N, D)

    @torch.no_grad()
    def _check_memory(self, clips: int) -> None:
        """Check that the features fit: every rank holds all of them, up to four times while they are gathered.

        Raises:
            UserError: they do not fit.
        """
        backbone = self.model.backbone
        with autocast(resolve_precision(self.config.precision, self.device), self.device):
            example = backbone.eval()(backbone.example(self.config, 1).to(self.device))
        need, available = (
            4 * clips * example.numel() * example.element_size(),
            host_memory(self.ranks, available_memory()),
        )
        if available is not None and need > available:
            raise UserError(
                f"the features of {clips} clips take {need / 2**30:.1f} GiB in each rank, of which {max(available, 0) / 2**30:.1f} GiB are free: give --features_once False, which computes them in each step, more --mem, or fewer ranks per node"
            )


def clips_never_change(config: TrainConfig, model: ScoringModel, data: ActionDataset) -> bool:
    """Whether FrozenEngine can train the model: the backbone is frozen, the method reads nothing but its features, and planning
    a clip draws no random number."""
    if not (config.features_once and model.frozen and config.reads == "video"):
        return False
    if config.needs not in ("vectors", "tokens"):
        return False
    action = data.actions[0]
    try:
        model.method.sample(action, Plan(action, _WithoutDraws(data.source), data.pool, config.seed, 0, data.augment))
    except _Draws:
        return False
    return True


@contextmanager
def passing_features(backbones: Sequence[Backbone]) -> Iterator[None]:
    """Inside, the backbones take features and return them unchanged. Their parameters and names stay as they are."""
    for backbone in backbones:
        vars(backbone).update(prepare=lambda clip, *_: clip, forward=lambda features_BND: features_BND)
    try:
        yield
    finally:
        for backbone in backbones:
            for name in ("prepare", "forward"):
                vars(backbone).pop(name, None)  # the average of the weights may share its backbone


class StoredFeatures(WithoutFrames):
    """A source of the features (N, D) of each action."""

    def __init__(self, features: dict[ActionKey, torch.Tensor]) -> None:
        self.features = features

    def faults(self, actions: Sequence[Action]) -> list[str]:
        return []

    def record(self, actions: Sequence[Action]) -> dict[str, str]:
        return {}

    def video_hashes(self, actions: Sequence[Action]) -> dict[str, str]:
        return {}

    def read(self, clip: ClipSpec) -> torch.Tensor:
        return self.features[clip.action.key]


class _Draws(Exception):
    """A clip depends on a random number."""


class _NoGenerator:
    def __getattr__(self, name: str) -> Any:
        raise _Draws


class _WithoutDraws:
    """A source that plans clips with a generator that cannot draw."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def plan(self, action: Action, rng: np.random.Generator | None) -> ClipSpec:
        return self.source.plan(action, _NoGenerator())  # type: ignore[arg-type]

    def plan_frames(self, *_: object) -> ClipSpec:
        raise _Draws  # frames that the method chooses itself

    def __getattr__(self, name: str) -> Any:
        return getattr(self.source, name)
