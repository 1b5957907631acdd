"""Trainer: the base of Engine (gradient steps) and FeatureFit (one fit on all features)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch

from training.config import TrainConfig
from training.data.dataset import ActionDataset
from training.engine.state import Position
from training.model import ScoringModel
from training.runtime.collectives import peak_memory_gib
from training.runtime.interruption import InterruptionFlag
from training.runtime.progress import Progress, ProgressHook
from training.runtime.ranks import Ranks
from training.runtime.run_folder import RunFolder
from training.tasks import task_of


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
        self.trained_on: dict[str, str] = {}  # entries of the checkpoints, see trained_on.entries_of_run
        self.epochs, self.total_steps = config.epochs, 0

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
