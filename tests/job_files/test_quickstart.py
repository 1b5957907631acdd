"""The quick start, as a new user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY


@pytest.mark.slow
def test_the_quick_start_trains_evaluates_and_reuses_its_results(tmp_path: Path):
    """It renders, extracts, verifies, trains and evaluates: a small TimeSformer in two minutes on two cores."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("DEEPSPORTS_", "SLURM_"))}
    env |= {
        "DEEPSPORTS_VENV": sys.prefix,
        "DEEPSPORTS_SCRATCH": str(tmp_path),
        "DEEPSPORTS_RUNS": str(tmp_path / "runs"),
    }

    def quickstart() -> str:
        command = ["bash", str(REPOSITORY / "job_files" / "quickstart.sh")]
        done = subprocess.run(
            command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    out = quickstart()
    run = tmp_path / "runs" / "quickstart"
    test = json.loads((run / "summary.json").read_text())["test"]
    assert "GMAC per clip" in out
    assert "Expected memory: " in out
    assert test["spearman"] >= 0.9
    assert test["dives"] == 304
    assert f"Test Spearman {test['spearman']:.3f} (95 % interval" in out
    assert str(run / "losses.png") in out
    assert "Next:" in out

    again = quickstart()
    assert again.count("already extracted") == 8
    assert "Resuming" in again
    assert "not opened again" in again
    assert json.loads((run / "summary.json").read_text())["test"] == test
