"""Average the stored predictions of several runs on the same test actions (an ensemble).

    python -m training.combine runs/a runs/b runs/c --output runs/abc

Members and their weights are chosen on the validation predictions alone, by greedy forward selection with replacement
(Caruana et al., "Ensemble selection from libraries of models", ICML 2004): start with nothing, add the run that gives the best
validation result, again and again, and keep the best state; a run's weight is how often it was added. With --weights equal
nothing is chosen: all runs have the same weight. Then the test predictions of the members are averaged, once: a second call
prints the stored result.

All runs need the same test actions and, with --weights greedy, the same validation actions: an action on which one run
validates must not be one on which another was trained. So runs that differ in method or model, or in the seed of
--split event, can be combined. Runs of --split official with other seeds validate on other actions: give --weights equal.
Folds have other test actions: combine the runs of each fold, and average the results of the folds.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np

from data_preparation.actions import Action
from data_preparation.common.command_line import flag, parse, run
from data_preparation.common.errors import UserError
from data_preparation.common.files import atomic_folder, reporting_write_errors, write_atomic
from training.compare import check_comparable, check_same_task, predictions_of
from training.config import TrainConfig, as_in_run
from training.data.splits import Splits, load_splits
from training.evaluate import result_lines
from training.predictions import predictions_csv, read_predictions
from training.runtime.run_folder import RunFolder, read_json, write_json
from training.tasks.base import Arrays, Predictions

RECORD = "combination.json"
DATA = ("annotation_path", "train_path", "test_path", "leave_out")  # flags for moved data
_ROUNDS = 50  # of the greedy selection; the weights are multiples of 1/50 at the finest


@dataclass(frozen=True)
class CombineConfig:
    """Average the predictions of runs. Give paths only if the data were moved since the trainings."""

    output: Path | None = flag(None, "Folder to write, such as runs/combined.")
    weights: str = flag(
        "greedy",
        "greedy chooses members and weights on the validation predictions; equal gives all runs the same weight.",
        choices=("greedy", "equal"),
    )
    annotation_path: Path | None = as_in_run("annotation_path")
    train_path: Path | None = as_in_run("train_path")
    test_path: Path | None = as_in_run("test_path")
    leave_out: str | None = as_in_run("leave_out")

    def __post_init__(self) -> None:
        if self.output is None:
            raise UserError("--output is missing: give the folder to write, such as runs/combined")


def average(predictions: Sequence[Predictions], weights: Sequence[float]) -> Arrays:
    """The weighted mean of scores or class probabilities."""
    total = sum(weights)
    return {
        name: np.sum([w / total * p.predicted[name] for w, p in zip(weights, predictions, strict=True)], axis=0)
        for name in predictions[0].predicted
    }


def greedy_weights(count: int, quality: Callable[[Sequence[int]], float]) -> list[int]:
    """How often each of `count` members is chosen by greedy forward selection with replacement.

    `quality` of a list of counts is the validation result; NaN is worse than any number. Of equally good members the first is
    chosen, and of equally good states the one after the fewest rounds.
    """

    def value(counts: Sequence[int]) -> float:
        found = quality(counts)
        return -np.inf if np.isnan(found) else found

    counts, best, best_value = [0] * count, [1] * count, -np.inf
    for _ in range(_ROUNDS):
        candidates = [[n + (i == added) for i, n in enumerate(counts)] for added in range(count)]
        values = [value(candidate) for candidate in candidates]
        counts = candidates[int(np.argmax(values))]
        if max(values) > best_value:
            best, best_value = counts, max(values)
    return best


def quality_of(predictions: Sequence[Predictions], weights: Sequence[float]) -> float:
    """The metric by which validation chooses, of the weighted mean of these predictions."""
    task = predictions[0].task
    return task.metrics(average(predictions, weights), predictions[0].truth)[task.metric.key]


def validation_predictions_of(path: Path) -> Predictions:
    """The validation predictions of a run folder.

    Raises:
        UserError: val_predictions.csv is missing or damaged.
    """
    folder = RunFolder(path)
    try:
        return read_predictions(folder.val_predictions_file, folder.title)
    except OSError:
        raise UserError(
            f"{path} has no {folder.val_predictions_file.name}: start its training again, which writes the file without training a finished run further"
        ) from None


def check_validated_alike(first: Predictions, other: Predictions) -> None:
    """Check that two runs predicted the same for the same validation actions.

    Raises:
        UserError: they did not.
    """
    check_same_task(first, other)
    if first.keys != other.keys or not np.array_equal(first.truth.values, other.truth.values):
        raise UserError(
            f"{first.name} validated on {len(first.keys)} actions and {other.name} on {len(other.keys)}, {len(set(first.keys) & set(other.keys))} of them in common: members cannot be chosen on them; give --weights equal, or runs with the same validation actions"
        )


def choose(validated: Sequence[Predictions]) -> tuple[list[int], float]:
    """The weight of each run (0: not a member) and the validation result of the combination, from validation predictions.

    Raises:
        UserError: the runs validated on different actions.
    """
    for other in validated[1:]:
        check_validated_alike(validated[0], other)
    weights = greedy_weights(len(validated), lambda counts: quality_of(validated, counts))
    return weights, quality_of(validated, weights)


def combine(paths: Sequence[Path], config: CombineConfig) -> None:
    """Choose members and weights, average the test predictions and write the folder --output, complete or not at all.

    Raises:
        UserError: runs without predictions, of different tasks or actions, or whose annotations were moved.
    """
    assert config.output is not None
    folders = [RunFolder(path) for path in paths]
    configs, summaries = [folder.existing_config() for folder in folders], [folder.summary() for folder in folders]
    if closed := [path for path, summary in zip(paths, summaries, strict=True) if summary is None]:
        raise UserError.of(
            [
                f"{path} has no result: open its test split first (python -m training.evaluate --run {path})"
                for path in closed
            ]
        )
    counts, value = [1] * len(paths), None
    if config.weights == "greedy":
        counts, value = choose([validation_predictions_of(path) for path in paths])
    weights = [count / sum(counts) for count in counts]

    tested = [predictions_of(path) for path in paths]
    for other in tested[1:]:
        check_comparable(tested[0], other)
    task, classes = tested[0].task, tested[0].classes
    splits = load_splits(_with_moved_data(configs[0], config))
    actions = _test_actions(splits, tested[0], paths[0])
    name = Path(os.path.abspath(config.output)).name
    combined = dataclasses.replace(tested[0], name=name, predicted=average(tested, weights))
    validation = f"val_{task.metric.key}"
    alone = [summary["checkpoint"].get(validation) for summary in summaries if summary is not None]
    members = [i for i, weight in enumerate(weights) if weight]
    best = max(members, key=lambda i: -np.inf if alone[i] is None else alone[i])
    summary = {
        "task": task.name,
        "checkpoint": {"epoch": None, "members": len(members), validation: value},
        "method_metrics": {},
        **task.summary(combined.predicted, splits.known, actions, classes),
    }
    runs = [
        {
            "path": os.path.abspath(path),
            "name": folder.title,
            "weight": weight,
            validation: own,
            "predictions": digest(path),
        }
        for path, folder, weight, own in zip(paths, folders, weights, alone, strict=True)
    ]
    record = {"weights": config.weights, "runs": runs, "comparison": task.comparison(tested[best], combined)}
    with reporting_write_errors(config.output), atomic_folder(config.output) as folder:
        text = predictions_csv(task, combined.predicted, actions, classes)
        write_atomic(RunFolder(folder).predictions_file, text.encode())
        title = f"{name}: {result_lines(summary)[0]}"
        task.draw(combined.predicted, actions, classes, folder / task.plot_file, title)
        write_json(folder / RECORD, record)
        write_json(RunFolder(folder).summary_file, summary)


def _with_moved_data(saved: TrainConfig, config: CombineConfig) -> TrainConfig:
    """The configuration of a run with the given paths of its annotations and lists, and without captions."""
    given = {name: path for name in DATA if (path := getattr(config, name)) is not None}
    changes: dict[str, Any] = {**given, "captions_path": "none", "vocabulary_path": "none"}
    return dataclasses.replace(saved, **changes)


def _test_actions(splits: Splits, tested: Predictions, path: Path) -> list[Action]:
    """The test actions of a run in the order of its predictions.

    Raises:
        UserError: the annotations and lists are not those of the run.
    """
    by_key = {action.key: action for action in splits.test}
    if set(by_key) == set(tested.keys):
        actions = [by_key[key] for key in tested.keys]
        if np.array_equal(tested.task.truth(actions).values, tested.truth.values):
            return actions
    raise UserError(
        f"the annotations and lists of {path} give other test actions than its predictions.csv has: give the data of that run ({', '.join(f'--{name}' for name in DATA)})"
    )


def digest(path: Path) -> str:
    """A hash of a run's predictions.csv, which identifies the run wherever its folder is."""
    return hashlib.sha256(RunFolder(path).predictions_file.read_bytes()).hexdigest()[:16]


def stored_lines(output: Path) -> list[str]:
    """The result of a combination, its members, and the comparison with its best member.

    Raises:
        UserError: the folder holds no combination, or a damaged one.
    """
    record, summary = read_json(output / RECORD), RunFolder(output).summary()
    try:
        assert record is not None
        assert summary is not None
        weights = [f"  {each['weight']:.2f}  {each['name']}" for each in record["runs"]]
        return [*result_lines(summary), f"Weights ({record['weights']}):", *weights, "", *record["comparison"]]
    except (AssertionError, KeyError, TypeError):
        raise UserError(f"{output} holds no combination, or a damaged one: give another --output") from None


def check_same_runs(paths: Sequence[Path], config: CombineConfig) -> None:
    """Check that the existing folder --output holds the combination of these runs.

    Raises:
        UserError: it does not.
    """
    assert config.output is not None
    record = read_json(config.output / RECORD) or {}
    known = sorted(each.get("predictions", "") for each in record.get("runs", []))
    if known != sorted(map(digest, paths)) or record.get("weights") != config.weights:
        raise UserError(f"{config.output} exists and is not the combination of these runs: give another --output")


def main(argv: Sequence[str]) -> None:
    names = list(takewhile(lambda word: not word.startswith("-"), argv))
    config = parse(CombineConfig, argv[len(names) :], prog="python -m training.combine RUN RUN...", description=__doc__)
    paths = [Path(name) for name in names]
    if len({path.resolve() for path in paths}) < max(len(paths), 2):
        raise UserError(
            "give two different run folders or more: python -m training.combine runs/a runs/b --output runs/ab"
        )
    assert config.output is not None
    if config.output.exists():
        check_same_runs(paths, config)
    else:
        combine(paths, config)
    print("\n".join(stored_lines(config.output)))


if __name__ == "__main__":
    run(main)
