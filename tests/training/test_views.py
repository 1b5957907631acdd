"""Several crops and clips of each action in the test: where they are, and that their predictions are averaged."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import functional

from data_preparation.actions import Dive
from data_preparation.boxes import Boxes, boxes_file, write_boxes
from data_preparation.common.errors import UserError
from tests.small import FACTS, VIDEO_MODELS, actions_of, config_of, tiny_config
from training.config import TrainConfig
from training.data.batch import Batch
from training.data.dataset import ActionDataset
from training.data.loader import evaluation_batches
from training.data.plan import ClipSpec, View
from training.data.sampling import clip_frames, places_of_test
from training.data.sources import FrameSource
from training.data.transforms import apply_view, crop_views
from training.engine.prediction import Predictor
from training.methods.base import Bank, ComparingMethod
from training.model import ScoringModel, build_model
from training.runtime.ranks import Ranks

CPU = torch.device("cpu")
DIVES = [dataclasses.replace(dive, start_frame=1 + 3 * i, end_frame=30 + 3 * i) for i, dive in enumerate(actions_of(3))]
FRAMES = np.random.default_rng(0).integers(0, 256, (40, 48, 80, 3)).astype(np.uint8)


class Video:
    """The frames of a video, as an open archive gives them."""

    numbers = np.arange(1, len(FRAMES) + 1)

    def image(self, number: int) -> np.ndarray:
        return FRAMES[number - 1]


def data_for(config: TrainConfig, model: ScoringModel, *, all_views: bool = True) -> ActionDataset:
    data = ActionDataset(DIVES, config, model.method, augment=False, all_views=all_views)
    for source in data._sources:
        source._readers = {"01": Video()}
    return data


@settings(max_examples=20)
@given(st.integers(16, 240), st.sampled_from(["standard", "swapped"]))
def test_corners_and_flips_are_those_of_torchvision_and_the_first_is_that_of_validation(size: int, geometry: str):
    ten = crop_views(size, 10, geometry)
    height, width = ten[0].resize
    frame_THWC = np.random.default_rng(size).integers(0, 256, (1, height, width, 3)).astype(np.uint8)
    theirs = functional.ten_crop(torch.from_numpy(frame_THWC).permute(0, 3, 1, 2), size)
    # torchvision crops the flipped frame, so that left and right change places; it has the centre last, where it may be a pixel off
    for ours, his in zip([*ten[1:5], *ten[6:]], [*theirs[:4], *(theirs[i] for i in (6, 5, 8, 7))], strict=True):
        assert torch.equal(apply_view(ours, frame_THWC), his)
    assert crop_views(size, 1, geometry) == ten[:1]
    top, left, *_ = ten[0].crop
    assert (top, left) == ((height - size) // 2, (width - size) // 2)
    assert crop_views(size, 5, geometry) == ten[:5]
    assert [view.flip for view in ten] == [False] * 5 + [True] * 5


def test_three_crops_cover_the_long_side_and_full_resolution_the_short_one():
    assert [view.crop for view in crop_views(224, 3, full_res=True)] == [
        (0, 99, 256, 256),
        (0, 0, 256, 256),
        (0, 199, 256, 256),
    ]
    assert [view.crop[:2] for view in crop_views(224, 3, "swapped")] == [(115, 16), (0, 16), (231, 16)]
    assert config_of("tsm", data_aug=True, full_res=True).test_size == (256, 256)


def test_clips_of_an_action_are_those_of_tsm():
    # twice_sample: the middles of the segments, and their first frames
    twice = [
        clip_frames(1, 40, 8, "segments", None, place=places_of_test("segments", 2)[clip]).tolist() for clip in (0, 1)
    ]
    assert twice == [list(range(3, 41, 5)), list(range(1, 41, 5))]
    dense = [clip_frames(1, 100, 8, "dense", None, place=places_of_test("dense", 10)[clip]) for clip in range(10)]
    assert [int(frames[0]) for frames in dense] == [1, 5, 9, 13, 17, 21, 25, 29, 33, 37]
    assert all((np.diff(frames) == 8).all() for frames in dense)
    assert {
        int(clip_frames(1, 50, 8, "dense", None, place=places_of_test("dense", 10)[clip])[0]) for clip in range(10)
    } == {1}


def by_hand(config: TrainConfig, model: ScoringModel, dive: Dive, clip: int, crop: int) -> Batch:
    """A batch of one view, cropped and flipped with NumPy alone."""
    place = places_of_test(config.frame_method, 2)[clip]
    frames = clip_frames(dive.start_frame, dive.end_frame, config.frame_num, config.frame_method, None, place=place)
    size, (height, width) = config.spatial_size, crop_views(config.spatial_size, 1)[0].resize
    resized = apply_view(View((height, width), (0, 0, height, width)), FRAMES[frames - 1]).numpy()
    middle = ((height - size) // 2, (width - size) // 2)
    top, left = [middle, (0, 0), (0, width - size), (height - size, 0), (height - size, width - size)][crop % 5]
    pixels = resized[:, :, top : top + size, left : left + size]
    pixels = pixels[..., ::-1].copy() if crop >= 5 else pixels
    given = model.method.given(dive)
    if hasattr(model.method, "tube_of"):
        view = View((height, width), (top, left, size, size), crop >= 5)
        given["tube"] = model.method.tube_of(ClipSpec(dive, tuple(frames.tolist()), view))
    given_B = {name: torch.as_tensor(value)[None] for name, value in given.items()}
    return Batch({"clip": torch.from_numpy(pixels)[None]}, given_B, {}, torch.tensor([0]))


@pytest.fixture
def boxes(tmp_path: Path) -> Path:
    """Boxes near the left edge of all frames."""
    corners = np.array([(2, 2), (30, 2), (30, 30), (2, 30)]) + np.arange(len(FRAMES))[:, None, None] / 4
    write_boxes(boxes_file(tmp_path / "boxes", "01"), Boxes(np.arange(1, len(FRAMES) + 1), corners, 48, 80))
    return tmp_path / "boxes"


CASES = [(model, "regression", "probability") for model in VIDEO_MODELS]
CASES += [("timesformer", "core", "probability"), ("i3d", "tsanet", "probability")]
CASES += [("tsm", "classify", "probability"), ("tsm", "classify", "logit")]


@pytest.mark.parametrize(("name", "method", "average"), CASES, ids=["-".join(case) for case in CASES])
def test_ten_crops_of_two_clips_are_the_mean_of_twenty_made_by_hand(name: str, method: str, average: str, boxes: Path):
    flags = {"tsanet": {"boxes": str(boxes)}, "core": {"pairs": "free"}}.get(method, {})
    config = tiny_config(
        name, method, data_aug=True, test_crops=10, test_average=average, workers=0, frame_method="spaced_varied_new",
        test_clips=2, batch_size=8, **flags,
    )  # fmt: skip
    model = build_model(config, FACTS).eval()
    if isinstance(model.method, ComparingMethod):
        model.method.observe(DIVES)
        with torch.no_grad():
            known = [model(by_hand(config, model, dive, 0, 0)) for dive in DIVES]
        labels = [model.method.labels(dive) for dive in DIVES]
        stacked = {n: torch.stack([torch.as_tensor(each[n]) for each in labels]) for n in labels[0]}
        bank = {n: torch.cat([each[n] for each in known]) for n in known[0]}
        model.method.remember(Bank([("02", i) for i in range(3)], bank, stacked))
    data = data_for(config, model)
    assert data.views == 20
    rows, predicted = Predictor(config, Ranks(), CPU).predict_views(model, data)
    assert all(len(t) == len(DIVES) for group in rows for t in group.values())
    assert predicted
    tubes = set()
    for number, dive in enumerate(DIVES):
        each = []
        with torch.no_grad():
            for clip, crop in np.ndindex(2, 10):
                batch = by_hand(config, model, dive, clip, crop)
                outputs = model(batch)
                tubes |= {batch.given["tube"].numpy().tobytes()} if "tube" in batch.given else set()
                found = outputs["logits"] if average == "logit" else None
                each.append(model.method.predict(outputs, batch.given) if found is None else {"logits": found})
        mean = {key: torch.stack([one[key][0].double() for one in each]).mean(dim=0) for key in each[0]}
        if average == "logit":
            mean = {"probability": mean["logits"].softmax(dim=0)}
        for key, values in mean.items():
            assert np.allclose(predicted[key][number], values, rtol=1e-4, atol=1e-5)
    assert method != "tsanet" or len(tubes) > 20  # boxes move with the crops and flips


def test_all_ranks_together_hold_each_view_once_and_the_view_of_a_validation_stays_what_it_is():
    config = tiny_config(
        "tsm", "classify", data_aug=True, test_crops=10, workers=0, frame_method="segments", batch_size=8
    )
    model = build_model(config, FACTS)
    data = data_for(config, model)
    of_ranks = [list(evaluation_batches(data, config, Ranks(rank, 3), CPU)) for rank in range(3)]
    assert len({len(batches) for batches in of_ranks}) == 1
    held = {
        int(i): clip
        for batches in of_ranks
        for b in batches
        if b
        for i, clip in zip(b.action_index, b.clips["clip"], strict=True)
    }
    assert sorted(held) == list(range(30))
    assert sum(len(b.action_index) for batches in of_ranks for b in batches if b) == 30
    # the crops of a clip are cut from frames that are read once; read apart they are the same
    for row in (0, 7, 29):
        clip = data.plan(0, row).sample.clips["clip"]
        assert torch.equal(held[row], apply_view(clip.view, FRAMES[np.array(clip.frames) - 1]))
    alone = data_for(config, model, all_views=False)
    plain = data_for(dataclasses.replace(config, test_crops=1), model)
    for index, dive in enumerate(DIVES):
        clip = alone.plan(0, index).sample.clips["clip"]
        assert clip == plain.plan(0, index).sample.clips["clip"] == data.plan(0, 10 * index).sample.clips["clip"]
        assert clip == FrameSource(config).plan(dive, None)


def test_flags_that_do_not_fit_are_refused(tmp_path: Path):
    for flags, text in (
        ({"test_crops": 10}, "--test_crops: without --data_aug True there are no crops"),
        ({"test_crops": 4, "data_aug": True}, "--test_crops 4: give 1, 3, 5 or 10"),
        ({"full_res": True, "data_aug": True}, "choose --model tsm"),
        ({"test_average": "logit"}, "nothing to average"),
        ({"test_average": "logit", "test_clips": 2}, "is for classes"),
        ({"test_clips": 2, "model": "features", "features": str(tmp_path / "f.npz")}, "reads no frames: leave --test_clips out"),
        ({"test_clips": 2, "method": "vspp", "evaluate": False}, "has no test split: leave --test_clips out"),
        ({"model": "tsm", "test_crops": 10, "full_res": True, "data_aug": True}, "give 1 or 3"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=text):
            config_of(**flags)


def test_a_trained_run_is_tested_with_ten_crops(train: Callable, tmp_path: Path):
    """The views are added to a run that is trained already: its epoch stays, its validation predictions are made again."""
    train("--run_name", "a", "--epochs", 2, "--data_aug", "True")
    run = tmp_path / "runs/a"
    read = lambda name: list(csv.DictReader((run / name).open()))  # noqa: E731
    before = read("val_predictions.csv")
    train("--run_name", "a", "--epochs", 2, "--data_aug", "True", "--test_crops", 10, "--evaluate", "True")
    summary = json.loads((run / "summary.json").read_text())
    assert summary["notes"] == ["mean of 1 clip x 10 crops"]
    after = read("val_predictions.csv")
    assert {row["views"] for row in after} == {"1 clip x 10 crops"}
    assert [row["epoch"] for row in after] == [row["epoch"] for row in before]
    assert [row["video"] for row in after] == [row["video"] for row in before]
    assert after != before
    refused = train("--run_name", "a", "--epochs", 2, "--data_aug", "True", "--test_crops", 3, check=False)
    assert refused.returncode == 2
    assert "was opened with 1 clip x 10 crops, not 1 clip x 3 crops" in refused.stderr
