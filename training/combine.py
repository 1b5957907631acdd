"""Average the stored predictions of several runs on the same test actions (an ensemble), and apply rules to the classes.

    python -m training.combine runs/a runs/b runs/c --output runs/abc
    python -m training.combine runs/a runs/b --postprocess aiconnect --boxes boxes.csv --output runs/ab
    python -m training.combine runs/a runs/b --postprocess aiconnect --boxes boxes.csv --test False

Members and their weights are chosen on the validation predictions alone, by greedy forward selection with replacement
(Caruana et al., "Ensemble selection from libraries of models", ICML 2004): start with nothing, add the run that gives the best
validation result, again and again, and keep the best state; a run's weight is how often it was added. With --weights equal
nothing is chosen: all runs have the same weight. Then the test predictions of the members are averaged, once: a second call
prints the stored result.

All runs need the same test actions and, with --weights greedy, the same validation actions: an action on which one run
validates must not be one on which another was trained. So runs that differ in method or model, or in the seed of
--split event, can be combined. Runs of --split official with other seeds validate on other actions: give --weights equal.
Folds have other test actions: combine the runs of each fold, and average the results of the folds.

--postprocess NAME corrects the averaged classes by the rules of training/postprocess/NAME.py, also those of a single run. With
--rules better, each rule is applied only if it raises the validation result of the rules before it.

--metric macro_f1 chooses members, weights and rules by that result instead of the accuracy, so that rare classes count as much as
others.

--test False prints the validation results of each run, of the combination and after each rule. It writes nothing and opens no
test split.
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
from data_preparation.detections import Detections, coverage_faults, read_detections
from training import postprocess
from training.compare import check_comparable, check_same_task, predictions_of
from training.config import TrainConfig, as_in_run
from training.data.splits import Splits, load_splits
from training.evaluate import result_lines
from training.postprocess.base import Case, Rule, apply_rules, better_rules, cases_of, with_labels
from training.predictions import predictions_csv, read_predictions
from training.runtime.run_folder import RunFolder, read_json, write_json
from training.tasks.base import Arrays, Predictions, Task

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
    metric: str = flag(
        "default",
        "Validation result that chooses: that of the task (default), or another one that is better when larger, such as macro_f1.",
    )
    postprocess: str = flag(
        "none", "Rules that correct the classes (training/postprocess).", choices=("none", *postprocess.names())
    )
    rules: str = flag(
        "better",
        "better applies a rule only if it raises the validation result of the rules before it; all applies all rules.",
        choices=("better", "all"),
    )
    boxes: Path | None = flag(
        None, "CSV file of a detector's boxes, for rules that need them (data_preparation/detections.py)."
    )
    test: bool = flag(True, "False prints validation results only: nothing is written, and no test split is opened.")
    annotation_path: Path | None = as_in_run("annotation_path")
    train_path: Path | None = as_in_run("train_path")
    test_path: Path | None = as_in_run("test_path")
    leave_out: str | None = as_in_run("leave_out")

    def __post_init__(self) -> None:
        faults = []
        if self.output is None and self.test:
            faults.append("--output is missing: give the folder to write, such as runs/combined")
        needs_boxes = self.postprocess != "none" and postprocess.rules_of(self.postprocess).needs_boxes
        if needs_boxes and self.boxes is None:
            faults.append(f"--postprocess {self.postprocess} needs the boxes of a detector: give --boxes FILE")
        if self.boxes is not None and not needs_boxes:
            faults.append(f"--postprocess {self.postprocess} uses no boxes: leave --boxes out")
        chooses_rules = self.postprocess != "none" and self.rules == "better"
        if self.metric != "default" and self.weights == "equal" and not chooses_rules:
            faults.append(
                f"--metric {self.metric} has nothing to choose: give --weights greedy or --rules better, or leave it out"
            )
        if faults:
            raise UserError.of(faults)

    def postprocess_record(self) -> dict[str, str | None] | None:
        """What identifies the rules and their inputs, or None without rules."""
        if self.postprocess == "none":
            return None
        boxes = hashlib.sha256(self.boxes.read_bytes()).hexdigest()[:16] if self.boxes else None
        name, code = self.postprocess, postprocess.code_digest(self.postprocess)
        return {"name": name, "rules": self.rules, "code": code, "boxes": boxes}


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


def quality_of(predictions: Sequence[Predictions], weights: Sequence[float], metric: str = "default") -> float:
    """The result that --metric names, of the weighted mean of these predictions."""
    task = predictions[0].task
    return task.metrics(average(predictions, weights), predictions[0].truth)[metric_key(task, metric)]


def metric_key(task: Task, metric: str) -> str:
    """The key of the metric that --metric names.

    Raises:
        UserError: the task has no such metric, or it is better when smaller.
    """
    keys = [column.key for column in task.logged if column.key not in task.errors]
    if metric != "default" and metric not in keys:
        raise UserError(
            f"--metric {metric} is not a result of these runs that is better when larger: give one of {', '.join(keys)}"
        )
    return task.metric.key if metric == "default" else metric


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


def check_validated_alike(validated: Sequence[Predictions]) -> None:
    """Check that all runs predicted the same for the same validation actions.

    Raises:
        UserError: they did not.
    """
    first = validated[0]
    for other in validated[1:]:
        check_same_task(first, other)
        if first.keys != other.keys or not np.array_equal(first.truth.values, other.truth.values):
            raise UserError(
                f"{first.name} validated on {len(first.keys)} actions and {other.name} on {len(other.keys)}, {len(set(first.keys) & set(other.keys))} of them in common: members cannot be chosen on them; give --weights equal, or runs with the same validation actions (and --rules all, if there are rules)"
            )


@dataclass(frozen=True)
class Step:
    """A line of the validation table: a run, their mean, or the result after a rule."""

    name: str
    metrics: dict[str, float]
    kept: bool = True


@dataclass(frozen=True)
class Choice:
    """How the predictions of R runs become one: `counts` are their weights (0: not a member), `rules` are applied afterwards.

    `steps` are the validation results on the way, empty if validation was not used.
    """

    counts: list[int]
    rules: list[Rule]
    steps: list[Step]

    @property
    def last(self) -> Step | None:
        """The validation result of the combination."""
        return next((step for step in reversed(self.steps) if step.kept), None)


def choose(
    paths: Sequence[Path],
    config: CombineConfig,
    make_cases: Callable[[Predictions, Arrays], list[Case]],
) -> Choice:
    """Choose weights and rules on the stored validation predictions, as far as the flags want that; otherwise the weights are
    equal, and all rules are applied.

    Raises:
        UserError: a run has no validation predictions, or the runs validated on different actions.
    """
    rules = () if config.postprocess == "none" else postprocess.rules_of(config.postprocess).rules
    counts = [1] * len(paths)
    if config.test and config.weights == "equal" and (config.rules == "all" or not rules):
        return Choice(counts, list(rules), [])
    validated = [validation_predictions_of(path) for path in paths]
    check_validated_alike(validated)
    task, truth, classes = validated[0].task, validated[0].truth, validated[0].classes
    key = metric_key(task, config.metric)
    if config.weights == "greedy":
        counts = greedy_weights(len(validated), lambda counts: quality_of(validated, counts, config.metric))
    steps = [Step(each.name, task.metrics(each.predicted, truth)) for each in validated]
    mean = average(validated, counts)
    if len(validated) > 1:
        shares = " + ".join(
            f"{count / sum(counts):.2f} {v.name}" for count, v in zip(counts, validated, strict=True) if count
        )
        steps.append(Step(shares, task.metrics(mean, truth)))
    cases = make_cases(validated[0], mean) if rules else []

    def after(applied: Sequence[Rule]) -> dict[str, float]:
        return task.metrics(with_labels(mean, apply_rules(applied, cases), classes), truth)

    keeps = [True] * len(rules)
    if rules and config.rules == "better":
        keeps = better_rules(rules, lambda applied: after(applied)[key])
    kept: list[Rule] = []
    for rule, keep in zip(rules, keeps, strict=True):
        steps.append(Step(f"+ {rule.__name__}", after([*kept, rule]), keep))
        kept += [rule] if keep else []
    return Choice(counts, kept, steps)


def table_lines(task: Task, steps: Sequence[Step]) -> list[str]:
    """The validation results as a table."""
    width = max(len(step.name) for step in steps)
    lines = ["  ".join([f"{'validation':{width}}", *(f"{column.title:>10}" for column in task.logged)])]
    for step in steps:
        values = (f"{step.metrics[column.key]:10.4f}" for column in task.logged)
        lines.append("  ".join([f"{step.name:{width}}", *values]) + ("" if step.kept else "  not better: left out"))
    return lines


class CaseMaker:
    """Makes the cases of rules from predictions of a run's actions.

    Raises:
        UserError: the rules do not fit the runs, or the boxes are damaged or do not fit the data set.
    """

    def __init__(self, config: CombineConfig, run: TrainConfig, splits: Splits) -> None:
        self.actions = {action.key: action for action in (*splits.known, *splits.test)}
        self.detections: Detections | None = None
        if config.postprocess == "none":
            return
        if run.task != "label":
            raise UserError(f"--postprocess corrects classes and --method {run.method} predicts none: leave it out")
        rules = postprocess.rules_of(config.postprocess)
        if unknown := [name for name in rules.classes if name not in splits.facts.classes]:
            raise UserError(
                f"--postprocess {config.postprocess} names {', '.join(unknown)} and the data set has the classes {', '.join(splits.facts.classes)}: choose rules for these, or write some (training/postprocess)"
            )
        if config.boxes is not None:
            self.detections = read_detections(config.boxes)
            needed = [*splits.val, *splits.test]
            if faults := coverage_faults(config.boxes, self.detections, needed, splits.data_set):
                raise UserError.of(faults)

    def __call__(self, predictions: Predictions, averaged: Arrays) -> list[Case]:
        """A case for each action of `predictions`, with the averaged probabilities of several runs."""
        actions = [self.actions[key] for key in predictions.keys]
        return cases_of(averaged, actions, predictions.classes, self.detections)


def validate(paths: Sequence[Path], config: CombineConfig) -> list[str]:
    """The table of the validation results of the runs, their mean and the rules.

    Raises:
        UserError: as `combine`.
    """
    first = _with_moved_data(RunFolder(paths[0]).existing_config(), config)
    choice = choose(paths, config, CaseMaker(config, first, load_splits(first)))
    return table_lines(validation_predictions_of(paths[0]).task, choice.steps)


def combine(paths: Sequence[Path], config: CombineConfig) -> None:
    """Choose members, weights and rules, average the test predictions and write the folder --output, complete or not at all.

    Raises:
        UserError: runs without predictions, of different tasks or actions, or whose annotations were moved; rules or boxes
            that do not fit.
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
    splits = load_splits(_with_moved_data(configs[0], config))
    make_cases = CaseMaker(config, configs[0], splits)
    choice = choose(paths, config, make_cases)
    weights = [count / sum(choice.counts) for count in choice.counts]

    tested = [predictions_of(path) for path in paths]
    for other in tested[1:]:
        check_comparable(tested[0], other)
    task, classes = tested[0].task, tested[0].classes
    actions = _test_actions(splits, tested[0], paths[0])
    name = Path(os.path.abspath(config.output)).name
    predicted = average(tested, weights)
    if choice.rules:
        predicted = with_labels(predicted, apply_rules(choice.rules, make_cases(tested[0], predicted)), classes)
    combined = dataclasses.replace(tested[0], name=name, predicted=predicted)
    validation = f"val_{task.metric.key}"
    alone = [summary["checkpoint"].get(validation) for summary in summaries if summary is not None]
    members = [i for i, weight in enumerate(weights) if weight]
    best = max(members, key=lambda i: -np.inf if alone[i] is None else alone[i])
    value = choice.last.metrics[task.metric.key] if choice.last else None
    rules = {"rules": [rule.__name__ for rule in choice.rules]} if config.postprocess != "none" else {}
    summary = {
        "task": task.name,
        "checkpoint": {"epoch": None, "members": len(members), validation: value, **rules},
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
    record = {
        "weights": config.weights,
        "metric": config.metric,
        "runs": runs,
        "postprocess": config.postprocess_record(),
        "validation": table_lines(task, choice.steps) if choice.steps else [],
        "comparison": task.comparison(tested[best], combined),
    }
    with reporting_write_errors(config.output), atomic_folder(config.output) as folder:
        text = predictions_csv(task, combined.predicted, actions, classes)
        write_atomic(RunFolder(folder).predictions_file, text.encode())
        title = f"{name}: {result_lines(summary)[0]}"
        task.draw(combined.predicted, actions, classes, folder / task.plot_file, title)
        write_json(RunFolder(folder).combination_file, record)
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
    record, summary = read_json(RunFolder(output).combination_file), RunFolder(output).summary()
    try:
        assert record is not None
        assert summary is not None
        weights = [f"  {each['weight']:.2f}  {each['name']}" for each in record["runs"]]
        validation = record.get("validation", [])
        lines = [*result_lines(summary), f"Weights ({record['weights']}):", *weights]
        return [*lines, *(["", *validation] if validation else []), "", *record["comparison"]]
    except (AssertionError, KeyError, TypeError):
        raise UserError(f"{output} holds no combination, or a damaged one: give another --output") from None


def check_same_runs(paths: Sequence[Path], config: CombineConfig) -> None:
    """Check that the existing folder --output holds the combination of these runs.

    Raises:
        UserError: it does not.
    """
    assert config.output is not None
    record = read_json(RunFolder(config.output).combination_file) or {}
    known = sorted(each.get("predictions", "") for each in record.get("runs", []))
    if known != sorted(map(digest, paths)) or record.get("weights") != config.weights:
        raise UserError(f"{config.output} exists and is not the combination of these runs: give another --output")
    if record.get("metric", "default") != config.metric:
        raise UserError(f"{config.output} exists and was chosen by another --metric: give another --output")
    if record.get("postprocess") != config.postprocess_record():
        raise UserError(f"{config.output} exists and was made with other rules or boxes: give another --output")


def main(argv: Sequence[str]) -> None:
    names = list(takewhile(lambda word: not word.startswith("-"), argv))
    config = parse(CombineConfig, argv[len(names) :], prog="python -m training.combine RUN RUN...", description=__doc__)
    paths = [Path(name) for name in names]
    least = 2 if config.test and config.postprocess == "none" else 1
    if len({path.resolve() for path in paths}) < max(len(paths), least):
        raise UserError(
            "give two different run folders or more: python -m training.combine runs/a runs/b --output runs/ab"
        )
    if not config.test:
        print("\n".join(validate(paths, config)))
        return
    assert config.output is not None
    if config.output.exists():
        check_same_runs(paths, config)
    else:
        combine(paths, config)
    print("\n".join(stored_lines(config.output)))


if __name__ == "__main__":
    run(main)
