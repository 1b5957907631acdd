"""The actions of the split lists that a run uses. Imports no torch."""

from __future__ import annotations

from data_preparation.actions import Action, is_chosen, list_names, sort_key
from data_preparation.annotations import load_split
from data_preparation.common.errors import UserError
from data_preparation.datasets import DataSet
from training.config import TrainConfig


def listed_actions(config: TrainConfig, data: DataSet) -> tuple[list[Action], list[Action]]:
    """The actions of the train list and of the test list: those of --videos, without those of --leave_out.

    --split event divides both lists together (all actions if there are none), so --fold is then not that of a published split.

    Raises:
        UserError: there is no such split, or --leave_out is unreadable or names actions without annotation.
    """
    left_out = set(load_split(config.leave_out_file)) if config.leave_out_file else set()
    if unknown := sorted(left_out - set(data.actions), key=sort_key):
        raise UserError(
            f"--leave_out {config.leave_out} names {len(unknown)} actions without annotation ({list_names(unknown)}): give a list of this data set"
        )
    if config.split == "event":
        lists = data.parts("official") if data.splits else (list(data.actions.values()), [])
    else:
        lists = data.parts(config.split, config.fold)
    train, test = (
        [action for action in part if is_chosen(action.video, config.chosen_videos) and action.key not in left_out]
        for part in lists
    )
    return train, test
