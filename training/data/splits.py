"""The training, validation and test actions: a function of the split lists, the flags and the seed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from data_preparation import datasets
from data_preparation.actions import Action, plain_key, sort_key
from data_preparation.common.errors import UserError
from training.config import TrainConfig
from training.data.facts import DataFacts
from training.data.lists import listed_actions
from training.runtime.seeding import derive_seed, generator


@dataclass(frozen=True)
class Splits:
    """The actions of a run, in disjoint lists."""

    train: list[Action]
    val: list[Action]
    test: list[Action]
    facts: DataFacts = field(default_factory=DataFacts)
    data_set: Sequence[Action] = ()  # all actions, also those of no part

    @property
    def known(self) -> list[Action]:
        """The actions whose labels may be known before the test split is opened, ordered by key."""
        return sorted([*self.train, *self.val], key=lambda a: sort_key(a.key))

    def record(self) -> dict[str, Any]:
        """The content of splits.json: the keys of each part, and a fingerprint of the training and validation labels."""
        parts = {name: [plain_key(a.key) for a in getattr(self, name)] for name in ("train", "val", "test")}
        return {"fingerprint": data_fingerprint(self.known), **parts}


def batch_size_fault(config: TrainConfig, actions: int) -> str | None:
    """Check that an epoch has a step, with so many training actions."""
    if config.batch_size <= actions:
        return None
    return f"--batch_size {config.batch_size} is more than the {actions} training actions: give {actions} or less"


def load_splits(config: TrainConfig) -> Splits:
    """The training, validation and test actions of a run.

    Raises:
        UserError: unreadable files, lists without annotation or that overlap, too few actions or events.
    """
    data = datasets.load(config.dataset_kind, config.annotation_files)
    listed, test = listed_actions(config, data)
    if config.split == "event":
        splits = split_events([*listed, *test], config)
    else:
        if len(listed) < 2:
            raise UserError(
                f"{config.train_list} leaves {len(listed)} actions of {_chosen_text(config)}: training and validation need one each at least"
            )
        splits = Splits(*split_train_val(listed, config.train_val_split_ratio, config.seed), test)
    splits = replace(splits, facts=facts_of(data, [*listed, *test]), data_set=list(data.actions.values()))
    if fault := batch_size_fault(config, len(splits.train)):
        raise UserError(fault)
    if (
        config.evaluate
        and not splits.test
        and config.split != "event"
        and not data.split(config.split, config.fold).test
    ):
        raise UserError("the data set has no test list: give --split event, a test list, or --evaluate False")
    if config.evaluate and not splits.test:
        raise UserError(
            f"{config.test_list} has no action of {_chosen_text(config)}: choose more, or give --evaluate False"
        )
    return splits


def _chosen_text(config: TrainConfig) -> str:
    """The flags that choose actions of the lists, for messages."""
    left_out = f", without those of --leave_out {config.leave_out}" if config.leave_out_file else ""
    return f"the videos {' '.join(config.videos)}{left_out}"


def facts_of(data: datasets.DataSet, actions: Sequence[Action]) -> DataFacts:
    """The facts of those actions of a data set that a run uses."""
    ranges = {(rules.low, rules.high) for kind in {a.kind for a in actions} if (rules := data.rules.get(kind))}
    by_difficulty = all(a.difficulty is not None for a in actions) and len(ranges) < 2
    return DataFacts(data.classes, data.rules, by_difficulty)


def split_train_val(actions: Sequence[Action], ratio: float, seed: int) -> tuple[list[Action], list[Action]]:
    """A seeded split of the train list; each part keeps the list's order and has at least one action.

    Groups are not split, and with labels both parts have the classes in equal proportion as far as possible.
    """
    count = len(actions)
    if any(a.group for a in actions) or all(a.label is not None for a in actions):
        chosen = _balanced_choice(actions, ratio, seed)
    else:
        train_count = min(max(round(count * ratio), 1), count - 1)
        chosen = set(generator(seed, "split").permutation(count)[:train_count].tolist())
    train = [action for i, action in enumerate(actions) if i in chosen]
    val = [action for i, action in enumerate(actions) if i not in chosen]
    return train, val


def _balanced_choice(actions: Sequence[Action], ratio: float, seed: int) -> set[int]:
    """The indices of whole groups, each class in the proportion `ratio`, chosen by a seed.

    Takes the groups in random order, large ones first, and gives each to the part (training or validation) whose classes are
    then nearest to their wanted counts. An action without a group is a group of its own.

    Raises:
        UserError: all actions are of one group.
    """
    groups: dict[str | int, list[int]] = {}
    for i, action in enumerate(actions):
        groups.setdefault(action.group or i, []).append(i)
    if len(groups) < 2:
        raise UserError(
            f"all {len(actions)} actions of the train list are of one group ({actions[0].group}), which is never split: list actions of two groups or more"
        )
    classes = sorted({action.label for action in actions}, key=repr)
    counts = {g: np.array([sum(actions[i].label == c for i in rows) for c in classes]) for g, rows in groups.items()}
    total = sum(counts.values())
    wanted = np.stack([total * ratio, total * (1 - ratio)])  # (2 parts, classes)
    shuffled = [list(groups)[i] for i in generator(seed, "split").permutation(len(groups))]
    given = np.zeros_like(wanted)
    parts: tuple[list, list] = ([], [])
    for group in sorted(shuffled, key=lambda g: -len(groups[g])):
        missing = ((wanted - given) * counts[group]).sum(axis=1) / np.maximum(wanted.sum(axis=1), 1e-9)
        part = int(missing[1] > missing[0])
        given[part] += counts[group]
        parts[part].append(group)
    for part, other in ((0, 1), (1, 0)):  # neither part may stay empty
        if not parts[part]:
            parts[part].append(parts[other].pop())
    return {i for group in parts[0] for i in groups[group]}


def split_events(actions: Sequence[Action], config: TrainConfig) -> Splits:
    """Whole events for the test (part --fold of --folds) and, of the others, whole events for validation.

    An event is a group of actions, or a video if they have no groups. Each action is in the test part of exactly one fold.

    Raises:
        UserError: fewer events than parts, or none left to validate on.
    """
    from sklearn.model_selection import GroupKFold, GroupShuffleSplit  # here, because the import takes a second

    events = [action.held_together for action in actions]
    count = len(set(events))
    if count < max(config.folds, 3):
        raise UserError(
            f"--split event with --folds {config.folds} needs {max(config.folds, 3)} events (videos) and the lists have {count}: give fewer --folds, more --videos, or --split official"
        )
    folds = GroupKFold(config.folds, shuffle=True, random_state=derive_seed(config.split_seed, "events") % 2**32)
    rest, held_out = list(folds.split(actions, groups=events))[config.fold - 1]
    remaining = len({events[i] for i in rest})
    if remaining < 2:
        raise UserError(
            f"--fold {config.fold} of {config.folds} leaves {remaining} event for training and validation: give more --folds"
        )
    held_for_validation = min(max(round(remaining * (1 - config.train_val_split_ratio)), 1), remaining - 1)
    seed = derive_seed(config.split_seed, "validation events", config.fold) % 2**32
    shuffled = GroupShuffleSplit(1, test_size=held_for_validation, random_state=seed)
    train, val = next(shuffled.split(rest, groups=[events[i] for i in rest]))
    return Splits([actions[rest[i]] for i in train], [actions[rest[i]] for i in val], [actions[i] for i in held_out])


def data_fingerprint(actions: Iterable[Action]) -> str:
    """A short hash of actions, their frame ranges, scores and other labels."""
    digest = hashlib.sha256()
    for action in sorted(actions, key=lambda a: sort_key(a.key)):
        digest.update(repr(action.identity()).encode())
    return digest.hexdigest()[:16]
