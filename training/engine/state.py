"""The position of a run, and its checkpoints: writing, deleting and loading them."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data_preparation.common.errors import UserError
from training.config import TrainConfig
from training.model import ScoringModel
from training.runtime import checkpoint
from training.runtime.run_folder import RunFolder
from training.trained_on import BACKBONE_ENTRY, ENTRY

log = logging.getLogger(__name__)


@dataclass
class Position:
    """How far a run has come: all that a resume needs besides the tensors."""

    epoch: int = 0  # completed epochs, validation included
    step: int = 0  # completed steps of the present epoch
    global_step: int = 0  # completed steps of all epochs
    loss_sum: float = 0.0  # over the completed steps of the present epoch, as far as their losses are read
    best_epoch: int = 0  # 1-based; 0 before the first validation
    best: float = math.nan  # the metric that chooses (Task.metric), of the validation of that epoch

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Position:
        """The position of a checkpoint; the first edition named `best` best_spearman."""
        return cls(**{"best" if name == "best_spearman" else name: value for name, value in record.items()})

    def finish_step(self) -> None:
        """Count a step as completed; its loss is added later."""
        self.step, self.global_step = self.step + 1, self.global_step + 1

    def finish_epoch(self, value: float) -> bool:
        """Count an epoch as completed; returns whether its validation metric is the best so far."""
        is_best = self.best_epoch == 0 or value > self.best or (math.isnan(self.best) and not math.isnan(value))
        self.epoch, self.step, self.loss_sum = self.epoch + 1, 0, 0.0
        if is_best:
            self.best_epoch, self.best = self.epoch, value
        return is_best


class Checkpoints:
    """The checkpoints of a run, written in the background. Only the first rank uses it."""

    def __init__(self, run: RunFolder, config: TrainConfig) -> None:
        self.run, self.config = run, config
        self.writer = checkpoint.Writer()
        self.saved_at = time.monotonic()

    def is_due(self, global_step: int) -> bool:
        """Whether --checkpoint_every asks for a checkpoint now."""
        steps = self.config.save_steps
        by_clock = time.monotonic() - self.saved_at >= self.config.save_seconds
        return by_clock or bool(steps and global_step % steps == 0)

    def save(self, state: dict[str, Any], is_best: bool) -> None:
        """Copy a state and start to write its checkpoint, then with `is_best` best.pt; then delete old checkpoints."""
        self.saved_at = time.monotonic()
        position = state["position"]
        newest = self.run.checkpoint_file(position["epoch"], position["global_step"])

        def files_of(copy: dict[str, Any]) -> dict[Path, dict[str, Any]]:
            best = {self.run.best_checkpoint: best_checkpoint_content(copy)} if is_best else {}
            return {newest: copy, **best}

        self.writer.put(state, files_of, before=self.run.sync_metrics, afterwards=self._delete_old)

    def save_at_once(self, state: dict[str, Any], best: dict[str, Any] | None) -> None:
        """Write the checkpoint of a state, and first best.pt with the content `best` if it is of an older epoch.

        Raises:
            UserError: the disk is full or not writable.
        """
        self.wait()
        position = state["position"]
        newest = self.run.checkpoint_file(position["epoch"], position["global_step"])
        if best is not None and best["position"]["best_epoch"] > self._best_epoch_on_disk():
            checkpoint.save(self.run.best_checkpoint, best)
        if not newest.exists():
            checkpoint.save(newest, state)
        self._delete_old()

    def _best_epoch_on_disk(self) -> int:
        with suppress(UserError):
            return int(checkpoint.load(self.run.best_checkpoint, required={"position"})["position"]["best_epoch"])
        return 0

    def wait(self) -> None:
        """Wait until the checkpoint is on disk.

        Raises:
            UserError: it could not be written.
        """
        self.writer.wait()

    def _delete_old(self) -> None:
        for old in self.run.checkpoints()[self.config.keep_checkpoints :]:
            old.unlink(missing_ok=True)

    def load_newest(self, load_state: Callable[[dict[str, Any]], None]) -> Path | None:
        """Load the newest intact checkpoint and return its path, or None if the run has no checkpoint. Newer ones that are
        damaged are renamed to *.damaged, with an error in the log.

        Raises:
            UserError: the run had checkpoints, and none is intact.
        """
        damaged: list[Path] = []
        for path in self.run.checkpoints():
            try:
                state = checkpoint.load(path, required={"model", "optimizer", "position", "precision"})
            except checkpoint.Damaged as error:
                log.error("%s", error)
                damaged.append(path)
                continue
            load_state(state)
            self._repair_best(state)
            for file in damaged:
                file.rename(file.with_name(file.name + ".damaged"))
                log.error("%s is renamed to *.damaged: resuming from the checkpoint before it", file)
            return path
        if damaged or self.run.has_lost_checkpoints():
            raise UserError(
                f"{self.run.path} holds a run, but no checkpoint to resume from: restore one from a copy, or give another --run_name to start from scratch"
            )
        return None

    def _repair_best(self, state: dict[str, Any]) -> None:
        """Make best.pt the best epoch up to the loaded checkpoint.

        best.pt is older if the job was killed after it wrote the checkpoint of the best epoch, and before it wrote best.pt;
        then the weights are in the checkpoint. It is newer if later checkpoints were damaged; then they are lost.
        """
        position, best = Position.from_record(state["position"]), self.run.best_checkpoint
        if not position.best_epoch:
            return
        if position.best_epoch == position.epoch and position.step == 0:
            checkpoint.save(best, best_checkpoint_content(state))
            return
        found: dict[str, Any] = {}
        if best.exists():
            try:
                found = checkpoint.load(best, required={"model", "position"})["position"]
            except checkpoint.Damaged as error:
                log.error("%s", error)
        if found.get("best_epoch") != position.best_epoch:
            log.error(
                "%s is of epoch %s, but the best epoch so far was %d and its weights are lost: if no later epoch is better, the test split cannot be opened",
                best, found.get("best_epoch", "none"), position.best_epoch,
            )  # fmt: skip
            if best.exists():
                best.rename(best.with_name(best.name + ".damaged"))


def load_best(run: RunFolder, model: ScoringModel, device: torch.device) -> Position:
    """Load the weights of best.pt into the model of the run's configuration; returns the position of the checkpoint.

    Raises:
        UserError: best.pt is missing or damaged, or of another network.
    """
    best = checkpoint.load(run.best_checkpoint, device, required={"model", "position"})
    try:
        model.load_state_dict(best["model"])
    except RuntimeError:
        raise UserError(
            f"{run.best_checkpoint} does not fit the network of {run.config_file}: restore both from a copy"
        ) from None
    return Position.from_record(best["position"])


def best_checkpoint_content(state: dict[str, Any]) -> dict[str, Any]:
    """What best.pt holds of a checkpoint's state: the weights that were validated, the position, and what the weights were
    trained on."""
    model = state["model"]
    if state["average"] is not None:
        prefix = "module."  # of AveragedModel
        model = {n.removeprefix(prefix): t for n, t in state["average"].items() if n.startswith(prefix)}
    # an older version wrote no such entries
    kept = {name: state[name] for name in ("position", ENTRY, BACKBONE_ENTRY) if name in state}
    return {"model": model, **kept}
