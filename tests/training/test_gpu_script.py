"""tests/gpu.sh without a card."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY


def gpu_script(*arguments: object) -> subprocess.CompletedProcess:
    command = ["bash", str(REPOSITORY / "tests" / "gpu.sh"), "--dry_run", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)


@pytest.mark.slow
def test_a_dry_run_passes_all_checks(tmp_path: Path):
    done = gpu_script("--out", tmp_path, "--budget_s", 850)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "gpu.json").read_text())
    rows = {row["name"]: row for row in results["rows"]}
    for name in (
        "timesformer, bf16",
        "soft ranks",
        "killed and resumed",
        "training.evaluate",
        "torchrun with one rank",
        "TimeSformer of the quick start, 8 frames of 64 against the reference",
    ):
        assert rows[name]["result"] == "pass", rows[name]
    assert rows["compiled"] == {**rows["compiled"], "result": "skipped", "figure": "no CUDA"}
    table = (tmp_path / "gpu.md").read_text()
    assert table in done.stdout
    assert all(f"| {name} | {row['result']} |" in table for name, row in rows.items())
    assert "--dry_run" in results["command"]


@pytest.mark.slow
def test_a_check_that_fails_leaves_the_others(tmp_path: Path):
    done = gpu_script("--out", tmp_path, "--only", "always_fails", "matrix_product")
    assert done.returncode == 1, done.stdout + done.stderr
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert [row["result"] for row in rows] == ["pass", "FAIL", "pass"]


@pytest.mark.slow
def test_no_time_left_skips_what_remains(tmp_path: Path):
    done = gpu_script("--out", tmp_path, "--only", "matrix_product", "--budget_s", 1)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" in (tmp_path / "gpu.md").read_text()
