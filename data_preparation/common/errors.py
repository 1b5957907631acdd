"""Errors that a person can act on (leaf: imports only limits)."""

from __future__ import annotations

from collections.abc import Iterable

from data_preparation.common.limits import limit_error_text


class UserError(Exception):
    """Something that the user can fix. Its text is one sentence (or one a line) naming the thing and the fix."""

    @classmethod
    def of(cls, faults: Iterable[str]) -> UserError:
        """All faults at once, one a line."""
        return cls("\n".join(faults))


def first_line(error: BaseException) -> str:
    """What an exception says, in one line; its name where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def os_error_text(error: OSError) -> str:
    """The sentence about what the system refused: a file or folder, or more of something that is limited."""
    if text := limit_error_text(error):
        return text
    place = f"{error.filename}: " if error.filename else ""
    return f"{place}{error.strerror or first_line(error)}: fix its folder's permissions or disk"
