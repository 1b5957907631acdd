"""What a model says of a list of actions, on all ranks, and what that is worth."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing

import torch

from data_preparation.common.errors import UserError
from data_preparation.dives import Dive
from training.config import TrainConfig
from training.data.batch import Batch, Rows, Tensors
from training.data.dataset import ActionDataset
from training.data.loader import evaluation_batches
from training.methods.base import Bank, ComparingMethod
from training.metrics import constant_prediction_warning, predicted_range, score_metrics
from training.model import ScoringModel
from training.runtime.collectives import gather_objects
from training.runtime.ranks import Ranks

log = logging.getLogger(__name__)


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


def to_device(batch: Batch, device: torch.device) -> Batch:
    return batch.map(lambda tensor: tensor.to(device, non_blocking=True))


def non_finite_rows(outputs: Tensors) -> list[int]:
    """The rows with an output that is not a finite number."""
    floats = [t.detach().reshape(len(t), -1) for t in outputs.values() if t.is_floating_point()]
    fine = torch.stack([torch.isfinite(t).all(dim=1) for t in floats]).all(dim=0)
    return (~fine).nonzero()[:, 0].tolist()


@torch.no_grad()
def forward_all(
    forward: Callable[[Batch], Tensors],
    data: ActionDataset,
    config: TrainConfig,
    ranks: Ranks,
    device: torch.device,
    between_batches: Callable[[], None] = lambda: None,
) -> Rows:
    """`forward` of every action once, in the data's order, on the CPU, the same on every rank.

    `between_batches` is called equally often on every rank, so it may be a place to agree on stopping.
    """
    precision = resolve_precision(config.precision, device)
    found: list[tuple[int, Rows]] = []
    with closing(evaluation_batches(data, config, ranks, device)) as rounds:
        for loaded in rounds:
            between_batches()
            if loaded is None:  # this rank has no share of the last round
                continue
            batch = to_device(loaded, device)
            with autocast(precision, device):
                outputs = forward(batch)
            groups = [{n: t.cpu() for n, t in group.items()} for group in (outputs, batch.given, batch.labels)]
            for row, index in enumerate(batch.index.tolist()):
                # clones: a view would be sent to the other ranks with its whole batch
                found.append((index, Rows(*({n: t[row].clone() for n, t in group.items()} for group in groups))))
    everyone = [row for _, row in sorted((row for part in gather_objects(found) for row in part), key=lambda r: r[0])]
    return Rows(*({n: torch.stack([row[g][n] for row in everyone]) for n in everyone[0][g]} for g in range(3)))


def predict(
    model: ScoringModel,
    data: ActionDataset,
    config: TrainConfig,
    ranks: Ranks,
    device: torch.device,
    between_batches: Callable[[], None] = lambda: None,
) -> Rows:
    """The model's outputs for every action, as `forward_all`."""
    model.eval()
    return forward_all(model, data, config, ranks, device, between_batches)


def encode_references(
    model: ScoringModel,
    references: ActionDataset,
    config: TrainConfig,
    ranks: Ranks,
    device: torch.device,
    between_batches: Callable[[], None] = lambda: None,
    *,
    known: bool = False,
) -> None:
    """Let a method that compares encode its references with the present weights, each once. With `known` those that the
    method remembers were encoded with these weights and are kept."""
    method = model.method
    if not isinstance(method, ComparingMethod):
        return
    kept = method.bank if known else None
    if kept is not None:
        references = references.without(kept.keys)
        if not len(references):
            return
    model.eval()
    rows = forward_all(
        lambda batch: method.encode(model.backbone, model.prepare(batch.clips["clip"])),
        references, config, ranks, device, between_batches,
    )  # fmt: skip
    fresh = Bank([action.key for action in references.actions], rows.outputs, rows.labels)
    method.remember(fresh if kept is None else kept.joined(fresh))


def validation_metrics(model: ScoringModel, rows: Rows, actions: Sequence[Dive]) -> dict[str, float]:
    """What `predict` gave for the validation actions is worth: losses over the whole set as one batch, metrics of the final
    scores, and the method's own metrics.

    Raises:
        UserError: a predicted score is not a number.
    """
    method = model.method
    scores = method.predict(rows.outputs, rows.given)["score"].tolist()
    losses = method.loss(*rows)
    if not all(map(math.isfinite, [*scores, float(losses["loss"])])):
        raise UserError(
            "the model predicts validation scores that are no numbers: lower --learning_rate, set --clip_grad 1, or say --precision fp32"
        )
    if remark := constant_prediction_warning(predicted_range(scores)):
        log.warning("Validation: %s", remark)
    besides = method.metrics(rows.outputs, rows.labels)
    if besides:
        log.info("Validation: %s", ", ".join(f"{name} {value:.3f}" for name, value in besides.items()))
    found = {
        **{"loss" if name == "loss" else f"loss_{name}": float(value) for name, value in losses.items()},
        **score_metrics(scores, [action.final_score for action in actions]),
        **besides,
    }
    return {f"val_{name}": value for name, value in found.items()}
