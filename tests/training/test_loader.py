"""DataLoader workers: they start whatever locks the training's threads hold, and every wait for them ends."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from multiprocessing import active_children

import pytest
import torch
from torch.utils.data import Dataset

from data_preparation.common.errors import UserError
from data_preparation.common.workers import kill_workers
from tests.conftest import run_python
from training.config import TrainConfig
from training.data.loader import keep_workers, training_batches
from training.runtime.interruption import ProcessLost
from training.runtime.ranks import Ranks


class Numbers(Dataset):
    """Four samples, of which one may take an hour or raise an exception. Its plans are (epoch, index), read by its own reader."""

    repeats = None

    def __init__(self, slow: int | None = None, raising: Exception | None = None) -> None:
        self.slow, self.raising = slow, raising

    @property
    def reader(self) -> Numbers:
        return self

    def plan(self, epoch: int, index: int, repeat: int = 0) -> tuple[int, int]:
        return epoch, index

    def __len__(self) -> int:
        return 4

    def __getitem__(self, item: tuple[int, int]) -> dict[str, torch.Tensor]:
        _, index = item
        if index == self.slow:
            time.sleep(3600)
        if index == 1 and self.raising:
            raise self.raising
        return {"index": torch.tensor(index)}


def batches_of(dataset: Numbers, **flags) -> Iterator[dict[str, torch.Tensor]]:
    return training_batches(dataset, TrainConfig(**{"batch_size": 2, **flags}), Ranks(), torch.device("cpu"), 0, 0)


def test_workers_are_not_forked_from_the_training():
    """A fork inherits the locks that other threads hold at that moment, without the threads that would release them."""
    held = {"lock": True}
    os.register_at_fork(after_in_child=lambda: time.sleep(3600 if held["lock"] else 0))
    try:
        batches = list(batches_of(Numbers(), workers=2, peer_timeout_min=0.5))
    finally:
        held["lock"] = False  # for the tests that follow in this process
    assert sorted(int(number) for batch in batches for number in batch["index"]) == [0, 1, 2, 3]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_that_does_not_arrive_ends_the_wait(workers: int):
    with pytest.raises(ProcessLost, match=r"no batch was loaded within 0\.05 minutes"):
        list(batches_of(Numbers(slow=1), workers=workers, peer_timeout_min=0.05))


@pytest.mark.slow
def test_time_in_which_the_job_is_suspended_does_not_count():
    code = """
import os, signal, subprocess, time
from training.data.workers import time_limit
with time_limit(0.05):  # 3 seconds
    subprocess.Popen(["sh", "-c", f"sleep 5; kill -CONT {os.getpid()}"])
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(0.01)  # here the handler of the one tick is called
"""
    run_python("-c", code)


@pytest.mark.slow
def test_a_stuck_worker_does_not_block_the_end_of_the_training():
    run_python(
        "-c",
        "import tests.training.test_loader as t; b = t.batches_of(t.Numbers(slow=3), batch_size=1, workers=2); next(b)",
    )


def test_a_lost_worker_and_a_bug_have_different_messages():
    batches = batches_of(Numbers(), batch_size=1, workers=1)
    next(batches)
    kill_workers()
    with pytest.raises(ProcessLost, match="a worker died"):
        list(batches)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("raised", "kind", "sentence"),
    [
        (UserError("frame 3 of video 01 is damaged:\nprepare it again"), UserError, r"^frame 3 .*:\nprepare it again$"),
        (
            PermissionError(13, "Permission denied", "01.zip"),
            (UserError, PermissionError),
            r"Permission denied: '01.zip'",
        ),
        (RuntimeError("a mistake"), RuntimeError, "a mistake"),
    ],
)
def test_an_exception_in_a_worker_keeps_its_message(raised: Exception, kind: type, sentence: str, workers: int):
    with pytest.raises(kind, match=sentence):
        list(batches_of(Numbers(raising=raised), workers=workers))


def test_workers_start_once_for_all_passes_and_serve_several_data_sets():
    with keep_workers():
        passes: list[tuple[list[int], set[int | None]]] = []
        files = []
        for epoch in range(4):
            data = Numbers(slow=9) if epoch % 2 else Numbers()
            found = list(batches_of(data, batch_size=1, workers=2))
            passes.append(([int(batch["index"]) for batch in found], {w.pid for w in active_children()}))
            if epoch == 1:  # an open pass has its workers for itself
                first, second = (batches_of(data, batch_size=1, workers=2) for _ in range(2))
                pairs = list(zip(first, second, strict=True))
                assert [int(a["index"]) for a, _ in pairs] == [int(b["index"]) for _, b in pairs] == passes[-1][0]
        for _ in range(30):
            list(batches_of(data, batch_size=1, workers=2))
            files.append(len(os.listdir("/proc/self/fd")))
        assert len(set(files[-20:])) == 1  # none is left open
    assert len({tuple(order) for order, _ in passes}) == 1
    assert passes[0][1] == passes[1][1] <= passes[3][1]
    assert not active_children()


def test_a_worker_that_dies_in_a_later_pass_is_reported_and_leaves_no_process():
    with keep_workers():
        order = [int(batch["index"]) for batch in batches_of(Numbers(), batch_size=1, workers=2)]
        batches = batches_of(Numbers(slow=order[-1]), batch_size=1, workers=2)
        next(batches)
        os.kill(active_children()[0].pid, signal.SIGKILL)
        with pytest.raises(ProcessLost, match="a worker died"):
            list(batches)
        # idle workers that died are replaced; one that is stopped does not hold up the end
        list(batches_of(Numbers(), batch_size=1, workers=2))
        killed = active_children()[0]
        os.kill(killed.pid, signal.SIGKILL)
        killed.join()
        assert len(list(batches_of(Numbers(), batch_size=1, workers=2))) == 4
        os.kill(active_children()[0].pid, signal.SIGSTOP)
    assert not active_children()
