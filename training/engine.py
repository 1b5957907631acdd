"""The training loop. It knows a Method, not its kinds, and a step boundary is the only place where anything can stop."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from data_preparation.cli import UserError
from training import checkpoint
from training.config import TrainConfig
from training.data.dataset import DiveDataset
from training.data.loader import evaluation_batches, steps_per_epoch, training_batches
from training.data.transforms import to_input
from training.distributed import Ranks, barrier, gather, gather_objects, slurm_job_id
from training.interruption import Interrupted, InterruptionFlag
from training.methods import Tensors
from training.metrics import score_metrics
from training.model import ScoringModel
from training.plots import draw_losses
from training.run_folder import RunFolder
from training.schedule import learning_rate
from training.seeding import seed_all

log = logging.getLogger(__name__)

ProgressHook = Callable[[dict[str, Any]], None]

_OPTIMIZERS: dict[str, Callable[[Any, TrainConfig], torch.optim.Optimizer]] = {
    "Adam": lambda p, c: torch.optim.Adam(p, c.learning_rate, weight_decay=c.weight_decay, amsgrad=c.amsgrad),
    "AdamW": lambda p, c: torch.optim.AdamW(p, c.learning_rate, weight_decay=c.weight_decay, amsgrad=c.amsgrad),
    "SGD": lambda p, c: torch.optim.SGD(p, c.learning_rate, weight_decay=c.weight_decay, momentum=c.momentum),
    "RMSProp": lambda p, c: torch.optim.RMSprop(p, c.learning_rate, weight_decay=c.weight_decay, momentum=c.momentum),
}


@dataclass
class Position:
    """Where a run is: all that a resume needs besides the tensors."""

    epoch: int = 0  # epochs completed, validation included
    step: int = 0  # optimizer steps done in the epoch under way
    global_step: int = 0
    loss_sum: float = 0.0  # of the steps of the epoch under way
    best_epoch: int = 0  # 1-based; 0 before the first validation
    best_spearman: float = math.nan


def resolve_precision(choice: str, device: torch.device) -> str:
    """What --precision auto means on this device.

    Raises:
        UserError: the device cannot compute in the precision asked for.
    """
    if choice == "auto":
        if device.type != "cuda":
            return "fp32"
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if choice == "fp16" and device.type != "cuda":
        raise UserError("--precision fp16 needs a GPU: say auto, bf16 or fp32")
    return choice


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """The context of a forward pass in a precision of `resolve_precision`."""
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=precision != "fp32")


def to_device(batch: Tensors, config: TrainConfig, device: torch.device) -> Tensors:
    """A loaded batch on the device, its `clip` turned into the model's `video` (B, 3, T, S, S)."""
    batch = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
    batch["video"] = to_input(batch.pop("clip"), config.normalize)
    return batch


@torch.no_grad()
def predict(
    model: ScoringModel,
    data: DiveDataset,
    config: TrainConfig,
    ranks: Ranks,
    device: torch.device,
    between_batches: Callable[[], None] = lambda: None,
) -> tuple[Tensors, Tensors]:
    """Outputs and targets of every dive once, in the data's order, on the CPU, the same on every rank.

    `between_batches` is called equally often on every rank, so it may be a place to agree on stopping.
    """
    model.eval()
    precision = resolve_precision(config.precision, device)
    rows: list[tuple[int, Tensors, Tensors]] = []
    for loaded in evaluation_batches(data, config, ranks, device):
        between_batches()
        if loaded is None:  # this rank has no share of the last round
            continue
        batch = to_device(loaded, config, device)
        with autocast(precision, device):
            outputs = model(batch)
        outputs, targets = (
            {n: t.cpu() for n, t in group.items() if n not in ("video", "index")} for group in (outputs, batch)
        )
        for row, index in enumerate(batch["index"].tolist()):
            rows.append((index, {n: t[row] for n, t in outputs.items()}, {n: t[row] for n, t in targets.items()}))
    everyone = sorted((row for part in gather_objects(rows) for row in part), key=lambda row: row[0])

    def stack(column: int) -> Tensors:
        return {name: torch.stack([row[column][name] for row in everyone]) for name in everyone[0][column]}

    return stack(1), stack(2)


class Engine:
    """One run: the model, its optimizer, its position, and the loop over epochs and steps."""

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
        self.interruption, self.on_progress = interruption, on_progress
        self.precision = resolve_precision(config.precision, device)
        self.optimizer = _OPTIMIZERS[config.optimizer]([p for p in model.parameters() if p.requires_grad], config)
        self.scaler = torch.amp.GradScaler("cuda", enabled=self.precision == "fp16")
        self.position = Position()
        self.last_news: dict[str, Any] = {}
        self.parallel: nn.Module = DistributedDataParallel(model) if ranks.world_size > 1 else model

    # -------------------------------------------------------------------------------------------------- one step

    def training_step(self, batch: Tensors, rate: float) -> dict[str, float]:
        """One optimizer step on this rank's rows of the global batch; returns the losses of the global batch."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        seed_all(self.config.seed, "step", self.position.global_step, self.ranks.rank)  # dropout, stochastic depth
        batch = to_device(batch, self.config, self.device)
        with autocast(self.precision, self.device):
            outputs = self.parallel(batch)

        # Every rank computes the loss of the global batch; its gradient reaches this rank's rows only.
        outputs = {name: gather(rows) for name, rows in outputs.items()}
        batch = {name: gather(rows) for name, rows in batch.items() if name != "video"}
        losses = self.model.method.loss(outputs, batch)
        self._refuse_non_finite(losses["loss"], batch["index"])

        self.optimizer.zero_grad(set_to_none=True)
        # DistributedDataParallel divides the summed gradients by the number of ranks
        self.scaler.scale(losses["loss"] * self.ranks.world_size).backward()
        if self.config.clip_grad:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return {name: float(value.detach()) for name, value in losses.items()}

    def _refuse_non_finite(self, loss: torch.Tensor, indices: torch.Tensor) -> None:
        if not torch.isfinite(loss):
            names = ", ".join(self.train_data.dives[i].name for i in indices.tolist())
            raise UserError(
                f"the loss became {float(loss.detach())} at step {self.position.global_step + 1}, before the optimizer moved (dives {names}): lower --learning_rate, set --clip_grad 1, or say --precision fp32"
            )

    def validate(self, data: DiveDataset) -> dict[str, float]:
        """Losses over the whole set as one batch, and the metrics of its final scores."""
        outputs, targets = predict(self.model, data, self.config, self.ranks, self.device, self.stop_if_told)
        losses = self.model.method.loss(outputs, targets)
        scores = self.model.method.scores(outputs).tolist()
        if not all(map(math.isfinite, scores)):
            raise UserError(
                f"the model predicts scores that are no numbers after step {self.position.global_step}: lower --learning_rate, set --clip_grad 1, or say --precision fp32"
            )
        metrics = score_metrics(scores, [d.final_score for d in data.dives])
        parts = {f"val_loss_{name}": float(value) for name, value in losses.items() if name != "loss"}
        return {"val_loss": float(losses["loss"]), **parts, **{f"val_{name}": value for name, value in metrics.items()}}

    # ------------------------------------------------------------------------------------------------- the loop

    def fit(self, train_data: DiveDataset, val_data: DiveDataset) -> None:
        """Train from the present position to the last epoch.

        Raises:
            Interrupted: a signal came; the checkpoint of the step that was reached is written.
            UserError: a non-finite loss, a full disk, a damaged frame.
        """
        self.train_data = train_data
        steps = steps_per_epoch(len(train_data), self.config.batch_size)
        self.total_steps = steps * self.config.epochs
        self._report({"state": "running"})
        while self.position.epoch < self.config.epochs and not self._out_of_patience():
            started = time.perf_counter()
            self._train_epoch(steps)
            self._finish_epoch(val_data, steps, started)
        log.info(
            "Training is done: best epoch %d of %d, validation Spearman %.4f",
            self.position.best_epoch, self.position.epoch, self.position.best_spearman,
        )  # fmt: skip

    def _train_epoch(self, steps: int) -> None:
        config, at = self.config, self.position
        self.model.train()
        batches = training_batches(self.train_data, config, self.ranks, self.device, at.epoch, at.step)
        bar = tqdm(total=steps, initial=at.step, desc=f"epoch {at.epoch + 1}/{config.epochs}", unit="step", leave=False,
                   disable=not (self.ranks.is_first and sys.stderr.isatty()))  # fmt: skip
        with bar:
            while True:
                self.stop_if_told()
                if at.step == steps:
                    return
                waited_from = time.perf_counter()
                batch = next(batches)
                computed_from = time.perf_counter()
                rate = learning_rate(at.global_step, self.total_steps, config)
                losses = self.training_step(batch, rate)
                times = {"data_s": computed_from - waited_from, "step_s": time.perf_counter() - computed_from}
                at.step, at.global_step, at.loss_sum = at.step + 1, at.global_step + 1, at.loss_sum + losses["loss"]
                bar.update()
                if at.global_step % config.log_every == 0 or at.step == steps:
                    self._log_step(steps, losses, rate, times)
                if config.checkpoint_every and at.global_step % config.checkpoint_every == 0:
                    self.save_last()

    def _finish_epoch(self, val_data: DiveDataset, steps: int, started: float) -> None:
        at = self.position
        result = {"train_loss": at.loss_sum / steps, **self.validate(val_data)}
        spearman = result["val_spearman"]
        if math.isnan(spearman):
            log.warning("Validation Spearman is undefined: all predicted (or all true) scores are equal")
        is_best = (
            at.best_epoch == 0 or spearman > at.best_spearman or (math.isnan(at.best_spearman) and spearman == spearman)
        )
        at.epoch, at.step, at.loss_sum = at.epoch + 1, 0, 0.0
        if is_best:
            at.best_epoch, at.best_spearman = at.epoch, spearman
        if self.ranks.is_first:
            record = {"type": "epoch", "epoch": at.epoch, "step": at.global_step, **result}
            self.run.append_metrics({**record, "seconds": time.perf_counter() - started})
            if is_best:
                checkpoint.save(self.run.best_checkpoint, {"model": self.model.state_dict(), "position": asdict(at)})
        self.save_last()
        if self.ranks.is_first:
            draw_losses(self.run.metrics("epoch"), self.run.plot_file(self.config), title=self.run.path.name)
        log.info(
            "Epoch %d/%d  train loss %.4f  validation loss %.4f  Spearman %.4f  R-l2 x100 %.3f%s  %.1f s",
            at.epoch, self.config.epochs, result["train_loss"], result["val_loss"], spearman, result["val_r_l2_x100"],
            "  (best)" if is_best else "", time.perf_counter() - started,
        )  # fmt: skip
        self._report({"state": "running", "train_loss": result["train_loss"], "val_spearman": spearman,
                      "epoch_s": time.perf_counter() - started})  # fmt: skip

    def _out_of_patience(self) -> bool:
        at, patience = self.position, self.config.patience
        return bool(patience and at.best_epoch and at.epoch - at.best_epoch >= patience)

    def stop_if_told(self) -> None:
        if status := self.interruption.agreed_status(self.device):
            self.save_last()
            at = self.position
            self._report({"state": "interrupted"})
            barrier()  # the first rank has told the world: from here on no rank's end can cut it short
            raise Interrupted(
                f"stopped by a signal after step {at.step} of epoch {at.epoch + 1}; the checkpoint is written",
                status,
            )

    # --------------------------------------------------------------------------------------- saving and reporting

    def save_last(self) -> None:
        """Write checkpoints/last.pt on the first rank; returns when it is on disk."""
        if self.ranks.is_first:
            checkpoint.save(self.run.last_checkpoint, self.state())
        barrier()

    def state(self) -> dict[str, Any]:
        """All that a resume needs. Random generators are not in it: every draw is a function of the position."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "precision": self.precision,
            "position": asdict(self.position),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned.

        Raises:
            UserError: the run was computed in another precision than this device's.
        """
        if state["precision"] != self.precision:
            raise UserError(
                f"{self.run.path} was trained in {state['precision']} and this is {self.precision}: say --precision {state['precision']}, or give another --run_name"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.position = Position(**state["position"])

    def _log_step(self, steps: int, losses: dict[str, float], rate: float, times: dict[str, float]) -> None:
        at = self.position
        memory = (
            f"  {torch.cuda.max_memory_allocated(self.device) / 2**30:.1f} GiB" if self.device.type == "cuda" else ""
        )
        log.info(
            "epoch %d/%d step %d/%d  %s  lr %.2e  data %.0f ms  step %.0f ms%s",
            at.epoch + 1, self.config.epochs, at.step, steps,
            "  ".join(f"{name} {value:.4f}" for name, value in losses.items()),
            rate, times["data_s"] * 1e3, times["step_s"] * 1e3, memory,
        )  # fmt: skip
        if self.ranks.is_first:
            record = {"type": "step", "epoch": at.epoch + 1, "step": at.global_step, **losses, "lr": rate}
            self.run.append_metrics({**record, **times})
        self._report({"state": "running", "step_s": times["step_s"] + times["data_s"]})

    def _report(self, news: dict[str, Any]) -> None:
        """Tell the world where the run is: progress.json, and whoever asked (Slurm's job comment)."""
        if not self.ranks.is_first:
            return
        at = self.position
        self.last_news |= news
        per_step = self.last_news.get("step_s")
        left = max(self.total_steps - at.global_step, 0)
        if "epoch_s" in self.last_news:  # a whole epoch is the better clock: it has validation in it
            per_step = self.last_news["epoch_s"] / (self.total_steps / self.config.epochs)
        record = {
            **self.last_news,
            "epoch": at.epoch,
            "epochs": self.config.epochs,
            "step": at.global_step,
            "steps": self.total_steps,
            "best_epoch": at.best_epoch,
            "best_spearman": at.best_spearman,
            "eta_s": None if per_step is None else left * per_step,
            "job_id": slurm_job_id(),
        }
        self.run.write_progress(record)
        if self.on_progress:
            self.on_progress(record)

    def report_end(self) -> None:
        """The last word of a run that reached its end."""
        self._report({"state": "finished"})
