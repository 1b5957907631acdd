"""Exported models: the folder that training.export writes, and `from_pretrained`, which reads it without the run folder.

    model.safetensors   the tensors of the checkpoint; the header holds what else the checkpoint has (below)
    config.json         format, flags, facts of the data set, checkpoint, test result, versions, SHA-256 of model.safetensors
    README.md           the model card
    calibration.json, calibration.npz   intervals, and statistics of the features (of runs that have them)
    model.onnx          with --onnx True

Files that the network is built from (flags with `in_model`, such as the vocabulary of captions) are beside them. Nothing is
unpickled. The header of model.safetensors has the entries of training.trained_on, so --pretrained_model of another training
checks them as it does for best.pt.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import safetensors
import safetensors.torch
import torch

from data_preparation.archive import StoredFrames
from data_preparation.common.errors import UserError, first_line, reading_untrusted
from data_preparation.common.files import sha256
from training.config import NO_WEIGHTS, TrainConfig, as_record, from_record
from training.data.facts import DataFacts
from training.model import ScoringModel, build_model
from training.runtime.run_folder import MODEL_FORMAT, RunFolder, read_json
from training.trained_on import BACKBONE_ENTRY, ENTRY

if TYPE_CHECKING:
    from training.scorer import Scorer

VERSION = 1
WEIGHTS, CONFIG, CARD, ONNX = "model.safetensors", "config.json", "README.md", "model.onnx"
CALIBRATION = ("calibration.json", "calibration.npz")  # copied from the run folder as they are
_FIX = "copy the folder again"


# ---------------------------------------------------------------------------------- a checkpoint as a safetensors file


def split_state(value: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    """`value` as JSON types, with its tensors moved to `tensors` under names that begin with `name`.

    Dictionaries become {"dict": ...}, tuples {"tuple": ...} and tensors {"tensor": name}. The inverse is `join_state`.

    Raises:
        TypeError: it holds something else than tensors, dictionaries, lists, tuples and plain values.
    """
    if isinstance(value, torch.Tensor):
        tensors[name] = value.detach().cpu().contiguous().clone()  # a safetensors file holds no tensor twice
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"dict": {str(key): split_state(part, f"{name}.{key}", tensors) for key, part in value.items()}}
    if isinstance(value, (list, tuple)):
        parts = [split_state(part, f"{name}.{index}", tensors) for index, part in enumerate(value)]
        return {"tuple": parts} if isinstance(value, tuple) else parts
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{name} is of the type {type(value).__name__}, which an exported model cannot hold")


def join_state(tree: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """The inverse of `split_state`."""
    if isinstance(tree, list):
        return [join_state(part, tensors) for part in tree]
    if not isinstance(tree, dict):
        return tree
    ((kind, content),) = tree.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "tuple":
        return tuple(join_state(part, tensors) for part in content)
    return {key: join_state(part, tensors) for key, part in content.items()}


def write_weights(path: Path, checkpoint: Mapping[str, Any]) -> None:
    """Write the content of best.pt as a safetensors file.

    Raises:
        OSError: the disk is full or not writable.
    """
    tensors: dict[str, torch.Tensor] = {}
    trees = {name: split_state(value, name, tensors) for name, value in checkpoint["model"].items()}
    rest = {name: tree for name, tree in trees.items() if name not in tensors}
    header = {"format": "pt", MODEL_FORMAT: str(VERSION), "state": json.dumps(rest)}
    header |= {name: checkpoint[name] for name in (ENTRY, BACKBONE_ENTRY) if name in checkpoint}
    path.write_bytes(safetensors.torch.save(tensors, header))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The state dict of the model in a file of `write_weights`.

    Raises:
        UserError: it is damaged.
    """
    try:
        with reading_untrusted(str(path)), safetensors.safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
            rest = {name: join_state(tree, tensors) for name, tree in json.loads(file.metadata()["state"]).items()}
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} cannot be read ({first_line(error)}): {_FIX}") from None
    return {n: t for n, t in tensors.items() if not any(n.startswith(f"{name}.") for name in rest)} | rest


# ------------------------------------------------------------------------------------------------------------ the flags


def shared_flags(config: TrainConfig) -> tuple[dict[str, Any], dict[str, Path]]:
    """The flags of a run without the folders of their paths, and the files that the network is built from by their names in an
    exported folder."""
    record, files = as_record(config), {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        is_path = isinstance(field.default, Path) or field.metadata["path"]
        if not is_path or str(value).lower() in NO_WEIGHTS:
            continue
        record[field.name] = str(field.default) if value == field.default else Path(value).name
        if field.metadata["in_model"]:
            files[record[field.name]] = Path(value)
    return record, files


def flags_in_folder(flags: Mapping[str, Any], folder: Path) -> TrainConfig:
    """The configuration of an exported model, with the files that it is built from in `folder` and without starting weights.

    Raises:
        UserError: the flags are damaged or those of another version.
    """
    saved = from_record(dict(flags))
    of_model: dict[str, Any] = {
        field.name: str(folder / Path(value).name)
        for field in dataclasses.fields(saved)
        if field.metadata["in_model"] and (value := str(getattr(saved, field.name))).lower() not in NO_WEIGHTS
    }
    return dataclasses.replace(saved, pretrained_model="none", **of_model)


# ----------------------------------------------------------------------------------------------------------- the folder


class Exported(NamedTuple):
    """An exported model: its network in evaluation mode, on the CPU. `stored` says how the frames of its training are stored,
    `record` is the content of config.json."""

    config: TrainConfig
    facts: DataFacts
    stored: StoredFrames
    model: ScoringModel
    record: dict[str, Any]


def is_exported(folder: Path) -> bool:
    """Whether a folder holds an exported model, and not a run."""
    return (folder / WEIGHTS).exists() and not RunFolder(folder).best_checkpoint.exists()


def from_pretrained(folder: Path | str, *, gpu: bool = True, **flags: Any) -> Scorer:
    """The scorer of an exported model. `flags` replace flags of the training, such as the path of boxes.

    Raises:
        UserError: as `load`, or the model scores no videos.
    """
    from training.scorer import Scorer  # here, because it imports this module

    _read_record(Path(folder))  # a run folder is not an exported model
    return Scorer.from_run(Path(folder), gpu=gpu, **flags)


def load(folder: Path, **flags: Any) -> Exported:
    """Read an exported model; `flags` replace flags of the training.

    Raises:
        UserError: the folder holds none, it is damaged, or another version wrote it.
    """
    record = _read_record(folder)
    weights = folder / WEIGHTS
    try:
        found = sha256(weights)
    except OSError as error:
        raise UserError(f"{weights} cannot be read ({error.strerror}): {_FIX}") from None
    if found != record["sha256"]:
        raise UserError(f"{weights} is damaged (its SHA-256 is not that of {folder / CONFIG}): {_FIX}")
    try:
        config = dataclasses.replace(flags_in_folder(record["flags"], folder), **flags)
    except UserError as error:
        raise UserError(f"{folder / CONFIG}: {error}") from None
    with reading_untrusted(str(folder / CONFIG)):
        facts, stored = DataFacts.from_record(record["data"]), StoredFrames(**record["data"]["frames"])
        record["checkpoint"]["best_epoch"] + 0  # a number
    model = build_model(config, facts)
    try:
        with reading_untrusted(str(weights)):
            model.load_state_dict(read_checkpoint(weights))
    except RuntimeError:
        raise UserError(f"{weights} does not fit the network of {folder / CONFIG}: {_FIX}") from None
    return Exported(config, facts, stored, model.eval(), record)


def _read_record(folder: Path) -> dict[str, Any]:
    """The content of config.json.

    Raises:
        UserError: it is missing, damaged, or that of something else.
    """
    command = "python -m training.export"
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give one that {command} wrote")
    if RunFolder(folder).best_checkpoint.exists():
        raise UserError(f"{folder} is a run folder: export it first with {command} --run {folder} --out FOLDER")
    file = folder / CONFIG
    try:
        record = read_json(file)
    except UserError:
        raise UserError(f"{file} is damaged: {_FIX}") from None
    if not isinstance(record, dict) or MODEL_FORMAT not in record:
        what = "has no config.json" if record is None else "has a config.json of something else"
        raise UserError(f"{folder} holds no exported model ({what}): give a folder that {command} wrote")
    if record[MODEL_FORMAT] != VERSION:
        raise UserError(
            f"{folder} has the format {record[MODEL_FORMAT]}, and this version reads {VERSION}: use the code that wrote it"
        )
    if missing := {"flags", "data", "checkpoint", "sha256"} - set(record):
        raise UserError(f"{file} is damaged ({', '.join(sorted(missing))} missing): {_FIX}")
    return record
