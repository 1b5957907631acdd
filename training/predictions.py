"""Files of predictions (predictions.csv): a line for each action, with the columns of the task and of the method."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_preparation.actions import Action, ActionKey, plain_key, sort_key, video_name
from data_preparation.common.errors import UserError
from training.tasks import names, task_of
from training.tasks.base import Arrays, Predictions, Task


def predictions_csv(
    task: Task,
    predicted: Arrays,
    actions: Sequence[Action],
    classes: Sequence[str] = (),
    more: Mapping[str, Sequence[Any]] | None = None,
) -> str:
    """One line per action: its key and frames, the columns of the task, then further columns, such as the method's."""
    columns = {
        "video": [plain_key(action.key)[0] for action in actions],
        "number": [action.number for action in actions],
        "start_frame": [action.start_frame for action in actions],
        "end_frame": [action.end_frame for action in actions],
        **task.columns(predicted, actions, classes),
        **(more or {}),
    }
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return text.getvalue()


def read_predictions(file: Path, name: str, fewest: int = 3) -> Predictions:
    """The predictions of the run `name` for at least `fewest` actions in a file, ordered by action.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it is damaged.
    """
    try:
        rows = prediction_lines(file)
        if len({(row["video"], row["number"]) for row in rows}) < max(len(rows), fewest):
            raise ValueError(f"fewer than {fewest} actions, or an action occurs twice")
        task = next((each for each in map(task_of, names()) if each.can_read(list(rows[0]))), None)
        if task is None:
            raise ValueError("it has no column that a task knows")
        truth, predicted, classes = task.read(rows)
        difficulties = tuple(float(row["difficulty"]) if row.get("difficulty") else None for row in rows)
        return Predictions(name, task, list(map(_key, rows)), truth, predicted, classes, difficulties)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{file} is damaged ({type(error).__name__}: {error}): restore it from a copy, because a test split is opened only once"
        ) from None


def prediction_lines(file: Path) -> list[dict[str, str]]:
    """The lines of a file of predictions with all their columns, ordered by action.

    Raises:
        FileNotFoundError: there is no such file.
        KeyError, TypeError, ValueError: a line has no action.
    """
    rows = list(csv.DictReader(file.read_text().splitlines()))
    for row in rows:  # files of the first edition name the number of an action "dive"
        row.setdefault("number", row.get("dive", ""))
    return sorted(rows, key=lambda row: sort_key(_key(row)))


def _key(row: Mapping[str, str]) -> ActionKey:
    return (video_name(row["video"]), int(row["number"]))
