"""How long a checkpoint blocks the training."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from data_preparation.common.command_line import flag
from training.backbones import build_backbone
from training.benchmark._result import Common, Result, Row, Timing, time_call
from training.config import TrainConfig
from training.runtime import checkpoint

IN_ALL = False  # resume includes it


@dataclass(frozen=True)
class Config(Common):
    """How long writing the checkpoint of a TimeSformer-B with AdamW blocks the training."""

    rounds: int = flag(3, "Number of checkpoints to write each way.", minimum=1)
    folder: Path = flag(
        Path("benchmark_checkpoints"), "Folder to write to, on the disk to measure; deleted at the end."
    )


def measure(config: Config) -> Result:
    """checkpoint.Writer against writing in the training thread; a forward pass alone and beside the writer."""
    device = torch.device("cpu")
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
    in_place, stall, written, alone, beside = (Timing() for _ in range(5))

    def add(timing: Timing, wall: float, cpu: float = 0.0) -> None:
        timing.wall.append(wall)
        timing.cpu.append(cpu)

    writer.put(state(), lambda copy: {path: copy})  # the first call also allocates the memory of the copy
    writer.wait()
    step()
    try:
        for _ in range(config.rounds):
            add(alone, *time_call(step, device))
            add(in_place, *time_call(lambda: checkpoint.save(path, state()), device))
            started = time.perf_counter()
            add(stall, *time_call(lambda: writer.put(state(), lambda copy: {path: copy}), device))
            add(beside, *time_call(step, device))
            writer.wait()
            add(written, time.perf_counter() - started)
        size = path.stat().st_size
    finally:
        shutil.rmtree(config.folder, ignore_errors=True)
    rows = [
        Row.of("training blocked by a checkpoint", {"ours": stall, "reference": in_place}),
        Row.of("a checkpoint on disk", {"ours": written, "reference": in_place}),
        Row.of("a forward pass while one is written", {"ours": beside, "ceiling": alone}),
    ]
    legend = [
        f"A checkpoint of {size / 1e9:.2f} GB (TimeSformer-B, AdamW with amsgrad). Reference: torch.save and fsync in the training",
        "thread. Ceiling: a forward pass while nothing is written.",
    ]
    return Result(rows, legend)
