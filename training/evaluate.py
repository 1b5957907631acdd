"""Evaluate the best checkpoint (by validation) of a finished run on the test split. This opens the test split, once per run.

    python -m training.evaluate --run runs/<name> [--root_dir ... if the data were moved]

If the test split of the run was opened before, the command prints that result again.

`python -m training.train --evaluate True` does the same at the end of a training.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch

from data_preparation.common.command_line import parse, run
from data_preparation.common.errors import UserError
from data_preparation.common.files import reporting_write_errors, write_atomic
from training import tasks
from training.calibration import write_calibration
from training.config import ReopenConfig, TrainConfig, moved_data_fault, reopened, with_plugin_paths
from training.data.dataset import ActionDataset, label_faults
from training.data.machine import check_machine
from training.data.sources import source_of
from training.data.splits import Splits, load_splits
from training.data.workers import start_server
from training.engine.prediction import Predictor
from training.engine.state import Position, load_best
from training.html_report.page import write_report_or_warn
from training.model import ScoringModel, build_model
from training.predictions import predictions_csv
from training.runtime import checkpoint, collectives
from training.runtime.collectives import gather_objects
from training.runtime.logs import start_log
from training.runtime.ranks import Ranks, read_ranks
from training.runtime.run_folder import RunFolder, write_json
from training.tasks import task_of
from training.tasks.base import Arrays, Task

log = logging.getLogger(__name__)


def open_test_split(
    run: RunFolder,
    config: TrainConfig,
    model: ScoringModel,
    ranks: Ranks,
    device: torch.device,
    splits: Splits,
    between_batches: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Predict the test actions with best.pt; write predictions.csv, the plot and summary.json; return the summary.

    If the test split was opened before, return that result: choosing among several evaluations would be model selection on
    the test set.
    """
    # only the first rank reads the file and decides: on a shared file system other ranks may see an older state
    opened = gather_objects(run.summary() if ranks.is_first else None)[0]
    if opened is not None:
        log.log(
            logging.WARNING if ranks.is_first else logging.DEBUG,
            "The test split was opened before, with the checkpoint of epoch %d; it is not opened again",
            opened["checkpoint"]["epoch"],
        )
        return opened
    path = collectives.wait_until_visible(run.best_checkpoint, checkpoint.fingerprint)
    assert path is not None, "the caller has checked that there is a best checkpoint"
    position = load_best(run, model, device)
    data = ActionDataset(splits.test, config, model.method, augment=False, pool=splits.known, all_views=True)
    predictor = Predictor(config, ranks, device, between_batches)
    predictor.encode_references(model, data.references, keep_known=True)
    rows, predicted = predictor.predict_views(model, data)
    summary = None
    if ranks.is_first:
        task = task_of(config.task)
        summary = summarise(task, predicted, splits, position)
        summary["method_metrics"] = model.method.metrics(rows.outputs, rows.labels)
        summary["notes"] = model.method.notes() + ([f"mean of {config.views_text}"] if config.views_text else [])
        columns = model.method.columns(rows.outputs)
        with reporting_write_errors(run.predictions_file):
            text = predictions_csv(task, predicted, splits.test, splits.facts.classes, columns)
            write_atomic(run.predictions_file, text.encode())
        title = f"{run.title}: {result_lines(summary)[0]}"
        task.draw(predicted, splits.test, splits.facts.classes, run.path / task.plot_file, title)
        write_json(run.summary_file, summary)
        write_calibration(run, task)  # again, now with the coverage of the test actions
        write_report_or_warn(run)
        summary = run.summary()
    return gather_objects(summary)[0]


def summarise(task: Task, predicted: Arrays, splits: Splits, position: Position) -> dict[str, Any]:
    """The content of summary.json: metrics with 95 % intervals, baselines that do not use the video, metrics by group."""
    return {
        "task": task.name,
        "checkpoint": {"epoch": position.best_epoch, f"val_{task.metric.key}": position.best},
        **task.summary(predicted, splits.known, splits.test, splits.facts.classes),
    }


def result_lines(summary: dict[str, Any]) -> list[str]:
    """The result, warnings and the baselines, one line each."""
    first, *more = task_of(summary.get("task", tasks.DEFAULT)).result_lines(summary)
    return [", ".join([first, *summary.get("notes", [])]), *more]


@dataclass(frozen=True)
class _EvaluateConfig(ReopenConfig):
    """Evaluate a finished run on the test split, once. Give paths only if the data were moved since the training."""


EvaluateConfig = with_plugin_paths(_EvaluateConfig)


def main(argv: Sequence[str]) -> int:
    options: Any = parse(EvaluateConfig, argv, prog="python -m training.evaluate")
    folder = RunFolder(options.run)
    config = folder.existing_config()
    if not task_of(config.task).has_test:
        raise UserError(
            f"{options.run} is a pretraining and has no test split: give {folder.best_checkpoint} to --pretrained_model of a training, and evaluate that"
        )
    opened = folder.summary()
    if opened is not None:
        print("\n".join(result_lines(opened)))
        return 0
    if not folder.best_checkpoint.exists():
        raise UserError(f"{options.run} has no best checkpoint yet: train it for at least one epoch")
    progress, trained = folder.progress(), len(folder.metrics("epoch"))
    epochs = min((progress and progress.epochs) or config.epochs, config.epochs)
    if (progress is None or progress.state != "finished") and trained < epochs:
        raise UserError(
            f"{options.run} has trained {trained} of {epochs} epochs: let it finish first, because the test split is opened only once"
        )
    # the network's weights come from best.pt
    config = dataclasses.replace(reopened(config, options), pretrained_model="none", evaluate=True)
    if fault := moved_data_fault(config, options, "python -m training.evaluate"):
        raise UserError(fault)
    ranks = read_ranks()
    start_log(config.loglevel, ranks)
    start_server(config.loader_workers)
    splits = load_splits(config)
    source = source_of(config)
    if faults := task_of(config.task).faults([*splits.known, *splits.test], splits.facts.classes):
        raise UserError.of(faults)
    device = collectives.choose_device(options.gpu, ranks)
    model = build_model(config, splits.facts).to(device)
    folder.check_splits(splits.record() | source.record(splits.known) | model.method.record(splits.known))
    if faults := source.faults(splits.test) + label_faults(splits.test, model.method):
        raise UserError.of(faults)
    check_machine(config, model, ranks, device, splits, trains=False)

    def evaluate() -> int:
        collectives.connect(ranks, device, timedelta(minutes=config.peer_timeout_min))
        collectives.on_first_rank(folder.acquire_lock)
        opened = open_test_split(folder, config, model, ranks, device, splits)
        if ranks.is_first:
            print("\n".join(result_lines(opened)))
        collectives.disconnect()
        return 0

    return collectives.exit_status(evaluate)


if __name__ == "__main__":
    run(main)
