"""Tasks: what is judged, and what the best result is. One file each; the name of the file is the name of the task.

A method chooses its task in its flags (MethodFlags.task). The folder in DEEPSPORTS_PLUGINS may have more, as tasks/NAME.py.
Imports no torch.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from data_preparation.common.errors import UserError
from training.plugins import search_path

if TYPE_CHECKING:
    from training.tasks.base import Task

__path__ = search_path(__path__, "tasks")

DEFAULT = "score"


def names() -> tuple[str, ...]:
    """The names of all tasks, sorted."""
    found = {path.stem for folder in __path__ for path in Path(folder).glob("*.py")}
    return tuple(sorted(name for name in found if name != "base" and not name.startswith("_")))


@cache
def task_of(name: str) -> Task:
    """The task of a name: the constant TASK of its file.

    Raises:
        UserError: there is no such task.
    """
    if name not in names():
        raise UserError(f"there is no task '{name}': give one of {', '.join(names())}, or set DEEPSPORTS_PLUGINS")
    return import_module(f"training.tasks.{name}").TASK
