"""A run of the first edition (one file for each backbone and method, all flags in one class) resumes with the present code.

tests/data/first_edition holds its folder after one epoch, and what that code logged in epochs 2 and 3 and in the test.
"""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from launch.status import Cluster, run_row
from tests.conftest import REPOSITORY, data_flags, run_main
from training.runtime.run_folder import RunFolder
from training.runtime.seeding import one_thread

DATA = REPOSITORY / "tests" / "data" / "first_edition"
FLAGS = [
    "--spatial_size", "32", "--patch_size", "16", "--embed_dim", "16", "--depth", "1", "--num_heads", "2",
    "--topology", "8", "--dropout", "0.1", "--activation", "GELU", "--drop_path", "0.2", "--frame_num", "4",
    "--frame_method", "spaced_varied_new", "--data_aug", "True", "--batch_size", "8", "--learning_rate", "0.002",
    "--workers", "0", "--gpu", "False", "--loss_spcoef_weight", "0.1", "--ema", "0.9", "--clip_grad", "1",
    "--warmup_steps", "2", "--log_every", "1", "--amsgrad", "True",
]  # fmt: skip


def records(path: Path) -> list[dict]:
    times = {"seconds", "data_s", "step_s"}
    return [{k: v for k, v in json.loads(line).items() if k not in times} for line in path.read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("resumed", [True, False])
def test_losses_are_those_of_the_first_edition(dataset: Path, tmp_path: Path, resumed: bool):
    """With its flags, resumed from its run folder and from scratch."""
    run = tmp_path / "first_edition"
    if resumed:
        shutil.copytree(DATA, run)
    places = ["--runs_dir", tmp_path, "--run_name", "first_edition"]
    with one_thread():
        run_main("training.train", *data_flags(dataset), *places, *FLAGS, "--epochs", 3, "--evaluate", "True")
    expected = json.loads((DATA / "expected.json").read_text())
    found = records(run / "metrics.jsonl")
    assert len(found) == len(expected["metrics"])
    for row, known in zip(found, expected["metrics"], strict=True):
        # The predictions hardly differ after three epochs, so rounding, which depends on the processor, shows a hundred times larger
        # in their correlations. A tenth of one is part of the loss of the validation
        limits = dict.fromkeys(known, 1e-6) | {"val_pearson": 2e-4, "val_loss_soft_spearman": 2e-4, "val_loss": 5e-6}
        assert row == {
            k: pytest.approx(v, rel=limits[k], abs=limits[k]) if isinstance(v, float) else v for k, v in known.items()
        }
    test = json.loads((run / "summary.json").read_text())["test"]
    assert test["spearman"] == pytest.approx(expected["test"]["spearman"], rel=1e-6)
    assert test["spearman_ci95"] == pytest.approx(expected["test"]["spearman_ci95"], rel=1e-6)
    assert test["mse"] == pytest.approx(expected["test"]["mse"], rel=1e-5)


def test_results_of_the_first_edition_are_read_and_compared(tmp_path: Path):
    """Its summary.json names no task, and its predictions.csv names the number of an action "dive"."""
    rng = np.random.default_rng(0)
    true = rng.normal(60, 12, 16)
    test = json.loads((DATA / "expected.json").read_text())["test"]
    for name, noise in (("old", 6), ("better", 2)):
        run = tmp_path / name
        shutil.copytree(DATA, run)
        with (run / "predictions.csv").open("w") as file:
            writer = csv.writer(file)
            writer.writerow(
                ["video", "dive", "start_frame", "end_frame", "difficulty", "true_score", "predicted_score"]
            )
            writer.writerows([1 + i // 9, i, 1, 9, 3.0, y, y + noise * rng.normal()] for i, y in enumerate(true))
        summary = {"checkpoint": {"epoch": 1, "val_spearman": -0.6}, "test": test, "method_metrics": {}, "groups": {}}
        summary["baselines"] = {"train mean": {"spearman": None, "r_l2_x100": 3.0, "mae": 9.0}}
        (run / "summary.json").write_text(json.dumps(summary))
    out = run_main("training.evaluate", "--run", tmp_path / "old").stdout
    assert "Test Spearman 0.144 (95 % interval -0.441 to 0.684)" in out
    assert (
        "16 test actions, paired bootstrap"
        in run_main("training.compare", tmp_path / "old", tmp_path / "better").stdout
    )
    assert "| 0.144 |" in run_main("training.report", tmp_path / "old").stdout
    cells, error = run_row("old", RunFolder(tmp_path / "old"), Cluster(), 0.0)
    assert (cells["VAL"], cells["BEST"], cells["TEST"], error) == ("rho -0.633", "-0.633@1", "0.144", "")
