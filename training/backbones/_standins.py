"""Load the tensors of a weight file that also holds other Python objects, without importing their classes.

Training scripts often save their flags, scores and optimizers with the weights: argparse.Namespace, numpy scalars,
defaultdict, classes of their own. torch.load(weights_only=True) refuses such classes. This module registers a stand-in for
each of them: a class that accepts the object's data and ignores it. The real class is never imported.
"""

from __future__ import annotations

import pickle
import pickletools
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from data_preparation.common.errors import UserError, first_line
from data_preparation.pickles import current_name, load_pickle, runs_programs

_MAGIC = 0x1950A86A20F9469CFC6C  # first number in files of torch.save from before torch 1.6 (no ZIP archive)
_INTEGERS = {"INT", "LONG", "BININT", "BININT1", "BININT2", "LONG1", "LONG4"}
_SMALL = 1 << 26  # bytes that any machine can allocate
_LEGACY_PICKLES = 5  # magic number, version, system, the object, the keys of its storages
# classes that allocate as much memory as the file requests; torch.load allows them
_ALLOCATING = re.compile(
    r"builtins\.bytearray|torch\.(cuda\.|sparse\.)?\w*Tensor|torch\.storage\.(Untyped|Typed)Storage"
)


class UnsafeFile(UserError):
    """The file would run code or exhaust the memory."""


class StandIn:
    """Stands for an object of the class named `of` and ignores the object's data."""

    of = ""
    is_model = False  # whether the object was a torch.nn.Module

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return object.__new__(cls)

    def __setstate__(self, state: Any) -> None:
        self.is_model = isinstance(state, Mapping) and "_parameters" in state


class _MappingStandIn(StandIn):
    """Stands for a class that is filled like a dict (defaultdict, EasyDict, CfgNode); keeps the content."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return OrderedDict()  # the reader of torch may set both items and attributes of it


class _ListStandIn(StandIn):
    """Stands for a class that is filled like a list; keeps the content."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return []


@dataclass
class Scan:
    """The classes and functions that a weight file names and the largest integer in it, found without building any object.

    `form` is "torch" for a complete file of torch.save, "pickle" for any other complete pickle, else "damaged".
    """

    form: str = "damaged"
    names: set[tuple[str, str]] = field(default_factory=set)
    largest: int = 0


def scan(path: Path) -> Scan:
    """List the names in a weight file, see Scan.

    Raises:
        OSError: the file cannot be read. UnsafeFile: its content is compressed.
    """
    found = Scan()
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                entries = [i for i in archive.infolist() if i.filename.split("/")[-1] == "data.pkl"]
                loaded = [*entries, *(i for i in archive.infolist() if i.filename.split("/")[1:2] == ["data"])]
                if entries and any(i.compress_type != zipfile.ZIP_STORED for i in loaded):
                    raise UnsafeFile("its content is compressed, which torch.save never does, and may fill the memory")
                if entries:
                    _scan_pickle(archive.read(entries[0]), found)
                    found.form = "torch"
        else:
            with open(path, "rb") as file:
                if _scan_pickle(file, found) != _MAGIC:
                    found.form = "pickle"
                    return found
                for _ in range(_LEGACY_PICKLES - 1):
                    _scan_pickle(file, found)
                found.form = "torch"
    except (ValueError, zipfile.BadZipFile, EOFError):
        pass  # damaged
    return found


def _scan_pickle(data: bytes | IO[bytes], found: Scan) -> int | None:
    """Add the names of one pickle to `found`; return the first integer in the pickle.

    Raises:
        ValueError: the pickle is incomplete or not a pickle.
    """
    first = None
    texts = ["", ""]
    for operation, argument, _ in pickletools.genops(data):
        if operation.name in ("GLOBAL", "INST") and isinstance(argument, str):
            module, _, name = argument.partition(" ")
            found.names.add(current_name(module, name))
        elif operation.name == "STACK_GLOBAL":
            found.names.add(current_name(*texts))
        elif isinstance(argument, str):
            texts = [texts[1], argument]
        elif isinstance(argument, int) and operation.name in _INTEGERS:
            first = argument if first is None else first
            found.largest = max(found.largest, 0 if argument == _MAGIC else argument)
    return first


def load(path: Path) -> Any:
    """torch.load(weights_only=True), with stand-ins for the classes that it refuses.

    Raises:
        UnsafeFile: the file names code that runs programs, requests more memory than the file holds, or is compressed.
        pickle.UnpicklingError: the file cannot be read this way. A damaged file may raise any exception of torch.load.
    """
    found = scan(path)
    named = sorted(f"{module}.{name}" for module, name in found.names)
    if found.largest > max(path.stat().st_size, _SMALL) and any(map(_ALLOCATING.fullmatch, named)):
        raise UnsafeFile(f"it requests {found.largest} bytes or numbers, more than it holds")
    if hostile := [f"{module}.{name}" for module, name in sorted(found.names) if runs_programs(module, name)]:
        raise UnsafeFile(f"it refers to {hostile[0]}")
    if found.form == "pickle":
        return tensors_of_arrays(load_pickle(path))
    try:
        return _read(path, {})
    except pickle.UnpicklingError as error:
        if "GLOBAL" not in str(error):
            raise
    kinds: dict[str, type[StandIn]] = dict.fromkeys(named, StandIn)
    for _ in range(len(named) + 1):  # each failure shows whether one class is like a dict or a list
        stand_ins = {name: type(f"StandIn{i}", (kind,), {"of": name}) for i, (name, kind) in enumerate(kinds.items())}
        try:
            return _read(path, stand_ins)
        except pickle.UnpicklingError as error:
            wrong = re.search(r"Can only (SETITEM|append|extend).*\bStandIn(\d+)\b", str(error))
            if not wrong:
                raise
            kinds[named[int(wrong[2])]] = _MappingStandIn if wrong[1] == "SETITEM" else _ListStandIn
    raise pickle.UnpicklingError("its objects are inconsistent")


def tensors_of_arrays(content: Any, depth: int = 3) -> Any:
    """Replace the numpy arrays in (nested) dictionaries by tensors."""
    if type(content) is dict and depth:
        return {key: tensors_of_arrays(value, depth - 1) for key, value in content.items()}
    if (
        hasattr(content, "__array__")
        and not isinstance(content, np.generic)
        and (array := np.asarray(content)).dtype.kind in "biuf"
    ):
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
    return content


def _read(path: Path, stand_ins: Mapping[str, type[StandIn]]) -> Any:
    with (
        warnings.catch_warnings(),
        torch.serialization.safe_globals([(stand_in, name) for name, stand_in in stand_ins.items()]),
    ):
        warnings.simplefilter("ignore")  # an unreadable file raises an exception, which is enough
        return torch.load(path, map_location="cpu", weights_only=True)


def cause_of(error: Exception) -> str:
    """The cause of a torch.load exception in a few words, without torch's advice to load with weights_only=False."""
    if name := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return f"it refers to {name[1]}"
    inner = re.search(r"WeightsUnpickler error:\s*(.+)", str(error))
    return (inner[1] if inner else first_line(error)).split(". ")[0].split(" Please ")[0]
