"""What steps computed: the losses stay on the device until they are read, so that a GPU never waits for the training process."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from data_preparation.common.errors import UserError
from training.data.batch import Tensors
from training.engine.prediction import non_finite_rows

# Steps whose losses are not read yet. One keeps a GPU busy; the second covers a training process that is late once
STEPS_AHEAD = 2


class NonFiniteLoss(UserError):
    """The loss is NaN or infinite. `rows` of the global batch have outputs that are not finite; `own_indices` (b,) are the
    indices of this rank's actions."""

    def __init__(self, loss: float, step: int, rows: Sequence[int], own_indices: torch.Tensor) -> None:
        super().__init__(f"the loss became {loss} at step {step + 1}")
        self.loss, self.step, self.rows, self.own_indices = loss, step, list(rows), own_indices


class StepResult(NamedTuple):
    """The losses of a step, which a GPU may still compute. `step` counts from 0 over all epochs."""

    step: int
    names: list[str]
    values: torch.Tensor  # (names + 1,) float64: the losses, and whether this step or an earlier one failed
    wait: Callable[[], None]  # until `values` are there
    outputs: Tensors  # (B, ...) of the global batch, to name the rows that are not finite
    own_indices: torch.Tensor  # (b,)

    @classmethod
    def of(
        cls, step: int, losses: Tensors, failed: torch.Tensor, outputs: Tensors, own_indices: torch.Tensor
    ) -> StepResult:
        """Start to copy the losses (scalars on the device) to the CPU."""
        values = torch.stack([value.detach().double() for value in (*losses.values(), failed)])
        wait = _nothing
        if values.is_cuda:
            values = values.to("cpu", non_blocking=True)
            copied = torch.cuda.Event()
            copied.record()
            wait = copied.synchronize
        # copies, because the memory of CUDA graphs (--cuda_graphs) holds outputs only until the next step
        kept = {name: output.detach().clone() for name, output in outputs.items()}
        return cls(step, list(losses), values, wait, kept, own_indices)

    def read(self) -> dict[str, float]:
        """Wait for the losses, and return them by name.

        Raises:
            NonFiniteLoss: the loss is not finite. UserError: the gradient is not finite. The step did not change the weights.
        """
        self.wait()
        *values, failed = self.values.tolist()
        losses = dict(zip(self.names, values, strict=True))
        if failed and not math.isfinite(losses["loss"]):
            raise NonFiniteLoss(losses["loss"], self.step, non_finite_rows(self.outputs), self.own_indices)
        if failed:
            raise UserError(
                f"the gradient became {losses['grad_norm']} at step {self.step + 1}, before the weights were updated: lower --learning_rate, or give --precision fp32"
            )
        return losses


def _nothing() -> None:
    pass


class Results:
    """The results of steps that are not read yet, oldest first."""

    def __init__(self) -> None:
        self._pending: deque[StepResult] = deque()
        self.failure: tuple[int, UserError] | None = None  # the first step that failed, and why

    def add(self, result: StepResult) -> None:
        self._pending.append(result)

    def read(self, leave: int = 0) -> list[dict[str, float]]:
        """Wait for all results but the last `leave`; returns their losses, in order, up to the first failure."""
        found = []
        while len(self._pending) > leave:
            result = self._pending.popleft()
            if self.failure is not None:
                continue
            try:
                found.append(result.read())
            except UserError as error:
                self.failure = result.step, error
        return found

    def raise_failure(self, before: int) -> None:
        """Raise the error of the step that failed, if it is one before step `before`. So all ranks raise it after the same step,
        also if one of them read its results earlier."""
        if self.failure is not None and self.failure[0] < before:
            raise self.failure[1]
