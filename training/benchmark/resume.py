"""The time that a restart costs: load the checkpoint and take the next step."""

from __future__ import annotations

import shutil
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

from data_preparation.common.command_line import flag
from training.benchmark import saving
from training.benchmark._data import drawn_dives
from training.benchmark._result import Common, Result, Row, Timing
from training.benchmark._training import DIVES, run_process, start_up_parts, training_flags


@dataclass(frozen=True)
class Config(Common):
    """A resumed run from the start of its process to its next step, and how long saving blocks the training."""

    rounds: int = flag(3, "Rounds. Each starts one run and resumes it.", minimum=1)


def measure(config: Config) -> Result:
    fresh, resumed = Timing(), Timing()
    parts: dict[str, list[dict[str, float]]] = {"fresh": [], "resumed": []}
    with drawn_dives(*DIVES) as layout, tempfile.TemporaryDirectory() as runs:
        for number in range(config.rounds + 1):
            name = f"round{number}"
            flags = training_flags(layout, Path(runs), "--run_name", name, "--gpu", config.gpu, "--epochs", 1)
            parts["fresh"].append(start_up_parts(run_process(["-m", "training.train", *flags], fresh)))
            log = run_process(["-m", "training.train", *flags, "--epochs", "2"], resumed)
            assert "Resuming" in log
            parts["resumed"].append(start_up_parts(log))
            shutil.rmtree(Path(runs) / name)

    def median(kind: str, part: str) -> float:
        return statistics.median(of_run[part] for of_run in parts[kind][1:])

    rows = [
        Row("process start to first step, resumed", "s", median("resumed", "all"), ceiling=median("fresh", "all")),
        Row("- loading the checkpoint", "s", median("resumed", "checkpoint"), ceiling=median("fresh", "checkpoint")),
    ]
    of_saving = saving.measure(
        saving.Config(rounds=config.rounds, folder=Path(tempfile.gettempdir()) / f"deepsports-saving-{id(config)}")
    )
    legend = ["Ceiling of the first two: the same run from scratch. Then, from the command saving:", *of_saving.legend]
    return Result([*rows, *of_saving.rows], legend, {"start_up": parts})
