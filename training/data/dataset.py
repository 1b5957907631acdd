"""ActionDataset: the training process plans the samples of a list of actions, workers read them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch.utils.data import Dataset

from data_preparation.actions import Action, ActionKey, plain_key, sort_key
from data_preparation.common.errors import UserError
from training.config import TrainConfig
from training.data.augment import as_tensor, without_changes
from training.data.batch import Batch, Tensors
from training.data.handover import Clips, Loaded
from training.data.plan import Arrays, ClipSpec, Sample
from training.data.sources import Source, source_of, views_of_test
from training.runtime.seeding import generator


class Planner(Protocol):
    """The part of methods.base.Method that a data set uses."""

    def sample(self, action: Action, plan: Plan) -> Sample: ...

    def given(self, action: Action) -> Arrays: ...

    def labels(self, action: Action) -> Arrays: ...

    def repeats(self, actions: Sequence[Action]) -> Sequence[int] | None: ...


@dataclass(frozen=True)
class Plan:
    """What Method.sample needs to plan the sample of `action`.

    `pool` holds the training actions, sorted by key; exemplars come from it. With `augment` False (validation and test)
    nothing is random. `repeat` counts from 0 the repeats of an action in an epoch (Method.repeats) that have random numbers of their own.
    `labelled` is False for an action that is to be scored, whose labels nobody knows.
    """

    action: Action
    source: Source
    pool: Sequence[Action]
    seed: int
    epoch: int
    augment: bool
    repeat: int = 0
    labelled: bool = True

    def labels(self, method: Planner) -> Arrays:
        """The labels of the action; none if they are not known.

        Raises:
            UserError: the annotation lacks a label that the method needs.
        """
        return method.labels(self.action) if self.labelled else {}

    def rng(self, purpose: str) -> np.random.Generator | None:
        """A new generator seeded by (seed, purpose, epoch, action, repeat), or None without augmentation. A second call with
        the same purpose returns the same random numbers."""
        repeat = (self.repeat,) if self.repeat else ()
        return generator(self.seed, purpose, self.epoch, *plain_key(self.action.key), *repeat) if self.augment else None

    def clip(self, action: Action, name: str = "clip") -> ClipSpec:
        """A clip of `action`, augmented by the generator `rng(name)`."""
        return self.source.plan(action, self.rng(name))

    def clip_of(self, action: Action, frames: tuple[int, ...], name: str = "clip") -> ClipSpec:
        """As `clip`, but with the given frames of the action's video (from 1) in place of those of --frame_method."""
        return self.source.plan_frames(action, frames, self.rng(name))


class ClipAlone:
    """Planner of data sets that hold one clip per action and no labels, whatever the method."""

    def sample(self, action: Action, plan: Plan) -> Sample:
        return Sample({"clip": plan.clip(action)})

    def given(self, action: Action) -> Arrays:
        return {}

    def labels(self, action: Action) -> Arrays:
        return {}

    def repeats(self, actions: Sequence[Action]) -> None:
        return None


class PlannedSample(NamedTuple):
    """What a worker needs to read a sample. With several views of each action, `action_index` counts the views."""

    action_index: int
    sample: Sample


class ActionDataset:
    """The samples of a list of actions, each a function of (epoch, index). Without `augment` every epoch has the same ones.

    With `all_views` the samples are all views of --test_clips and --test_crops of the first action, then those of the second, ...:
    a view is a sample like any other, so batches need no more memory, and boxes follow the view of their sample.
    `source` is by default that of the configuration. With `labelled` False the samples have no labels.
    """

    def __init__(
        self,
        actions: Sequence[Action],
        config: TrainConfig,
        method: Planner,
        *,
        augment: bool,
        pool: Sequence[Action] = (),
        all_views: bool = False,
        source: Source | None = None,
        labelled: bool = True,
    ) -> None:
        self.actions, self.config, self.method, self.augment = list(actions), config, method, augment
        self.pool = sorted(pool, key=lambda action: sort_key(action.key))
        self.source = source_of(config) if source is None else source
        self.labelled = labelled
        choices = views_of_test(config) if all_views else []
        self._sources = [self.source.at(choice) for choice in choices] or [self.source]  # one for each view
        self.reader = ClipReader(self._sources[0], config.augment_on == "device")

    def __len__(self) -> int:
        return len(self.actions)

    @property
    def views(self) -> int:
        """Samples per action in an evaluation."""
        return len(self._sources)

    @cached_property
    def repeats(self) -> Sequence[int] | None:
        """How often each action occurs in an epoch; None means once each."""
        return self.method.repeats(self.actions) if self.augment else None

    @cached_property
    def references(self) -> ActionDataset:
        """The pool without augmentation: the references of a comparing method."""
        return ActionDataset(self.pool, self.config, self.method, augment=False, source=self.source)

    def reading(self, source: Source) -> ActionDataset:
        """This data set with another source of clips."""
        return ActionDataset(
            self.actions, self.config, self.method, augment=self.augment, pool=self.pool, source=source
        )

    def without(self, keys: Collection[ActionKey]) -> ActionDataset:
        """This data set without the actions with these keys."""
        actions = [action for action in self.actions if action.key not in keys]
        return ActionDataset(
            actions, self.config, self.method, augment=self.augment, pool=self.pool, source=self.source
        )

    def with_all_views(self) -> ActionDataset:
        """This data set with all views of each action."""
        return ActionDataset(
            self.actions, self.config, self.method, augment=self.augment, pool=self.pool, all_views=True
        )

    def plan(self, epoch: int, index: int, repeat: int = 0) -> PlannedSample:
        """The planned sample of action `index` in an epoch; with several views, of view index % views of action index // views.
        `repeat` is how often the action occurred before in this epoch; without --augment all repeats are equal.

        Raises:
            UserError: the action lacks a label that the method needs, or has too few frames for the clip.
        """
        action, source = self.actions[index // self.views], self._sources[index % self.views]
        repeat = repeat if self.config.augment != "none" else 0
        plan = Plan(action, source, self.pool, self.config.seed, epoch, self.augment, repeat, self.labelled)
        return PlannedSample(index, self.method.sample(action, plan))


class ClipReader(Dataset):
    """Reads planned samples. Only this part is pickled for the workers, so they need no method.

    With `draws_only` it leaves out the changes of --augment and adds their draws to the batch, for the device.
    """

    def __init__(self, source: Source, draws_only: bool = False) -> None:
        self.source, self.draws_only = source, draws_only

    def __getitem__(self, planned: PlannedSample) -> Batch:
        """The tensors of one action on the CPU, without the batch dimension."""
        return self.__getitems__([planned]).finish(torch.device("cpu")).map(lambda tensor: tensor[0])

    def __getitems__(self, planned: Sequence[PlannedSample]) -> Loaded:
        """A batch of samples, all of whose clips of a name have the same shape."""
        clips: dict[str, Clips] = {}
        looks: Tensors = {}
        for name in planned[0].sample.clips:
            specs = [each.sample.clips[name] for each in planned]
            if self.draws_only and specs[0].look:
                looks[name] = torch.stack([as_tensor(spec) for spec in specs])
                specs = [without_changes(spec) for spec in specs]
            clips[name] = self.source.read_batch(specs)
        given, labels = ([getattr(each.sample, part) for each in planned] for part in ("given", "labels"))
        return Loaded(clips, given, labels, [each.action_index for each in planned], looks)


def label_faults(actions: Sequence[Action], method: Planner) -> list[str]:
    """Actions that lack a label that the method needs: the first ten different messages."""
    faults: dict[str, None] = {}
    for action in actions:
        try:
            method.given(action)
            method.labels(action)
        except UserError as error:
            faults[str(error)] = None
    return list(faults)[:10] + ([f"and {len(faults) - 10} more actions"] if len(faults) > 10 else [])
