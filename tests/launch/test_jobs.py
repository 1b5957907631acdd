"""Every way in which a job can end early, on the real Slurm cluster: the run resumes and its result is the same.

The trainings have two ranks, one on each of two nodes. They are compared bit for bit with an uninterrupted run.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_preparation.layout import DatasetLayout
from tests.conftest import REPOSITORY, TINY_MODEL, data_flags, run_python, tiny_model
from tests.on_cluster import (
    FINAL,
    NODE,
    ON_TWO_NODES,
    SMALL_JOB,
    accounted,
    call,
    comment_of,
    config_flags,
    environment,
    job_states,
    keep_pending,
    processes_of,
    sbatch,
    slow,
    start_again,
    step_lines,
    submit,
    wait_for,
    wait_for_end,
    wait_for_step,
)
from tests.training.test_training import assert_same_run
from training.runtime.run_folder import RunFolder

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("cluster")]

# with dropout, stochastic depth, several checkpoints per epoch, and an evaluation on the test split
FLAGS = [*TINY_MODEL, "--epochs", 6, "--log_every", 1, "--checkpoint_every", 3, "--drop_path", 0.2, "--ema", 0.9]
STEPS = 24


@pytest.fixture(scope="module")
def uninterrupted(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted run of two ranks."""
    runs = tmp_path_factory.mktemp("uninterrupted")
    flags = [*config_flags(), *data_flags(dataset), *FLAGS, "--runs_dir", runs]
    port = 20000 + os.getpid() % 9000
    run_python(
        "-m", "torch.distributed.run", "--nproc_per_node", 2, "--master_port", port, "-m", "training.train", *flags
    )
    assert max(step_lines(runs / "quickstart")) == STEPS
    return runs / "quickstart"


def resumed_at(log: str) -> list[int]:
    """The steps of the whole run after which restarts resumed, from a log that counts steps within epochs of four."""
    return [4 * (int(e) - 1) + int(s) for e, s in re.findall(r"INFO .*Resuming .* at epoch (\d+), step (\d+)", log)]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "job.out"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "quickstart"


def test_a_time_limit_loses_nothing(dataset: Path, tmp_path: Path, uninterrupted: Path, log: Path, run: Path):
    """The job may reach its limit several times, and computes no step twice."""
    # Slurm sends the signal 0 to 30 s before the time of --signal: 50 to 80 s after the start
    options = [*ON_TWO_NODES, "--time=2", "--signal=USR2@40"]
    job = sbatch(*options, "job_files/train_model.job", *FLAGS, env=slow(dataset, tmp_path, 3.6), output=log)
    reached: list[int] = []

    def is_requeued() -> bool:
        return log.exists() and log.read_text().count("Requeueing") > len(reached)

    while wait_for(lambda: is_requeued() or set(job_states(job)) <= FINAL, "the limit or the end") and is_requeued():
        keep_pending(job)
        reached.append(max(step_lines(run), default=0))
        start_again(job)
    assert wait_for_end(job) == ["COMPLETED"], log.read_text()
    assert any(0 < step < STEPS for step in reached), log.read_text()
    assert log.read_text().count("stopped by a signal, checkpoint saved") == len(reached)
    # a start that stops before the first step leaves nothing to resume
    assert resumed_at(log.read_text()) == [step for step in reached if step]
    assert_same_run(uninterrupted, run)
    assert json.loads((run / "summary.json").read_text()) == json.loads((uninterrupted / "summary.json").read_text())


def test_a_preempted_job_runs_what_was_submitted(
    dataset: Path, tmp_path: Path, uninterrupted: Path, log: Path, run: Path
):
    """A job in a higher partition preempts it; meanwhile the code and the flag file of the checkout are edited."""
    checkout = tmp_path / "checkout"
    for part in ("data_preparation", "training", "launch", "job_files"):
        shutil.copytree(REPOSITORY / part, checkout / part, ignore=shutil.ignore_patterns("__pycache__"))
    done = subprocess.run(
        ["sbatch", "--parsable", f"--output={log}", *ON_TWO_NODES, "job_files/train_model.job", *map(str, FLAGS)],
        cwd=checkout, env={**os.environ, **slow(dataset, tmp_path)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    job = done.stdout.strip()
    wait_for_step(run, 5)
    (checkout / "training" / "engine" / "loop.py").write_text("raise SystemExit('edited')")
    config = checkout / "job_files" / "quickstart_config.sh"
    config.write_text(config.read_text().replace("--run_name quickstart", "--run_name edited"))
    urgent = sbatch(
        "--partition=urgent", "--nodes=2", "--cpus-per-task=2", "--wrap=sleep 1", env={}, output=tmp_path / "u"
    )
    keep_pending(job)
    reached = max(step_lines(run))
    start_again(job)
    assert wait_for_end(urgent) == ["COMPLETED"]
    assert wait_for_end(job) == ["COMPLETED"], log.read_text()
    assert resumed_at(log.read_text()) == [reached]
    assert_same_run(uninterrupted, run)


def saved_by_survivors(run: Path, job: str) -> list[tuple[int, int]]:
    """(the lost rank, the step that another one saved), from the logs of all ranks."""
    logs = "\n".join(file.read_text() for file in sorted((run / "jobs" / job).glob("rank*.log")))
    return [
        (int(r), int(s))
        for r, s in re.findall(r"rank (\d) on n\d was lost after step \d+ .*; rank \d saved step (\d+)", logs)
    ]


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_rank_costs_no_step(dataset, tmp_path, uninterrupted, log, run, killed: int):
    """The other rank saves at once, and the job is requeued."""
    job = sbatch(*ON_TWO_NODES, "job_files/train_model.job", *FLAGS, env=slow(dataset, tmp_path), output=log)
    wait_for_step(run, 8)
    logged = max(step_lines(run))
    os.kill(wait_for(lambda: processes_of(job).get(killed), "the rank"), signal.SIGKILL)
    wait_for(lambda: job_states(job) != ["RUNNING"], "the job to end", 180)  # --peer_timeout_min is 10 minutes
    start_again(job)
    assert wait_for_end(job) == ["COMPLETED"], log.read_text()
    assert "a rank was killed (signal 9)" in log.read_text()
    ((lost, saved),) = saved_by_survivors(run, job)
    assert lost == killed
    assert saved >= logged
    assert resumed_at(log.read_text()) == [saved]
    assert_same_run(uninterrupted, run)


@pytest.mark.parametrize(("node", "how"), [("n1", "off"), ("n2", "cut")])
def test_a_dead_node_costs_no_step(dataset, tmp_path, uninterrupted, log, run, node: str, how: str):
    """A node loses its power or its network and is set down; the other one saves, and the job waits for a node and resumes."""
    job = sbatch(*ON_TWO_NODES, "job_files/train_model.job", *FLAGS, env=slow(dataset, tmp_path), output=log)
    wait_for_step(run, 6)
    logged = max(step_lines(run))
    try:
        call("bash", NODE, how, node)
        if how == "off":  # Slurm finds out minutes later; then it kills the other rank
            wait_for(lambda: saved_by_survivors(run, job), "the other rank to save", 60)
        call("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
        wait_for(lambda: job_states(job) == ["PENDING"], "the job to be requeued")
        wait_for(lambda: saved_by_survivors(run, job), "the other rank to save", 60)
    finally:  # kill the processes that survived on the node before it returns
        call("bash", NODE, "off", node)
        call("bash", NODE, "join", node)
        call("bash", NODE, "up", node)
    wait_for(lambda: "idle" in call("sinfo", "--noheader", f"--nodes={node}", "--format=%T") or _resume(node), node)
    start_again(job)
    assert wait_for_end(job) == ["COMPLETED"], log.read_text()
    (resumed,) = resumed_at(log.read_text())
    assert resumed == max(saved for _, saved in saved_by_survivors(run, job)) >= logged
    assert_same_run(uninterrupted, run)


def _resume(node: str) -> bool:
    subprocess.run(["scontrol", "update", f"nodename={node}", "state=resume"], capture_output=True)
    return False


def test_scancel_keeps_a_checkpoint_and_a_second_submission_is_refused(dataset, tmp_path, uninterrupted, run):
    """Through submitit: a second job for the run is refused, scancel saves, and submitting again resumes."""
    arguments = ["--nodes", 2, "--tasks_per_node", 1, *SMALL_JOB, "--", *FLAGS]
    job, _ = submit(dataset, tmp_path, *arguments, step_s=0.4)
    with pytest.raises(AssertionError, match=f"job {job} .* already trains .*quickstart"):
        submit(dataset, tmp_path, *arguments, step_s=0.4)
    assert accounted_jobs(run) == [job]
    wait_for_step(run, 5)
    # training.train itself refuses a folder that is in use
    second = sbatch(*ON_TWO_NODES, "--nodes=1", "--mem=500M", "--overcommit", "--wrap", second_training(dataset, tmp_path), env=environment(dataset, tmp_path), output=tmp_path / "second")  # fmt: skip
    assert wait_for_end(second) == ["FAILED"]
    assert "another training is" in (tmp_path / "second").read_text()
    call("scancel", job)
    assert wait_for_end(job) == ["CANCELLED"]
    saved = int(RunFolder(run).checkpoints()[0].stem.split("-")[-1])
    assert saved == max(step_lines(run)) > 4
    job, _ = submit(dataset, tmp_path, *arguments, step_s=0.4)
    assert wait_for_end(job) == ["COMPLETED"]
    assert resumed_at(next((run / "jobs").glob(f"{job}_0_log.out")).read_text()) == [saved]
    assert_same_run(uninterrupted, run)


def second_training(dataset: Path, tmp_path: Path) -> str:
    flags = [*config_flags(), *data_flags(dataset), *FLAGS, "--runs_dir", tmp_path / "runs"]
    return " ".join(map(str, [sys.executable, "-m", "training.train", *flags]))


def accounted_jobs(run: Path) -> list[str]:
    return [path.name for path in (run / "jobs").iterdir() if path.is_dir()]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system that is too small for the run; a test can enlarge it."""
    mount = tmp_path / "disk"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2400k", "tmpfs", mount], check=True)
    yield mount
    subprocess.run(["umount", "--lazy", mount], check=True)


def test_a_full_disk_fails_the_job_and_damages_nothing(dataset, tmp_path, uninterrupted, small_disk, log):
    run = small_disk / "quickstart"
    env = {**environment(dataset, tmp_path), "DEEPSPORTS_RUNS": str(small_disk)}
    job = sbatch(*ON_TWO_NODES, "job_files/train_model.job", *FLAGS, env=env, output=log)
    assert wait_for_end(job) == ["FAILED"]
    assert "make room" in log.read_text()
    assert "Requeueing" not in log.read_text()
    assert accounted(job, "ExitCode") == "2:0"
    assert not list(run.rglob("*.tmp"))
    subprocess.run(["mount", "-o", "remount,size=100m", small_disk], check=True)
    job = sbatch(*ON_TWO_NODES, "job_files/train_model.job", *FLAGS, env=env, output=log)
    assert wait_for_end(job) == ["COMPLETED"], log.read_text()
    assert_same_run(uninterrupted, run)


def test_a_job_leaves_a_sick_node(dataset: Path, tmp_path: Path, log: Path, run: Path):
    runs = tmp_path / "runs"
    runs.mkdir()
    env = {**slow(dataset, tmp_path, 0), "DEEPSPORTS_TEST_READ_ONLY": f"n1:{runs}"}
    options = ["--cpus-per-task=1", "--mem=3G", "--gpus-per-node=0", "--time=20"]
    job = sbatch(*options, "job_files/train_model.job", *FLAGS, "--epochs", 1, env=env, output=log)
    wait_for(lambda: "ExcNodeList=n1" in call("scontrol", "show", "job", job), "the job to leave node n1")
    reason = f"node n1: it cannot write into {run}/jobs/{job}/ended-0"  # so it could not record its own sentence
    assert reason in comment_of(job)
    assert f"the job has left {reason}" in run_python("-m", "launch.status", "--runs_dir", runs).stdout
    start_again(job)
    assert wait_for_end(job) == ["COMPLETED"], log.read_text()
    assert f"error: node n1: {run}/jobs/{job} is not writable (Read-only file system)" in log.read_text()
    assert accounted(job, "NodeList") == "n2"


def test_a_job_without_progress_is_refused_with_a_reason(dataset: Path, tmp_path: Path, log: Path, run: Path):
    """Killed twice before a step is saved; the third start is refused."""
    job = sbatch(*ON_TWO_NODES, "job_files/train_model.job", *FLAGS, env=slow(dataset, tmp_path, 60), output=log)
    for killed in (1, 2):  # srun's --wait ends the rank that is left
        ranks = wait_for(lambda: len(found := processes_of(job)) == 2 and found, "the processes")
        time.sleep(1)
        for rank in range(killed):
            os.kill(ranks[rank], signal.SIGKILL)
        start_again(job)
    assert wait_for_end(job) == ["FAILED"], log.read_text()
    assert "saved no step after the beginning" in log.read_text()
    assert accounted(job, "ExitCode") == "2:0"


def test_an_error_on_one_rank_is_not_retried(dataset: Path, tmp_path: Path, log: Path, run: Path):
    """One rank reads a damaged frame, and the other one saves and ends: the status of the job is 2, and it is not requeued."""
    frames = tmp_path / "frames"
    shutil.copytree(dataset / "whole_videos_frames", frames)
    job = sbatch(*ON_TWO_NODES, "job_files/train_model.job", *FLAGS, "--root_dir", frames, "--workers", 0, env=slow(dataset, tmp_path), output=log)  # fmt: skip
    wait_for_step(run, 1)
    archive = bytearray((frames / "01.zip").read_bytes())
    for at in range(5000, len(archive) - 20000, 997):  # the frames, not the directory at the end
        archive[at] ^= 255
    with open(frames / "01.zip", "r+b") as file:
        file.write(archive)
    assert wait_for_end(job) == ["FAILED"], log.read_text()
    assert "Requeueing" not in log.read_text()
    assert accounted(job, "ExitCode") == "2:0"


def test_a_job_that_gets_term_is_requeued(dataset: Path, tmp_path: Path, uninterrupted: Path, log: Path, run: Path):
    """Sites that do not send the user's signal preempt with TERM. The run path contains a space."""
    env = slow(dataset, tmp_path) | {"DEEPSPORTS_RUNS": str(tmp_path / "my runs")}
    job = sbatch(*ON_TWO_NODES, "job_files/train_model.job", *FLAGS, env=env, output=log)
    run = tmp_path / "my runs" / "quickstart"
    wait_for_step(run, 5)
    call("scancel", "--signal=TERM", job)
    keep_pending(job)
    assert comment_of(job).strip() == "requeued (stopped by a signal, checkpoint saved)"
    waiting = run_python("-m", "launch.status", "quickstart", env=env).stdout
    assert re.search(rf"quickstart +pending \(\w+\) +{job} ", waiting)
    start_again(job)
    wait_for(lambda: "starting epoch" in comment_of(job), "the comment of the start")
    assert wait_for_end(job) == ["COMPLETED"], log.read_text()
    assert_same_run(uninterrupted, run)


def test_the_user_limits_the_number_of_restarts(dataset: Path, tmp_path: Path, log: Path, run: Path):
    env = {**slow(dataset, tmp_path), "DEEPSPORTS_REQUEUES": "0"}
    job = sbatch(*ON_TWO_NODES, "job_files/train_model.job", *FLAGS, env=env, output=log)
    wait_for_step(run, 1)
    call("scancel", "--signal=USR2", job)
    assert wait_for_end(job) == ["FAILED"]
    assert "submit the run again to resume" in log.read_text()
    assert RunFolder(run).checkpoints()


def test_a_sweep_with_a_failing_point(dataset: Path, tmp_path: Path):
    """Four points finish and two fail; the same command submits only those two; table and plot show all."""
    env = environment(dataset, tmp_path)
    grid = ["--grid", "learning_rate=1e-3,1e-2,1e30", "seed=0,1", "--parallel", 2]
    training = [*TINY_MODEL, "--epochs", 2, "--optimizer", "SGD", "--clip_grad", 0, "--warmup_steps", 0]
    command = ["-m", "launch.sweep", "submit", "--name", "rates", "--config", env["DEEPSPORTS_CONFIG"], *SMALL_JOB, *grid, "--", *training]  # fmt: skip
    out = run_python(*command, env=env).stdout
    array = re.search(r"job (\d+)_0 ", out)[1]
    assert out.count("submitted") == 6
    assert "queued" in run_python(*command, env=env).stdout
    assert sorted(wait_for_end(array)) == ["COMPLETED"] * 4 + ["FAILED"] * 2
    folder = tmp_path / "runs" / "rates"
    assert len([p for p in folder.iterdir() if (p / "summary.json").exists()]) == 0  # nothing is chosen on the test set
    wait_for(lambda: "FAILED" in call("sacct", "-X", "-n", "-j", f"{array}_5", "-o", "state"), "sacct")
    shown = run_python("-m", "launch.sweep", "show", "rates", env=env).stdout
    assert shown.count("finished") == 4
    assert shown.count("failed") == 2
    assert "best by validation: learning_rate-1e-" in shown
    assert (folder / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "sweep.csv").read_text().count("\n") == 7
    table = run_python("-m", "launch.status", env=env).stdout
    assert "rates/learning_rate-1e30_seed-1" in table
    assert "the loss became nan" in table
    again = run_python(*command, env=env).stdout
    assert again.count("submitted again (was failed)") == 2
    assert again.count("finished") == 4
    wait_for_end(re.search(r"job (\d+)_0 ", again)[1])


def test_a_sweep_is_cancelled_point_by_point(dataset: Path, tmp_path: Path):
    """Running points save and end; pending points do not start then."""
    env = slow(dataset, tmp_path)
    command = ["-m", "launch.sweep", "submit", "--name", "seeds", "--config", env["DEEPSPORTS_CONFIG"], *SMALL_JOB, "--grid", "seed=0,1,2", "--parallel", 1, "--", *TINY_MODEL, "--epochs", 50, "--log_every", 1]  # fmt: skip
    array = re.search(r"job (\d+)_0 ", run_python(*command, env=env).stdout)[1]
    first = tmp_path / "runs" / "seeds" / "seed-0"
    wait_for_step(first, 2)
    out = run_python("-m", "launch.sweep", "cancel", "seeds", env=env).stdout
    assert f"job {array}_0 is signaled to save and exit" in out
    assert "3 of 3 points are cancelled" in out
    assert set(wait_for_end(array)) == {"CANCELLED"}
    assert max(step_lines(first)) == int(RunFolder(first).checkpoints()[0].stem.split("-")[-1])
    assert not (tmp_path / "runs" / "seeds" / "seed-1" / "progress.json").exists()
    wait_for(lambda: "CANCELLED" in call("sacct", "-X", "-n", "-j", array, "-o", "state"), "sacct")
    table = run_python("-m", "launch.status", "seeds", env=env).stdout
    assert table.count("cancelled") == 3
    nothing = run_python("-m", "launch.sweep", "cancel", "seeds", env=env, check=False)
    assert nothing.returncode == 2


def test_a_job_that_failed_before_it_had_a_run_folder_is_shown(dataset: Path, tmp_path: Path, log: Path):
    env = environment(dataset, tmp_path)
    (tmp_path / "runs").mkdir()
    job = sbatch(*ON_TWO_NODES, "--nodes=1", "job_files/train_model.job", "--batchsize", 8, env=env, output=log)
    assert wait_for_end(job) == ["FAILED"]
    shown = run_python("-m", "launch.status", env=env).stdout
    assert f"job {job} deepsports-train: failed" in shown
    assert "unknown flag or value '--batchsize'; did you mean --batch_size?" in shown
    assert str(log) in shown


@pytest.mark.parametrize(
    "command", ["launch.submit", "launch.sweep submit --name x --grid seed=0,1", "launch.pipeline"]
)
def test_a_request_that_exceeds_the_nodes_is_refused(dataset: Path, tmp_path: Path, command: str):
    flags = ["--nodes", 9, "--gpus_per_node", 8, "--cpus_per_gpu", 8, "--mem_per_gpu_gb", 999, "--forecast", "False"]
    env = environment(dataset, tmp_path)
    training = [*TINY_MODEL, "--gpu", "True", "--batch_size", 144]
    done = run_python("-m", *command.split(), "--config", env["DEEPSPORTS_CONFIG"], *flags, "--", *training, env=env, check=False)  # fmt: skip
    assert done.returncode == 2
    for words in ("requested 64 CPUs", "of memory on each node", "requested 8 GPUs", "requested 9 nodes", "partition gpu has: 2 nodes with 2 CPUs"):  # fmt: skip
        assert words in done.stderr
    assert done.stderr.startswith("reading the flags")
    assert not (tmp_path / "runs").exists()


def test_a_pipeline_that_cannot_prepare_does_not_train_and_continues_after_the_fix(tmp_path: Path):
    dataset = tmp_path / "set"
    run_python("-m", "data_preparation.synthetic", "--dataset", dataset, "--videos", 2, "--dives", 60)
    video = DatasetLayout(dataset).video_file("02")
    whole = video.read_bytes()
    video.write_bytes(b"no video")
    env = environment(dataset, tmp_path)
    command = ["-m", "launch.pipeline", "--config", env["DEEPSPORTS_CONFIG"], *SMALL_JOB[:-2], "--prepare_tasks", 2, "--prepare_cpus", 1, "--", *TINY_MODEL, "--epochs", 2]  # fmt: skip
    jobs = dict(re.findall(r"^(\w+) +submitted, job (\d+)", run_python(*command, env=env).stdout, re.MULTILINE))
    assert list(jobs) == ["prepare", "verify", "train", "evaluate"]
    assert "FAILED" in wait_for_end(jobs["prepare"])
    for stage in ("verify", "train", "evaluate"):
        assert wait_for_end(jobs[stage]) == ["CANCELLED"], stage
    run = tmp_path / "runs" / "quickstart"
    assert not (run / "config.json").exists()  # no training has started
    video.write_bytes(whole)
    jobs = dict(re.findall(r"^(\w+) +submitted, job (\d+)", run_python(*command, env=env).stdout, re.MULTILINE))
    assert list(jobs) == ["prepare", "verify", "train", "evaluate"]
    again = run_python(*command, env=env).stdout  # nothing is submitted twice
    assert again.count("queued already") + again.count("done") == 4, again
    assert wait_for_end(jobs["evaluate"]) == ["COMPLETED"], sorted((run / "pipeline").iterdir())
    assert (run / "summary.json").exists()
    assert run_python(*command, env=env).stdout.count("done") == 4

    # two trainings, the second from the best model of a pretext task
    pretext = ["--method", "vspp", "--segments", 2, "--run_name", "pretext", "--runs_dir", tmp_path / "runs"]
    words = shlex.join(map(str, [*data_flags(dataset), *tiny_model(*pretext), *pretext, "--epochs", 1]))
    file = tmp_path / "pretext.sh"
    file.write_text(f"flags=({words})\nsource '{REPOSITORY}/job_files/with_flags.sh'\n")
    split = command.index("--")
    command = [*command[:split], "--pretrain", file, *command[split:], "--run_name", "scores"]
    jobs = dict(re.findall(r"^(\w+) +submitted, job (\d+)", run_python(*command, env=env).stdout, re.MULTILINE))
    assert list(jobs) == ["pretrain", "train", "evaluate"]
    assert wait_for_end(jobs["evaluate"]) == ["COMPLETED"]
    best = tmp_path / "runs" / "pretext" / "checkpoints" / "best.pt"
    saved = json.loads((tmp_path / "runs" / "scores" / "config.json").read_text())
    assert saved["pretrained_model"] == str(best)
    assert (tmp_path / "runs" / "scores" / "summary.json").exists()


def test_cancel_lets_a_run_save(dataset: Path, tmp_path: Path, log: Path, run: Path):
    env = slow(dataset, tmp_path)
    job = sbatch(*ON_TWO_NODES, "job_files/train_model.job", *FLAGS, env=env, output=log)
    wait_for_step(run, 2)
    table = run_python("-m", "launch.status", env=env).stdout
    assert re.search(rf"quickstart +running +{job} +n\[1-2\]", table)
    followed = run_python("-m", "launch.status", "logs", "quickstart", "--follow", "False", env=env).stdout
    assert "step 1/4" in followed
    out = run_python("-m", "launch.status", "cancel", "quickstart", env=env).stdout
    assert "submit quickstart again to resume" in out
    assert wait_for_end(job) == ["CANCELLED"]
    assert max(step_lines(run)) == int(RunFolder(run).checkpoints()[0].stem.split("-")[-1])
    nothing = run_python("-m", "launch.status", "cancel", "quickstart", env=env, check=False)
    assert nothing.returncode == 2


def test_the_time_from_sbatch_to_the_first_step_is_known_by_part(dataset: Path, tmp_path: Path, log: Path, run: Path):
    env = environment(dataset, tmp_path)
    flags = [*TINY_MODEL, "--epochs", 1, "--evaluate", "False"]
    job = sbatch(*ON_TWO_NODES, "job_files/train_model.job", *flags, env=env, output=log)
    assert wait_for_end(job) == ["COMPLETED"], log.read_text()
    accounted(job, "State")  # it may be late
    printed = run_python("-m", "launch.start_up", "--run", run.name, "--runs_dir", run.parent).stdout
    names, row = (line.split()[:7] for line in printed.splitlines())
    assert names == ["START", "HELD", "QUEUE", "SCRIPT", "SRUN", "PROCESS", "TOTAL"], printed
    *parts, total = map(float, row[1:])
    assert sum(parts) == pytest.approx(total, abs=0.3), printed
    assert all(part > -1.5 for part in parts), printed  # Slurm's times are whole seconds
