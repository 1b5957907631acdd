"""The checks of launch.pipeline before it submits, without a cluster."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from data_preparation import annotations
from data_preparation.common.command_line import parse
from data_preparation.common.errors import UserError
from launch import pipeline, preflight
from launch.pipeline import PipelineConfig
from tests.conftest import REPOSITORY, data_flags, run_python
from training.config import TrainConfig


def test_the_annotations_are_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data = tmp_path / "data"
    run_python("-m", "data_preparation.synthetic", "--dataset", data, "--videos", 2, "--dives", 8, "--height", 72)
    (data / "whole_videos_frames").mkdir()
    flags = [*data_flags(data), "--runs_dir", str(tmp_path / "runs"), "--gpu", "False", "--batch_size", "2"]
    launch, training = PipelineConfig(gpus_per_node=0), parse(TrainConfig, flags)
    site = {"DEEPSPORTS_DATASET": str(data)}
    parsed: list[Path] = []
    rows = annotations._rows
    monkeypatch.setattr(annotations, "_rows", lambda path, *more: parsed.append(path) or rows(path, *more))
    assert pipeline.pipeline_faults(launch, training, site) == []
    found = pipeline.stages(launch, training, site, tmp_path)
    assert [(stage.name, stage.is_done) for stage in found][:2] == [("prepare", False), ("verify", False)]
    assert preflight.data_faults(training)
    assert parsed == [training.annotation_path]


def flag_file(path: Path, *flags: object) -> Path:
    """A file like model_train_config.sh that holds these flags."""
    words = " ".join(shlex.quote(str(word)) for word in flags)
    path.write_text(f"flags=({words})\nsource '{REPOSITORY}/job_files/with_flags.sh'\n")
    return path


def test_a_pretraining_comes_before_the_training_that_starts_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data = tmp_path / "data"
    run_python("-m", "data_preparation.synthetic", "--dataset", data, "--videos", 2, "--dives", 8, "--height", 72)
    (data / "whole_videos_frames").mkdir()
    common = [*data_flags(data), "--runs_dir", str(tmp_path / "runs"), "--gpu", "False", "--batch_size", "2"]
    pretext = ["--model", "timesformer", "--method", "vspp", "--run_name", "pretext"]
    file = flag_file(tmp_path / "pretext.sh", *common, *pretext)
    launch = PipelineConfig(gpus_per_node=0, pretrain=file)
    monkeypatch.setenv("DEEPSPORTS_HOME", str(REPOSITORY))
    pretraining = pipeline.read_pretraining(launch)
    assert pretraining is not None
    assert pretraining.method == "vspp"
    training = pipeline.starting_from(pretraining, parse(TrainConfig, [*common, "--run_name", "scores"]))
    assert training.weight_file == tmp_path / "runs" / "pretext" / "checkpoints" / "best.pt"
    site = {"DEEPSPORTS_DATASET": str(data)}
    assert pipeline.pipeline_faults(launch, training, site, pretraining) == []
    found = pipeline.stages(launch, training, site, tmp_path, pretraining)
    assert [stage.name for stage in found] == ["prepare", "verify", "pretrain", "train", "evaluate"]
    # each job waits for the one before
    submitted = []
    monkeypatch.setattr(
        pipeline.submit, "submit_training", lambda launch, config, site: submitted.append((config.run_name, launch.dependency)) or "7"
    )  # fmt: skip
    for stage, after in zip(found[2:4], ("5", "6"), strict=True):
        stage.submit(after)
    assert submitted == [("pretext", "afterok:5"), ("scores", "afterok:6")]
    # the pretraining alone: there is nothing to evaluate
    assert [stage.name for stage in pipeline.stages(launch, pretraining, site, tmp_path)] == [
        "prepare",
        "verify",
        "train",
    ]


def test_trainings_that_do_not_fit_together_are_refused(tmp_path: Path):
    common = ["--runs_dir", str(tmp_path), "--run_name", "one"]
    pretraining = parse(TrainConfig, [*common, "--method", "vspp"])
    training = parse(TrainConfig, [*common, "--model", "i3d", "--frame_num", "16", "--window_layout", "full", "--pretrained_model", "other.pth"])  # fmt: skip
    with pytest.raises(UserError) as refused:
        pipeline.starting_from(pretraining, training)
    same_folder, same_model, two_files = str(refused.value).splitlines()
    assert "the same run folder" in same_folder
    assert "--pretrain trains --model timesformer and the training has --model i3d" in same_model
    assert "--pretrained_model other.pth is not the best model of --pretrain" in two_files
    with pytest.raises(UserError, match=r"--pretrain .*none\.sh is not a file"):
        pipeline.read_pretraining(PipelineConfig(pretrain=tmp_path / "none.sh"))
