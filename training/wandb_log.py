"""Write the values of metrics.jsonl to Weights & Biases (optional dependency), offline unless WANDB_MODE says otherwise."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from data_preparation.common.errors import UserError
from training.config import TrainConfig, as_record
from training.runtime.run_folder import RunFolder, read_json, write_json

log = logging.getLogger(__name__)


class WandbLog:
    """Writes one W&B run for a run folder: each step once, in order, over any number of restarts.

    wandb.json in the run folder holds the id of the W&B run, the last step of all files that were closed, and the name of the
    folder that is being written. After a restart the training repeats the steps since its checkpoint; a step that the closed files
    have is skipped. The file of a process that was killed is not whole: the next process deletes it, and writes its steps again
    from metrics.jsonl.
    """

    def __init__(self, run: RunFolder, config: TrainConfig) -> None:
        self.run, self.config = run, config
        self._state_file = run.path / "wandb.json"
        self._wandb_run: Any = None
        self._failed = False
        self._id = ""
        self._step = -1  # the last step that the W&B run has
        self._row: dict[str, float] = {}  # values of `_row_step`, which may get more
        self._row_step = -1

    def add(self, record: Mapping[str, Any]) -> None:
        """Write the values of a record that was appended to metrics.jsonl. An error of W&B is logged and does not stop the
        training.

        Raises:
            UserError: wandb.json is damaged or cannot be written.
        """
        if self._failed:
            return
        import wandb

        try:
            if self._wandb_run is None:
                self._start()
                self._add_all(self.run.records())  # this one included
            else:
                self._add_all([record])
        except (wandb.errors.Error, OSError) as error:
            self._failed = True
            log.error("Weights & Biases failed (%s): the next start of this training writes the missing steps", error)

    def close(self) -> None:
        """Close the W&B run. A row that may still get values is left to the next start, which finds it in metrics.jsonl."""
        if self._wandb_run is not None:
            self._wandb_run.finish()
            self._wandb_run = None
            if not self._failed:
                self._write_state(writing="")

    def _start(self) -> None:
        import wandb

        fix = "delete it, and W&B gets a new run"
        state = read_json(self._state_file, fix) or {"id": secrets.token_hex(4), "step": -1, "writing": ""}
        try:
            self._id, self._step, writing = str(state["id"]), int(state["step"]), str(state["writing"])
        except (KeyError, TypeError, ValueError):
            raise UserError(f"{self._state_file} is damaged: {fix}") from None
        if writing.startswith("offline-"):
            shutil.rmtree(self.run.path / "wandb" / Path(writing).name, ignore_errors=True)
        self._write_state(writing="")  # the id, in case that this process is killed now
        mode: Any = os.environ.get("WANDB_MODE", "offline")
        if mode == "offline":
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # it would use the network
        self._wandb_run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "deepsports"),
            id=self._id,
            name=self.run.title,
            dir=self.run.path,
            config=as_record(self.config),
            mode=mode,
            resume="allow",
            settings=wandb.Settings(console="off", silent=True),
        )
        self._write_state(writing=Path(self._wandb_run.dir).parent.name)
        self._step = max(self._step, self._wandb_run.step - 1)  # online, the server has the steps of a killed process

    def _add_all(self, records: Iterable[Mapping[str, Any]]) -> None:
        """A step has a record of type "step", then at the end of an epoch one of type "epoch": both are one row."""
        for record in records:
            if record["step"] <= self._step:
                continue
            if record["step"] > self._row_step:
                self._write_row()
                self._row_step = record["step"]
            self._row |= {f"{record['type']}/{name}": v for name, v in record.items() if isinstance(v, float)}
            if record["type"] == "epoch":
                self._write_row()

    def _write_row(self) -> None:
        if self._row:
            self._wandb_run.log(self._row, step=self._row_step)
            self._row, self._step = {}, self._row_step

    def _write_state(self, writing: str) -> None:
        write_json(self._state_file, {"id": self._id, "step": self._step, "writing": writing})
