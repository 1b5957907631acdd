"""Where a run is, and how that is saved and found again."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_preparation.common.errors import UserError
from training.config import TrainConfig
from training.runtime import checkpoint
from training.runtime.run_folder import RunFolder

log = logging.getLogger(__name__)


@dataclass
class Position:
    """Where a run is: all that a resume needs besides the tensors."""

    epoch: int = 0  # epochs completed, validation included
    step: int = 0  # optimizer steps done in the epoch under way
    global_step: int = 0
    loss_sum: float = 0.0  # of the steps of the epoch under way
    best_epoch: int = 0  # 1-based; 0 before the first validation
    best_spearman: float = math.nan

    def finish_epoch(self, spearman: float) -> bool:
        """Count a validated epoch; returns whether it is the best so far."""
        is_best = (
            self.best_epoch == 0
            or spearman > self.best_spearman
            or (math.isnan(self.best_spearman) and spearman == spearman)
        )
        self.epoch, self.step, self.loss_sum = self.epoch + 1, 0, 0.0
        if is_best:
            self.best_epoch, self.best_spearman = self.epoch, spearman
        return is_best


class Checkpoints:
    """The checkpoints of a run on the first rank, which alone writes. Written beside the training, whole or not at all."""

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
        """Begin to write the checkpoint of a state with its position, and with `is_best` best.pt after it."""
        self.saved_at = time.monotonic()
        position = state["position"]
        newest = self.run.checkpoint_file(position["epoch"], position["global_step"])

        def files(copied: dict[str, Any]) -> dict[Path, dict[str, Any]]:
            """What is written of the writer's own copy of the state."""
            return {newest: copied, **({self.run.best_checkpoint: best_checkpoint_content(copied)} if is_best else {})}

        self.writer.put(state, files, self.run.sync_metrics, self._delete_old)

    def wait(self) -> None:
        """Return when all that was put is written.

        Raises:
            UserError: it could not be written.
        """
        self.writer.wait()

    def _delete_old(self) -> None:
        for old in self.run.checkpoints()[self.config.keep_checkpoints :]:
            old.unlink(missing_ok=True)

    def load_newest(self, load: Callable[[dict[str, Any]], None]) -> Path | None:
        """Load the newest checkpoint that is whole; those that are not are set aside, loudly. None where there is none.

        Raises:
            UserError: there were checkpoints, and none is whole.
        """
        damaged: list[Path] = []
        for path in self.run.checkpoints():
            try:
                state = checkpoint.load(path, parts={"model", "optimizer", "position", "precision"})
            except checkpoint.Damaged as error:
                log.error("%s", error)
                damaged.append(path)
                continue
            load(state)
            self._restore_best(state)
            for torn in damaged:
                torn.rename(torn.with_name(torn.name + ".damaged"))
                log.error("%s is set aside as *.damaged: going on from the checkpoint before it", torn)
            return path
        if damaged or self.run.has_lost_checkpoints():
            raise UserError(
                f"{self.run.path} holds a run and no checkpoint to go on from: restore one from a copy, or give another --run_name to begin anew"
            )
        return None

    def _restore_best(self, state: dict[str, Any]) -> None:
        """See that best.pt is the best of this history. A kill between the two files of an epoch leaves it behind: its
        weights are in the checkpoint, too. It is ahead where the newest checkpoint was damaged."""
        at, best = Position(**state["position"]), self.run.best_checkpoint
        if not at.best_epoch:
            return
        if at.best_epoch == at.epoch and at.step == 0:
            checkpoint.save(best, best_checkpoint_content(state))
            return
        known: dict[str, Any] = {}
        if best.exists():
            try:
                known = checkpoint.load(best, parts={"model", "position"})["position"]
            except checkpoint.Damaged as error:
                log.error("%s", error)
        if known.get("best_epoch") != at.best_epoch:
            log.error(
                "%s is of epoch %s and the best one until here was epoch %d, whose weights are gone: if no later epoch is better, the test split cannot be opened",
                best, known.get("best_epoch", "none"), at.best_epoch,
            )  # fmt: skip
            if best.exists():
                best.rename(best.with_name(best.name + ".damaged"))


def best_checkpoint_content(state: dict[str, Any]) -> dict[str, Any]:
    """What best.pt holds of a checkpoint's state: the weights that were validated, and where that was."""
    model = state["model"]
    if state["average"] is not None:
        prefix = "module."  # AveragedModel's
        model = {n.removeprefix(prefix): t for n, t in state["average"].items() if n.startswith(prefix)}
    return {"model": model, "position": state["position"]}
