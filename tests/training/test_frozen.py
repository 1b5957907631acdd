"""Features of a frozen backbone that are computed once: which runs, and with which results."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from data_preparation.common.command_line import parse
from tests.conftest import data_flags
from tests.small import tiny_argv
from training.config import TrainConfig
from training.data.dataset import ActionDataset
from training.data.splits import load_splits
from training.engine.frozen import StoredFeatures, clips_never_change, passing_features
from training.model import build_model
from training.runtime import checkpoint
from training.runtime.run_folder import RunFolder

FROZEN = ["--freeze", True]
# the other methods read stages or maps of the backbone, choose their own frames, have other labels, or train without steps
COVERED = ("core", "musdl", "regression", "tpt", "usdl")


def losses_of(run: Path) -> list[tuple[float, float]]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(r["train_loss"], r["val_loss"]) for r in records if r["type"] == "epoch"]


@pytest.mark.parametrize("method", COVERED)
def test_outputs_from_stored_features_are_those_of_the_frames(dataset: Path, method: str):
    flags = [*data_flags(dataset), *tiny_argv("timesformer", method), "--freeze", "True", "--workers", "0"]
    config = parse(TrainConfig, [*flags, "--frame_method", "spaced_fixed"])
    splits = load_splits(config)
    actions = [dataclasses.replace(action, judge_scores=(7.0,) * 7) for action in splits.train]
    model = build_model(config, splits.facts)
    model.method.observe(actions)
    data = ActionDataset(actions, config, model.method, augment=True, pool=actions)
    assert clips_never_change(config, model, data)
    planned = [data.plan(0, index) for index in range(4)]
    batch = data.reader.__getitems__(planned).finish(torch.device("cpu"))
    model.train()
    with torch.no_grad():
        torch.manual_seed(0)
        outputs = model(batch)
        features = {}
        for name, clips in batch.clips.items():
            for each, clip in zip(planned, clips, strict=True):
                features[each.sample.clips[name].action.key] = model.backbone(model.prepare(clip[None]))[0]
    stored = data.reading(StoredFeatures(features))
    batch = stored.reader.__getitems__([stored.plan(0, index) for index in range(4)]).finish(torch.device("cpu"))
    with torch.no_grad(), passing_features([model.backbone]):
        torch.manual_seed(0)
        again = model(batch)
    assert outputs.keys() == again.keys()
    for name, output in outputs.items():
        torch.testing.assert_close(again[name], output, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "flags",
    [
        ["--freeze", "False"],
        ["--features_once", "False"],
        ["--flip", "True"],
        ["--data_aug", "True"],
        ["--augment", "randaugment"],
        ["--frame_method", "random"],
        ["--frame_method", "segments"],
    ],
    ids=" ".join,
)
def test_clips_that_change_are_read_in_every_epoch(dataset: Path, flags: list[str]):
    argv = [*data_flags(dataset), *tiny_argv("timesformer", "regression"), "--freeze", "True", *flags]
    config = parse(TrainConfig, argv)
    splits = load_splits(config)
    model = build_model(config, splits.facts)
    data = ActionDataset(splits.train, config, model.method, augment=True, pool=splits.train)
    assert not clips_never_change(config, model, data)


def test_a_resumed_run_is_the_undisturbed_one(train: Callable[..., object], tmp_path: Path):
    """The checkpoints hold the whole model, and the frozen part is that of the beginning."""
    train("--run_name", "whole", "--epochs", 4, *FROZEN)
    train("--run_name", "parts", "--epochs", 2, *FROZEN)
    train("--run_name", "parts", "--epochs", 4, *FROZEN)
    train("--run_name", "live", "--epochs", 4, *FROZEN, "--features_once", False)
    runs = tmp_path / "runs"
    assert losses_of(runs / "whole") == losses_of(runs / "parts")
    assert losses_of(runs / "whole") == [pytest.approx(pair, rel=1e-4) for pair in losses_of(runs / "live")]
    whole, parts, live = (
        checkpoint.load(RunFolder(runs / n).best_checkpoint)["model"] for n in ("whole", "parts", "live")
    )
    assert whole.keys() == parts.keys() == live.keys()
    for name, weight in whole.items():
        assert torch.equal(weight, parts[name]), name
        assert not name.startswith("backbone.") or torch.equal(weight, live[name]), name
    log = next((runs / "whole").rglob("rank0.log")).read_text()
    assert "computed in" in log
