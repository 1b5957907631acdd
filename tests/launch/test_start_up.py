"""launch.start_up, with texts that Slurm and a training have printed."""

from __future__ import annotations

import json
import os
from datetime import datetime
from pathlib import Path

import pytest

from data_preparation.common.errors import UserError
from launch import start_up
from launch.slurm import JobTimes

ACCOUNTED = """21|2026-11-26T22:27:40|2026-11-26T22:27:41|2026-11-26T22:27:47
21|2026-11-26T22:28:09|2026-11-26T22:28:13|2026-11-26T22:28:13
21|2026-11-26T22:28:45|2026-11-26T22:28:49|Unknown
"""
OF_CONTROLLER = "JobId=21 JobName=x JobState=RUNNING SubmitTime=2026-11-26T22:28:09 EligibleTime=2026-11-26T22:28:13 AccrueTime=Unknown StartTime=2026-11-26T22:28:13 EndTime=Unknown\n"
LOG = """2026-11-26 22:28:02,503 INFO    Device CPU (1 threads), fp32, 2 ranks (Slurm)
2026-11-26 22:28:03,750 INFO    Start-up: 14.90 s from the start of the process to the end of the first step (imports 4.24, checks of the machine 9.66, first step 1.00)
"""


def begun(text: str) -> float:
    return datetime.fromisoformat(f"2026-11-26 {text}").timestamp()


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder with a run of two starts, of which only the first one has taken a step."""
    job = tmp_path / "runs" / "a" / "jobs" / "21"
    job.mkdir(parents=True)
    starts = [{"restart": i, "position": "x", "time": begun(t)} for i, t in enumerate(["22:27:48.750", "22:28:14.2"])]
    (job / "starts.jsonl").write_text("".join(json.dumps(start) + "\n" for start in starts))
    (job / "rank0.log").write_text(LOG)
    return tmp_path / "runs"


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for scripts instead of Slurm's commands."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def write(tools: Path, name: str, text: str, status: int = 0) -> None:
    (tools / name).write_text(f"#!/bin/sh\ncat <<'E'\n{text}E\necho '{name}: error: it is off' >&2\nexit {status}\n")
    (tools / name).chmod(0o755)


@pytest.mark.parametrize("accounting", [True, False])
def test_each_start_is_a_row_and_what_is_unknown_is_named(
    runs: Path, tools: Path, capsys: pytest.CaptureFixture, accounting: bool
):
    write(tools, "sacct", ACCOUNTED if accounting else "", 0 if accounting else 1)
    write(tools, "scontrol", OF_CONTROLLER)
    assert start_up.main(["--run", "a", "--runs_dir", str(runs)]) == 0
    head, first, second, *unknown = capsys.readouterr().out.splitlines()
    assert head.split() == ["START", *start_up.COLUMNS, "PARTS"]
    known = ["0", "1.0", "6.0", "1.8", "0.1", "14.9", "23.8"] if accounting else ["0", *"---", "0.1", "14.9", "-"]
    assert first.split()[:7] == known
    assert first.endswith("imports 4.24, checks of the machine 9.66, first step 1.00")
    assert second.split() == ["1", "4.0", "0.0", "1.2", *"----"]
    assert [line.split(" are unknown")[0] for line in unknown] == [
        *([] if accounting else ["HELD, QUEUE, SCRIPT and TOTAL of start 0"]),
        "SRUN, PROCESS and TOTAL of start 1",
    ]


def test_without_slurm_the_reason_is_named(runs: Path, tools: Path, capsys: pytest.CaptureFixture):
    for name in ("sacct", "scontrol"):
        write(tools, name, "", 1)
    start_up.main(["--run", "a", "--job", "21", "--runs_dir", str(runs)])
    assert "TOTAL of start 0, 1 are unknown: Slurm does not tell (sacct: it is off)" in capsys.readouterr().out


def test_a_job_that_has_not_started_is_refused(runs: Path):
    with pytest.raises(UserError, match=r"job 22 of .* has not started: give"):
        start_up.main(["--run", "a", "--job", "22", "--runs_dir", str(runs)])


def test_a_later_eligible_time_is_that_of_a_requeue():
    """As accounting has given the first start of a job that was requeued."""
    row = start_up.start_row(
        begun("22:28:02"), float("inf"), [JobTimes(*map(begun, ("22:28:00", "22:28:24", "22:28:00")))], []
    )
    assert (row["HELD"], row["QUEUE"], row["SCRIPT"]) == ("0.0", "0.0", "2.0")
