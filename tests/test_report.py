"""The table of results: seeds together, other flags apart, other dives refused."""

from __future__ import annotations

import dataclasses
import statistics
from pathlib import Path

import pytest

from tests.conftest import run_python
from training.config import TrainConfig
from training.run_folder import RunFolder, write_json


def write_run(folder: Path, config: TrainConfig, spearman: float, tested: int = 9, **more: float) -> Path:
    run = RunFolder(folder)
    run.create(config)
    test = {"spearman": spearman, "r_l2_x100": 0.5, "mae": 4.0}
    # the last digits of a baseline depend on the seed's order of the training dives
    baselines = {"train mean": {"spearman": None, "r_l2_x100": 3.0 + config.seed * 1e-15, "mae": 11.0}}
    write_json(
        run.summary_file, {"test": test, "baselines": baselines, "method_metrics": more, "groups": {}, "checkpoint": {}}
    )
    write_json(run.splits_file, {"train": [], "val": [], "test": [[config.fold, i] for i in range(tested)]})
    return folder


def test_seeds_are_one_line(tmp_path: Path):
    values = [0.91, 0.93, 0.95]
    runs = [write_run(tmp_path / f"a-s{i}", TrainConfig(seed=i), v) for i, v in enumerate(values)]
    other = TrainConfig(seed=1, loss_spcoef_weight=0.5)
    runs.append(write_run(tmp_path / "b-s1", other, 0.97, tw_no_accuracy=0.75))
    runs.append(write_run(tmp_path / "c-s1", TrainConfig(seed=1, patience=3), 0.5))  # stopped early: not b's, not a's
    out = run_python("-m", "training.report", *runs).stdout
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if line.startswith("|")]
    assert cells[2][:5] == ["a", "timesformer", "regression", "3", f"0.930 ± {statistics.stdev(values):.3f}"]
    assert cells[3][0] == "b"
    assert cells[3][3:5] == ["1", "0.970"]
    assert cells[4][:4] == ["c", "timesformer", "regression", "1"]
    assert cells[5][0] == "*without looking: train mean*"
    assert cells[5][4] == "undefined"
    assert "9 test dives." in out
    assert "b also predicts: tw no accuracy 0.75." in out


def test_what_cannot_be_put_together_is_refused(tmp_path: Path):
    a = write_run(tmp_path / "a", TrainConfig(), 0.9)
    b = write_run(tmp_path / "b", dataclasses.replace(TrainConfig(), seed=1), 0.9, tested=8)
    unopened = tmp_path / "c"
    RunFolder(unopened).create(TrainConfig())
    damaged = write_run(tmp_path / "d", TrainConfig(), 0.9)
    RunFolder(damaged).summary_file.write_text("{}")
    odd = write_run(tmp_path / "e", TrainConfig(), 0.9)
    RunFolder(odd).config_file.write_text('{"batch_size": "eight"}')
    for runs, words in (
        ([a, b], "different dives"),
        ([a, a], "seed 0 of a has 2 runs"),
        ([damaged], "is damaged"),
        ([odd], "is damaged"),
        ([unopened], "has no result"),
        ([tmp_path], "holds no run"),
    ):
        done = run_python("-m", "training.report", *runs, check=False)
        assert done.returncode == 2
        assert words in done.stderr


def test_folds_are_one_line(tmp_path: Path):
    config = TrainConfig(split="event", folds=2)
    runs = [
        write_run(tmp_path / f"a-f{fold}-s{seed}", dataclasses.replace(config, fold=fold, seed=seed), value)
        for (fold, seed), value in {(1, 0): 0.8, (2, 0): 0.6, (1, 1): 0.9, (2, 1): 0.7}.items()
    ]
    out = run_python("-m", "training.report", *runs).stdout
    assert f"| a | timesformer | regression | 2 | 0.750 ± {statistics.stdev([0.7, 0.8]):.3f} |" in out
    assert "18 test dives, means over 2 folds of whole events." in out
    done = run_python("-m", "training.report", *runs[:3], check=False)
    assert done.returncode == 2
    assert "seed 1 of a-f1-s0 has 1 runs where 2 are expected" in done.stderr


@pytest.mark.parametrize("name", ["results", "training flags"])
def test_the_readme_has_a_place_for_its_tables(name: str):
    from tests.conftest import REPOSITORY

    text = (REPOSITORY / "README.md").read_text()
    assert f"<!-- {name} -->" in text
    assert f"<!-- end of {name} -->" in text
