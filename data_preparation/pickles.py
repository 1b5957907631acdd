"""Reading pickles that nobody vouches for (leaf).

Annotation files are downloads, and a pickle can run code: this unpickler builds builtins and numpy scalars and arrays
and refuses everything else by name.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

from data_preparation.cli import UserError


def _numpy_globals() -> dict[tuple[str, str], Any]:
    import numpy as np
    from numpy._core import multiarray, numeric  # home of what numpy's own pickles name, under its old and its new path

    allowed: dict[tuple[str, str], Any] = {("numpy", "dtype"): np.dtype, ("numpy", "ndarray"): np.ndarray}
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        allowed[(module, "scalar")] = multiarray.scalar
        allowed[(module, "_reconstruct")] = multiarray._reconstruct
    for module in ("numpy.core.numeric", "numpy._core.numeric"):
        allowed[(module, "_frombuffer")] = numeric._frombuffer  # arrays of protocol 5
    return allowed


def _latin1_bytes(text: str, encoding: str = "latin1") -> bytes:
    """What pickles of protocol 2 call `_codecs.encode` for: bytes written as text."""
    return text.encode(encoding)


class _RestrictedUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        allowed = {**_numpy_globals(), ("_codecs", "encode"): _latin1_bytes}
        try:
            return allowed[(module, name)]
        except KeyError:
            raise UserError(
                f"refused: the pickle wants to load '{module}.{name}', which no annotation needs; do not trust this file"
            ) from None


def load_pickle(path: Path) -> Any:
    """The content of an untrusted pickle of builtins and numpy scalars and arrays.

    Raises:
        UserError: the file is missing, is no pickle, or names anything else (which is then not loaded).
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give the path of a pickle") from None
    try:
        return _RestrictedUnpickler(io.BytesIO(data)).load()
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception as error:  # a damaged pickle can raise anything
        raise UserError(
            f"{path} is not a readable pickle ({type(error).__name__}: {error}): download it again"
        ) from None
