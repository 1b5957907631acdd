"""Find backbones and methods: each is a folder, and the folder's name is its name on the command line. Imports no torch.

    training/backbones/NAME/    flags.py    the flags of --model NAME: a dataclass `Flags`, without torch (optional)
                                network.py  build(config) -> Backbone
    training/methods/NAME/      flags.py    the flags of --method NAME (optional)
                                method.py   build(config, feature_dim, data) -> Method

The environment variable DEEPSPORTS_PLUGINS may name a folder with more of them, as backbones/NAME and methods/NAME.
There is no other list of backbones and methods: the command line, the README tables and the tests use this module.
Tasks are files of training/tasks, data sets files of data_preparation/datasets; the folder may have more of both, too.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from data_preparation.datasets import PLUGINS as VARIABLE

BACKBONES, METHODS = "backbones", "methods"
FLAG_OF = {BACKBONES: "model", METHODS: "method"}  # the flag that chooses one of each kind
_MODULE_OF = {BACKBONES: "network", METHODS: "method"}  # the file with build()


@dataclass(frozen=True)
class BackboneFlags:
    """Base class of a backbone's flags.

    `reads` is the input: "video" frames, or vectors of a "features" file. `offers` lists what a method may require
    (MethodFlags.needs). `any_size` says that the input need not be square (--spatial_width). `TINY` holds flags of a small
    network for the tests. Of a backbone that offers "stages", the maps between stem and tail have `stem_channels` channels, and
    one position for `stem_stride` x `stem_stride` pixels. `weights_licence` is a sentence about the published weight files, for
    model cards.
    """

    reads: ClassVar[str] = "video"
    offers: ClassVar[frozenset[str]] = frozenset({"vectors"})
    any_size: ClassVar[bool] = False
    stem_channels: ClassVar[int] = 0
    stem_stride: ClassVar[int] = 0
    weights_licence: ClassVar[str] = ""
    TINY: ClassVar[Sequence[str]] = ()

    if TYPE_CHECKING:
        # config_class() composes the common flags and those of the chosen backbone and method into one class at run time

        def __getattr__(self, name: str) -> Any: ...

    def backbone_faults(self) -> list[str]:
        """Check the flags of this backbone; return one sentence per error. `self` also has the common flags."""
        return []


@dataclass(frozen=True)
class MethodFlags:
    """Base class of a method's flags. `needs` is what the backbone must offer:

    "vectors"   features (B, N, D), averaged over N
    "tokens"    features (B, N, D) whose N vectors are in temporal order, after one of the whole clip if the backbone has one
    "stages"    the network split into stem, tail and pool (backbones.base.Staged)
    "maps"      named feature maps together with the features (backbones.base.Mapped)
    "volume"    maps of the whole clip, named "volume": (B, feature_dim, T, H, W)
    "attention" maps of an attention branch, named "attention": (B, K, T, H, W); --frame_num is T, and the backbone's flag
                --attention_channels is K
    "frames"    features (B, N, D) of video frames that the method chooses; every backbone that reads video offers them

    `clips_per_sample` is the number of clips of a training sample, for forecasts of memory. `task` is what the method predicts:
    the name of a file in training/tasks.
    """

    task: ClassVar[str] = "score"
    TINY: ClassVar[Sequence[str]] = ()
    clips_per_sample: ClassVar[int] = 1

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    @property
    def needs(self) -> str:
        return "vectors"

    def method_faults(self) -> list[str]:
        """Check the flags of this method; return one sentence per error. `self` also has the common flags."""
        return []


_BASE_OF: dict[str, type] = {BACKBONES: BackboneFlags, METHODS: MethodFlags}


def search_path(package_path: Sequence[str], kind: str) -> list[str]:
    """The folders with plug-ins of a kind: the package's own, then the one in DEEPSPORTS_PLUGINS."""
    more = os.environ.get(VARIABLE)
    return [*package_path, *([str(Path(more).resolve() / kind)] if more else [])]


def folder_fault() -> str | None:
    """Return an error message if DEEPSPORTS_PLUGINS is set and is not a folder, else None."""
    more = os.environ.get(VARIABLE)
    if not more or Path(more).is_dir():
        return None
    return f"{VARIABLE} {more} is not a folder: name the folder that holds backbones/NAME and methods/NAME, or unset it"


def names(kind: str) -> tuple[str, ...]:
    """The names of all plug-ins of a kind, sorted."""
    folders = import_module(f"training.{kind}").__path__
    found = {path.parent.name for folder in folders for path in Path(folder).glob(f"*/{_MODULE_OF[kind]}.py")}
    return tuple(sorted(found))


@cache
def flags_of(kind: str, name: str) -> type[Any]:
    """The dataclass of a plug-in's flags; the base class if it has no flags.py."""
    module = f"training.{kind}.{name}.flags"
    return import_module(module).Flags if find_spec(module) else _BASE_OF[kind]


def build_function(kind: str, name: str) -> Any:
    """The `build` function of a plug-in. Imports torch."""
    import_module("training._torchvision")  # before the plug-in, which may import timm first
    return import_module(f"training.{kind}.{name}.{_MODULE_OF[kind]}").build


def owners(spelling: str) -> tuple[str, list[str]]:
    """The full name of a flag and the plug-ins that define it, such as ("topology", ["--method regression"]).

    `spelling` is the name, with or without dashes, or the short form. The list is empty if no plug-in defines the flag.
    """
    found: dict[str, list[str]] = {}
    for kind in (BACKBONES, METHODS):
        for name in names(kind):
            for field in fields(flags_of(kind, name)):
                if spelling in (field.name, f"--{field.name}", field.metadata["short"]):
                    found.setdefault(field.name, []).append(f"--{FLAG_OF[kind]} {name}")
    return next(iter(found.items()), (spelling.lstrip("-"), []))
