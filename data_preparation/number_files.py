"""Read arrays of numbers from untrusted MATLAB files (.mat, version 5) and numpy files (.npy).

Of a MATLAB file only numeric matrices are read: no objects, functions, structures or cells. Its compressed parts are unpacked here
up to a limit, because SciPy would unpack any size.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np

from data_preparation.common.errors import UserError, first_line
from data_preparation.file_types import unreadable_file_error

_MAX_BYTES = 16 << 20  # of a file, packed and unpacked
_MAX_VALUES = 1_000_000  # of a matrix
_HEADER_BYTES = 128
_MATRIX, _COMPRESSED = 14, 15  # types of the elements of a MATLAB file
_NUMERIC = {"double", "single", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))}


def read_numbers(path: Path, name: str | None = None) -> np.ndarray:
    """The matrix `name` of a .mat file (None: its only numeric matrix), or the array of a .npy file, as int64 or float64.

    Whole numbers become int64 because sums and differences of the stored uint8 and uint16 would wrap around.

    Raises:
        UserError: the file is missing, damaged, too large, or has no such matrix of real numbers.
    """
    try:
        size = path.stat().st_size
        if size > _MAX_BYTES:
            raise UserError(
                f"{path} has {size >> 20} MiB: give a list of numbers, which has less than {_MAX_BYTES >> 20}"
            )
        values = _npy_array(path) if path.suffix.lower() == ".npy" else _mat_array(path, name)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give the path of a .mat or .npy file") from None
    if values.dtype.kind not in "iuf" or values.size > _MAX_VALUES:
        raise UserError(f"{path} has {values.size} values of type {values.dtype}: give a list of real numbers")
    return values.astype(np.float64 if values.dtype.kind == "f" else np.int64)


def _npy_array(path: Path) -> np.ndarray:
    try:
        # mapped, so that a header that claims more values than the file has is refused before memory is allocated
        return np.array(np.load(path, mmap_mode="r", allow_pickle=False))
    except OSError:
        raise
    except Exception as error:  # a damaged header can raise anything, as zipfile and tokenize do
        raise unreadable_file_error(path, "a readable array of numbers", first_line(error), {"npy"}) from None


def _mat_array(path: Path, name: str | None) -> np.ndarray:
    # here, because only these data sets need it and the import takes a fifth of a second
    from scipy.io import loadmat, whosmat

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # SciPy warns of duplicated names and of unreadable parts
            content = _unpacked(path.read_bytes())
            numeric = {
                each: shape
                for each, shape, kind in whosmat(io.BytesIO(content))
                if kind in _NUMERIC and each.isidentifier()
            }
            if name is None and len(numeric) == 1:
                (name,) = numeric
            if name is None or name not in numeric:
                found = ", ".join(sorted(numeric)) or "none"
                raise UserError(
                    f"there is no matrix of numbers {name or 'that is the only one'} (its matrices of numbers: {found}): give the released file"
                )
            if np.prod([float(length) for length in numeric[name]]) > _MAX_VALUES:
                raise UserError(
                    f"its matrix {name} claims the shape {numeric[name]}, more than a list needs: do not trust this file"
                )
            return loadmat(io.BytesIO(content), variable_names=[name])[name]
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception as error:  # a damaged file can raise anything
        problem = f"{type(error).__name__}: {first_line(error)}"
        raise unreadable_file_error(
            path, "a readable MATLAB file of version 5 (save -v7)", problem, {"matlab"}
        ) from None


def _unpacked(content: bytes) -> bytes:
    """The content of a MATLAB file with its compressed elements unpacked.

    Raises:
        ValueError: it is not a complete file of version 5. UserError: it unpacks to more than the limit.
    """
    version, order = content[124:126], content[126:128]
    if order not in (b"IM", b"MI") or version not in (b"\x00\x01", b"\x01\x00"):
        raise ValueError("its header is not that of version 5")
    endian = "<" if order == b"IM" else ">"
    parts, position, unpacked = [content[:_HEADER_BYTES]], _HEADER_BYTES, 0
    while position < len(content):
        kind, length = struct.unpack_from(f"{endian}II", content, position)
        element = content[position + 8 : position + 8 + length]
        if kind not in (_MATRIX, _COMPRESSED) or len(element) < length:
            raise ValueError("it ends early or has an unknown element")
        if kind == _COMPRESSED:
            stream = zlib.decompressobj()
            element = stream.decompress(element, max(_MAX_BYTES - unpacked, 1))  # 0 would mean any size
            if not stream.eof:
                raise UserError(
                    "it ends early or unpacks to more than a list needs: download it again, or do not trust it"
                )
            parts.append(element)
        else:
            parts.append(content[position : position + 8] + element)
        unpacked += len(element)
        position += 8 + length
    return b"".join(parts)


def in_points(values: np.ndarray, limit: float = 1000) -> np.ndarray:
    """Scores in points (or difficulties), rounded to 2 decimals; some copies of the data sets store them times 100, with noise
    of floating point. They do if the largest value exceeds `limit`, which no real value does.
    """
    values = values.astype(np.float64)
    hundredfold = np.nanmax(values, initial=0.0) > limit
    return np.round(values / 100 if hundredfold else values, 2)
