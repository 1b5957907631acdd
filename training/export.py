"""Write the best checkpoint of a run as a folder that needs neither the run folder nor the data: see training.pretrained.

    python -m training.export --run runs/NAME --out FOLDER [--onnx True]

The folder is written whole or not at all, and it names no path of this machine. The test split is not opened.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_preparation.common.command_line import flag, parse, run
from data_preparation.common.errors import UserError
from data_preparation.common.files import atomic_folder, reporting_write_errors, sha256
from training import novelty, pretrained
from training.calibration import coverage, coverage_lines, read_calibration
from training.config import TrainConfig
from training.model_card import model_card
from training.onnx_export import write_onnx
from training.predictions import read_predictions
from training.runtime import checkpoint
from training.runtime.logs import start_log
from training.runtime.ranks import Ranks
from training.runtime.run_folder import MODEL_FORMAT, RunFolder, environment_record, read_json, write_json
from training.scorer import facts_of_run


@dataclass(frozen=True)
class ExportConfig:
    """Write the best checkpoint of a run as a folder to hand on: weights, configuration and model card."""

    run: Path = flag(None, "Run folder.")
    out: Path = flag(None, "Folder to write; it must not exist.")
    onnx: bool = flag(False, "Also write the network as model.onnx (pip install onnx onnxscript).")

    def __post_init__(self) -> None:
        missing = {
            "--run": (self.run, "the run folder, such as runs/default"),
            "--out": (self.out, "the folder to write"),
        }
        if faults := [f"{name} is missing: give {what}" for name, (value, what) in missing.items() if value is None]:
            raise UserError.of(faults)


def export(folder: RunFolder, out: Path, *, onnx: bool = False) -> None:
    """Write the folder `out` from the best checkpoint of a run.

    Raises:
        UserError: the run has no best checkpoint or reads no video, `out` exists or cannot be written, or the network cannot be
        written as ONNX.
    """
    config = folder.existing_config()
    if out.exists():
        raise UserError(f"--out {out} exists: give another folder, or delete it")
    if config.reads != "video":
        raise UserError(
            f"{folder.path} was trained on a feature file and holds no network that reads video: export a run that was trained on frames"
        )
    if not folder.best_checkpoint.exists():
        raise UserError(f"{folder.path} has no best checkpoint yet: train it for at least one epoch")
    facts, stored = facts_of_run(folder, config)
    data = {**facts.record(), "frames": asdict(stored)}
    content = checkpoint.load(folder.best_checkpoint, required={"model", "position"})
    with reporting_write_errors(out), atomic_folder(out) as written:
        _write(written, folder, config, data, content, onnx)


def _write(
    out: Path, folder: RunFolder, config: TrainConfig, data: dict[str, Any], content: dict[str, Any], onnx: bool
) -> None:
    flags, files = pretrained.shared_flags(config)
    for name, source in files.items():
        if not source.is_file():
            raise UserError(f"{source} is missing and the network is built from it: restore it from a copy")
        shutil.copyfile(source, out / name)
    for name in pretrained.CALIBRATION:
        if (folder.path / name).exists():
            shutil.copyfile(folder.path / name, out / name)
    pretrained.write_weights(out / pretrained.WEIGHTS, content)
    record = {
        MODEL_FORMAT: pretrained.VERSION,
        "flags": flags,
        "data": data,
        "checkpoint": content["position"],
        "result": folder.summary(),
        "trained_with": _without_machine(read_json(folder.path / "environment.json") or {}),
        "exported_with": _without_machine(environment_record()),
        "sha256": sha256(out / pretrained.WEIGHTS),
    }
    write_json(out / pretrained.CONFIG, record)
    found = pretrained.load(out)  # what is handed on can be read
    shapes = write_onnx(out / pretrained.ONNX, found.config, found.model, found.facts) if onnx else []
    (out / pretrained.CARD).write_text(model_card(folder, found, coverage_of(folder), shapes), encoding="utf-8")


def coverage_of(run: RunFolder) -> list[str]:
    """What is known about the intervals of a run and about the clips that it declines, a sentence each.

    Raises:
        UserError: a file is damaged.
    """
    calibration, distances = read_calibration(run), novelty.load(run.novelty_file)
    lines = calibration.lines() if calibration else ["This model gives no intervals: its run was not calibrated."]
    if calibration and run.summary() is not None:
        groups = coverage(calibration, read_predictions(run.predictions_file, run.title))
        lines += [f"On the test split: {' '.join(line.split())}" for line in coverage_lines(groups)]
    if distances is None:
        return [*lines, "This model does not decline clips unlike those of its training: its run was not calibrated."]
    return [*lines, f"Clips unlike those of its training are declined: {distances.text()}."]


def _without_machine(environment: dict[str, Any]) -> dict[str, Any]:
    """An environment record without the name of the host and the command line, which holds paths."""
    return {name: value for name, value in environment.items() if name not in ("host", "command")}


def main(argv: Sequence[str]) -> int:
    options = parse(ExportConfig, argv, prog="python -m training.export")
    start_log("INFO", Ranks())
    export(RunFolder(options.run), options.out, onnx=options.onnx)
    print(f"{options.out}: {', '.join(sorted(file.name for file in options.out.iterdir()))}")
    return 0


if __name__ == "__main__":
    run(main)
