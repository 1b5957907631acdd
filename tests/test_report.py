"""The table of results: seeds together, other flags apart, other dives refused."""

from __future__ import annotations

import dataclasses
import statistics
from pathlib import Path

import pytest

from tests.conftest import run_python
from training.config import TrainConfig
from training.run_folder import RunFolder, write_json

BASELINES = {"train mean": {"spearman": None, "r_l2_x100": 3.0, "mae": 11.0}}


def write_run(folder: Path, config: TrainConfig, spearman: float, baselines: dict = BASELINES, **more: float) -> Path:
    run = RunFolder(folder)
    run.create(config)
    test = {"spearman": spearman, "r_l2_x100": 0.5, "mae": 4.0}
    write_json(run.summary_file, {"test": test, "baselines": baselines, "method_metrics": more})
    return folder


def test_seeds_are_one_line(tmp_path: Path):
    values = [0.91, 0.93, 0.95]
    runs = [write_run(tmp_path / f"a-s{i}", TrainConfig(seed=i), v) for i, v in enumerate(values)]
    other = TrainConfig(seed=1, loss_spcoef_weight=0.5)
    runs.append(write_run(tmp_path / "b-s1", other, 0.97, tw_no_accuracy=0.75))
    out = run_python("-m", "training.report", *runs).stdout
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if line.startswith("|")]
    assert cells[2][:5] == ["a", "timesformer", "regression", "3", f"0.930 ± {statistics.stdev(values):.3f}"]
    assert cells[3][0] == "b"
    assert cells[3][3:5] == ["1", "0.970"]
    assert cells[4][0] == "*without looking: train mean*"
    assert cells[4][4] == "undefined"
    assert "b also predicts: tw no accuracy 0.75." in out


def test_what_cannot_be_put_together_is_refused(tmp_path: Path):
    a = write_run(tmp_path / "a", TrainConfig(), 0.9)
    elsewhere = {"train mean": {"spearman": None, "r_l2_x100": 2.0, "mae": 9.0}}
    b = write_run(tmp_path / "b", dataclasses.replace(TrainConfig(), seed=1), 0.9, elsewhere)
    unopened = tmp_path / "c"
    RunFolder(unopened).create(TrainConfig())
    for runs, words in (([a, b], "different dives"), ([unopened], "has no result"), ([tmp_path], "holds no run")):
        done = run_python("-m", "training.report", *runs, check=False)
        assert done.returncode == 2
        assert words in done.stderr


@pytest.mark.parametrize("name", ["results", "training flags"])
def test_the_readme_has_a_place_for_its_tables(name: str):
    from tests.conftest import REPOSITORY

    text = (REPOSITORY / "README.md").read_text()
    assert f"<!-- {name} -->" in text
    assert f"<!-- end of {name} -->" in text
