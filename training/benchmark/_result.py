"""Timings taken side by side, and the table and JSON file that they become."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from data_preparation.common.command_line import flag
from data_preparation.common.files import write_atomic
from training.runtime.run_folder import environment_record

Way = Callable[[], object]


@dataclass(frozen=True)
class Common:
    """Flags of every benchmark."""

    rounds: int = flag(5, "Rounds. Each measures every way once, in turn; the table has medians.", minimum=1)
    threads: int = flag(0, "Threads of PyTorch; 0: as PyTorch chooses.", minimum=0)
    gpu: bool = flag(True, "Use the GPU if there is one.")
    json: Path | None = flag(None, "File for the machine, the versions and all times.")

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if self.gpu and torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Timing:
    """Seconds of each call of one way: on the clock, and of the CPU in all threads of this process."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def ms(self, clock: str) -> float:
        """The median in milliseconds; `clock` is wall or CPU."""
        return 1e3 * statistics.median(self.wall if clock == "wall" else self.cpu)


def time_call(way: Way, device: torch.device) -> tuple[float, float]:
    """(seconds on the clock, CPU seconds) of one call, until the device has finished."""
    wall, cpu = time.perf_counter(), time.process_time()
    way()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - wall, time.process_time() - cpu


def alternate(ways: Mapping[str, Way], rounds: int, device: torch.device, warm_up: int = 1) -> dict[str, Timing]:
    """Time each way once in every round, in turn, every second round in reverse order: what else the machine does then
    slows all of them alike. Before that each way runs `warm_up` times."""
    timings = {name: Timing() for name in ways}
    plan = [name for name in ways for _ in range(warm_up)]
    for number in range(rounds):
        plan += list(ways)[:: -1 if number % 2 else 1]
    with tqdm(plan, leave=False, disable=None) as bar:  # only in a terminal
        for call, name in enumerate(bar):
            bar.set_description(f"measuring {name}")
            wall, cpu = time_call(ways[name], device)
            if call >= warm_up * len(ways):
                timings[name].wall.append(wall)
                timings[name].cpu.append(cpu)
    return timings


@dataclass(frozen=True)
class Row:
    """One line of a table. `ours`, `reference` and `ceiling` are in `unit`; None is shown as '-'. Smaller is better."""

    name: str
    unit: str = ""
    ours: float | None = None
    reference: float | None = None
    ceiling: float | None = None
    note: str = ""
    timings: Mapping[str, Timing] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, timings: Mapping[str, Timing], clock: str = "wall", note: str = "") -> Row:
        """The row of timings named ours, reference and ceiling, as far as there are such."""
        values = {
            part: timings[part].ms(clock) if part in timings else None for part in ("ours", "reference", "ceiling")
        }
        if clock == "wall" and not note and {"ours", "reference"} <= set(timings) and timings["ours"].ms("CPU"):
            note = f"of CPU times {timings['reference'].ms('CPU') / timings['ours'].ms('CPU'):.3g} x"
        return cls(name, "ms" if clock == "wall" else "ms of CPU", **values, note=note, timings=timings)

    def cells(self) -> list[str]:
        ratio = self.reference / self.ours if self.ours and self.reference is not None else None
        share = self.ceiling / self.ours if self.ours and self.ceiling is not None else None
        return [
            self.name,
            *(number_text(value, self.unit) for value in (self.ours, self.reference)),
            "-" if ratio is None else f"{ratio:.3g} x",
            number_text(self.ceiling, self.unit),
            "-" if share is None else f"{share:.0%}",
            self.note,
        ]


def number_text(value: float | None, unit: str) -> str:
    """Three digits and the unit."""
    if value is None:
        return "-"
    return f"{value:.0f} {unit}" if abs(value) >= 999.5 else f"{value:.3g} {unit}"


HEAD = ["", "this project", "the reference way", "ratio", "ceiling", "share of the ceiling", ""]


@dataclass(frozen=True)
class Result:
    """What a benchmark found. `legend` says what the reference way and the ceiling are; `extra` goes into the JSON file only."""

    rows: Sequence[Row]
    legend: Sequence[str] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    tables: Mapping[str, Sequence[Sequence[str]]] = field(default_factory=dict)  # further ones, by their titles


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, the first row being its head, with aligned columns. Empty columns are left out."""
    columns = [column for column in zip(*rows, strict=True) if any(column)]
    widths = [max(map(len, column)) for column in columns]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in zip(*columns, strict=True)
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


_LOAD_AT_THE_START = os.getloadavg()[0]


def machine(device: torch.device) -> dict[str, Any]:
    """What the times depend on: machine, versions, threads and load."""
    names = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "none"
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "card": card,
        "threads": torch.get_num_threads(),
        "load_at_the_start": _LOAD_AT_THE_START,
        "load_at_the_end": os.getloadavg()[0],
        "torch": torch.__version__,
        **environment_record(),
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def finish(result: Result, command: Sequence[str], json_file: Path | None) -> None:
    """Print the table, and write the JSON file if there is to be one."""
    about = machine(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    print(
        f"{about['cpu']}, {about['cores']} cores, {about['threads']} threads; card: {about['card']}; torch {about['torch']}"
    )
    if (load := about["load_at_the_start"]) > 0.3:
        print(
            f"The machine was busy: load average {load:.1f} at the start. Trust ratios, and CPU times before times on the clock."
        )
    print("", markdown([HEAD, *(row.cells() for row in result.rows)]), "", *result.legend, sep="\n")
    for title, table in result.tables.items():
        print("", title, "", markdown(table), sep="\n")
    if json_file:
        content = {"benchmark": list(command), "machine": about, "rows": [asdict(row) for row in result.rows]}
        json_file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(json_file, json.dumps({**content, **result.extra}, indent=1, default=str).encode())
