"""The training loop. It knows a Method, not its kinds, and a step boundary is the only place where anything can stop."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from data_preparation.cli import UserError
from data_preparation.dives import Dive
from training import checkpoint
from training.config import TrainConfig
from training.data.dataset import DiveDataset
from training.data.loader import evaluation_batches, steps_per_epoch, training_batches
from training.distributed import barrier, gather, gather_objects, largest, on_first_rank, see_the_same
from training.interruption import Interrupted, InterruptionFlag
from training.methods import Tensors
from training.metrics import predicted_range, sameness_remark, score_metrics
from training.model import ScoringModel
from training.plots import draw_losses
from training.progress import Meter, Progress, ProgressHook
from training.ranks import Ranks
from training.row_noise import rows_of
from training.run_folder import RunFolder
from training.schedule import learning_rate
from training.seeding import seed_all
from training.tensorboard import EventLog

log = logging.getLogger(__name__)

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


def to_device(batch: Tensors, device: torch.device) -> Tensors:
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def cut(rows: Tensors, parts: int) -> list[Tensors]:
    """A batch as `parts` smaller ones, in order."""
    pieces = {name: tensor.chunk(parts) for name, tensor in rows.items()}
    return [{name: chunks[part] for name, chunks in pieces.items()} for part in range(parts)]


def joined(parts: Sequence[Tensors]) -> Tensors:
    """What `cut` has cut, as one batch again."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def non_finite_rows(outputs: Tensors) -> list[int]:
    """The rows with an output that is no finite number."""
    floats = [t.detach().reshape(len(t), -1) for t in outputs.values() if t.is_floating_point()]
    fine = torch.stack([torch.isfinite(t).all(dim=1) for t in floats]).all(dim=0)
    return (~fine).nonzero()[:, 0].tolist()


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
    with closing(evaluation_batches(data, config, ranks, device)) as rounds:
        for loaded in rounds:
            between_batches()
            if loaded is None:  # this rank has no share of the last round
                continue
            batch = to_device(loaded, device)
            with autocast(precision, device):
                outputs = model(batch)
            outputs, targets = (
                {n: t.cpu() for n, t in group.items() if n not in ("clip", "index")} for group in (outputs, batch)
            )
            for row, index in enumerate(batch["index"].tolist()):
                # clones: a view would be sent to the other ranks with its whole batch
                rows.append((index, *({n: t[row].clone() for n, t in group.items()} for group in (outputs, targets))))
    everyone = sorted((row for part in gather_objects(rows) for row in part), key=lambda row: row[0])

    def stack(column: int) -> Tensors:
        return {name: torch.stack([row[column][name] for row in everyone]) for name in everyone[0][column]}

    return stack(1), stack(2)


def validation_metrics(
    model: ScoringModel, outputs: Tensors, targets: Tensors, dives: Sequence[Dive]
) -> dict[str, float]:
    """What `predict` gave for the validation dives is worth: losses over the whole set as one batch, metrics of the final
    scores, and the method's own metrics.

    Raises:
        UserError: a predicted score is no number.
    """
    scores = model.method.scores(outputs).tolist()
    losses = model.method.loss(outputs, targets)
    if not all(map(math.isfinite, [*scores, float(losses["loss"])])):
        raise UserError(
            "the model predicts validation scores that are no numbers: lower --learning_rate, set --clip_grad 1, or say --precision fp32"
        )
    if remark := sameness_remark(predicted_range(scores)):
        log.warning("Validation: %s", remark)
    besides = model.method.metrics(outputs, targets)
    if besides:
        log.info("Validation: %s", ", ".join(f"{name} {value:.3f}" for name, value in besides.items()))
    found = {
        **{"loss" if name == "loss" else f"loss_{name}": float(value) for name, value in losses.items()},
        **score_metrics(scores, [d.final_score for d in dives]),
        **besides,
    }
    return {f"val_{name}": value for name, value in found.items()}


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
        self.progress = Progress(run, ranks, device, on_progress)
        self.meter = Meter()
        self.writer = checkpoint.Writer()
        self.saved_at = time.monotonic()
        if config.compile:
            # dropout draws the same numbers, compiled or not
            model.backbone.compile(options={"fallback_random": True})
        # looking for unused parameters, of which there are none, keeps DDP from regrouping its gradients after the first
        # step: a resumed run would sum those of three and more ranks in another order than one that went through
        self.parallel: nn.Module = (
            DistributedDataParallel(model, find_unused_parameters=device.type == "cpu")
            if ranks.world_size > 1
            else model
        )
        self.ema = (
            AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema), use_buffers=True)
            if config.ema
            else None
        )
        self.events = EventLog(run.path / "tensorboard") if config.tensorboard and ranks.is_first else None

    @property
    def evaluated_model(self) -> ScoringModel:
        """The model that is validated, kept as best and tested: the average of the weights, if one is kept."""
        return self.model if self.ema is None else self.ema.module

    # -------------------------------------------------------------------------------------------------- one step

    def training_step(self, batch: Tensors, rate: float) -> dict[str, float]:
        """One optimizer step on this rank's rows of the global batch; returns the losses of the global batch.

        The loss is a function of the whole batch's outputs, since it ranks them. With --accumulate the outputs are first
        computed part by part without a graph, and each part again with one when the loss's gradient with respect to the
        outputs is known ("Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", Gao et al., 2021).
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        parts = cut(to_device(batch, self.device), self.config.accumulate)
        with torch.set_grad_enabled(len(parts) == 1):
            passes = [self._forward(part, number) for number, part in enumerate(parts)]

        # Every rank computes the loss of the global batch; its gradient reaches this rank's rows only.
        rows = {n: t.detach().requires_grad_(t.is_floating_point()) for n, t in joined(passes).items()}
        outputs = {name: gather(t) for name, t in rows.items()}
        targets = {name: gather(t) for name, t in joined(parts).items() if name != "clip"}
        losses = self.model.method.loss(outputs, targets)
        self._refuse_non_finite(losses["loss"], outputs, targets["index"])

        # DistributedDataParallel divides the summed gradients by the number of ranks
        self.scaler.scale(losses["loss"] * self.ranks.world_size).backward()
        gradients = {name: t.grad for name, t in rows.items() if t.grad is not None}
        self.optimizer.zero_grad(set_to_none=True)
        for number, (part, gradient) in enumerate(zip(parts, cut(gradients, len(parts)), strict=True)):
            with self._gradient_sync(number == len(parts) - 1):
                graph = passes[0] if len(parts) == 1 else self._forward(part, number)
                torch.autograd.backward([graph[name] for name in gradient], [*gradient.values()])
        norm = self._optimizer_step()
        if self.ema is not None:
            self.ema.update_parameters(self.model)
        return {**{name: float(value.detach()) for name, value in losses.items()}, "grad_norm": norm}

    def _forward(self, part: Tensors, number: int) -> Tensors:
        """Outputs of a part of a step's dives; the draws (dropout, stochastic depth) are those of the step and the dives'
        rows in the global batch."""
        seed_all(self.config.seed, "step", self.position.global_step)
        parts = self.config.accumulate
        rows = rows_of(self.ranks.rank * parts + number, self.ranks.world_size * parts)
        with rows, autocast(self.precision, self.device):
            return self.parallel(part)

    def _gradient_sync(self, now: bool) -> AbstractContextManager:
        """Ranks sum their gradients in the backward pass of a step's last part, once."""
        if now or not isinstance(self.parallel, DistributedDataParallel):
            return nullcontext()
        return self.parallel.no_sync()

    def _optimizer_step(self) -> float:
        """Let the optimizer move; returns the gradient's norm before clipping."""
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_grad or math.inf)
        # with fp16 the scaler skips such a step and lowers its scale
        if not self.scaler.is_enabled() and not torch.isfinite(norm):
            raise UserError(
                f"the gradient became {float(norm)} at step {self.position.global_step + 1}, before the optimizer moved: lower --learning_rate, or say --precision fp32"
            )
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return float(norm)

    def _refuse_non_finite(self, loss: torch.Tensor, outputs: Tensors, indices: torch.Tensor) -> None:
        if torch.isfinite(loss):
            return
        rows = non_finite_rows(outputs) or range(len(indices))
        share = len(indices) // self.ranks.world_size
        guilty: dict[int, list[str]] = {}
        for row in rows:
            guilty.setdefault(row // share, []).append(self.train_data.dives[int(indices[row])].name)
        where = "; ".join(f"rank {rank}: dives {', '.join(names)}" for rank, names in guilty.items())
        raise UserError(
            f"the loss became {float(loss.detach())} at step {self.position.global_step + 1}, before the optimizer moved ({where}): lower --learning_rate, set --clip_grad 1, or say --precision fp32"
        )

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
        self._report({"state": "running", "error": None})
        while self.position.epoch < self.config.epochs and not self._out_of_patience():
            started, from_its_start = time.perf_counter(), self.position.step == 0
            self._train_epoch(steps)
            self._finish_epoch(val_data, steps, started)
            if from_its_start:
                self._report({"epoch_s": time.perf_counter() - started})
        on_first_rank(self.writer.wait)
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
                self.stop_if_told()
                if at.step == steps:
                    return
                waited_from = time.perf_counter()
                batch = next(batches)
                computed_from = time.perf_counter()
                rate = learning_rate(at.global_step, self.total_steps, config)
                losses = self.training_step(batch, rate)
                self.meter.add(computed_from - waited_from, time.perf_counter() - computed_from)
                at.step, at.global_step, at.loss_sum = at.step + 1, at.global_step + 1, at.loss_sum + losses["loss"]
                bar.update()
                if at.global_step % config.log_every == 0 or at.step == steps:
                    self._log_step(steps, losses, rate)
                if self._save_is_due():
                    self.save()

    def _finish_epoch(self, val_data: DiveDataset, steps: int, started: float) -> None:
        at = self.position
        model = self.evaluated_model
        outputs = predict(model, val_data, self.config, self.ranks, self.device, self.stop_if_told)
        result = {"train_loss": at.loss_sum / steps, **validation_metrics(model, *outputs, val_data.dives)}
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
            self._record({**record, "seconds": time.perf_counter() - started})
        self.save(is_best)
        if self.ranks.is_first:
            draw_losses(self.run.metrics("epoch"), self.run.plot_file(self.config), title=self.run.title)
        log.info(
            "Epoch %d/%d  train loss %.4f  validation loss %.4f  Spearman %.4f  R-l2 x100 %.3f%s  %.1f s",
            at.epoch, self.config.epochs, result["train_loss"], result["val_loss"], spearman, result["val_r_l2_x100"],
            "  (best)" if is_best else "", time.perf_counter() - started,
        )  # fmt: skip
        self._report({"state": "running", "train_loss": result["train_loss"], "val_spearman": spearman})

    def _out_of_patience(self) -> bool:
        at, patience = self.position, self.config.patience
        return bool(patience and at.best_epoch and at.epoch - at.best_epoch >= patience)

    def stop_if_told(self) -> None:
        """Save and stop, at a step boundary, if any rank was told to."""
        if status := largest(self.interruption.status, self.device):
            self.save()
            self._leave(status)

    def leave_if_told(self) -> None:
        """Stop if any rank was told to, after the last epoch: the checkpoint is written, and the model may hold others'
        weights."""
        if status := largest(self.interruption.status, self.device):
            self._leave(status)

    def _leave(self, status: int) -> None:
        at = self.position
        on_first_rank(self.writer.wait)
        self._report({"state": "interrupted"})
        barrier()  # the first rank has told the world: from here on no rank's end can cut it short
        raise Interrupted(
            f"stopped by a signal after step {at.step} of epoch {at.epoch + 1}; the checkpoint is written", status
        )

    # --------------------------------------------------------------------------------------- saving and resuming

    def _save_is_due(self) -> bool:
        """Whether --checkpoint_every asks for a checkpoint now. The clock is the first rank's, who alone writes."""
        steps = self.config.save_steps
        by_clock = time.monotonic() - self.saved_at >= self.config.save_seconds
        return by_clock or bool(steps and self.position.global_step % steps == 0)

    def save(self, is_best: bool = False) -> None:
        """Begin to write the checkpoint of this position, and with `is_best` best.pt after it, on the first rank."""
        self.saved_at = time.monotonic()
        if not self.ranks.is_first:
            return
        newest = self.run.checkpoint_file(self.position.epoch, self.position.global_step)

        def files(state: dict[str, Any]) -> dict[Path, dict[str, Any]]:
            return {newest: state, **({self.run.best_checkpoint: _best_of(state)} if is_best else {})}

        self.writer.put(self.state(), files, self.run.sync_metrics, self._forget_old)

    def _forget_old(self) -> None:
        for old in self.run.checkpoints()[self.config.keep_checkpoints :]:
            old.unlink(missing_ok=True)

    def state(self) -> dict[str, Any]:
        """All that a resume needs. Random generators are not in it: every draw is a function of the position."""
        return {
            "model": self.model.state_dict(),
            "average": None if self.ema is None else self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "precision": self.precision,
            "position": asdict(self.position),
        }

    def resume(self) -> None:
        """Go on from the newest checkpoint that is whole, if there is any; what was logged after it is forgotten.

        Raises:
            UserError: no checkpoint is whole, or the ranks do not see the same one.
        """
        path = see_the_same(on_first_rank(self._newest_whole), checkpoint.fingerprint)
        if path is not None:
            if not self.ranks.is_first:
                self.load_state(checkpoint.load(path))
            log.info("Resuming %s at epoch %d, step %d", self.run.path, self.position.epoch + 1, self.position.step)
        if self.ranks.is_first:
            self.run.rewind_metrics(self.position.epoch, self.position.global_step)
        barrier()

    def _newest_whole(self) -> Path | None:
        """Load the newest checkpoint that is whole; those that are not are set aside, loudly."""
        damaged: list[Path] = []
        for path in self.run.checkpoints():
            try:
                state = checkpoint.load(path, parts={"model", "optimizer", "position", "precision"})
            except checkpoint.Damaged as error:
                log.error("%s", error)
                damaged.append(path)
                continue
            self.load_state(state)
            self._mend_best(state)
            for torn in damaged:
                torn.rename(torn.with_name(torn.name + ".damaged"))
                log.error("%s is set aside as *.damaged: going on from the checkpoint before it", torn)
            return path
        if damaged or self.run.has_lost_checkpoints():
            raise UserError(
                f"{self.run.path} holds a run and no checkpoint to go on from: restore one from a copy, or give another --run_name to begin anew"
            )
        return None

    def _mend_best(self, state: dict[str, Any]) -> None:
        """See that best.pt is the best of this history. A kill between the two files of an epoch leaves it behind: its
        weights are in the checkpoint, too. It is ahead where the newest checkpoint was damaged."""
        at, best = self.position, self.run.best_checkpoint
        if not at.best_epoch:
            return
        if at.best_epoch == at.epoch and at.step == 0:
            checkpoint.save(best, _best_of(state))
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
        if self.ema is not None:
            self.ema.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.position = Position(**state["position"])

    # ------------------------------------------------------------------------------------------------- reporting

    def _log_step(self, steps: int, losses: dict[str, float], rate: float) -> None:
        at = self.position
        times = self.meter.means()
        self._report({"state": "running", **self.meter.news(self.config.batch_size)})
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

    def _report(self, news: dict[str, Any]) -> None:
        """Tell the world where the run is."""
        at = self.position
        self.progress.tell(
            {
                **news,
                "epoch": at.epoch,
                "epochs": self.config.epochs,
                "step": at.global_step,
                "steps": self.total_steps,
                "best_epoch": at.best_epoch,
                "best_spearman": at.best_spearman,
            }
        )

    def report_end(self) -> None:
        """The last word of a run that reached its end."""
        self._report({"state": "finished"})


def _best_of(state: dict[str, Any]) -> dict[str, Any]:
    """What best.pt holds of a checkpoint's state: the weights that were validated, and where that was."""
    model = state["model"]
    if state["average"] is not None:
        prefix = "module."  # AveragedModel's
        model = {n.removeprefix(prefix): t for n, t in state["average"].items() if n.startswith(prefix)}
    return {"model": model, "position": state["position"]}
