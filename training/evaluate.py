"""Evaluate the best checkpoint (by validation) of a finished run on the test split. This opens the test split, once per run.

    python -m training.evaluate --run runs/<name> [--root_dir ... if the data were moved]

If the test split of the run was opened before, the command prints that result again.

`python -m training.train --evaluate True` does the same at the end of a training.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from data_preparation.actions import Action, plain_key
from data_preparation.common.command_line import flag, parse, run
from data_preparation.common.errors import UserError
from data_preparation.common.files import reporting_write_errors, write_atomic
from training.config import TrainConfig, as_in_run, moved_data_fault, plugin_paths, reopened
from training.data.dataset import ActionDataset, label_faults
from training.data.machine import check_machine
from training.data.sources import source_of
from training.data.splits import Splits, load_splits
from training.data.workers import start_server
from training.engine.prediction import Predictor
from training.metrics import (
    baselines,
    bootstrap_interval,
    constant_prediction_warning,
    group_metrics,
    predicted_range,
    relative_l2_rows,
    score_metrics,
    spearman_rows,
)
from training.model import ScoringModel, build_model
from training.plots import draw_scores
from training.runtime import checkpoint, collectives
from training.runtime.collectives import gather_objects
from training.runtime.logs import start_log
from training.runtime.ranks import Ranks, read_ranks
from training.runtime.run_folder import RunFolder, write_json

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
    """Score the test dives with best.pt; write predictions.csv, scores.png and summary.json; return the summary.

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
    best = checkpoint.load(path, device, required={"model", "position"})
    try:
        model.load_state_dict(best["model"])
    except RuntimeError:
        raise UserError(
            f"{run.best_checkpoint} does not fit the network of {run.config_file}: restore both from a copy"
        ) from None
    data = ActionDataset(splits.test, config, model.method, augment=False, pool=splits.known)
    predictor = Predictor(config, ranks, device, between_batches)
    predictor.encode_references(model, data.references, keep_known=True)
    rows = predictor.predict(model, data)
    predicted = model.method.predict(rows.outputs, rows.given)["score"].tolist()
    summary = None
    if ranks.is_first:
        summary = summarise(predicted, splits, best["position"])
        summary["method_metrics"] = model.method.metrics(rows.outputs, rows.labels)
        columns = model.method.columns(rows.outputs)
        with reporting_write_errors(run.predictions_file):
            write_atomic(run.predictions_file, predictions_csv(predicted, splits.test, columns).encode())
        draw_scores(predicted, splits.test, run.scores_plot, title=f"{run.title}: {result_line(summary)}")
        write_json(run.summary_file, summary)
        summary = run.summary()
    return gather_objects(summary)[0]


def summarise(predicted: Sequence[float], splits: Splits, position: dict[str, Any]) -> dict[str, Any]:
    """The content of summary.json: metrics with 95 % intervals, baselines that do not use the video, metrics by group."""
    true = [d.need("final_score") for d in splits.test]
    return {
        "checkpoint": {"epoch": position["best_epoch"], "val_spearman": position["best_spearman"]},
        "test": {
            "dives": len(splits.test),
            **score_metrics(predicted, true),
            "predicted_range": predicted_range(predicted),
            "spearman_ci95": bootstrap_interval(predicted, true, spearman_rows),
            "r_l2_x100_ci95": bootstrap_interval(predicted, true, relative_l2_rows),
        },
        "baselines": baselines(splits.known, splits.test),
        "groups": group_metrics(predicted, splits.test),
    }


def _number(value: float | None) -> str:
    return "undefined" if value is None or math.isnan(value) else f"{value:.3f}"


def result_line(summary: dict[str, Any]) -> str:
    """The result in one line."""
    test = summary["test"]
    low, high = (_number(value) for value in test["spearman_ci95"])
    return (
        f"Test Spearman {_number(test['spearman'])} (95 % interval {low} to {high}), R-l2 x100 {_number(test['r_l2_x100'])}, "
        f"{test['dives']} dives, checkpoint of epoch {summary['checkpoint']['epoch']}"
    )


def result_lines(summary: dict[str, Any]) -> list[str]:
    """The result, warnings and the baselines, one line each."""
    more = summary["method_metrics"]
    worse_than_mean = (summary["test"]["r_l2_x100"] or 0) > (
        summary["baselines"]["train mean"]["r_l2_x100"] or math.inf
    )
    return [
        result_line(summary),
        *([f"  {warning}"] if (warning := constant_prediction_warning(summary["test"].get("predicted_range"))) else []),
        *(["  Worse than predicting the training mean: the model has not learned yet."] if worse_than_mean else []),
        *([f"  {', '.join(f'{name} {_number(value)}' for name, value in more.items())}"] if more else []),
        *(
            f"  without video, {name}: Spearman {_number(values['spearman'])}, R-l2 x100 {_number(values['r_l2_x100'])}"
            for name, values in summary["baselines"].items()
        ),
    ]


def predictions_csv(predicted: Sequence[float], dives: Sequence[Action], columns: Mapping[str, Sequence[Any]]) -> str:
    """One line per dive: true and predicted score in points, then the additional columns of the method."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    header = ["video", "dive", "start_frame", "end_frame", "difficulty", "true_score", "predicted_score"]
    writer.writerow([*header, *columns])
    for score, d, *more in zip(predicted, dives, *columns.values(), strict=True):
        written = [*plain_key(d.key), d.start_frame, d.end_frame, d.difficulty, d.final_score, f"{score:.6f}"]
        writer.writerow([*written, *more])
    return text.getvalue()


@dataclass(frozen=True)
class _EvaluateConfig:
    """Evaluate a finished run on the test split, once. Give paths only if the data were moved since the training."""

    run: Path = flag(None, "Run folder.")
    gpu: bool = flag(True, "Use the GPU if there is one.")
    root_dir: Path | None = as_in_run("root_dir")
    annotation_path: Path | None = as_in_run("annotation_path")
    train_path: Path | None = as_in_run("train_path")
    test_path: Path | None = as_in_run("test_path")
    captions_path: str | None = as_in_run("captions_path")
    vocabulary_path: str | None = as_in_run("vocabulary_path")
    precision: str | None = as_in_run("precision")
    workers: int | None = as_in_run("workers")
    prefetch: int | None = as_in_run("prefetch")

    def __post_init__(self) -> None:
        if self.run is None:
            raise UserError("--run is missing: give the run folder, such as runs/default")


# with the data paths of all backbones and methods
EvaluateConfig = dataclasses.make_dataclass(
    "EvaluateConfig",
    [(name, Path | None, as_in_run(name)) for name in plugin_paths()],
    bases=(_EvaluateConfig,),
    namespace={"__doc__": _EvaluateConfig.__doc__},
    frozen=True,
)


def main(argv: Sequence[str]) -> int:
    options: Any = parse(EvaluateConfig, argv, prog="python -m training.evaluate")
    folder = RunFolder(options.run)
    config = folder.existing_config()
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
    folder.check_splits(splits.record() | source.record(splits.known))
    device = collectives.choose_device(options.gpu, ranks)
    model = build_model(config, splits.facts).to(device)
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
