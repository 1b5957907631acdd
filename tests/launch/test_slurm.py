"""All ways to submit jobs, on the real Slurm cluster that tests/run.sh starts: two nodes, accounting, GPUs as GRES."""

from __future__ import annotations

import csv
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from scipy import stats

from data_preparation.layout import DatasetLayout
from tests.conftest import REPOSITORY, TINY_MODEL, data_flags, run_python
from tests.on_cluster import (
    SMALL_JOB,
    WAIT_S,
    accounted,
    call,
    comment_of,
    config_flags,
    environment,
    job_states,
    sbatch,
    slow,
    start_again,
    submit,
    wait_for,
    wait_for_end,
)

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("cluster")]

TWO_BY_TWO = ["--nodes=2", "--ntasks-per-node=2", "--cpus-per-task=1", "--mem=3G", "--gpus-per-node=0", "--time=20"]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "job.out"


def test_the_prepare_array_extracts_all_videos(tmp_path: Path):
    dataset = tmp_path / "set"
    run_python("-m", "data_preparation.synthetic", "--dataset", dataset, "--videos", 3, "--dives", 24)
    env = environment(dataset, tmp_path)
    options = ["--array=0-1", "--cpus-per-task=1", "--mem=2G", "--time=10"]
    job = sbatch(*options, "job_files/prepare_dataset.job", "--height", 72, env=env, output=tmp_path / "prepare-%a.out")
    logs = wait_for_end(job) and [(tmp_path / f"prepare-{i}.out").read_text() for i in (0, 1)]
    assert job_states(job) == ["COMPLETED", "COMPLETED"], logs
    assert "2 of 2 videos" in logs[0]  # three videos over two tasks
    assert "03.mp4 at 25 fps" in logs[0]  # verified by the task that extracted it
    assert "1 of 1 videos" in logs[1]
    assert run_python("-m", "data_preparation.verify", "--dataset", dataset).returncode == 0


def test_a_prepare_task_that_fails_is_a_failed_task(tmp_path: Path):
    dataset = tmp_path / "set"
    run_python("-m", "data_preparation.synthetic", "--dataset", dataset, "--videos", 2, "--dives", 16)
    layout = DatasetLayout(dataset)
    layout.video_file("02").write_bytes(b"")
    options = ["--array=0-1", "--cpus-per-task=1", "--mem=2G", "--time=10"]
    job = sbatch(
        *options, "job_files/prepare_dataset.job", env=environment(dataset, tmp_path), output=tmp_path / "%a.out"
    )
    assert sorted(wait_for_end(job)) == ["COMPLETED", "FAILED"]
    assert "02.mp4 is empty" in (tmp_path / "1.out").read_text()


def test_the_job_file_trains_on_two_nodes(dataset: Path, tmp_path: Path, log: Path):
    env = environment(dataset, tmp_path)
    job = sbatch(
        *TWO_BY_TWO, "job_files/train_model.job", *TINY_MODEL, "--epochs", 4, "--log_every", 1, env=env, output=log
    )
    wait_for(lambda: "epoch" in comment_of(job), "the job's comment")
    assert wait_for_end(job) == ["COMPLETED"], log.read_text()
    text = log.read_text()
    assert "4 ranks (Slurm)" in text
    assert "Test Spearman" in text
    run = tmp_path / "runs" / "quickstart"
    assert {p.name for p in (run / "jobs" / job).iterdir()} >= {f"rank{r}.log" for r in range(4)}
    assert accounted(job, "State") == "COMPLETED"
    assert accounted(job, "NNodes") == "2"
    table = run_python("-m", "launch.status", "--runs_dir", tmp_path / "runs").stdout
    assert "quickstart" in table
    assert "finished" in table
    assert "4/4" in table
    # four ranks on two nodes compute the same as one rank here, up to dropout and rounding
    flags = [*data_flags(dataset), *config_flags(), *TINY_MODEL, "--epochs", 4, "--runs_dir", tmp_path / "here"]
    run_python("-m", "training.train", *flags)
    here = [json.loads(x) for x in (tmp_path / "here" / "quickstart" / "metrics.jsonl").read_text().splitlines()]
    there = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
    first = [next(r for r in records if r["type"] == "epoch") for records in (here, there)]
    assert first[0]["val_loss"] == pytest.approx(first[1]["val_loss"], rel=0.2)  # dropout differs by rank


@pytest.mark.parametrize(
    ("options", "flags", "sentence"),
    [
        (["--gpus-per-node=0"], ["--frame_method", "space_fixed"], "did you mean spaced_fixed"),
        (
            ["--gpus-per-node=0"],
            ["--gpu", "False", "--root_dir", "/nowhere/frames"],
            "--root_dir /nowhere/frames is not a folder",
        ),
        (["--gpus-per-node=1"], ["--gpu", "True"], "CUDA sees none"),
    ],
)
def test_a_training_that_fails_is_a_failed_job(dataset, tmp_path, log, options, flags, sentence):
    arguments = [
        "--cpus-per-task=1",
        "--mem=3G",
        "--time=5",
        *options,
        "job_files/train_model.job",
        *TINY_MODEL,
        *flags,
    ]
    job = sbatch(*arguments, env=environment(dataset, tmp_path), output=log)
    assert wait_for_end(job) == ["FAILED"], log.read_text()
    assert sentence in log.read_text()
    assert accounted(job, "ExitCode") == "2:0"


@pytest.mark.parametrize(
    "command",
    [
        ["sbatch", "--export=NONE"],  # srun would not even pass PATH
        ["salloc", "--quiet", "--ntasks=1", "--mem-per-cpu=300", "srun", "sbatch"],  # from inside of another job
    ],
)
def test_a_job_starts_in_any_environment(tmp_path: Path, command: list[str]):
    """In a clone whose name contains a space, with the .venv and the output file at their default places."""
    checkout = tmp_path / "my clone"
    for part in ("data_preparation", "training", "launch", "job_files", "slurm_logs"):
        shutil.copytree(REPOSITORY / part, checkout / part, ignore=shutil.ignore_patterns("__pycache__", "*.out"))
    (checkout / ".venv").symlink_to(sys.prefix)
    options = ["--parsable", "--gpus-per-node=0", "--cpus-per-task=1", "--mem=1G", "--time=5"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("DEEPSPORTS_")}
    done = subprocess.run(
        [*command, *options, "job_files/evaluate_model.job", "--run", "/nowhere"],
        cwd=checkout, env=env, capture_output=True, text=True, check=True, timeout=WAIT_S,
    )  # fmt: skip
    job = done.stdout.strip()
    assert wait_for_end(job) == ["FAILED"]
    text = (checkout / "slurm_logs" / f"deepsports-evaluate-{job}.out").read_text()
    assert "error: " in text, text
    assert "/nowhere" in text, text  # an error of training.evaluate: srun found its Python


def signal_in_the_middle(job: str, run: Path) -> None:
    """After some steps, send the signal that Slurm sends before a time limit."""
    lines = run / "metrics.jsonl"
    wait_for(lambda: lines.exists() and lines.read_text().count('"step"') >= 4, "some steps")
    call("scancel", "--signal=USR2", job)
    start_again(job)


def test_the_job_file_resumes_after_its_signal(dataset: Path, tmp_path: Path, log: Path):
    options = ["--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1", "--mem=3G", "--gpus-per-node=0", "--time=20"]
    flags = [*TINY_MODEL, "--epochs", 8, "--log_every", 1]
    job = sbatch(*options, "job_files/train_model.job", *flags, env=slow(dataset, tmp_path, 0.2), output=log)
    run = tmp_path / "runs" / "quickstart"
    signal_in_the_middle(job, run)
    assert wait_for_end(job) == ["COMPLETED"], log.read_text()
    text = log.read_text()
    assert f"Requeueing job {job}: stopped by a signal" in text
    assert "Resuming" in text
    epochs = [
        r["epoch"] for r in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if r["type"] == "epoch"
    ]
    assert epochs == list(range(1, 9))


def test_submitit_trains_on_two_nodes_and_resumes_after_its_signal(dataset: Path, tmp_path: Path):
    job, out = submit(
        dataset,
        tmp_path,
        "--nodes",
        2,
        "--tasks_per_node",
        2,
        *SMALL_JOB,
        "--",
        *TINY_MODEL,
        "--epochs",
        8,
        "--log_every",
        1,
        step_s=0.2,
    )
    run = tmp_path / "runs" / "quickstart"
    assert str(run) in out
    waiting = run_python("-m", "launch.status", "--runs_dir", tmp_path / "runs").stdout
    assert job in waiting
    signal_in_the_middle(job, run)
    states = wait_for_end(job)
    logs = "\n".join(p.read_text() for p in (run / "jobs").glob(f"{job}_*_log.out"))
    assert states == ["COMPLETED"], logs
    assert "4 ranks (Slurm)" in logs
    assert "Resuming" in logs
    assert (run / "summary.json").exists()
    assert comment_of(job).startswith("finished epoch 8/8")


def test_a_submission_that_cannot_train_is_refused(dataset: Path, tmp_path: Path):
    before = call("squeue", "--noheader", "--states=all", "--format=%i").split()
    arguments = [
        "--nodes",
        2,
        "--tasks_per_node",
        2,
        *SMALL_JOB,
        "--",
        *TINY_MODEL,
        "--batch_size",
        6,
        "--train_path",
        "/nowhere.pkl",
    ]
    done = run_python(
        "-m",
        "launch.submit",
        "--config",
        "job_files/quickstart_config.sh",
        *arguments,
        check=False,
        env=environment(dataset, tmp_path),
    )
    assert done.returncode == 2
    assert "--train_path /nowhere.pkl" in done.stderr
    assert "--batch_size 6 cannot be divided by 4 ranks" in done.stderr
    assert call("squeue", "--noheader", "--states=all", "--format=%i").split() == before


def test_a_failing_submitit_job_is_a_failed_job(dataset: Path, tmp_path: Path):
    job, _ = submit(
        dataset,
        tmp_path,
        *SMALL_JOB,
        "--",
        *TINY_MODEL,
        "--learning_rate",
        1e30,
        "--optimizer",
        "SGD",
        "--clip_grad",
        0,
    )
    assert wait_for_end(job) == ["FAILED"]
    log = next((tmp_path / "runs" / "quickstart" / "jobs").glob(f"{job}_0_log.out")).read_text()
    assert "the loss became" in log


def test_dry_run_prints_the_sbatch_file(dataset: Path, tmp_path: Path):
    arguments = [
        "--nodes",
        2,
        "--gpus_per_node",
        2,
        "--partition",
        "gpu",
        "--cpus_per_gpu",
        1,
        "--mem_per_gpu_gb",
        3,
        "--dry_run",
        "--",
        *TINY_MODEL,
        "--gpu",
        "True",
    ]
    out = run_python(
        "-m",
        "launch.submit",
        "--config",
        "job_files/quickstart_config.sh",
        *arguments,
        env=environment(dataset, tmp_path),
    ).stdout
    for line in (
        "--nodes=2",
        "--ntasks-per-node=2",
        "--gpus-per-node=2",
        "--partition=gpu",
        "--requeue",
        "--signal=USR2@120",
    ):
        assert f"#SBATCH {line}" in out, out
    assert "--kill-on-bad-exit=0 --wait=60" in out
    assert "launch.job end" in out
    assert not (tmp_path / "runs").exists()


def test_all_errors_are_reported_before_submitting(dataset: Path, tmp_path: Path):
    """Wrong flags, weights that do not fit, frames that are not verified, a wrong partition and an impossible request."""
    torch.save({"model_state": {"model.blocks.0.norm1.weight": torch.zeros(32)}}, tmp_path / "w.pyth")
    before = call("squeue", "--noheader", "--states=all", "--format=%i").split()

    def faults(*flags: object) -> str:
        command = ["-m", "launch.submit", "--config", "job_files/quickstart_config.sh", *map(str, flags)]
        done = run_python(*command, env=environment(dataset, tmp_path), check=False)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        return done.stderr

    request = ["--gpus_per_node", 0, "--cpus_per_gpu", 1, "--mem_per_gpu_gb", 3]
    errors = faults(
        *request, "--partition", "nowhere", "--nodes", 3, "--", *TINY_MODEL, "--pretrained_model", tmp_path / "w.pyth"
    )
    assert "--batch_size 8 cannot be divided by 3 ranks" in errors
    assert "invalid partition" in errors.lower()
    assert "blocks.0" in errors  # missing in the weight file
    assert (
        "invalid account" in faults(*request, "--account", "nobody", "--forecast", "False", "--", *TINY_MODEL).lower()
    )
    too_large = faults("--gpus_per_node", 3, "--cpus_per_gpu", 1, "--mem_per_gpu_gb", 1, "--gpu_mem_gb", 0.0001, "--", *TINY_MODEL, "--gpu", "True", "--batch_size", 9)  # fmt: skip
    assert "Slurm could not start this job" in too_large
    assert "--gpu_mem_gb is 0.0001" in too_large
    marks = dataset / "whole_videos_frames" / ".verified"
    marks.rename(tmp_path / "marks")
    try:
        assert "were not verified since they were extracted (01 02)" in faults(*request, "--", *TINY_MODEL)
    finally:
        (tmp_path / "marks").rename(marks)
    assert call("squeue", "--noheader", "--states=all", "--format=%i").split() == before


# ----------------------------------------------------------------------------------------------------- real footage


def real_footage(shared: Path, folder: Path) -> Path:
    """A data set of the real clips: each file is a video with three dives, one of them with its true label."""
    files = sorted(p for p in (shared / "clips").glob("*.*") if p.suffix in (".mp4", ".avi"))
    assert len(files) >= 5
    layout = DatasetLayout(folder)
    layout.videos.mkdir(parents=True)
    layout.annotations.mkdir()
    true_dive = pickle.loads((shared / "mtl_aqa" / "final_annotations_dict.pkl").read_bytes())[(3, 55)]
    annotations = {}
    for video, source in enumerate(files, start=1):
        (layout.videos / f"{video:02d}{source.suffix}").symlink_to(source)
        for dive in range(1, 4):
            fields = {**true_dive, "start_frame": 1 + 30 * (dive - 1), "end_frame": 30 * dive}
            if (source.stem, dive) == ("dive_mtl_aqa_03_055", 1):
                fields |= {"start_frame": 2, "end_frame": 100}
            elif source.stem == "dive_mtl_aqa_03_055":
                continue  # this file has one dive
            else:
                fields["final_score"] = round(40 + 7.5 * dive + 3 * video, 2)
            annotations[(video, dive)] = fields
    keys = sorted(annotations)
    for path, content in (
        (layout.annotation_file, annotations),
        (layout.train_file, [k for k in keys if k[1] != 3]),
        (layout.test_file, [k for k in keys if k[1] == 3]),
    ):
        path.write_bytes(pickle.dumps(content, 3))
    return folder


def test_prepare_train_and_evaluate_real_footage(shared: Path, tmp_path: Path, log: Path):
    """Real files are prepared, trained on two nodes and evaluated with the job files."""
    dataset = real_footage(shared, tmp_path / "set")
    env = environment(dataset, tmp_path)
    options = ["--cpus-per-task=1", "--mem=2G", "--time=10"]
    prepare = sbatch(
        "--array=0-1",
        *options,
        "job_files/prepare_dataset.job",
        "--height",
        64,
        env=env,
        output=tmp_path / "prepare-%a.out",
    )
    train = sbatch(
        f"--dependency=afterok:{prepare}", *TWO_BY_TWO, "job_files/train_model.job", *TINY_MODEL, "--batch_size", 4, "--epochs", 2,
        env=env, output=log,
    )  # fmt: skip
    assert set(wait_for_end(prepare)) == {"COMPLETED"}, [p.read_text() for p in tmp_path.glob("prepare-*.out")]
    assert wait_for_end(train) == ["COMPLETED"], log.read_text()
    run = tmp_path / "runs" / "quickstart"
    summary = json.loads((run / "summary.json").read_text())
    rows = list(csv.DictReader((run / "predictions.csv").open()))
    assert summary["test"]["dives"] == len(rows) == len(pickle.loads(DatasetLayout(dataset).test_file.read_bytes()))
    predicted, true = ([float(r[c]) for r in rows] for c in ("predicted_score", "true_score"))
    assert summary["test"]["spearman"] == pytest.approx(stats.spearmanr(predicted, true).statistic, abs=1e-9)
    assert (run / "losses.png").exists()


def test_the_job_file_classifies_drawn_falls(tmp_path: Path, log: Path):
    dataset = tmp_path / "set"
    size = ["--clips", 24, "--performers", 4, "--min_frames", 16, "--max_frames", 20]
    run_python("-m", "data_preparation.synthetic", "--task", "fall", "--dataset", dataset, *size)
    flags = ["--dataset", dataset, "--dataset_kind", "table", "--height", 0, "--window", 0, "--after", 0]
    run_python("-m", "data_preparation.extract", *flags)
    env = {**environment(dataset, tmp_path), "DEEPSPORTS_CONFIG": "job_files/drawn_clips_config.sh"}
    options = ["--nodes=1", "--ntasks-per-node=1", "--cpus-per-task=1", "--mem=2G", "--gpus-per-node=0", "--time=20"]
    job = sbatch(*options, "job_files/train_model.job", "--batch_size", 4, "--epochs", 1, env=env, output=log)
    assert wait_for_end(job) == ["COMPLETED"], log.read_text()
    assert "Test accuracy" in log.read_text()
    run = tmp_path / "runs" / "clips"
    assert (run / "confusion.png").read_bytes()[:4] == b"\x89PNG"
    assert len((run / "predictions.csv").read_text().splitlines()) == 1 + 6  # one of four performers
    assert json.loads((run / "data.json").read_text())["classes"] == ["landing", "fall"]
