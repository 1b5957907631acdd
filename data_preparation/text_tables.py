"""Read text files, JSON, and CSV tables as spreadsheet programs write them (imports only common.errors and file_types)."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from data_preparation.common.errors import UserError, first_line
from data_preparation.file_types import file_type_hint

CLASS_NAMES = "classes.txt"  # the names of the classes, label 0 first
_MAX_DIGITS = 20  # of a whole number in JSON
_MAX_ROW_FAULTS = 50  # reported of rows with the wrong number of cells


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, or in UTF-16 with a byte order mark.

    Raises:
        UserError: the file is missing or is not text.
    """
    if hint := file_type_hint(Path(path), wanted={"text", "utf-16", "json", "empty"}):
        raise UserError(f"{path} cannot be read as text: {hint}")
    try:
        content = Path(path).read_bytes()
        if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # Excel's "Unicode text"
            return content.decode("utf-16").lstrip("\ufeff")
        return content.decode("utf-8-sig")  # spreadsheet programs write a byte order mark
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give a text file in UTF-8") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} cannot be read ({first_line(error)}): it is not text in UTF-8; save it again as UTF-8 (Excel: 'CSV UTF-8'), or convert it: iconv -f WINDOWS-1252 -t UTF-8"
        ) from None


def load_json(text: str) -> tuple[Any, list[str]]:
    """(the content of a JSON text, the names that occur twice in one object, of which JSON keeps only the last).

    Raises:
        ValueError: it is not JSON.
    """
    repeated: dict[str, None] = {}

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):
            counts = Counter(name for name, _ in pairs)
            repeated.update((name, None) for name, count in counts.items() if count > 1)
        return content

    try:
        content = json.loads(text, object_pairs_hook=unique, parse_int=_json_number)
        if "\\ud" in text.lower():
            json.dumps(content, ensure_ascii=False).encode()  # refuses half of a pair of surrogates
        return content, list(repeated)
    except RecursionError:
        raise ValueError("too many brackets in brackets") from None


def _json_number(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def whole_number(value: Any) -> int:
    """A whole number from text, or from a number of any type.

    Raises:
        TypeError, ValueError, OverflowError: it is not one.
    """
    if isinstance(value, bool) or (not isinstance(value, str) and int(value) != value):
        raise ValueError("not a whole number")
    return int(value)


def csv_cells(path: Path) -> tuple[list[str], list[tuple[int, list[str]]], list[str]]:
    """(header, (row number, cells) of each row that is not empty, faults of rows with more cells than the header).

    The separator is a comma, semicolon or tab, whichever the first line has, or the one of Excel's line `sep=;`. Cells
    are stripped.

    Raises:
        UserError: the file is not a readable CSV.
    """
    lines = io.StringIO(read_text(path), newline="")
    first = lines.readline()
    start, above = 0, 1  # position of the header, number of lines above the first row
    # Excel may write a first line that names the separator
    if excel := re.fullmatch(r"\"?sep=(.)\"?[,;\t\s]*", first, re.IGNORECASE):
        start, above, delimiter = lines.tell(), 2, excel[1]
    else:
        delimiter = next((d for d in ",;\t" if d in first), ",")
        if delimiter not in first and re.search(r"\S[ |]+\S", first):
            raise UserError(
                f"{path}: its first line has no comma, semicolon or tab between the column names: separate the cells with commas"
            )
    lines.seek(start)
    try:
        header, *rows = list(csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)) or [[]]
    except csv.Error as error:
        raise UserError(f"{path} is not a readable CSV ({first_line(error)}): check its quotes") from None
    longer = [(number, row) for number, row in enumerate(rows, start=above + 1) if len(row) > len(header)]
    trailing = len(longer) == sum(any(row) for row in rows)  # separators at the end of every row: no cell is shifted
    faults = [
        f"{path}, row {number}: {len(row)} cells for {len(header)} columns (is there a comma inside a number or a text? Write a decimal point, or put the cell in quotes)"
        for number, row in longer
        if any(row[len(header) :]) or (any(row) and not trailing)
    ]
    stripped = [(number, [cell.strip() for cell in row]) for number, row in enumerate(rows, start=above + 1)]
    return [name.strip() for name in header], [(n, row) for n, row in stripped if any(row)], faults[:_MAX_ROW_FAULTS]


def read_class_names(path: Path) -> tuple[str, ...]:
    """The class names of a file with one name a line, label 0 first.

    Raises:
        UserError: it is empty, or a name occurs twice.
    """
    names = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if not names:
        raise UserError(f"{path} is empty: write one class a line, label 0 first")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"{path} names {', '.join(twice[:5])} twice: write each class once, label 0 first")
    return tuple(names)
