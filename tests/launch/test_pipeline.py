"""The checks of launch.pipeline before it submits, without a cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_preparation import annotations
from data_preparation.common.command_line import parse
from launch import pipeline, preflight
from launch.pipeline import PipelineConfig
from tests.conftest import data_flags, run_python
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
    monkeypatch.setattr(annotations, "_rows", lambda path: parsed.append(path) or rows(path))
    assert pipeline.pipeline_faults(launch, training, site) == []
    found = pipeline.stages(launch, training, site, tmp_path)
    assert [(stage.name, stage.is_done) for stage in found][:2] == [("prepare", False), ("verify", False)]
    assert preflight.data_faults(training)
    assert parsed == [training.annotation_path]
