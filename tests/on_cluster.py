"""Helpers of the tests on the real Slurm cluster: run its commands, wait for jobs, submit jobs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.conftest import REPOSITORY, run_python

NODE = REPOSITORY / "tests" / "cluster" / "node.sh"
ON_TWO_NODES = ["--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1", "--mem=3G", "--gpus-per-node=0", "--time=20"]

WAIT_S = 600  # a busy machine may need minutes to start a training

FINAL = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"}


def call(*command: object, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        [*map(str, command)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        env={**os.environ, **(env or {})},
        timeout=WAIT_S,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def job_states(job: str) -> list[str]:
    """The state of a job, or of each task of an array."""
    lines = call("squeue", "--noheader", "--states=all", "--array", f"--jobs={job}", "--format=%T").split()
    return lines


def wait_for(condition: Callable[[], object], what: str, seconds: int = WAIT_S) -> object:
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}\n{call('squeue', '--states=all')}"
        time.sleep(0.5)
    return value


def wait_for_end(job: str) -> list[str]:
    return wait_for(lambda: (states := job_states(job)) and set(states) <= FINAL and states, f"job {job} to end")


def accounted(job: str, field: str) -> str:
    """A field of an ended job in the accounting, which is a second or two late."""

    def ask(what: str) -> str:
        return call("sacct", "--noheader", "--allocations", "--parsable2", f"--format={what}", f"--jobs={job}").strip()

    wait_for(lambda: ask("State") in FINAL, f"sacct to show how job {job} ended")
    return ask(field)


def comment_of(job: str) -> str:
    return call("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%k")


def environment(dataset: Path, tmp_path: Path) -> dict[str, str]:
    """The environment variables that job_files/environment.sh would set, with the folders of a test."""
    return {
        "DEEPSPORTS_DATASET": str(dataset),
        "DEEPSPORTS_RUNS": str(tmp_path / "runs"),
        "DEEPSPORTS_VENV": sys.prefix,
        "DEEPSPORTS_CONFIG": "job_files/quickstart_config.sh",
    }


def sbatch(*arguments: object, env: dict[str, str], output: Path) -> str:
    return call("sbatch", "--parsable", f"--output={output}", *arguments, env=env).strip()


_restarts: dict[str, int] = {}  # how often each job was started again by start_again


def start_again(job: str) -> None:
    """Wait until a job is requeued once more, and let it start now. On a busy machine it may have started by itself."""
    wanted = _restarts.get(job, 0) + 1

    def is_requeued() -> bool:
        return int(re.search(r"Restarts=(\d+)", call("scontrol", "show", "job", job))[1]) >= wanted

    wait_for(is_requeued, f"requeue {wanted} of job {job}")
    _restarts[job] = wanted
    # for about a second after a job's credential is revoked, nodes refuse its next one ("Killing non-startable batch job")
    time.sleep(2)
    subprocess.run(["scontrol", "update", f"jobid={job}", "starttime=now"], capture_output=True)


def keep_pending(job: str) -> None:
    """Wait until a job is requeued, and let it wait until start_again."""
    wait_for(lambda: job_states(job) == ["PENDING"], f"the requeue of job {job}")
    call("scontrol", "update", f"jobid={job}", "starttime=now+1hour")


def submit(dataset: Path, tmp_path: Path, *arguments: object, step_s: float = 0) -> tuple[str, str]:
    """(job id, the output of launch.submit)."""
    env = slow(dataset, tmp_path, step_s)
    out = run_python("-m", "launch.submit", "--config", "job_files/quickstart_config.sh", *arguments, env=env).stdout
    return next(line.split()[1] for line in out.splitlines() if line.startswith("job ")), out


SMALL_JOB = ["--gpus_per_node", 0, "--cpus_per_gpu", 1, "--mem_per_gpu_gb", 3, "--time_min", 20, "--forecast", "False"]


def slow(dataset: Path, tmp_path: Path, step_s: float = 0.4) -> dict[str, str]:
    """The environment of a job whose steps take `step_s` longer, so that a test can interrupt it."""
    path = str(REPOSITORY / "tests" / "slow_steps")
    return {**environment(dataset, tmp_path), "DEEPSPORTS_PYTHONPATH": path, "DEEPSPORTS_TEST_STEP_S": str(step_s)}


def step_lines(run: Path) -> list[int]:
    """The steps that a run has logged so far."""
    if not (run / "metrics.jsonl").exists():
        return []
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [record["step"] for line in lines if '"type": "step"' in line and (record := json.loads(line))]


def wait_for_step(run: Path, step: int) -> None:
    wait_for(lambda: max(step_lines(run), default=0) >= step, f"step {step}")


def processes_of(job: str) -> dict[int, int]:
    """The process id of each rank of a running job, without the shell that starts it and without the processes that it forks."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            command = (path.parent / "cmdline").read_bytes()
            variables = dict(v.split("=", 1) for v in path.read_text(errors="replace").split("\0") if "=" in v)
            parent = re.search(r"PPid:\t(\d+)", (path.parent / "status").read_text())[1]
            is_task = Path(f"/proc/{parent}/comm").read_text().startswith("slurmstepd")
        except OSError:
            continue
        trains = re.match(rb"[^\0]*python[^\0/]*\0-m\0launch\.job\0run\0", command)
        if variables.get("SLURM_JOB_ID") == job and trains and is_task and "SLURM_PROCID" in variables:
            found[int(variables["SLURM_PROCID"])] = int(path.parent.name)
    return found


def config_flags() -> list[str]:
    from launch.config import read_flag_file

    flags = read_flag_file(REPOSITORY / "job_files" / "quickstart_config.sh")
    return flags[flags.index("--run_name") :]
