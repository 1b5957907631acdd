"""--wandb True: one offline run of Weights & Biases over all restarts of a training."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path

import pytest

import training.config
import training.train
from tests.conftest import PATIENCE_S, data_flags, tiny_model
from tests.training.test_training import SLOW_STEPS, start
from training.runtime.interruption import STATUS, InterruptionFlag
from training.runtime.run_folder import RunFolder

BLOCK = 32 * 1024


class StopAfter(InterruptionFlag):
    """A signal after some questions for it, or an error if `fails`: the engine asks after each step."""

    def __init__(self, questions: int, fails: bool) -> None:
        self.questions, self.fails, self.answer = questions, fails, next(iter(STATUS.values()))

    @property
    def status(self) -> int:
        self.questions -= 1
        if self.questions < 0 and self.fails:
            raise RuntimeError("failed")
        return self.answer if self.questions < 0 else 0


def rows(folder: Path) -> list[dict]:
    """The rows of all offline files of a run folder, in the order in which they were written."""
    from wandb.proto.wandb_internal_pb2 import Record

    found = []
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        for data in log_records(file.read_bytes()):
            record = Record.FromString(data)
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                found.append({item.key or item.nested_key[0]: json.loads(item.value_json) for item in items})
    return found


def log_records(content: bytes) -> Iterator[bytes]:
    """The records of a file in LevelDB's log format: blocks of 32 KiB, chunks of checksum, length, type and data. W&B's files
    have 7 more bytes at the start."""
    assert content.startswith(b":W&B")
    at, parts = 7, b""
    while at + 7 <= len(content):
        if BLOCK - at % BLOCK < 7:
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def test_requeues_and_kills_give_one_run_with_each_step_once(train, dataset: Path, tmp_path: Path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed; it is optional")
    flags = ["--wandb", "True", "--log_every", 1, "--epochs", 3, "--checkpoint_every", 0]
    # after a signal the training goes on where it was; after an error it repeats the steps since its checkpoint
    for questions, fails in ((3, False), (4, True), (7, True), (4, False), (9, True)):
        monkeypatch.setattr(training.train, "InterruptionFlag", lambda q=questions, f=fails: StopAfter(q, f))
        monkeypatch.setattr(StopAfter, "install", lambda self: self)
        assert train(*flags, check=False).returncode == (1 if fails else 75)
    monkeypatch.undo()
    run = RunFolder(tmp_path / "runs" / "default")
    done = len(run.metrics("step"))
    command = [*data_flags(dataset), "--runs_dir", tmp_path / "runs", *tiny_model(*flags), *flags]
    process = start("-m", "training.train", *command, env=SLOW_STEPS)
    deadline = time.monotonic() + PATIENCE_S
    while len(run.metrics("step")) < done + 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    process.kill()  # W&B's file then lacks most of its steps
    process.communicate()
    train(*flags)
    files = list(run.path.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) > 2
    assert {file.name for file in files} == {f"run-{json.loads((run.path / 'wandb.json').read_text())['id']}.wandb"}
    written = rows(run.path)
    assert [row["_step"] for row in written] == [record["step"] for record in run.metrics("step")]
    for kind, name in (("step", "loss"), ("epoch", "val_spearman")):
        expected = {record["step"]: record[name] for record in run.metrics(kind)}
        assert {row["_step"]: row[f"{kind}/{name}"] for row in written if f"{kind}/{name}" in row} == expected


def test_without_wandb_the_flag_is_refused(train, tmp_path: Path, monkeypatch):
    (tmp_path / "wandb").mkdir()  # W&B's output in the working folder is not the package
    monkeypatch.setattr(training.config, "find_spec", lambda name: PathFinder.find_spec(name, [str(tmp_path)]))
    refused = train("--wandb", "True", check=False)
    assert refused.returncode == 2
    assert "pip install wandb, or give --wandb False" in refused.stderr
