"""Trainer: the base of Engine (gradient steps) and FeatureFit (one fit on all features)."""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from data_preparation.actions import Action
from data_preparation.common.files import reporting_write_errors, write_atomic
from training import novelty
from training.config import TrainConfig
from training.data.batch import Rows
from training.data.dataset import ActionDataset
from training.engine.prediction import Predictor, as_arrays
from training.engine.state import Position
from training.methods.base import Method
from training.model import ScoringModel
from training.predictions import predictions_csv
from training.runtime import checkpoint, collectives
from training.runtime.collectives import peak_memory_gib
from training.runtime.interruption import InterruptionFlag
from training.runtime.progress import Progress, ProgressHook
from training.runtime.ranks import Ranks
from training.runtime.run_folder import RunFolder
from training.tasks import task_of
from training.tasks.base import Arrays, Task
from training.tensorboard import EventLog
from training.wandb_log import WandbLog


def write_val_predictions(
    run: RunFolder,
    task: Task,
    predicted: Arrays,
    actions: Sequence[Action],
    classes: Sequence[str],
    epoch: int,
    views: str = "",
) -> None:
    """Write val_predictions.csv: the predictions of the best `epoch` for the validation actions. `views` says what they are the
    mean of, see TrainConfig.views_text.

    Raises:
        UserError: it cannot be written.
    """
    origin: dict[str, list] = {"epoch": [epoch] * len(actions)}
    if views:
        origin["views"] = [views] * len(actions)
    text = predictions_csv(task, predicted, actions, classes, origin)
    with reporting_write_errors(run.val_predictions_file):
        write_atomic(run.val_predictions_file, text.encode())


log = logging.getLogger(__name__)


class Trainer(ABC):
    """What train.py uses: `resume`, then `fit`, and `report_finished` at the very end."""

    def __init__(
        self,
        model: ScoringModel,
        config: TrainConfig,
        run: RunFolder,
        ranks: Ranks,
        device: torch.device,
        interruption: InterruptionFlag,
        on_progress: ProgressHook | None = None,
    ) -> None:
        self.model, self.config, self.run, self.ranks, self.device = model, config, run, ranks, device
        self.task = task_of(config.task)
        self.interruption = interruption
        self.progress = Progress(run, ranks, on_progress)
        self.position = Position()
        self.commit_lock = threading.Lock()  # whoever holds it sees the state of a completed step
        self.classes: Sequence[str] = ()  # of the data set
        self.trained_on: dict[str, str] = {}  # entries of the checkpoints, see trained_on.entries_of_run
        self.epochs, self.total_steps = config.epochs, 0
        self.logs: list[EventLog | WandbLog] = []  # further logs of what metrics.jsonl gets
        if config.tensorboard and ranks.is_first:
            self.logs.append(EventLog(run.path / "tensorboard"))
        if config.wandb and ranks.is_first:
            self.logs.append(WandbLog(run, config))

    @abstractmethod
    def resume(self) -> None:
        """Load the newest checkpoint of the run folder, if there is one.

        Raises:
            UserError: no checkpoint of the run is intact.
        """

    @abstractmethod
    def fit(self, train_data: ActionDataset, val_data: ActionDataset) -> None:
        """Train to the end; the run folder then holds best.pt.

        Raises:
            StoppedBySignal: a signal came. UserError: something that the user can fix.
        """

    @abstractmethod
    def stop_if_requested(self) -> None:
        """Stop all ranks if any rank received a signal. A collective: every rank must call it equally often.

        Raises:
            StoppedBySignal: a rank received a signal.
        """

    def place(self) -> tuple[int, int] | None:
        """(completed epochs, completed steps of all epochs) of the state that `save_at_once` would write, or None if there is
        nothing to save."""
        return None

    def save_at_once(self) -> None:
        """Write a checkpoint of the last completed step, in this thread; see survivors.py."""
        raise NotImplementedError

    def _save_val_predictions(self, method: Method, rows: Rows, val_data: ActionDataset) -> None:
        """Write val_predictions.csv with the outputs of the best epoch so far; only the first rank writes."""
        if self.ranks.is_first and self.task.has_test:
            predicted = as_arrays(method.predict(rows.outputs, rows.given))
            write_val_predictions(
                self.run, self.task, predicted, val_data.actions, self.classes, self.position.best_epoch
            )

    def complete_val_predictions(self, val_data: ActionDataset) -> None:
        """After the training: make sure that val_predictions.csv is that of best.pt, with the views of the test. It is not if an
        older version found the best epoch, if the run went on from an earlier checkpoint, or if the test has more views than the
        validation of an epoch. The model may then hold the weights of best.pt.

        Raises:
            StoppedBySignal: a signal came. UserError: best.pt is damaged, or the disk is full.
        """
        views = self.config.views_text
        stored = collectives.on_first_rank(self.run.val_predictions_origin)
        if not self.task.has_test or stored == (self.position.best_epoch, views):
            return
        best = self.run.best_checkpoint
        found = best if collectives.on_first_rank(best.exists) else None
        if collectives.wait_until_visible(found, checkpoint.fingerprint) is None:
            return  # its weights are lost, as an error in the log says
        self.model.load_state_dict(checkpoint.load(best, self.device, required={"model", "position"})["model"])
        predictor = Predictor(self.config, self.ranks, self.device, between_batches=self.stop_if_requested)
        _, predicted = predictor.predict_views(self.model, val_data.with_all_views())
        if self.ranks.is_first:
            write_val_predictions(
                self.run, self.task, predicted, val_data.actions, self.classes, self.position.best_epoch, views
            )

    def complete_novelty(self, train_data: ActionDataset, val_data: ActionDataset) -> None:
        """After `complete_val_predictions`: make sure that the run folder has the distances of clips from the training clips, for
        best.pt. The model may then hold the weights of best.pt.

        Raises:
            StoppedBySignal: a signal came. UserError: a file is damaged, or the disk is full.
        """
        best, file, epoch = self.run.best_checkpoint, self.run.novelty_file, self.position.best_epoch
        stored = collectives.on_first_rank(partial(novelty.stored_epoch, file))
        if not self.task.has_test or stored == epoch:
            return
        found = best if collectives.on_first_rank(best.exists) else None
        if collectives.wait_until_visible(found, checkpoint.fingerprint) is None:
            return
        started = time.perf_counter()
        self.model.load_state_dict(checkpoint.load(best, self.device, required={"model", "position"})["model"])
        predictor = Predictor(self.config, self.ranks, self.device, between_batches=self.stop_if_requested)
        train, val = (
            novelty.describe_all(self.model, predictor, data) for data in (novelty.some_of(train_data), val_data)
        )
        try:
            text = collectives.on_first_rank(
                lambda: novelty.save(file, novelty.measured(train, val, train_data, epoch))
            )
        except novelty.NotFinite as error:  # the test can be run all the same
            log.warning("%s", error)
            return
        log.info("Distances from the training clips: %.1f s; %s", time.perf_counter() - started, text)

    def close(self) -> None:
        """Close the logs of --tensorboard and --wandb."""
        for each in self.logs:
            each.close()

    def _record(self, record: dict[str, Any]) -> None:
        """Append a record to metrics.jsonl, and to the logs of --tensorboard and --wandb; only the first rank does."""
        self.run.append_metrics(record)
        for each in self.logs:
            each.add(record)

    def report_finished(self) -> None:
        """Set the state in progress.json to finished."""
        self._report("finished")

    def _report(self, state: str, **fields: Any) -> None:
        """Update progress.json; `fields` are fields of RunProgress."""
        self.progress.update(
            state=state,
            **fields,
            epoch=self.position.epoch,
            epochs=self.epochs,
            step=self.position.global_step,
            steps=self.total_steps,
            best_epoch=self.position.best_epoch,
            best=self.position.best,
            metric=self.task.metric.short,
            peak_memory_gib=peak_memory_gib(self.device),
        )
