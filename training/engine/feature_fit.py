"""Training without steps: a method that is fitted at once to the features of all training dives (Method.fits_features).

It leaves the run folder that the engine leaves after one epoch, so evaluation, status and comparison need not know.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import asdict

import torch

from data_preparation.common.errors import UserError
from training.config import TrainConfig
from training.data.dataset import ActionDataset
from training.engine.prediction import non_finite_rows, predict, validation_metrics
from training.engine.state import Position
from training.model import ScoringModel
from training.plots import draw_losses
from training.runtime import checkpoint
from training.runtime.collectives import (
    barrier,
    gather_objects,
    max_over_ranks,
    on_first_rank,
    peak_memory_gib,
    wait_until_visible,
)
from training.runtime.interruption import InterruptionFlag, StoppedBySignal
from training.runtime.progress import Progress, ProgressHook
from training.runtime.ranks import Ranks
from training.runtime.run_folder import RunFolder

log = logging.getLogger(__name__)


class FeatureFit:
    """A run without steps: what engine.trainer.Trainer asks for."""

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
        self.interruption, self.progress = interruption, Progress(run, ranks, on_progress)
        self.position = Position()

    def resume(self) -> None:
        """A fit that was done stays done; one that was stopped begins again."""
        done = self.run.best_checkpoint if on_first_rank(self.run.best_checkpoint.exists) else None
        if wait_until_visible(done, checkpoint.fingerprint):
            best = checkpoint.load(self.run.best_checkpoint, parts={"model", "position"})
            self.model.load_state_dict(best["model"])
            self.position = Position(**best["position"])
            log.info("%s is fitted already", self.run.path)
        elif self.ranks.is_first:
            self.run.rewind_metrics(0, 0)
        barrier()

    def fit(self, train_data: ActionDataset, val_data: ActionDataset) -> None:
        """Compute all features, fit on the first rank, give the others what was fitted, save it as the best checkpoint.

        Raises:
            StoppedBySignal: a signal came while features were computed.
            UserError: features or predicted scores that are no numbers, a full disk, a damaged frame.
        """
        if self.position.epoch:
            return
        started = time.perf_counter()
        self._report("running")
        method = self.model.method
        log.info("Fitted at once: the flags of epochs, optimizer, loss and averages are not used")
        train_rows, val_rows = (
            predict(self.model, data, self.config, self.ranks, self.device, self.stop_if_requested)
            for data in (train_data, val_data)
        )
        log.info("Features of %d dives: %.1f s", len(train_data) + len(val_data), time.perf_counter() - started)
        for (outputs, _, _), data in ((train_rows, train_data), (val_rows, val_data)):
            if odd := non_finite_rows(outputs):
                names = ", ".join(data.actions[row].name for row in odd[:10])
                raise UserError(
                    f"the features of {len(odd)} dives are no numbers ({names}): say --precision fp32, or choose another --input_scale"
                )
        if self.ranks.is_first:
            log.info("Chosen on validation: %s", method.fit(train_rows, val_rows))
        method.set_extra_state(gather_objects(method.get_extra_state() if self.ranks.is_first else None)[0])
        result = {
            "train_loss": float(method.loss(*train_rows)["loss"]),
            **validation_metrics(self.model, val_rows, val_data.actions),
        }
        if math.isnan(result["val_spearman"]):
            log.warning("Validation Spearman is undefined, so it chose nothing: give more validation dives")
        self.position = Position(epoch=1, best_epoch=1, best_spearman=result["val_spearman"])
        if self.ranks.is_first:
            record = {"type": "epoch", "epoch": 1, "step": 0, **result, "seconds": time.perf_counter() - started}
            self.run.append_metrics(record)
            draw_losses([record], self.run.plot_file(self.config), title=self.run.title)
            best = {"model": self.model.state_dict(), "position": asdict(self.position)}
            checkpoint.save(self.run.best_checkpoint, best)  # with it the fit is done
        barrier()
        log.info("Fitted: validation Spearman %.4f, R-l2 x100 %.3f", result["val_spearman"], result["val_r_l2_x100"])
        self._report("running")

    def stop_if_requested(self) -> None:
        """Stop if any rank was told to."""
        if status := max_over_ranks(self.interruption.status, self.device):
            self._report("interrupted")
            barrier()
            reached = "the fit is saved" if self.position.epoch else "a fit is done whole, so it begins anew"
            raise StoppedBySignal(f"stopped by a signal; {reached}", status)

    def _report(self, state: str) -> None:
        at = self.position
        self.progress.update(
            state=state,
            error=None,
            epoch=at.epoch,
            epochs=1,
            step=0,
            steps=0,
            best_epoch=at.best_epoch,
            best_spearman=at.best_spearman,
            val_spearman=at.best_spearman,
            peak_memory_gib=peak_memory_gib(self.device),
        )

    def report_finished(self) -> None:
        """The last word of a run that reached its end."""
        self._report("finished")
