"""What launch says, without a cluster: progress lines, states, the table, the flag file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_preparation.cli import UserError, parse
from launch.config import LaunchConfig, read_flag_file, site_flags
from launch.progress import duration_text, progress_text
from launch.slurm import QueuedJob
from launch.status import HEADER, run_row, run_state, table
from launch.submit import slurm_parameters
from tests.conftest import REPOSITORY, TINY_MODEL, run_python

PROGRESS = {
    "state": "running", "epoch": 3, "epochs": 20, "step": 318, "steps": 2120, "train_loss": 0.41, "val_spearman": 0.71,
    "best_epoch": 2, "best_spearman": 0.73, "eta_s": 4340.0, "updated": 1000.0, "job_id": "7",
}  # fmt: skip


def job(state: str, reason: str = "None") -> QueuedJob:
    return QueuedJob("7", "deepsports-a", state, reason, "1:00", "2:00:00", "n1")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (float("nan"), "-"), (9.7, "9s"), (60, "1m"), (3599, "59m"), (4340, "1h12m"), (200_000, "2d07h")],
)
def test_durations(seconds, text):
    assert duration_text(seconds) == text


def test_the_comment_is_one_plain_line():
    assert progress_text(PROGRESS) == "running epoch 3/20 step 318/2120 rho 0.710 best 0.730@2 eta 1h12m"
    early = {**PROGRESS, "epoch": 0, "val_spearman": None, "best_epoch": 0, "eta_s": None}
    assert progress_text(early) == "running epoch 0/20 step 318/2120 eta -"


@pytest.mark.parametrize(
    ("progress", "queued", "ended", "state"),
    [
        (PROGRESS, job("RUNNING"), "", "running"),
        (PROGRESS, job("PENDING", "BeginTime"), "", "pending (BeginTime)"),
        (None, job("PENDING", "Priority"), "", "pending (Priority)"),
        (None, None, "FAILED", "failed"),
        (None, None, "", "no progress yet"),
        (PROGRESS, None, "TIMEOUT", "timeout"),
        ({**PROGRESS, "state": "finished"}, None, "COMPLETED", "finished"),
        ({**PROGRESS, "state": "interrupted"}, None, "", "interrupted"),
        ({**PROGRESS, "updated": 0.0}, None, "", "silent"),
    ],
)
def test_states_are_what_a_person_would_say(progress, queued, ended, state):
    assert run_state(progress, queued, ended, now=1000.0) == state


def test_the_table_lines_up(tmp_path: Path):
    for name in ("a", "a_long_name"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "progress.json").write_text(json.dumps(PROGRESS))
    rows = [run_row(tmp_path / n, {}, False, 1030.0) for n in ("a", "a_long_name")]
    lines = table([HEADER, *rows]).splitlines()
    assert len({line.index(c) for line, c in zip(lines, ("STATE", "running", "running"), strict=True)}) == 1
    assert "0.730@2" in lines[1]
    assert lines[1].endswith("30s ago")


def test_status_without_slurm_says_what_it_cannot_know(tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.json").write_text("{}")
    done = run_python("-m", "launch.status", "--runs_dir", tmp_path, env={"PATH": "/nowhere"})
    assert "no progress yet" in done.stdout
    assert "not known" in done.stdout
    missing = run_python("-m", "launch.status", "--runs_dir", tmp_path / "none", check=False)
    assert missing.returncode == 2


def test_flags_go_before_the_sites_values_before_defaults():
    site = {"SBATCH_PARTITION": "sites", "SBATCH_ACCOUNT": "project", "DEEPSPORTS_TIME_MIN": "300"}

    def parameters(*argv: str) -> dict:
        return slurm_parameters(parse(LaunchConfig, [*site_flags(site), *argv]), "x", [])

    found = parameters()
    assert (found["partition"], found["account"], found["time"]) == ("sites", "project", 300)
    assert found["additional_parameters"] == {"requeue": True}
    found = parameters("--partition", "mine", "--account", "me", "--gpus_per_node", "2", "--gpu_type", "a100")
    assert (found["partition"], found["account"]) == ("mine", "me")
    assert (found["gpus_per_node"], found["ntasks_per_node"], found["mem"]) == ("a100:2", 2, "64GB")
    assert "partition" not in slurm_parameters(LaunchConfig(), "x", [])
    assert "--gpu_bind=closest" not in found["srun_args"]
    assert "--gpu-bind=closest" in parameters("--gpu_bind", "closest")["srun_args"]
    waiting = parameters("--dependency", "afterok:7", "--mail", "me@uni", "--exclude", "n1", "--qos", "long")
    assert waiting["additional_parameters"]["kill-on-invalid-dep"] == "yes"
    assert (waiting["dependency"], waiting["mail_user"], waiting["exclude"], waiting["qos"]) == (
        "afterok:7", "me@uni", "n1", "long",
    )  # fmt: skip


def test_a_broken_flag_file_is_named(tmp_path: Path):
    (tmp_path / "broken.sh").write_text("flags=(--epochs 3\n")
    for name, words in (("broken.sh", "cannot be read as bash"), ("missing.sh", "is no file")):
        with pytest.raises(UserError, match=words):
            read_flag_file(tmp_path / name)


def test_the_flag_file_is_a_door_of_its_own(dataset: Path, tmp_path: Path):
    """`bash FLAGFILE [more flags]` trains here, and fails as a command when the training fails."""
    env = {
        **os.environ,
        "DEEPSPORTS_DATASET": str(dataset),
        "DEEPSPORTS_RUNS": str(tmp_path / "runs"),
        "DEEPSPORTS_VENV": sys.prefix,
    }

    def door(*flags: str) -> subprocess.CompletedProcess:
        command = ["bash", str(REPOSITORY / "job_files" / "quickstart_config.sh"), *TINY_MODEL, *flags]
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)

    done = door("--epochs", "1", "--run_name", "here")
    assert done.returncode == 0, done.stderr
    assert "Test Spearman" in done.stderr
    assert (tmp_path / "runs" / "here" / "losses.png").exists()
    done = door("--epochs", "none")
    assert done.returncode == 2
    assert "--epochs" in done.stderr
