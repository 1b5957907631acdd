"""The training, validation and test dives: a function of the split lists, the flags and the seed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_preparation.annotations import check_disjoint, load_annotations, load_split, select
from data_preparation.common.errors import UserError
from data_preparation.dives import Dive, DiveKey
from training.config import TrainConfig
from training.runtime.seeding import derive_seed, generator


@dataclass(frozen=True)
class Splits:
    """The dives of a run, in disjoint lists."""

    train: list[Dive]
    val: list[Dive]
    test: list[Dive]

    @property
    def known(self) -> list[Dive]:
        """The dives whose scores may be known before the test split is opened, ordered by key."""
        return sorted([*self.train, *self.val], key=lambda d: d.key)

    def record(self) -> dict[str, Any]:
        """The content of splits.json: the keys of each part, and a fingerprint of the training and validation labels."""
        parts = {name: [d.key for d in getattr(self, name)] for name in ("train", "val", "test")}
        return {"fingerprint": data_fingerprint(self.known), **parts}


def load_splits(config: TrainConfig) -> Splits:
    """The training, validation and test dives of a run.

    Raises:
        UserError: unreadable files, lists without annotation or that overlap, too few dives or events.
    """
    dives = load_annotations(config.annotation_path, config.captions_file)
    train_keys, test_keys = load_split(config.train_path), load_split(config.test_path)
    check_disjoint(train_keys, test_keys)
    wanted = config.video_numbers

    def use(keys: list[DiveKey], where: Path) -> list[Dive]:
        return [d for d in select(dives, keys, str(where)) if wanted is None or d.video in wanted]

    listed, test = use(train_keys, config.train_path), use(test_keys, config.test_path)
    if config.split == "event":
        splits = split_events([*listed, *test], config)
    else:
        if len(listed) < 2:
            raise UserError(
                f"{config.train_path} leaves {len(listed)} dives of the videos {' '.join(config.videos)}: training and validation need one each at least"
            )
        splits = Splits(*split_train_val(listed, config.train_val_split_ratio, config.seed), test)
    if len(splits.train) < config.batch_size:
        raise UserError(
            f"--batch_size {config.batch_size} is more than the {len(splits.train)} training dives: give {len(splits.train)} or less"
        )
    if config.evaluate and not splits.test:
        raise UserError(
            f"{config.test_path} has no dive of the videos {' '.join(config.videos)}: use more videos, or give --evaluate False"
        )
    return splits


def split_train_val(dives: Sequence[Dive], ratio: float, seed: int) -> tuple[list[Dive], list[Dive]]:
    """A seeded split of the train list; each part keeps the list's order and has at least one dive."""
    train_count = min(max(round(len(dives) * ratio), 1), len(dives) - 1)
    chosen = set(generator(seed, "split").permutation(len(dives))[:train_count].tolist())
    train = [dive for i, dive in enumerate(dives) if i in chosen]
    val = [dive for i, dive in enumerate(dives) if i not in chosen]
    return train, val


def split_events(dives: Sequence[Dive], config: TrainConfig) -> Splits:
    """Whole events for the test (part --fold of --folds) and, of the others, whole events for validation.

    An event is a video. Each dive is in the test part of exactly one fold.

    Raises:
        UserError: fewer events than parts, or none left to validate on.
    """
    from sklearn.model_selection import GroupKFold, GroupShuffleSplit  # here, because the import takes a second

    events = [d.video for d in dives]
    count = len(set(events))
    if count < max(config.folds, 3):
        raise UserError(
            f"--split event with --folds {config.folds} needs {max(config.folds, 3)} events (videos) and the lists have {count}: give fewer --folds, more --videos, or --split official"
        )
    folds = GroupKFold(config.folds, shuffle=True, random_state=derive_seed(config.split_seed, "events") % 2**32)
    rest, held_out = list(folds.split(dives, groups=events))[config.fold - 1]
    remaining = len({events[i] for i in rest})
    if remaining < 2:
        raise UserError(
            f"--fold {config.fold} of {config.folds} leaves {remaining} event for training and validation: give more --folds"
        )
    held_for_validation = min(max(round(remaining * (1 - config.train_val_split_ratio)), 1), remaining - 1)
    seed = derive_seed(config.split_seed, "validation events", config.fold) % 2**32
    shuffled = GroupShuffleSplit(1, test_size=held_for_validation, random_state=seed)
    train, val = next(shuffled.split(rest, groups=[events[i] for i in rest]))
    return Splits([dives[rest[i]] for i in train], [dives[rest[i]] for i in val], [dives[i] for i in held_out])


def data_fingerprint(dives: Iterable[Dive]) -> str:
    """A short hash of dives, their frame ranges, scores and other labels."""
    digest = hashlib.sha256()
    for d in sorted(dives, key=lambda d: d.key):
        labels = (d.position, d.armstand, d.rotation_type, d.ss_no, d.tw_no, d.caption)
        digest.update(repr((d.key, d.start_frame, d.end_frame, d.difficulty, d.final_score, labels)).encode())
    return digest.hexdigest()[:16]
