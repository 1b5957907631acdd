"""The checks of tests/gpu.sh, one small function each.

Each check runs in a forked process of its own with a time limit, so that one that fails, hangs or runs out of memory
leaves the others alone. Without a card (--dry_run) the same functions run on the CPU at tiny sizes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# torch.cuda.is_available() then leaves CUDA usable in forked processes
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")

import torch

from tests.conftest import REPOSITORY, SHARED, data_flags, tiny_model
from tests.golden import difference, golden, recipe_state, recipe_tensor
from tests.small import DIVES, FACTS, batch_of, sampled_batch, tiny_config
from training.backbones.c3d.network import C3D
from training.backbones.mscadc.flags import Flags as MSCADC
from training.backbones.timesformer.network import TimeSformer
from training.benchmark import step as benchmark_step
from training.config import TrainConfig
from training.cost import multiply_adds, step_memory
from training.data.batch import Batch
from training.engine.prediction import to_device
from training.engine.step import Step
from training.losses import soft_spearman
from training.model import ScoringModel, build_model
from training.runtime.determinism import deterministic_algorithms
from training.runtime.ranks import Ranks

PASS, FAIL, SKIPPED = "pass", "FAIL", "skipped"
GIB = 2**30


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    result: str
    figure: str
    seconds: float = 0.0


@dataclass(frozen=True)
class Place:
    """Where and on what the checks run."""

    work: Path  # temporary folder of all checks: data set, run folders
    dry: bool

    @property
    def device(self) -> torch.device:
        return torch.device("cpu" if self.dry else "cuda")

    @property
    def half(self) -> str:
        return "fp32" if self.dry else "bf16"

    @property
    def dataset(self) -> Path:
        return self.work / "dataset"

    def synchronize(self) -> None:
        if not self.dry:
            torch.cuda.synchronize()


class Skip(Exception):
    """A check that cannot be made here; the text is the reason."""


def verdict(name: str, passed: bool, figure: str) -> Row:
    return Row(name, PASS if passed else FAIL, figure)


def needs_cuda(place: Place) -> None:
    if place.dry:
        raise Skip("no CUDA")


# ---------------------------------------------------------------------------------------------------------- the card


def timed(place: Place, action: Callable[[], object], repeats: int, warm_up: int = 3) -> float:
    """Seconds of one `action`, the mean of `repeats`."""
    for _ in range(warm_up):
        action()
    place.synchronize()
    started = time.perf_counter()
    for _ in range(repeats):
        action()
    place.synchronize()
    return (time.perf_counter() - started) / repeats


def matrix_product(place: Place) -> Iterator[Row]:
    """Speed of a bf16 matrix product, which the steps below are compared with."""
    side = 256 if place.dry else 8192
    a, b = (torch.randn(side, side, device=place.device, dtype=torch.bfloat16) for _ in range(2))
    flops = 2 * side**3 / timed(place, lambda: a @ b, 2 if place.dry else 20)
    (place.work / "product.json").write_text(json.dumps(flops))
    yield verdict("bf16 matrix product", flops > 0, f"{side}^3: {flops / 1e12:.3g} TFLOP/s")


# -------------------------------------------------------------------------------------------------------- arithmetic


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference relative to the norm of what is expected."""
    found, expected = found.double().cpu(), expected.double().cpu()
    return float((found - expected).norm() / expected.norm().clamp_min(1e-12))


def outputs_and_gradients(model: ScoringModel, batch: Batch, device: torch.device, half: bool) -> list[torch.Tensor]:
    """Features of a batch's clips, the loss, and the gradients of all parameters, on a device."""
    model = model.to(device).eval()
    model.zero_grad(set_to_none=True)
    batch = to_device(batch, device)
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=half):
        features = model.backbone(model.prepare(batch.clips["clip"]))
        outputs = model(batch)
    loss = model.method.loss(outputs, batch.given, batch.labels)["loss"]
    loss.backward()
    gradients = torch.cat([p.grad.flatten().float().cpu() for p in model.parameters() if p.grad is not None])
    return [features.detach().float().cpu(), loss.detach().float().cpu(), gradients.clone()]


def arithmetic(place: Place) -> Iterator[Row]:
    """Outputs and gradients of small models: the card in float32 (no TF32) and bf16 against the CPU in float32."""
    for name in ("timesformer", "c3d") if place.dry else ("timesformer", "c3d", "i3d"):
        config = tiny_config(name, "regression")
        model = build_model(config)
        batch = batch_of(config, model.method)
        expected = outputs_and_gradients(model, batch, torch.device("cpu"), half=False)
        for label, half, tf32, limit in (
            ("float32", False, False, 1e-3),
            ("float32 as the training runs it", False, True, 2e-2),
            ("bf16", True, True, 0.1),
        ):
            torch.backends.cudnn.allow_tf32 = tf32
            found = outputs_and_gradients(model, batch, place.device, half)
            errors = [relative(f, e) for f, e in zip(found, expected, strict=True)]
            figure = "relative difference from the CPU: features {:.1e}, loss {:.1e}, gradients {:.1e}".format(*errors)
            yield verdict(f"{name}, {label}", max(errors) < limit, f"{figure} (limit {limit:g})")


def golden_outputs(place: Place) -> Iterator[Row]:
    """Outputs of the original networks (../shared/golden), in float32 without TF32."""
    shared = next((f for f in (SHARED, REPOSITORY / "shared") if (f / "golden").is_dir()), None)
    if shared is None:
        raise Skip(f"the reference data are not at {SHARED}")
    torch.backends.cudnn.allow_tf32 = False
    cases = golden(shared, "timesformer_small")
    worst = 0.0
    for case in cases:
        original, (_, _, frames, size, _) = case["config"], case["input"]
        if frames != original["num_frames"] or size != original["img_size"]:
            continue
        model = TimeSformer(
            size, original["patch_size"], frames, original["embed_dim"], original["depth"], original["num_heads"],
            original["attention_type"], num_classes=original["num_classes"],
        ).eval()  # fmt: skip
        model.load_state_dict(recipe_state(case["state_dict"]))
        video = recipe_tensor("input:" + case["name"], case["input"], 1.0).to(place.device)
        with torch.no_grad():
            worst = max(worst, difference(model.to(place.device)(video)[:, 0].cpu(), case["output"]))
    yield verdict("TimeSformer, golden outputs", worst < 1e-3, f"largest difference {worst:.1e} (limit 1e-3)")
    if place.dry:
        return
    file = golden(shared, "c3d_avg")
    case = file["cases"][0]
    state = recipe_state(file["state_dict"], file["scale"])
    c3d = C3D(112, "reference")
    c3d.load_state_dict({k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")})
    with torch.no_grad():
        features = c3d.to(place.device)(recipe_tensor("input:" + case["name"], case["input"], 1.0).to(place.device))
    worst = difference(features[..., : len(case["clip_feature_head"][0][0])].cpu(), case["clip_feature_head"])
    yield verdict("C3D, golden outputs", worst < 1e-3, f"largest difference {worst:.1e} (limit 1e-3)")


def soft_ranks(place: Place) -> Iterator[Row]:
    """The rank loss of scores on the card against the CPU."""
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for norm in ("l2", "kl"):
        for count in (8, 64, 256):
            scores, target = (30 + 20 * torch.randn(count, generator=generator) for _ in range(2))
            found = []
            for device in ("cpu", place.device):
                own = scores.detach().to(device).requires_grad_()
                value = soft_spearman(own, target.to(device), strength=20, norm=norm)
                value.backward()
                assert own.grad is not None
                found.append((value.detach(), own.grad))
            worst = max(worst, *(relative(f, e) for f, e in zip(found[1], found[0], strict=True)))
    where = (
        "on the card" if find_spec("torchsort.isotonic_cuda") else "on the CPU (torchsort was compiled without CUDA)"
    )
    yield verdict("soft ranks", worst < 1e-3, f"ranks {where}; relative difference {worst:.1e} (limit 1e-3)")


def deterministic(place: Place) -> Iterator[Row]:
    """Two times five steps with --deterministic True, of networks with each kind of pooling."""
    for name in ("timesformer", "mscadc") if place.dry else ("timesformer", "mscadc", "c3d", "i3d", "st_abn", "tsm"):
        config = tiny_config(name, "regression", precision=place.half, learning_rate=1e-3)
        with deterministic_algorithms(True):
            found = [losses_of_steps(config, place, 5) for _ in range(2)]
        yield verdict(
            f"{name}, deterministic kernels",
            found[0] == found[1],
            f"last losses {found[0][-1]:.9g} and {found[1][-1]:.9g}",
        )


def losses_of_steps(config: TrainConfig, place: Place, steps: int) -> list[float]:
    model = build_model(config).to(place.device).train()
    step = Step(model, config, Ranks(), place.device)
    batch = batch_of(config, model.method)
    return [step(batch, config.learning_rate, number)["loss"] for number in range(steps)]


def compiled(place: Place) -> Iterator[Row]:
    """torch.compile: the losses of a small network, and the time of a real step."""
    needs_cuda(place)
    config = tiny_config("timesformer", "regression", precision="bf16", learning_rate=1e-3)
    plain = losses_of_steps(config, place, 5)
    fast = losses_of_steps(dataclasses.replace(config, compile=True), place, 5)
    worst = max(abs(a - b) / abs(b) for a, b in zip(fast, plain, strict=True))
    yield verdict("torch.compile, losses", worst < 0.05, f"relative difference from eager {worst:.1e} (limit 0.05)")
    started = time.perf_counter()
    yield from real_step(place, "TimeSformer-B, 8 frames of 224, torch.compile", {"frame_num": 8, "compile": True}, 16)
    yield Row("torch.compile, time", PASS, f"{time.perf_counter() - started:.0f} s, compiling and steps")


# -------------------------------------------------------------------------------------------------- steps of real size


def noise(config: TrainConfig, model: ScoringModel, samples: int) -> Batch:
    """A training batch of noise, with all clips of each sample: eight dives, repeated."""
    frames = (config.frame_num, 3, config.spatial_size, config.spatial_size)
    clips = {dive.key: torch.randint(0, 256, frames, dtype=torch.uint8) for dive in DIVES[:samples]}
    dives = [DIVES[i % len(DIVES)] for i in range(samples)]
    return sampled_batch(config, model.method, dives, lambda dive: clips[dive.key])


def real_step(place: Place, name: str, flags: dict[str, Any], clips: int) -> Iterator[Row]:
    """Throughput and peak memory of whole optimizer steps, the batch being on the card already. `clips` may be a multiple of
    the clips of a sample."""
    model_name, method = flags.get("model", "timesformer"), flags.get("method", "regression")
    if place.dry:
        config, clips = tiny_config(model_name, method), 8
    else:
        config = TrainConfig(batch_size=1, precision="bf16", **flags)
    samples = clips // config.clips_per_sample
    config = dataclasses.replace(config, batch_size=samples)
    model = build_model(config).to(place.device).train()
    multiplications = multiply_adds(model, config)
    model.train()
    step = Step(model, config, Ranks(), place.device)
    batch = to_device(noise(config, model, samples), place.device)
    if not place.dry:
        torch.cuda.reset_peak_memory_stats()
    rounds = iter(range(1000))
    losses: list[float] = []

    def one() -> None:
        losses.append(step(batch, 1e-5, next(rounds))["loss"])

    seconds = timed(place, one, 2 if place.dry else 8, warm_up=1 if place.dry else 3)
    flops = 3 * 2 * multiplications * clips / seconds  # the backward pass costs two forward passes
    product = json.loads((place.work / "product.json").read_text())
    figure = f"{clips} clips: {seconds * 1e3:.0f} ms, {clips / seconds:.1f} clips/s, {flops / 1e12:.3g} TFLOP/s = {flops / product:.0%} of the matrix product"
    if place.dry:
        yield verdict(name, all(map(math.isfinite, losses)), figure)
        return
    peak = torch.cuda.max_memory_allocated()
    yield verdict(
        name, all(map(math.isfinite, losses)),
        f"{figure}, peak memory {peak / GIB:.1f} GiB (reserved {torch.cuda.max_memory_reserved() / GIB:.1f})",
    )  # fmt: skip
    if config.compile:
        return
    expected = step_memory(model, config, clips, half=True)["total"]
    yield verdict(
        f"{name}: memory forecast", abs(expected / peak - 1) < 0.25,
        f"expected {expected / GIB:.2f} GiB, used {peak / GIB:.2f} GiB, ratio {expected / peak:.2f} (limit 0.75 to 1.25)",
    )  # fmt: skip


def timesformer_8(place: Place) -> Iterator[Row]:
    yield from real_step(place, "TimeSformer-B, 8 frames of 224", {"frame_num": 8}, 16)


def timesformer_48(place: Place) -> Iterator[Row]:
    clips = 8
    if not place.dry and torch.cuda.get_device_properties(0).total_memory < 70 * GIB:
        clips = 1
    yield from real_step(place, "TimeSformer-B, 48 frames of 224", {"frame_num": 48}, clips)


def timesformer_48_checkpointed(place: Place) -> Iterator[Row]:
    flags = {"frame_num": 48, "checkpoint_activations": True}
    yield from real_step(place, "TimeSformer-B, 48 frames of 224, --checkpoint_activations", flags, 8)


def c3d(place: Place) -> Iterator[Row]:
    flags = {"model": "c3d", "frame_num": 103, "spatial_size": 112, "window_layout": "reference"}
    yield from real_step(place, "C3D-AVG, 103 frames of 112", flags, 8)


def i3d(place: Place) -> Iterator[Row]:
    yield from real_step(place, "I3D, 103 frames of 224", {"model": "i3d", "frame_num": 103}, 2)


def tpt(place: Place) -> Iterator[Row]:
    """Two pairs of videos, the sizes of job_files/methods/tpt.sh, with and without activation checkpointing."""
    flags = {"model": "i3d", "method": "tpt", "window_layout": "20x8", "frame_num": 103, "optimizer": "Adam"}
    name = "TPT, 2 pairs of 103 frames of 224"
    yield from real_step(place, f"{name}, --checkpoint_activations", {**flags, "checkpoint_activations": True}, 4)
    if not place.dry:
        reserved = torch.cuda.max_memory_reserved()
        yield verdict(
            "TPT fits into 24 GB", reserved < 24e9, f"{reserved / 1e9:.1f} GB reserved with --checkpoint_activations"
        )
    yield from real_step(place, name, flags, 4)


def methods(place: Place) -> Iterator[Row]:
    """The time of a step of two dives with each published method on I3D, compared with plain regression."""
    published: dict[str, dict[str, Any]] = {
        "regression": {},
        "usdl": {"batch_norm": "trained", "window_layout": "10x16_end"},
        "musdl": {"batch_norm": "trained", "window_layout": "10x16_end"},
        "core": {"pairs": "free"},
        "tpt": {"pairs": "free", "window_layout": "20x8"},
    }
    plain = 0.0
    for method, flags in published.items():
        if place.dry:
            own = {name: value for name, value in flags.items() if name == "pairs"}
            config = dataclasses.replace(tiny_config("i3d", method), batch_size=2, **own)
        else:
            config = TrainConfig(model="i3d", method=method, frame_num=103, batch_size=2, precision="bf16", **flags)
        model = build_model(config, FACTS).to(place.device).train()
        model.method.observe(DIVES)
        step = Step(model, config, Ranks(), place.device)
        batch = to_device(noise(config, model, 2), place.device)
        rounds = iter(range(1000))
        seconds = timed(
            place, lambda step=step, batch=batch, rounds=rounds: step(batch, 1e-5, next(rounds)), 2 if place.dry else 8
        )
        plain = plain or seconds
        name = f"--method {method} on I3D, 2 dives of 103 frames"
        yield Row(name, PASS, f"{seconds * 1e3:.0f} ms, {seconds / plain:.2f} times regression")


# ---------------------------------------------------------------------------------------------------------- trainings


def python(*arguments: object, **environment: str) -> subprocess.Popen:
    """Start this Python in the repository; its output goes to a pipe."""
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)], cwd=REPOSITORY, env={**os.environ, **environment},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def finished(process: subprocess.Popen, status: int = 0) -> str:
    """The output of a process that ends with `status`."""
    output, _ = process.communicate()
    if process.returncode != status:
        last = "\n".join(output.splitlines()[-15:])
        raise AssertionError(f"{' '.join(process.args[1:4])} ended with {process.returncode}:\n{last}")
    return output


def training(
    place: Place, name: str, *flags: object, launcher: tuple[str, ...] = (), **environment: str
) -> subprocess.Popen:
    """Start a training of the tiny network on the place's device."""
    everything = [*data_flags(place.dataset), "--runs_dir", place.work / "runs", *tiny_model(*flags)]
    everything += [
        "--gpu",
        not place.dry,
        "--dropout",
        0,
        *(() if "--model" in flags else ("--drop_path", 0)),  # a flag of the usual backbone
        "--epochs",
        2,
        "--log_every",
        1,
        "--run_name",
        name,
        *flags,
    ]
    return python(*launcher, "-m", "training.train", *everything, **environment)


def records(place: Place, name: str, kind: str) -> list[dict[str, Any]]:
    file = place.work / "runs" / name / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return [r for r in map(json.loads, lines) if r["type"] == kind]


def step_losses(place: Place, name: str) -> list[float]:
    return [record["loss"] for record in records(place, name, "step")]


def data_set(place: Place) -> Iterator[Row]:
    """Synthetic videos and their frames: two small videos, and larger frames for the measurement of the data wait."""
    finished(python("-m", "data_preparation.synthetic", "--dataset", place.dataset, "--videos", 2, "--dives", 60))
    output = finished(python("-m", "data_preparation.extract", "--dataset", place.dataset, "--height", 72))
    yield Row("data set", PASS, output.splitlines()[-1][:80])


def losses_are_near(place: Place, name: str, base: str, limit: float, label: str) -> Row:
    found, expected = step_losses(place, name), step_losses(place, base)
    if not found or len(found) != len(expected):
        return Row(label, FAIL, f"{len(found)} and {len(expected)} logged steps")
    worst = max(abs(f - e) / abs(e) for f, e in zip(found, expected, strict=True))
    return verdict(
        label, worst < limit, f"{len(found)} steps, relative difference of the losses {worst:.1e} (limit {limit:g})"
    )


def trainings(place: Place) -> Iterator[Row]:
    """Whole trainings side by side: float32 against the CPU, half precision against float32, and one like another."""
    half = "fp32" if place.dry else "bf16"
    wanted: dict[str, list[object]] = {"fp32": ["--precision", "fp32"], "again": ["--precision", half]}
    if not place.dry:
        wanted |= {
            "cpu": ["--precision", "fp32", "--gpu", "False"],
            "bf16": ["--precision", "bf16"],
            "fp16": ["--precision", "fp16"],
            "fp16, accumulate, ema": ["--precision", "fp16", "--accumulate", 2, "--ema", 0.9],
        }
    processes = {name: training(place, name.replace(", ", "-"), *flags) for name, flags in wanted.items()}
    for name, process in processes.items():
        try:
            output = finished(process)
        except AssertionError as error:
            yield Row(f"training {name}", FAIL, str(error))
            continue
        if name == "fp32":
            where = next((line for line in output.splitlines() if "Device " in line), "no line about the device")
            speed = [line for line in output.splitlines() if "epoch 2/2 step" in line][-1:]
            named = "CPU" in where if place.dry else torch.cuda.get_device_name() in where
            forecast = place.dry or "Expected memory: " in output
            yield verdict(
                "log lines",
                named and forecast and bool(speed),
                "; ".join([where.split("INFO")[-1].strip(), *(s[-90:] for s in speed)]),
            )
    if place.dry:
        yield losses_are_near(place, "again", "fp32", 1e-9, "two equal trainings")
        return
    yield losses_are_near(place, "fp32", "cpu", 0.01, "training in fp32 against the CPU")
    yield losses_are_near(place, "bf16", "fp32", 0.1, "training in bf16 against fp32")
    yield losses_are_near(place, "fp16", "fp32", 0.05, "training in fp16 against fp32")
    yield losses_are_near(place, "fp16-accumulate-ema", "fp32", 0.05, "training in fp16 with --accumulate and --ema")
    same = step_losses(place, "bf16") == step_losses(place, "again")
    row = losses_are_near(place, "bf16", "again", 0.02, "two equal bf16 trainings")
    yield dataclasses.replace(row, figure=f"{'identical bits' if same else 'not identical'}; {row.figure}")


def killed_after(place: Place, name: str, steps: int, *flags: object) -> str:
    """Start a training, kill it (KILL) after some logged steps and resume it; returns the line about the resume, or ''."""
    slow = {"DEEPSPORTS_TEST_STEP_S": "0.5"}
    slow["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY / "tests" / "slow_steps"), os.environ.get("PYTHONPATH", "")])
    process = training(place, name, *flags, **slow)
    while process.poll() is None and len(step_losses(place, name)) < steps:
        time.sleep(0.1)
    process.kill()
    output, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL, output[-400:]
    resumed = finished(training(place, name, *flags))
    return next((line.split("Resuming")[-1] for line in resumed.splitlines() if "Resuming" in line), "")


def killed_and_resumed(place: Place) -> Iterator[Row]:
    """A training that is killed in the middle and resumed, against the uninterrupted one."""
    resumed = killed_after(place, "killed", 4, "--precision", "fp32", "--checkpoint_every", 1)
    row = losses_are_near(place, "killed", "fp32", 1e-9 if place.dry else 1e-4, "killed and resumed")
    yield verdict(row.name, row.result == PASS and bool(resumed), f"killed after step 4; {row.figure}")


DROP_PATH = ("--drop_path", 0.1)  # of TimeSformer


def same_bits_when_resumed(place: Place, name: str, *flags: object) -> tuple[bool, str]:
    """(whether a training that is killed and resumed equals the uninterrupted one bit for bit, what was found), with
    --deterministic True, in half precision and with dropout."""
    flags = ("--precision", place.half, "--deterministic", "True", "--dropout", 0.3, *flags)
    flags += ("--ema", 0.9, "--checkpoint_every", 1)
    finished(training(place, name, *flags))
    resumed = killed_after(place, f"{name}-killed", 4, *flags)
    runs = [place.work / "runs" / run for run in (name, f"{name}-killed")]
    states = [torch.load(max((run / "checkpoints").glob("epoch-*.pt")), weights_only=True) for run in runs]
    parts = [{**state["model"], **state["average"]} for state in states]
    other = sum(not torch.equal(t, parts[1][n]) for n, t in parts[0].items() if isinstance(t, torch.Tensor))
    same = step_losses(place, name) == step_losses(place, f"{name}-killed")
    figure = f"{other} of {len(parts[0])} tensors differ, losses {'identical' if same else 'differ'}"
    return bool(resumed) and same and not other, figure


def killed_and_resumed_deterministic(place: Place) -> Iterator[Row]:
    """The same with --deterministic True, in half precision, compiled and with dropout: the same bits."""
    passed, figure = same_bits_when_resumed(place, "deterministic", *DROP_PATH, "--compile", not place.dry)
    how = f"{place.half}, dropout, {'not compiled' if place.dry else 'compiled'}"
    yield verdict("killed and resumed, --deterministic", passed, f"{how}: {figure}")


def killed_and_resumed_pooling(place: Place) -> Iterator[Row]:
    """The same for a network with 3-D max pooling, whose compilation would take minutes; a small one in the dry run."""
    flags = ("mscadc", *MSCADC.TINY) if place.dry else ("c3d", "--frame_num", 16)
    passed, figure = same_bits_when_resumed(place, f"deterministic-{flags[0]}", "--model", *flags)
    yield verdict(f"killed and resumed, --deterministic, {flags[0]}", passed, f"{place.half}, dropout: {figure}")


def cuda_graphs(place: Place) -> Iterator[Row]:
    """--cuda_graphs True: the losses without it, with and without --accumulate; the same bits when it is resumed; the time of a real
    step."""
    needs_cuda(place)
    for parts in (1, 4):
        config = tiny_config(
            "timesformer", "regression", precision="bf16", learning_rate=1e-3, compile=True, accumulate=parts
        )
        plain, graphs = (
            losses_of_steps(dataclasses.replace(config, cuda_graphs=wanted), place, 8) for wanted in (False, True)
        )
        worst = max(abs(a - b) / abs(b) for a, b in zip(graphs, plain, strict=True))
        yield verdict(
            f"CUDA graphs, losses, --accumulate {parts}",
            worst < 1e-3,
            f"relative difference from --compile True alone {worst:.1e} (limit 1e-3)",
        )
    passed, figure = same_bits_when_resumed(place, "graphs", *DROP_PATH, "--compile", "True", "--cuda_graphs", "True")
    yield verdict("killed and resumed, CUDA graphs", passed, figure)
    flags = {"frame_num": 8, "compile": True, "cuda_graphs": True}
    yield from real_step(place, "TimeSformer-B, 8 frames of 224, CUDA graphs", flags, 16)


def evaluation(place: Place) -> Iterator[Row]:
    """training.evaluate on the run in fp32; its predictions on the card against the CPU's."""
    run = place.work / "runs" / "fp32"
    found: dict[str, list[float]] = {}
    processes = {}
    for device in ("cpu",) if place.dry else ("cpu", "card"):
        copy = place.work / "evaluated" / device
        shutil.copytree(run, copy)
        processes[device] = python("-m", "training.evaluate", "--run", copy, "--gpu", device == "card")
    for device, process in processes.items():
        output = finished(process)
        lines = (place.work / "evaluated" / device / "predictions.csv").read_text().splitlines()
        column = lines[0].split(",").index("predicted_score")
        found[device] = [float(line.split(",")[column]) for line in lines[1:]]
    result = next(line for line in output.splitlines() if "Test Spearman" in line)[:60]
    worst = max(abs(a - b) for a, b in zip(found["cpu"], found[device], strict=True))
    yield verdict(
        "training.evaluate", worst < 0.05, f"{result}; largest difference from the CPU {worst:.1e} points (limit 0.05)"
    )


def torchrun(place: Place) -> Iterator[Row]:
    """One rank started by torchrun."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1")
    finished(training(place, "torchrun", "--precision", "fp32", launcher=launcher))
    yield losses_are_near(place, "torchrun", "fp32", 1e-9 if place.dry else 1e-4, "torchrun with one rank")


def nccl(place: Place) -> Iterator[Row]:
    """DistributedDataParallel and the project's collectives on one rank: nccl, or gloo in the dry run."""
    import torch.distributed as dist

    from training.runtime import collectives

    backend = "gloo" if place.dry else "nccl"
    if not place.dry:
        torch.cuda.set_device(0)
    store = dist.FileStore(str(place.work / "store"), 1)
    dist.init_process_group(backend, store=store, rank=0, world_size=1)
    config = tiny_config("timesformer", "regression")
    model = build_model(config).to(place.device)
    batch = to_device(batch_of(config, model.method), place.device)
    step = Step(model, config, Ranks(0, 1), place.device)
    model.eval()
    step.ranks = Ranks(0, 2)  # so that _wrap uses DistributedDataParallel
    parallel = step._wrap(model)
    gradients = []
    for module in (model, parallel):
        model.zero_grad(set_to_none=True)
        model.method.loss(module(batch), batch.given, batch.labels)["loss"].backward()
        gradients.append(torch.cat([p.grad.flatten().clone() for p in model.parameters() if p.grad is not None]))
    worst = relative(gradients[1], gradients[0])
    given, labels = collectives.gather_rows(batch.given, batch.labels)
    same = all(torch.equal(t, {**given, **labels}[name]) for name, t in {**batch.given, **batch.labels}.items())
    agreed = same and collectives.max_over_ranks(3) == 3 and collectives.gather_objects("a") == ["a"]
    collectives.barrier()
    del step, parallel, module
    collectives.disconnect()
    version = "" if place.dry else " " + ".".join(map(str, torch.cuda.nccl.version()))
    yield verdict(
        f"DDP with {backend}, one rank",
        agreed and worst < 1e-4,
        f"{backend}{version}, gradients differ by {worst:.1e} (limit 1e-4)",
    )


def data_wait(place: Place) -> Iterator[Row]:
    """The share of the time that a training of TimeSformer-B waits for data, with the project's own workers."""
    workers = 1 if place.dry else min(12, max(1, (os.cpu_count() or 1) - 2))
    run = "fp32"
    if not place.dry:
        run = "wait"
        real = ["--spatial_size", 224, "--embed_dim", 768, "--depth", 12, "--num_heads", 12, "--topology", 512]
        larger = place.work / "larger"
        sizes = ["--videos", 8, "--dives", 160, "--width", 640, "--height", 360]
        finished(python("-m", "data_preparation.synthetic", "--dataset", larger, *sizes))
        finished(python("-m", "data_preparation.extract", "--dataset", larger, "--workers", min(8, workers)))
        flags = [
            *real, "--frame_num", 8, "--batch_size", 16, "--precision", "bf16", "--workers", workers, "--data_aug", "True",
            "--epochs", 2, "--prefetch", 4, *data_flags(larger),
        ]  # fmt: skip
        finished(training(place, run, *flags))
    steps = records(place, run, "step")
    last = [r for r in steps if r["epoch"] == steps[-1]["epoch"]]
    waited, computed = (sum(r[key] for r in last) for key in ("data_s", "step_s"))
    later_waited, later_computed = (sum(r[key] for r in last[2:]) for key in ("data_s", "step_s"))
    yield verdict(
        "data wait", computed > 0,
        f"{later_waited / (later_waited + later_computed or 1):.0%} of the time after the epoch's first two steps, {waited / (waited + computed):.0%} with them ({len(last)} steps, {workers} workers)",
    )  # fmt: skip


def against_the_reference(place: Place) -> Iterator[Row]:
    """training.benchmark step: this project's step against the reference step, materialised attention and all, side by side."""
    cases = ("timesformer_8",) if place.dry else ("timesformer_8", "timesformer_48", "c3d")
    for case in cases:
        size, rounds = ("small", 1) if place.dry else ("base", 5)
        options = benchmark_step.Config(rounds=rounds, size=size, gpu=not place.dry)
        name, flags, clips = benchmark_step.CASES[size, case]
        # the reference keeps the attention weights: half of the clips fits a card of 80 GiB at 48 frames
        clips = 2 if place.dry else clips // 2 if case == "timesformer_48" else clips
        rows, _ = benchmark_step.case_result(name, flags, clips, options)
        for row in rows:
            what, ours, reference, ratio, ceiling, share, note = row.cells()
            figure = f"{ours}, reference {reference}, ratio {ratio}, ceiling {ceiling}, {share} of it {note}".strip()
            yield Row(
                f"{name}, {clips} clips: {what.removeprefix('- ')}"
                if what != name
                else f"{name} against the reference",
                PASS,
                figure,
            )


def always_fails(place: Place) -> Iterator[Row]:
    """Only by --only: shows what a failing check does."""
    yield Row("a row before the failure", PASS, "")
    raise AssertionError("this check always fails")


# (check, time limit in seconds), in the order in which they run: what matters most comes first
CHECKS: dict[str, tuple[Callable[[Place], Iterator[Row]], int]] = {
    "matrix_product": (matrix_product, 40),
    "arithmetic": (arithmetic, 60),
    "golden_outputs": (golden_outputs, 60),
    "soft_ranks": (soft_ranks, 40),
    "data_set": (data_set, 60),
    "trainings": (trainings, 120),
    "timesformer_8": (timesformer_8, 60),
    "timesformer_48": (timesformer_48, 60),
    "timesformer_48_checkpointed": (timesformer_48_checkpointed, 60),
    "c3d": (c3d, 60),
    "i3d": (i3d, 60),
    "tpt": (tpt, 90),
    "methods": (methods, 90),
    "nccl": (nccl, 60),
    "deterministic": (deterministic, 120),
    "data_wait": (data_wait, 120),
    "compiled": (compiled, 240),
    "against_the_reference": (against_the_reference, 150),
    "killed_and_resumed": (killed_and_resumed, 90),
    "killed_and_resumed_deterministic": (killed_and_resumed_deterministic, 240),
    "killed_and_resumed_pooling": (killed_and_resumed_pooling, 120),
    "cuda_graphs": (cuda_graphs, 300),
    "evaluation": (evaluation, 60),
    "torchrun": (torchrun, 60),
}
HIDDEN = {"always_fails": (always_fails, 10)}


# --------------------------------------------------------------------------------------------------- running the checks


def _write_rows(check: Callable[[Place], Iterator[Row]], place: Place, file: Path) -> None:
    """Run a check in this process; its rows become the lines of `file`."""

    def write(row: Row) -> None:
        with file.open("a") as rows:
            rows.write(json.dumps(asdict(row)) + "\n")

    try:
        for row in check(place):
            write(row)
    except Skip as reason:
        write(Row(check.__name__, SKIPPED, str(reason)))
    except BaseException as error:
        traceback.print_exc()
        write(Row(check.__name__, FAIL, f"{type(error).__name__}: {error}"))


def run_check(name: str, place: Place, seconds: float) -> list[Row]:
    """The rows of a check, which runs in a process group of its own for at most so many seconds."""
    check = ({**CHECKS, **HIDDEN})[name][0]
    file = place.work / f"{name}.rows"
    file.touch()
    started = time.monotonic()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.setsid()
        try:
            _write_rows(check, place, file)
            sys.stdout.flush()
        finally:
            os._exit(0)
    status: int | None = None
    while status is None and time.monotonic() - started < seconds:
        done, ended = os.waitpid(child, os.WNOHANG)
        status = ended if done else None
        time.sleep(0.02)
    with suppress(ProcessLookupError):  # what the check started ends with it
        os.killpg(child, signal.SIGKILL)
    rows = [Row(**json.loads(line)) for line in file.read_text().splitlines()]
    if status is None:
        os.waitpid(child, 0)
        rows.append(Row(name, FAIL, f"it took more than {seconds:.0f} s"))
    elif status or not rows:
        rows.append(Row(name, FAIL, f"its process ended with status {status}"))
    took = time.monotonic() - started
    return [*rows[:-1], dataclasses.replace(rows[-1], seconds=round(took, 1))]


def head(command: str, dry: bool) -> dict[str, str]:
    """What the figures depend on."""
    card, driver = "none (dry run on the CPU)" if dry else "none", ""
    if not dry and shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
        answer = subprocess.run(query, capture_output=True, text=True, check=False).stdout.splitlines()
        name, memory, driver = (part.strip() for part in (answer or ["unknown,,"])[0].split(","))
        card = f"{name}, {memory}"
    import numpy
    import timm

    return {
        "card": card, "driver": driver or "none", "torch": torch.__version__, "CUDA": str(torch.version.cuda or "none"),
        "timm": timm.__version__, "numpy": numpy.__version__, "Python": platform.python_version(),
        "CPU cores": str(os.cpu_count()), "command": command,
    }  # fmt: skip


def table(about: dict[str, str], rows: list[Row]) -> str:
    """The results in Markdown."""
    lines = [
        *(f"* {name}: {value}" for name, value in about.items()),
        "",
        "| check | result | figure | s |",
        "|---|---|---|---|",
    ]
    for row in rows:
        figure = " ".join(row.figure.split()).replace("|", "\\|")[:400]
        lines.append(f"| {row.name} | {row.result} | {figure} | {row.seconds or ''} |")
    return "\n".join(lines) + "\n"


def has_card() -> bool:
    """Whether CUDA sees a card; asked in a process of its own, since CUDA cannot be used in forks of one that asked."""
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.cuda.is_available() else 1)
    return os.waitpid(child, 0)[1] == 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="bash tests/gpu.sh", description="Every check that only a GPU can make.")
    parser.add_argument("--out", default="gpu_results", help="folder of gpu.md and gpu.json")
    parser.add_argument("--budget_s", type=float, default=480, help="seconds for everything, installation included")
    parser.add_argument("--dry_run", action="store_true", help="run on the CPU at tiny sizes")
    parser.add_argument("--only", nargs="+", default=[], choices=[*CHECKS, *HIDDEN], help="some of the checks")
    parser.add_argument("--from", dest="start_folder", default=".", help=argparse.SUPPRESS)
    parser.add_argument("--started", type=float, default=time.time(), help=argparse.SUPPRESS)
    parser.add_argument("--command", default="python -m tests.gpu_checks", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.dry_run and not has_card():
        print(
            "error: CUDA sees no GPU here: give --dry_run to run the checks on the CPU at tiny sizes", file=sys.stderr
        )
        return 2
    out = Path(options.start_folder) / options.out
    out.mkdir(parents=True, exist_ok=True)
    about, rows = head(options.command.strip(), options.dry_run), []
    with tempfile.TemporaryDirectory() as work:
        place = Place(Path(work), options.dry_run)
        for name in options.only or CHECKS:
            limit = ({**CHECKS, **HIDDEN})[name][1] * (5 if options.dry_run else 1)  # a busy CPU is slow
            left = options.budget_s - (time.time() - options.started)
            if left < 5:
                rows.append(Row(name, SKIPPED, f"the {options.budget_s:.0f} s of --budget_s are used up"))
            else:
                rows += run_check(name, place, min(limit, left))
            print("\n".join(f"{r.result:8}{r.name}: {r.figure}" for r in rows if r not in rows[:-1]), flush=True)
            (out / "gpu.md").write_text(table(about, rows))
            (out / "gpu.json").write_text(json.dumps({**about, "rows": [asdict(r) for r in rows]}, indent=1))
    failed = sum(row.result == FAIL for row in rows)
    print("\n" + table(about, rows))
    print(f"{len(rows)} rows, {failed} failed, {time.time() - options.started:.0f} s: {out}/gpu.md")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
