"""Data sets: each is a file in this folder, and the file's name is its name for --dataset_kind.

A file has `READS_LISTS` (whether it uses --train_path and --test_path) and `read(files) -> DataSet`, and may have `LICENCE`, a
sentence about the licence of data in this format, for model cards. The folder datasets of
the environment variable DEEPSPORTS_PLUGINS may hold more of them. There is no other list of data sets.
"""

from __future__ import annotations

import os
import pkgutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from data_preparation.actions import Action, ActionKey, ScoreRules, VideoFacts, list_names, sort_key
from data_preparation.common.errors import UserError, reading_untrusted

DEFAULT = "mtl_aqa"
_MAX_FAULTS = 50  # reported of a data set
_SHARED_FIX = "remove them from one of the lists"
PLUGINS = "DEEPSPORTS_PLUGINS"  # the variable with the folder of further data sets, backbones and methods

__path__ = [*__path__, *([str(Path(more).resolve() / "datasets")] if (more := os.environ.get(PLUGINS)) else [])]


@dataclass(frozen=True)
class AnnotationFiles:
    """The annotation file, or the folder of the released files; the split lists, and the captions if there are any.

    A pretraining has no test list.
    """

    annotations: Path
    train: Path | None = None
    test: Path | None = None
    captions: Path | None = None


@dataclass(frozen=True)
class Split:
    """The keys of a train list and of a test list, in their order."""

    train: tuple[ActionKey, ...]
    test: tuple[ActionKey, ...]


@dataclass(frozen=True)
class DataSet:
    """The content of the annotation files of a data set.

    `splits` has "official", or "fold1", "fold2", ... if the published split has folds, and others by name. `classes` are
    the names of the labels. `rules` are the score rules of each kind. `faults` has one message per fault and `warnings`
    what is odd but allowed. `facts` is what the files state about the source videos, by video. `keys` are all entries,
    also those that could not be parsed.
    """

    actions: dict[ActionKey, Action]
    splits: dict[str, Split] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    rules: dict[str, ScoreRules] = field(default_factory=dict)
    faults: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    facts: dict[str, VideoFacts] = field(default_factory=dict)
    keys: frozenset[ActionKey] = frozenset()

    @property
    def splits_text(self) -> str:
        """The sizes of all splits, for people."""
        sizes = {
            name: f"{len(split.train)} to train and {len(split.test)} to test" for name, split in self.splits.items()
        }
        if list(sizes) == ["official"]:
            return f"the lists name {sizes['official']}"
        return "; ".join(f"{name}: {size}" for name, size in sizes.items()) or "no lists"

    def parts(self, name: str, fold: int = 1) -> tuple[list[Action], list[Action]]:
        """The actions of the train list and of the test list of a split.

        Raises:
            UserError: there is no such split.
        """
        split = self.split(name, fold)
        train, test = ([self.actions[key] for key in keys] for keys in (split.train, split.test))
        return train, test

    def split(self, name: str, fold: int = 1) -> Split:
        """The split of a name. "official" with folds is that of `fold`.

        Raises:
            UserError: there is no such split.
        """
        folds = [key for key in self.splits if key.startswith("fold")]
        wanted = f"fold{fold}" if name == "official" and folds else name
        if name == "official" and not folds and fold != 1:
            raise UserError(f"the lists of the data set have no folds: leave out --fold {fold}")
        if wanted not in self.splits:
            text = f"--fold {fold}" if wanted.startswith("fold") else f"--split {name}"
            raise UserError(f"the data set has no split for {text}: it has {', '.join(self.splits) or 'none'}")
        return self.splits[wanted]


def names() -> tuple[str, ...]:
    """The names of all data sets, sorted."""
    return tuple(sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")))


def _module(kind: str) -> Any:
    if kind not in names():
        raise UserError(f"--dataset_kind {kind}: give one of {', '.join(names())}")
    return import_module(f"data_preparation.datasets.{kind}")


def reads_lists(kind: str) -> bool:
    """Whether the reader of a data set uses --train_path and --test_path."""
    return _module(kind).READS_LISTS


def licence(kind: str) -> str:
    """A sentence about the licence of a data set."""
    default = (
        "The data set and its videos have terms of their own: read them before you publish these weights or a result."
    )
    return getattr(_module(kind), "LICENCE", default)


def read(kind: str, files: AnnotationFiles) -> DataSet:
    """Read a data set with all its faults.

    Raises:
        UserError: there is no such kind, or a file as a whole is unreadable.
    """
    paths = [str(path) for path in (files.annotations, files.train, files.test, files.captions) if path]
    try:
        with reading_untrusted(", ".join(paths)):
            found: DataSet = _module(kind).read(files)
    except UserError as error:
        raise UserError.of(_first_faults(str(error).splitlines())) from error.__cause__
    return replace(found, faults=_first_faults(found.faults))


def _first_faults(faults: Sequence[str]) -> tuple[str, ...]:
    """The first faults of many, and the number of the others."""
    more = len(faults) - _MAX_FAULTS
    return (*faults[:_MAX_FAULTS], *([f"and {more} more faults"] if more > 0 else []))


def load(kind: str, files: AnnotationFiles) -> DataSet:
    """Read a data set.

    Raises:
        UserError: naming every fault, one per line.
    """
    found = read(kind, files)
    if found.faults:
        raise UserError.of(found.faults)
    return found


def released_folder(given: Path) -> Path:
    """The folder of released files that --annotation_path names, or that holds the file that it names.

    Raises:
        UserError: there is no such file or folder.
    """
    if not given.exists():
        raise UserError(f"{given} does not exist: name the folder of the released files with --annotation_path")
    return given if given.is_dir() else given.parent


def repeated_faults(where: str, keys: Iterable[ActionKey]) -> list[str]:
    """A message if a list names actions more than once; `where` is the list."""
    if not (repeated := [key for key, count in Counter(keys).items() if count > 1]):
        return []
    return [f"{where} names {len(repeated)} actions more than once ({list_names(repeated)}): keep one entry of each"]


def shared_faults(train: Sequence[ActionKey], test: Sequence[ActionKey], fix: str = _SHARED_FIX) -> list[str]:
    """A message if actions are in both lists."""
    if not (shared := sorted(set(train) & set(test), key=sort_key)):
        return []
    return [
        f"the train and test lists share {len(shared)} actions ({list_names(shared)}), so the test result would be meaningless: {fix}"
    ]


def split_faults(
    annotated: Iterable[ActionKey], train: Sequence[ActionKey], test: Sequence[ActionKey], shared_fix: str = _SHARED_FIX
) -> list[str]:
    """The faults of a pair of split lists: entries without annotation, and actions that are in both (`shared_faults`)."""
    known = set(annotated)
    faults = []
    for keys, name in ((train, "train"), (test, "test")):
        if unannotated := [key for key in keys if key not in known]:
            faults.append(
                f"the {name} list names {len(unannotated)} actions without annotation ({list_names(unannotated)}): use lists and annotations of the same data set"
            )
    return faults + shared_faults(train, test, shared_fix)


def group_warnings(actions: Mapping[ActionKey, Action], splits: Mapping[str, Split]) -> list[str]:
    """A message for each split whose lists share groups, with their number: a published split may, a random one never does."""
    warnings = []
    for name, split in splits.items():
        in_train, in_test = (
            {actions[key].group for key in keys if key in actions} - {""} for keys in (split.train, split.test)
        )
        if shared := sorted(in_train & in_test):
            listed = ", ".join(shared[:5]) + (", ..." if len(shared) > 5 else "")
            warnings.append(
                f"{len(shared)} groups ({listed}) have actions in the train list and in the test list of split {name}, so its test result can be too good"
            )
    return warnings
