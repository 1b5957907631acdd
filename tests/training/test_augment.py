"""RandAugment of clips: one draw for a clip, the same on any ranks and after a resume; boxes follow the rotation."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import functional

from data_preparation.actions import Action
from data_preparation.common.errors import UserError
from tests.small import DIVES, FACTS, batch_of, config_of, tiny_config
from training.backbones import build_backbone
from training.config import TrainConfig
from training.data.augment import OPERATIONS, as_tensor, augment_batch, change_colours, randaugment
from training.data.batch import Batch
from training.data.dataset import ActionDataset
from training.data.facts import DataFacts
from training.data.loader import training_batches
from training.data.plan import ClipSpec, Look
from training.data.transforms import apply_view, crop_flip_rotate, squash_view
from training.engine.step import Step
from training.methods import build_method
from training.methods.base import Method
from training.model import build_model
from training.runtime.ranks import Ranks
from training.runtime.seeding import generator

ACTIONS = [Action(video="a", number=i + 1, start_frame=i + 1, end_frame=i + 20) for i in range(6)]
FRAMES = np.random.default_rng(0).integers(0, 256, (25, 24, 40, 3)).astype(np.uint8)


class Repeating(Method):
    """Repeats the first action three times in an epoch."""

    def labels(self, action: Action) -> dict:
        return {}

    def repeats(self, actions: list[Action]) -> list[int]:
        return [3, *[1] * (len(actions) - 1)]


@dataclasses.dataclass
class Video:
    """The frames of a video, as an open archive gives them."""

    frames: np.ndarray

    def image(self, number: int) -> np.ndarray:
        return self.frames[number - 1]


def data_for(config: TrainConfig) -> ActionDataset:
    data = ActionDataset(ACTIONS, config, Repeating(), augment=True)
    data.source._readers = {"a": Video(FRAMES)}
    return data


def rows(batches) -> list[tuple[int, bytes]]:
    """The action and the pixels of each row of some batches."""
    found: list[tuple[int, bytes]] = []
    for batch in batches:
        assert isinstance(batch, Batch)
        found += [
            (int(i), clip.numpy().tobytes()) for i, clip in zip(batch.action_index, batch.clips["clip"], strict=True)
        ]
    return found


def epoch(config: TrainConfig, rank: int = 0, world: int = 1, first: int = 0) -> list[tuple[int, bytes]]:
    return rows(training_batches(data_for(config), config, Ranks(rank, world), torch.device("cpu"), 3, first))


def test_clips_are_those_of_any_ranks_and_of_a_resume_and_repeats_are_drawn_anew():
    config = config_of(augment="randaugment", flip=True, workers=0, batch_size=4, frame_num=3, spatial_size=32)
    whole = epoch(config)
    assert len(whole) == 8
    on_two = [epoch(config, rank, 2) for rank in (0, 1)]
    assert whole == [row for step in (0, 2) for rank in on_two for row in rank[step : step + 2]]
    assert epoch(config, first=1) == whole[4:]
    assert len({pixels for index, pixels in whole if index == 0}) == 3
    # without it, repeats are equal, as ever
    plain = epoch(dataclasses.replace(config, augment="none", flip=False))
    assert len({pixels for index, pixels in plain if index == 0}) == 1
    # only training is augmented
    held_out = ActionDataset(ACTIONS, config, Repeating(), augment=False).plan(0, 1).sample.clips["clip"]
    assert (held_out.look, held_out.view) == (None, squash_view(32))


def on_device(batches) -> list[Batch]:
    """Batches whose looks are applied, as the training step does."""
    return [augment_batch(batch._replace(looks={}), batch.looks) for batch in batches]


def test_pixels_changed_on_the_device_are_those_of_the_workers_on_any_ranks_and_after_a_resume():
    config = config_of(augment="randaugment", flip=True, workers=0, batch_size=4, frame_num=3, spatial_size=32)
    whole = epoch(config)
    late = dataclasses.replace(config, augment_on="device")
    assert epoch(late) != whole
    cpu = torch.device("cpu")

    def device_epoch(rank: int = 0, world: int = 1, first: int = 0) -> list[tuple[int, bytes]]:
        return rows(on_device(training_batches(data_for(late), late, Ranks(rank, world), cpu, 3, first)))

    assert device_epoch() == whole
    on_two = [device_epoch(rank, 2) for rank in (0, 1)]
    assert whole == [row for step in (0, 2) for rank in on_two for row in rank[step : step + 2]]
    assert device_epoch(first=1) == whole[4:]
    held_out = ActionDataset(ACTIONS, late, Repeating(), augment=False)
    held_out.source._readers = {"a": Video(FRAMES)}
    assert held_out.reader[held_out.plan(0, 1)].looks == {}  # only training is augmented
    with pytest.raises(UserError, match="--augment_on device without augmentation"):
        config_of(augment_on="device")


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.sets(st.sampled_from(OPERATIONS), min_size=1, max_size=3), min_size=1, max_size=4), st.integers(0, 99)
)
def test_each_operation_on_a_batch_is_that_on_a_clip(names: list[set[str]], seed: int):
    batch = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (len(names), 2, 3, 22, 30)).astype(np.uint8))
    specs = [
        ClipSpec(
            ACTIONS[0],
            (1, 2),
            dataclasses.replace(squash_view((22, 30)), degrees=[-27.0, 27.0][seed % 2] * ("rotation" in own)),
            Look(tuple(name for name in OPERATIONS[1:] if name in own), seed + row),
        )
        for row, own in enumerate(names)
    ]
    before = batch.clone()
    changed = augment_batch(
        Batch({"clip": batch}, {}, {}, torch.arange(len(names))), {"clip": torch.stack(list(map(as_tensor, specs)))}
    )
    assert torch.equal(batch, before)
    for row, spec in enumerate(specs):
        alone = change_colours(crop_flip_rotate(spec.view, batch[row]), spec.look)
        assert torch.equal(changed.clips["clip"][row], alone)


def test_a_step_augments_its_batch_once_whatever_the_accumulation():
    config = tiny_config("tsm", "classify", batch_size=4, augment="randaugment", augment_on="device")
    losses = []
    for accumulate, late in ((1, False), (1, True), (2, True)):
        model = build_model(config, FACTS)
        step = Step(model, dataclasses.replace(config, accumulate=accumulate), Ranks(), torch.device("cpu"))
        batch = batch_of(config, model.method, DIVES[:4])
        specs = [randaugment(ClipSpec(dive, (1,), squash_view(32)), generator(dive.number)) for dive in DIVES[:4]]
        looks = {"clip": torch.stack(list(map(as_tensor, specs)))}
        model.train()
        losses.append(step(batch._replace(looks=looks) if late else augment_batch(batch, looks), 0.01, 0)["loss"])
    assert losses[0] == losses[1]
    assert losses[2] == pytest.approx(losses[0], rel=1e-6)


def test_training_with_changes_on_the_device_has_the_losses_of_changes_in_the_workers(train, tmp_path: Path):
    for where in ("loader", "device"):
        train("--run_name", where, "--epochs", 1, "--augment", "randaugment", "--augment_on", where)
    of_loader, of_device = (
        [
            {name: value for name, value in each.items() if "loss" in name}
            for each in map(json.loads, (tmp_path / "runs" / where / "metrics.jsonl").read_text().splitlines())
        ]
        for where in ("loader", "device")
    )
    assert of_loader == of_device


def test_flags_that_do_nothing_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match="leave --flip out"):
        config_of(flip=True, data_aug=True)
    with pytest.raises(UserError, match="needs a square input: leave --spatial_width out"):
        config_of(spatial_width=64)
    with pytest.raises(UserError, match="crops are square"):
        config_of("tsm", spatial_width=64, data_aug=True)
    with pytest.raises(UserError, match="reads no frames"):
        config_of("features", features=str(tmp_path / "f.npz"), augment="randaugment")


def test_whole_frames_need_not_be_square():
    config = config_of("tsm", resnet_depth="18", resnet_width=8, spatial_size=32, spatial_width=53, frame_num=2)
    clip = data_for(config).source.read(data_for(config).plan(0, 0).sample.clips["clip"])
    assert clip.shape == (2, 3, 32, 53)
    network = build_backbone(config).eval()
    assert network.example(config, 2).shape == (2, 3, 2, 32, 53)
    with torch.no_grad():
        assert network(network.example(config, 2)).shape == (2, 2, 64)


def test_two_of_nine_operations_are_drawn_for_a_clip_and_rotation_goes_to_both_sides():
    clips = [randaugment(ClipSpec(ACTIONS[0], (1,), squash_view(8)), generator(seed)) for seed in range(400)]
    names = [[*(["rotation"] if clip.view.degrees else []), *clip.look.changes] for clip in clips]
    assert all(len(set(each)) == 2 and each == sorted(each, key=OPERATIONS.index) for each in names)
    assert {clip.view.degrees for clip in clips} == {-27.0, 0.0, 27.0}
    for name in OPERATIONS:
        assert 50 < sum(name in each for each in names) < 130  # of 89 expected


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name != "rotation"])
def test_a_change_is_the_same_for_all_frames(name: str):
    frame = torch.from_numpy((40 + 0.8 * FRAMES[:1]).astype(np.uint8)).permute(0, 3, 1, 2)  # 40 to 244
    changed = change_colours(frame.repeat(3, 1, 1, 1), Look((name,), 7))
    assert changed.dtype == torch.uint8
    assert changed.shape == (3, 3, 24, 40)
    assert torch.equal(changed[0], changed[2])
    assert not torch.equal(changed[:1], frame)
    by_hand = {
        "posterise": frame & 0xE0,
        "solarise": torch.where(frame > 230, 255 - frame, frame),
        "brightness": (frame.float() * 1.72).clamp(max=255).to(torch.uint8),
        "autocontrast": functional.autocontrast(frame),
    }
    if name in by_hand:
        assert (changed[:1].int() - by_hand[name].int()).abs().max() <= 1
    if name == "noise":
        added = (changed[0].int() - frame[0].int())[:, ((changed[0] > 0) & (changed[0] < 255)).all(0)]
        assert added.shape[1] > 300
        assert (added == added[:1]).all()
        assert 35 < added.float().std() < 55  # of 51; values outside of 0 to 255 are cut off


@settings(max_examples=30, deadline=None)
@given(st.floats(-60, 60), st.floats(0.25, 0.75), st.floats(0.25, 0.75), st.booleans())
def test_points_follow_a_rotation(degrees: float, x: float, y: float, flip: bool):
    column, row = int(x * 128), int(y * 96)
    frame = np.zeros((1, 96, 128, 3), np.uint8)
    frame[:, row - 3 : row + 4, column - 3 : column + 4] = 255
    view = dataclasses.replace(squash_view(96), flip=flip, degrees=degrees)
    seen = apply_view(view, frame)[0, 0].double()
    found_x, found_y = view.points(np.array([column + 0.5, row + 0.5]), 96, 128)
    if 10 < found_x < 86 and 10 < found_y < 86:  # wholly inside
        places = torch.arange(96) + 0.5
        assert float((seen.sum(0) * places).sum() / seen.sum()) == pytest.approx(found_x, abs=0.6)
        assert float((seen.sum(1) * places).sum() / seen.sum()) == pytest.approx(found_y, abs=0.6)


def test_classes_are_repeated_as_often_as_given():
    classes = DataFacts(("fall", "ride=fast", "walk"))
    actions = [dataclasses.replace(action, label=i % 3) for i, action in enumerate(ACTIONS)]
    method = build_method(config_of(method="classify", class_repeats=("fall=3", "ride=fast=2")), 4, classes)
    assert method.repeats(actions) == [3, 2, 1, 3, 2, 1]
    assert build_method(config_of(method="classify"), 4, classes).repeats(actions) is None
    with pytest.raises(UserError, match="names jump and the data set has the classes fall"):
        build_method(config_of(method="classify", class_repeats=("jump=3",)), 4, classes)
    for words in (("fall",), ("fall=0",), ("fall=3", "fall=2"), ("=2",), ("fall=-1",), ("fall=two",)):
        with pytest.raises(UserError, match="is not CLASS=NUMBER"):
            config_of(method="classify", class_repeats=words)
    with pytest.raises(UserError, match="give one of them"):
        config_of(method="classify", class_repeats=("fall=3",), balance=True)
