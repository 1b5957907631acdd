"""The Scorer gives clips in memory the predictions that validation gives the same frames of an archive."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from data_preparation.archive import open_frames
from data_preparation.boxes import Boxes, boxes_file, write_boxes
from data_preparation.common.command_line import parse
from data_preparation.common.errors import UserError
from tests.conftest import data_flags
from tests.small import METHODS, VIDEO_MODELS, fits, judges_of, tiny_argv
from training import novelty
from training.config import TrainConfig
from training.data.batch import Rows
from training.data.dataset import ActionDataset
from training.data.sampling import needed_frames
from training.data.splits import Splits, load_splits
from training.engine.prediction import Predictor, as_arrays
from training.model import ScoringModel, build_model
from training.runtime import checkpoint
from training.runtime.ranks import Ranks
from training.runtime.run_folder import RunFolder, write_json
from training.scorer import Clip, Scorer
from training.tasks import task_of

CPU = torch.device("cpu")
PAIRS = {method: next(model for model in VIDEO_MODELS if fits(model, method)) for method in METHODS if any(fits(model, method) for model in VIDEO_MODELS)}  # fmt: skip


def run_of(folder: Path, dataset: Path, model: str, method: str, *flags: str) -> tuple[TrainConfig, Splits]:
    """The configuration of a tiny run on the drawn dives, each with a class and judges' scores."""
    more = ["--boxes", str(folder / "boxes")] if method == "tsanet" else []
    config = parse(TrainConfig, [*tiny_argv(model, method), *data_flags(dataset), "--workers", "0", *more, *flags])
    splits = load_splits(config)
    parts = {
        name: [
            dataclasses.replace(a, label=a.number % 3, judge_scores=judges_of(a.final_score, a.difficulty))
            for a in getattr(splits, name)[:count]
        ]
        for name, count in (("train", 12), ("val", 9))
    }
    facts = dataclasses.replace(splits.facts, classes=("good", "fair", "poor"))
    for video in {action.video for action in splits.known}:
        frames = np.arange(1, 20_000)
        corners = np.array([(10, 10), (50, 12), (52, 60), (12, 58)]) + (frames % 40)[:, None, None]
        write_boxes(boxes_file(folder / "boxes", video), Boxes(frames, corners.astype(float), 128, 72))
    return config, dataclasses.replace(splits, **parts, facts=facts)


def saved(folder: Path, config: TrainConfig, splits: Splits) -> tuple[RunFolder, ScoringModel]:
    """A run folder with untrained weights as its best checkpoint, and with the references or the fit that its method needs."""
    run = RunFolder(folder / "run")
    model = build_model(config, splits.facts)
    model.method.observe(splits.train)
    predictor = Predictor(config, Ranks(), CPU)
    data = ActionDataset(splits.train, config, model.method, augment=False, pool=splits.train)
    predictor.encode_references(model, data.references)
    if model.method.fits_features:
        rows = predictor.predict(model, data)
        model.method.fit(rows, rows)
    run.create(config)
    write_json(run.facts_file, splits.facts.record())
    position = {"epoch": 1, "best_epoch": 1, "best": 0.5}
    checkpoint.save(run.best_checkpoint, {"model": model.state_dict(), "position": position})
    return run, model


def clip_of(config: TrainConfig, action) -> Clip:
    """The frames of an action in its archive, in memory."""
    reader = open_frames(config.root_dir, action.video)
    first, last = needed_frames(action.start_frame, action.end_frame, config.frame_num, config.frame_method)
    numbers = np.arange(first, last + 1)
    unknown = dict(final_score=None, label=None, judge_scores=None)
    return Clip(np.stack([reader.image(n) for n in numbers]), dataclasses.replace(action, **unknown), numbers=numbers)


@pytest.mark.parametrize("method", PAIRS)
def test_a_clip_in_memory_is_scored_as_the_archive_is_in_validation(method: str, dataset: Path, tmp_path: Path):
    config, splits = run_of(tmp_path, dataset, PAIRS[method], method)
    run, model = saved(tmp_path, config, splits)
    if not task_of(config.task).has_test:
        with pytest.raises(UserError, match="pretraining"):
            Scorer.from_run(run.path, gpu=False)
        return
    data = ActionDataset(splits.val, config, model.method, augment=False, pool=splits.train)
    rows: Rows = Predictor(config, Ranks(), CPU).predict(model, data)
    wanted = as_arrays(model.method.predict(rows.outputs, rows.given))
    scorer = Scorer.from_run(run.path, gpu=False)
    found = scorer.predict([clip_of(config, action) for action in splits.val])
    values = task_of(config.task).values(wanted, splits.facts.classes)
    for prediction, one, action in zip(found, values, splits.val, strict=True):
        assert {name: prediction.values[name] for name in one} == one
        assert prediction.name == action.name
        assert prediction.low is prediction.high is prediction.classes is None
    assert "training.calibrate" in scorer.why_no_interval
    mean = scorer.predict([clip_of(config, action) for action in splits.val[:2]], clips_each=3)
    assert all(set(a.values) == set(b.values) for a, b in zip(mean, found, strict=False))


@pytest.mark.parametrize("flags", [("--full_res", "True"), ("--test_crops", "3"), ("--test_crops", "3", "--full_res", "True", "--test_clips", "2")])  # fmt: skip
def test_the_distance_is_that_of_the_view_of_validation(flags: tuple[str, ...], dataset: Path, tmp_path: Path):
    more = ("--data_aug", "True", "--frame_method", "dense", *flags)
    config, splits = run_of(tmp_path, dataset, "tsm", "regression", *more)
    run, model = saved(tmp_path, config, splits)
    predictor = Predictor(config, Ranks(), CPU)
    train, val = (
        novelty.describe_all(model, predictor, ActionDataset(part, config, model.method, augment=False))
        for part in (splits.train, splits.val)
    )
    scorer = dataclasses.replace(Scorer.from_run(run.path, gpu=False), novelty=novelty.fit(train, val))
    clips = []
    for action in splits.val:
        clip = clip_of(config, action)
        numbers = scorer.frames_of(clip.action, int(clip.numbers[-1]))  # all that is in memory
        clips.append(
            dataclasses.replace(clip, frames_THWC=clip.frames_THWC[numbers - clip.numbers[0]], numbers=numbers)
        )
    wanted = scorer.novelty.distances(val)
    assert np.allclose([found.distance for found in scorer.predict(clips)], wanted, rtol=1e-4)
    assert np.allclose(scorer.distances(clips), wanted, rtol=1e-4)


@pytest.mark.parametrize("frame_method", ["end_aligned", "end_aligned_spaced", "dense", "spaced_varied_new"])
def test_the_frames_that_are_read_are_enough(frame_method: str, dataset: Path, tmp_path: Path):
    config, splits = run_of(tmp_path, dataset, "timesformer", "regression", "--frame_method", frame_method)
    run, _ = saved(tmp_path, config, splits)
    scorer = Scorer.from_run(run.path, gpu=False)
    whole = [clip_of(config, action) for action in splits.val[:3]]
    sparse = []
    for clip in whole:
        numbers = scorer.frames_of(clip.action, int(clip.numbers[-1]), clips=1)
        sparse.append(
            dataclasses.replace(clip, frames_THWC=clip.frames_THWC[numbers - clip.numbers[0]], numbers=numbers)
        )
    assert scorer.predict(sparse) == scorer.predict(whole)
