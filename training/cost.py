"""Estimate the cost of a model without running it: parameters, multiply-adds (fvcore) and memory of a training step."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from training import pooling
from training.backbones import build_backbone
from training.config import TrainConfig
from training.model import ScoringModel
from training.rows import freeze_batch_norm
from training.runtime.ranks import Ranks


def parameters(model: torch.nn.Module) -> tuple[int, int]:
    """The numbers of all parameters and of the trainable ones."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained)


def multiply_adds(model: ScoringModel, config: TrainConfig) -> float:
    """Multiply-adds of one clip's forward pass (convolutions and matrix products, attention included)."""
    from fvcore.nn import FlopCountAnalysis  # here, because only the first rank counts them

    device = model.input_mean.device
    backbone = model.backbone.eval()
    video = backbone.example(config, 1).to(device)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the tracer warns about shapes that depend on the input
        count = FlopCountAnalysis(backbone, video).set_op_handle(**backbone.flop_counters())
        count.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        logging.getLogger("fvcore").setLevel(logging.ERROR)
        return float(count.total())


_POOLING: list[tuple[Any, str]] = [
    (pooling, "max_pool3d"), *((F, f"{kind}_pool3d") for kind in ("max", "avg", "adaptive_avg", "adaptive_max"))
]  # fmt: skip


@contextmanager
def _pooling_as_on_cuda() -> Iterator[None]:
    """Keep 3-D pooling in bf16: autocast casts its input to float32 on the CPU, but not on CUDA, where the step will run.

    For fake tensors only: the CPU has no bf16 kernels for some of these functions. The functions are replaced, since a
    TorchFunctionMode does not reach blocks that the backward pass computes again.
    """

    def outside_autocast(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with torch.autocast("cpu", enabled=False):
                return function(*args, **kwargs)

        return call

    originals = [(module, name, getattr(module, name)) for module, name in _POOLING]
    try:
        for module, name, function in originals:
            setattr(module, name, outside_autocast(function))
        yield
    finally:
        for module, name, function in originals:
            setattr(module, name, function)


# float32 values of optimizer state per trained parameter
_STATES = {"Adam": 2, "AdamW": 2, "SGD": 1, "RMSProp": 2}


def optimizer_bytes(trainable: int, config: TrainConfig) -> float:
    """Bytes of optimizer state for this many trainable parameters."""
    copies = _STATES[config.optimizer] + (config.amsgrad and config.optimizer.startswith("Adam"))
    return 4.0 * trainable * copies


def step_memory(
    model: ScoringModel, config: TrainConfig, clips: int, half: bool, ranks: Ranks | None = None
) -> dict[str, float]:
    """Estimate the bytes of a training step with `clips` clips at a time: weights, optimizer, activations, total.

    "activations" includes the gradients that exist at the same time. `ranks` tells whether DistributedDataParallel is used.
    The backbone's forward and backward passes run on fake tensors, so they take seconds and no memory. Not included: the
    activations of the head, the CUDA context (half a GiB), convolution workspaces and fragmentation.
    """
    from torch.distributed._tools.mem_tracker import MemTracker  # takes a second to import

    total, trainable = parameters(model)
    with warnings.catch_warnings(), FakeTensorMode():
        warnings.simplefilter("ignore")
        backbone = build_backbone(config).train(not model.frozen)
        for name, parameter in backbone.named_parameters():
            parameter.requires_grad_(not model.frozen and backbone.is_trainable(name))
        freeze_batch_norm(backbone)  # trained ones need about as much memory, but a whole --bn_group of clips
        tracker = MemTracker()
        tracker.track_external(backbone)
        grad = torch.set_grad_enabled(not model.frozen)
        with tracker, grad, torch.autocast("cpu", dtype=torch.bfloat16, enabled=half), _pooling_as_on_cuda():
            video = backbone.example(config, clips)
            features = backbone(video)
            if features.requires_grad:
                features.float().sum().backward()
        peak = sum(devices["Total"] for devices in tracker.get_tracker_snapshot("peak").values())
    backbone_weights = 4 * parameters(model.backbone)[0]
    weights = 4.0 * total * (2 if config.ema else 1)
    # DistributedDataParallel stores a second copy of the gradients; the peak above has no gradients of the head
    buckets = trainable if ranks and ranks.world_size > 1 else 0
    gradients = 4.0 * (buckets + parameters(model.method)[1])
    parts = {
        "weights": weights,
        "optimizer": optimizer_bytes(trainable, config),
        "activations": peak - backbone_weights + gradients,
    }
    return {**parts, "total": sum(parts.values())}


def describe_memory(model: ScoringModel, config: TrainConfig, clips: int, half: bool, ranks: Ranks) -> str:
    """The estimate of `step_memory` as one line for the log."""
    parts = step_memory(model, config, clips, half, ranks)
    size, unit = (2**30, "GiB") if parts["total"] >= 2**30 else (2**20, "MiB")
    total = parts.pop("total") / size
    listed = ", ".join(f"{name} {part / size:.2f}" for name, part in parts.items())
    return f"{total:.2f} {unit} per rank ({listed}) for {clips} clips at a time"


def describe_cost(model: ScoringModel, config: TrainConfig) -> str:
    """Parameters and multiply-adds as one line for the log."""
    total, trainable = parameters(model)
    return f"{total / 1e6:.2f} M parameters ({trainable / 1e6:.2f} M trained), {multiply_adds(model, config) / 1e9:.4g} GMAC per clip (fvcore)"
