"""Weak scaling on paper: inputs measured here, a simulation of many GPUs, and what limits them first."""

from __future__ import annotations

import dataclasses
import gc
import pickle
import shutil
import subprocess
import sys
import tempfile
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
import torch.distributed as dist

from data_preparation.actions import Dive
from data_preparation.archive import FrameReader, write_archive
from data_preparation.common.command_line import flag
from training.benchmark._cluster import (
    Hardware,
    Work,
    epoch_seconds,
    exposed_all_reduce,
    load_seconds,
    missed,
    start_seconds,
)
from training.benchmark._result import Common, Result, Row
from training.config import TrainConfig
from training.data.batch import Rows
from training.data.dataset import ActionDataset, label_faults
from training.data.facts import NO_FACTS
from training.data.loader import training_batches
from training.data.splits import data_fingerprint, split_train_val
from training.engine.prediction import in_order
from training.methods import build_method
from training.runtime.ranks import Ranks

IN_ALL = False  # a simulation
RANKS = (1, 8, 64, 256, 1000)
PLAIN_OPERATIONS = 3  # whether it exists, whether it is a file, then to open it


@dataclass(frozen=True)
class Config(Common):
    """Weak scaling to 1,000 GPUs and a million clips by simulation, with inputs measured here."""

    clips: int = flag(1_000_000, "Clips of the data set.", minimum=1000)
    clips_per_video: int = flag(100, "Actions of a video, which has one archive.", minimum=1)
    frames: int = flag(8, "Frames of a clip.", minimum=1)
    frame_kb: float = flag(37.0, "Size of a stored frame in kB.", minimum=1)
    batch: int = flag(16, "Clips of a rank's batch.", minimum=1)
    step_ms: float = flag(119.0, "A step of one GPU; TimeSformer-B with 16 clips of 8 x 224 takes 119 ms on an H100.")
    jitter: float = flag(0.03, "Standard deviation of a step, relative to its mean.", minimum=0)
    parameters: float = flag(121e6, "Parameters of the network.")
    gpus_per_node: int = flag(8, "GPUs of a node.", minimum=1)
    workers: int = flag(8, "DataLoader workers of a rank.", minimum=1)
    inside_gbs: float = flag(300.0, "Bandwidth between the GPUs of a node in GB/s and GPU (NVLink 4: 450).")
    network_gbs: float = flag(40.0, "Bandwidth of the network in GB/s and GPU (400 Gbit/s: 50).")
    latency_us: float = flag(15.0, "Latency of a message between nodes in microseconds.")
    storage_gbs: float = flag(100.0, "Bandwidth of the shared file system in GB/s.")
    storage_operations: float = flag(50_000.0, "Metadata operations of the shared file system per second.")
    measured: int = flag(20_000, "Actions with which costs per action are measured.", minimum=100)
    plot: Path | None = flag(None, "PNG file for a picture of the scaling.")


def cpu(action: Callable[[], object], rounds: int = 3) -> float:
    """The least CPU seconds of a call."""
    found = []
    for _ in range(rounds):
        started = time.process_time()
        action()
        found.append(time.process_time() - started)
    return min(found)


# ------------------------------------------------------------------------------------------------------ measured inputs


def measure_archives(config: Config) -> dict[str, float]:
    """Costs of an archive of as many frames as a video of the data set, and of a clip of it."""
    count = min(config.clips_per_video * 106, 20_000)
    rng = np.random.default_rng(0)
    smooth = np.linspace(0, 255, 455)[None, :, None] + np.zeros((256, 455, 3))
    deviation, jpeg = 0.5, b""
    while len(jpeg) < config.frame_kb * 1e3 and deviation < 64:  # noise until the file has the wanted size
        picture = np.clip(smooth + rng.normal(0, deviation, (256, 455, 1)), 0, 255).astype(np.uint8)
        jpeg = simplejpeg.encode_jpeg(picture, quality=95, colorspace="RGB", colorsubsampling="420")
        deviation *= 1.2
    folder = Path(tempfile.mkdtemp(prefix="deepsports-benchmark-"))
    try:
        path = folder / "01.zip"
        kept = range(1, 17)  # the others are empty: only the index matters
        write_archive(path, ((n, jpeg if n in kept else b"") for n in range(1, count + 1)), {"a": 1})
        reader = FrameReader(path)

        def load_clip() -> None:
            for number in range(1, config.frames + 1):
                reader.image((number - 1) % 16 + 1)

        tracemalloc.start()
        opened = FrameReader(path)
        memory = tracemalloc.get_traced_memory()[0]
        plain = zipfile.ZipFile(path)
        plain_memory = tracemalloc.get_traced_memory()[0] - memory
        tracemalloc.stop()
        plain.close()
        opened.close()
        return {
            "frames_per_archive": count,
            "open_s": cpu(lambda: FrameReader(path).close()),
            "open_s_zipfile": cpu(lambda: zipfile.ZipFile(path).close()),
            "open_memory": memory,
            "open_memory_zipfile": plain_memory,
            "index_bytes": 56 * count,
            "clip_s": cpu(load_clip),
            "jpeg_bytes": len(jpeg),
            "open_operations": operations(path),
        }
    finally:
        shutil.rmtree(folder)


def operations(path: Path) -> float:
    """System calls that ask the file system's metadata server when an archive is opened, counted by strace if it is installed."""
    if not shutil.which("strace"):
        return 1.0  # not measured here: the count on machines with strace
    code = f"""
import os
from pathlib import Path
from data_preparation.archive import open_frames
open_frames(Path({str(path.parent)!r}), "01")
os.access("/begin", 0)
open_frames(Path({str(path.parent)!r}), "01")
os.access("/end", 0)
"""
    command = ["strace", "-f", "-e", "trace=%file,close,fstat", sys.executable, "-c", code]
    lines = subprocess.run(command, capture_output=True, text=True).stderr.splitlines()
    marks = [index for index, line in enumerate(lines) if '"/begin"' in line or '"/end"' in line]
    return float(sum(path.name in line for line in lines[marks[0] : marks[1]])) if len(marks) == 2 else 1.0


def measure_plans(config: Config) -> dict[str, float]:
    """Costs per action of the training process: records, checks, the order of an epoch, the plan of a sample."""
    count, per_video = config.measured, config.clips_per_video
    gc.collect()
    tracemalloc.start()
    actions = [
        Dive(f"{i // per_video:05d}", i % per_video + 1, 1 + 106 * (i % per_video), 100 + 106 * (i % per_video), difficulty=3.0, final_score=60.0)
        for i in range(count)
    ]  # fmt: skip
    memory = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    train_config = TrainConfig(batch_size=count // 10)
    method = build_method(train_config, 8, NO_FACTS)
    dataset = ActionDataset(actions, train_config, method, augment=True)

    def plan_epoch() -> None:
        training_batches(dataset, train_config, Ranks(0, 10), torch.device("cpu"), 0, 0)

    def check() -> None:
        label_faults(actions, method)
        data_fingerprint(actions)
        split_train_val(actions, 0.8, 0)

    samples = min(count, 500)
    return {
        "action_memory": memory / count,
        "check_s": cpu(check) / count,
        "epoch_s": cpu(plan_epoch) / count,
        "plan_s": cpu(lambda: [dataset.plan(0, index) for index in range(samples)]) / samples,
    }


def measure_rows(ranks: int = 20, rows_per_rank: int = 200) -> dict[str, float]:
    """Costs of a validated clip on a rank that receives the outputs of all: in one tensor for each name, and row by row."""
    own = [
        (index, Rows({"score": torch.rand(2)}, {}, {"score": torch.rand(2), "final_score": torch.rand(())}))
        for index in range(rows_per_rank)
    ]
    packed, plain = pickle.dumps((list(range(rows_per_rank)), in_order(own))), pickle.dumps(own)
    count = ranks * rows_per_rank
    return {
        "row_s": cpu(lambda: [pickle.loads(packed) for _ in range(ranks)]) / count,
        "row_s_one_by_one": cpu(lambda: [pickle.loads(plain) for _ in range(ranks)]) / count,
        "row_bytes": len(packed) / rows_per_rank,
        "row_bytes_one_by_one": len(plain) / rows_per_rank,
    }


def measure_machine() -> dict[str, float]:
    """Imports, the copy of weights for the checkpoint writer, and the rendezvous of one rank."""
    code = "import time, training.train; print(time.process_time())"
    imports = float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    weights = torch.zeros(16_000_000)
    store = dist.TCPStore("127.0.0.1", 0, 1, is_master=True)
    started = time.perf_counter()
    for number in range(200):
        store.set(f"rank{number}", "here")
        store.get(f"rank{number}")
    met = (time.perf_counter() - started) / 200
    return {"import_s": imports, "copy_bytes_per_s": weights.nbytes / cpu(weights.clone), "meet_s": met}


def work_and_hardware(config: Config, found: dict[str, float]) -> tuple[Work, Hardware]:
    """The inputs of the simulation, from the flags and from what was measured."""
    clips = config.clips
    work = Work(
        clips=clips,
        validated=clips // 5,
        videos=max(clips // config.clips_per_video, 1),
        batch=config.batch,
        clip_bytes=config.frames * config.frame_kb * 1e3,
        clip_cpu=found["clip_s"],
        open_cpu=found["open_s"],
        open_bytes=found["index_bytes"],
        open_operations=found["open_operations"],
        kept_archives=256,
        plan_cpu=found["plan_s"],
        epoch_cpu=found["epoch_s"] * clips,
        gradient_bytes=4 * config.parameters,
        checkpoint_bytes=12 * config.parameters,
        copy_bytes=found["copy_bytes_per_s"],
        row_cpu=found["row_s"],
        start_cpu=found["import_s"] + found["check_s"] * clips,
        meet=found["meet_s"],
    )
    hardware = Hardware(
        step=config.step_ms / 1e3,
        jitter=config.jitter,
        gpus_per_node=config.gpus_per_node,
        workers=config.workers,
        inside_bytes=config.inside_gbs * 1e9,
        network_bytes=config.network_gbs * 1e9,
        latency=config.latency_us * 1e-6,
        storage_bytes=config.storage_gbs * 1e9,
        storage_operations=config.storage_operations,
    )
    return work, hardware


# ----------------------------------------------------------------------------------------------------------- simulation


@dataclass(frozen=True)
class Point:
    """What the simulation found for so many GPUs."""

    ranks: int
    clips_per_s: float  # over whole epochs
    efficiency: float  # against as many times the step of one GPU
    gigabytes_per_s: float
    operations_per_s: float
    epoch: dict[str, float]
    start: dict[str, float]
    limits: dict[str, float]  # seconds that each part adds to a step, or to the epoch divided by its steps


def simulate(ranks: int, work: Work, hardware: Hardware, opened_by_each: float) -> Point:
    """One point of the curve: a fixed batch on every GPU, whole epochs of the data set."""
    epoch = epoch_seconds(ranks, work, hardware)
    steps = work.clips // (work.batch * ranks)
    seconds = sum(epoch.values())
    clips_per_s = work.batch * ranks * steps / seconds
    computing = steps * hardware.step
    waiting = steps * max(0.0, load_seconds(ranks, work, hardware) - hardware.step)
    reducing = steps * exposed_all_reduce(ranks, work, hardware)
    parts = {
        "the loader": waiting,
        "all-reduce": reducing,
        "waiting for the slowest rank": max(0.0, epoch["steps"] - computing - waiting - reducing),
        **{name: part for name, part in epoch.items() if name != "steps"},
    }
    return Point(
        ranks,
        clips_per_s,
        computing / seconds,
        clips_per_s * (work.clip_bytes + missed(work) * work.open_bytes) / 1e9,
        clips_per_s * missed(work) * work.open_operations,
        epoch,
        start_seconds(ranks, work, hardware, opened_by_each),
        parts,
    )


def table_of(points: Sequence[Point]) -> list[list[str]]:
    head = ["GPUs", "clips/s", "efficiency", "GB/s", "metadata/s", "epoch", "start-up", "largest loss of an epoch", "largest part of the start"]  # fmt: skip
    lines = []
    for point in points:
        worst, slowest = max(point.limits, key=point.limits.__getitem__), max(point.start, key=point.start.__getitem__)
        epoch = sum(point.epoch.values())
        lines.append([
            f"{point.ranks}", f"{point.clips_per_s:,.0f}", f"{point.efficiency:.0%}", f"{point.gigabytes_per_s:.2f}",
            f"{point.operations_per_s:,.0f}", f"{epoch:,.1f} s", f"{sum(point.start.values()):,.0f} s",
            f"{worst} ({point.limits[worst] / epoch:.0%})", f"{slowest} ({point.start[slowest]:,.0f} s)",
        ])  # fmt: skip
    return [head, *lines]


def breaks_first(points: Sequence[Point]) -> str:
    """What costs a tenth of an epoch, or more start-up than ten minutes, with the fewest GPUs: one sentence."""
    for point in points:
        epoch, start = sum(point.epoch.values()), sum(point.start.values())
        worst = max(point.limits, key=point.limits.__getitem__)
        if start > 600:
            slowest = max(point.start, key=point.start.__getitem__)
            return f"The start-up breaks first, at {point.ranks} GPUs: {start:,.0f} s, most of it {slowest}."
        if point.limits[worst] > epoch / 10:
            return f"{worst[0].upper()}{worst[1:]} breaks first, at {point.ranks} GPUs: {point.limits[worst] / epoch:.0%} of an epoch."
    return f"Nothing costs a tenth of an epoch or ten minutes of start-up at {points[-1].ranks} GPUs."


def measure(config: Config) -> Result:
    found = {**measure_archives(config), **measure_plans(config), **measure_rows(), **measure_machine()}
    work, hardware = work_and_hardware(config, found)
    plain = dataclasses.replace(
        work,
        open_cpu=found["open_s_zipfile"],
        row_cpu=found["row_s_one_by_one"],
        open_operations=PLAIN_OPERATIONS,
    )
    ours = [simulate(ranks, work, hardware, 1 / ranks) for ranks in RANKS]
    theirs = [simulate(ranks, plain, hardware, 1.0) for ranks in RANKS]
    if config.plot:
        draw(config.plot, ours, theirs)
    rows = [
        Row(f"open an archive of {found['frames_per_archive']:.0f} frames", "ms of CPU", 1e3 * found["open_s"], 1e3 * found["open_s_zipfile"]),
        Row("- its memory in each worker", "kB", found["open_memory"] / 1e3, found["open_memory_zipfile"] / 1e3),
        Row("outputs of a validated clip from another rank", "us of CPU", 1e6 * found["row_s"], 1e6 * found["row_s_one_by_one"]),
        Row("- their size", "bytes", found["row_bytes"], found["row_bytes_one_by_one"]),
        Row(f"load a clip of {config.frames} frames", "ms of CPU", 1e3 * found["clip_s"]),
        Row("order of an epoch, a million clips", "s of CPU", 1e6 * found["epoch_s"]),
        Row("records of a million clips in each rank", "MB", found["action_memory"]),
        Row("checks of a million clips at the start", "s of CPU", 1e6 * found["check_s"]),
        Row("plan of a sample", "us of CPU", 1e6 * found["plan_s"]),
    ]  # fmt: skip
    legend = [
        "Reference: zipfile's index, outputs sent row by row, every rank opens every archive. Rendezvous "
        f"{1e6 * found['meet_s']:.0f} us a rank, {found['open_operations']:.0f} metadata operations to open an archive{'' if shutil.which('strace') else ' (assumed: strace is not installed)'}.",
    ]
    tables = {
        f"Simulated, this project: {config.clips:,} clips, {work.videos:,} archives. {breaks_first(ours)}": table_of(
            ours
        ),
        f"Simulated, the reference way. {breaks_first(theirs)}": table_of(theirs),
    }
    points: dict[str, Any] = {"ours": [*map(dataclasses.asdict, ours)], "reference": [*map(dataclasses.asdict, theirs)]}
    return Result(rows, legend, {"measured": found, "points": points}, tables)


def draw(path: Path, ours: Sequence[Point], theirs: Sequence[Point]) -> None:
    """A picture of throughput and start-up over the number of GPUs."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    ranks = [point.ranks for point in ours]
    ideal = [ours[0].clips_per_s * count for count in ranks]
    left.plot(ranks, ideal, color="0.6", linestyle="--", label="ideal: one GPU times their number")
    for points, colour, label in ((ours, "C0", "this project"), (theirs, "C3", "the reference way")):
        left.plot(ranks, [point.clips_per_s for point in points], "o-", color=colour, label=label)
        right.plot(ranks, [sum(point.start.values()) for point in points], "o-", color=colour, label=label)
    left.set(
        xscale="log",
        yscale="log",
        xlabel="GPUs",
        ylabel="clips per second",
        title="Throughput over whole epochs (simulated)",
    )
    right.set(xscale="log", yscale="log", xlabel="GPUs", ylabel="seconds", title="Start-up (simulated)")
    for axes in (left, right):
        axes.set_xticks(ranks, [f"{count:,}" for count in ranks])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
