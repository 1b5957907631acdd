"""Errors that users can act on (imports only common.limits)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from data_preparation.common.limits import limit_error_text

_Result = TypeVar("_Result")


class UserError(Exception):
    """An error that the user can fix. Its message is one sentence per line; each names the cause and the fix."""

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


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or the name of its class if the message is empty."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def os_error_text(error: OSError) -> str:
    """Turn an OSError into a message for the user: either a limit was reached, or a file or folder is not accessible."""
    if text := limit_error_text(error):
        return text
    place = f"{error.filename}: " if error.filename else ""
    return f"{place}{error.strerror or first_line(error)}: check the permissions of its folder, and the disk"
