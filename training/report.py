"""Results of opened runs as a table: mean and standard deviation over seeds, beside the baselines of the same test dives.

    python -m training.report runs/a-s0 runs/a-s1 runs/b-s0 ...

Runs whose flags differ in --seed alone are one line, named by their run names without the seed. Markdown on stdout.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_preparation.cli import UserError, run
from training.config import MAY_CHANGE, TrainConfig, as_record
from training.run_folder import RunFolder, read_json

_SEED_SUFFIX = re.compile(r"[-_.]?s(eed)?\d+$")


@dataclass(frozen=True)
class OpenedRun:
    """A run whose test split was opened."""

    name: str
    config: TrainConfig
    summary: dict[str, Any]


def read_run(path: Path) -> OpenedRun:
    """
    Raises:
        UserError: the folder holds no run, or its test split was not opened.
    """
    folder = RunFolder(path)
    config, summary = folder.saved_config(), read_json(folder.summary_file)
    if config is None:
        raise UserError(f"{path} holds no run (no config.json): give folders of runs, such as runs/default")
    if summary is None:
        raise UserError(f"{path} has no result: open its test split first (python -m training.evaluate --run {path})")
    return OpenedRun(path.name, config, summary)


def grouped(runs: Sequence[OpenedRun]) -> list[list[OpenedRun]]:
    """Runs with the same flags but for the seed, in the order of their first ones."""
    ignored = MAY_CHANGE | {"seed"}
    groups: dict[str, list[OpenedRun]] = {}
    for each in runs:
        flags = {name: value for name, value in as_record(each.config).items() if name not in ignored}
        groups.setdefault(f"{each.config.epochs} {sorted(flags.items())}", []).append(each)
    return list(groups.values())


def spread(values: Sequence[float | None], digits: int = 3) -> str:
    """'0.912 ± 0.004': mean and sample standard deviation."""
    if any(value is None for value in values):
        return "undefined"
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def table(runs: Sequence[OpenedRun]) -> str:
    """The Markdown table of the runs and of what is reached without looking at a frame.

    Raises:
        UserError: the runs were tested on different dives.
    """
    if len({str(each.summary["baselines"]) for each in runs}) > 1:
        raise UserError(
            "the runs were tested on different dives (their baselines differ): give runs with the same data and test split"
        )
    header = ["run", "model", "method", "seeds", "Spearman", "R-l2 x100", "MAE (points)"]
    lines = [header, ["---"] * len(header)]
    notes = []
    for group in grouped(runs):
        name, config = _SEED_SUFFIX.sub("", group[0].name), group[0].config
        tests = [each.summary["test"] for each in group]
        lines.append([name, config.model, config.method, str(len(group)), *_figures(tests)])
        if besides := group[0].summary["method_metrics"]:
            spreads = {key: spread([each.summary["method_metrics"][key] for each in group], 2) for key in besides}
            listed = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in spreads.items())
            notes.append(f"\n{name} also predicts: {listed}.")
    for name, values in runs[0].summary["baselines"].items():
        lines.append([f"*without looking: {name}*", "", "", "", *_figures([values])])
    return "\n".join(["| " + " | ".join(cells) + " |" for cells in lines] + notes)


def _figures(results: Sequence[dict[str, Any]]) -> list[str]:
    columns = (("spearman", 3), ("r_l2_x100", 2), ("mae", 2))
    return [spread([result[key] for result in results], digits) for key, digits in columns]


def main(argv: Sequence[str]) -> None:
    if {"-h", "--help"} & set(argv):
        print(__doc__)
        return
    if not argv:
        raise UserError("give run folders: python -m training.report runs/a-s0 runs/a-s1")
    print(table([read_run(Path(name)) for name in argv]))


if __name__ == "__main__":
    run(main)
