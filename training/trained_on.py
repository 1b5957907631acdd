"""The actions that weights were trained on, and the refusal of a run whose test split holds some of them.

Checkpoints and feature files state them in an entry (data_preparation.identity.TrainedOn as text). A run adds its own actions
to those of its starting weights and features, so the entry covers chains of trainings. A frozen backbone has an entry of its
own, because it was not trained on the actions of the run. What a comparing method refers to (its bank) are training actions
of the run itself.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any

import safetensors
import torch

from data_preparation.actions import ActionKey, list_names, sort_key
from data_preparation.annotations import load_split, write_split
from data_preparation.common.errors import UserError
from data_preparation.identity import TrainedOn, identities
from training.config import TrainConfig
from training.data.features import feature_file
from training.data.sources import Source
from training.data.splits import Splits
from training.runtime.run_folder import MODEL_FORMAT, RunFolder
from training.tasks import task_of

log = logging.getLogger("training")

ENTRY = "trained_on"  # in checkpoints, exported models and FeatureFile.about
BACKBONE_ENTRY = "backbone_trained_on"  # in checkpoints with a frozen backbone
_UNCHECKED = "so it is not checked whether the test split holds some of them"


def of_start(config: TrainConfig) -> dict[str, TrainedOn]:
    """What the starting weights and the features of a run were trained on, by the flag that gives them.

    Raises:
        UserError: an entry is damaged.
    """
    found: dict[str, TrainedOn] = {}
    if config.weight_file:
        found[f"--pretrained_model {config.weight_file}"] = of_weight_file(config.weight_file)
    if config.reads == "features":
        found[f"--features {config.features}"] = of_features(Path(config.features))
    return found


def of_weight_file(path: Path) -> TrainedOn:
    """What the backbone of a weight file was trained on. Published weights state nothing and count as trained on no action.

    Raises:
        UserError: the entry is damaged.
    """
    try:
        if path.suffix == ".safetensors":
            with safetensors.safe_open(path, "pt") as file:
                content: Any = file.metadata() or {}
            is_ours = MODEL_FORMAT in content
        else:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)  # does not read the tensors
            is_ours = isinstance(content, dict) and {"model", "position"} <= set(content)
    except Exception:  # another format: training.backbones reads it, and refuses it if it is damaged
        return TrainedOn()
    if not is_ours:  # neither a checkpoint of this project nor an exported model
        return TrainedOn()
    return _parsed(content.get(BACKBONE_ENTRY, content.get(ENTRY)), f"weight file {path}", "an older version wrote it")


def of_features(path: Path) -> TrainedOn:
    """What the network that computed a feature file was trained on.

    Raises:
        UserError: the file is unreadable or the entry is damaged.
    """
    text = feature_file(path).about.get(ENTRY)
    return _parsed(text, f"--features {path}", "an older version or another program wrote it")


def _parsed(text: Any, name: str, why_missing: str) -> TrainedOn:
    """The content of an entry. Logs a warning if it is missing (None) or incomplete.

    Raises:
        UserError: it is damaged.
    """
    if text is None:
        log.warning("%s does not state which actions it was trained on (%s), %s", name, why_missing, _UNCHECKED)
        return TrainedOn(is_complete=False)
    try:
        found = TrainedOn.from_text(text)
    except ValueError as error:
        raise UserError(f"{name} is damaged ({error}): restore it from a copy") from None
    if not found.is_complete:
        log.warning(
            "%s started from weights that do not state which actions they were trained on, %s", name, _UNCHECKED
        )
    return found


def entries_of_run(config: TrainConfig, splits: Splits, source: Source, *, frozen: bool) -> dict[str, str]:
    """The entries of a run's checkpoints: its training and validation actions, and those of its starting weights and features.

    A `frozen` backbone has those of its starting weights only.

    Raises:
        UserError: the test split holds some of these actions. leave_out.csv in the run folder then lists them.
    """
    test = splits.test if task_of(config.task).has_test else []
    found = identities(splits.data_set, source.video_hashes([*splits.known, *test]))
    own, start = TrainedOn.of(found[action.key] for action in splits.known), of_start(config)
    shared: dict[ActionKey, None] = {}
    problems: list[tuple[str, str]] = []  # (what is wrong, another fix than leaving actions out)
    for name, trained_on in {**start, "": own}.items():
        if not (seen := [action.key for action in test if trained_on.holds(found[action.key])]):
            continue
        shared |= dict.fromkeys(seen)
        which = f"{len(seen)} of the {len(test)} test actions ({list_names(seen)})"
        problems.append(
            (f"{name} was trained on {which}", "other weights")
            if name
            else (f"the train list has {which} under other names", "other lists")
        )
    if problems:
        fix = _leave_out(config, list(shared)) if len(shared) < len(test) else "another test split"
        raise UserError.of(
            [f"{what}, so the test result would be meaningless: give {fix}, or {other}" for what, other in problems]
        )
    of_weights = reduce(or_, start.values(), TrainedOn())
    entries = {ENTRY: (own | of_weights).as_text()}
    return {**entries, BACKBONE_ENTRY: of_weights.as_text()} if frozen else entries


def _leave_out(config: TrainConfig, keys: Sequence[ActionKey]) -> str:
    """Write leave_out.csv with these actions; return the flag that leaves them out."""
    path = RunFolder(config.run_dir).path / "leave_out.csv"
    earlier = load_split(config.leave_out_file) if config.leave_out_file else []
    write_split(path, sorted({*earlier, *keys}, key=sort_key))
    return f"--leave_out {path}, which lists them"
