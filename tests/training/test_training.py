"""Whole trainings of a tiny network on the synthetic set: results, resume, several ranks, signals, refusals."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from scipy import stats
from submitit.core.utils import DelayedSubmission

from data_preparation.common.command_line import to_argv
from launch.job import TrainingJob
from tests.conftest import PATIENCE_S, REPOSITORY, TINY_MODEL, data_flags, run_main, worker_processes
from training.config import DATA_PATHS
from training.runtime import checkpoint
from training.runtime.interruption import STATUS
from training.runtime.run_folder import RunFolder

# The environment of a process with slow steps, so that a signal arrives before the last one.
SLOW_STEPS = {**os.environ, "PYTHONPATH": str(REPOSITORY / "tests" / "slow_steps"), "DEEPSPORTS_TEST_STEP_S": "0.2"}
TIMES = ("seconds", "data_s", "step_s")


def metrics(run: Path) -> list[dict]:
    """The lines of metrics.jsonl without what depends on the clock."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if k not in TIMES} for r in records]


def newest(run: Path) -> dict:
    """The content of the newest checkpoint."""
    return checkpoint.load(RunFolder(run).checkpoints()[0])


def weights(run: Path, name: str = "last") -> dict[str, torch.Tensor]:
    return (newest(run) if name == "last" else checkpoint.load(run / "checkpoints" / f"{name}.pt"))["model"]


def assert_same_run(a: Path, b: Path) -> None:
    assert metrics(a) == metrics(b)
    for name in ("last", "best"):
        one, other = weights(a, name), weights(b, name)
        assert all(torch.equal(one[k], other[k]) for k in one)


def start(*command: object, **options) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )


@pytest.fixture(scope="module")
def finished(dataset: Path, tmp_path_factory) -> Path:
    """A finished run of three epochs, its test split opened."""
    runs = tmp_path_factory.mktemp("runs")
    command = ["-m", "training.train", *data_flags(dataset), *TINY_MODEL, "--runs_dir", runs, "--run_name", "whole",
               "--epochs", 3, "--loss_spcoef_weight", 0.3, "--frame_method", "spaced_varied_new", "--data_aug", "True",
               "--log_every", 1, "--evaluate", "True", "--accumulate", 2, "--ema", 0.9]  # fmt: skip
    process = start(*command)
    out, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, out
    return runs / "whole"


def same_flags(finished: Path, *flags: object) -> list[object]:
    """The flags of the finished run, then others."""
    return ["-m", "training.train", *to_argv(RunFolder(finished).saved_config()), *flags]


def train_here(finished: Path, *flags: object, check: bool = True) -> subprocess.CompletedProcess:
    """Train in this process, without workers, with the flags of the finished run and others."""
    command = [*same_flags(finished, "--workers", 0, *flags)]
    return run_main(command[1], *command[2:], check=check)


def run_to_end(*command: object, **options) -> str:
    process = start(*command, **options)
    out, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, out
    return out


def test_a_run_writes_all_files_of_the_readme(finished: Path):
    present = {p.name for p in finished.iterdir()}
    assert present >= {
        "config.json", "environment.json", "splits.json", "metrics.jsonl", "progress.json", "checkpoints", "losses.png",
        "predictions.csv", "scores.png", "summary.json", "report.html", "jobs",
    }  # fmt: skip
    assert RunFolder(finished).resumes() == []
    assert not list(finished.rglob("*.tmp"))
    assert [m["epoch"] for m in metrics(finished) if m["type"] == "epoch"] == [1, 2, 3]
    assert json.loads((finished / "progress.json").read_text())["state"] == "finished"
    assert (finished / "losses.png").read_bytes().startswith(b"\x89PNG")
    splits = json.loads((finished / "splits.json").read_text())
    parts = [{tuple(k) for k in splits[name]} for name in ("train", "val", "test")]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 60


def test_the_page_of_a_run_is_made_again_with_maps(finished: Path, tmp_path: Path):
    shutil.copytree(finished, tmp_path / "a")
    run_main("training.report", "--html", tmp_path / "a", "--maps", "True")
    page = RunFolder(tmp_path / "a").report_file.read_text()
    assert page.count(", frame 1 of 6") == page.count(", map 1 of 4") == 10  # examples; the network sees four frames
    assert "score: frame" in page


def test_the_test_spearman_is_scipys_with_the_best_epoch(finished: Path):
    rows = list(csv.DictReader((finished / "predictions.csv").open()))
    summary = json.loads((finished / "summary.json").read_text())
    predicted, true = ([float(r[c]) for r in rows] for c in ("predicted_score", "true_score"))
    assert summary["test"]["dives"] == len(rows)
    assert summary["test"]["spearman"] == pytest.approx(stats.spearmanr(predicted, true).statistic, abs=1e-9)
    low, high = summary["test"]["spearman_ci95"]
    assert low <= summary["test"]["spearman"] <= high
    assert {"train mean", "difficulty alone", "event mean", "dive number mean"} <= set(summary["baselines"])
    by_epoch = {m["epoch"]: m["val_spearman"] for m in metrics(finished) if m["type"] == "epoch"}
    assert summary["checkpoint"]["val_spearman"] == max(by_epoch.values())
    assert by_epoch[summary["checkpoint"]["epoch"]] == max(by_epoch.values())


def test_the_test_split_is_opened_once(finished: Path):
    """A finished run changes nothing, but draws a missing plot."""
    plot = (finished / "losses.png").read_bytes()
    (finished / "losses.png").unlink()
    before = (finished / "summary.json").read_text()
    config = (finished / "config.json").read_text()
    assert (
        "not opened again" in train_here(finished, "--workers", 1).stderr
    )  # as before: the run folder keeps the flags
    assert (finished / "config.json").read_text() == config
    assert (finished / "summary.json").read_text() == before
    assert (finished / "losses.png").read_bytes() == plot
    assert "Test Spearman" in run_main("training.evaluate", "--run", finished).stdout


def test_a_later_evaluation_gives_the_same_number(finished: Path, tmp_path: Path):
    copied = tmp_path / "copy"
    shutil.copytree(finished, copied)
    for name in ("summary.json", "predictions.csv"):
        (copied / name).unlink()
    run_main("training.evaluate", "--run", copied, "--workers", 0)
    assert (copied / "predictions.csv").read_text() == (finished / "predictions.csv").read_text()


def test_a_run_whose_data_were_moved_is_evaluated(finished: Path, dataset: Path, tmp_path: Path):
    """The message names all missing paths and their flags; a second call prints the same result."""
    copied = tmp_path / "elsewhere" / "renamed"
    shutil.copytree(finished, copied)
    for name in ("summary.json", "predictions.csv"):
        (copied / name).unlink()
    config = (copied / "config.json").read_text().replace(str(dataset), "/old/cluster/data")
    (copied / "config.json").write_text(config)
    evaluate = ("training.evaluate", "--run", copied, "--workers", "0")
    done = run_main(*evaluate, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    for name, path in zip(DATA_PATHS, data_flags(dataset)[1::2], strict=False):
        inside = Path(path).relative_to(dataset)
        assert f"--{name} /old/cluster/data/{inside}" in line
        assert f"--{name} NEW/{inside}" in line
    assert "--workers 0 --root_dir NEW" in line

    annotations = dataset / "annotations"
    swapped = ("--train_path", annotations / "test_split_0.pkl", "--test_path", annotations / "train_split_0.pkl")
    refused = run_main(*evaluate, *data_flags(dataset), *swapped, check=False)
    assert refused.returncode == 2
    assert "was trained on other annotations or lists" in refused.stderr

    first = run_main(*evaluate, *data_flags(dataset))
    assert (copied / "predictions.csv").read_text() == (finished / "predictions.csv").read_text()
    second = run_main(*evaluate)  # needs no data
    assert first.stdout == second.stdout
    assert "without video, train mean" in first.stdout
    assert json.loads((copied / "config.json").read_text()) == json.loads(config)


def test_a_folder_without_a_run_is_refused_with_a_suggestion(finished: Path):
    for given, words in (
        (finished.parent, f"holds no run (no config.json): give the folder of a run, such as {finished}"),
        (finished.with_name("whol"), f"does not exist: give the folder of a run, such as {finished}"),
    ):
        done = run_main("training.evaluate", "--run", given, check=False)
        assert done.returncode == 2
        assert words in done.stderr


def test_an_unfinished_run_is_not_evaluated(finished: Path, tmp_path: Path):
    train_here(finished, "--runs_dir", tmp_path, "--epochs", 1, "--evaluate", "False")
    unfinished = tmp_path / "whole"
    config = json.loads((unfinished / "config.json").read_text())
    (unfinished / "config.json").write_text(json.dumps({**config, "epochs": 3}))
    (unfinished / "progress.json").write_text(json.dumps({"state": "interrupted", "updated": 1.0}))
    done = run_main("training.evaluate", "--run", unfinished, check=False)
    assert done.returncode == 2
    assert "trained 1 of 3 epochs" in done.stderr
    assert not (unfinished / "summary.json").exists()


def test_the_same_flags_give_the_same_run(finished: Path, tmp_path: Path):
    """In another process, and without workers."""
    train_here(finished, "--runs_dir", tmp_path)
    assert_same_run(finished, tmp_path / "whole")


def interrupt_after_steps(process: subprocess.Popen, run: Path, kind: signal.Signals, steps: int) -> str:
    """Send the signal once so many steps are logged; return what the process printed until its end."""
    lines = run / "metrics.jsonl"
    deadline = time.monotonic() + PATIENCE_S
    while not (lines.exists() and sum('"step"' in line for line in lines.open()) >= steps):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(kind)
    return process.communicate(timeout=PATIENCE_S)[0]


def test_any_number_of_interruptions_changes_nothing(finished: Path, tmp_path: Path):
    """Stopped by each signal, at another step each time, with checkpoints by the clock: the same log lines and the same
    weights, bit for bit."""
    command = same_flags(finished, "--runs_dir", tmp_path, "--checkpoint_every", "0.002min")
    status = {signal.SIGUSR2: 75, signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGHUP: 129}
    for steps, kind in zip((1, 3, 5, 7, 9), status, strict=True):
        process = start(*command, env=SLOW_STEPS)
        out = interrupt_after_steps(process, tmp_path / "whole", kind, steps)
        assert process.returncode == status[kind], out
        assert kind == signal.SIGKILL or "Traceback" not in out  # a worker may report that the training was killed
        assert 0 < newest(tmp_path / "whole")["position"]["global_step"] < max(m["step"] for m in metrics(finished))
    assert "Resuming" in run_main(*command[1:], "--workers", 0).stderr
    assert_same_run(finished, tmp_path / "whole")
    assert len(RunFolder(tmp_path / "whole").checkpoints()) == 2  # --keep_checkpoints


def pending(kind: signal.Signals) -> Callable[[], None]:
    """A preexec_fn for Popen: the process starts with all signals blocked, as job_files/hold_signals.sh starts it, and with
    this one pending."""

    def send() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, STATUS)
        os.kill(os.getpid(), kind)

    return send


@pytest.mark.parametrize("kind", STATUS)
def test_a_signal_before_the_handlers_are_installed_is_remembered(finished: Path, tmp_path: Path, kind):
    """In a shell, in a Slurm step, and under submitit, which has handlers of its own. Slurm sends USR2 and TERM only."""
    _, module, *flags = same_flags(finished, "--runs_dir", tmp_path / "runs")
    flags = [str(word) for word in flags]
    delayed = DelayedSubmission(TrainingJob(flags))
    delayed.set_timeout(100, 3)
    delayed.dump(tmp_path / "7_submitted.pkl")
    local = dict.fromkeys(("NODEID", "GLOBALID", "LOCALID"), "0") | {
        "NTASKS": "1",
        "JOB_NUM_NODES": "1",
        "JOB_ID": "7",
    }
    env = {f"SUBMITIT_LOCAL_{name}": value for name, value in local.items()}
    env |= {"SUBMITIT_EXECUTOR": "local", "DEEPSPORTS_PORT": "20123"}
    commands = [(["-m", module, *flags], {})]
    if kind in (signal.SIGUSR2, signal.SIGTERM):
        commands += [(["-m", "launch.job", "run", *flags], {}), (["-m", "submitit.core._submit", tmp_path], env)]
    for command, more in commands:
        more |= {"DEEPSPORTS_JOB": str(tmp_path / command[1])}
        process = start(*command, preexec_fn=pending(kind), env={**os.environ, **more})
        out, _ = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == STATUS[kind], out
        assert "stopped by a signal before the first step" in out
        assert not (tmp_path / "runs").exists()
        if command[1] != module:
            (end,) = (tmp_path / command[1]).rglob("rank*")
            assert json.loads(end.read_text())["status"] == STATUS[kind]


def test_a_signal_while_torch_is_imported_is_remembered(finished: Path, tmp_path: Path):
    process = start(*same_flags(finished, "--runs_dir", tmp_path))
    state, maps = (Path(f"/proc/{process.pid}/{name}") for name in ("status", "maps"))
    caught = 0
    while not caught >> (signal.SIGUSR2 - 1) & 1:
        caught = int(state.read_text().split("SigCgt:")[1].split()[0], 16)
    assert "libtorch" not in maps.read_text()
    process.send_signal(signal.SIGUSR2)
    out, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 75, out
    assert "before the first step" in out


@pytest.mark.parametrize("newer_env", [True, False])
def test_signals_wait_for_a_program_that_is_not_ready(tmp_path: Path, newer_env: bool):
    if not newer_env:
        (tmp_path / "env").write_text("#!/bin/sh\nexit 125\n")
        (tmp_path / "env").chmod(0o755)
    (tmp_path / "python").symlink_to(sys.executable)
    code = "import signal; print(*sorted(int(s) for s in signal.pthread_sigmask(signal.SIG_BLOCK, [])))"
    done = subprocess.run(
        ["bash", "job_files/hold_signals.sh", sys.executable, "-c", code],
        cwd=REPOSITORY, capture_output=True, text=True, env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert done.stdout.split() == [str(int(number)) for number in sorted(STATUS)], done.stderr


def test_a_training_saves_when_its_terminal_is_closed(finished: Path, tmp_path: Path):
    """First its output has no reader any more, then the shell sends HUP. Under nohup, HUP is ignored."""
    command = same_flags(finished, "--runs_dir", tmp_path, "--epochs", 500)
    process = start(*command)
    process.stdout.readline()
    process.stdout.close()
    lines = tmp_path / "whole" / "metrics.jsonl"
    while not (lines.exists() and sum('"step"' in line for line in lines.open()) >= 6):
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGHUP)
    assert process.wait(PATIENCE_S) == 129
    at = newest(tmp_path / "whole")["position"]["global_step"]

    process = start(*command, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    process.stdout.readline()
    process.send_signal(signal.SIGHUP)
    while newest(tmp_path / "whole")["position"]["global_step"] < at + 8:
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.communicate()


def test_term_to_all_processes_of_a_job_keeps_the_checkpoint(finished: Path, tmp_path: Path):
    """scancel sends TERM to the workers, too."""
    command = same_flags(finished, "--runs_dir", tmp_path, "--workers", 2, "--epochs", 50)
    process = start(*command, start_new_session=True)
    lines = tmp_path / "whole" / "metrics.jsonl"
    while not (lines.exists() and sum('"step"' in line for line in lines.open()) >= 6):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGTERM)
    out, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 143, out
    assert "Traceback" not in out
    assert RunFolder(tmp_path / "whole").checkpoints()


def test_three_ranks_resume_bit_for_bit(finished: Path, tmp_path: Path):
    """With three ranks the order of summing gradients matters: it must be the same after a resume."""
    flags = same_flags(finished, "--runs_dir", tmp_path, "--accumulate", 1, "--batch_size", 9, "--evaluate", "False")
    flags += ["--workers", 0, "--checkpoint_every", 1, "--keep_checkpoints", 99]
    torchrun(3, *flags, "--run_name", "through")
    shutil.copytree(tmp_path / "through", tmp_path / "stopped")
    keep_until_step(tmp_path / "stopped", 4)
    assert "Resuming" in torchrun(3, *flags, "--run_name", "stopped")
    assert_same_run(tmp_path / "through", tmp_path / "stopped")


def test_a_killed_worker_ends_the_training(finished: Path, tmp_path: Path):
    """As the kernel does if memory is short: the training ends at once, with the status that asks for a restart."""
    # few lines, because nobody reads them before the end and a full pipe would stop the training
    command = same_flags(finished, "--runs_dir", tmp_path, "--epochs", 500, "--loglevel", "WARNING")
    process = start(*command, env=SLOW_STEPS)
    while process.poll() is None:  # workers exist only while an epoch loads its batches
        for loader in worker_processes(process.pid) if (tmp_path / "whole" / "metrics.jsonl").exists() else []:
            with suppress(ProcessLookupError):
                os.kill(loader, signal.SIGKILL)
        time.sleep(0.01)
    out, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 76, out
    assert "a worker died" in out
    assert "Traceback" not in out


def test_the_workers_of_a_killed_training_end(finished: Path, tmp_path: Path):
    flags = ("--runs_dir", tmp_path, "--epochs", 500, "--loglevel", "WARNING")  # few lines: nobody reads them
    process = start(*same_flags(finished, *flags), env=SLOW_STEPS)
    while not worker_processes(process.pid):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    process.kill()
    process.communicate(timeout=PATIENCE_S)  # returns when the last worker has ended


def keep_until_step(run: Path, step: int) -> None:
    """Delete the checkpoints and results of later steps, so that the run resumes after this one."""
    later = [p for p in RunFolder(run).checkpoints() if int(p.stem.rsplit("-", 1)[1]) > step]
    assert later
    best = RunFolder(run).best_checkpoint
    if checkpoint.load(best)["position"]["global_step"] > step:
        later.append(best)
    for path in later:
        path.unlink()
    for name in ("summary.json", "predictions.csv"):
        (run / name).unlink(missing_ok=True)


def torchrun(ranks: int, *command: object) -> str:
    port = 20000 + os.getpid() % 9000
    return run_to_end("-m", "torch.distributed.run", "--nproc_per_node", ranks, "--master_port", port, *command)


def test_any_number_of_ranks_evaluates_to_the_same_digits(finished: Path, tmp_path: Path):
    """16 test dives on three ranks: no dive is padded or counted twice."""
    for ranks in (1, 3):
        copied = tmp_path / str(ranks)
        shutil.copytree(finished, copied)
        for name in ("summary.json", "predictions.csv"):
            (copied / name).unlink()
        torchrun(ranks, "-m", "--", "training.evaluate", "--run", copied)
        assert (copied / "summary.json").read_text() == (finished / "summary.json").read_text()
        assert (copied / "predictions.csv").read_text() == (finished / "predictions.csv").read_text()


def test_two_ranks_do_what_one_does(finished: Path, tmp_path: Path):
    """The same global batch on one and on two processes: the same losses, gradients and predictions, up to rounding."""
    flags = ["--runs_dir", tmp_path, "--dropout", 0, "--drop_path", 0, "--optimizer", "SGD", "--learning_rate", 0.01]
    train_here(finished, *flags, "--run_name", "one", "--accumulate", 1)
    torchrun(2, *same_flags(finished, *flags, "--run_name", "two"))
    for one, two in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        assert one["loss" if "loss" in one else "train_loss"] == pytest.approx(
            two["loss" if "loss" in two else "train_loss"], rel=1e-3
        )
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(torch.allclose(one[k], two[k], atol=2e-4) for k in one)


def test_a_run_resumes_with_another_number_of_ranks(finished: Path, tmp_path: Path):
    """One process until the middle of an epoch, then two: what one process alone would have done, up to rounding, with
    dropout and stochastic depth."""
    flags = same_flags(finished, "--runs_dir", tmp_path, "--accumulate", 1, "--drop_path", 0.2, "--ema", 0)
    flags += ["--optimizer", "SGD", "--learning_rate", 0.01, "--checkpoint_every", 1, "--keep_checkpoints", 99]
    run_main(*flags[1:], "--workers", 0, "--run_name", "alone")
    shutil.copytree(tmp_path / "alone", tmp_path / "whole")
    keep_until_step(tmp_path / "whole", 6)
    assert "Resuming" in torchrun(2, *flags)
    assert [resume["step"] for resume in RunFolder(tmp_path / "whole").resumes()] == [6]
    alone, changed = metrics(tmp_path / "alone"), metrics(tmp_path / "whole")
    assert len(alone) == len(changed)
    for one, other in zip(alone, changed, strict=True):
        for name in ("loss", "train_loss", "val_loss"):
            if name in one:
                assert one[name] == pytest.approx(other[name], rel=1e-3)
    one, other = weights(tmp_path / "alone"), weights(tmp_path / "whole")
    assert all(torch.allclose(one[k], other[k], atol=2e-4) for k in one)


# ------------------------------------------------------------------------------------------------------------ refusals


def test_a_run_folder_of_another_configuration_is_refused(finished: Path):
    before = metrics(finished)
    for flags, words in (
        (
            ["--learning_rate", 0.5, "--workers", 2],
            ["--learning_rate: 0.001 -> 0.5", "--run_name", "these may differ: --workers: 1 -> 2"],
        ),
        (["--resume", "False"], ["--resume is False"]),
        (["--epochs", 9], ["would be chosen after seeing it"]),
    ):
        done = train_here(finished, *flags, check=False)
        assert done.returncode == 2
        assert all(word in done.stderr for word in words), done.stderr
    assert metrics(finished) == before


def test_a_second_training_in_the_same_folder_is_refused(finished: Path, tmp_path: Path):
    command = same_flags(finished, "--runs_dir", tmp_path, "--epochs", 50)
    first = start(*command)
    lines = tmp_path / "whole" / "metrics.jsonl"
    while not (lines.exists() and lines.read_text()):
        assert first.poll() is None, first.communicate()[0]
        time.sleep(0.05)
    second = run_main(*command[1:], "--workers", 0, check=False)
    out = second.stderr
    assert second.returncode == 2
    assert "another training is running in" in out
    assert first.poll() is None
    first.kill()
    first.communicate(timeout=PATIENCE_S)


def test_a_torn_checkpoint_is_replaced_by_the_previous_one(finished: Path, tmp_path: Path):
    """With a message, and to the same result. If none is intact, the run does not start from scratch by itself."""
    copied = tmp_path / "torn"
    shutil.copytree(finished, copied)
    last, _ = RunFolder(copied).checkpoints()
    last.write_bytes(last.read_bytes()[:5000])
    flags = ("--runs_dir", tmp_path, "--run_name", "torn")
    out = train_here(finished, *flags).stderr
    assert f"{last} is damaged" in out
    assert f"Resuming {copied} at epoch" in out
    assert_same_run(finished, copied)
    assert last.with_name(last.name + ".damaged").exists()
    for path in RunFolder(copied).checkpoints():
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1  # one bit
        path.write_bytes(content)
    before = metrics(copied)
    for _ in range(2):  # also the second time
        done = train_here(finished, *flags, check=False)
        out = done.stderr
        assert done.returncode == 2
        assert "no checkpoint to resume from" in out
        assert json.loads((copied / "progress.json").read_text())["state"] == "failed"
    assert metrics(copied) == before


def test_missing_frames_are_named_before_anything_is_made(train, dataset: Path, tmp_path: Path):
    frames = tmp_path / "frames"
    frames.mkdir()
    shutil.copy(dataset / "whole_videos_frames" / "01.zip", frames)
    done = train("--root_dir", frames, check=False)
    assert done.returncode == 2
    assert "video 02 has no frames" in done.stderr
    assert "data_preparation.extract --videos 02" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_batch_that_cannot_be_made_is_refused(train):
    assert "more than the" in train("--batch_size", 999, check=False).stderr


def test_a_non_finite_loss_stops_before_the_optimizer(train, tmp_path: Path):
    done = train("--learning_rate", 1e30, "--optimizer", "SGD", "--epochs", 3, check=False)
    assert done.returncode == 2
    assert "the loss became" in done.stderr
    assert "actions 0" in done.stderr


def test_gpus_that_cuda_does_not_see_are_an_error(train):
    if torch.cuda.is_available():
        pytest.skip("CUDA sees a GPU here")
    given = {"SLURM_JOB_ID": "7", "SLURM_JOB_GPUS": "0", "SLURM_NTASKS": "1"}
    done = train("--gpu", "True", check=False, env=given)
    assert done.returncode == 2
    assert "Slurm gave this job GPUs" in done.stderr
    done = train("--gpu", "True", "--epochs", 1, "--run_name", "cpu")
    assert "no GPU found" in done.stderr


def test_a_damaged_frame_is_one_sentence(train, dataset: Path, tmp_path: Path):
    frames = tmp_path / "frames"
    shutil.copytree(dataset / "whole_videos_frames", frames)
    archive = bytearray((frames / "02.zip").read_bytes())
    for at in range(2000, len(archive) - 60_000, 5000):
        archive[at] ^= 0xFF
    (frames / "02.zip").write_bytes(archive)
    done = train("--root_dir", frames, "--workers", 2, check=False, env={})
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert "damaged" in errors[0]
    assert "extract the video again" in errors[0]


def test_c3d_trains(train, tmp_path: Path):
    flags = ["--model", "c3d", "--frame_num", 16, "--frame_method", "end_aligned", "--epochs", 1, "--batch_size", 16]
    flags += ["--optimizer", "SGD"]  # keeps no averages of C3D's 78 M parameters
    train(*flags, "--evaluate", "True", "--checkpoint_activations", "True")
    assert (tmp_path / "runs" / "default" / "summary.json").exists()


def captions_of(dataset: Path) -> list[object]:
    annotations = dataset / "annotations"
    paths = (annotations / "final_captions_dict.pkl", annotations / "vocab.json")
    return ["--captions_path", paths[0], "--vocabulary_path", paths[1]]


def test_multitask_trains_and_writes_captions(train, dataset: Path, tmp_path: Path):
    flags = ["--method", "multitask", *captions_of(dataset), "--epochs", 1, "--evaluate", "True"]
    out = train(*flags).stderr
    run = tmp_path / "runs" / "default"
    epoch = next(m for m in metrics(run) if m["type"] == "epoch")
    assert {"val_position_accuracy", "val_tw_no_accuracy", "val_bleu4", "val_rouge_l"} <= set(epoch)
    test = json.loads((run / "summary.json").read_text())["method_metrics"]
    rows = list(csv.DictReader((run / "predictions.csv").open()))
    assert 0 <= test["armstand_accuracy"] <= 1
    assert {"predicted_rotation_type", "predicted_caption"} <= set(rows[0])
    assert "position_accuracy" in out
    without = train(*flags[:2], "--run_name", "plain", "--epochs", 1).stderr
    assert "caption" not in without


def test_a_frozen_backbone_trains_its_head(train, tmp_path: Path):
    train("--freeze", "True", "--epochs", 1, "--checkpoint_every", 1, "--pretrained_model", "none")
    best = weights(tmp_path / "runs" / "default")
    train("--freeze", "True", "--epochs", 2, "--run_name", "longer")
    longer = weights(tmp_path / "runs" / "longer")
    assert all(torch.equal(best[n], longer[n]) == n.startswith(("backbone.", "input_")) for n in best)


def test_svr_is_fitted_and_stays_fitted(train, tmp_path: Path):
    flags = ["--method", "svr", "--evaluate", "True"]
    assert "Chosen on validation: SVR" in train(*flags).stderr
    run = tmp_path / "runs" / "default"
    before = (run / "predictions.csv").read_text()
    assert "is fitted already" in train(*flags).stderr
    (run / "summary.json").unlink()
    train(*flags)
    assert (run / "predictions.csv").read_text() == before
    assert len(metrics(run)) == 1
    table = run_main("launch.status", "--runs_dir", tmp_path / "runs").stdout
    assert "1/1" in table
    assert "finished" in table


def test_events_are_held_out_whole(train, dataset: Path, tmp_path: Path):
    refused = train("--split", "event", check=False)
    assert refused.returncode == 2
    assert "needs 5 events (videos) and the lists have 2" in refused.stderr


def test_a_compiled_backbone_trains(train, tmp_path: Path):
    """One block, because each further kind of block takes half a minute to compile."""
    flags = ["--depth", 1, "--epochs", 1]
    train(*flags, "--compile", "True", "--run_name", "compiled", env={})
    train(*flags, "--run_name", "plain")
    one, other = (metrics(tmp_path / "runs" / name) for name in ("compiled", "plain"))
    assert one[-1]["val_loss"] == pytest.approx(other[-1]["val_loss"], rel=1e-3)


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA sees a GPU here")
def test_cuda_graphs_say_what_they_lack(train):
    alone = train("--cuda_graphs", "True", "--checkpoint_activations", "selective", check=False)
    assert alone.returncode == 2
    assert "give --compile True" in alone.stderr
    assert "give --checkpoint_activations True or False" in alone.stderr
    on_the_cpu = train("--cuda_graphs", "True", "--compile", "True", check=False)
    assert on_the_cpu.returncode == 2
    assert "--cuda_graphs True needs a GPU and this process uses none" in on_the_cpu.stderr


def test_tensorboard_gets_the_numbers(train, tmp_path: Path):
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed; it is optional")
    train("--tensorboard", "True", "--epochs", 2, "--log_every", 1)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "runs" / "default"
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    written = [(e.step, e.value) for e in events.Scalars("epoch/val_loss")]
    assert written == [(m["step"], pytest.approx(m["val_loss"])) for m in metrics(run) if m["type"] == "epoch"]
    assert "step/grad_norm" in events.Tags()["scalars"]
