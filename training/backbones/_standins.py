"""Weight files that hold more than weights, read without loading anything else.

Training scripts save their flags, scores and optimizers beside the weights: argparse.Namespace, numpy scalars,
defaultdict, classes of their own. torch.load(weights_only=True) refuses such names; here each is registered with it
under a stand-in, a class that takes what the file gives it and does nothing. The real one is never imported.
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

_MAGIC = 0x1950A86A20F9469CFC6C  # of torch.save before its files were ZIP archives
_INTEGERS = {"INT", "LONG", "BININT", "BININT1", "BININT2", "LONG1", "LONG4"}
_LITTLE = 1 << 26  # bytes that any machine has
_LEGACY_PICKLES = 5  # magic, version, system, the object, the keys of its storages
# what allocates as much memory as the file says; torch allows it for weights
_ALLOCATING = re.compile(
    r"builtins\.bytearray|torch\.(cuda\.|sparse\.)?\w*Tensor|torch\.storage\.(Untyped|Typed)Storage"
)


class UnsafeFile(UserError):
    """A file that wants a program to be run, or memory to be used up."""


class StandIn:
    """Takes the place of an object of any class, whose name is `of`, and drops what it is given."""

    of = ""
    is_model = False  # whether the object was a torch.nn.Module

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return object.__new__(cls)

    def __setstate__(self, state: Any) -> None:
        self.is_model = isinstance(state, Mapping) and "_parameters" in state


class _MappingStandIn(StandIn):
    """The same for a class that is filled like a dict (defaultdict, EasyDict, CfgNode): its content is kept."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return OrderedDict()  # of which torch's reader takes items and attributes


class _ListStandIn(StandIn):
    """The same for a class that is filled like a list."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return []


@dataclass
class Scan:
    """What a weight file names and the largest whole number in it, found without building anything. `form` is "torch"
    for a whole file of torch.save, "pickle" for another whole pickle, else "damaged"."""

    form: str = "damaged"
    names: set[tuple[str, str]] = field(default_factory=set)
    largest: int = 0


def scan(path: Path) -> Scan:
    """
    Raises:
        OSError: the file cannot be read.
    """
    found = Scan()
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                entries = [i for i in archive.infolist() if i.filename.split("/")[-1] == "data.pkl"]
                if entries and entries[0].compress_type == zipfile.ZIP_STORED:  # torch.save compresses nothing
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
    """Add what one pickle names; returns its first whole number.

    Raises:
        ValueError: it is no whole pickle.
    """
    first = None
    texts = ["", ""]
    for operation, argument, _ in pickletools.genops(data):
        if operation.name in ("GLOBAL", "INST"):
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
    """What torch.load(weights_only=True) makes of a file, with stand-ins for the names that it refuses.

    Raises:
        UnsafeFile: the file names what runs programs, or asks for more memory than it fills.
        pickle.UnpicklingError: it cannot be read so. Whatever torch.load raises for a damaged file.
    """
    found = scan(path)
    named = sorted(f"{module}.{name}" for module, name in found.names)
    if found.largest > max(path.stat().st_size, _LITTLE) and any(map(_ALLOCATING.fullmatch, named)):
        raise UnsafeFile(f"it asks for {found.largest} bytes or numbers, more than it holds")
    if hostile := [f"{module}.{name}" for module, name in sorted(found.names) if runs_programs(module, name)]:
        raise UnsafeFile(f"it wants {hostile[0]}")
    if found.form == "pickle":
        return tensors_of_arrays(load_pickle(path))
    try:
        return _read(path, {})
    except pickle.UnpicklingError as error:
        if "GLOBAL" not in str(error):
            raise
    kinds: dict[str, type[StandIn]] = dict.fromkeys(named, StandIn)
    for _ in range(len(named) + 1):  # each failure teaches the kind of one name
        stand_ins = {name: type(f"StandIn{i}", (kind,), {"of": name}) for i, (name, kind) in enumerate(kinds.items())}
        try:
            return _read(path, stand_ins)
        except pickle.UnpicklingError as error:
            wrong = re.search(r"Can only (SETITEM|append|extend).*\bStandIn(\d+)\b", str(error))
            if not wrong:
                raise
            kinds[named[int(wrong[2])]] = _MappingStandIn if wrong[1] == "SETITEM" else _ListStandIn
    raise pickle.UnpicklingError("its objects contradict one another")


def tensors_of_arrays(content: Any, depth: int = 3) -> Any:
    """The same with tensors for the numpy arrays of (nested) dictionaries."""
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
        warnings.simplefilter("ignore")  # what is odd about the file is said by the error, if there is one
        return torch.load(path, map_location="cpu", weights_only=True)


def cause_of(error: Exception) -> str:
    """Why torch's reader gave up, in a few words; never torch's advice on how to let a file run its code."""
    if name := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return f"it wants {name[1]}"
    inner = re.search(r"WeightsUnpickler error:\s*(.+)", str(error))
    return (inner[1] if inner else first_line(error)).split(". ")[0].split(" Please ")[0]
