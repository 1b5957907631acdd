"""One optimizer step over the global batch: forward, loss, backward, update."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from training.config import TrainConfig
from training.data.augment import augment_batch
from training.data.batch import Batch, Tensors, chunk, chunk_batch, concat
from training.engine.average import weight_average
from training.engine.optimizers import build_optimizer, load_optimizer_state, step_unless
from training.engine.prediction import autocast, resolve_precision, to_device
from training.engine.results import StepResult
from training.model import ScoringModel
from training.rows import RunningStatistics, batch_part, gather_running_statistics, update_running_statistics
from training.runtime.collectives import gather, gather_rows
from training.runtime.interruption import ProcessLost
from training.runtime.ranks import Ranks
from training.runtime.seeding import seed_all


class Step:
    """The optimizer step of one rank: model, optimizer, gradient scaler and weight average.

    A step has two halves. `compute` communicates with the other ranks and changes nothing that a checkpoint holds. `commit`
    changes all of that and calls no collective. So a rank that loses the others holds the whole state of a completed step.
    """

    def __init__(
        self,
        model: ScoringModel,
        config: TrainConfig,
        ranks: Ranks,
        device: torch.device,
        before_exchange: Callable[[], None] = lambda: None,  # called before the first collective of each step
    ) -> None:
        self.model, self.config, self.ranks, self.device = model, config, ranks, device
        self.before_exchange = before_exchange
        self.precision = resolve_precision(config.precision, device)
        self.optimizer = build_optimizer(model, config)
        # PyTorch's initial scale of 65536 makes the first gradients overflow, and each overflow skips a step
        self.scaler = torch.amp.GradScaler("cuda", init_scale=2.0**12, enabled=self.precision == "fp16")
        if config.compile:
            model.backbone.compile_blocks(cuda_graphs=config.cuda_graphs)
        if config.cuda_graphs:  # before the first mark PyTorch takes each call of a block for a new step
            torch.compiler.cudagraph_mark_step_begin()
        self.ddp_model = self._wrap(model)
        self._statistics: RunningStatistics = []
        # Whether a loss or gradient was not finite; from then on no step changes anything. It stays on the device, so that the
        # training process does not wait for it: results.py reads it later
        self.failed = torch.tensor(False, device=device)
        self._committed: torch.cuda.Event | None = None  # end of the last commit; only with several GPUs
        self.average: AveragedModel | None = None
        if config.ema:
            self.average = weight_average(model, config.ema, lambda: self.failed, on_gpu=device.type == "cuda")

    def _wrap(self, model: ScoringModel) -> nn.Module:
        """The model in DistributedDataParallel, or as it is for a single rank."""
        if self.ranks.world_size == 1:
            return model
        # find_unused_parameters keeps DDP from rebuilding its buckets after step 1, which would change the order of
        # summation when a run resumes (3 or more ranks)
        ddp_model = DistributedDataParallel(model, find_unused_parameters=self.device.type == "cpu")
        # Only the constructor broadcasts the buffers; then update_running_statistics keeps them equal. Set as an attribute,
        # because the argument also turns off the broadcast of the constructor, and PyTorch 2.13 deprecates it
        ddp_model.broadcast_buffers = False
        return ddp_model

    def __call__(self, batch: Batch, learning_rate: float, step: int) -> dict[str, float]:
        """Both halves of a step, see `compute` and `commit`; returns the losses.

        Raises:
            NonFiniteLoss: the loss is not finite. UserError: the gradient is not finite. The weights are unchanged.
        """
        result = self.compute(batch, step)
        self.commit(learning_rate)
        return result.read()

    def compute(self, batch: Batch, step: int) -> StepResult:
        """Compute the gradient from this rank's b rows of the global batch of B rows. `step` counts from 0 over all epochs.

        The loss compares the rows of the global batch with each other, so it is not a sum over micro-batches. With
        --accumulate, all micro-batches are first forwarded without a graph. The loss of the global batch gives the
        gradient of each output; then each micro-batch is forwarded again, with a graph, to propagate that gradient to the
        weights ("Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", Gao et al., 2021).

        Returns:
            The losses of the global batch by name, and "grad_norm"; a GPU may still compute them.

        Raises:
            ProcessLost: the sum of the gradients takes longer than --peer_timeout_min.
        """
        if self.config.cuda_graphs:  # from here on the graphs may overwrite all that the last step computed
            torch.compiler.cudagraph_mark_step_begin()
        own_indices = batch.action_index
        batch = augment_batch(to_device(batch._replace(looks={}), self.device), batch.looks)
        micro_batches = chunk_batch(batch, self.config.accumulate)
        forwards_twice = len(micro_batches) > 1

        # Forward: this rank's outputs (b, ...)
        with torch.set_grad_enabled(not forwards_twice):
            forwarded = [self._forward(micro_batch, step, index) for index, micro_batch in enumerate(micro_batches)]
        own_outputs = {name: output.detach() for name, output in concat(forwarded).items()}

        self.before_exchange()
        # Loss: every rank computes it from all rows (B, ...), and takes the gradient of its own rows
        outputs, given, labels = gather_rows(own_outputs, batch.given, batch.labels)
        differentiable = {n: t.requires_grad_() for n, t in outputs.items() if t.is_floating_point()}
        losses = self.model.method.loss(outputs, given, labels)
        self.failed = self.failed | ~torch.isfinite(losses["loss"].detach())
        # DDP divides the summed gradients by the number of ranks
        self._scaled(losses["loss"] * self.ranks.world_size).backward()
        own = slice(self.ranks.rank * len(own_indices), (self.ranks.rank + 1) * len(own_indices))
        # An output that the loss does not use gets zeros: without a gradient, DDP's reduction would miss its parameters
        gradients = {
            name: torch.zeros_like(own_outputs[name]) if t.grad is None else t.grad[own]
            for name, t in differentiable.items()
        }

        # Backward: from the outputs of each micro-batch to the weights
        self.optimizer.zero_grad(set_to_none=True)
        for index, gradient in enumerate(chunk(gradients, len(micro_batches))):
            micro_batch, is_last = micro_batches[index], index == len(micro_batches) - 1
            # activation checkpointing recomputes within backward, so it needs the batch part as well
            with self._gradient_sync(is_last), self._batch_part(micro_batch, index, recomputing=True):
                graph = self._forward(micro_batch, step, index, recomputing=True) if forwards_twice else forwarded[0]
                names = [name for name in gradient if graph[name].requires_grad]
                torch.autograd.backward([graph[name] for name in names], [gradient[name] for name in names])

        self._statistics = gather_running_statistics(self.model, gather)
        if self.device.type == "cuda" and self.ranks.world_size > 1:
            # if a rank is lost, the sum of the gradients is wrong or never ends: it must not reach the weights
            self._wait_for_gradient()
        grad_norm = self._clip_gradient()
        return StepResult.of(step, {**losses, "grad_norm": grad_norm}, self.failed, outputs, own_indices)

    def commit(self, learning_rate: float) -> None:
        """Update the weights, the running statistics and the average with what `compute` found; after a failure keep them."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group["rate"]
        if self.scaler.is_enabled():
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            step_unless(self.optimizer, self.failed)
        update_running_statistics(self._statistics, self.failed)
        if self.average is not None:
            self.average.update_parameters(self.model)
        if (
            self.config.cuda_graphs
        ):  # the memory of the graphs, which the next forward pass overwrites, holds the gradients
            self.optimizer.zero_grad(set_to_none=True)
        if self.device.type == "cuda" and self.ranks.world_size > 1:
            self._committed = torch.cuda.current_stream(self.device).record_event()

    def _wait_for_gradient(self) -> None:
        """Wait on the host for all that this step has launched on the GPU.

        Raises:
            ProcessLost: it takes longer than --peer_timeout_min.
        """
        computed = torch.cuda.current_stream(self.device).record_event()
        deadline = time.monotonic() + self.config.peer_timeout_min * 60
        while not computed.query():
            if time.monotonic() > deadline:
                raise ProcessLost(
                    f"the sum of the gradients took longer than {self.config.peer_timeout_min:g} minutes: a rank hangs or the network is down, see the logs of the ranks"
                )
            time.sleep(0.0005)

    @contextmanager
    def readable(self) -> Iterator[None]:
        """Inside, any thread can copy the state of the last commit, even while the stream of the main thread waits for a lost
        rank."""
        if self._committed is None:
            yield
            return
        stream = torch.cuda.Stream(self.device)
        stream.wait_event(self._committed)
        with torch.cuda.stream(stream):
            yield

    def _forward(self, micro_batch: Batch, step: int, index: int, recomputing: bool = False) -> Tensors:
        """Outputs (b / accumulate, ...) of a micro-batch. Dropout depends on the seed and the step alone, so a second
        forward pass repeats the first."""
        seed_all(self.config.seed, "step", step)
        with self._batch_part(micro_batch, index, recomputing), autocast(self.precision, self.device):
            return self.ddp_model(micro_batch)

    def _batch_part(self, micro_batch: Batch, index: int, recomputing: bool) -> AbstractContextManager:
        """Tell dropout and batch norm which rows of the global batch micro-batch `index` of this rank holds."""
        accumulate = self.config.accumulate
        part, parts = self.ranks.rank * accumulate + index, self.ranks.world_size * accumulate
        return batch_part(part, parts, len(micro_batch.action_index), recomputing=recomputing)

    def _gradient_sync(self, is_last: bool) -> AbstractContextManager:
        """A context in which DDP sums the gradients over the ranks only in the backward pass of the last micro-batch."""
        if is_last or not isinstance(self.ddp_model, DistributedDataParallel):
            return nullcontext()
        return self.ddp_model.no_sync()

    def _scaled(self, loss: torch.Tensor) -> torch.Tensor:
        """The loss, scaled in fp16. There the scaler skips a step if a gradient is not finite, so after a failure the loss is NaN."""
        if self.scaler.is_enabled():
            loss = loss * torch.where(self.failed, torch.nan, 1.0)
        return self.scaler.scale(loss)

    def _clip_gradient(self) -> torch.Tensor:
        """Clip the gradient; returns its norm before."""
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
        if self.config.clip_grad:
            nn.utils.clip_grads_with_norm_(self.model.parameters(), self.config.clip_grad, norm)
        # in fp16 an infinite gradient is normal: the scaler skips the step and lowers its scale
        if not self.scaler.is_enabled():
            self.failed = self.failed | ~torch.isfinite(norm)
        return norm

    @property
    def validated_model(self) -> ScoringModel:
        """The model that is validated, saved as best.pt and tested: with --ema the average of the weights."""
        model = self.model if self.average is None else self.average.module
        assert isinstance(model, ScoringModel)
        return model

    def state(self) -> dict[str, Any]:
        """The tensors and numbers that a checkpoint needs of this step."""
        return {
            "model": self.model.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "precision": self.precision,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned, in this version of the project or an older one."""
        self.model.load_state_dict(state["model"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        load_optimizer_state(self.optimizer, state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
