"""One optimizer step over the global batch: forward, loss, backward, move."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from data_preparation.common.errors import UserError
from training.config import TrainConfig
from training.data.batch import Batch, Tensors, chunk, chunk_batch, concat
from training.engine.prediction import autocast, non_finite_rows, resolve_precision, to_device
from training.model import ScoringModel
from training.rows import batch_part, update_running_statistics
from training.runtime.collectives import gather
from training.runtime.ranks import Ranks
from training.runtime.seeding import seed_all

_OPTIMIZERS: dict[str, Callable[[Any, TrainConfig], torch.optim.Optimizer]] = {
    "Adam": lambda p, c: torch.optim.Adam(p, c.learning_rate, weight_decay=c.weight_decay, amsgrad=c.amsgrad),
    "AdamW": lambda p, c: torch.optim.AdamW(p, c.learning_rate, weight_decay=c.weight_decay, amsgrad=c.amsgrad),
    "SGD": lambda p, c: torch.optim.SGD(
        p, c.learning_rate, weight_decay=c.weight_decay, momentum=c.momentum, nesterov=c.nesterov
    ),
    "RMSProp": lambda p, c: torch.optim.RMSprop(p, c.learning_rate, weight_decay=c.weight_decay, momentum=c.momentum),
}


def build_optimizer(model: ScoringModel, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer over the model's parameter groups; `rate` in each group is the factor of the learning rate."""
    parameters = dict(model.named_parameters())
    groups = [
        {
            "params": [parameters[name] for name in group.names],
            "rate": group.rate,
            "weight_decay": config.weight_decay * group.decay,
        }
        for group in model.parameter_groups(config)
    ]
    return _OPTIMIZERS[config.optimizer](groups, config)


class NonFiniteLoss(UserError):
    """A loss that is not a number; `rows` of the global batch are to blame."""

    def __init__(self, loss: float, rows: Sequence[int]) -> None:
        super().__init__(f"the loss became {loss}")
        self.loss, self.rows = loss, list(rows)


class Step:
    """The model with its optimizer, scaler and weight average on one rank."""

    def __init__(self, model: ScoringModel, config: TrainConfig, ranks: Ranks, device: torch.device) -> None:
        self.model, self.config, self.ranks, self.device = model, config, ranks, device
        self.precision = resolve_precision(config.precision, device)
        self.optimizer = build_optimizer(model, config)
        # PyTorch's initial scale of 65536 makes the first gradients overflow, and each overflow skips a step
        self.scaler = torch.amp.GradScaler("cuda", init_scale=2.0**12, enabled=self.precision == "fp16")
        if config.compile:
            # dropout draws the same numbers, compiled or not
            model.backbone.compile(options={"fallback_random": True})
        self.parallel = self._parallel()
        self.ema = (
            AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema), use_buffers=True)
            if config.ema
            else None
        )

    def _parallel(self) -> nn.Module:
        if self.ranks.world_size == 1:
            return self.model
        # find_unused_parameters keeps DDP from rebuilding its buckets after step 1, which would change the order of
        # summation when a run resumes (3 or more ranks). Buffers need no broadcast: every rank builds the same model, and
        # update_running_statistics gives all ranks the same running statistics.
        return DistributedDataParallel(
            self.model, find_unused_parameters=self.device.type == "cpu", broadcast_buffers=False
        )

    def __call__(self, batch: Batch, rate: float, number: int) -> dict[str, float]:
        """Optimizer step `number` (from 0) on this rank's rows of the global batch; returns the losses of the global batch.

        The loss is a function of the whole batch's outputs, since it ranks them. With --accumulate the outputs are first
        computed part by part without a graph, and each part again with one when the loss's gradient with respect to the
        outputs is known ("Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", Gao et al., 2021).

        Raises:
            NonFiniteLoss: the loss is not a finite number. UserError: the gradient is not. The optimizer has not moved.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["rate"]
        parts = chunk_batch(to_device(batch, self.device), self.config.accumulate)
        with torch.set_grad_enabled(len(parts) == 1):
            passes = [self._forward(part, number, index) for index, part in enumerate(parts)]

        # Every rank computes the loss of the global batch; its gradient reaches this rank's rows only.
        rows = {n: t.detach().requires_grad_(t.is_floating_point()) for n, t in concat(passes).items()}
        outputs = {name: gather(t) for name, t in rows.items()}
        given, labels = (
            {name: gather(t) for name, t in concat([part[group] for part in parts]).items()} for group in (1, 2)
        )
        losses = self.model.method.loss(outputs, given, labels)
        if not torch.isfinite(losses["loss"]):
            raise NonFiniteLoss(float(losses["loss"].detach()), non_finite_rows(outputs))

        # DistributedDataParallel divides the summed gradients by the number of ranks
        self.scaler.scale(losses["loss"] * self.ranks.world_size).backward()
        # an output that the loss does not use has a gradient of zero: left out, its parameters would be missing from DDP's sums
        gradients = {n: torch.zeros_like(t) if t.grad is None else t.grad for n, t in rows.items() if t.requires_grad}
        self.optimizer.zero_grad(set_to_none=True)
        for index, (part, gradient) in enumerate(zip(parts, chunk(gradients, len(parts)), strict=True)):
            with self._gradient_sync(index == len(parts) - 1), self._rows(part, index, recomputing=True):
                graph = passes[0] if len(parts) == 1 else self._forward(part, number, index, recomputing=True)
                traced = [name for name in gradient if graph[name].requires_grad]
                torch.autograd.backward([graph[name] for name in traced], [gradient[name] for name in traced])
        norm = self._optimizer_step(number)
        update_running_statistics(self.model, gather)
        if self.ema is not None:
            self.ema.update_parameters(self.model)
        return {**{name: float(value.detach()) for name, value in losses.items()}, "grad_norm": norm}

    def _rows(self, part: Batch, index: int, recomputing: bool) -> AbstractContextManager:
        """Draws and statistics are those of the rows of part `index` of this rank's share in the global batch."""
        parts = self.config.accumulate
        number = self.ranks.rank * parts + index
        return batch_part(number, self.ranks.world_size * parts, len(part.index), recomputing=recomputing)

    def _forward(self, part: Batch, number: int, index: int, recomputing: bool = False) -> Tensors:
        """Outputs of a part of a step's actions; the draws (dropout, stochastic depth) are those of the step."""
        seed_all(self.config.seed, "step", number)
        with self._rows(part, index, recomputing), autocast(self.precision, self.device):
            return self.parallel(part)

    def _gradient_sync(self, now: bool) -> AbstractContextManager:
        """Ranks sum their gradients in the backward pass of a step's last part, once."""
        if now or not isinstance(self.parallel, DistributedDataParallel):
            return nullcontext()
        return self.parallel.no_sync()

    def _optimizer_step(self, number: int) -> float:
        """Let the optimizer move; returns the gradient's norm before clipping."""
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_grad or math.inf)
        # with fp16 the scaler skips such a step and lowers its scale
        if not self.scaler.is_enabled() and not torch.isfinite(norm):
            raise UserError(
                f"the gradient became {float(norm)} at step {number + 1}, before the optimizer moved: lower --learning_rate, or say --precision fp32"
            )
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return float(norm)

    @property
    def validated_model(self) -> ScoringModel:
        """The model that is validated, kept as best and tested: the average of the weights, if one is kept."""
        return self.model if self.ema is None else self.ema.module

    def state(self) -> dict[str, Any]:
        """All tensors and numbers that a resumed run needs of this step."""
        return {
            "model": self.model.state_dict(),
            "average": None if self.ema is None else self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "precision": self.precision,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned, or an older version of the project saved."""
        self.model.load_state_dict(state["model"])
        if self.ema is not None:
            self.ema.load_state_dict(state["average"])
        rates = [(group["rate"], group["weight_decay"]) for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, (rate, decay) in zip(self.optimizer.param_groups, rates, strict=True):
            group["rate"], group["weight_decay"] = rate, decay  # older checkpoints have no factors
        self.scaler.load_state_dict(state["scaler"])
