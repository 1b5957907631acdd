"""Training without gradient steps, for methods that are fitted once to the features of all training actions
(Method.fits_features).

The run folder looks as it does after one epoch of Engine, so evaluation, status and comparison treat both alike.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import asdict
from typing import Any

from data_preparation.common.errors import UserError
from training.data.dataset import ActionDataset
from training.engine.prediction import Predictor, non_finite_rows, validation_metrics, validation_text
from training.engine.state import Position
from training.engine.trainer import Trainer
from training.plots import draw_losses
from training.runtime import checkpoint, collectives
from training.runtime.interruption import StoppedBySignal

log = logging.getLogger(__name__)


class FeatureFit(Trainer):
    """Computes all features, then calls the method's `fit` once."""

    def resume(self) -> None:
        """Load a finished fit. A fit that was interrupted starts from scratch."""
        best_file = self.run.best_checkpoint
        found = best_file if collectives.on_first_rank(best_file.exists) else None
        if collectives.wait_until_visible(found, checkpoint.fingerprint):
            best = checkpoint.load(best_file, required={"model", "position"})
            self.model.load_state_dict(best["model"])
            self.position = Position.from_record(best["position"])
            log.info("%s is fitted already", self.run.path)
        elif self.ranks.is_first:
            self.run.rewind_metrics(0, 0)
        collectives.barrier()

    def fit(self, train_data: ActionDataset, val_data: ActionDataset) -> None:
        """Compute the features on all ranks, fit on the first rank, send the result to the others, save it as best.pt.

        Raises:
            StoppedBySignal: a signal came while features were computed.
            UserError: features or predicted scores that are not finite, a full disk, a damaged frame.
        """
        self.epochs = 1  # in progress.json
        if self.position.epoch:
            return
        started = time.perf_counter()
        self._report("running")
        log.info("This method has no gradient steps: the flags of epochs, optimizer, loss and averages are not used")
        predictor = Predictor(self.config, self.ranks, self.device, between_batches=self.stop_if_requested)
        train_rows, val_rows = (predictor.predict(self.model, data) for data in (train_data, val_data))
        log.info("Features of %d actions: %.1f s", len(train_data) + len(val_data), time.perf_counter() - started)
        for rows, data in ((train_rows, train_data), (val_rows, val_data)):
            if non_finite := non_finite_rows(rows.outputs):
                names = ", ".join(data.actions[row].name for row in non_finite[:10])
                raise UserError(
                    f"the features of {len(non_finite)} actions are not finite ({names}): give --precision fp32, or choose another --input_scale"
                )

        method = self.model.method
        if self.ranks.is_first:
            log.info("Chosen on validation: %s", method.fit(train_rows, val_rows))
        fitted = collectives.gather_objects(method.get_extra_state() if self.ranks.is_first else None)[0]
        method.set_extra_state(fitted)
        metrics = {
            "train_loss": float(method.loss(*train_rows)["loss"]),
            **validation_metrics(self.model, self.task, val_rows, val_data.actions),
        }
        metric = self.task.metric
        value = metrics[f"val_{metric.key}"]
        if math.isnan(value):
            log.warning(
                "Validation %s is undefined, so nothing could be chosen by it: give more validation actions",
                metric.name,
            )
        self.position = Position(epoch=1, best_epoch=1, best=value)
        self._save_val_predictions(method, val_rows, val_data)
        if self.ranks.is_first:
            record = {"type": "epoch", "epoch": 1, "step": 0, **metrics, "seconds": time.perf_counter() - started}
            self._record(record)
            draw_losses([record], self.run.plot_file(self.config), self.run.title, metric)
            # last, since best.pt marks the fit as done
            best = {"model": self.model.state_dict(), "position": asdict(self.position), **self.trained_on}
            checkpoint.save(self.run.best_checkpoint, best)
        collectives.barrier()
        log.info("Fitted; validation:%s", validation_text(self.task, metrics))
        self._report("running")

    def stop_if_requested(self) -> None:
        """Stop all ranks if any rank received a signal; also called between two batches of features."""
        if status := collectives.max_over_ranks(self.interruption.status):
            self._report("interrupted")
            collectives.barrier()
            outcome = "the fit is saved" if self.position.epoch else "the fit will start from scratch"
            raise StoppedBySignal(f"stopped by a signal; {outcome}", status)

    def _report(self, state: str, **fields: Any) -> None:
        super()._report(state, error=None, val=self.position.best, **fields)
