"""Measure speed, as ratios of two times measured in the same run.

python -m training.benchmark saving [--folder FOLDER]      how long saving a checkpoint blocks the training
python -m training.benchmark augment                       --augment randaugment in a worker and on the device
"""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from data_preparation.actions import Action
from data_preparation.common.command_line import flag, parse_command, run
from training.backbones import build_backbone
from training.config import TrainConfig
from training.data.augment import as_tensor, augment_clips, change_colours, randaugment
from training.data.plan import ClipSpec
from training.data.transforms import crop_flip_rotate, squash_view
from training.runtime import checkpoint
from training.runtime.seeding import generator


@dataclass(frozen=True)
class SavingConfig:
    """Write the checkpoint of a TimeSformer-B with AdamW in the training thread and in the background."""

    folder: Path = flag(
        Path("benchmark_checkpoints"), "Folder to write to, on the disk to measure; deleted at the end."
    )
    rounds: int = flag(3, "Number of checkpoints to write each way.", minimum=1)


def _seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def saving(config: SavingConfig) -> None:
    """Print how long a checkpoint blocks the training: written in the training thread, and by checkpoint.Writer."""
    backbone = build_backbone(TrainConfig())
    optimizer = torch.optim.AdamW(backbone.parameters(), amsgrad=True)
    for parameter in backbone.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()

    def state() -> dict:
        return {"model": backbone.state_dict(), "optimizer": optimizer.state_dict()}

    batch = torch.rand(1, 3, 8, 224, 224)

    def step() -> None:  # a forward pass, as an example of what the training does meanwhile
        with torch.no_grad():
            backbone.eval()(batch)

    path = config.folder / "checkpoint.pt"
    writer = checkpoint.Writer()
    in_place, stalls, concurrent, written = [], [], [], []
    writer.put(state(), lambda copy: {path: copy})  # the first call also allocates the memory of the copy
    writer.wait()
    step()
    alone = [_seconds(step) for _ in range(config.rounds)]
    try:
        for _ in range(config.rounds):
            in_place.append(_seconds(lambda: checkpoint.save(path, state())))
            started = time.perf_counter()
            stalls.append(_seconds(lambda: writer.put(state(), lambda copy: {path: copy})))
            concurrent.append(_seconds(step))
            writer.wait()
            written.append(time.perf_counter() - started)
        size = path.stat().st_size
    finally:
        shutil.rmtree(config.folder, ignore_errors=True)
    in_place_s, stall_s, step_s, concurrent_s = (
        sum(times) / len(times) for times in (in_place, stalls, alone, concurrent)
    )
    print(f"checkpoint of {size / 1e9:.2f} GB (TimeSformer-B, AdamW with amsgrad), mean of {config.rounds}")
    print(f"in the training thread training blocked for {in_place_s:.2f} s")
    print(
        f"in the background     training blocked for {stall_s:.2f} s, on disk after {sum(written) / len(written):.2f} s"
    )
    print(f"ratio                  {in_place_s / stall_s:.1f} x")
    print(
        f"a forward pass         {step_s:.2f} s alone, {concurrent_s:.2f} s while a checkpoint is written ({concurrent_s / step_s:.2f} x)"
    )


@dataclass(frozen=True)
class AugmentConfig:
    """Change clips by --augment randaugment, one after the other as in a worker, and as one batch on the device."""

    clips: int = flag(8, "Clips of the batch.", minimum=1)
    frame_num: int = flag(8, "Frames per clip.", minimum=1)
    spatial_size: int = flag(224, "Height and width of the frames in pixels.", minimum=1)
    rounds: int = flag(5, "Number of batches to change each way.", minimum=1)
    gpu: bool = flag(True, "Use the GPU if there is one.")


def augment(config: AugmentConfig) -> None:
    """Print the time per clip of --augment_on loader in one worker and of --augment_on device."""
    device = torch.device("cuda" if config.gpu and torch.cuda.is_available() else "cpu")
    threads = torch.get_num_threads()
    shape = (config.clips, config.frame_num, 3, config.spatial_size, config.spatial_size)
    loaded = torch.randint(0, 256, shape, dtype=torch.uint8)
    action = Action("benchmark", 1, 1, config.frame_num)
    planned = ClipSpec(action, tuple(range(1, config.frame_num + 1)), squash_view(config.spatial_size))
    drawn = [[randaugment(planned, generator("clip", r, i)) for i in range(config.clips)] for r in range(config.rounds)]

    def in_worker(specs: Sequence[ClipSpec]) -> None:
        for spec, frames_TCHW in zip(specs, loaded, strict=True):
            assert spec.view is not None
            assert spec.look is not None
            change_colours(crop_flip_rotate(spec.view, frames_TCHW), spec.look)

    def on_device(specs: Sequence[ClipSpec]) -> None:
        augment_clips(loaded.to(device), [as_tensor(spec).tolist() for spec in specs])
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    def milliseconds(change: Callable[[Sequence[ClipSpec]], None], threads: int) -> float:
        """The median per clip."""
        torch.set_num_threads(threads)
        change(drawn[0])  # the first call imports torchvision and allocates memory
        return 1e3 * statistics.median(_seconds(partial(change, specs)) for specs in drawn) / config.clips

    worker_ms, device_ms = milliseconds(in_worker, 1), milliseconds(on_device, threads)
    where = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"CPU, {threads} thread{'s' if threads > 1 else ''}"
    )
    print(
        f"{config.clips} clips of {config.frame_num} frames of {config.spatial_size} x {config.spatial_size}, median of {config.rounds} batches"
    )
    print(f"in a worker    {worker_ms:.1f} ms per clip (one thread; workers run beside the training)")
    print(f"on the device  {device_ms:.1f} ms per clip ({where}; the training waits)")
    print(f"ratio          {worker_ms / device_ms:.1f} x")


def main(argv: Sequence[str]) -> int:
    name, options = parse_command(
        {"saving": SavingConfig, "augment": AugmentConfig}, argv, "python -m training.benchmark"
    )
    (saving if name == "saving" else augment)(options)
    return 0


if __name__ == "__main__":
    run(main)
