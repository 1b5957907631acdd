"""Find files with names similar to a missing one (imports nothing of the project).

Similar are numbered pictures of another pattern, and misspelt names. Messages about missing files name these, so that
users see which rename or flag fixes the fault.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
_NUMBERED = re.compile(r"(?P<before>.*?)(?P<digits>[0-9]+)(?P<after>[^0-9]*)")


@dataclass(frozen=True)
class Numbering:
    """Files of one folder whose names differ only in a number: a printf `pattern`, and `numbers` in ascending order."""

    pattern: str
    numbers: tuple[int, ...]

    def name(self, number: int) -> str:
        """The name of the file with this number."""
        return self.pattern % number

    @property
    def text(self) -> str:
        """A short description for messages."""
        first, last = self.name(self.numbers[0]), self.name(self.numbers[-1])
        return f"{len(self.numbers)} files {first} to {last}" if len(self.numbers) > 1 else f"1 file {first}"


def numberings(names: Iterable[str]) -> list[Numbering]:
    """Group the numbered pictures among file names by their pattern, the largest group first."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name in names:
        match = _NUMBERED.fullmatch(name)
        if match and name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith("."):
            groups.setdefault((match["before"], match["after"]), []).append(match["digits"])
    found = []
    for (before, after), digits in groups.items():
        padded = sorted({len(d) for d in digits if d.startswith("0")}, reverse=True)
        lengths = {len(d) for d in digits}
        if not padded and len(lengths) == 1 and len(digits) > 1 and min(lengths) > 1:
            padded = [min(lengths)]  # all numbers have the same length, so %0Nd fits as well
        by_width: dict[int, list[int]] = {}
        for d in digits:
            width = len(d) if d.startswith("0") else next((w for w in padded if w <= len(d)), 0)
            by_width.setdefault(width, []).append(int(d))
        for width, numbers in by_width.items():
            start, end = (text.replace("%", "%%") for text in (before, after))
            found.append(
                Numbering(f"{start}%0{width}d{end}" if width > 1 else f"{start}%d{end}", tuple(sorted(numbers)))
            )
    return sorted(found, key=lambda n: (-len(n.numbers), n.pattern))


def names_in(folder: Path) -> list[str]:
    """The sorted names in a folder; empty if it cannot be read."""
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def walk_once(source: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """(folder, names of its folders, names of its files) of a folder and all below it, sorted, without names that begin with
    a dot. Follows links, but into no folder twice. Clear the list of folders to stay above them."""
    seen: set[tuple[int, int]] = set()
    for name, inner, names in os.walk(source, followlinks=True):
        status = os.stat(name)
        if (status.st_dev, status.st_ino) in seen:
            inner.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        inner[:] = sorted(each for each in inner if not each.startswith("."))
        yield Path(name), inner, sorted(each for each in names if not each.startswith("."))


def names_like_video(names: Iterable[str], video: str, suffixes: Iterable[str] | None = None) -> list[str]:
    """The names that may be meant for a video: `names_with_number` of a numbered video; of others, similar names."""
    if video.isdigit():
        return names_with_number(names, int(video), suffixes)
    stem = video.rsplit("/", 1)[-1]
    ending = tuple(suffixes or ())
    return [name for name in similar_names(stem, names) if not ending or name.lower().endswith(ending)]


def names_with_number(names: Iterable[str], number: int, suffixes: Iterable[str] | None = None) -> list[str]:
    """The names that contain `number` ('video 1.mp4', '001.mp4', '01_final.mp4' for 1) and, if given, have one of `suffixes`."""
    found = []
    for name in names:
        stem = name if suffixes is None else _remove_suffix(name, tuple(suffixes))
        if number in map(int, re.findall(r"[0-9]+", stem or "")) and not name.startswith("."):
            found.append(name)
    return found


def _remove_suffix(name: str, suffixes: tuple[str, ...]) -> str | None:
    """The name without its suffix, or None if it has none of `suffixes`."""
    for suffix in suffixes:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return None


def similar_names(name: str, names: Iterable[str], suffixes: Iterable[str] = ()) -> list[str]:
    """Up to three names that are similar to `name`.

    First names that are equal except for case, spaces or suffix, then names with a few other letters, then any name
    that has one of `suffixes`.
    """
    names = [n for n in names if n != name and not n.startswith(".")]

    def plain(text: str) -> str:
        return re.sub(r"[^a-z0-9]", "", Path(text).stem.lower())

    same = [n for n in names if plain(n) == plain(name)]
    close = difflib.get_close_matches(name, names, 3, cutoff=0.75)
    other = [n for n in names if n.lower().endswith(tuple(suffixes))] if tuple(suffixes) else []
    return list(dict.fromkeys([*same, *close, *other]))[:3]


def similar_files_hint(path: Path, suffixes: Iterable[str] = ()) -> str:
    """A clause for a message about a missing file that names similar files in its folder, or ''."""
    if path.is_symlink():
        return f" ({path.name} is a link to {path.readlink()}, which does not exist)"
    if not path.parent.is_dir():
        existing = next((p for p in path.parents if p.is_dir()), None)
        return f" (the folder {path.parent} does not exist either; {existing} does)" if existing else ""
    found = similar_names(path.name, names_in(path.parent), suffixes)
    return f" ({path.parent} has {', '.join(found)})" if found else ""
