"""The training loop over epochs and steps. A step boundary is the only place where anything can stop."""

from __future__ import annotations

import logging
import math
import sys
import time
from contextlib import closing
from dataclasses import asdict
from typing import Any

import torch
from tqdm import tqdm

from data_preparation.common.errors import UserError
from training.config import TrainConfig
from training.data.dataset import ActionDataset
from training.data.loader import epoch_length, training_batches
from training.engine.prediction import encode_references, predict, validation_metrics
from training.engine.state import Checkpoints, Position
from training.engine.step import NonFiniteLoss, Step
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
from training.runtime.progress import Meter, Progress, ProgressHook
from training.runtime.ranks import Ranks
from training.runtime.run_folder import RunFolder
from training.schedule import learning_rate
from training.tensorboard import EventLog

log = logging.getLogger(__name__)


class Engine:
    """A run with steps: what engine.trainer.Trainer asks for."""

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
        self.interruption = interruption
        self.step = Step(model, config, ranks, device)
        self.position = Position()
        self.checkpoints = Checkpoints(run, config)
        self.progress = Progress(run, ranks, on_progress)
        self.meter = Meter()
        self.events = EventLog(run.path / "tensorboard") if config.tensorboard and ranks.is_first else None

    # ------------------------------------------------------------------------------------------------- the loop

    def fit(self, train_data: ActionDataset, val_data: ActionDataset) -> None:
        """Train from the present position to the last epoch.

        Raises:
            StoppedBySignal: a signal came; the checkpoint of the step that was reached is written.
            UserError: a non-finite loss, a full disk, a damaged frame.
        """
        self.train_data = train_data
        steps = epoch_length(train_data, self.config.batch_size)
        self.total_steps = steps * self.config.epochs
        self._report(state="running", error=None)
        while self.position.epoch < self.config.epochs and not self._out_of_patience():
            started, from_its_start = time.perf_counter(), self.position.step == 0
            self._train_epoch(steps)
            self._finish_epoch(val_data, steps, started)
            if from_its_start:
                self._report(epoch_s=time.perf_counter() - started)
        on_first_rank(self.checkpoints.wait)
        log.info(
            "Training is done: best epoch %d of %d, validation Spearman %.4f",
            self.position.best_epoch, self.position.epoch, self.position.best_spearman,
        )  # fmt: skip

    def _train_epoch(self, steps: int) -> None:
        config, at = self.config, self.position
        self.model.train()
        bar = tqdm(total=steps, initial=at.step, desc=f"epoch {at.epoch + 1}/{config.epochs}", unit="step", leave=False,
                   disable=not (self.ranks.is_first and sys.stderr.isatty()))  # fmt: skip
        loading = training_batches(self.train_data, config, self.ranks, self.device, at.epoch, at.step)
        with bar, closing(loading) as batches:
            while True:
                self.save_and_stop_if_requested()
                if at.step == steps:
                    return
                waited_from = time.perf_counter()
                batch = next(batches)
                computed_from = time.perf_counter()
                rate = learning_rate(at.global_step, self.total_steps, config)
                try:
                    losses = self.step(batch, rate, at.global_step)
                except NonFiniteLoss as fault:
                    raise UserError(self._non_finite_loss_text(fault, batch.index)) from None
                self.meter.add(computed_from - waited_from, time.perf_counter() - computed_from)
                at.step, at.global_step, at.loss_sum = at.step + 1, at.global_step + 1, at.loss_sum + losses["loss"]
                bar.update()
                if at.global_step % config.log_every == 0 or at.step == steps:
                    self._log_step(steps, losses, rate)
                # the clock is the first rank's, who alone writes
                if self.checkpoints.is_due(at.global_step):
                    self.save()

    def _finish_epoch(self, val_data: ActionDataset, steps: int, started: float) -> None:
        at = self.position
        model = self.step.validated_model
        where = (self.config, self.ranks, self.device, self.save_and_stop_if_requested)
        encode_references(model, self.train_data.references, *where)
        rows = predict(model, val_data, *where)
        result = {"train_loss": at.loss_sum / steps, **validation_metrics(model, rows, val_data.actions)}
        spearman = result["val_spearman"]
        if math.isnan(spearman):
            log.warning("Validation Spearman is undefined: all predicted (or all true) scores are equal")
        is_best = at.finish_epoch(spearman)
        if self.ranks.is_first:
            record = {"type": "epoch", "epoch": at.epoch, "step": at.global_step, **result}
            self._record({**record, "seconds": time.perf_counter() - started})
        self.save(is_best)
        if self.ranks.is_first:
            draw_losses(self.run.metrics("epoch"), self.run.plot_file(self.config), title=self.run.title)
        log.info(
            "Epoch %d/%d  train loss %.4f  validation loss %.4f  Spearman %.4f  R-l2 x100 %.3f%s  %.1f s",
            at.epoch, self.config.epochs, result["train_loss"], result["val_loss"], spearman, result["val_r_l2_x100"],
            "  (best)" if is_best else "", time.perf_counter() - started,
        )  # fmt: skip
        self._report(state="running", train_loss=result["train_loss"], val_spearman=spearman)

    def _out_of_patience(self) -> bool:
        at, patience = self.position, self.config.patience
        return bool(patience and at.best_epoch and at.epoch - at.best_epoch >= patience)

    def _non_finite_loss_text(self, fault: NonFiniteLoss, own_indices: torch.Tensor) -> str:
        """The sentence about a loss that is not a number, with the ranks and actions to blame."""
        indices = torch.cat(gather_objects(own_indices))
        share = len(indices) // self.ranks.world_size
        guilty: dict[int, list[str]] = {}
        for row in fault.rows or range(len(indices)):
            guilty.setdefault(row // share, []).append(self.train_data.actions[int(indices[row])].name)
        where = "; ".join(f"rank {rank}: dives {', '.join(names)}" for rank, names in guilty.items())
        return f"the loss became {fault.loss} at step {self.position.global_step + 1}, before the optimizer moved ({where}): lower --learning_rate, set --clip_grad 1, or say --precision fp32"

    # ------------------------------------------------------------------------------------- stopping and resuming

    def save_and_stop_if_requested(self) -> None:
        """Save and stop, at a step boundary, if any rank was told to."""
        if status := max_over_ranks(self.interruption.status, self.device):
            self.save()
            self._stop(status)

    def stop_if_requested(self) -> None:
        """Stop if any rank was told to, after the last epoch: the checkpoint is written, and the model may hold others'
        weights."""
        if status := max_over_ranks(self.interruption.status, self.device):
            self._stop(status)

    def _stop(self, status: int) -> None:
        at = self.position
        on_first_rank(self.checkpoints.wait)
        self._report(state="interrupted")
        barrier()  # the first rank has told the world: from here on no rank's end can cut it short
        raise StoppedBySignal(
            f"stopped by a signal after step {at.step} of epoch {at.epoch + 1}; the checkpoint is written", status
        )

    def save(self, is_best: bool = False) -> None:
        """Begin to write the checkpoint of this position, and with `is_best` best.pt after it, on the first rank."""
        if self.ranks.is_first:
            self.checkpoints.save(self.state(), is_best)

    def state(self) -> dict[str, Any]:
        """All that a resume needs. Random generators are not in it: every draw is a function of the position."""
        return {**self.step.state(), "position": asdict(self.position)}

    def resume(self) -> None:
        """Go on from the newest checkpoint that is whole, if there is any; what was logged after it is forgotten.

        Raises:
            UserError: no checkpoint is whole, or the ranks do not see the same one.
        """
        newest = on_first_rank(lambda: self.checkpoints.load_newest(self.load_state))
        path = wait_until_visible(newest, checkpoint.fingerprint)
        if path is not None:
            if not self.ranks.is_first:
                self.load_state(checkpoint.load(path))
            log.info("Resuming %s at epoch %d, step %d", self.run.path, self.position.epoch + 1, self.position.step)
        if self.ranks.is_first:
            self.run.rewind_metrics(self.position.epoch, self.position.global_step)
        barrier()

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned.

        Raises:
            UserError: the run was computed in another precision than this device's.
        """
        if state["precision"] != self.step.precision:
            raise UserError(
                f"{self.run.path} was trained in {state['precision']} and this is {self.step.precision}: say --precision {state['precision']}, or give another --run_name"
            )
        self.step.load_state(state)
        self.position = Position(**state["position"])

    # ------------------------------------------------------------------------------------------------- reporting

    def _log_step(self, steps: int, losses: dict[str, float], rate: float) -> None:
        at = self.position
        times = self.meter.means()
        self._report(state="running", **self.meter.throughput(self.config.batch_size))
        memory = (
            f"  {torch.cuda.max_memory_allocated(self.device) / 2**30:.1f} GiB" if self.device.type == "cuda" else ""
        )
        log.info(
            "epoch %d/%d step %d/%d  %s  lr %.2e  data %.0f ms  step %.0f ms%s%s",
            at.epoch + 1, self.config.epochs, at.step, steps,
            "  ".join(f"{name} {value:.4f}" for name, value in losses.items()),
            rate, times["data_s"] * 1e3, times["step_s"] * 1e3, memory, self.progress.time_left_text(),
        )  # fmt: skip
        if self.ranks.is_first:
            record = {"type": "step", "epoch": at.epoch + 1, "step": at.global_step, **losses, "lr": rate}
            self._record({**record, **times})
        self.meter = Meter()

    def _record(self, record: dict[str, Any]) -> None:
        self.run.append_metrics(record)
        if self.events:
            self.events.add(record)

    def _report(self, **fields: Any) -> None:
        """Tell the world where the run is; `fields` are fields of RunProgress."""
        at = self.position
        self.progress.update(
            **fields,
            epoch=at.epoch,
            epochs=self.config.epochs,
            step=at.global_step,
            steps=self.total_steps,
            best_epoch=at.best_epoch,
            best_spearman=at.best_spearman,
            peak_memory_gib=peak_memory_gib(self.device),
        )

    def report_finished(self) -> None:
        """The last word of a run that reached its end."""
        self._report(state="finished")
