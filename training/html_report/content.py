"""What a page is made of. All texts are plain: the templates escape them. Imports nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Picture:
    """A drawing of figures.py. `alt` says in words what it shows, `caption` what to see in it."""

    svg: str
    alt: str
    caption: str
    wide: bool = False  # takes the whole width of the page


@dataclass(frozen=True)
class Table:
    """A table: the first `names` columns are texts, the others numbers, which are aligned on the right."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str
    names: int = 1
    wide: bool = True  # takes the whole width of the page


@dataclass(frozen=True)
class Section:
    """A part of a page with a title."""

    title: str
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    text: str = ""


@dataclass(frozen=True)
class Tile:
    """A number at the top of a page, with what it is and how sure it is."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class ExampleTexts:
    """What a page says about examples: a line for each of A test actions, and the titles of the best and of the worst ones."""

    lines: Sequence[str]
    best: str
    worst: str
