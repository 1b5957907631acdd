"""--batch_size auto and --accumulate auto."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from data_preparation.common.command_line import parse, to_argv
from data_preparation.common.errors import UserError
from training import fitting
from training.config import AUTO, TrainConfig, differences
from training.fitting import Choice, choose
from training.forecast import step_bytes
from training.model import build_model
from training.runtime.ranks import Ranks

GIB = 2**30


def gib(rows: int) -> float:
    """10 GiB, and 5 for each action."""
    return (10 + 5 * rows) * GIB


@pytest.mark.parametrize(
    ("flags", "ranks", "saved", "chosen"),
    [
        ({"batch_size": AUTO}, 4, None, (32, 1)),
        ({"batch_size": AUTO, "accumulate": 3}, 4, None, (96, 3)),
        ({"batch_size": AUTO, "batch_norm": "trained", "bn_group": 3}, 2, None, (12, 1)),
        ({"batch_size": AUTO}, 64, None, (64, 1)),  # at most the 100 training actions
        ({"batch_size": AUTO}, 2, (32, 1), (32, 2)),  # half the ranks
        ({"batch_size": AUTO}, 8, (32, 2), (32, 2)),  # it goes on as it was
        ({"batch_size": 64, "accumulate": AUTO}, 4, None, (64, 2)),
        ({"batch_size": 48, "accumulate": AUTO}, 2, None, (48, 3)),
        ({"batch_size": 48, "accumulate": AUTO, "batch_norm": "trained", "bn_group": 6}, 2, None, (48, 4)),
        ({"batch_size": 8, "accumulate": AUTO}, 2, None, (8, 1)),
    ],
)
def test_the_largest_batch_and_the_fewest_parts_that_fit(flags: dict, ranks: int, saved, chosen: tuple[int, int]):
    before = None if saved is None else Choice(*saved)
    found = choose(TrainConfig(**flags), ranks, 100, 50.5 * GIB, gib, before)
    assert (found.batch_size, found.accumulate) == chosen
    again = choose(TrainConfig(**flags), ranks, 100, 50.5 * GIB, gib, found)
    assert (again.batch_size, again.accumulate) == chosen


def test_the_log_gives_the_reason():
    auto = TrainConfig(batch_size=AUTO)
    assert choose(auto, 4, 100, 50.5 * GIB, gib).lines == (
        "--batch_size auto: 32 (4 ranks x 8 actions; 50 of 50.5 GiB expected)",
    )
    assert choose(auto, 4, 100, 31 * GIB, gib, Choice(32, 1)).lines == (
        "--accumulate auto: 2 parts instead of 1 as before of 4 actions per rank (30 of 31 GiB expected; 1 would need 50 GiB)",
    )
    with pytest.raises(UserError, match="1 action per rank, is expected to need 15 of 14 GiB"):
        choose(TrainConfig(accumulate=AUTO), 4, 100, 14 * GIB, gib)


def test_auto_is_a_word_of_the_command_line_and_resumes_any_number():
    config = parse(TrainConfig, ["--batch_size", "AUTO", "--accumulate", "auto"])
    assert (config.batch_size, config.accumulate) == (AUTO, AUTO)
    assert to_argv(config) == ["--batch_size", "auto", "--accumulate", "auto"]
    with pytest.raises(UserError, match=r"'0' is not allowed; allowed: whole number in \[1, inf\], auto"):
        parse(TrainConfig, ["--batch_size", "0"])
    run = TrainConfig(batch_size=32, accumulate=2)
    assert differences(run, TrainConfig(batch_size=AUTO)) == ([], [])
    assert differences(run, TrainConfig(batch_size=32, accumulate=AUTO)) == ([], [])
    assert differences(run, TrainConfig(batch_size=AUTO, accumulate=4))[0] == ["--accumulate: 2 -> 4"]


def test_the_forecast_of_auto_is_that_of_one_clip():
    small = {"spatial_size": 32, "embed_dim": 24, "depth": 1, "num_heads": 2, "frame_num": 4}
    one, auto = (TrainConfig(batch_size=size, **small) for size in (1, AUTO))
    assert step_bytes(build_model(one), auto, 4) == step_bytes(build_model(one), one, 1) + sum(
        4 * p.numel() for p in build_model(one).parameters()
    )  # the gradients of DistributedDataParallel


def test_a_batch_that_has_no_step_or_no_whole_group_is_refused(train, monkeypatch: pytest.MonkeyPatch):
    """Chosen for many ranks, or trained batch norm."""
    for chosen, fault in ((Choice(64, 1), "is more than the"), (Choice(3, 1), "not a multiple of --bn_group 2")):
        monkeypatch.setattr(fitting, "choose", lambda *_, found=chosen: found)
        flags = ["--batch_size", "auto", "--batch_norm", "trained", "--bn_group", 2]
        done = train("--run_name", "r", *flags, check=False)
        assert (done.returncode, fault in done.stderr) == (2, True), done.stderr


def test_what_others_use_does_not_matter_to_a_later_start(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fitting, "available_memory", lambda: 4 * GIB)
    monkeypatch.setattr(fitting, "total_memory", lambda: 10 * GIB)
    monkeypatch.setattr(fitting, "allocated_memory", lambda: None)
    cpu = torch.device("cpu")
    first, later = (fitting.room_of(cpu, Ranks(), is_resumed) for is_resumed in (False, True))
    assert first == pytest.approx(0.85 * 4 * GIB)
    assert first < later <= 0.85 * 10 * GIB


def test_a_run_keeps_its_batch_on_a_machine_with_less_memory(train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def sizes() -> tuple[int, int]:
        record = json.loads((tmp_path / "runs" / "r" / "config.json").read_text())
        return record["batch_size"], record["accumulate"]

    def memory(*arguments, **_) -> dict[str, float]:
        return {"total": gib(arguments[2])}

    monkeypatch.setattr(fitting, "step_memory", memory)
    monkeypatch.setattr(fitting, "room_of", lambda *_: 30.5 * GIB)
    flags = ["--run_name", "r", "--batch_size", "auto", "--log_every", 1]
    assert "--batch_size auto: 4 (1 rank x 4 actions" in train(*flags, "--epochs", 1).stderr
    assert sizes() == (4, 1)
    monkeypatch.setattr(fitting, "room_of", lambda *_: 20.5 * GIB)
    log = train(*flags, "--epochs", 2).stderr
    assert "--accumulate auto: 2 parts instead of 1 as before" in log
    assert "Resuming" in log
    assert sizes() == (4, 2)
    train("--run_name", "r", "--batch_size", 4, "--accumulate", 2, "--epochs", 2)
