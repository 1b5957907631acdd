"""A run of the first edition (one file for each backbone and method, all flags in one class) resumes with the present code.

tests/data/first_edition holds its folder after one epoch, and what that code logged in epochs 2 and 3 and in the test.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, data_flags, run_main
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
        assert row == {k: pytest.approx(v, rel=1e-6, abs=1e-6) if isinstance(v, float) else v for k, v in known.items()}
    test = json.loads((run / "summary.json").read_text())["test"]
    assert test["spearman"] == pytest.approx(expected["test"]["spearman"], rel=1e-6)
    assert test["mse"] == pytest.approx(expected["test"]["mse"], rel=1e-5)
