"""Backbones and methods are folders that are found by their names. Imports no torch.

    training/backbones/NAME/    flags.py    the flags of --model NAME, a torch-free dataclass (may be left out)
                                network.py  build(config) -> Backbone
    training/methods/NAME/      flags.py    the flags of --method NAME (may be left out)
                                method.py   build(config, feature_dim) -> Method

A folder named by the environment variable DEEPSPORTS_PLUGINS may hold more of them, as backbones/NAME and methods/NAME.
Nothing else lists a backbone or a method: the command line, the README's tables and the tests ask here.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

VARIABLE = "DEEPSPORTS_PLUGINS"
BACKBONES, METHODS = "backbones", "methods"
FLAG_OF = {BACKBONES: "model", METHODS: "method"}  # the flag that chooses one of each kind
_MODULE_OF = {BACKBONES: "network", METHODS: "method"}  # the file with build()


@dataclass(frozen=True)
class BackboneFlags:
    """Base of every backbone's flags. `reads` is what a sample's clip is: "video" frames, or a row of a "features" file.
    `offers` names what methods may ask of it (MethodFlags.needs). `TINY` is a small configuration for the tests."""

    reads: ClassVar[str] = "video"
    offers: ClassVar[frozenset[str]] = frozenset({"vectors"})
    TINY: ClassVar[Sequence[str]] = ()

    def backbone_faults(self) -> list[str]:
        """What is wrong with the flags of this backbone, a sentence each; `self` has the common flags, too."""
        return []


@dataclass(frozen=True)
class MethodFlags:
    """Base of every method's flags. `needs` names what the backbone must offer:

    "vectors"   features (B, N, D), averaged over N
    "tokens"    features (B, N, D) whose N vectors follow the clip in time, one of the whole clip first where there is one
    "stages"    the network in parts, stem, tail and pool (backbones.base.Staged)
    "maps"      named maps beside the features (backbones.base.Mapped)
    """

    needs: ClassVar[str] = "vectors"
    TINY: ClassVar[Sequence[str]] = ()

    def method_faults(self) -> list[str]:
        """What is wrong with the flags of this method, a sentence each; `self` has the common flags, too."""
        return []


_BASE_OF: dict[str, type] = {BACKBONES: BackboneFlags, METHODS: MethodFlags}


def search_path(package_path: Sequence[str], kind: str) -> list[str]:
    """The folders that hold plug-ins of a kind: the package's own, then the one that the user named."""
    more = os.environ.get(VARIABLE)
    return [*package_path, *([str(Path(more).resolve() / kind)] if more else [])]


def folder_fault() -> str | None:
    """What is wrong with the folder that the user named, as a sentence."""
    more = os.environ.get(VARIABLE)
    if not more or Path(more).is_dir():
        return None
    return f"{VARIABLE} {more} is not a folder: name the folder that holds backbones/NAME and methods/NAME, or unset it"


def names(kind: str) -> tuple[str, ...]:
    """The names of all plug-ins of a kind, ascending."""
    folders = import_module(f"training.{kind}").__path__
    found = {path.parent.name for folder in folders for path in Path(folder).glob(f"*/{_MODULE_OF[kind]}.py")}
    return tuple(sorted(found))


@cache
def flags_of(kind: str, name: str) -> type[Any]:
    """The dataclass of a plug-in's flags; the base where it has no flags.py."""
    module = f"training.{kind}.{name}.flags"
    return import_module(module).Flags if find_spec(module) else _BASE_OF[kind]


def build_function(kind: str, name: str) -> Any:
    """The function `build` of a plug-in. Imports torch."""
    return import_module(f"training.{kind}.{name}.{_MODULE_OF[kind]}").build


def owners(spelling: str) -> tuple[str, list[str]]:
    """(name of a flag, who has it as a user writes it, such as '--method core') of a flag in any of its spellings; no owners
    where no backbone and no method has it."""
    found: dict[str, list[str]] = {}
    for kind in (BACKBONES, METHODS):
        for name in names(kind):
            for field in fields(flags_of(kind, name)):
                if spelling in (field.name, f"--{field.name}", field.metadata["short"]):
                    found.setdefault(field.name, []).append(f"--{FLAG_OF[kind]} {name}")
    return next(iter(found.items()), (spelling.lstrip("-"), []))
