"""The life of a job (launch.job) and the lines of its batch scripts, with Slurm's commands replaced by scripts."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
from pathlib import Path

import pytest

from data_preparation.common.errors import UserError
from launch import job
from launch.job import JOB_VARIABLE, Outcome, free_port, outcome, record_rank_end, record_start, recorded_statuses
from launch.submit import JOB_END
from tests.conftest import REPOSITORY
from training.runtime.statuses import Status, markdown_table

SAVED, STOPPED = "stopped by a signal, checkpoint saved", "stopped by a signal"
KILLED = "a rank was killed (signal 9)"


# -------------------------------------------------------------------------------------------------------------- starts


def test_a_restart_without_progress_is_refused(tmp_path: Path):
    folder = tmp_path / "jobs" / "7"

    def start(restart: int, position: str, signaled: bool, minutes: float = 0) -> None:
        record_start(folder, restart, 99, position)
        began = json.loads((folder / "starts.jsonl").read_text().splitlines()[-1])["time"]
        end = {"requeued": True, "signaled": signaled, "near_time_limit": False, "time": began + 60 * minutes}
        (folder / f"ended-{restart}" / "job.json").write_text(json.dumps(end))

    for restart, (position, signaled) in enumerate([("a", 0), ("b", 0), ("b", 1), ("b", 1), ("b", 1)]):
        start(restart, position, bool(signaled))
    start(5, "b", False)  # the second one that was killed there; those preempted early do not count
    with pytest.raises(UserError, match="started 6 times, and the last 5 starts saved no step after b"):
        start(6, "b", False)
    for restart in range(6, 9):
        start(restart, "c", True, minutes=1)
    start(9, "c", True, minutes=60)
    (folder / "ended-9" / "job.json").unlink()  # a node died
    start(10, "c", True, minutes=60)
    (folder / "starts.jsonl").write_text((folder / "starts.jsonl").read_text() + "garbage\n{}\n3\n")
    start(11, "c", True, minutes=60)
    with pytest.raises(UserError, match="started 12 times, and the last 6 starts saved no step after c"):
        start(12, "c", True)
    with pytest.raises(UserError, match="restarted 3 times"):
        record_start(tmp_path / "8", 4, 3, "a")
    record_start(folder, 0, 9, "c")  # a new job with the same id: the old starts do not count


def test_a_time_limit_that_is_too_short_is_refused(tmp_path: Path):
    """A start that was stopped near its limit had all the time there is, however short that was."""
    folder = tmp_path / "jobs" / "7"
    for restart in range(2):
        record_start(folder, restart, 99, "the beginning")
        end = {"requeued": True, "signaled": True, "near_time_limit": True, "time": 0}
        (folder / f"ended-{restart}" / "job.json").write_text(json.dumps(end))
    with pytest.raises(UserError, match="7 started 2 times and saved no step after the beginning"):
        record_start(folder, 2, 99, "the beginning")


def test_a_job_that_the_user_restarts_after_an_error_may_start(tmp_path: Path):
    folder = tmp_path / "jobs" / "7"
    for restart in range(4):
        record_start(folder, restart, 99, "the beginning")
        end = {"requeued": False, "signaled": False, "near_time_limit": False, "time": 0}
        (folder / f"ended-{restart}" / "job.json").write_text(json.dumps(end))


def test_a_free_port_is_free_and_the_jobs_own():
    port = free_port(123)
    with socket.socket() as other:
        other.bind(("", port))
        other.listen()
        assert free_port(123) != port
    assert free_port(123) == port


# ---------------------------------------------------------------------------------------------------------------- ends


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Scripts instead of Slurm's commands, which append each call to a file; returns that file. Files beside it change what
    they do: `state` has the job's state, `left` the time left, `failures` how often `scontrol requeue` fails."""
    tools, calls = tmp_path / "bin", tmp_path / "calls"
    tools.mkdir()
    scontrol = f"""#!/bin/sh
echo "scontrol $*" >>{calls}
case "$1" in
    show) echo "JobId=7 JobState=$(cat {tmp_path}/state)" ;;
    requeue)
        failures=$(cat {tmp_path}/failures)
        [ "$failures" -eq 0 ] || {{ echo $((failures - 1)) >{tmp_path}/failures; exit 1; }}
        ;;
esac
"""
    scripts = {
        "scontrol": scontrol,
        "scancel": f'#!/bin/sh\necho "scancel $*" >>{calls}\n',
        "squeue": f"#!/bin/sh\ncat {tmp_path}/left\n",
    }
    for name, script in scripts.items():
        (tools / name).write_text(script)
        (tools / name).chmod(0o755)
    for name, content in {"calls": "", "state": "RUNNING", "left": "1:00:30", "failures": "0"}.items():
        (tmp_path / name).write_text(content)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setattr(job.time, "sleep", lambda seconds: None)  # Slurm would kill the process now
    return calls


ENV = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2"}


# the status of srun; the statuses that ranks recorded; the reason to requeue, or None
@pytest.mark.parametrize("left", ["1:40", "1:00:30"])
@pytest.mark.parametrize(
    ("status", "ranks", "expected", "reason"),
    [
        (0, [0, 0], 0, None),
        (75, [75, 75], 75, SAVED),
        (129, [129, 129], 129, SAVED),
        (143, [143, 75], 143, SAVED),
        (143, [143], 143, STOPPED),  # one rank of two: the other one may not have stopped
        (140, [], 140, STOPPED),
        (140, [75], 140, SAVED),
        (137, [75], 137, SAVED),  # srun killed the slower rank
        (75, [], 75, STOPPED),
        (129, [], 129, STOPPED),
        (143, [], 143, STOPPED),
        (137, [], 137, KILLED),
        (137, [76], 137, KILLED),
        (76, [76], 76, "a rank or a worker was lost"),
        (1, [], 1, "srun could not start the ranks (status 1)"),
        (2, [2], 2, None),
        (137, [2], 2, None),
        (143, [70], 70, None),
        (130, [130, 130], 130, None),
        (130, [], 130, None),
    ],
)
def test_how_a_job_ends(tmp_path: Path, slurm: Path, status, ranks, expected, reason, left):
    (tmp_path / "left").write_text(left)
    folder = tmp_path / "ended-0"
    folder.mkdir()
    for rank, rank_status in enumerate(ranks):
        (folder / f"rank{rank}.json").write_text(json.dumps({"status": rank_status}))
    assert job.end(tmp_path, status, ENV) == expected
    calls = slurm.read_text()
    assert ("scontrol requeue 7" in calls) == (reason is not None)
    assert ("scancel 7" in calls) == (expected == 130)
    record = json.loads((folder / "job.json").read_text())
    assert (record["status"], record["requeued"]) == (expected, reason is not None)
    if reason:
        near = left == "1:40" and reason in (SAVED, STOPPED)
        assert (record["reason"], record["near_time_limit"]) == (reason, near)
        comment = f"requeued ({reason}{' (near its time limit)' if near else ''})"
        comment_call, requeue_call = calls.splitlines()[-2:]
        assert comment_call == f"scontrol update jobid=7 comment={comment}"
        assert requeue_call == "scontrol requeue 7"  # later, or squeue would show the old comment


def test_only_one_task_of_an_array_is_requeued(tmp_path: Path, slurm: Path):
    job.end(tmp_path, 137, {**ENV, "SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "3"})
    assert "scontrol requeue 5_3" in slurm.read_text().splitlines()


def test_a_cancelled_job_is_not_requeued(tmp_path: Path, slurm: Path):
    (tmp_path / "state").write_text("CANCELLED")
    assert job.end(tmp_path, 143, ENV) == 143
    assert "requeue" not in slurm.read_text()


def test_a_controller_that_does_not_answer_is_asked_again(tmp_path: Path, slurm: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "failures").write_text("4")
    job.end(tmp_path, 137, ENV)
    assert slurm.read_text().count("scontrol requeue 7") == 5
    assert "cannot be requeued" not in capsys.readouterr().err
    (tmp_path / "failures").write_text("5")
    job.end(tmp_path, 137, ENV)
    assert slurm.read_text().count("scontrol requeue 7") == 10
    assert "submit the run again to resume" in capsys.readouterr().err


def test_a_job_without_restarts_left_is_not_requeued(tmp_path: Path, slurm: Path, capsys: pytest.CaptureFixture):
    assert job.end(tmp_path, 137, {**ENV, "SLURM_RESTART_COUNT": "2", "DEEPSPORTS_REQUEUES": "2"}) == 137
    assert "requeue" not in slurm.read_text()
    assert "was restarted 2 times already: submit the run again to resume" in capsys.readouterr().err


def test_a_rank_records_its_end_also_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(path: Path, content: object) -> None:
        raise UserError(f"{path} could not be written: make room on that disk")

    (tmp_path / "ended-0").mkdir()
    monkeypatch.setenv(JOB_VARIABLE, str(tmp_path))
    record_rank_end(Status.STOPPED)
    monkeypatch.setenv("SLURM_PROCID", "1")
    monkeypatch.setattr(job, "write_json", full)
    record_rank_end(Status.USER_ERROR)
    assert {path.name for path in (tmp_path / "ended-0").iterdir()} == {"rank0.json", "rank1-2"}
    assert sorted(recorded_statuses(tmp_path / "ended-0")) == [Status.USER_ERROR, Status.STOPPED]
    record = json.loads((tmp_path / "ended-0" / "rank0.json").read_text())
    assert record == {"status": 75, "reason": Status.STOPPED.meaning}


def test_a_status_prints_as_a_number():
    assert [str(Status.USER_ERROR), f"{Status.BUG}"] == ["2", "70"]  # the batch script exits with it


def test_the_table_of_statuses_says_what_is_requeued():
    for status in Status:
        assert outcome(status, [], 1).requeued == status.requeued
    assert outcome(139, [], 1) == Outcome(139, "a rank was killed (signal 11)", requeued=True)
    assert markdown_table().count("\n") == 2 + len(Status)


# ------------------------------------------------------------------------------------------------------- batch scripts


@pytest.mark.parametrize("status", [0, 76, 137])
def test_without_python_the_job_ends_with_the_status_of_srun(tmp_path: Path, status: int):
    for name, script in {"python": "exit 127", "srun": f"exit {status}"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    lines = "\n".join(["srun", *JOB_END])
    done = subprocess.run(["bash", "-c", lines], env={"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    assert done.returncode == status


def test_both_entry_points_end_a_job_in_the_same_way():
    lines = [line.split(" # ")[0] for line in (REPOSITORY / "job_files" / "train_model.job").read_text().splitlines()]
    assert lines[-2:] == JOB_END[1:]


def test_job_files_find_the_repository_in_the_same_way():
    texts = [path.read_text() for path in sorted((REPOSITORY / "job_files").glob("*.job"))]
    blocks = {re.search(r"^set -euo pipefail\n.*preamble\.sh\" ", text, re.MULTILINE | re.DOTALL)[0] for text in texts}
    assert len(texts) == 4
    assert len(blocks) == 1


@pytest.mark.parametrize("name", ["train_model", "evaluate_model", "prepare_dataset", "verify_dataset"])
def test_a_job_file_without_slurm_names_the_command_to_use(tmp_path: Path, name: str):
    env = {
        variable: value for variable, value in os.environ.items() if not variable.startswith(("SLURM_", "DEEPSPORTS_"))
    }
    command = ["bash", str(REPOSITORY / "job_files" / f"{name}.job")]
    done = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True)
    assert done.returncode == 2
    assert re.fullmatch(r"error: this is a job file: submit it with sbatch; without Slurm: .+\n", done.stderr)
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 2
    assert f"error: {tmp_path} is not the DeepSports folder" in done.stderr


def test_hold_signals_uses_the_statuses_of_the_table():
    traps = re.findall(
        r"^trap 'exit (\d+)' (\w+)$", (REPOSITORY / "job_files" / "hold_signals.sh").read_text(), re.MULTILINE
    )
    expected = {"USR2": Status.STOPPED, "TERM": Status.TERMINATED, "HUP": Status.HANGUP, "INT": Status.INTERRUPTED}
    assert {name: int(number) for number, name in traps} == expected
