"""Actions -> samples: planned in the training process by the method, read by workers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch.utils.data import Dataset

from data_preparation.common.errors import UserError
from data_preparation.dives import Dive, DiveKey
from training.config import TrainConfig
from training.data.batch import Batch
from training.data.plan import Arrays, ClipSpec, Sample
from training.data.sources import Source, source_of
from training.runtime.seeding import generator


class Planner(Protocol):
    """What a data set asks of a method (methods.base.Method)."""

    def sample(self, action: Dive, plan: Plan) -> Sample: ...

    def given(self, action: Dive) -> Arrays: ...

    def labels(self, action: Dive) -> Arrays: ...

    def repeats(self, actions: Sequence[Dive]) -> Sequence[int] | None: ...


@dataclass(frozen=True)
class Plan:
    """What a method plans a sample with.

    `pool` holds the training actions, sorted by key: exemplars come from there. Without `augment` (validation and test)
    nothing is drawn.
    """

    action: Dive
    source: Source
    pool: Sequence[Dive]
    seed: int
    epoch: int
    augment: bool

    def rng(self, purpose: str) -> np.random.Generator | None:
        """A generator of (seed, purpose, epoch, action), or None where nothing is drawn. The same purpose gives the same
        draws again."""
        return generator(self.seed, purpose, self.epoch, *self.action.key) if self.augment else None

    def clip(self, action: Dive, name: str = "clip") -> ClipSpec:
        """The clip of an action, with draws of its own name."""
        return self.source.plan(action, self.rng(name))


class PlannedSample(NamedTuple):
    """A sample on its way to a worker."""

    index: int
    sample: Sample


class ActionDataset:
    """The samples of a list of actions. A sample is asked for by (epoch, index); without `augment` the epoch does not
    matter: frames and view are fixed."""

    def __init__(
        self, actions: Sequence[Dive], config: TrainConfig, method: Planner, *, augment: bool, pool: Sequence[Dive] = ()
    ) -> None:
        self.actions, self.config, self.method, self.augment = list(actions), config, method, augment
        self.pool = sorted(pool, key=lambda action: action.key)
        self.source = source_of(config)
        self.reader = ClipReader(self.source)

    def __len__(self) -> int:
        return len(self.actions)

    @cached_property
    def repeats(self) -> Sequence[int] | None:
        """How often each action comes in an epoch; None for once each."""
        return self.method.repeats(self.actions) if self.augment else None

    @cached_property
    def references(self) -> ActionDataset:
        """The pool without augmentation: what a method that compares encodes as its references."""
        return ActionDataset(self.pool, self.config, self.method, augment=False)

    def without(self, keys: Collection[DiveKey]) -> ActionDataset:
        """The same data set without some actions."""
        actions = [action for action in self.actions if action.key not in keys]
        return ActionDataset(actions, self.config, self.method, augment=self.augment, pool=self.pool)

    def plan(self, epoch: int, index: int) -> PlannedSample:
        """The sample at `index` in an epoch.

        Raises:
            UserError: the action lacks something that the method learns from, or cannot give such a clip.
        """
        action = self.actions[index]
        plan = Plan(action, self.source, self.pool, self.config.seed, epoch, self.augment)
        return PlannedSample(index, self.method.sample(action, plan))


class ClipReader(Dataset):
    """Reads planned samples; this half alone is sent to workers, and needs no method."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __getitem__(self, planned: PlannedSample) -> Batch:
        """One action's row of a batch, without the batch dimension."""
        sample = planned.sample
        known = (
            {name: torch.as_tensor(value) for name, value in group.items()} for group in (sample.given, sample.labels)
        )
        clips = {name: self.source.read(clip) for name, clip in sample.clips.items()}
        return Batch(clips, *known, torch.tensor(planned.index))


def label_faults(actions: Sequence[Dive], method: Planner) -> list[str]:
    """Which actions lack something that the method learns from, a sentence each for the first ten."""
    faults = []
    for action in actions:
        try:
            method.given(action)
            method.labels(action)
        except UserError as error:
            faults.append(str(error))
    return faults[:10] + ([f"and {len(faults) - 10} dives more"] if len(faults) > 10 else [])
