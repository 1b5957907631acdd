"""Write the calibration of a run, from which `python -m training.predict` makes intervals, and print how well it fits.

    python -m training.calibrate --run runs/<name> [--root_dir ... if the data were moved]

It also writes the distances from the training clips, by which the run declines clips of other things (calibration.npz). A training
does this at its end. The command is for runs of older versions; it needs the data of the run only if
val_predictions.csv or the distances are missing, or are not those of the best checkpoint. If the test split was opened, it also prints the coverage of the test predictions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

from data_preparation.common.command_line import parse, run
from data_preparation.common.errors import UserError
from training.calibration import coverage_lines, write_calibration
from training.config import ReopenConfig, TrainConfig, moved_data_fault, reopened, with_plugin_paths
from training.data.dataset import ActionDataset
from training.data.sources import source_of
from training.data.splits import Splits, load_splits
from training.data.workers import start_server
from training.engine.prediction import Predictor
from training.engine.state import Position, load_best
from training.engine.trainer import write_val_predictions
from training.model import ScoringModel, build_model
from training.novelty import describe_all, measured, save, some_of, stored_epoch
from training.runtime import checkpoint, collectives
from training.runtime.ranks import Ranks
from training.runtime.run_folder import RunFolder
from training.tasks import task_of
from training.tasks.base import Task


@dataclasses.dataclass(frozen=True)
class _CalibrateConfig(ReopenConfig):
    """Write the calibration of a trained run. Give paths only if the data were moved since the training."""


CalibrateConfig = with_plugin_paths(_CalibrateConfig)


class _Opened(NamedTuple):
    """A run with its best checkpoint and its data."""

    model: ScoringModel
    predictor: Predictor
    splits: Splits
    train_data: ActionDataset
    val_data: ActionDataset
    epoch: int  # of the best checkpoint


def _open(folder: RunFolder, config: TrainConfig, options: Any) -> _Opened:
    """Open a run to compute what it lacks.

    Raises:
        UserError: a file is missing or damaged, or the data were moved or are not those of the run.
    """
    if fault := moved_data_fault(config, options, "python -m training.calibrate"):
        raise UserError(fault)
    start_server(config.loader_workers)
    splits, source = load_splits(config), source_of(config)
    task = task_of(config.task)
    if faults := task.faults(splits.known, splits.facts.classes) or source.faults(splits.known):
        raise UserError.of(faults)
    device = collectives.choose_device(options.gpu, Ranks())
    model = build_model(config, splits.facts).to(device)
    folder.check_splits(splits.record() | source.record(splits.known) | model.method.record(splits.known))
    epoch = load_best(folder, model, device).best_epoch
    train_data, val_data = (
        ActionDataset(actions, config, model.method, augment=False, pool=splits.train)
        for actions in (splits.train, splits.val)
    )
    return _Opened(model, Predictor(config, Ranks(), device), splits, train_data, val_data, epoch)


def predict_validation(folder: RunFolder, opened: _Opened, task: Task) -> None:
    """Write val_predictions.csv with the best checkpoint of a run."""
    _, predicted = opened.predictor.predict_views(opened.model, opened.val_data.with_all_views())
    views = opened.val_data.config.views_text
    write_val_predictions(folder, task, predicted, opened.splits.val, opened.splits.facts.classes, opened.epoch, views)


def measure_distances(folder: RunFolder, opened: _Opened) -> str:
    """Write calibration.npz with the best checkpoint of a run; return its limit in words."""
    train, val = (
        describe_all(opened.model, opened.predictor, data) for data in (some_of(opened.train_data), opened.val_data)
    )
    return save(folder.novelty_file, measured(train, val, opened.train_data, opened.epoch))


def main(argv: Sequence[str]) -> int:
    options: Any = parse(CalibrateConfig, argv, prog="python -m training.calibrate")
    folder = RunFolder(options.run)
    config = dataclasses.replace(reopened(folder.existing_config(), options), pretrained_model="none")
    if not task_of(config.task).has_test:
        raise UserError(
            f"{options.run} is a pretraining, which scores nothing: give the run of a training that started from it"
        )
    if not folder.best_checkpoint.exists():
        raise UserError(f"{options.run} has no best checkpoint yet: train it for at least one epoch")
    folder.refuse_if_locked()
    task = task_of(config.task)
    best = checkpoint.load(folder.best_checkpoint, required={"model", "position"})
    epoch = Position.from_record(best["position"]).best_epoch
    opened = None
    if folder.val_predictions_origin() != (epoch, config.views_text):
        opened = _open(folder, config, options)
        predict_validation(folder, opened, task)
    found = write_calibration(folder, task)
    assert found is not None
    print("\n".join([f"{folder.calibration_file} written", *found.lines()]))
    if found.tested:
        print("\n".join(["Coverage of the test predictions:", *(f"  {line}" for line in coverage_lines(found.tested))]))
    if stored_epoch(folder.novelty_file) != epoch:  # last, because it needs the frames of the training, too
        text = measure_distances(folder, opened or _open(folder, config, options))
        print(f"{folder.novelty_file} written\n{text}")
    return 0


if __name__ == "__main__":
    run(main)
