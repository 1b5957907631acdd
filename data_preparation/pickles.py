"""Load untrusted pickles safely.

Annotation files are downloaded, and a pickle can run code. This unpickler builds builtins, numpy scalars and
arrays, and the content of a few harmless classes. It calls only functions of this module, and refuses every other name.
"""

from __future__ import annotations

import _compat_pickle
import datetime
import io
import pickle
import pickletools
import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Literal

import numpy as np

from data_preparation.common.errors import UserError, first_line
from data_preparation.file_types import unreadable_file_error

# dtypes of numbers and text; not object, whose items are pointers
_PLAIN_TYPE = re.compile(r"[biuf][0-9]{1,2}|[SU][0-9]{1,6}")
_MAX_ITEMS = 2_000_000  # of the content, where a container that is referred to twice counts twice
_MAX_DEPTH = 100  # of containers in containers
_MAX_BITS = 64  # of a whole number

# Python 2 wrote text as bytes, mostly UTF-8, with the same opcode as numpy's raw numbers. Decoding with surrogateescape
# loses nothing: bytes that are not UTF-8 become lone surrogates, which encode to the same bytes.
_TEXT, _ESCAPED = "utf-8", "surrogateescape"


def _bytes(raw: Any) -> bytes:
    """The bytes of a pickled value; those that Python 2 wrote arrive as text."""
    return raw.encode(_TEXT, _ESCAPED) if isinstance(raw, str) else bytes(memoryview(raw))


class _Dtype:
    """Replaces numpy.dtype, whose own unpickling trusts flags and pointers in the file."""

    def __init__(self, code: str, align: bool = False, copy: bool = False) -> None:
        if not (isinstance(code, str) and _PLAIN_TYPE.fullmatch(code)):
            raise UserError(
                f"refused: the pickle holds an array of type '{code}', which no annotation needs: save lists instead (.tolist())"
            )
        self.type = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] in ("<", ">"):
            self.type = self.type.newbyteorder(state[1])


class _Array:
    """Replaces numpy.ndarray; its values are read from the pickled bytes."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, raw = state
        self._values = _values(raw, dtype, shape, "F" if fortran else "C")

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self._values if dtype is None else self._values.astype(dtype)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._values)

    def tolist(self) -> list[Any]:
        return self._values.tolist()


def _values(raw: Any, dtype: _Dtype, shape: tuple[int, ...], order: Literal["C", "F"] = "C") -> np.ndarray:
    return np.frombuffer(_bytes(raw), dtype.type).reshape(shape, order=order)


def _scalar(dtype: _Dtype, raw: Any) -> Any:
    return _values(raw, dtype, (1,))[0]


def _latin1_bytes(text: str = "", encoding: str = "latin1") -> bytes:
    """Replaces `_codecs.encode` and `bytes`: pickles of protocol 2 write bytes as Latin-1 text."""
    return text.encode(encoding)


def _bytearray(raw: Any = b"", encoding: str = "latin1") -> bytearray:
    return bytearray(raw.encode(encoding) if isinstance(raw, str) else _bytes(raw))


def _items(items: Any) -> list[Any]:
    if not isinstance(items, (list, tuple, set, frozenset)):  # a range could be endless
        raise UserError(f"refused: the pickle makes a set of '{type(items).__name__}'")
    return list(items)


def _dict(*content: Any) -> dict[Any, Any]:
    """Replaces OrderedDict, Counter and similar classes; a dict keeps the same order."""
    (first,) = content or ({},)
    return dict(first if isinstance(first, dict) else _items(first))


def _defaultdict(factory: Any = None, *content: Any) -> dict[Any, Any]:
    return _dict(*content)


def _range(*bounds: int) -> range:
    found = range(*bounds)
    if not -_MAX_ITEMS < found.stop - found.start < _MAX_ITEMS:
        raise UserError(f"refused: the pickle holds a range of {found.start} to {found.stop}")
    return found


def _number(text: Any) -> float:
    """Replaces decimal.Decimal."""
    return float(text)


def _path(kind: type[PurePosixPath | PureWindowsPath]) -> Callable[..., str]:
    return lambda *parts: str(kind(*map(str, parts)))


def _moment(kind: type) -> Callable[..., Any]:
    """Replaces date, time and datetime, built from their packed bytes; time zones are dropped."""
    return lambda packed, zone=None: kind(_bytes(packed))


def _no_zone(*_: Any) -> None:
    return None


def _type_only(name: str) -> Callable[..., Any]:
    """Replaces a type that a pickle may name (as the default factory of a defaultdict) but not call."""

    def call(*_: Any) -> Any:
        raise UserError(f"refused: the pickle calls '{name}', which no annotation needs; do not trust this file")

    return call


class _Maker:
    """Wraps a function so that a pickle can call it but cannot modify it."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make

    def __call__(self, *arguments: Any) -> Any:
        return self._make(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise UserError("refused: the pickle tries to modify the functions that load it; do not trust this file")


_ALLOWED: dict[tuple[str, str], Any] = {
    ("_codecs", "encode"): _latin1_bytes,
    ("builtins", "bytes"): _latin1_bytes,
    ("builtins", "bytearray"): _bytearray,
    ("builtins", "set"): lambda items=(): set(_items(items)),
    ("builtins", "frozenset"): lambda items=(): frozenset(_items(items)),
    ("builtins", "slice"): slice,
    ("builtins", "range"): _range,
    ("builtins", "complex"): complex,
    ("collections", "OrderedDict"): _dict,
    ("collections", "Counter"): _dict,
    ("collections", "defaultdict"): _defaultdict,
    ("datetime", "date"): _moment(datetime.date),
    ("datetime", "time"): _moment(datetime.time),
    ("datetime", "datetime"): _moment(datetime.datetime),
    ("datetime", "timedelta"): datetime.timedelta,
    ("datetime", "timezone"): _no_zone,
    ("decimal", "Decimal"): _number,
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Array,
}
for _name in ("int", "float", "bool", "str", "list", "tuple", "dict", "object"):
    _ALLOWED[("builtins", _name)] = _type_only(_name)
for _module in ("pathlib", "pathlib._local"):
    for _name, _kind in (("Posix", PurePosixPath), ("Windows", PureWindowsPath)):
        _ALLOWED[(_module, f"{_name}Path")] = _ALLOWED[(_module, f"Pure{_name}Path")] = _path(_kind)
for _module in ("numpy.core", "numpy._core"):  # before and since numpy 2
    _ALLOWED[(f"{_module}.multiarray", "scalar")] = _scalar
    _ALLOWED[(f"{_module}.multiarray", "_reconstruct")] = lambda *_: _Array()
    _ALLOWED[(f"{_module}.numeric", "_frombuffer")] = _values  # arrays of protocol 5

_ALLOWED = {name: make if isinstance(make, type) else _Maker(make) for name, make in _ALLOWED.items()}

_CONVERT_FIX = "write plain lists, dictionaries, numbers and text instead, or a CSV"


def current_name(module: str, name: str) -> tuple[str, str]:
    """The Python 3 (module, name) of a class or function; pickles of Python 2 use the old ones."""
    if (module, name) in _compat_pickle.NAME_MAPPING:
        return _compat_pickle.NAME_MAPPING[(module, name)]
    return _compat_pickle.IMPORT_MAPPING.get(module, module), name


# modules and names that run programs or open files, directly or not: no honest data file refers to them
_PROGRAMS = {
    *(
        "os",
        "posix",
        "nt",
        "sys",
        "subprocess",
        "importlib",
        "runpy",
        "pty",
        "shutil",
        "socket",
        "ctypes",
        "code",
        "pdb",
    ),
    *("bdb", "pickle", "_pickle", "webbrowser", "commands", "popen2", "timeit", "pip", "marshal", "imp", "asyncio"),
    *("torch.hub", "torch.utils.cpp_extension", "types.FunctionType", "types.CodeType", "types.LambdaType"),
    *(
        f"builtins.{name}"
        for name in ("eval", "exec", "compile", "open", "__import__", "input", "breakpoint", "globals")
    ),
    *(f"builtins.{name}" for name in ("execfile", "file", "apply")),
}


def runs_programs(module: str, name: str) -> bool:
    """Whether a name (as `current_name` returns it) makes a pickle an attack instead of a data file."""
    parts = f"{module}.{name}".split(".")
    return any(".".join(parts[:length]) in _PROGRAMS for length in range(1, len(parts) + 1))


def _refusal(module: str, name: str) -> UserError:
    """The error for a name that is not loaded: the reason, and the fix unless the pickle is an attack."""
    wanted = f"refused: the pickle wants to load '{module}.{name}'"
    if runs_programs(module, name):
        return UserError(f"{wanted}, which no annotation needs; do not trust this file")
    if module.split(".")[0] == "pandas":
        return UserError(
            f"{wanted}, a pandas table: write it as CSV where you made it (table.to_csv('dives.csv', index=False))"
        )
    if module.split(".")[0] == "torch":
        return UserError(f"{wanted}, a tensor: write numbers or lists instead (.item(), .tolist())")
    return UserError(
        f"{wanted}, which no annotation needs and which is never loaded, since a class can run code: {_CONVERT_FIX}"
    )


class _RestrictedUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[current_name(module, name)]
        except KeyError:
            raise _refusal(*current_name(module, name)) from None


def has_old_text(data: bytes) -> bool:
    """Whether a pickle has text that Python 2 wrote. Reads the opcodes without building objects.

    Raises:
        UserError: its memo indices are far larger than its number of objects; Python would allocate such a large table.
        ValueError: it is not a complete pickle.
    """
    highest = count = 0
    old_text = False
    for operation, argument, _ in pickletools.genops(data):
        count += 1
        if operation.name in ("PUT", "BINPUT", "LONG_BINPUT") and argument is not None:
            highest = max(highest, int(argument))
        old_text = old_text or operation.name in ("STRING", "BINSTRING", "SHORT_BINSTRING")
    if highest > 10 * count + 1000:
        raise UserError("refused: the pickle would allocate more memory than its objects need; do not trust this file")
    return old_text


def _decode_old_text(value: Any, done: dict[int, Any]) -> Any:
    """The value with text that is not UTF-8 decoded as Latin-1; `done` has the converted containers by id."""
    if isinstance(value, str):
        escaped = any("\udc80" <= letter <= "\udcff" for letter in value)
        return _bytes(value).decode("latin1") if escaped else value
    if id(value) in done:
        return done[id(value)]
    if type(value) is dict:
        done[id(value)] = {_decode_old_text(key, done): _decode_old_text(item, done) for key, item in value.items()}
    elif type(value) in (list, tuple, set, frozenset):
        done[id(value)] = type(value)(_decode_old_text(item, done) for item in value)
    else:
        return value
    return done[id(value)]


def _check_size(value: Any, done: dict[int, tuple[int, int]], old_text: bool, level: int = 0) -> tuple[int, int]:
    """(number of items, depth) of a value if all references are followed; `done` has those of containers by id.
    Text of Python 2 (`old_text`) may have surrogates, which are decoded later.

    Raises:
        UserError: it has too many items, is too deep, or has text, numbers or arrays that no annotation needs.
    """
    if level > _MAX_DEPTH:
        raise UserError(
            f"refused: the pickle has more than {_MAX_DEPTH} levels of containers, or one that holds itself"
        )
    if isinstance(value, str) and not old_text and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise UserError(f"refused: the pickle holds the text {value[:40]!r}, which is not Unicode: correct it")
    if isinstance(value, int) and value.bit_length() > _MAX_BITS:
        raise UserError("refused: the pickle holds a whole number of more than 19 digits, which no annotation needs")
    if isinstance(value, _Array):
        if not hasattr(value, "_values"):
            raise UserError("refused: the pickle holds an array without values: save it again")
        return value._values.size + 1, 1
    if isinstance(value, range):
        return len(value) + 1, 1
    if not isinstance(value, (dict, list, tuple, set, frozenset)):
        return 1, 0
    if id(value) not in done:
        items, depth = 1, 0
        for each in (*value.keys(), *value.values()) if isinstance(value, dict) else value:
            own_items, own_depth = _check_size(each, done, old_text, level + 1)
            items, depth = items + own_items, max(depth, own_depth)
        if items > _MAX_ITEMS or depth >= _MAX_DEPTH:
            raise UserError(
                f"refused: the pickle expands to more than {_MAX_ITEMS} items or {_MAX_DEPTH} levels, which no annotation needs"
            )
        done[id(value)] = (items, depth + 1)
    return done[id(value)]


def load_pickle(path: Path) -> Any:
    """Load an untrusted pickle of builtins, numpy scalars and arrays, and harmless containers.

    OrderedDict, defaultdict and Counter become dict, paths become text, Decimal becomes float.

    Raises:
        UserError: the file is missing, is not a pickle, or names anything else (which is then not loaded).
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give the path of a pickle") from None
    try:
        old_text = has_old_text(data)
        content = _RestrictedUnpickler(io.BytesIO(data), encoding=_TEXT, errors=_ESCAPED).load()
        _check_size(content, {}, old_text)
        return _decode_old_text(content, {}) if old_text else content
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception as error:  # a damaged pickle can raise anything
        problem = f"{type(error).__name__}: {first_line(error)}"
        raise unreadable_file_error(path, "a readable pickle", problem, {"pickle"}) from None
