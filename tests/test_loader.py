"""Loader processes: they start whatever the training's threads hold, and nobody waits for one for ever."""

from __future__ import annotations

import os
import time

import pytest
import torch
from torch.utils.data import Dataset

from data_preparation.cli import UserError
from tests.conftest import run_python
from training.config import TrainConfig
from training.data.loader import training_batches
from training.interruption import ProcessLost
from training.ranks import Ranks


class Numbers(Dataset):
    """Four samples; one of them may take an hour, or be damaged."""

    def __init__(self, slow: int | None = None, damaged: int | None = None) -> None:
        self.slow, self.damaged = slow, damaged

    def __len__(self) -> int:
        return 4

    def __getitem__(self, item: tuple[int, int]) -> dict[str, torch.Tensor]:
        _, index = item
        if index == self.slow:
            time.sleep(3600)
        if index == self.damaged:
            raise UserError("frame 3 of video 01 is damaged:\nprepare it again")
        return {"index": torch.tensor(index)}


def loaded(dataset: Numbers, **flags) -> list[int]:
    config = TrainConfig(batch_size=2, workers=2, **flags)
    batches = training_batches(dataset, config, Ranks(), torch.device("cpu"), 0, 0)
    return [int(number) for batch in batches for number in batch["index"]]


def test_they_are_not_forked_from_the_training():
    """A fork inherits the locks that other threads hold at that moment, and the one who would release them is gone."""
    held = {"lock": True}
    os.register_at_fork(after_in_child=lambda: time.sleep(3600 if held["lock"] else 0))
    assert sorted(loaded(Numbers(), peer_timeout_min=0.5)) == [0, 1, 2, 3]
    held["lock"] = False  # for all that comes after in this process


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_that_does_not_come_ends_the_wait(workers: int):
    config = TrainConfig(batch_size=2, workers=workers, peer_timeout_min=0.05)
    with pytest.raises(ProcessLost, match=r"no batch came within 0\.05 minutes"):
        list(training_batches(Numbers(slow=1), config, Ranks(), torch.device("cpu"), 0, 0))


def test_a_process_that_is_stuck_does_not_keep_the_training_from_ending():
    code = """
import torch
from tests.test_loader import Numbers, Ranks, TrainConfig, training_batches
batches = training_batches(Numbers(slow=3), TrainConfig(batch_size=1, workers=2), Ranks(), torch.device("cpu"), 0, 0)
next(batches)
"""
    run_python("-c", code)


@pytest.mark.parametrize("workers", [0, 2])
def test_what_a_loader_process_finds_keeps_its_sentence(workers: int):
    config = TrainConfig(batch_size=2, workers=workers)
    with pytest.raises(UserError, match=r"^frame 3 of video 01 is damaged:\nprepare it again$"):
        list(training_batches(Numbers(damaged=1), config, Ranks(), torch.device("cpu"), 0, 0))
