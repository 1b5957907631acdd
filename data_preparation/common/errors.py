"""Errors that users can act on (imports only common.limits)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

from data_preparation.common.limits import limit_error_text

_Result = TypeVar("_Result")
_LONG_NUMBER = re.compile(r"[0-9]{61,}")
# what Python raises when the content of a file is not of the types, sizes and nesting that a reader expects
_CONTENT_ERRORS = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    RecursionError,
    SyntaxError,
    TypeError,
    ValueError,
)


def printable(text: str, keep: str = "") -> str:
    """Text for a terminal, a table or a picture: control characters (but those to keep) and lone surrogates as escapes. File names
    may have both."""
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


def _shown(text: str) -> str:
    """A message for a terminal: printable lines, long numbers shortened."""
    text = printable(text, keep="\n")
    return _LONG_NUMBER.sub(lambda digits: f"{digits[0][:20]}... ({len(digits[0])} digits)", text)


class UserError(Exception):
    """An error that the user can fix. Its message is one sentence per line; each names the cause and the fix."""

    def __init__(self, message: str) -> None:
        super().__init__(_shown(message))

    @classmethod
    def of(cls, faults: Iterable[str]) -> UserError:
        """One error for several faults, one per line."""
        return cls("\n".join(faults))


def read_all(readers: Mapping[str, Callable[[], _Result]]) -> dict[str, _Result]:
    """The results of several readers by name.

    Raises:
        UserError: with the faults of all readers that raised one.
    """
    results, faults = {}, []
    for name, reader in readers.items():
        try:
            results[name] = reader()
        except UserError as error:
            faults.append(str(error))
    if faults:
        raise UserError.of(faults)
    return results


@contextmanager
def reading_untrusted(where: str) -> Iterator[None]:
    """Turn the errors that unexpected content of files causes into a UserError that names the files `where`.

    The original error stays its cause, so a defect of the reader can be found.

    Raises:
        UserError: the block raised one, or met unexpected content.
    """
    try:
        yield
    except _CONTENT_ERRORS as error:
        problem = f"{type(error).__name__}: {first_line(error)[:200]}"
        raise UserError(
            f"{where} cannot be read ({problem}): its content is not that of this format; correct it"
        ) from error


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or the name of its class if the message is empty."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def os_error_text(error: OSError) -> str:
    """Turn an OSError into a message for the user: either a limit was reached, or a file or folder is not accessible."""
    if text := limit_error_text(error):
        return text
    place = f"{error.filename}: " if error.filename else ""
    return f"{place}{error.strerror or first_line(error)}: check the permissions of its folder, and the disk"
