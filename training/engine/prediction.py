"""Outputs of a model for a list of actions, computed on all ranks, and their metrics."""

from __future__ import annotations

import logging
import math
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from data_preparation.actions import Action
from data_preparation.common.errors import UserError
from training.config import TrainConfig
from training.data.batch import Batch, Rows, Tensors
from training.data.dataset import ActionDataset
from training.data.loader import evaluation_batches
from training.methods.base import Bank, ComparingMethod
from training.model import ScoringModel
from training.runtime.collectives import gather_objects
from training.runtime.ranks import Ranks
from training.tasks import task_of
from training.tasks.base import Arrays, Task

log = logging.getLogger(__name__)


def resolve_precision(choice: str, device: torch.device) -> str:
    """The precision that --precision `choice` means on this device: "auto" becomes fp32, bf16 or fp16.

    Raises:
        UserError: the device cannot compute in the chosen precision.
    """
    if choice == "auto":
        if device.type != "cuda":
            return "fp32"
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if choice == "fp16" and device.type != "cuda":
        raise UserError("--precision fp16 needs a GPU: give auto, bf16 or fp32")
    return choice


def slow_precision(precision: str, device: torch.device) -> str | None:
    """A warning if this CPU computes slowly in a precision that `resolve_precision` returned, or None."""
    has_units = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    if precision != "bf16" or device.type != "cpu" or platform.machine() not in ("x86_64", "AMD64") or has_units:
        return None
    return "This CPU has no bf16 units, so --precision bf16 is several times slower than fp32: give --precision fp32"


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """torch.autocast for a precision that `resolve_precision` returned."""
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=precision != "fp32")


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with all tensors on `device`; the copy from pinned memory is asynchronous."""
    return batch.map(lambda tensor: tensor.to(device, non_blocking=True))


def non_finite_rows(outputs: Tensors) -> list[int]:
    """The rows in which any output is NaN or infinite."""
    flattened = [t.detach().reshape(len(t), -1) for t in outputs.values() if t.is_floating_point()]
    is_finite = torch.stack([torch.isfinite(t).all(dim=1) for t in flattened]).all(dim=0)
    return (~is_finite).nonzero()[:, 0].tolist()


@dataclass(frozen=True)
class Predictor:
    """Runs models over data sets on all ranks, without gradients.

    Every rank calls `between_batches` equally often, so the ranks can agree there to stop.
    """

    config: TrainConfig
    ranks: Ranks
    device: torch.device
    between_batches: Callable[[], None] = lambda: None

    def predict(self, model: ScoringModel, data: ActionDataset) -> Rows:
        """The model's outputs for every action of `data`, as `forward_all` returns them."""
        model.eval()
        return self.forward_all(model, data)

    def predict_views(self, model: ScoringModel, data: ActionDataset) -> tuple[Rows, Arrays]:
        """(outputs, predictions) for every action of `data`. With several views of each, every view is predicted, then the task
        averages the predictions."""
        rows = self.predict(model, data)
        predicted = as_arrays(model.method.predict(rows.outputs, rows.given))
        if data.views == 1:
            return rows, predicted
        of_views = {name: values.reshape(-1, data.views, *values.shape[1:]) for name, values in predicted.items()}
        task = task_of(self.config.task)
        return rows.mean_of_views(data.views), task.mean_of_views(of_views, self.config.test_average)

    def encode_references(self, model: ScoringModel, references: ActionDataset, *, keep_known: bool = False) -> None:
        """Encode the references of a comparing method with the model's present weights; do nothing for other methods.

        With `keep_known`, references that the method has already are not encoded again: the weights are the same.
        """
        method = model.method
        if not isinstance(method, ComparingMethod):
            return
        known = method.bank if keep_known else None
        if known is not None:
            references = references.without(known.keys)
            if not len(references):
                return
        model.eval()
        rows = self.forward_all(
            lambda batch: method.encode(model.backbone, model.prepare(batch.clips["clip"])), references
        )
        encoded = Bank([action.key for action in references.actions], rows.outputs, rows.labels)
        method.remember(encoded if known is None else known.extended(encoded))

    @torch.no_grad()
    def forward_all(self, forward: Callable[[Batch], Tensors], data: ActionDataset) -> Rows:
        """`forward` of every view of every action, each once: (len(data) * views, ...) tensors on the CPU in the order of `data`,
        on every rank."""
        own: list[IndexedRow] = []
        shows_bar = data.views > 1 and self.ranks.is_first and sys.stderr.isatty()
        with (
            closing(evaluation_batches(data, self.config, self.ranks, self.device)) as batches,
            tqdm(desc="views", unit="batch", leave=False, disable=not shows_bar) as bar,
        ):
            for loaded in batches:
                bar.update()
                self.between_batches()
                if loaded is not None:  # else only other ranks have a batch in this round
                    if self.config.cuda_graphs and self.device.type == "cuda":
                        torch.compiler.cudagraph_mark_step_begin()
                    own += forward_rows(forward, loaded, self.config.precision, self.device)
        return rows_of_all_ranks(own)


IndexedRow = tuple[int, Rows]  # the index of an action in its data set, and the action's row


@torch.no_grad()
def forward_rows(
    forward: Callable[[Batch], Tensors], loaded: Batch, precision: str, device: torch.device
) -> list[IndexedRow]:
    """`forward` of a batch of the DataLoader on a device: a row for each action, on the CPU. `precision` is a value of
    --precision."""
    batch = to_device(loaded, device)
    with autocast(resolve_precision(precision, device), device):
        outputs = forward(batch)
    groups = [{n: t.cpu() for n, t in group.items()} for group in (outputs, batch.given, batch.labels)]
    # cloned, since pickling a view for other ranks would pickle the whole batch
    return [
        (index, Rows(*({n: t[row].clone() for n, t in group.items()} for group in groups)))
        for row, index in enumerate(batch.action_index.tolist())
    ]


def in_order(indexed: Sequence[IndexedRow]) -> Rows:
    """The rows of all actions as (A, ...) tensors, ordered by index."""
    rows = [row for _, row in sorted(indexed, key=lambda pair: pair[0])]
    return Rows(*({name: torch.stack([row[g][name] for row in rows]) for name in rows[0][g]} for g in range(3)))


def rows_of_all_ranks(own: Sequence[IndexedRow]) -> Rows:
    """The rows of all actions on every rank, from the rows of each rank: (A, ...) tensors, ordered by index.

    A rank sends one tensor for each name: a million rows one by one would take each rank minutes to read.
    """
    found = gather_objects((sorted(index for index, _ in own), in_order(own) if own else None))
    indices = torch.tensor([index for of_rank, _ in found for index in of_rank])
    order, parts = indices.argsort(), [rows for _, rows in found if rows is not None]
    return Rows(
        *({name: torch.cat([part[g][name] for part in parts])[order] for name in parts[0][g]} for g in range(3))
    )


def as_arrays(tensors: Tensors) -> Arrays:
    """Predictions as float64 arrays, for a task."""
    return {name: tensor.double().cpu().numpy() for name, tensor in tensors.items()}


def validation_metrics(model: ScoringModel, task: Task, rows: Rows, actions: Sequence[Action]) -> dict[str, float]:
    """Metrics of the outputs for the validation actions, each named "val_...": the losses of the whole set as one batch,
    the metrics of the task, and the method's own metrics.

    Raises:
        UserError: a prediction or the loss is not a finite number.
    """
    method = model.method
    predicted = as_arrays(method.predict(rows.outputs, rows.given))
    losses = {name: float(value) for name, value in method.loss(*rows).items()}
    if not (math.isfinite(losses["loss"]) and all(np.isfinite(values).all() for values in predicted.values())):
        raise UserError(
            "the model's validation predictions or their loss are not finite: lower --learning_rate, set --clip_grad 1, or give --precision fp32"
        )
    truth = task.truth(actions)
    if warning := task.warning(predicted, truth):
        log.warning("Validation: %s%s", warning, method.against_constant)
    method_metrics = method.metrics(rows.outputs, rows.labels)
    if method_metrics:
        log.info("Validation: %s", ", ".join(f"{name} {value:.3f}" for name, value in method_metrics.items()))
    metrics = {
        **{"loss" if name == "loss" else f"loss_{name}": value for name, value in losses.items()},
        **task.validation_metrics(predicted, truth, losses),
        **method_metrics,
    }
    return {f"val_{name}": value for name, value in metrics.items()}


def validation_text(task: Task, metrics: Mapping[str, float]) -> str:
    """The task's validation metrics in the log line of an epoch, such as '  Spearman 0.9344  R-l2 x100 0.512'."""
    return "".join(f"  {title} {metrics[f'val_{key}']:.{digits}f}" for key, title, digits in task.logged)
