"""Make a training on the real cluster suffer many faults of many kinds, and compare it with an undisturbed one. One fault takes
10 to 30 s, so this is not a part of the suite. It needs root:

    bash tests/cluster/start.sh && source /tmp/deepsports-cluster/env.sh
    python -m tests.chaos [--faults 100] [--minutes 40] [--kinds kill_rank stop_rank] [--seed 0]

It prints a line for each fault and a table of the kinds. It fails unless every fault ends as its kind says (the training goes
on, the job is requeued, or it ends with a sentence and is submitted again), costs at most the steps that its kind allows, and
the training ends the same bit for bit.
"""

from __future__ import annotations

import math
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
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
MAX_STEPS_BETWEEN = 3  # from a start to its fault
STEP_S = 0.25
PEER_TIMEOUT_MIN = 0.4
SHM_MB = 64
DIVES = 240

_RESUMING = "INFO    Resuming "
_LOST = " lost contact with other ranks of the run "

GOES_ON, REQUEUED, SUBMITTED = "goes on", "requeued", "submitted again"
# steps that may be computed again: those since the last checkpoint, the running one, and the one before, whose checkpoint was
# being written
SINCE_CHECKPOINT = SAVE_EVERY + 2


@dataclass(frozen=True)
class ChaosConfig:
    """Let a training suffer many faults."""

    faults: int = flag(100, "Number of faults.", minimum=1)
    minutes: float = flag(0.0, "No fault after so many minutes; 0: no limit.", minimum=0.0)
    kinds: tuple[str, ...] = flag((), "Kinds of faults; none: all.")
    seed: int = flag(0, "Seed of the kinds and times.")
    folder: Path = flag(Path("/tmp/deepsports-chaos"), "Folder for data and runs; it is emptied, but for the data.")


@dataclass(frozen=True)
class Kind:
    """A kind of fault: what it does, how it may end, and how many steps may be computed again."""

    inflict: Callable[[Chaos], None]
    ends: tuple[str, ...]
    steps: int
    text: str

    @property
    def name(self) -> str:
        return self.inflict.__name__


KINDS: dict[str, Kind] = {}


def kind(*ends: str, steps: int = 0) -> Callable[[Callable[[Chaos], None]], Callable[[Chaos], None]]:
    """Register a method of Chaos as a kind of fault; its docstring is the text of the kind."""

    def register(inflict: Callable[[Chaos], None]) -> Callable[[Chaos], None]:
        KINDS[inflict.__name__] = Kind(inflict, ends, steps, inflict.__doc__ or "")
        return inflict

    return register


class Chaos:
    """A job and the faults that it can suffer."""

    def __init__(self, folder: Path, flags: Sequence[object]) -> None:
        self.folder, self.flags, self.log = folder, flags, folder / "job.out"
        self.run = folder / "runs" / "quickstart"
        self.faults = folder / "faults"
        self.faults.mkdir()
        self.job = ""

    def submit(self) -> None:
        env = slow(self.folder / "set", self.folder, STEP_S)
        env |= {"DEEPSPORTS_REQUEUES": "1000", "DEEPSPORTS_TEST_SHM_MB": str(SHM_MB)}
        env["DEEPSPORTS_TEST_FAULTS"] = str(self.faults)
        self.job = sbatch(*ON_TWO_NODES, "--open-mode=append", "job_files/train_model.job", *self.flags, env=env, output=self.log)  # fmt: skip

    # ------------------------------------------------------------------------------------------------------ signals

    @kind(REQUEUED)
    def usr2(self) -> None:
        """USR2, as before a time limit"""
        call("scancel", "--signal=USR2", self.job)

    @kind(REQUEUED)
    def preemption(self) -> None:
        """a job of a higher partition preempts it"""
        urgent = ["--partition=urgent", "--nodes=2", "--cpus-per-task=2", "--wrap=sleep 1"]
        sbatch(*urgent, env={}, output=self.folder / "urgent")

    @kind(REQUEUED)
    def requeue_by_hand(self) -> None:
        """scontrol requeue"""
        call("scontrol", "requeue", self.job)

    @kind(SUBMITTED)
    def scancel(self) -> None:
        """scancel"""
        call("scancel", self.job)

    # -------------------------------------------------------------------------------------------------------- kills

    @kind(REQUEUED)
    def kill_rank(self) -> None:
        """SIGKILL of a rank"""
        os.kill(self._any_rank(), signal.SIGKILL)

    # two kills in a row before a step was saved make the next start refused
    @kind(REQUEUED, SUBMITTED, steps=SINCE_CHECKPOINT)
    def kill_all_ranks(self) -> None:
        """SIGKILL of all ranks at once"""
        for pid in processes_of(self.job).values():
            os.kill(pid, signal.SIGKILL)

    @kind(REQUEUED)
    def kill_loader(self) -> None:
        """SIGKILL of the workers"""
        # the training does not miss a worker that has no batches left, so repeat it
        self._while_running(lambda: self._signal_loaders(signal.SIGKILL))

    @kind(REQUEUED)
    def node_without_power(self) -> None:
        """a node loses its power"""
        node = random.choice(["n1", "n2"])
        call("bash", NODE, "off", node)
        call("scontrol", "update", f"nodename={node}", "state=down", "reason=chaos")
        self._repair(node)

    @kind(REQUEUED)
    def node_without_network(self) -> None:
        """a node loses its network"""
        call("bash", NODE, "cut", "n2")
        call("scontrol", "update", "nodename=n2", "state=down", "reason=chaos")
        wait_for(lambda: job_states(self.job) != ["RUNNING"], "the job to be requeued")
        call("bash", NODE, "off", "n2")
        call("bash", NODE, "join", "n2")
        self._repair("n2")

    @kind(REQUEUED, SUBMITTED, steps=2 * SINCE_CHECKPOINT)
    def torn_checkpoint(self) -> None:
        """SIGKILL of all ranks, and the newest checkpoint loses its end"""
        self.kill_all_ranks()
        wait_for(lambda: job_states(self.job) != ["RUNNING"], "the job to end")
        newest = RunFolder(self.run).checkpoints()
        if len(newest) > 1:
            newest[0].write_bytes(newest[0].read_bytes()[:-1000])

    # ----------------------------------------------------------------------------------------- processes that hang

    @kind(REQUEUED)
    def stop_rank(self) -> None:
        """SIGSTOP of a rank"""
        rank, before = self._any_rank(), self.log.read_text().count(_LOST)
        os.kill(rank, signal.SIGSTOP)
        wait_for(lambda: self.log.read_text().count(_LOST) > before, "the other rank to notice")
        with suppress(ProcessLookupError):
            os.kill(rank, signal.SIGKILL)  # as srun does a minute later (--wait)

    @kind(GOES_ON)
    def pause_rank(self) -> None:
        """SIGSTOP of a rank, and SIGCONT after 3 s"""
        rank = self._any_rank()
        os.kill(rank, signal.SIGSTOP)
        time.sleep(3)
        os.kill(rank, signal.SIGCONT)

    @kind(REQUEUED)
    def stop_loader(self) -> None:
        """SIGSTOP of the workers"""
        stopped: set[int] = set()
        self._while_running(lambda: stopped.update(self._signal_loaders(signal.SIGSTOP)))
        for pid in stopped:  # without cgroups Slurm does not find those whose parent has ended
            with suppress(OSError):
                if b"forkserver" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)

    @kind(GOES_ON)
    def pause_loader(self) -> None:
        """SIGSTOP of the workers, and SIGCONT after 3 s"""
        self._signal_loaders(signal.SIGSTOP)
        time.sleep(3)
        self._signal_loaders(signal.SIGCONT)

    @kind(GOES_ON)
    def restart_slurmd(self) -> None:
        """the slurmd of a node is killed and starts again"""
        call("bash", NODE, "down", "n2")
        call("bash", NODE, "up", "n2")

    # -------------------------------------------------------------------------------------------- machine and data

    # the worker reports it, or the kernel kills the worker; a worker that needs no new buffer goes on
    @kind(REQUEUED, SUBMITTED, GOES_ON, steps=SINCE_CHECKPOINT)
    def full_shared_memory(self) -> None:
        """/dev/shm of a rank is full for 20 s"""
        filler = Path("/proc", str(self._any_rank()), "root", "dev", "shm", "filler")

        def fill() -> None:  # again and again, because each batch that was used makes room for the next one
            with suppress(OSError), open(filler, "ab", buffering=0) as file:
                while True:
                    file.write(b"\0" * 2**12)

        self._while_running(fill, every_s=0.02, seconds=20)
        with suppress(OSError):  # the rank has ended, and its /dev/shm with it
            filler.unlink()

    @kind(SUBMITTED, steps=SINCE_CHECKPOINT)
    def read_only_run(self) -> None:
        """the folder of the runs becomes read-only"""
        runs, view = self.run.parent, self.folder / "read_only_view"
        view.mkdir(exist_ok=True)
        script = f"mount --bind {runs} {view} && mount -o remount,bind,ro {view} && mount --bind {view} {runs}"
        ranks = list(processes_of(self.job).values())
        for inside in (*([f"--target={pid}", "--mount"] for pid in ranks), [f"--target={os.getpid()}", "--mount"]):
            call("nsenter", *inside, "sh", "-c", script)
        try:
            wait_for(self._has_ended, "the job to end")
        finally:
            call("umount", runs)
            call("umount", view)

    @kind(GOES_ON)
    def clock_jump(self) -> None:
        """the clock of a rank jumps by a day"""
        self._ask_rank("clock", random.choice(["86400", "-86400"]))

    @kind(SUBMITTED)
    def wrong_shape(self) -> None:
        """the batch of a rank has half the rows"""
        self._ask_rank("shape", "")

    # ------------------------------------------------------------------------------------------------------ helpers

    def _has_ended(self) -> bool:
        """Whether the job has ended for good; if it is requeued, let it start now."""
        states = job_states(self.job)
        if states == ["PENDING"]:
            start_now(self.job)
        return set(states) <= FINAL

    def _any_rank(self) -> int:
        return random.choice(list(processes_of(self.job).values()))

    def _ask_rank(self, fault: str, text: str) -> None:
        path = self.faults / f"{fault}-{random.choice([0, 1])}"
        path.write_text(text)
        wait_for(lambda: not path.exists(), f"the fault {path.name}")

    def _while_running(self, action: Callable[[], None], every_s: float = 0.2, seconds: float = math.inf) -> None:
        restarts, deadline = _restarts(self.job), time.monotonic() + seconds
        while job_states(self.job) == ["RUNNING"] and _restarts(self.job) == restarts and time.monotonic() < deadline:
            for _ in range(5):
                action()
                time.sleep(every_s)

    def _signal_loaders(self, number: signal.Signals) -> list[int]:
        loaders = [p for training in processes_of(self.job).values() for p in worker_processes(training)]
        for loader in loaders:
            with suppress(ProcessLookupError):  # it has ended
                os.kill(loader, number)
        return loaders

    def _repair(self, node: str) -> None:
        call("bash", NODE, "up", node)

        def is_up() -> bool:
            subprocess.run(["scontrol", "update", f"nodename={node}", "state=resume"], capture_output=True)
            states = call("sinfo", "--noheader", f"--nodes={node}", "--format=%T").split()
            return set(states) <= {"idle", "mixed", "allocated"}

        wait_for(is_up, f"node {node}")


def start_now(job: str) -> None:
    """Let a requeued job start now, unless it has started by itself meanwhile."""
    # on a busy machine Slurm still sends TERM to the steps of the last start, and the next ones have the same ids
    wait_for(lambda: not _steps_left(job), "the last start to end")
    time.sleep(3)
    subprocess.run(["scontrol", "update", f"jobid={job}", "starttime=now"], capture_output=True)


def _steps_left(job: str) -> list[Path]:
    """The processes of Slurm that run a step of this job."""

    def runs_step(process: Path) -> bool:
        try:
            return (process / "cmdline").read_bytes().startswith(f"slurmstepd: [{job}.".encode())
        except OSError:
            return False

    return [path for path in Path("/proc").glob("[0-9]*") if runs_step(path)]


def _restarts(job: str) -> int:
    return int(re.search(r"Restarts=(\d+)", call("scontrol", "show", "job", job))[1])


@dataclass(frozen=True)
class Ending:
    """How a fault ended: the step that the training had reached, and the step after which it resumed."""

    how: str
    reached: int
    resumed: int

    @property
    def cost(self) -> int:
        return self.reached - self.resumed


def main(argv: Sequence[str]) -> int:
    config = parse(ChaosConfig, argv, prog="python -m tests.chaos")
    if shutil.which("sbatch") is None or "SLURM_CONF" not in os.environ:
        raise UserError("no cluster is running: bash tests/cluster/start.sh, then source its env.sh")
    if unknown := sorted(set(config.kinds) - set(KINDS)):
        raise UserError(f"--kinds {' '.join(unknown)} is unknown: there are {' '.join(KINDS)}")
    draw = random.Random(config.seed)
    random.seed(config.seed)
    data = config.folder / "set"
    for old in config.folder.iterdir() if config.folder.is_dir() else ():
        if old != data:
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    run_python("-m", "data_preparation.synthetic", "--dataset", data, "--videos", 2, "--dives", DIVES)
    run_python("-m", "data_preparation.extract", "--dataset", data, "--height", 72, "--verify")
    epochs = math.ceil(config.faults * (MAX_STEPS_BETWEEN + 2) / _steps_per_epoch(DIVES)) + 1
    flags = [*TINY_MODEL, "--epochs", epochs, "--log_every", 1, "--checkpoint_every", SAVE_EVERY, "--drop_path", 0.2, "--ema", 0.9]  # fmt: skip
    chaos = Chaos(config.folder, [*flags, "--peer_timeout_min", PEER_TIMEOUT_MIN])
    names = config.kinds or tuple(KINDS)
    deck: list[str] = []
    while len(deck) < config.faults:  # each kind about equally often; those without a restart are quick
        deck += draw.sample(names, len(names))
    endings: dict[str, list[Ending]] = {}
    started = time.monotonic()
    chaos.submit()
    for number, name in enumerate(deck[: config.faults], start=1):
        if config.minutes and time.monotonic() - started > 60 * config.minutes:
            break
        if not _let_it_run(chaos, draw):
            print("the training ended before its last fault", flush=True)
            break
        began = time.monotonic()
        ending = _suffer(chaos, KINDS[name])
        endings.setdefault(name, []).append(ending)
        print(
            f"{number:>3}  {name:<22} {ending.how:<15} after step {ending.reached:>4}, resumed after step {ending.resumed:>4}: "
            f"{ending.cost} computed again  ({time.monotonic() - began:.0f} s)",
            flush=True,
        )
    minutes = (time.monotonic() - started) / 60
    wait_for(lambda: _ended(chaos), "the end", 900)
    print(f"\n{sum(map(len, endings.values()))} faults of {len(endings)} kinds in {minutes:.1f} minutes\n")
    is_right = print_table(endings)
    whole = ["-m", "torch.distributed.run", "--nproc_per_node", 2, "--master_port", 20000 + os.getpid() % 9000]
    undisturbed = config.folder / "undisturbed"
    run_python(*whole, "-m", "training.train", *config_flags(), *data_flags(data), *flags, "--runs_dir", undisturbed)
    assert_same_run(undisturbed / "quickstart", chaos.run)
    print("The run is the same, bit for bit: metrics, last and best weights.")
    return 0 if is_right else 1


def print_table(endings: dict[str, list[Ending]]) -> bool:
    """Print a Markdown table of the kinds; returns whether every fault ended as its kind says."""
    print("| fault | times | ended | steps computed again (most) | allowed |")
    print("|---|---|---|---|---|")
    is_right = True
    for name, found in endings.items():
        each = KINDS[name]
        hows = ", ".join(sorted({ending.how for ending in found}))
        costs = [ending.cost for ending in found]
        fits = max(costs) <= each.steps and {ending.how for ending in found} <= set(each.ends)
        is_right &= fits
        print(
            f"| {each.text} | {len(found)} | {hows} | {sum(costs)} ({max(costs)}) | {each.steps}{'' if fits else ' WRONG'} |"
        )
    return is_right


def _steps_per_epoch(dives: int) -> int:
    """A lower bound: half of the dives are trained on, in batches of 8."""
    return dives // 2 // 8


def _let_it_run(chaos: Chaos, draw: random.Random) -> bool:
    """Wait for some steps of this start; False if the training has ended."""
    wait_for(lambda: _is_running(chaos) or _ended(chaos), "the job to run")
    begun = max(step_lines(chaos.run), default=0)
    wanted = begun + draw.randint(1, MAX_STEPS_BETWEEN)
    wait_for(lambda: max(step_lines(chaos.run), default=0) >= wanted or _ended(chaos), f"step {wanted}")
    time.sleep(draw.random() * STEP_S)
    return not _ended(chaos)


def _is_running(chaos: Chaos) -> bool:
    return job_states(chaos.job) == ["RUNNING"]


def _ended(chaos: Chaos) -> bool:
    return job_states(chaos.job) == ["COMPLETED"]


def _suffer(chaos: Chaos, fault: Kind) -> Ending:
    """Inflict a fault, and wait until the training has resumed or gone on."""
    before = chaos.log.read_text().count(_RESUMING)
    fault.inflict(chaos)
    reached = max(step_lines(chaos.run))
    how = REQUEUED

    def over() -> tuple[int, int] | None:
        nonlocal how
        if found := _resumed(chaos, before):
            return found
        if GOES_ON in fault.ends and max(step_lines(chaos.run)) >= reached + 3:
            how = GOES_ON
            return reached, reached
        states = job_states(chaos.job)
        if states == ["PENDING"]:
            start_now(chaos.job)
        elif states and set(states) <= FINAL:
            assert states != ["COMPLETED"], f"the training ended during {fault.name}"
            how = SUBMITTED
            chaos.submit()
        return None

    reached, step = wait_for(over, "three more steps, or the job to resume")
    return Ending(how, reached, step)


def _resumed(chaos: Chaos, before: int) -> tuple[int, int] | None:
    """(the last step logged before a restart, the step it resumed after), or None if no restart followed the first `before`."""
    parts = chaos.log.read_text().split(_RESUMING)
    if len(parts) <= before + 1:
        return None
    logged = re.findall(r"INFO    epoch (\d+)/\d+ step (\d+)/(\d+)", "".join(parts[: before + 1]))
    if (found := re.search(r"at epoch (\d+), step (\d+)\n", parts[before + 1])) is None:
        return None
    epoch, step, steps = map(int, logged[-1])
    return steps * (epoch - 1) + step, steps * (int(found[1]) - 1) + int(found[2])


if __name__ == "__main__":
    run(main)
