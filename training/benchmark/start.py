"""From the start of the process to the first step."""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from data_preparation.common.command_line import flag
from training.benchmark._data import drawn_dives
from training.benchmark._result import Common, Result, Row, Timing
from training.benchmark._training import DIVES, run_process, start_up_parts, training_flags


@dataclass(frozen=True)
class Config(Common):
    """Imports, and a tiny run from the start of its process to its first step."""

    rounds: int = flag(3, "Rounds. Each measures every import and one training.", minimum=1)


IMPORTS = {
    "nothing": "pass",
    "torch": "import torch",
    "launch.submit": "import launch.submit",
    "training.train": "import training.train",
    # what a training uses at some time, at the top of a file, as scripts usually have it
    "everything": "import torch, training._torchvision, torchvision, timm, sklearn.metrics, scipy.stats, matplotlib.pyplot, fvcore.nn, torchmetrics, training.train",
}
LEGEND = [
    "CPU time of a process. Reference: everything that a training uses at some time is imported at the top. Ceilings: Python",
    "alone for launch.submit, torch alone for training.train. The parts of a run are seconds on the clock.",
]


def measure(config: Config) -> Result:
    imports = {name: Timing() for name in IMPORTS}
    trained = Timing()
    parts: list[dict[str, float]] = []
    with drawn_dives(*DIVES) as layout, tempfile.TemporaryDirectory() as runs:
        for number in range(config.rounds + 1):
            for name, code in IMPORTS.items():
                run_process(["-c", code], imports[name])
            flags = training_flags(layout, Path(runs), "--run_name", f"round{number}", "--gpu", config.gpu)
            parts.append(start_up_parts(run_process(["-m", "training.train", *flags], trained)))
    for timing in (*imports.values(), trained):  # the first round also reads the files from the disk
        del timing.wall[0], timing.cpu[0]

    def row(name: str, ours: str, ceiling: str, reference: str | None = None) -> Row:
        found = {"ours": imports[ours], "ceiling": imports[ceiling]}
        return Row.of(name, found | ({"reference": imports[reference]} if reference else {}), "CPU")

    medians = {name: statistics.median(of_run[name] for of_run in parts[1:]) for name in parts[0]}
    rows = [
        row("import launch.submit", "launch.submit", "nothing"),
        row("import training.train", "training.train", "torch", "everything"),
        Row("a tiny run, process start to first step", "s", medians["all"]),
        *(Row(f"- {name}", "s", seconds) for name, seconds in medians.items() if name != "all"),
    ]
    return Result(rows, LEGEND, {"start_up": parts, "imports_by_package_s": import_seconds()})


def import_seconds() -> dict[str, float]:
    """The seconds that `import training.train` spends in each package, from Python's import profiler."""
    command = [sys.executable, "-X", "importtime", "-c", "import training.train"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stderr.splitlines()
    seconds: Counter[str] = Counter()
    for line in lines:
        if found := re.fullmatch(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)", line):
            seconds[found[2].split(".")[0]] += int(found[1])
    return {name: own / 1e6 for name, own in seconds.most_common(12)}
