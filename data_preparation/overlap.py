"""Count the actions that two data sets share, and list them.

    python -m data_preparation.overlap --annotation_path MTL/final_annotations_dict.pkl --train_path ... --test_path ... \\
        --other_kind finediving --other_annotation_path FineDiving --part test --output leave_out.csv

lists the dives of MTL-AQA that are in FineDiving's test part: a model that is trained with --leave_out leave_out.csv may be
tested on FineDiving. How actions are identified: data_preparation/identity.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_preparation import datasets
from data_preparation.actions import Action, ActionKey
from data_preparation.annotations import write_split
from data_preparation.common.command_line import flag, parse, run
from data_preparation.common.errors import UserError
from data_preparation.datasets import AnnotationFiles, DataSet
from data_preparation.identity import Identity, TrainedOn, identities, source_hashes

_PATH = "Annotation file, or the folder of the released files, of the {} data set."
_LIST = "{} list of the {} data set, if its format has lists."
_FRAMES = "Frame archives of the {} data set (whole_videos_frames): also compares the SHA-256 of the source videos."
_LIST_FLAGS = "--train_path and --test_path, or --other_train_path and --other_test_path"
_KIND = "Format of the {} data set (data_preparation/datasets)."


@dataclass(frozen=True)
class OverlapConfig:
    """Count the actions that two data sets share, and list those of the first."""

    dataset_kind: str = flag(datasets.DEFAULT, _KIND.format("first"), choices=datasets.names())
    annotation_path: Path | None = flag(None, _PATH.format("first"))
    train_path: Path | None = flag(None, _LIST.format("Train", "first"))
    test_path: Path | None = flag(None, _LIST.format("Test", "first"))
    root_dir: Path | None = flag(None, _FRAMES.format("first"))
    other_kind: str = flag(datasets.DEFAULT, _KIND.format("other"), choices=datasets.names())
    other_annotation_path: Path | None = flag(None, _PATH.format("other"))
    other_train_path: Path | None = flag(None, _LIST.format("Train", "other"))
    other_test_path: Path | None = flag(None, _LIST.format("Test", "other"))
    other_root_dir: Path | None = flag(None, _FRAMES.format("other"))
    part: str = flag(
        "test",
        "Part of the other data set: --output lists the actions that it holds.",
        choices=("train", "test", "all"),
    )
    output: Path | None = flag(None, "List of actions of the first data set to write (.csv, .json, .pkl).")

    def __post_init__(self) -> None:
        if missing := [
            f"--{name}" for name in ("annotation_path", "other_annotation_path") if getattr(self, name) is None
        ]:
            raise UserError(f"{', '.join(missing)} missing: give the annotations of both data sets")


def parts_of(data: DataSet) -> dict[str, Sequence[ActionKey]]:
    """The keys of the official split's parts, and of all actions."""
    train, test = data.parts("official") if data.splits else ([], [])
    return {"train": [a.key for a in train], "test": [a.key for a in test], "all": list(data.actions)}


def _read(kind: str, files: AnnotationFiles, frames: Path | None) -> tuple[DataSet, dict[ActionKey, Identity]]:
    if frames is not None and not frames.is_dir():
        raise UserError(f"{frames} is not a folder: give the folder of the frame archives (whole_videos_frames)")
    if datasets.reads_lists(kind) and (files.train is None or files.test is None):
        raise UserError(
            f"the lists of {files.annotations} are missing, so nothing is known of its parts: give the train and the test list ({_LIST_FLAGS})"
        )
    data = datasets.load(kind, files)
    actions: list[Action] = list(data.actions.values())
    return data, identities(actions, source_hashes(frames, [a.video for a in actions]) if frames else {})


def main(argv: Sequence[str]) -> None:
    c = parse(OverlapConfig, argv, prog="python -m data_preparation.overlap")
    assert c.annotation_path is not None
    assert c.other_annotation_path is not None
    ours, own = _read(c.dataset_kind, AnnotationFiles(c.annotation_path, c.train_path, c.test_path), c.root_dir)
    theirs, other = _read(
        c.other_kind, AnnotationFiles(c.other_annotation_path, c.other_train_path, c.other_test_path), c.other_root_dir
    )
    parts = parts_of(ours)
    held = {name: TrainedOn.of(other[key] for key in keys) for name, keys in parts_of(theirs).items()}
    print(f"{'':24}{'actions':>9}" + "".join(f"{f'in other {name}':>16}" for name in held))
    for name, keys in parts.items():
        counts = [sum(each.holds(own[key]) for key in keys) for each in held.values()]
        print(f"{f'{c.dataset_kind} {name}':24}{len(keys):>9}" + "".join(f"{count:>16}" for count in counts))
    if c.output is not None:
        shared = [key for key in ours.actions if held[c.part].holds(own[key])]
        if not shared:
            raise UserError(f"the {c.part} part of the other data set holds no action of the first: no list is needed")
        write_split(c.output, shared)
        print(f"{c.output}: {len(shared)} actions of the {c.part} part of the other data set")


if __name__ == "__main__":
    run(main)
