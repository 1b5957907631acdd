"""The training loop over epochs and steps. A run stops only between two steps."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections import deque
from contextlib import closing
from dataclasses import asdict
from typing import Any

import torch
from tqdm import tqdm

from data_preparation.common.errors import UserError
from training.config import TrainConfig
from training.data.batch import Batch
from training.data.dataset import ActionDataset
from training.data.loader import epoch_length, training_batches
from training.engine.prediction import Predictor, validation_metrics, validation_text
from training.engine.results import STEPS_AHEAD, NonFiniteLoss, Results
from training.engine.state import Checkpoints, Position, best_checkpoint_content
from training.engine.step import Step
from training.engine.trainer import Trainer
from training.model import ScoringModel
from training.plots import draw_losses
from training.runtime import checkpoint, collectives, start_up
from training.runtime.interruption import InterruptionFlag, StoppedBySignal
from training.runtime.progress import Meter, ProgressHook
from training.runtime.ranks import Ranks
from training.runtime.run_folder import RunFolder
from training.runtime.slow_ranks import SlowRanks, Stopwatch
from training.schedule import learning_rate

log = logging.getLogger(__name__)


class Engine(Trainer):
    """Trains with gradient steps."""

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
        super().__init__(model, config, run, ranks, device, interruption, on_progress)
        self.stopwatch, self.slow_ranks = Stopwatch(device), SlowRanks()
        self.step = Step(model, config, ranks, device, before_exchange=self.stopwatch.exchange)
        self.predictor = Predictor(config, ranks, device, between_batches=self.save_and_stop_if_requested)
        self.checkpoints = Checkpoints(run, config)
        self.meter = Meter()
        self.results, self.losses = Results(), dict[str, float]()  # `losses` are those of the last step that was read
        # What survivors of a lost rank save, see survivors.py. The last lines of metrics.jsonl: a node that loses its power
        # takes with it lines that are not on disk yet. The weights of best.pt: only the first rank writes it
        self.records: deque[dict[str, Any]] = deque(maxlen=1000)
        self.best: dict[str, Any] | None = None
        self.resumed_at = (0, 0)
        self.is_trained = False  # then the model may hold the weights of best.pt

    # ------------------------------------------------------------------------------------------------- the loop

    def fit(self, train_data: ActionDataset, val_data: ActionDataset) -> None:
        """Train from the present position to the last epoch.

        Raises:
            StoppedBySignal: a signal came; the checkpoint of the last step is written.
            UserError: a loss that is not finite, a full disk, a damaged frame.
        """
        self.train_data = train_data
        steps = epoch_length(train_data, self.config.batch_size)
        self.total_steps = steps * self.epochs
        self._report("running", error=None)
        while self.position.epoch < self.epochs and not self._out_of_patience():
            started, is_whole = time.perf_counter(), self.position.step == 0
            self._train_epoch(steps)
            self._finish_epoch(val_data, steps, started)
            if is_whole:  # and not the rest of an epoch after a resume
                self._report("running", epoch_s=time.perf_counter() - started)
        if self.position.epoch == self.resumed_at[0]:  # the last start may have ended between checkpoint and plot
            self._draw_losses()
        collectives.on_first_rank(self.checkpoints.wait)
        self.is_trained = True
        log.info(
            "Training is done: best epoch %d of %d, validation %s %.4f",
            self.position.best_epoch, self.position.epoch, self.task.metric.name, self.position.best,
        )  # fmt: skip

    def _train_epoch(self, steps: int) -> None:
        """Train from the present step of the epoch to its end."""
        position = self.position
        self.model.train()
        bar = tqdm(total=steps, initial=position.step, desc=f"epoch {position.epoch + 1}/{self.epochs}", unit="step",
                   leave=False, disable=not (self.ranks.is_first and sys.stderr.isatty()))  # fmt: skip
        batches = training_batches(
            self.train_data, self.config, self.ranks, self.device, position.epoch, first_step=position.step
        )
        with bar, closing(batches):
            self.save_and_stop_if_requested()
            while position.step < steps:
                load_started = time.perf_counter()
                self.stopwatch.start()
                batch = next(batches)
                self.stopwatch.loaded()
                self._check_rows(batch)
                step_started = time.perf_counter()
                rate = learning_rate(position.global_step, self.total_steps, self.config)
                result = self.step.compute(batch, position.global_step)
                with self.commit_lock:
                    self.step.commit(rate)
                    position.finish_step()
                    self.results.add(result)
                    is_logged = position.global_step % self.config.log_every == 0 or position.step == steps
                    self._add_losses(leave=0 if is_logged else STEPS_AHEAD)
                    self.meter.add(step_started - load_started, time.perf_counter() - step_started)
                    if is_logged:
                        self.records.append(self._step_record(rate))
                self._raise_failure(leave=0 if is_logged else STEPS_AHEAD)
                start_up.log_first_step(step_started - load_started, time.perf_counter() - step_started)
                bar.update()
                if is_logged:
                    self._log_step(steps, rate)
                # the clocks of the ranks may differ here, but only the first rank writes
                if self.checkpoints.is_due(position.global_step):
                    self.save()
                self.save_and_stop_if_requested()

    def _check_rows(self, batch: Batch) -> None:
        """Ranks with different numbers of rows would gather wrong numbers, or hang.

        Raises:
            UserError: this rank's batch does not have its share of the global batch.
        """
        rows, share = len(batch.action_index), self.config.batch_size // self.ranks.world_size
        if rows != share:
            raise UserError(
                f"the batch of rank {self.ranks.rank} for step {self.position.global_step + 1} has {rows} actions instead of {share}: fix the reader of the data set, which must return one sample for each action"
            )

    def _raise_failure(self, leave: int = 0) -> None:
        """Every rank calls it after the same steps.

        Raises:
            UserError: the loss or gradient of a step before the last `leave` is not finite; no step has changed the weights since.
        """
        try:
            self.results.raise_failure(before=self.position.global_step - leave)
        except NonFiniteLoss as error:
            raise UserError(self._non_finite_loss_text(error)) from None

    def _add_losses(self, leave: int = 0) -> None:
        """Wait for the losses of all steps but the last `leave`. The caller holds the commit lock."""
        for losses in self.results.read(leave):
            self.losses = losses
            self.position.loss_sum += losses["loss"]

    def _finish_epoch(self, val_data: ActionDataset, steps: int, started: float) -> None:
        """Validate, count the epoch as completed, log and save."""
        position, model = self.position, self.step.validated_model
        self.predictor.encode_references(model, self.train_data.references)
        rows = self.predictor.predict(model, val_data)
        metrics = {
            "train_loss": position.loss_sum / steps,
            **validation_metrics(model, self.task, rows, val_data.actions),
        }
        metric = self.task.metric
        value = metrics[f"val_{metric.key}"]
        if math.isnan(value):
            log.warning("Validation %s is undefined: %s", metric.name, metric.undefined)
        with self.commit_lock:
            is_best = position.finish_epoch(value)
            record = {"type": "epoch", "epoch": position.epoch, "step": position.global_step, **metrics}
            self.records.append({**record, "seconds": time.perf_counter() - started})
            if is_best and not self.ranks.is_first:  # the first rank may die before it has written best.pt
                self.best = checkpoint.copy_to_host(best_checkpoint_content(self.state()), self.best)
        if self.ranks.is_first:
            self._record(self.records[-1])
        if is_best:  # before the checkpoint, so that a resume never lacks them
            self._save_val_predictions(model.method, rows, val_data)
        self.save(is_best)
        self._draw_losses()
        log.info(
            "Epoch %d/%d  train loss %.4f  validation loss %.4f%s%s  %.1f s",
            position.epoch, self.epochs, metrics["train_loss"], metrics["val_loss"], validation_text(self.task, metrics),
            "  (best)" if is_best else "", time.perf_counter() - started,
        )  # fmt: skip
        self._report("running", train_loss=metrics["train_loss"], val=value)

    def _out_of_patience(self) -> bool:
        """Whether --patience stops the training: too many epochs since the best one."""
        position, patience = self.position, self.config.patience
        return bool(patience and position.best_epoch and position.epoch - position.best_epoch >= patience)

    def _non_finite_loss_text(self, error: NonFiniteLoss) -> str:
        """The message about a loss that is not finite, with the ranks and actions whose outputs are not."""
        indices = torch.cat(collectives.gather_objects(error.own_indices.cpu()))  # (B,) of the global batch
        rows_per_rank = len(indices) // self.ranks.world_size
        names_of_rank: dict[int, list[str]] = {}
        for row in error.rows or range(len(indices)):
            name = self.train_data.actions[int(indices[row])].name
            names_of_rank.setdefault(row // rows_per_rank, []).append(name)
        where = "; ".join(f"rank {rank}: actions {', '.join(names)}" for rank, names in names_of_rank.items())
        return f"the loss became {error.loss} at step {error.step + 1}, before the weights were updated ({where}): lower --learning_rate, set --clip_grad 1, or give --precision fp32"

    # ------------------------------------------------------------------------------------- stopping and resuming

    def save_and_stop_if_requested(self) -> None:
        """At a step boundary: save and stop all ranks if any rank received a signal."""
        if status := self._requested_status():
            with self.commit_lock:
                self._add_losses()
            self._raise_failure()
            self.save()
            self._stop(status)

    def stop_if_requested(self) -> None:
        """After the last epoch: its checkpoint is written already, and the model may hold the weights of best.pt."""
        if status := self._requested_status():
            self._stop(status)

    def _requested_status(self) -> int:
        """The exit status if any rank received a signal, else 0; the same on every rank."""
        return collectives.max_over_ranks(self.interruption.status)

    def _stop(self, status: int) -> None:
        collectives.on_first_rank(self.checkpoints.wait)
        self._report("interrupted")
        # wait until the first rank has written progress.json: srun may kill the others as soon as one rank ends
        collectives.barrier()
        raise StoppedBySignal(
            f"stopped by a signal after step {self.position.step} of epoch {self.position.epoch + 1}; the checkpoint is written",
            status,
        )

    def save(self, is_best: bool = False) -> None:
        """On the first rank: start to write the checkpoint of the present position and, with `is_best`, best.pt."""
        if not self.ranks.is_first:
            return
        with self.commit_lock:
            self._add_losses()
            if self.results.failure is None:  # else all ranks will raise it after the same step
                self.checkpoints.save(self.state(), is_best)

    def place(self) -> tuple[int, int] | None:
        """The place in the run of the last completed step, as long as this start has a step to save."""
        place = (self.position.epoch, self.position.global_step)
        return None if place == self.resumed_at or self.is_trained else place

    def save_at_once(self) -> None:
        """As the rank that was chosen after another one was lost: write the checkpoint of the last completed step.

        Raises:
            UserError: the disk is full.
        """
        with self.step.readable():
            state = checkpoint.copy_to_host(self.state(), pinned=False)
        self.checkpoints.save_at_once({**state, "records": list(self.records)}, self.best)

    def state(self) -> dict[str, Any]:
        """What a resume needs. No random state is in it, since every random number is a function of the position.

        Raises:
            UserError: a loss or gradient was not finite.
        """
        self._add_losses()
        self.results.raise_failure(before=self.position.global_step)
        return {**self.step.state(), "position": asdict(self.position), **self.trained_on}

    def resume(self) -> None:
        """Load the newest intact checkpoint, if there is one, and remove later lines from metrics.jsonl.

        Raises:
            UserError: no checkpoint of the run is intact, or a rank does not see the first rank's checkpoint.
        """
        loaded = collectives.on_first_rank(lambda: self.checkpoints.load_newest(self.load_state))
        path = collectives.wait_until_visible(loaded, checkpoint.fingerprint)
        if path is not None:
            if not self.ranks.is_first:
                self.load_state(checkpoint.load(path))
            log.info("Resuming %s at epoch %d, step %d", self.run.path, self.position.epoch + 1, self.position.step)
        if self.ranks.is_first:
            self.run.rewind_metrics(self.position.epoch, self.position.global_step, self.records)
            if path is not None and self.position.epoch < self.config.epochs:
                self.run.record_resume(self.position.epoch, self.position.global_step)
        self.resumed_at = (self.position.epoch, self.position.global_step)
        collectives.barrier()

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned.

        Raises:
            UserError: the run was trained in another precision than this device's.
        """
        if state["precision"] != self.step.precision:
            raise UserError(
                f"{self.run.path} was trained in {state['precision']} and this training uses {self.step.precision}: give --precision {state['precision']}, or give another --run_name"
            )
        self.step.load_state(state)
        self.records.extend(state.get("records", ()))
        self.position = Position.from_record(state["position"])

    # ------------------------------------------------------------------------------------------------- reporting

    def _log_step(self, steps: int, rate: float) -> None:
        """Log the losses of this step, which are read, and the mean times since the last call."""
        position, losses, times = self.position, self.losses, self.meter.means()
        slow_ranks = self.slow_ranks.exchange(self.stopwatch.take())
        self._report("running", slow_ranks=slow_ranks, **self.meter.throughput(self.config.batch_size))
        memory = ""
        if self.device.type == "cuda":
            memory = f"  {torch.cuda.max_memory_allocated(self.device) / 2**30:.1f} GiB"
        log.info(
            "epoch %d/%d step %d/%d  %s  lr %.2e  data %.0f ms  step %.0f ms%s%s",
            position.epoch + 1, self.epochs, position.step, steps,
            "  ".join(f"{name} {value:.4f}" for name, value in losses.items()),
            rate, times["data_s"] * 1e3, times["step_s"] * 1e3, memory, self.progress.time_left_text(),
        )  # fmt: skip
        if self.ranks.is_first:
            self._record(self.records[-1])
        self.meter = Meter()

    def _draw_losses(self) -> None:
        """Draw the losses of the epochs so far; only the first rank does."""
        if self.ranks.is_first:
            draw_losses(self.run.metrics("epoch"), self.run.plot_file(self.config), self.run.title, self.task.metric)

    def _step_record(self, rate: float) -> dict[str, Any]:
        """The record of the last completed step for metrics.jsonl."""
        place = {"epoch": self.position.epoch + 1, "step": self.position.global_step}
        return {"type": "step", **place, **self.losses, "lr": rate, **self.meter.means()}
