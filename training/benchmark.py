"""Measure speed, as ratios of two times measured in the same run.

python -m training.benchmark saving [--folder FOLDER]      how long saving a checkpoint blocks the training
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from data_preparation.common.command_line import flag, parse_command, run
from training.backbones import build_backbone
from training.config import TrainConfig
from training.runtime import checkpoint


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


def main(argv: Sequence[str]) -> int:
    _, options = parse_command({"saving": SavingConfig}, argv, "python -m training.benchmark")
    saving(options)
    return 0


if __name__ == "__main__":
    run(main)
