"""Reading pickles that nobody vouches for (leaf).

Annotation files are downloads, and a pickle can run code: this unpickler builds builtins and numpy scalars and arrays
and refuses everything else by name.
"""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_preparation.cli import UserError

_PLAIN_TYPE = re.compile(r"[biuf][0-9]{1,2}|[SU][0-9]{1,6}")  # numbers and text; never objects, which are pointers


class _Dtype:
    """Stands in for numpy.dtype, whose own way of being unpickled trusts the file with flags and pointers."""

    def __init__(self, code: str, align: bool = False, copy: bool = False) -> None:
        if not (isinstance(code, str) and _PLAIN_TYPE.fullmatch(code)):
            raise UserError(f"refused: the pickle holds an array of type '{code}', which no annotation needs")
        self.type = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] in ("<", ">"):
            self.type = self.type.newbyteorder(state[1])


class _Array:
    """Stands in for numpy.ndarray: filled from its bytes."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, raw = state
        self._values = _values(raw, dtype, shape, "F" if fortran else "C")

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self._values if dtype is None else self._values.astype(dtype)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._values)

    def tolist(self) -> list[Any]:
        return self._values.tolist()


def _values(raw: bytes, dtype: _Dtype, shape: tuple[int, ...], order: str = "C") -> np.ndarray:
    return np.frombuffer(raw, dtype.type).reshape(shape, order=order)


def _scalar(dtype: _Dtype, raw: bytes) -> Any:
    return _values(raw, dtype, (1,))[0]


def _latin1_bytes(text: str, encoding: str = "latin1") -> bytes:
    """What pickles of protocol 2 call `_codecs.encode` for: bytes written as text."""
    return text.encode(encoding)


_ALLOWED: dict[tuple[str, str], Any] = {
    ("_codecs", "encode"): _latin1_bytes,
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Array,
}
for _home in ("numpy.core", "numpy._core"):  # before and since numpy 2
    _ALLOWED[(f"{_home}.multiarray", "scalar")] = _scalar
    _ALLOWED[(f"{_home}.multiarray", "_reconstruct")] = lambda *_: _Array()
    _ALLOWED[(f"{_home}.numeric", "_frombuffer")] = _values  # arrays of protocol 5


class _RestrictedUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[(module, name)]
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
