"""Rules that correct the class of an action after the network, one file each: the name of the file is the value of --postprocess.

A file defines RULES, a `Rules` of training/postprocess/base.py. The folder in DEEPSPORTS_PLUGINS may have more, as
postprocess/NAME.py. Imports no torch.
"""

from __future__ import annotations

import hashlib
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from training.plugins import search_path

if TYPE_CHECKING:
    from training.postprocess.base import Rules

__path__ = search_path(__path__, "postprocess")


def names() -> tuple[str, ...]:
    """The names of all files with rules, sorted."""
    found = {path.stem for folder in __path__ for path in Path(folder).glob("*.py")}
    return tuple(sorted(name for name in found if name != "base" and not name.startswith("_")))


def rules_of(name: str) -> Rules:
    """The constant RULES of a file."""
    return import_module(f"training.postprocess.{name}").RULES


def code_digest(name: str) -> str:
    """A hash of the file, which tells whether its rules were changed."""
    file = import_module(f"training.postprocess.{name}").__file__
    assert file is not None
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]
