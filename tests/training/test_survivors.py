"""A rank is lost: the others save the last completed step, and the resumed run is the same, bit for bit."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest

from data_preparation.common.errors import UserError
from tests.conftest import PATIENCE_S, RANKS, data_flags, tiny_model
from tests.training.test_training import assert_same_run, newest
from training.runtime.rank_monitor import FAILED, KILLED
from training.runtime.ranks import Ranks
from training.runtime.run_folder import RunFolder
from training.runtime.statuses import Status

pytestmark = pytest.mark.usefixtures("rank_server")

# several steps and a validation in each of two epochs; no checkpoint between them but those of survivors
FLAGS = ["--epochs", 2, "--log_every", 1, "--checkpoint_every", 1000, "--ema", 0.9, "--accumulate", 2]

ERROR = 0  # an error of the rank's own, instead of a signal


def _die(how: int) -> None:
    if how == ERROR:
        raise UserError("a frame is damaged")
    os.kill(os.getpid(), how)
    time.sleep(PATIENCE_S)  # after SIGSTOP it is killed by the test


@contextmanager
def dying(point: str, step: int, how: int) -> Iterator[None]:
    """Inside, this process kills itself at a point of the training, once `step` steps of the run are completed."""
    from training.engine import loop, prediction, state
    from training.engine import step as engine_step

    engine: list[loop.Engine] = []

    def before(owner: object, name: str, is_it: Callable[..., bool] = lambda *a, **k: True) -> mock._patch:
        real = getattr(owner, name)

        def wrapped(*arguments, **options):
            if isinstance(arguments[0], loop.Engine):
                engine[:] = [arguments[0]]
            if engine and engine[0].position.global_step >= step and is_it(*arguments, **options):
                _die(how)
            return real(*arguments, **options)

        return mock.patch.object(owner, name, wrapped)

    points = {
        "forward": before(engine_step.Step, "_forward"),
        "backward": before(engine_step.Step, "_gradient_sync"),
        "commit": before(engine_step.Step, "commit"),
        "log": before(loop.Engine, "_log_step"),
        "save": before(loop.Engine, "save_at_once"),  # as the survivor that was chosen
        "validation": before(prediction.Predictor, "forward_all"),
        "end of epoch": before(loop.Engine, "_record", lambda _, record: record["type"] == "epoch"),
        "best.pt": before(  # in the thread that writes, while the other ranks go on
            state.checkpoint, "save", lambda path, _: path.name == "best.pt"
        ),
    }
    with before(loop.Engine, "_train_epoch", lambda *_: False), points[point]:
        yield


def _rank(rank: int, world: int, port: int, argv: list[str], out: Path, death: tuple[str, int, int] | None) -> None:
    os.environ |= {
        "SUBMITIT_LOCAL_GLOBALID": str(rank), "SUBMITIT_LOCAL_NTASKS": str(world), "SUBMITIT_LOCAL_LOCALID": str(rank),
        "DEEPSPORTS_PORT": str(port),
    }  # fmt: skip
    with open(out, "w") as file:
        os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
    from training import train
    from training.engine import survivors

    with mock.patch.object(survivors, "PATIENCE_S", 4.0), nullcontext() if death is None else dying(*death):
        status = train.main(argv)
    os._exit(status)


class Run:
    """A run whose ranks are processes on this machine."""

    def __init__(self, folder: Path, world: int, dataset: Path, *flags: object) -> None:
        self.folder, self.world, self.starts = folder, world, 0
        words = [
            *data_flags(dataset),
            *tiny_model(*flags),
            *FLAGS,
            *flags,
            "--batch_size",
            12,
            "--runs_dir",
            folder,
            "--run_name",
            "run",
        ]
        self.argv = [str(word) for word in words]
        self.run = RunFolder(folder / "run")

    def start(self, deaths: dict[int, tuple[str, int, int]] | None = None) -> tuple[list[int | None], list[str]]:
        """Train with `deaths` (rank -> point, step, signal); returns the exit status and the output of each rank."""
        deaths = deaths or {}
        self.starts += 1
        port = 20000 + (os.getpid() * 7 + self.starts * 13 + self.world) % 9000
        self.folder.mkdir(exist_ok=True)
        outs = [self.folder / f"out-{self.starts}-{rank}" for rank in range(self.world)]
        ranks = [
            RANKS.Process(target=_rank, args=(rank, self.world, port, self.argv, outs[rank], deaths.get(rank)))
            for rank in range(self.world)
        ]
        for rank in ranks:
            rank.start()
        for number, rank in enumerate(ranks):
            if number not in deaths:
                rank.join(PATIENCE_S)
        for rank in ranks:
            rank.kill()
            rank.join()
        return [rank.exitcode for rank in ranks], [out.read_text() for out in outs]


TRANSFORMER = ["--drop_path", 0.2]
BATCH_NORM = ["--model", "tsm", "--batch_norm", "trained", "--bn_group", 2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "world", "deaths"),
    [
        (TRANSFORMER, 2, [
            (0, "log", 1, signal.SIGKILL), (1, "commit", 2, ERROR), (0, "best.pt", 2, signal.SIGKILL),
        ]),
        (BATCH_NORM, 3, [(0, "backward", 1, signal.SIGKILL), (1, "validation", 2, signal.SIGSTOP)]),
    ],
    ids=["two ranks", "three ranks"],
)  # fmt: skip
def test_a_lost_rank_costs_no_step(dataset: Path, tmp_path: Path, flags: list, world: int, deaths: list[tuple]):
    """One after the other: killed, stopped, and with an error of its own."""
    whole, run = Run(tmp_path / "whole", world, dataset, *flags), Run(tmp_path / "lost", world, dataset, *flags)
    statuses, outs = whole.start()
    assert statuses == [0] * world, outs
    for rank, point, step, how in deaths:
        statuses, outs = run.start({rank: (point, step, how)})
        text = "\n".join(outs)
        of_lost = 1 if how == ERROR else -signal.SIGKILL
        assert statuses == [of_lost if each == rank else Status.RANK_LOST for each in range(world)], text
        assert how == ERROR or "Traceback" not in text
        assert re.search(
            rf"ERROR   rank {rank} on \S+ (was lost|{FAILED}) after step \d+.*; rank \d saved step \d+\n", text
        )
        assert newest(run.run.path)["position"]["global_step"] >= step
    statuses, outs = run.start()
    assert statuses == [0] * world, outs
    assert_same_run(whole.run.path, run.run.path)


@pytest.mark.slow
def test_the_last_survivor_saves_if_the_chosen_one_is_killed(dataset: Path, tmp_path: Path):
    run = Run(tmp_path / "lost", 3, dataset, *TRANSFORMER)
    statuses, outs = run.start({2: ("backward", 1, signal.SIGKILL), 0: ("save", 1, signal.SIGKILL)})
    assert statuses == [-signal.SIGKILL, Status.RANK_LOST, -signal.SIGKILL], outs
    assert re.search(r"rank 2 on \S+ was lost after step \d+ \(killed\); rank 1 saved step \d+\n", outs[1])
    assert newest(run.run.path)["position"]["global_step"] >= 1


@pytest.mark.parametrize(
    ("places", "writer"),
    [
        ({1: (0, 7), 2: (0, 7)}, 1),
        ({0: (1, 7), 1: (1, 8), 2: (1, 8)}, 1),  # the first rank is a step behind
        ({0: (1, 8), 2: (2, 8)}, 2),  # rank 2 has counted the epoch, too
    ],
)
def test_the_lowest_rank_with_the_latest_step_saves(tmp_path: Path, places: dict[int, tuple[int, int]], writer: int):
    saved = []
    lost = {rank: KILLED for rank in range(3) if rank not in places}
    survivors = [survivor(tmp_path, rank, place, lost, saved.append) for rank, place in places.items()]
    texts = save_all(survivors)
    assert saved == [writer]
    assert len(set(texts)) == 1
    assert texts[0].endswith(f"; rank {writer} saved step {places[writer][1]}")
    assert RunFolder(tmp_path).progress().error == texts[0]


def survivor(folder: Path, rank: int, place: tuple[int, int], lost: dict[int, str], save: Callable[[int], object]):
    """What a rank of three does after others were lost; `save(rank)` writes its checkpoint."""
    from training.engine.survivors import Survivors

    made = Survivors.__new__(Survivors)
    made.ranks, made.hosts, made.folder = Ranks(rank, 3), ["n0", "n1", "n2"], folder
    made.run = RunFolder(folder)
    made.monitor = SimpleNamespace(lost=lost, ended=set(lost), causes={}, leave=lambda *_: None)
    made.trainer = SimpleNamespace(commit_lock=threading.Lock(), place=lambda: place, save_at_once=lambda: save(rank))
    return made


def save_all(survivors: list) -> list[str]:
    """Let all save at the same time; returns what each says."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda each: each._save("Connection reset by peer"), survivors))


@pytest.mark.parametrize("error", [UserError("the disk is full"), OSError(30, "Read-only file system"), RuntimeError()])
def test_the_next_rank_saves_if_the_chosen_one_cannot(tmp_path: Path, error: Exception):
    saved = []

    def save(rank: int) -> None:
        if rank == 0:
            raise error
        saved.append(rank)

    texts = save_all([survivor(tmp_path, rank, (0, 7), {2: KILLED}, save) for rank in (0, 1)])
    assert saved == [1]
    assert len(set(texts)) == 1
    assert texts[0].endswith("; rank 1 saved step 7")


def test_the_next_rank_saves_if_the_chosen_one_dies(tmp_path: Path):
    """Rank 0 has said that it leaves and which step it has; then its connection closes."""
    saved = []
    (tmp_path / "rank0.json").write_text("[0, 7]")
    waiting = survivor(tmp_path, 1, (0, 7), {2: KILLED}, saved.append)
    waiting.monitor.ended.add(0)
    assert waiting._save("Connection reset by peer").endswith("; rank 1 saved step 7")
    assert saved == [1]


def test_a_rank_waits_while_the_checkpoint_of_the_chosen_one_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from training.engine import survivors

    now = [0.0]
    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=lambda seconds: now.__setitem__(0, now[0] + seconds))
    monkeypatch.setattr(survivors, "time", clock)
    waiting = survivor(tmp_path, 1, (0, 7), {}, lambda _: None)
    file = waiting.run.checkpoint_file(0, 7)
    file.parent.mkdir()
    sizes = iter(range(1, 8))

    def written_bytes(writer: int) -> int:  # it grows for longer than _STALL_S, then no more
        size = next(sizes, 7)
        file.with_name(f".{file.name}.n{writer}.1.tmp").write_bytes(b"x" * size)
        clock.sleep(survivors._STALL_S / 2)
        return survivors.Survivors._written_bytes(waiting, writer)

    waiting._written_bytes = written_bytes
    assert not waiting._wait_for(0, (0, 7))
    assert next(sizes, None) is None
    assert now[0] >= 3 * survivors._STALL_S


def test_the_cause_of_a_lost_worker_is_recorded_by_the_rank_that_saves(tmp_path: Path):
    saving = survivor(tmp_path, 0, (0, 7), {}, lambda _: None)
    saving.monitor.ended, saving.monitor.causes = {1, 2}, {1: "a worker died (killed)"}
    assert saving._save("the monitor of the ranks") == "rank 1 on n1: a worker died (killed); rank 0 saved step 7"
    assert saving.run.progress().error.startswith("rank 1 on n1: a worker died")


def test_a_resume_adds_the_records_that_a_lost_rank_did_not_write(tmp_path: Path):
    run = RunFolder(tmp_path)
    steps = [{"type": "step", "epoch": 1, "step": step, "loss": float(step)} for step in range(1, 6)]
    epoch = {"type": "epoch", "epoch": 1, "step": 3}
    for record in (steps[0], steps[1], steps[4]):
        run.append_metrics(record)
    run.rewind_metrics(1, 4, [*steps[:3], epoch, steps[3]])
    assert list(run.records()) == [*steps[:3], epoch, steps[3]]
