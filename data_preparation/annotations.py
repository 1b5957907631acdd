"""Annotation files -> Dive records, and what a person wants to know of them.

    python -m data_preparation.annotations summary --dataset DIR
    python -m data_preparation.annotations disjoint --train_path small.pkl --test_path test.pkl --output train.pkl

Reads MTL-AQA's own pickles (Parmar and Morris, "What and How Well You Performed? A Multitask Learning Approach to
Action Quality Assessment", CVPR 2019), and CSV or JSON of the same fields. Whatever is wrong with a file is said at
once, a line for each fault.
"""

from __future__ import annotations

import codecs
import csv
import difflib
import functools
import hashlib
import io
import json
import pickle
import re
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from data_preparation.common.command_line import flag, parse_command, run
from data_preparation.common.errors import UserError, first_line
from data_preparation.common.files import reporting_write_errors, write_atomic
from data_preparation.dives import (
    ATTRIBUTE_CLASSES,
    POSITION_LETTERS,
    POSITIONS,
    ROTATION_TYPES,
    Dive,
    DiveKey,
    VideoFacts,
    dive_faults,
    dive_name,
    judge_exceptions,
    judged_score,
    list_names,
    overlap_faults,
)
from data_preparation.file_types import file_type_hint
from data_preparation.layout import DatasetLayout, default_dataset
from data_preparation.pickles import load_pickle
from data_preparation.similar_files import similar_files_hint

_REQUIRED = ("start_frame", "end_frame", "difficulty", "final_score")
_VIDEO_COLUMNS, _DIVE_COLUMNS = ("video", "video_num"), ("dive", "number")
_TEXT_SUFFIXES = (".csv", ".tsv", ".txt")
_SUFFIXES = (".pkl", ".pickle", ".csv", ".tsv", ".json")
_MOST_FAULTS = 50  # of rows that are all wrong in the same way
_WORDS = {
    "position": {
        **{w: i for i, w in enumerate(POSITIONS)},
        **{letter.lower(): i for i, letter in enumerate(POSITION_LETTERS)},
    },
    "rotation_type": {w: i for i, w in enumerate(ROTATION_TYPES)},
    "armstand": {"false": 0, "no": 0, "true": 1, "yes": 1},
}
_KNOWN_COLUMNS = {
    *_VIDEO_COLUMNS, *_DIVE_COLUMNS, *_REQUIRED, *ATTRIBUTE_CLASSES, "judge_scores", "dive_number", "caption",
    "frames_per_second", "video_frames",
}  # fmt: skip


# ------------------------------------------------------------------------------------------------------- file -> rows


def _read_text(path: Path) -> str:
    if told := file_type_hint(Path(path), wanted={"text", "utf-16", "json", "empty"}):
        raise UserError(f"{path} cannot be read as text: {told}")
    try:
        content = Path(path).read_bytes()
        if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # Excel's "Unicode text"
            return content.decode("utf-16").lstrip("\ufeff")
        return content.decode("utf-8-sig")  # spreadsheets write a byte order mark
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give a text file in UTF-8") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} cannot be read ({first_line(error)}): it is not text in UTF-8; save it again as UTF-8 (Excel: 'CSV UTF-8'), or convert it: iconv -f WINDOWS-1252 -t UTF-8"
        ) from None


def _csv_rows(path: Path) -> list[dict[str, str]]:
    lines = io.StringIO(_read_text(path), newline="")
    first = lines.readline()
    start, above = 0, 1  # where the header begins, and how many lines are above the first row
    if excel := re.fullmatch(
        r"\"?sep=(.)\"?[,;\t\s]*", first, re.IGNORECASE
    ):  # Excel's own way of naming the separator
        start, above, delimiter = lines.tell(), 2, excel[1]
    else:
        delimiter = next((d for d in ",;\t" if d in first), ",")
    lines.seek(start)
    try:
        header, *rows = list(csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)) or [[]]
    except csv.Error as error:
        raise UserError(f"{path} is not a readable CSV ({first_line(error)}): look at its quotes") from None
    if header and all(re.fullmatch(r"[0-9.]+", name.strip()) for name in header):
        raise UserError(
            f"{path}: its first line holds numbers, not the names of columns: write video,dive,... above it"
        )
    header = [_column(name.strip()) for name in header]
    faults = [f"{path}: column '{name}' is there {n} times" for name, n in Counter(header).items() if n > 1 and name]
    longer = [(number, row) for number, row in enumerate(rows, start=above + 1) if len(row) > len(header)]
    trailing = len(longer) == sum(any(row) for row in rows)  # separators at the end of every row: nothing is shifted
    faults += [
        f"{path}, row {number}: {len(row)} cells for {len(header)} columns (a comma inside a number or a text? Write a point, or put the cell in quotes)"
        for number, row in longer
        if any(row[len(header) :]) or (any(row) and not trailing)
    ]
    if faults:
        raise UserError.of(faults[:_MOST_FAULTS])
    filled = [{k: v.strip() for k, v in zip(header, row, strict=False) if k and v.strip()} for row in rows]
    return [row for row in filled if row]


def _json_rows(path: Path) -> list[Any]:
    try:
        rows = json.loads(_read_text(path))
    except ValueError as error:
        cause = first_line(error)
        fix = (
            "put the objects of its lines into one list, [...] with commas" if "Extra data" in cause else "fix it there"
        )
        raise UserError(f"{path} is not JSON ({cause}): {fix}") from None
    if not isinstance(rows, list):
        there = (
            f" but an object with {', '.join(map(repr, list(rows)[:3]))}, ..."
            if isinstance(rows, dict) and rows
            else ""
        )
        raise UserError(
            f"{path} holds no JSON list{there}: write a list with one object a dive, or one [video, dive] pair"
        )
    return rows


def _column(name: str) -> str:
    """The name of a column or field as we know it: 'Start Frame', 'START_FRAME' and 'startFrame' are start_frame."""
    plain = re.sub(r"[\s\-]+", "_", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name)).lower()
    return plain if plain in _KNOWN_COLUMNS else name


def _with_known_names(row: Mapping[Any, Any], where: str) -> dict[Any, Any]:
    """
    Raises:
        UserError: two fields of the row have the same name but for case.
    """
    named = {_column(name) if isinstance(name, str) else name: value for name, value in row.items()}
    if len(named) < len(row):
        raise UserError(f"{where} has a field twice ({', '.join(map(str, row))}): keep one of each")
    return named


def _plain(value: Any) -> Any:
    """Lists and tuples in place of arrays, also inside them."""
    if hasattr(value, "tolist") and not isinstance(value, (str, bytes)):
        return value.tolist()
    return value


def _not_a_text_or_pickle(path: Path) -> None:
    """
    Raises:
        UserError: the suffix is that of a spreadsheet.
    """
    if path.suffix.lower() in (".xlsx", ".xls", ".ods", ".numbers"):
        raise UserError(f"{path} is a spreadsheet's own file: save the sheet as CSV (UTF-8) and name that")


def _npy(path: Path) -> Any:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(
            f"{path} is not a readable array of numbers ({first_line(error)}): save it with numpy.save as numbers, or write a CSV"
        ) from None


def _key(raw: Any, where: str) -> DiveKey:
    try:
        if isinstance(raw, dict):  # {"video": 1, "dive": 2}
            ((key, _),) = _keyed([raw], where)
            return key
        video, number = () if isinstance(raw, (str, bytes, set, frozenset)) else _plain(raw)
        return (_whole(video), _whole(number))  # numpy.uint8 and numpy.int64 occur in released files
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"{where}: '{raw}' is not a (video, dive) pair") from None


def _keyed(rows: Iterable[Any], where: str) -> Iterator[tuple[DiveKey, Mapping[str, Any]]]:
    """Rows of a CSV or JSON file with their keys; dives without a number are numbered in the order of the file, anew
    in each video."""
    counted: Counter[int] = Counter()
    unnumbered = False
    for position, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise UserError(f"{where}, entry {position} is not a set of named fields: write one object a dive")
        row = _with_known_names(row, f"{where}, entry {position}")
        video = next((row[name] for name in _VIDEO_COLUMNS if name in row), None)
        if video is None:
            raise UserError(
                f"{where}, entry {position} has no 'video': name the columns video, dive and, for annotations, {', '.join(_REQUIRED)}"
            )
        number = next((row[name] for name in _DIVE_COLUMNS if name in row), None)
        if position > 1 and (number is None) != unnumbered:
            raise UserError(f"{where}, entry {position}: give every dive a number in the column 'dive', or none")
        unnumbered = number is None
        try:
            key = (_whole(video), 0 if number is None else _whole(number))
        except (TypeError, ValueError, OverflowError):
            raise UserError(
                f"{where}, entry {position}: video '{video}', dive '{number}': both are whole numbers, video 7 being the file 07.mp4"
            ) from None
        counted[key[0]] += 1
        yield (key if number is not None else (key[0], counted[key[0]])), row


def _columns_text() -> str:
    return "video, dive, " + ", ".join(_REQUIRED)


def _rows(path: Path) -> list[tuple[DiveKey, Mapping[str, Any]]]:
    """(key, fields) of every entry of an annotation file, in the file's order."""
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"{path} is not a file{similar_files_hint(path, _SUFFIXES)}: fetch MTL-AQA's (python -m data_preparation.download annotations), or name your annotations with --annotation_path"
        )
    _not_a_text_or_pickle(path)
    suffix = path.suffix.lower()
    if suffix in (*_TEXT_SUFFIXES, ".json"):
        rows = _json_rows(path) if suffix == ".json" else _csv_rows(path)
        if not rows:
            raise UserError(f"{path} holds no dive: write one row a dive with the columns {_columns_text()}")
        return list(_keyed(rows, str(path)))
    raw = _plain(load_pickle(path))
    if isinstance(raw, (list, tuple)) and raw and all(isinstance(row, dict) for row in raw):  # as in JSON
        return list(_keyed(raw, str(path)))
    if not isinstance(raw, dict) or not raw:
        raise UserError(
            f"{path} holds {_kind(raw)}, no dictionary of dives: give MTL-AQA's final_annotations_dict.pkl or a file like it"
        )
    return [
        (_key(key, str(path)), _with_known_names(fields, f"{path}, dive {key}") if isinstance(fields, dict) else fields)
        for key, fields in raw.items()
    ]


def _kind(raw: Any) -> str:
    """What a pickle holds, in words."""
    if isinstance(raw, dict):
        return f"a dictionary of {len(raw)} entries" + (f" ({next(iter(raw))!r}, ...)" if raw else "")
    if isinstance(raw, (list, tuple, set, frozenset)):
        return f"a {type(raw).__name__} of {len(raw)} entries"
    return f"a {type(raw).__name__}"


# ------------------------------------------------------------------------------------------------------- rows -> Dives


def _number(value: Any) -> float:
    """A number; '3,4' that arrived as one cell is 3.4."""
    if not isinstance(value, str):
        return float(value)
    if re.fullmatch(r"[+-]?[0-9]+,[0-9]+", value.strip()):
        return float(value.strip().replace(",", "."))
    if re.search(r"[0-9][.,' \u00a0\u202f][0-9]", value) and not re.fullmatch(r"[+-]?[0-9]+\.[0-9]+", value.strip()):
        raise ValueError("write it without separators of thousands, with a point for the decimals")
    return float(value)


def _whole(value: Any) -> int:
    if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]{1,3}([.,'\u00a0\u202f ][0-9]{3})+", value.strip()):
        raise ValueError("a separator of thousands? Write the digits alone")
    number = _number(value)
    if number != int(number):
        raise ValueError("not a whole number")
    return int(number)


def _attribute(value: Any, name: str) -> int:
    words = _WORDS.get(name, {})
    if isinstance(value, str) and value.lower() in words:
        return words[value.lower()]
    try:
        return _whole(value)
    except ValueError:
        raise ValueError(f"allowed are {', '.join(words) or 'whole numbers'}") from None


def _judges(value: Any) -> tuple[float, ...]:
    """Scores in a list, or in a text: apart by spaces, semicolons, or commas where those cannot be decimal ones."""
    if not isinstance(value, str):
        return tuple(_number(score) for score in _plain(value))
    text = re.sub(r",\s+", " ", value.strip("[]() ").replace(";", " "))
    if "," in text and "." in text:  # points are the decimals
        text = text.replace(",", " ")
    elif "," in text and len(text.split()) == 1:
        raise ValueError("commas between the scores, or decimal ones? Put spaces between the scores")
    return tuple(_number(score) for score in text.split())


def _rate(value: Any) -> Fraction:
    rate = Fraction(value.strip()) if isinstance(value, str) and "/" in value else Fraction(str(_number(value)))
    if not 1 <= rate <= 1000:
        raise ValueError("frames per second are between 1 and 1000, such as 25 or 30000/1001")
    return rate


def _frame_total(value: Any) -> int:
    if (frames := _whole(value)) < 1:
        raise ValueError("a video has at least 1 frame")
    return frames


def _caption(value: Any) -> tuple[str, ...]:
    return ("<sos>", *value.lower().split(), "<eos>") if isinstance(value, str) else tuple(map(str, value))


_CONVERTERS: dict[str, Callable[[Any], Any]] = {
    "start_frame": _whole,
    "end_frame": _whole,
    "difficulty": _number,
    "final_score": _number,
    "judge_scores": _judges,
    "dive_number": str,
    "caption": _caption,
    **{name: functools.partial(_attribute, name=name) for name in ATTRIBUTE_CLASSES},
}

_FACT_CONVERTERS: dict[str, Callable[[Any], Any]] = {"frames_per_second": _rate, "video_frames": _frame_total}


def _facts(rows: Iterable[tuple[DiveKey, Any]], where: str) -> tuple[dict[int, VideoFacts], list[str]]:
    """(what rows state of the files that were labelled, by video; faults: what cannot be understood or contradicts)."""
    stated: dict[tuple[int, str], Any] = {}
    faults: dict[str, None] = {}
    for key, fields in rows:
        for name, convert in _FACT_CONVERTERS.items():
            if not isinstance(fields, Mapping) or fields.get(name) is None:
                continue
            try:
                value = convert(fields[name])
            except (TypeError, ValueError, OverflowError, ZeroDivisionError) as error:
                faults[f"dive {dive_name(key)}: {name} '{fields[name]}' cannot be understood: {first_line(error)}"] = (
                    None
                )
                continue
            if (earlier := stated.setdefault((key[0], name), value)) != value:
                faults[
                    f"video {key[0]:02d}: {name} is {earlier} in one row and {value} in another (dive {dive_name(key)}): a file has one, correct them"
                ] = None
    videos = {video for video, _ in stated}
    facts = {
        v: VideoFacts(stated.get((v, "frames_per_second")), stated.get((v, "video_frames")), where)
        for v in sorted(videos)
    }
    return facts, list(faults)


def _dive(key: DiveKey, fields: Mapping[str, Any]) -> tuple[Dive | None, list[str]]:
    """(the dive, or None with everything that is wrong with its fields)."""
    values, faults = {}, []
    for name, convert in _CONVERTERS.items():
        if fields.get(name) is not None:
            try:
                values[name] = convert(fields[name])
            except (TypeError, ValueError, OverflowError) as error:
                faults.append(f"{name} '{fields[name]}' cannot be understood: {first_line(error)}")
    faults += [f"{name} is missing" for name in _REQUIRED if fields.get(name) is None]
    return (None if faults else Dive(key[0], key[1], **values)), [f"dive {dive_name(key)}: {f}" for f in faults]


def _column_faults(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Columns that no row has and should, and columns that look like a misspelt one."""
    columns = dict.fromkeys(name for row in rows for name in row)
    known = _KNOWN_COLUMNS
    faults = [
        f"no dive has '{name}'; the columns are {', '.join(map(str, columns))}"
        for name in _REQUIRED
        if name not in columns
    ]
    for name in columns:
        close = difflib.get_close_matches(str(name).lower(), known, 1, cutoff=0.65)
        if name not in known and name != "primary_view" and close:
            faults.append(f"column '{name}' is unknown; did you mean {close[0]}? Rename it, or leave it out")
    return faults


@dataclass(frozen=True)
class Annotations:
    """An annotation file as it was read: `keys` are all its entries, `dives` those that could be understood, `faults`
    everything that is wrong, a sentence each; `facts` is what it states of the videos that were labelled, by video."""

    dives: dict[DiveKey, Dive]
    keys: frozenset[DiveKey]
    faults: tuple[str, ...]
    facts: dict[int, VideoFacts] = field(default_factory=dict)


def read_annotations(path: Path) -> Annotations:
    """The dives of an annotation file in its order, and everything that is wrong with them. A file that has not changed is
    parsed once in a process; the dictionaries are the caller's own.

    Raises:
        UserError: the file as a whole is unreadable or holds no dives.
    """
    read = _parsed(Path(path), _digest(path))
    return replace(read, dives=dict(read.dives), facts=dict(read.facts))


def _digest(path: Path) -> bytes:
    """A digest of a file's content; b"" where there is none to read, which is said when it is parsed."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).digest() if Path(path).is_file() else b""
    except OSError:
        return b""


@functools.lru_cache(maxsize=4)
def _parsed(path: Path, digest: bytes) -> Annotations:
    """What `read_annotations` returns, for the content with this digest: unlike a time of change, it misses no change."""
    rows = _rows(path)
    dives: dict[DiveKey, Dive] = {}
    faults = _column_faults([fields for _, fields in rows if isinstance(fields, dict)])
    named = Counter(key for key, _ in rows)
    faults += [f"dive {dive_name(key)}: given {count} times" for key, count in named.items() if count > 1]
    absent = {name for name in _REQUIRED if not any(isinstance(f, dict) and name in f for _, f in rows)}
    for key, fields in rows:
        if not isinstance(fields, dict):
            faults.append(f"dive {dive_name(key)}: {type(fields).__name__} instead of named fields")
            continue
        dive, its = _dive(key, fields)
        faults += [f for f in its if not any(f.endswith(f": {name} is missing") for name in absent)]  # said above
        if dive is not None:
            dives[key] = dive
    for dive in dives.values():
        faults += dive_faults(dive)
    faults += overlap_faults(d for d in dives.values() if d.start_frame <= d.end_frame)
    facts, fact_faults = _facts(rows, Path(path).name)
    faults += fact_faults
    faults += [
        f"dive {d.name}: ends at frame {d.end_frame}, and video_frames says that its video has {facts[d.video].frames}"
        for d in dives.values()
        if d.video in facts and facts[d.video].frames and d.end_frame > facts[d.video].frames
    ]
    return Annotations(dives, frozenset(named), tuple(f"{path}: {fault}" for fault in faults), facts)


def load_annotations(path: Path, captions_path: Path | None = None) -> dict[DiveKey, Dive]:
    """All dives of an annotation file (.pkl, .csv, .json) in its order; captions are joined when their file is given.

    Raises:
        UserError: naming every fault of the file, one a line.
    """
    read = read_annotations(path)
    if read.faults:
        raise UserError.of(read.faults)
    captions = load_captions(captions_path) if captions_path else {}
    return {key: replace(dive, caption=captions[key]) if key in captions else dive for key, dive in read.dives.items()}


def load_captions(path: Path) -> dict[DiveKey, tuple[str, ...]]:
    """Caption tokens by dive, `<sos>` first and `<eos>` last, keys as plain ints.

    Raises:
        UserError: the file is unreadable or holds no captions.
    """
    raw = load_pickle(path)
    if not isinstance(raw, dict) or not all(map(_is_caption, raw.values())):
        raise UserError(
            f"{path} holds no captions (a list of words for each dive): give MTL-AQA's final_captions_dict.pkl"
        )
    return {_key(key, str(path)): tuple(tokens) for key, tokens in raw.items()}


def _is_caption(tokens: Any) -> bool:
    return isinstance(tokens, (list, tuple)) and all(isinstance(word, str) for word in tokens)


def load_vocabulary(path: Path) -> list[str]:
    """The words of `vocab.json` by index.

    Raises:
        UserError: the file is unreadable or has no complete 'ix_to_word'.
    """
    try:
        words = json.loads(_read_text(path))["ix_to_word"]
        listed = [words[str(index)] for index in range(len(words))]
        if not listed or not all(isinstance(word, str) for word in listed):
            raise TypeError("its words are no text")
        if len(set(listed)) < len(listed):
            raise ValueError(f"'{Counter(listed).most_common(1)[0][0]}' is in it twice")
        return listed
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is no vocabulary ({type(error).__name__}: {error}): give MTL-AQA's vocab.json"
        ) from None


# ---------------------------------------------------------------------------------------------------------- split lists


def load_split(path: Path) -> list[DiveKey]:
    """The (video, dive) pairs of a split list (.pkl, .csv with columns video and dive, .json, .npy of shape (N, 2)), in
    the file's order; those of a set, which has none, ascending.

    Raises:
        UserError: the file is no list of pairs, or names a dive twice.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"{path} is not a file{similar_files_hint(path, (*_SUFFIXES, '.npy'))}: fetch MTL-AQA's split lists (python -m data_preparation.download annotations), or name yours with --train_path and --test_path"
        )
    _not_a_text_or_pickle(path)
    suffix = path.suffix.lower()
    if suffix in _TEXT_SUFFIXES:
        rows = _csv_rows(path)
        if not all(any(name in row for name in _DIVE_COLUMNS) for row in rows):
            raise UserError(f"{path}: a split list has the columns video and dive, filled in every row")
        raw: Any = [key for key, _ in _keyed(rows, str(path))]
    elif suffix == ".json":
        raw = _json_rows(path)
    else:
        raw = _plain(_npy(path) if suffix == ".npy" else load_pickle(path))
    if isinstance(raw, (set, frozenset)):  # has no order of its own, and the split by seed needs one
        return sorted(_key(item, str(path)) for item in raw)
    if isinstance(raw, dict) and raw:
        keyed = all(isinstance(key, tuple) for key in raw)
        raise UserError(
            f"{path} holds {_kind(raw)}, and a split list is a list of (video, dive) pairs: "
            + ("pickle list(dictionary)" if keyed else "pickle one of its values in a file of its own")
        )
    if not isinstance(raw, (list, tuple)) or not raw:
        raise UserError(
            f"{path} holds {_kind(raw)}, no list of (video, dive) pairs: give MTL-AQA's train_split_0.pkl or a file like it"
        )
    if len(raw) == 2 and all(isinstance(row, (list, tuple)) and len(row) > 2 for row in raw):
        raise UserError(
            f"{path} holds 2 rows of {len(raw[0])} numbers: save it transposed, a row (video, dive) for each dive"
        )
    keys = [_key(item, str(path)) for item in raw]
    twice = sorted(key for key, count in Counter(keys).items() if count > 1)
    if twice:
        raise UserError(f"{path} names {len(twice)} dives twice ({list_names(twice)}): remove the repetitions")
    return keys


def list_faults(annotated: Container[DiveKey], train: Sequence[DiveKey], test: Sequence[DiveKey]) -> list[str]:
    """What is wrong with a pair of split lists, a sentence each: entries without annotation, shared dives."""
    faults = []
    for keys, name in ((train, "train"), (test, "test")):
        absent = [key for key in keys if key not in annotated]
        if absent:
            faults.append(_absent_text(absent, f"the {name} list"))
    shared = sorted(set(train) & set(test))
    if shared:
        faults.append(
            f"the train and test lists share {len(shared)} dives ({list_names(shared)}), so the test result would be worthless (MTL-AQA's smaller training sets overlap its test list like this): write a clean train list with python -m data_preparation.annotations disjoint"
        )
    return faults


def _absent_text(absent: Sequence[DiveKey], where: str) -> str:
    return f"{where} names {len(absent)} dives without annotation ({list_names(absent)}): use lists and annotations of the same data set"


def select(dives: Mapping[DiveKey, Dive], keys: Iterable[DiveKey], where: str) -> list[Dive]:
    """The dives that a split list names, in its order.

    Raises:
        UserError: the list names dives that have no annotation.
    """
    keys = list(keys)
    absent = [key for key in keys if key not in dives]
    if absent:
        raise UserError(_absent_text(absent, where))
    return [dives[key] for key in keys]


def check_disjoint(train: Iterable[DiveKey], test: Iterable[DiveKey]) -> None:
    """Refuses a train list that shares dives with the test list.

    Raises:
        UserError: naming how many are shared, and the mend.
    """
    train, test = list(train), list(test)
    faults = list_faults(dict.fromkeys([*train, *test]), train, test)
    if faults:
        raise UserError.of(faults)


# -------------------------------------------------------------------------------------------------------- command lines


@dataclass(frozen=True)
class SummaryConfig:
    """Print what a person wants to know of a data set's annotations; exit 2 if anything is wrong with them."""

    dataset: Path | None = flag(None, "Data set folder; none takes DEEPSPORTS_DATASET of job_files/environment.sh.")
    annotation_path: Path | None = flag(None, "Annotation file (.pkl, .csv, .json); none takes the data set's own.")
    train_path: Path | None = flag(None, "Train list; none takes the data set's own.")
    test_path: Path | None = flag(None, "Test list; none takes the data set's own.")

    def path(self, name: str) -> Path:
        """The file of a field, from its flag or from the data set.

        Raises:
            UserError: neither is named.
        """
        given = getattr(self, f"{name}_path")
        folder = self.dataset or default_dataset()
        if given is None and folder is None:
            raise UserError(
                f"--{name}_path and --dataset are missing: name one, or source job_files/environment.sh first"
            )
        return given or getattr(DatasetLayout(folder), f"{name}_file")


_WRITERS: dict[str, Callable[[list[DiveKey]], bytes]] = {
    ".pkl": lambda keys: pickle.dumps(keys, protocol=3),  # the protocol of MTL-AQA's own lists
    ".csv": lambda keys: "".join(["video,dive\n", *(f"{video},{dive}\n" for video, dive in keys)]).encode(),
    ".json": lambda keys: json.dumps(keys).encode(),
}


@dataclass(frozen=True)
class DisjointConfig:
    """Write a train list without the dives of a test list."""

    train_path: Path | None = flag(None, "Train list that may share dives with the test list.")
    test_path: Path | None = flag(None, "Test list.")
    output: Path | None = flag(None, "Train list to write (.pkl, .csv, .json).")

    def __post_init__(self) -> None:
        if missing := [f"--{name}" for name, value in vars(self).items() if value is None]:
            raise UserError(f"{', '.join(missing)} missing: name the lists and the file to write")
        if self.output.suffix.lower() not in _WRITERS:
            raise UserError(f"--output {self.output}: let its name end in {', '.join(_WRITERS)}")


def _spread(values: Iterable[float], digits: int = 1) -> str:
    low, median, high = np.percentile(list(values), [0, 50, 100])
    return f"{low:.{digits}f} to {high:.{digits}f}, median {median:.{digits}f}"


def _counts(dives: Iterable[Dive], name: str, words: Sequence[str] = ()) -> str:
    counted = sorted(Counter(getattr(d, name) for d in dives).items())
    return ", ".join(f"{words[value] if words else value}: {count}" for value, count in counted)


def summary(dives: Mapping[DiveKey, Dive], train: Sequence[DiveKey], test: Sequence[DiveKey]) -> str:
    """A data set in a screenful: size, spread of what is learned, labels, judges, and a row for each video."""
    everything = list(dives.values())
    lines = [
        f"dives          {len(everything)} in {len({d.video for d in everything})} videos; {len(train)} in the train list, {len(test)} in the test list, {len(set(dives) - set(train) - set(test))} in neither",
        f"frames         {sum(d.frame_count for d in everything)} in dives; a dive has {_spread((d.frame_count for d in everything), 0)}",
        f"final score    {_spread(d.final_score for d in everything)}; {len({d.final_score for d in everything})} distinct",
        f"difficulty     {_spread(d.difficulty for d in everything)}; {len({d.difficulty for d in everything})} distinct",
    ]
    for name, words in (("position", POSITIONS), ("rotation_type", ROTATION_TYPES)):
        if all(getattr(d, name) is not None for d in everything):
            lines.append(f"{name:<14} {_counts(everything, name, words)}")
    for name, text in (("armstand", "armstand"), ("ss_no", "half somersaults"), ("tw_no", "half twists")):
        if all(getattr(d, name) is not None for d in everything):
            lines.append(f"{name:<14} {_counts(everything, name)} ({text})")
    if numbers := {d.dive_number for d in everything if d.dive_number}:
        lines.append(f"dive numbers   {len(numbers)} distinct")
    if any(d.caption for d in everything):
        lines.append(f"captions       {sum(d.caption is not None for d in everything)} dives")
    odd: list[Dive] = []
    if judged := [d for d in everything if judged_score(d) is not None]:
        odd = judge_exceptions(judged)
        lines.append(f"judges         {len(judged)} dives; the rules give the final score of {len(judged) - len(odd)}")
    lines.append("\nvideo   dives   train    test   first frame   last frame   frames in dives")
    in_train, in_test = Counter(v for v, _ in train), Counter(v for v, _ in test)
    for video in sorted({d.video for d in everything}):
        its = [d for d in everything if d.video == video]
        lines.append(
            f"{video:>5} {len(its):>7} {in_train[video]:>7} {in_test[video]:>7} {min(d.start_frame for d in its):>13} {max(d.end_frame for d in its):>12} {sum(d.frame_count for d in its):>17}"
        )
    if odd:
        lines.append(
            f"\nwarning: the judges of {len(odd)} dives do not give the final score, which is what counts here:"
        )
    lines += [
        f"  {d.name}  {' '.join(f'{j:g}' for j in d.judge_scores or ())} at difficulty {d.difficulty:g} give {judged_score(d):.2f}, not {d.final_score:.2f}"
        for d in odd
    ]
    return "\n".join(lines)


def _summary(config: SummaryConfig) -> None:
    read = read_annotations(config.path("annotation"))
    dives, faults = read.dives, list(read.faults)
    if (folder := config.dataset or default_dataset()) and (found := DatasetLayout(folder).captions_file).exists():
        captions = load_captions(found)
        dives = {key: replace(dive, caption=dive.caption or captions.get(key)) for key, dive in dives.items()}
    train, test = load_split(config.path("train")), load_split(config.path("test"))
    faults += list_faults(read.keys, train, test)
    if dives:
        print(summary(dives, train, test))
    if faults:
        raise UserError.of(faults)


def _disjoint(config: DisjointConfig) -> None:
    train, test = load_split(config.train_path), set(load_split(config.test_path))
    kept = [key for key in train if key not in test]
    if not kept:
        raise UserError(f"every dive of {config.train_path} is in the test list: nothing would be left to train on")
    with reporting_write_errors(config.output):
        write_atomic(config.output, _WRITERS[config.output.suffix.lower()](kept))
    print(f"{config.output}: {len(kept)} dives; {len(train) - len(kept)} that the test list has are left out")


def main(argv: Sequence[str]) -> None:
    name, config = parse_command(
        {"summary": SummaryConfig, "disjoint": DisjointConfig}, argv, prog="python -m data_preparation.annotations"
    )
    {"summary": _summary, "disjoint": _disjoint}[name](config)


if __name__ == "__main__":
    run(main)
