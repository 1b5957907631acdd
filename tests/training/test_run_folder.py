"""Whether a training can resume in a run folder: submission and training give the same answer."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from data_preparation.common.errors import UserError
from launch import preflight
from launch.config import LaunchConfig
from launch.sweep import _without_new_epochs
from training.config import TrainConfig
from training.data.splits import Splits
from training.runtime.run_folder import RunFolder, resume_faults, write_json
from training.train import open_run

NO_DIVES = Splits([], [], [])
CONFIG = TrainConfig(run_name="a", epochs=3, gpu=False)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[RunFolder, TrainConfig]:
    """A run that has saved a checkpoint, and its configuration."""
    config = replace(CONFIG, runs_dir=tmp_path)
    run = RunFolder(config.run_dir)
    run.create(config)
    write_json(run.splits_file, NO_DIVES.record())
    run.checkpoint_file(1, 4).write_bytes(b"")
    return run, config


def told_before(config: TrainConfig) -> tuple[list[str], list[str]]:
    """(faults, notes) of a submission."""
    faults: list[str] = []
    notes: list[str] = []
    with preflight.checking(LaunchConfig(forecast=False, gpus_per_node=0), config, faults, notes):
        pass
    return faults, notes


@pytest.mark.parametrize(
    ("changes", "is_opened", "words"),
    [
        ({"resume": False}, False, ["--resume is False"]),
        ({"learning_rate": 0.5, "workers": 7}, False, ["--learning_rate: .* -> 0.5.*these may differ: --workers: .* -> 7"]),
        ({"epochs": 9}, True, ["9 epochs instead of 3 would be chosen after seeing it"]),
        ({"epochs": 9, "seed": 5}, True, ["--seed: .* -> 5", "would be chosen after seeing it"]),
    ],
)  # fmt: skip
def test_submission_and_training_give_the_same_reasons_not_to_resume(
    saved: tuple[RunFolder, TrainConfig], changes: dict, is_opened: bool, words: list[str]
):
    run, config = saved
    if is_opened:
        write_json(run.summary_file, {})
    config = replace(config, lr_schedule="constant", **changes)
    run.create(replace(CONFIG, runs_dir=config.runs_dir, lr_schedule="constant"))
    faults, _ = resume_faults(run, config)
    assert len(faults) == len(words)
    with pytest.raises(UserError) as refusal:
        open_run(run, config, NO_DIVES, {})
    assert str(refusal.value).splitlines() == faults
    assert [fault for fault in told_before(config)[0] if fault in faults] == faults
    for fault, expected in zip(faults, words, strict=True):
        assert fault.count(str(run.path)) == 1
        assert re.search(expected, fault)


def test_submission_reports_flags_that_may_differ(saved: tuple[RunFolder, TrainConfig]):
    run, config = saved
    assert resume_faults(run, config) == ([], [])
    config = replace(config, workers=7)
    faults, (free,) = resume_faults(run, config)
    assert (faults, free) == ([], f"--workers: {CONFIG.workers} -> 7")
    assert any(free in note for note in told_before(config)[1])


def test_a_run_that_never_saved_forbids_nothing(tmp_path: Path):
    config = replace(CONFIG, runs_dir=tmp_path)
    run = RunFolder(config.run_dir)
    assert resume_faults(run, config) == ([], [])
    run.create(config)
    assert resume_faults(run, replace(config, seed=5, resume=False)) == ([], [])


def test_a_damaged_configuration_is_reported_with_its_file(saved: tuple[RunFolder, TrainConfig]):
    run, config = saved
    for content in ("{", "{}", '{"epochs": "x"}', '{"nonsense": 1}'):
        run.config_file.write_text(content)
        (fault,), _ = resume_faults(run, config)
        assert str(run.config_file) in fault
        with pytest.raises(UserError, match=r"config\.json"):
            open_run(run, config, NO_DIVES, {})


def test_an_opened_point_of_a_sweep_stays_unchanged_and_the_others_resume(saved: tuple[RunFolder, TrainConfig]):
    run, config = saved
    longer = replace(config, epochs=9)
    assert _without_new_epochs(longer) == longer
    write_json(run.summary_file, {})
    assert _without_new_epochs(longer) == config
    assert _without_new_epochs(replace(longer, seed=5)) == replace(config, seed=5)
    run.config_file.write_text("{")
    assert _without_new_epochs(longer) == longer
