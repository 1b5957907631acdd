"""Small configurations, actions and batches for tests of networks, methods and steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.utils.data import default_collate

from data_preparation.actions import DIVING, Dive
from data_preparation.common.command_line import parse
from data_preparation.common.errors import UserError
from training import plugins
from training.config import TrainConfig, config_class
from training.data.batch import Batch
from training.data.dataset import Plan
from training.data.facts import DataFacts
from training.data.plan import ClipSpec
from training.data.sources import FrameSource
from training.methods.base import Method

MODELS, METHODS = plugins.names(plugins.BACKBONES), plugins.names(plugins.METHODS)
VIDEO_MODELS = tuple(name for name in MODELS if plugins.flags_of(plugins.BACKBONES, name).reads == "video")


def judges_of(score: float, difficulty: float) -> tuple[float, ...]:
    """Seven equal scores in half points that give about this final score."""
    return (min(round(2 * score / difficulty / 3) / 2, 10.0),) * 7


def actions_of(count: int) -> list[Dive]:
    """Different dives of one video."""
    return [
        Dive(
            "01",
            i,
            1 + 100 * i,
            80 + 100 * i,
            label=i % 3,
            difficulty=2.0 + i / 8,
            final_score=30.0 + 5 * i,
            judge_scores=judges_of(30.0 + 5 * i, 2.0 + i / 8),
            position=i % 3,
            armstand=i % 2,
            rotation_type=i % 4,
            ss_no=i % 10,
            tw_no=i % 8,
        )
        for i in range(count)
    ]


DIVES = actions_of(8)
FACTS = DataFacts(("good", "fair", "poor"), {"": DIVING})  # of these actions


def config_of(model: str = "timesformer", method: str = "regression", **flags) -> TrainConfig:
    """A configuration with those of the flags that the chosen backbone and method have."""
    owned = {field.name for field in dataclasses.fields(config_class(model, method))}
    return TrainConfig(model=model, method=method, **{name: value for name, value in flags.items() if name in owned})


def tiny_argv(model: str, method: str) -> list[str]:
    """The command line of the small configuration that a backbone and a method ship for tests."""
    tiny = [*plugins.flags_of(plugins.BACKBONES, model).TINY, *plugins.flags_of(plugins.METHODS, method).TINY]
    return ["--model", model, "--method", method, "--gpu", "False", *tiny]


def tiny_config(model: str, method: str, **flags) -> TrainConfig:
    """The small configuration of a backbone and a method, with other common flags."""
    return dataclasses.replace(parse(TrainConfig, tiny_argv(model, method)), **flags)


def fits(model: str, method: str) -> bool:
    """Whether a backbone offers what a method needs."""
    try:
        tiny_config(model, method)
    except UserError as error:
        if f"--method {method} needs" not in str(error):
            raise
        return False
    return True


def labels_of(method: Method, actions: Sequence[Dive], part: str = "labels") -> dict[str, torch.Tensor]:
    """The labels (or with `part="given"` the given values) of some actions, stacked as in a batch."""
    return default_collate([{n: torch.as_tensor(v) for n, v in getattr(method, part)(a).items()} for a in actions])


def clips_of(config: TrainConfig, count: int, seed: int = 1) -> torch.Tensor:
    """(count, T, 3, S, S) uint8 noise."""
    shape = (count, config.frame_num, 3, config.spatial_size, config.spatial_size)
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed)).byte()


class NoFrames:
    """A source that plans clips without a disk."""

    def plan(self, action: Dive, rng: np.random.Generator | None) -> ClipSpec:
        return ClipSpec(action, (), None)

    def plan_frames(self, action: Dive, frames: tuple[int, ...], rng: np.random.Generator | None) -> ClipSpec:
        return ClipSpec(action, frames, None)


def sampled_batch(
    config: TrainConfig,
    method: Method,
    actions: Sequence[Dive],
    clip: Callable[[Dive], torch.Tensor],
    *,
    augment: bool = True,
    epoch: int = 0,
) -> Batch:
    """The batch of the samples that a method plans for some actions; `clip` gives the clip of an action. Pairs are made within
    the actions."""
    pool = sorted(actions, key=lambda action: action.key)
    source = FrameSource(config) if config.needs == "stages" else NoFrames()  # boxes need the view of the clip
    plans = [Plan(action, source, pool, config.seed, epoch, augment) for action in actions]
    samples = [method.sample(action, plan) for action, plan in zip(actions, plans, strict=True)]
    clips = {name: torch.stack([clip(s.clips[name].action) for s in samples]) for name in samples[0].clips}
    given, labels = (
        default_collate([{n: torch.as_tensor(v) for n, v in getattr(s, part).items()} for s in samples])
        for part in ("given", "labels")
    )
    return Batch(clips, given, labels, torch.arange(len(actions)))


def batch_of(config: TrainConfig, method: Method, actions: Sequence[Dive] = DIVES) -> Batch:
    """A training batch of noise clips with the labels of some actions."""
    noise = dict(zip((action.key for action in actions), clips_of(config, len(actions)), strict=True))
    return sampled_batch(config, method, actions, lambda action: noise[action.key])
