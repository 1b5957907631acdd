"""--wandb True: one offline run of Weights & Biases over all restarts of a training."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path

import pytest

import training.config
import training.train
from training.runtime.interruption import STATUS, InterruptionFlag
from training.runtime.run_folder import RunFolder

BLOCK = 32 * 1024


class StopAfter(InterruptionFlag):
    """A signal after some questions for it, or an error if `killed`: the engine asks after each step."""

    def __init__(self, questions: int, killed: bool) -> None:
        self.questions, self.killed, self.answer = questions, killed, next(iter(STATUS.values()))

    @property
    def status(self) -> int:
        self.questions -= 1
        if self.questions < 0 and self.killed:
            raise RuntimeError("killed")
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


def test_five_requeues_give_one_run_with_each_step_once(train, tmp_path: Path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed; it is optional")
    flags = ["--wandb", "True", "--log_every", 1, "--epochs", 3, "--checkpoint_every", 0]
    # after a signal the training goes on where it was; after a kill it repeats the steps since its checkpoint
    for questions, killed in ((3, False), (4, True), (7, True), (4, False), (9, True)):
        monkeypatch.setattr(training.train, "InterruptionFlag", lambda q=questions, k=killed: StopAfter(q, k))
        monkeypatch.setattr(StopAfter, "install", lambda self: self)
        assert train(*flags, check=False).returncode == (1 if killed else 75)
    monkeypatch.undo()
    train(*flags)
    run = RunFolder(tmp_path / "runs" / "default")
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
