"""What launch says, without a cluster: progress lines, states, the table, the flag file."""

from __future__ import annotations

import json
import math
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_preparation.cli import UserError, parse, to_argv
from launch import snapshot
from launch.begin import check_restart, free_port
from launch.config import LaunchConfig, absolute, read_flag_file, site_flags
from launch.progress import duration_text, progress_text
from launch.slurm import EndedJob, QueuedJob
from launch.status import COLUMNS, Cluster, run_folders, run_row, run_state, table
from launch.submit import slurm_parameters
from launch.sweep import grid_points, listed_points, named_points, varied
from tests.conftest import REPOSITORY, TINY_MODEL, run_python
from training.config import TrainConfig
from training.plots import draw_sweep
from training.run_folder import RunFolder

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
        ({**PROGRESS, "state": "failed"}, None, "FAILED", "failed"),
        ({**PROGRESS, "state": "failed"}, job("PENDING", "BeginTime"), "", "pending (BeginTime)"),
        ({**PROGRESS, "job_id": None, "host": socket.gethostname(), "pid": 2**22 + 1}, None, "", "killed"),
        ({**PROGRESS, "state": "finished"}, None, "COMPLETED", "finished"),
        ({**PROGRESS, "state": "interrupted"}, None, "", "interrupted"),
        ({**PROGRESS, "updated": 0.0}, None, "", "silent"),
    ],
)
def test_states_are_what_a_person_would_say(progress, queued, ended, state):
    how = EndedJob(ended, "1:00", "2:00", "n1") if ended else None
    assert run_state(progress, queued, how, now=1000.0) == state


def test_only_a_training_is_told_to_stop(tmp_path: Path):
    """A process number may be another program's by now."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.json").write_text("{}")
    sleep = "import time; time.sleep(60)"
    for words, name in ((["training.train"], "told to save"), ([], "nothing of")):
        process = subprocess.Popen([sys.executable, "-c", sleep, *words])
        while sleep.encode() not in Path(f"/proc/{process.pid}/cmdline").read_bytes():
            time.sleep(0.01)  # between fork and exec
        record = {**PROGRESS, "job_id": None, "host": socket.gethostname(), "pid": process.pid, "updated": time.time()}
        (tmp_path / "a" / "progress.json").write_text(json.dumps(record))
        assert run_state(record, None, None, time.time()) == ("running" if words else "killed")
        done = run_python("-m", "launch.status", "cancel", "a", "--runs_dir", tmp_path, check=False)
        assert name in done.stdout + done.stderr
        assert (process.wait(10) if words else process.poll()) == (-15 if words else None)
        process.kill()
        process.wait()


@pytest.mark.parametrize("content", ["[]", "3", "{}", '{"state": null}', '{"state": "running"}', "{", "\xff\xfe"])
@pytest.mark.parametrize("file", ["progress.json", "summary.json"])
def test_a_damaged_file_is_said_and_hides_no_other_run(tmp_path: Path, file: str, content: str):
    for name, progress in (("bad", PROGRESS), ("good", PROGRESS)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "progress.json").write_text(json.dumps(progress))
    (tmp_path / "bad" / file).write_bytes(content.encode("latin-1"))
    rows = [run_row(name, RunFolder(tmp_path / name), Cluster(), 1000.0) for name in ("bad", "good")]
    assert rows[0][0]["STATE"] == "damaged" or (file, content) in (("summary.json", "{}"), ("summary.json", "[]"))
    assert rows[1][0]["STATE"] == "running"


def three_runs(folder: Path) -> list[tuple[dict[str, str], str]]:
    """The rows of a run with a short name, one with a long name, and one that failed."""
    names = {"a": PROGRESS, "a_run_of_quite_a_long_name_as_sweeps_have": PROGRESS}
    names["c"] = {
        **PROGRESS,
        "state": "failed",
        "error": "the loss became nan: lower --learning_rate, or clip " + 40 * "x",
    }
    rows = []
    for name, progress in names.items():
        (folder / name).mkdir()
        (folder / name / "progress.json").write_text(json.dumps(progress))
        rows.append(run_row(name, RunFolder(folder / name), Cluster(), 1030.0))
    return rows


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200, math.inf])
def test_the_table_fits_the_terminal(tmp_path: Path, width: float):
    lines = table(three_runs(tmp_path), width).splitlines()
    assert max(map(len, lines)) <= width
    heads = [name for name in COLUMNS if re.search(rf"(^|  ){name}(  |$)", lines[0])]
    assert heads[:2] == ["RUN", "STATE"]
    assert len({line.index(word) for line, word in zip(lines[:3], ("STATE", "running", "running"), strict=True)}) == 1
    assert "failed" in lines[3]
    assert "the loss became nan" in lines[4] or width < 60
    assert ("wider window" in lines[-1]) == (len(heads) < len(COLUMNS))
    if width == math.inf:
        assert heads == list(COLUMNS)
        assert "0.730@2" in lines[1]
        assert lines[1].endswith("30s ago")
        assert "a_run_of_quite_a_long_name_as_sweeps_have" in lines[2]


def test_sweeps_are_shown_by_point(tmp_path: Path):
    for name in ("plain", "sweep/lr-1", "sweep/lr-2"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "sweep" / "sweep.json").write_text("{}")
    (tmp_path / ".jobs").mkdir()
    assert list(run_folders(tmp_path)) == ["plain", "sweep/lr-1", "sweep/lr-2"]


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


@given(
    st.dictionaries(
        st.sampled_from(["learning_rate", "seed", "epochs", "topology"]),
        st.lists(st.sampled_from(["1", "2 3", "4", "1e-5"]), min_size=1, max_size=3, unique=True),
        min_size=1,
    )
)
def test_a_grid_has_every_combination_once(axes: dict[str, list[str]]):
    points = grid_points([f"{name}={','.join(values)}" for name, values in axes.items()])
    assert len(points) == len(named_points(points)) == math.prod(map(len, axes.values()))
    assert varied(points) == {name for name, values in axes.items() if len(values) > 1}
    for point in points:
        assert all(" ".join(point[name]) in values for name, values in axes.items())


@pytest.mark.parametrize("grid", [["lr"], ["lr="], ["=1"], ["lr=1,,2"], ["lr=1", "lr=2"]])
def test_a_grid_that_is_none_is_named(grid: list[str]):
    with pytest.raises(UserError, match="--grid"):
        named_points(grid_points(grid))


def test_points_from_a_file():
    text = "--seed 1 --topology 512 256  # large\n\n--seed 2\n"
    points = listed_points(text)
    assert points == [{"seed": ["1"], "topology": ["512", "256"]}, {"seed": ["2"]}]
    assert list(named_points(points)) == ["seed-1_topology-512-256", "seed-2"]
    with pytest.raises(UserError, match="line 1 begins with 'seed'"):
        listed_points("seed 1")
    with pytest.raises(UserError, match="same folder"):
        named_points([*points, points[0]])


@pytest.mark.parametrize("states", [["finished", "failed", "running"], ["failed"]])
def test_the_plot_of_a_sweep_is_drawn_whatever_its_points(tmp_path: Path, states: list[str]):
    values = {"finished": 0.7, "running": 0.4, "failed": None}
    rows = [{"point": s, "learning_rate": f"1e-{i}", "seed": "0", "state": s, "best_val_spearman": values[s]}
            for i, s in enumerate(states)]  # fmt: skip
    draw_sweep(rows, ["learning_rate", "seed", "model", "epochs"], tmp_path / "sweep.png", "a sweep")
    assert Image.open(tmp_path / "sweep.png").size[0] > 1000


def test_a_start_that_leads_nowhere_is_refused(tmp_path: Path):
    job = tmp_path / "jobs" / "7"

    def start(restart: int, position: str, why: str, minutes: float = 0) -> None:
        check_restart(job, restart, 99, position)
        file = job / f"ended-{restart}" / "why"
        file.write_text(why)
        os.utime(file, (0, time.time() + 60 * minutes))

    killed, told = "a process was killed (signal 9)", "it was told to stop, and saved"
    for restart, (position, why) in enumerate([("a", killed), ("b", killed), ("b", told), ("b", told), ("b", told)]):
        start(restart, position, why)
    start(5, "b", killed)  # the second one that was killed there; being preempted early is nobody's fault
    with pytest.raises(UserError, match="started 6 times, and the last 5 starts saved no step after b"):
        start(6, "b", killed)
    for restart in range(6, 9):
        start(restart, "c", told, minutes=1)  # however long it waited in the queue between
    start(9, "c", told, minutes=60)
    (job / "ended-9" / "why").unlink()  # a node died
    start(10, "c", told, minutes=60)
    (job / "starts.jsonl").write_text((job / "starts.jsonl").read_text() + "garbage\n{}\n3\n")
    start(11, "c", told, minutes=60)
    with pytest.raises(UserError, match="started 12 times, and the last 6 starts saved no step after c"):
        start(12, "c", told)
    with pytest.raises(UserError, match="restarted 3 times"):
        check_restart(tmp_path / "8", 4, 3, "a")
    check_restart(job, 0, 9, "c")  # submitted anew with the same number: nothing is held against it


def test_a_time_limit_that_is_too_short_is_seen(tmp_path: Path):
    """Told to stop near its limit, a start had all the time there is, however short that was."""
    job = tmp_path / "jobs" / "7"
    for restart in range(2):
        check_restart(job, restart, 99, "the beginning")
        (job / f"ended-{restart}" / "why").write_text("it was told to stop, and saved (near its time limit)")
    with pytest.raises(UserError, match="7 started 2 times and saved no step after the beginning"):
        check_restart(job, 2, 99, "the beginning")


# status of srun, how each process ended, then: the script's own status, and what it writes down where it requeues
@pytest.mark.parametrize("left", ["1:40", "1:00:30"])
@pytest.mark.parametrize(
    ("status", "ends", "expected", "why"),
    [
        (0, ["rank0-0", "rank1-0"], 0, None),
        (75, ["rank0-75", "rank1-75"], 75, "it was told to stop, and saved"),
        (129, ["rank0-129", "rank1-129"], 129, "it was told to stop, and saved"),
        (143, ["rank0-143", "rank1-75"], 143, "it was told to stop, and saved"),
        (140, [], 140, "it was told to stop"),
        (140, ["rank0-75"], 140, "it was told to stop"),
        (75, [], 75, "it was told to stop"),
        (129, [], 129, "it was told to stop"),
        (143, [], 143, "it was told to stop"),
        (137, [], 137, "a process was killed (signal 9)"),
        (137, ["rank0-76"], 137, "a process was killed (signal 9)"),
        (76, ["rank0-76"], 76, "one of its processes was lost"),
        (1, [], 1, "its processes could not be started (srun's status 1)"),
        (2, ["rank0-2"], 2, None),
        (130, ["rank0-130", "rank1-130"], 130, None),
        (130, [], 130, None),
    ],
)
def test_what_the_batch_script_makes_of_an_end(tmp_path: Path, status, ends, expected, why, left):
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("scontrol", "scancel", "sleep"):  # they would end the job
        (tools / name).write_text(f'#!/bin/sh\necho "{name} $*" >>{tmp_path}/called\n')
    (tools / "squeue").write_text(f"#!/bin/sh\necho {left}\n")
    for tool in tools.iterdir():
        tool.chmod(0o755)
    (tmp_path / "ended-0").mkdir()
    for end in ends:
        (tmp_path / "ended-0" / end).touch()
    script = f"set -eu; deepsports_job={tmp_path}; deepsports_status={status}; source job_files/requeue.sh"
    env = {"PATH": f"{tools}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_NTASKS": "2"}
    done = subprocess.run(["bash", "-c", script], cwd=REPOSITORY, env=env, capture_output=True, text=True)
    assert done.returncode == expected, done.stderr
    called = (tmp_path / "called").read_text() if (tmp_path / "called").exists() else ""
    assert ("scontrol requeue 7" in called) == (why is not None)
    assert ("scancel 7" in called) == (status == 130)
    assert (tmp_path / "ended-0" / "why").exists() == (why is not None)
    if why:
        near = " (near its time limit)" if "told to stop" in why and left == "1:40" else ""
        assert (tmp_path / "ended-0" / "why").read_text().strip() == why + near


def test_a_free_port_is_free_and_the_jobs_own():
    port = free_port(123)
    with socket.socket() as other:
        other.bind(("", port))
        other.listen()
        assert free_port(123) != port
    assert free_port(123) == port


def test_the_snapshot_is_the_code(tmp_path: Path):
    code = snapshot.take(tmp_path)
    assert snapshot.take(tmp_path) == code == snapshot.place(tmp_path)
    assert (code / "training" / "engine.py").read_bytes() == (REPOSITORY / "training" / "engine.py").read_bytes()
    record = json.loads((code / "code.json").read_text())
    assert set(record) == {"code_revision", "code_changed"}
    assert (code / "code.diff").exists()
    done = subprocess.run(
        [sys.executable, "-c", "from training.run_folder import environment_record as e; print(e()['code_revision'])"],
        cwd=code, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == str(record["code_revision"])


def test_paths_mean_the_same_wherever_the_job_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    found = absolute(TrainConfig(runs_dir=Path("r"), pretrained_model="w.pyth", output=Path("losses.png")))
    assert found.runs_dir == tmp_path / "r"
    assert found.pretrained_model == str(tmp_path / "w.pyth")
    assert (found.captions_path, found.output) == ("none", Path("losses.png"))
    assert parse(TrainConfig, to_argv(found)) == found


def test_a_workstation_trains_in_the_background(dataset: Path, tmp_path: Path):
    """By submitit's LocalExecutor, with two processes that meet; told to stop, it saves; the same command goes on."""
    env = {"DEEPSPORTS_DATASET": str(dataset), "DEEPSPORTS_RUNS": str(tmp_path), "DEEPSPORTS_VENV": sys.prefix}
    command = [
        "-m",
        "launch.submit",
        "--config",
        "job_files/quickstart_config.sh",
        "--cluster",
        "local",
        "--gpus_per_node",
        0,
    ]
    command += ["--tasks_per_node", 2, "--forecast", "False", "--", *TINY_MODEL, "--lr_schedule", "constant"]
    progress = tmp_path / "quickstart" / "progress.json"

    def wait_for_state(*states: str) -> dict:
        deadline = time.monotonic() + 120
        while not (
            progress.exists() and (found := json.loads(progress.read_text()))["state"] in states and found["step"]
        ):
            assert time.monotonic() < deadline, [
                p.read_text() for p in (tmp_path / "quickstart" / "jobs").glob("*.out")
            ]
            time.sleep(0.1)
        return found

    out = run_python(*command, "--epochs", 500, env=env).stdout
    assert "job        process" in out
    wait_for_state("running")
    assert "told to save" in run_python("-m", "launch.status", "cancel", "quickstart", env=env).stdout
    stopped = wait_for_state("interrupted")
    assert 0 < stopped["epoch"] < 500 or stopped["step"]
    time.sleep(1)  # the processes end
    run_python(*command, "--epochs", stopped["epoch"] + 1, env=env)
    assert wait_for_state("finished")["epoch"] >= stopped["epoch"]
    assert "Resuming" in run_python("-m", "launch.status", "logs", "quickstart", "--follow", "False", env=env).stdout


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
