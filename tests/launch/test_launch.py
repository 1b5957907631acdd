"""launch without a cluster: progress, states, the table of runs, flags, sweeps, requests."""

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

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_preparation.common.command_line import parse, to_argv
from data_preparation.common.errors import UserError
from launch import snapshot, status, submit, sweep
from launch.config import LaunchConfig, absolute, read_flag_file, site_flags
from launch.fitting import Request, excess, gpu_counts, host_names, parse_nodes, parse_partitions
from launch.job import begin
from launch.progress import clock_text, duration_text, progress_text, slurm_seconds, starting_text
from launch.slurm import EndedJob, QueuedJob, array_tasks
from launch.status import (
    COLUMNS,
    Cluster,
    error_lines,
    last_error_line,
    log_files,
    overview,
    run_folders,
    run_row,
    run_state,
    split_patterns,
    table,
)
from launch.submit import slurm_parameters
from launch.sweep import grid_points, listed_points, named_points, varied
from tests.conftest import REPOSITORY, TINY_MODEL, run_python
from training.config import TrainConfig
from training.plots import draw_sweep
from training.runtime.run_folder import RunFolder
from training.runtime.run_progress import RunProgress
from training.tasks import task_of

PROGRESS = {
    "state": "running", "epoch": 3, "epochs": 20, "step": 318, "steps": 2120, "train_loss": 0.41, "metric": "rho", "val": 0.71,
    "best_epoch": 2, "best": 0.73, "eta_s": 4340.0, "updated": 1000.0, "job_id": "7",
}  # fmt: skip


def job(state: str, reason: str = "None") -> QueuedJob:
    return QueuedJob("7", "deepsports-a", state, reason, "1:00", "2:00:00", "n1")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (float("nan"), "-"), (9.7, "9s"), (60, "1m"), (3599, "59m"), (4340, "1h12m"), (200_000, "2d07h")],
)
def test_durations(seconds, text):
    assert duration_text(seconds) == text


@pytest.mark.parametrize(
    ("text", "seconds", "shown"),
    [("0:38", 38, "0:38"), ("00:00:38", 38, "0:38"), ("10:00", 600, "10:00"), ("00:10:00", 600, "10:00"),
     ("2:00:00", 7200, "2:00:00"), ("02:00:00", 7200, "2:00:00"), ("1-02:03:04", 93784, "1-02:03:04"),
     ("UNLIMITED", None, "unlimited"), ("Partition_Limit", None, "partition_limit"), ("", None, "")],
)  # fmt: skip
def test_times_of_squeue_and_sacct_have_one_format(text: str, seconds: int | None, shown: str):
    assert slurm_seconds(text) == seconds
    assert clock_text(text) == shown


def test_a_pending_or_starting_job_has_no_old_eta(tmp_path: Path):
    (tmp_path / "a" / "jobs" / "7").mkdir(parents=True)
    (tmp_path / "a" / "progress.json").write_text(json.dumps({**PROGRESS, "updated": 930.0}))
    for queued, state in ((job("PENDING", "BeginTime"), "pending (BeginTime)"), (job("RUNNING"), "starting")):
        cells, error = run_row("a", RunFolder(tmp_path / "a"), Cluster(queued={"7": queued}), 1000.0)
        assert (cells["STATE"], cells["ETA"], cells["TIME"], error) == (state, "-", "1:00/2:00:00", "")
    assert starting_text(None) == "starting"
    assert starting_text(RunProgress(**PROGRESS)) == "starting epoch 3/20 step 318/2120 rho 0.710 best 0.730@2"


def test_a_slow_rank_is_shown_while_the_run_trains(tmp_path: Path):
    (tmp_path / "a" / "jobs" / "7").mkdir(parents=True)
    (tmp_path / "a" / "progress.json").write_text(json.dumps({**PROGRESS, "slow_ranks": "rank 1 on n2 is slow"}))
    assert run_row("a", RunFolder(tmp_path / "a"), Cluster(queued={"7": job("RUNNING")}), 1000.0)[1] == (
        "rank 1 on n2 is slow"
    )
    assert run_row("a", RunFolder(tmp_path / "a"), Cluster(queued={"7": job("PENDING")}), 1000.0)[1] == ""


def test_a_job_that_can_never_start_is_reported(tmp_path: Path):
    (tmp_path / "a" / "jobs" / "7").mkdir(parents=True)
    cluster = Cluster(queued={"7": job("PENDING", "PartitionConfig")})
    cells, error = run_row("a", RunFolder(tmp_path / "a"), cluster, 1000.0)
    assert cells["STATE"] == "pending (PartitionConfig)"
    assert "requests more than the nodes of the partition have" in error


def test_the_comment_is_one_line():
    assert progress_text(RunProgress(**PROGRESS)) == "running epoch 3/20 step 318/2120 rho 0.710 best 0.730@2 eta 1h12m"
    early = {**PROGRESS, "epoch": 0, "val": None, "best_epoch": 0, "eta_s": None}
    assert progress_text(RunProgress(**early)) == "running epoch 0/20 step 318/2120 eta -"


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
        ({**PROGRESS, "updated": 930.0}, job("RUNNING"), "", "starting"),  # what the start before has left
        ({**PROGRESS, "state": "interrupted", "updated": 930.0}, job("RUNNING"), "", "starting"),
        (None, job("RUNNING"), "", "starting"),
    ],
)
def test_the_state_of_a_run(progress, queued, ended, state):
    how = EndedJob(ended, "1:00", "2:00", "n1") if ended else None
    recorded = None if progress is None else RunProgress(**progress)
    assert run_state(recorded, queued, how, now=1000.0) == state


def test_only_a_training_is_signaled_to_stop(tmp_path: Path):
    """The system may have given the process id to another program."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.json").write_text("{}")
    sleep = "import time; time.sleep(600)"
    for words, name in ((["training.train"], "signaled to save"), ([], "nothing to cancel")):
        process = subprocess.Popen([sys.executable, "-c", sleep, *words])
        while sleep.encode() not in Path(f"/proc/{process.pid}/cmdline").read_bytes():
            time.sleep(0.01)  # between fork and exec
        record = {**PROGRESS, "job_id": None, "host": socket.gethostname(), "pid": process.pid, "updated": time.time()}
        (tmp_path / "a" / "progress.json").write_text(json.dumps(record))
        assert run_state(RunProgress(**record), None, None, time.time()) == ("running" if words else "killed")
        done = run_python("-m", "launch.status", "cancel", "a", "--runs_dir", tmp_path, check=False)
        assert name in done.stdout + done.stderr
        assert (process.wait(120) if words else process.poll()) == (-15 if words else None)
        process.kill()
        process.wait()


@pytest.mark.parametrize("content", ["[]", "3", "{}", '{"state": null}', '{"state": "running"}', "{", "\xff\xfe"])
@pytest.mark.parametrize("file", ["progress.json", "summary.json"])
def test_a_damaged_file_is_reported_and_hides_no_other_run(tmp_path: Path, file: str, content: str):
    for name, progress in (("bad", PROGRESS), ("good", PROGRESS)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "progress.json").write_text(json.dumps(progress))
    (tmp_path / "bad" / file).write_bytes(content.encode("latin-1"))
    rows = [run_row(name, RunFolder(tmp_path / name), Cluster(), 1000.0) for name in ("bad", "good")]
    assert rows[0][0]["STATE"] == "damaged" or (file, content) in (("summary.json", "{}"), ("summary.json", "[]"))
    assert rows[1][0]["STATE"] == "running"


def three_runs(folder: Path) -> list[tuple[dict[str, str], str]]:
    """The rows of a run with a short name, of one with a long name, and of one that failed."""
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


@pytest.mark.parametrize("width", [30, 40, 80, 120])
def test_a_long_error_is_wrapped_and_shows_both_its_ends(tmp_path: Path, width: int):
    error = (
        "begin of it: "
        + " ".join(f"word{i}" for i in range(120))
        + " /a/path/without/any/space/"
        + 60 * "x"
        + " the cause"
    )
    for most in (2, 6):
        lines = error_lines(error, width, most)
        assert 1 < len(lines) <= most
        assert max(map(len, lines)) <= width
        assert lines[0].startswith("  └ begin of it")
        assert lines[-1].endswith("cause")
        assert all(line.startswith("    ") for line in lines[1:])
    assert error_lines("short", width, 6) == ["  └ short"]
    assert error_lines("", width, 6) == []


def many_runs(folder: Path, count: int) -> None:
    """Runs whose names are in the order of their age, the newest last; every third one failed."""
    now = time.time()
    for i in range(count):
        run = folder / f"run_{i:02d}"
        run.mkdir(parents=True)
        record = {**PROGRESS, "state": "finished", "updated": now}
        if i % 3 == 0:
            record |= {"state": "failed", "error": "the begin " + 30 * "of a long error " + "and its end"}
        (run / "progress.json").write_text(json.dumps(record))
        (run / "config.json").write_text("{}")
        for path in (run / "progress.json", run / "config.json"):
            os.utime(path, (now - 100 * (count - i),) * 2)


@pytest.mark.parametrize("width", [40, 80])
@pytest.mark.parametrize("height", [2, 3, 5, 9, 14, 30, 200])
def test_a_low_window_keeps_the_header_and_shows_the_latest(tmp_path, monkeypatch, width: int, height: int):
    monkeypatch.setenv("PATH", "/nowhere")  # no Slurm
    many_runs(tmp_path, 20)
    lines = overview(tmp_path, width, height).splitlines()
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    assert lines[0].startswith("RUN")
    if height == 200:
        assert [line.split()[0] for line in lines if line.startswith("run_")] == [f"run_{i:02d}" for i in range(20)]
    else:
        shown = [line.split()[0] for line in lines if line.startswith("run_")]
        assert shown == [f"run_{i:02d}" for i in range(19, 19 - len(shown), -1)]
        assert any(f"... {20 - len(shown)} more row" in line for line in lines)
        assert shown or height < 5


def test_runs_are_chosen_by_name_state_and_age(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "/nowhere")
    many_runs(tmp_path, 6)
    many_runs(tmp_path / "rates", 3)
    (tmp_path / "rates" / "sweep.json").write_text("{}")

    def shown(**chosen: object) -> list[str]:
        return re.findall(r"^((?:rates/)?run_\d+)", overview(tmp_path, math.inf, **chosen), re.MULTILINE)

    assert len(shown()) == 9
    assert shown(patterns=["rates"]) == shown(patterns=["rates/*"]) == [f"rates/run_{i:02d}" for i in range(3)]
    assert shown(patterns=["run_01", "run_*3"]) == ["run_01", "run_03"]
    assert shown(states=["failed"]) == ["rates/run_00", "run_00", "run_03"]
    assert shown(patterns=["run_*"], last=2) == ["run_05", "run_04"]
    assert overview(tmp_path, math.inf, states=["nope"]).startswith("No run is nope; there are: failed, finished.")
    with pytest.raises(UserError, match="no run is named 'run_o1'; did you mean run_01") as error:
        overview(tmp_path, 80, patterns=["run_o1", "cancle"])
    assert "did you mean cancel" in str(error.value)
    assert split_patterns(["a", "b*", "--last", "2", "--watch", "c"]) == (["a", "b*", "c"], ["--last", "2", "--watch"])
    assert split_patterns(["--watch", "False"]) == ([], ["--watch", "False"])


@pytest.mark.parametrize(
    ("module", "words"),
    [(status, ["logs", "--help"]), (status, ["cancel", "-h"]), (status, ["logs", "run", "--help"]), (status, ["--help"]),
     (sweep, ["show", "--help"]), (sweep, ["cancel", "--help"]), (sweep, ["submit", "--help"]), (sweep, ["--help"])],
)  # fmt: skip
def test_every_command_has_a_help(module, words: list[str], capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as end:
        module.main(words)
    assert not end.value.code
    assert capsys.readouterr().out.startswith("usage: python -m launch.")


def test_a_refused_start_is_shown_after_slurm_has_forgotten_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = RunFolder(tmp_path / "a")
    folder = run.job_dir("7")
    folder.mkdir(parents=True)
    run.progress_file.write_text(json.dumps({**PROGRESS, "state": "interrupted"}))
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    monkeypatch.setenv("DEEPSPORTS_REQUEUES", "2")
    with pytest.raises(UserError, match="restarted 2 times"):
        begin(folder)
    cells, error = run_row("a", run, Cluster(), 1000.0)
    assert cells["STATE"] == "failed"
    assert "submit the run again to resume" in error
    monkeypatch.setenv("DEEPSPORTS_REQUEUES", "9")
    begin(folder)
    assert run_row("a", run, Cluster(), 1000.0)[0]["STATE"] == "interrupted"


def test_the_log_of_a_job_is_found_after_slurm_has_forgotten_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "/nowhere")
    run = RunFolder(tmp_path / "a")
    folder = run.job_dir("7")
    folder.mkdir(parents=True)
    with open(tmp_path / "slurm-7.out", "w") as output:
        command = [sys.executable, "-m", "launch.job", "begin"]
        env = {**os.environ, "DEEPSPORTS_JOB": str(folder)}
        subprocess.run(command, cwd=REPOSITORY, env=env, stdout=subprocess.DEVNULL, stderr=output, check=True)
        output.write("error: the cause\n")
    assert log_files(run, "7") == [folder / "output"]
    assert last_error_line(run, "7") == "error: the cause"


def test_tasks_that_never_started_are_listed_one_by_one():
    assert array_tasks("12_[0,2-3%2]") == ["12_0", "12_2", "12_3"]
    assert array_tasks("12_4") == ["12_4"]
    assert array_tasks("12") == ["12"]


def test_launch_and_training_errors_are_reported_at_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DEEPSPORTS_TIME_MIN", "0")
    with pytest.raises(UserError) as error:
        submit.main(["--ndes", "2", "--batch_size", "8", "--", "--nodes", "2", "--batchsize", "8", "--epochs", "x"])
    lines = str(error.value).splitlines()
    expected = [
        "DEEPSPORTS_TIME_MIN in your environment", "did you mean --nodes", "'--batch_size' here: it is a training flag",
        "'--nodes' here: it is a launch flag", "did you mean --batch_size", "--epochs: 'x'",
    ]  # fmt: skip
    assert len(lines) == len(expected)
    assert all(words in line for words, line in zip(expected, lines, strict=True))
    monkeypatch.delenv("DEEPSPORTS_TIME_MIN")
    with pytest.raises(UserError, match=r"--nodes: '0'(.|\n)*--run_name 'a/b'"):
        submit.main(["--config=job_files/quickstart_config.sh", "--nodes", "0", "--", "--run_name", "a/b"])


def test_all_errors_of_a_sweep_are_reported_at_once():
    with pytest.raises(
        UserError, match=r"--name is missing(.|\n)*--cluster local does not fit a sweep(.|\n)*the sweep has no points"
    ):
        parse(sweep.SweepConfig, ["--cluster", "local"])
    with pytest.raises(UserError, match=r"'lr'(.|\n)*'seed=1,,2'"):
        grid_points(["lr", "seed=1,,2"])
    points = named_points(grid_points(["seed=0,1", "lr=3", "epochs=x,2"]))
    with pytest.raises(UserError) as error:
        sweep._trainings(TrainConfig(), Path("rates"), points)
    lines = str(error.value).splitlines()
    assert len(lines) == 2  # not one for each point
    assert "and 3 more: unknown flag or value '--lr'" in lines[0]
    assert "and 1 more: argument -ep/--epochs: 'x'" in lines[1]


def test_sweeps_are_shown_by_point(tmp_path: Path):
    for name in ("plain", "sweep/lr-1", "sweep/lr-2"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "sweep" / "sweep.json").write_text("{}")
    (tmp_path / ".jobs").mkdir()
    assert list(run_folders(tmp_path)) == ["plain", "sweep/lr-1", "sweep/lr-2"]


def test_status_without_slurm_reports_what_is_unknown(tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.json").write_text("{}")
    done = run_python("-m", "launch.status", "--runs_dir", tmp_path, env={"PATH": "/nowhere", "COLUMNS": "200"})
    assert "no progress yet" in done.stdout
    assert "unknown: which jobs are pending or running" in done.stdout
    missing = run_python("-m", "launch.status", "--runs_dir", tmp_path / "none", check=False)
    assert missing.returncode == 2


def test_flags_override_the_sites_values_which_override_defaults():
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


# as `scontrol show node --oneliner` prints them: a node of the tests' cluster, and two of a site with types and features
NODES = """\
NodeName=n1 Arch=x86_64 CoresPerSocket=1  CPUAlloc=0 CPUEfctv=2 CPUTot=2 CPULoad=0.44 AvailableFeatures=(null) ActiveFeatures=(null) Gres=gpu:2 NodeAddr=10.77.0.11 NodeHostName=n1 Version=22.05.8 OS=Linux 6.18.44 #1 SMP PREEMPT_DYNAMIC @0  RealMemory=8000 AllocMem=0 FreeMem=21848 Sockets=2 Boards=1 State=IDLE ThreadsPerCore=1 TmpDisk=0 Weight=1 Owner=N/A MCS_label=N/A Partitions=gpu,urgent  BootTime=2026-11-26T06:30:05 SlurmdStartTime=2026-11-26T06:35:06 LastBusyTime=2026-11-26T06:35:07 CfgTRES=cpu=2,mem=8000M,billing=2,gres/gpu=2 AllocTRES= CapWatts=n/a CurrentWatts=0 AveWatts=0 ExtSensorsJoules=n/s ExtSensorsWatts=0 ExtSensorsTemp=n/s
NodeName=a1 Arch=x86_64 CoresPerSocket=32 CPUAlloc=0 CPUTot=64 CPULoad=0.01 AvailableFeatures=a100,ib ActiveFeatures=a100,ib Gres=gpu:a100:4(S:0-1) NodeAddr=a1 NodeHostName=a1 OS=Linux 5.14 #1 SMP RealMemory=512000 AllocMem=0 MemSpecLimit=2048 State=IDLE Partitions=long Reason=a b=c d [root@2026-01-01T00:00:00]
NodeName=v2 Arch=x86_64 CoresPerSocket=16 CPUAlloc=0 CPUTot=128 CPULoad=0.01 AvailableFeatures=v100 ActiveFeatures=v100 Gres=gpu:v100:2(S:0),gpu:mps:v100:200 RealMemory=192000 State=DOWN*+DRAIN Partitions=long
a line of something else
"""
PARTITIONS = """\
PartitionName=gpu AllowGroups=ALL Default=YES QoS=N/A MaxNodes=UNLIMITED MaxTime=UNLIMITED MaxCPUsPerNode=UNLIMITED Nodes=n[1-2] State=UP MaxMemPerNode=UNLIMITED
PartitionName=long AllowGroups=ALL Default=NO MaxNodes=1 MaxTime=2-00:00:00 MaxCPUsPerNode=48 Nodes=a1,v2 State=UP MaxMemPerNode=UNLIMITED
"""


def too_much(**asked: object) -> list[str]:
    request = Request(**{"nodes": 1, "tasks": 1, "cpus": 1, "memory": 1024, "gpus": 1, "minutes": 60, **asked})
    return excess(request, parse_nodes(NODES), parse_partitions(PARTITIONS))


def test_nodes_and_partitions_are_parsed():
    n1, a1, v2 = parse_nodes(NODES)
    assert (n1.cpus, n1.memory, n1.gpus, n1.features, n1.partitions) == (2, 8000, {"": 2}, set(), {"gpu", "urgent"})
    assert (a1.cpus, a1.memory, a1.gpus, a1.features) == (64, 509952, {"a100": 4}, {"a100", "ib"})
    assert (v2.gpus, v2.state) == ({"v100": 2}, "DOWN*+DRAIN")
    limits = parse_partitions(PARTITIONS)
    assert (limits["gpu"].is_default, limits["gpu"].minutes, limits["gpu"].nodes) == (True, None, None)
    assert (limits["long"].minutes, limits["long"].nodes, limits["long"].cpus) == (2880, 1, 48)
    assert gpu_counts("gpu") == {"": 1}
    assert gpu_counts("(null)") == gpu_counts("") == {}
    assert gpu_counts("gpu:h100:3(S:0),gpu:h100:1(S:1),gpu:2,shard:8") == {"h100": 4, "": 2}
    assert host_names("gpu[003-004,7],n1,a[1-2]b") == {"gpu003", "gpu004", "gpu7", "n1", "a1b", "a2b"}


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"cpus": 8}, ["requested 8 CPUs on each node, the largest node of partition gpu has 2: give --cpus_per_gpu 2"]),
        ({"memory": 32 * 1024}, ["requested 32 GB of memory on each node, .* has 7.81 GB: give --mem_per_gpu_gb 7"]),
        ({"gpus": 4, "tasks": 4, "cpus": 32}, ["32 CPUs .* give --cpus_per_gpu 1 --gpus_per_node 2", "requested 4 GPUs .* has 2: give --gpus_per_node 2"]),
        ({"gpu_type": "v100"}, ["the GPUs of partition gpu have no type: leave out --gpu_type"]),
        ({"nodes": 3}, ["requested 3 nodes, partition gpu has 1: give --nodes 1"]),
        ({"gpus": 0, "tasks": 4, "cpus": 4}, ["--cpus_per_gpu 1 --tasks_per_node 2"]),
        ({"partition": "nope"}, ["--partition nope does not exist: give one of gpu, long"]),
        ({"partition": "long", "gpu_type": "h100"}, ["requested 1 h100 GPU .* has GPUs of type a100, v100: give one of them"]),
        ({"partition": "long", "gpu_type": "v100", "gpus": 4}, ["requested 4 v100 GPUs .* has 2: give --gpus_per_node 2"]),
        ({"partition": "long", "cpus": 64}, ["64 CPUs .* has 48"]),
        ({"partition": "long", "minutes": 4000}, ["requested 4000 minutes, partition long allows 2880: give --time_min 2880"]),
        ({"partition": "long", "nodes": 2}, ["requested 2 nodes, partition long allows 1 for a job: give --nodes 1"]),
        ({"partition": "long", "memory": 400_000, "gpu_type": "v100"}, ["requested 1 node with all of this on each, partition long has 0: request less"]),
        ({"partition": "long", "constraint": "a100&h100"}, ["no node of partition long has these features; they have: a100, ib, v100"]),
        ({"partition": "long", "exclude": "a1", "gpus": 3}, ["requested 3 GPUs on each node, the largest node of partition long has 2"]),
        ({"cpus": 8, "memory": 9000, "gpus": 3, "nodes": 5}, ["8 CPUs", "8.79 GB", "3 GPUs", "5 nodes"]),
    ],
)  # fmt: skip
def test_every_part_of_a_request_that_exceeds_the_nodes_is_named(asked: dict, words: list[str]):
    found = too_much(**asked)
    assert len(found) == len(words) + (0 if "nope" in asked.values() else 2)
    for line, expected in zip(found, words, strict=False):
        assert re.search(expected, line)


def test_the_request_and_the_nodes_are_reported():
    *_, asked, there = too_much(partition="long", gpus=9, tasks=9, memory=2048)
    assert asked == "requested: 1 node with 9 tasks, 1 CPU, 2 GB and 9 GPUs each, partition long, 60 minutes"
    assert there == "partition long has: 1 node with 64 CPUs, 498 GB, 4 a100 GPUs; 1 node with 128 CPUs, 188 GB, 2 v100 GPUs (1 of them down or drained)"  # fmt: skip
    assert too_much() == too_much(partition="long") == too_much(partition="a,b") == []
    assert excess(Request(1, 9, 9, 9, 9), [], {}) == []


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
def test_a_wrong_grid_is_refused(grid: list[str]):
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
def test_the_plot_of_a_sweep_is_drawn_for_all_states(tmp_path: Path, states: list[str]):
    values = {"finished": 0.7, "running": 0.4, "failed": None}
    rows = [{"point": s, "learning_rate": f"1e-{i}", "seed": "0", "state": s, "best_val_spearman": values[s]}
            for i, s in enumerate(states)]  # fmt: skip
    draw_sweep(
        rows, ["learning_rate", "seed", "model", "epochs"], tmp_path / "sweep.png", "a sweep", task_of("score").metric
    )
    assert Image.open(tmp_path / "sweep.png").size[0] > 1000


def test_failed_points_are_marked_in_the_plot(tmp_path: Path):
    def red_pixels(state: str, number: float | None) -> int:
        rows = [{"point": s, "seed": s, "state": "finished", "best_val_spearman": 0.5} for s in "01"]
        rows.append({"point": "2", "seed": "2", "state": state, "best_val_spearman": number})
        draw_sweep(rows, ["seed"], tmp_path / "sweep.png", "a sweep", task_of("score").metric)
        red, green, blue = np.asarray(Image.open(tmp_path / "sweep.png").convert("RGB")).transpose(2, 0, 1)
        return int(((red > 180) & (green < 120) & (blue < 120)).sum())

    assert red_pixels("failed", None) > 50
    assert red_pixels("out_of_memory", 0.4) > 50
    assert red_pixels("running", None) == red_pixels("finished", 0.4) == 0


def test_the_snapshot_is_a_copy_of_the_code(tmp_path: Path):
    code = snapshot.copy_code(tmp_path)
    assert snapshot.copy_code(tmp_path) == code == snapshot.code_path(tmp_path)
    assert (code / "training" / "train.py").read_bytes() == (REPOSITORY / "training" / "train.py").read_bytes()
    record = json.loads((code / "code.json").read_text())
    assert set(record) == {"code_revision", "code_changed"}
    assert (code / "code.diff").exists()
    done = subprocess.run(
        [sys.executable, "-c", "from training.runtime.run_folder import environment_record as e; print(e()['code_revision'])"],
        cwd=code, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == str(record["code_revision"])


def test_paths_are_absolute_for_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    found = absolute(TrainConfig(runs_dir=Path("r"), pretrained_model="w.pyth", output=Path("losses.png")))
    assert found.runs_dir == tmp_path / "r"
    assert found.pretrained_model == str(tmp_path / "w.pyth")
    assert (found.captions_path, found.output) == ("none", Path("losses.png"))
    assert parse(TrainConfig, to_argv(found)) == found


def not_free(folder: RunFolder) -> bool:
    """Whether a training is running in a run's folder."""
    try:
        folder.refuse_if_locked()
    except UserError:
        return True
    return False


@pytest.mark.slow
def test_a_workstation_trains_in_the_background(dataset: Path, tmp_path: Path):
    """Two ranks through submitit's LocalExecutor: launch.status cancel lets them save, the same command resumes."""
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
        deadline = time.monotonic() + 600
        while not (
            progress.exists() and (found := json.loads(progress.read_text()))["state"] in states and found["step"]
        ):
            assert time.monotonic() < deadline, [
                p.read_text() for p in (tmp_path / "quickstart" / "jobs").glob("*.out")
            ]
            time.sleep(0.1)
        return found

    done = run_python(*command, "--epochs", 500, env=env)
    assert "job        process" in done.stdout
    assert next(line for line in done.stderr.splitlines() if line.endswith(" ...")).startswith("reading the flags")
    wait_for_state("running")
    assert "signaled to save" in run_python("-m", "launch.status", "cancel", "quickstart", env=env).stdout
    stopped = wait_for_state("interrupted")
    assert 0 < stopped["epoch"] < 500 or stopped["step"]
    while not_free(RunFolder(tmp_path / "quickstart")):  # until the ranks have ended
        time.sleep(0.1)
    run_python(*command, "--epochs", stopped["epoch"] + 1, env=env)
    assert wait_for_state("finished")["epoch"] >= stopped["epoch"]
    assert "Resuming" in run_python("-m", "launch.status", "logs", "quickstart", "--follow", "False", env=env).stdout


def test_a_broken_flag_file_is_refused(tmp_path: Path):
    (tmp_path / "broken.sh").write_text("flags=(--epochs 3\n")
    for name, words in (("broken.sh", "cannot be read as bash"), ("missing.sh", "is not a file")):
        with pytest.raises(UserError, match=words):
            read_flag_file(tmp_path / name)


@pytest.mark.slow
def test_a_flag_file_is_a_command(dataset: Path, tmp_path: Path):
    """`bash FLAGFILE [more flags]` trains here, and fails if the training fails."""
    env = {
        **os.environ,
        "DEEPSPORTS_DATASET": str(dataset),
        "DEEPSPORTS_RUNS": str(tmp_path / "runs"),
        "DEEPSPORTS_VENV": sys.prefix,
    }

    def flag_file(*flags: str) -> subprocess.CompletedProcess:
        command = ["bash", str(REPOSITORY / "job_files" / "quickstart_config.sh"), *TINY_MODEL, *flags]
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)

    done = flag_file("--epochs", "1", "--run_name", "here")
    assert done.returncode == 0, done.stderr
    assert "Test Spearman" in done.stderr
    assert (tmp_path / "runs" / "here" / "losses.png").exists()
    done = flag_file("--epochs", "none")
    assert done.returncode == 2
    assert "--epochs" in done.stderr
