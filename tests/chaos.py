"""Interrupt a training many times on the real cluster, in random ways at random times, and compare it with an uninterrupted
run. One interruption takes about half a minute, so this is not a part of the suite:

    bash tests/cluster/start.sh && source /tmp/deepsports-cluster/env.sh
    python -m tests.chaos [--interruptions 30] [--seed 0] [--folder /tmp/deepsports-chaos]

It prints a line for each interruption, and a table of the steps that were computed twice. It fails unless signals cost no step,
kills cost at most --checkpoint_every and the running step, and the run is the same bit for bit.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from data_preparation.common.command_line import flag, parse, run
from data_preparation.common.errors import UserError
from tests.conftest import TINY_MODEL, data_flags, run_python, worker_processes
from tests.on_cluster import (
    FINAL,
    NODE,
    ON_TWO_NODES,
    call,
    config_flags,
    job_states,
    processes_of,
    sbatch,
    slow,
    step_lines,
    wait_for,
)
from tests.training.test_training import assert_same_run
from training.runtime.run_folder import RunFolder

SAVE_EVERY = 3
MAX_STEPS_BETWEEN = 6  # from a start to its interruption


@dataclass(frozen=True)
class ChaosConfig:
    """Interrupt a training many times."""

    interruptions: int = flag(30, "Number of interruptions.", minimum=1)
    seed: int = flag(0, "Seed of the kinds and times.")
    folder: Path = flag(Path("/tmp/deepsports-chaos"), "Folder for data and runs; it is emptied.")


class Chaos:
    """A job and the ways to interrupt it."""

    def __init__(self, folder: Path, flags: Sequence[object]) -> None:
        self.folder, self.flags, self.log = folder, flags, folder / "job.out"
        self.run = folder / "runs" / "quickstart"
        self.job = ""
        self.cancelled, self.refused = False, 0

    def submit(self) -> None:
        env = slow(self.folder / "set", self.folder, 0.4)
        env["DEEPSPORTS_REQUEUES"] = "1000"
        self.job = sbatch(*ON_TWO_NODES, "--open-mode=append", "job_files/train_model.job", *self.flags, env=env, output=self.log)  # fmt: skip

    # ------------------------------------------------------------------------------- signals, which must cost no step

    def signal(self) -> None:
        call("scancel", "--signal=USR2", self.job)

    def preemption(self) -> None:
        sbatch(
            "--partition=urgent",
            "--nodes=2",
            "--cpus-per-task=2",
            "--wrap=sleep 1",
            env={},
            output=self.folder / "urgent",
        )

    def requeue_by_hand(self) -> None:
        call("scontrol", "requeue", self.job)

    def scancel(self) -> None:
        self.cancelled = True
        call("scancel", self.job)

    # -------------------------------------------------------------------- kills, which may cost unsaved steps

    def kill_rank(self) -> None:
        os.kill(random.choice(list(processes_of(self.job).values())), signal.SIGKILL)

    def kill_all_ranks(self) -> None:
        for pid in processes_of(self.job).values():
            os.kill(pid, signal.SIGKILL)

    def kill_loader(self) -> None:
        """As the kernel does when memory is short. The training does not miss a worker that has no batches left, so repeat it."""
        while job_states(self.job) == ["RUNNING"]:
            for loader in [p for training in processes_of(self.job).values() for p in worker_processes(training)]:
                with suppress(ProcessLookupError):  # it ended with its epoch
                    os.kill(loader, signal.SIGKILL)
            time.sleep(0.2)

    def node_without_power(self) -> None:
        call("bash", NODE, "off", "n2")
        call("scontrol", "update", "nodename=n2", "state=down", "reason=chaos")
        self._repair()

    def node_without_network(self) -> None:
        call("bash", NODE, "cut", "n2")
        call("scontrol", "update", "nodename=n2", "state=down", "reason=chaos")
        wait_for(lambda: job_states(self.job) != ["RUNNING"], "the job to be requeued")
        call("bash", NODE, "off", "n2")
        call("bash", NODE, "join", "n2")
        self._repair()

    def torn_checkpoint(self) -> None:
        """Kill all ranks and cut off the end of the newest checkpoint: the training must use the one before."""
        self.kill_all_ranks()
        wait_for(lambda: job_states(self.job) != ["RUNNING"], "the job to end")
        newest = RunFolder(self.run).checkpoints()
        if len(newest) > 1:
            newest[0].write_bytes(newest[0].read_bytes()[:-1000])

    def _repair(self) -> None:
        call("bash", NODE, "up", "n2")

        def is_up() -> bool:
            subprocess.run(["scontrol", "update", "nodename=n2", "state=resume"], capture_output=True)
            states = call("sinfo", "--noheader", "--nodes=n2", "--format=%T").split()
            return set(states) <= {"idle", "mixed", "allocated"}

        wait_for(is_up, "node n2")


FREE = ("signal", "preemption", "requeue_by_hand", "scancel")
COSTLY = ("kill_rank", "kill_all_ranks", "kill_loader", "node_without_power", "node_without_network", "torn_checkpoint")


def main(argv: Sequence[str]) -> int:
    config = parse(ChaosConfig, argv, prog="python -m tests.chaos")
    if shutil.which("sbatch") is None or "SLURM_CONF" not in os.environ:
        raise UserError("no cluster is running: bash tests/cluster/start.sh, then source its env.sh")
    draw = random.Random(config.seed)
    random.seed(config.seed)
    shutil.rmtree(config.folder, ignore_errors=True)
    data = config.folder / "set"
    run_python("-m", "data_preparation.synthetic", "--dataset", data, "--videos", 2, "--dives", 60)
    run_python("-m", "data_preparation.extract", "--dataset", data, "--height", 72, "--verify")
    epochs = config.interruptions * MAX_STEPS_BETWEEN // 4 + 2
    flags = [*TINY_MODEL, "--epochs", epochs, "--log_every", 1, "--checkpoint_every", SAVE_EVERY, "--drop_path", 0.2, "--ema", 0.9]  # fmt: skip
    whole = ["-m", "torch.distributed.run", "--nproc_per_node", 2, "--master_port", 20000 + os.getpid() % 9000]
    uninterrupted = config.folder / "uninterrupted"
    run_python(*whole, "-m", "training.train", *config_flags(), *data_flags(data), *flags, "--runs_dir", uninterrupted)

    chaos = Chaos(config.folder, flags)
    chaos.submit()
    deck = list(FREE + COSTLY) * (config.interruptions // len(FREE + COSTLY) + 1)
    draw.shuffle(deck)
    lost: dict[str, list[int]] = {}
    for number, kind in enumerate(deck[: config.interruptions], start=1):
        interrupted_at = _let_it_run(chaos, draw)
        if interrupted_at is None:
            print("the training ended before its last interruption", flush=True)
            break
        getattr(chaos, kind)()
        reached, resumed = _start_again(chaos, number)
        cost = reached - resumed
        lost.setdefault(kind, []).append(cost)
        print(
            f"{number:>3}  {kind:<22} after step {reached:>4}, resumed after step {resumed:>4}: {cost} computed again",
            flush=True,
        )
    wait_for(lambda: _ended(chaos), "the end", 900)
    assert_same_run(uninterrupted / "quickstart", chaos.run)
    print("\nkind                    times  steps computed again (most)")
    for kind in FREE + COSTLY:
        if kind in lost:
            print(f"{kind:<22} {len(lost[kind]):>6}  {sum(lost[kind])} ({max(lost[kind])})")
    print("The run is the same, bit for bit: metrics, last and best weights.")
    free = max((max(lost[kind]) for kind in FREE if kind in lost), default=0)
    costly = max((max(lost[kind]) for kind in COSTLY if kind in lost and kind != "torn_checkpoint"), default=0)
    # a kill also loses the checkpoint that was being written, and a step that was logged before its checkpoint
    return 0 if free == 0 and costly <= 2 * SAVE_EVERY else 1


def _let_it_run(chaos: Chaos, draw: random.Random) -> int | None:
    """Wait for some steps of this start; returns the step reached, or None if the training has ended."""
    wait_for(lambda: job_states(chaos.job) == ["RUNNING"] or _ended(chaos), "the job to run")
    begun = max(step_lines(chaos.run), default=0)
    wanted = begun + draw.randint(1, MAX_STEPS_BETWEEN)
    wait_for(lambda: max(step_lines(chaos.run), default=0) >= wanted or _ended(chaos), f"step {wanted}")
    time.sleep(draw.random() * 0.5)
    return None if _ended(chaos) else max(step_lines(chaos.run))


def _ended(chaos: Chaos) -> bool:
    return job_states(chaos.job) == ["COMPLETED"]


def _start_again(chaos: Chaos, times: int) -> tuple[int, int]:
    """Let the job start again, for the n-th time; returns (the step it had reached, the step it resumes after)."""

    def resumed() -> tuple[int, int] | None:
        if (found := _resumption(chaos.log.read_text(), times)) is not None:
            return found
        states = job_states(chaos.job)
        if states == ["PENDING"]:
            time.sleep(2)  # as in start_again, but the job may have started by itself
            subprocess.run(["scontrol", "update", f"jobid={chaos.job}", "starttime=now"], capture_output=True)
        elif states == ["COMPLETED"]:
            return (0, 0)
        elif set(states) <= FINAL:
            # a job is refused after two kills in a row before a step was saved
            refused = chaos.log.read_text().count(" and saved no step after ")
            assert chaos.cancelled or refused > chaos.refused, f"job {chaos.job} ended as {states[0]}: {chaos.log}"
            chaos.cancelled, chaos.refused = False, refused
            print(f"     job {chaos.job} ended as {states[0]}: submitted again", flush=True)
            chaos.submit()
        return None

    return wait_for(resumed, "the job to resume")


def _resumption(log: str, times: int) -> tuple[int, int] | None:
    """(the last step logged before the n-th restart, the step it resumed after), or None before that restart."""
    parts = log.split("INFO    Resuming ")
    if len(parts) <= times:
        return None
    logged = re.findall(r"INFO    epoch (\d+)/\d+ step (\d+)/", "".join(parts[:times]))
    found = re.search(r"at epoch (\d+), step (\d+)\n", parts[times])
    return (_step_of_run(*logged[-1]), _step_of_run(*found.groups())) if found else None


def _step_of_run(epoch: str, step: str) -> int:
    """The steps of the whole run; epochs have four."""
    return 4 * (int(epoch) - 1) + int(step)


if __name__ == "__main__":
    run(main)
