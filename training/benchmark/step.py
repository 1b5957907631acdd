"""Forward, backward and update of one batch."""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import count
from typing import Any, cast

import numpy as np
import torch
from torch.utils.data import default_collate

from data_preparation.actions import Dive
from data_preparation.common.command_line import flag
from training.backbones.timesformer.network import TimeSformer
from training.benchmark._reference_step import FORWARDS, ReferenceModel, ReferenceStep
from training.benchmark._result import Common, Result, Row, Timing, Way, alternate, time_call
from training.benchmark._transformers_step import transformers_ways
from training.config import TrainConfig
from training.cost import multiply_adds
from training.data.batch import Batch
from training.engine.prediction import autocast, resolve_precision, to_device
from training.engine.step import Step
from training.model import ScoringModel, build_model
from training.runtime.determinism import deterministic_algorithms
from training.runtime.ranks import Ranks

_B = {"model": "timesformer", "embed_dim": 768, "depth": 12, "num_heads": 12, "spatial_size": 224}
_QUICK_START = {
    "model": "timesformer",
    "embed_dim": 128,
    "depth": 3,
    "num_heads": 4,
    "spatial_size": 64,
    "frame_num": 8,
}

# (name, flags, clips of a batch) of each case, by --size and case
CASES: dict[tuple[str, str], tuple[str, dict[str, Any], int]] = {
    ("small", "timesformer_8"): ("TimeSformer of the quick start, 8 frames of 64", _QUICK_START, 16),
    ("small", "timesformer_48"): (
        "TimeSformer of the quick start, 48 frames of 64",
        {**_QUICK_START, "frame_num": 48},
        2,
    ),
    ("small", "c3d"): ("C3D, 32 frames of 56", {"model": "c3d", "spatial_size": 56, "frame_num": 32}, 1),
    ("base", "timesformer_8"): ("TimeSformer-B, 8 frames of 224", {**_B, "frame_num": 8}, 16),
    ("base", "timesformer_48"): ("TimeSformer-B, 48 frames of 224", {**_B, "frame_num": 48}, 8),
    ("base", "c3d"): ("C3D, 103 frames of 112", {"model": "c3d", "spatial_size": 112, "frame_num": 103}, 8),
}


@dataclass(frozen=True)
class Config(Common):
    """A training step: forward, backward and update."""

    size: str = flag("small", "small is for a CPU, base for a GPU.", choices=("small", "base"))
    cases: tuple[str, ...] = flag(
        ("timesformer_8", "c3d"), "Networks to measure.", choices=("timesformer_8", "timesformer_48", "c3d")
    )
    clips: int = flag(0, "Clips of a batch; 0: as many as the case has.", minimum=0)
    compile: bool = flag(
        False,
        "Also measure --compile True, and on a GPU --cuda_graphs True; compiling takes its own time, which the table shows.",
    )


LEGEND = [
    "Reference: softmax(q k^T) v with the weights in memory, every token in every block, AdamW without fusion; C3D window by",
    "window in the usual memory format. Ceiling: the time that the same multiply-adds take in the machine's own matrix product.",
    "Memory: what a forward pass keeps for the backward pass; on a GPU the peak of the step less what was there before.",
]


def measure(config: Config) -> Result:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before CUDA starts, for --deterministic
    if config.threads:
        torch.set_num_threads(config.threads)
    rows: list[Row] = []
    extra: dict[str, Any] = {}
    for case in config.cases:
        name, flags, clips = CASES[config.size, case]
        case_rows, facts = case_result(name, flags, config.clips or clips, config)
        rows += case_rows
        extra[name] = facts
    return Result(rows, LEGEND, extra)


def noise_batch(config: TrainConfig, model: ScoringModel) -> Batch:
    """A batch of noise with the labels of made-up dives."""
    clips = config.batch_size
    shape = (clips, config.frame_num, 3, *config.input_size)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    dives = [Dive("01", i, 1, 120, difficulty=2 + i / clips, final_score=40 + 40 * i / clips) for i in range(clips)]
    given, labels = (
        default_collate([{name: torch.as_tensor(np.asarray(v)) for name, v in part(dive).items()} for dive in dives])
        for part in (model.method.given, model.method.labels)
    )
    return Batch({"clip": pixels}, given, labels, torch.arange(clips))


def case_result(name: str, flags: dict[str, Any], clips: int, options: Config) -> tuple[list[Row], dict[str, Any]]:
    """The rows of one network, and what is known about it."""
    device = options.device
    config = TrainConfig(batch_size=clips, gpu=options.gpu, **flags)
    precision = resolve_precision(config.precision, device)
    model = build_model(config)
    flops = 6 * multiply_adds(model, config) * clips  # the backward pass costs two forward passes
    batch = to_device(noise_batch(config, model), device)
    peer = ReferenceModel(copy.deepcopy(model), partial(FORWARDS[type(model.backbone)], model.backbone))
    peer.backbone_forward = partial(FORWARDS[type(model.backbone)], peer.model.backbone)
    difference = relative_difference(model.to(device), peer.to(device), batch)

    own: Way = partial(own_step(copy.deepcopy(model), config, device), batch)
    reference: Way = partial(reference_step(peer, precision, device), batch)
    product, product_flops = matrix_product(device, precision)
    ways = {"ours": own, "reference": reference, "product": product}
    timings = alternate(ways, options.rounds, device, warm_up=2)
    rate = product_flops / (timings["product"].ms("wall") / 1e3)
    ceiling = 1e3 * flops / rate
    rows = [
        dataclasses.replace(Row.of(name, pick(timings, ours="ours", reference="reference")), ceiling=ceiling),
        Row("- memory", "MB", megabytes(own, device), megabytes(reference, device)),
    ]
    del peer, ways, reference  # a large network and its optimizer fit a machine only a few times
    for flag_name, variant in variants(options).items():
        step = own_step(copy.deepcopy(model), dataclasses.replace(config, **variant), device)
        row = variant_row(flag_name, partial(step, batch), own, options, compiles="compile" in variant)
        rows.append(dataclasses.replace(row, ceiling=ceiling))
    if config.model == "timesformer":
        rows.append(transformers_row(model, config, batch, precision, options))
    return rows, {"flops": flops, "product_flops_per_s": rate, "difference_from_the_reference": difference}


def variants(options: Config) -> dict[str, dict[str, Any]]:
    """The flags whose cost is measured, by how they are written on the command line."""
    wanted: list[dict[str, Any]] = [
        {"checkpoint_activations": "True"},
        {"checkpoint_activations": "selective"},
        {"deterministic": True},
    ]
    if options.compile:
        wanted.append({"compile": True})
        if options.device.type == "cuda":
            wanted.append({"compile": True, "cuda_graphs": True})
    return {" ".join(f"--{name} {value}" for name, value in flags.items()): flags for flags in wanted}


def variant_row(flag_name: str, way: Way, own: Way, options: Config, *, compiles: bool) -> Row:
    """A step with more flags against the same step without them."""
    device = options.device
    seconds = time_call(way, device)[0] if compiles else 0.0
    timings = alternate({"ours": way, "reference": own}, options.rounds, device, warm_up=2)
    note = f"compiled in {seconds:.0f} s" if compiles else ""
    if device.type == "cuda" and not compiles:  # on a CPU `megabytes` does not see what selective checkpointing keeps
        note = f"{megabytes(way, device):.0f} MB"
    return Row.of(f"- {flag_name}; reference: without it", timings, note=note)


def own_step(model: ScoringModel, config: TrainConfig, device: torch.device) -> Callable[[Batch], object]:
    """training.engine.step.Step with a counter for its step number."""
    model.backbone.checkpoint_activations = config.checkpoint_activations
    step, numbers = Step(model.to(device).train(), config, Ranks(), device), count()

    def train(batch: Batch) -> None:
        with deterministic_algorithms(config.deterministic):
            step(batch, config.learning_rate, next(numbers))

    return train


def reference_step(peer: ReferenceModel, precision: str, device: torch.device) -> Callable[[Batch], object]:
    return ReferenceStep(peer.train(), precision, device)


def relative_difference(model: ScoringModel, peer: ReferenceModel, batch: Batch) -> float:
    """The largest difference of the features of both ways, relative to the largest feature.

    Raises:
        AssertionError: they do not compute the same, so that a ratio of their times would mean nothing.
    """
    model.eval()
    with torch.no_grad():
        video = model.prepare(batch.clips["clip"][:1])
        ours, theirs = model.backbone(video), peer.backbone_forward(video)
    difference = float((ours - theirs).abs().max() / theirs.abs().max())
    assert difference < 1e-2, f"the reference differs by {difference:.1e}"  # 1e-2: TF32 on a GPU
    return difference


def matrix_product(device: torch.device, precision: str) -> tuple[Way, int]:
    """(a product of square matrices, its operations): large enough to reach the machine's best."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    side, times = (8192, 10) if device.type == "cuda" else (1024, 3)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))

    def multiply() -> None:
        for _ in range(times):
            torch.mm(a, b)

    return multiply, times * 2 * side**3


def pick(timings: dict[str, Timing], **names: str) -> dict[str, Timing]:
    return {part: timings[name] for part, name in names.items()}


def megabytes(way: Way, device: torch.device) -> float:
    """Memory of one step in MB: on a GPU what it takes beyond what was there before, such as weights and the optimizer's state;
    on a CPU the tensors that the backward pass needs, weights included."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        way()
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6
    sizes: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        way()
    return sum(sizes.values()) / 1e6


def transformers_row(model: ScoringModel, config: TrainConfig, batch: Batch, precision: str, options: Config) -> Row:
    """Forward and backward of the backbone alone, against transformers' TimeSformer with the same weights."""
    name = "- forward and backward against transformers"
    if find_spec("transformers") is None:
        return Row(name, note="not installed")
    video = model.prepare(batch.clips["clip"])
    ways, difference = transformers_ways(
        cast(TimeSformer, model.backbone.train()), config, video, partial(autocast, precision, options.device)
    )
    if difference > 1e-2:
        return Row(name, note=f"not compared: its outputs differ by {difference:.1e}")
    return Row.of(name, alternate(ways, options.rounds, options.device, warm_up=2))
