"""Read annotation files and split lists of dives, and summarise the annotations of any data set.

    python -m data_preparation.annotations summary --dataset DIR
    python -m data_preparation.annotations disjoint --train_path small.pkl --test_path test.pkl --output train.pkl

Reads MTL-AQA's own pickles (Parmar and Morris, "What and How Well You Performed? A Multitask Learning Approach to
Action Quality Assessment", CVPR 2019), and CSV or JSON files with the same fields. All faults of a file are reported at
once, one per line.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import json
import pickle
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from data_preparation import datasets
from data_preparation.actions import (
    ATTRIBUTE_CLASSES,
    POSITION_LETTERS,
    POSITIONS,
    ROTATION_TYPES,
    ActionKey,
    Dive,
    VideoFacts,
    action_name,
    list_names,
    overlap_faults,
    plain_key,
    sort_key,
    video_name,
    video_order,
)
from data_preparation.common.command_line import flag, parse_command, run
from data_preparation.common.errors import UserError, first_line
from data_preparation.common.files import reporting_write_errors, write_atomic
from data_preparation.layout import DatasetLayout, default_dataset
from data_preparation.pickles import load_pickle
from data_preparation.similar_files import similar_files_hint
from data_preparation.summary import summary
from data_preparation.text_tables import csv_cells, load_json, read_text

_VIDEO_COLUMNS = ("video", "video_num")
_TEXT_SUFFIXES = (".csv", ".tsv", ".txt")
_SUFFIXES = (".pkl", ".pickle", ".csv", ".tsv", ".json")
_ATTRIBUTE_WORDS = {
    "position": {
        **{w: i for i, w in enumerate(POSITIONS)},
        **{letter.lower(): i for i, letter in enumerate(POSITION_LETTERS)},
    },
    "rotation_type": {w: i for i, w in enumerate(ROTATION_TYPES)},
    "armstand": {"false": 0, "no": 0, "true": 1, "yes": 1},
}


@dataclass(frozen=True)
class Columns:
    """The columns of the annotations of a kind of action.

    `noun` is what a row is called in messages, and `number` are the names of the column with its number in the video. Every row
    has the `required` columns. `converters` has the parser of each column but those that say which action or video it is.
    """

    noun: str
    number: tuple[str, ...]
    required: tuple[str, ...]
    converters: Mapping[str, Callable[[Any], Any]] = field(hash=False)

    @functools.cached_property
    def known(self) -> frozenset[str]:
        return frozenset({*_VIDEO_COLUMNS, *self.number, *self.converters, *_VIDEO_CONVERTERS})

    @property
    def text(self) -> str:
        """The columns that every row has, for messages."""
        return ", ".join(("video", self.number[0], *self.required))


# ------------------------------------------------------------------------------------------------------- file -> rows


def _csv_rows(path: Path, columns: Columns) -> list[dict[str, str]]:
    header, rows, longer = csv_cells(path)
    if header and all(re.fullmatch(r"[0-9.]+", name) for name in header):
        raise UserError(
            f"{path}: its first line has numbers instead of column names: insert the line video,{columns.number[0]},... above it"
        )
    header = [_column_name(name, columns.known) for name in header]
    faults = [
        f"{path}: column '{name}' occurs {n} times: keep one" for name, n in Counter(header).items() if n > 1 and name
    ]
    if faults or longer:
        raise UserError.of([*faults, *longer])
    return [{k: v for k, v in zip(header, row, strict=False) if k and v} for _, row in rows]


def _json_rows(path: Path) -> list[Any]:
    try:
        rows, repeated = load_json(read_text(path))
    except ValueError as error:
        cause = first_line(error)
        fix = "put the objects of its lines into one list, [...] with commas" if "Extra data" in cause else "correct it"
        raise UserError(f"{path} is not JSON ({cause}): {fix}") from None
    if repeated:
        raise UserError(f"{path}: an object has {', '.join(map(repr, repeated[:5]))} twice: keep one of each")
    if not isinstance(rows, list):
        found = (
            f" but an object with {', '.join(map(repr, list(rows)[:3]))}, ..."
            if isinstance(rows, dict) and rows
            else ""
        )
        raise UserError(
            f"{path} is not a JSON list{found}: write a list with one object per dive, or one [video, dive] pair per dive"
        )
    return rows


@functools.lru_cache
def _column_name(name: str, known: frozenset[str]) -> str:
    """The standard name of a column or field: 'Start Frame', 'START_FRAME' and 'startFrame' become start_frame."""
    plain = re.sub(r"[\s\-]+", "_", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name)).lower()
    return plain if plain in known else name


def _with_known_names(row: Mapping[Any, Any], where: str, columns: Columns) -> dict[Any, Any]:
    """The row with standard field names.

    Raises:
        UserError: two fields of the row get the same name.
    """
    named = {_column_name(name, columns.known) if isinstance(name, str) else name: value for name, value in row.items()}
    if len(named) < len(row):
        raise UserError(f"{where} has a field twice ({', '.join(map(str, row))}): keep one of each")
    return named


def _to_list(value: Any) -> Any:
    """An array as (nested) lists; any other value unchanged."""
    if hasattr(value, "tolist") and not isinstance(value, (str, bytes)):
        return value.tolist()
    return value


def _reject_spreadsheet(path: Path) -> None:
    """
    Raises:
        UserError: the file is a spreadsheet, by its suffix.
    """
    if path.suffix.lower() in (".xlsx", ".xls", ".ods", ".numbers"):
        raise UserError(f"{path} is a spreadsheet file: save the sheet as CSV (UTF-8) and give that file")


def _load_npy(path: Path) -> Any:
    try:
        return np.load(path, allow_pickle=False)
    except Exception as error:  # a damaged header can raise anything, as zipfile and tokenize do
        raise UserError(
            f"{path} is not a readable array of numbers ({first_line(error)}): save an array of numbers with numpy.save, or write a CSV"
        ) from None


def _parse_key(raw: Any, where: str, columns: Columns | None = None) -> ActionKey:
    try:
        if isinstance(raw, dict):  # {"video": 1, "dive": 2}
            ((key, _),) = _with_keys([raw], where, columns or DIVES)
            return key
        if isinstance(raw, (str, bytes, set, frozenset)):
            raise TypeError("not a pair")
        video, number = _to_list(raw)
        return (_parse_video(video), _parse_int(number))  # numpy.uint8 and numpy.int64 occur in released files
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"{where}: '{raw}' is not a (video, dive) pair") from None


def _with_keys(rows: Iterable[Any], where: str, columns: Columns) -> Iterator[tuple[ActionKey, Mapping[str, Any]]]:
    """Yield the rows of a CSV or JSON file with their keys.

    Actions without a number are numbered in the order of the file, starting from 1 in each video.
    """
    counted: Counter[str] = Counter()
    unnumbered = False
    for position, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise UserError(
                f"{where}, entry {position} is not a set of named fields: write one object per {columns.noun}"
            )
        row = _with_known_names(row, f"{where}, entry {position}", columns)
        video = next((row[name] for name in _VIDEO_COLUMNS if name in row), None)
        if video is None:
            raise UserError(
                f"{where}, entry {position} has no 'video': name the columns video, {columns.number[0]} and, for annotations, {', '.join(columns.required)}"
            )
        number = next((row[name] for name in columns.number if name in row), None)
        if position > 1 and (number is None) != unnumbered:
            raise UserError(
                f"{where}, entry {position}: give every {columns.noun} a number in the column '{columns.number[0]}', or none"
            )
        unnumbered = number is None
        try:
            key = (_parse_video(video), 0 if number is None else _parse_int(number))
        except (TypeError, ValueError, OverflowError):
            raise UserError(
                f"{where}, entry {position}: video '{video}', {columns.number[0]} '{number}': write the name of the video without suffix (7 is the file 07.mp4), and a whole number for the {columns.noun}"
            ) from None
        counted[key[0]] += 1
        yield (key if number is not None else (key[0], counted[key[0]])), row


def table_hint(missing: Path) -> str:
    """The end of a message about MTL-AQA's missing annotations, where the folder has a table of other actions."""
    found = [name for name in ("table.csv", "table.json") if missing.with_name(name).is_file()]
    return f"; {found[0]} there needs --dataset_kind table" if found else ""


def _rows(path: Path, columns: Columns) -> list[tuple[ActionKey, Mapping[str, Any]]]:
    """(key, fields) of every entry of an annotation file, in the file's order."""
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"{path} is not a file{similar_files_hint(path, _SUFFIXES)}: download MTL-AQA's (python -m data_preparation.download annotations), or name your annotations with --annotation_path{table_hint(path)}"
        )
    _reject_spreadsheet(path)
    suffix = path.suffix.lower()
    if suffix in (*_TEXT_SUFFIXES, ".json"):
        rows = _json_rows(path) if suffix == ".json" else _csv_rows(path, columns)
        if not rows:
            raise UserError(
                f"{path} has no {columns.noun}s: write one row per {columns.noun} with the columns {columns.text}"
            )
        return list(_with_keys(rows, str(path), columns))
    raw = _to_list(load_pickle(path))
    if isinstance(raw, (list, tuple)) and raw and all(isinstance(row, dict) for row in raw):  # the same layout as JSON
        return list(_with_keys(raw, str(path), columns))
    if not isinstance(raw, dict) or not raw:
        raise UserError(
            f"{path} holds {_content_text(raw)}, not a dictionary of {columns.noun}s: give MTL-AQA's final_annotations_dict.pkl or a file like it"
        )
    return [
        (
            _parse_key(key, str(path)),
            _with_known_names(fields, f"{path}, {columns.noun} {key}", columns) if isinstance(fields, dict) else fields,
        )
        for key, fields in raw.items()
    ]


def _content_text(raw: Any) -> str:
    """The content of a pickle, in words."""
    if isinstance(raw, dict):
        return f"a dictionary of {len(raw)} entries" + (f" ({next(iter(raw))!r}, ...)" if raw else "")
    if isinstance(raw, (list, tuple, set, frozenset)):
        return f"a {type(raw).__name__} of {len(raw)} entries"
    return f"a {type(raw).__name__}"


# ------------------------------------------------------------------------------------------------------- rows -> Dives


def _parse_float(value: Any) -> float:
    """A number; the cell '3,4' is 3.4."""
    if isinstance(value, bool):
        raise ValueError("true and false are not numbers")
    if not isinstance(value, str):
        return float(value)
    if re.fullmatch(r"[+-]?[0-9]+,[0-9]+", value.strip()):
        return float(value.strip().replace(",", "."))
    if re.search(r"[0-9][.,' \u00a0\u202f][0-9]", value) and not re.fullmatch(r"[+-]?[0-9]+\.[0-9]+", value.strip()):
        raise ValueError("write it without thousands separators, with a decimal point")
    return float(value)


def _parse_int(value: Any) -> int:
    if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]{1,3}([.,'\u00a0\u202f ][0-9]{3})+", value.strip()):
        raise ValueError("is there a thousands separator? Write only digits")
    number = _parse_float(value)
    if number != int(number):
        raise ValueError("not a whole number")
    return int(number)


def _parse_video(value: Any) -> str:
    """The name of a video from a number, or from a text that is a number or a name."""
    if isinstance(value, str) and not re.fullmatch(r"[-+0-9.,' \u00a0\u202f]+", value.strip()):
        return video_name(value.strip())
    if (number := _parse_int(value)) < 0:
        raise ValueError("write a number of 0 or more")
    return video_name(number)


def _parse_attribute(value: Any, name: str) -> int:
    words = _ATTRIBUTE_WORDS.get(name, {})
    if isinstance(value, str) and value.lower() in words:
        return words[value.lower()]
    if isinstance(value, bool) and name == "armstand":
        return int(value)
    try:
        return _parse_int(value)
    except ValueError:
        raise ValueError(f"allowed: {', '.join(words) or 'whole numbers'}") from None


def _parse_judges(value: Any) -> tuple[float, ...]:
    """Scores from a list, or from a text with spaces, semicolons or (if they cannot be decimal commas) commas between them."""
    if not isinstance(value, str):
        return tuple(_parse_float(score) for score in _to_list(value))
    text = re.sub(r",\s+", " ", value.strip("[]() ").replace(";", " "))
    if "," in text and "." in text:  # the points are the decimal ones
        text = text.replace(",", " ")
    elif "," in text and len(text.split()) == 1:
        raise ValueError("are its commas decimal ones? Put spaces between the scores")
    return tuple(_parse_float(score) for score in text.split())


def _parse_rate(value: Any) -> Fraction:
    rate = Fraction(value.strip()) if isinstance(value, str) and "/" in value else Fraction(str(_parse_float(value)))
    if not 1 <= rate <= 1000:
        raise ValueError("give a number of frames per second from 1 to 1000, such as 25 or 30000/1001")
    return rate


def _parse_frame_count(value: Any) -> int:
    if (frames := _parse_int(value)) < 1:
        raise ValueError("a video has at least 1 frame")
    return frames


def _parse_caption(value: Any) -> tuple[str, ...]:
    return ("<sos>", *value.lower().split(), "<eos>") if isinstance(value, str) else tuple(map(str, value))


# those that any action may have
COMMON_CONVERTERS: dict[str, Callable[[Any], Any]] = {
    "start_frame": _parse_int,
    "end_frame": _parse_int,
    "difficulty": _parse_float,
    "final_score": _parse_float,
    "judge_scores": _parse_judges,
}

_VIDEO_CONVERTERS: dict[str, Callable[[Any], Any]] = {
    "frames_per_second": _parse_rate,
    "video_frames": _parse_frame_count,
}

DIVES = Columns(
    "dive",
    ("dive", "number"),
    ("start_frame", "end_frame", "difficulty", "final_score"),
    {
        **COMMON_CONVERTERS,
        "dive_number": str,
        "caption": _parse_caption,
        **{name: functools.partial(_parse_attribute, name=name) for name in ATTRIBUTE_CLASSES},
    },
)


def _video_facts(
    rows: Iterable[tuple[ActionKey, Any]], where: str, noun: str
) -> tuple[dict[str, VideoFacts], list[str]]:
    """What the rows state about the video files that were labelled, by video; and the faults: unparsable and contradictory values."""
    stated: dict[tuple[str, str], Any] = {}
    faults: dict[str, None] = {}
    for key, fields in rows:
        for name, convert in _VIDEO_CONVERTERS.items():
            if not isinstance(fields, Mapping) or fields.get(name) is None:
                continue
            try:
                value = convert(fields[name])
            except (TypeError, ValueError, OverflowError, ZeroDivisionError) as error:
                faults[f"{noun} {action_name(key)}: {name} '{fields[name]}' cannot be parsed: {first_line(error)}"] = (
                    None
                )
                continue
            if (earlier := stated.setdefault((key[0], name), value)) != value:
                faults[
                    f"video {key[0]}: {name} is {earlier} in one row and {value} in another ({noun} {action_name(key)}): a video file has only one, correct them"
                ] = None
    videos = {video for video, _ in stated}
    facts = {
        v: VideoFacts(stated.get((v, "frames_per_second")), stated.get((v, "video_frames")), where)
        for v in sorted(videos, key=video_order)
    }
    return facts, list(faults)


@dataclass(frozen=True)
class ParsedRows:
    """The parsed fields of each row, by key; the keys of all rows; the faults; and what the rows state about the source
    videos, with the faults of that."""

    values: dict[ActionKey, dict[str, Any]]
    keys: frozenset[ActionKey]
    faults: list[str]
    facts: dict[str, VideoFacts]
    fact_faults: list[str]


def parse_rows(path: Path, columns: Columns) -> ParsedRows:
    """Parse the rows of an annotation file (.pkl, .csv, .json), in its order.

    Raises:
        UserError: the file as a whole is unreadable or has no rows.
    """
    rows = _rows(path, columns)
    faults = _column_faults([fields for _, fields in rows if isinstance(fields, dict)], columns)
    named = Counter(key for key, _ in rows)
    faults += [f"{columns.noun} {action_name(key)}: given {count} times" for key, count in named.items() if count > 1]
    absent = {name for name in columns.required if not any(isinstance(f, dict) and name in f for _, f in rows)}
    values: dict[ActionKey, dict[str, Any]] = {}
    for key, fields in rows:
        if not isinstance(fields, dict):
            faults.append(f"{columns.noun} {action_name(key)}: {type(fields).__name__} instead of named fields")
            continue
        parsed, own_faults = _parse_fields(fields, columns)
        # _column_faults already reports columns that no row has
        own_faults += [
            f"{name} is missing" for name in columns.required if fields.get(name) is None and name not in absent
        ]
        faults += [f"{columns.noun} {action_name(key)}: {fault}" for fault in own_faults]
        if not own_faults and not absent:
            values[key] = parsed
    facts, fact_faults = _video_facts(rows, Path(path).name, columns.noun)
    ends = {key: v["end_frame"] for key, v in values.items() if "end_frame" in v}
    fact_faults += [
        f"{columns.noun} {action_name(key)}: ends at frame {end}, but video_frames states that its video has {frames}"
        for key, end in ends.items()
        if key[0] in facts and (frames := facts[key[0]].frames) and end > frames
    ]
    return ParsedRows(values, frozenset(named), faults, facts, fact_faults)


def _parse_fields(fields: Mapping[str, Any], columns: Columns) -> tuple[dict[str, Any], list[str]]:
    """(the parsed fields of one row, a message for each that cannot be parsed)."""
    values, faults = {}, []
    for name, convert in columns.converters.items():
        if fields.get(name) is not None:
            try:
                values[name] = convert(fields[name])
            except (TypeError, ValueError, OverflowError) as error:
                faults.append(f"{name} {str(fields[name])!r} cannot be parsed: {first_line(error)}")
    return values, faults


def _column_faults(rows: Sequence[Mapping[str, Any]], columns: Columns) -> list[str]:
    """Faults of required columns that no row has, and of columns that look like misspelt ones."""
    given = dict.fromkeys(name for row in rows for name in row)
    known = columns.known
    faults = [
        f"no {columns.noun} has '{name}'; the columns are {', '.join(map(str, given))}"
        + ("; actions other than dives need --dataset_kind table" if name == "difficulty" else "")
        for name in columns.required
        if name not in given
    ]
    for name in given:
        close = difflib.get_close_matches(str(name).lower(), known, 1, cutoff=0.65)
        if name not in known and name != "primary_view" and close:
            faults.append(f"column '{name}' is unknown; did you mean {close[0]}? Rename or remove it")
    return faults


@dataclass(frozen=True)
class Annotations:
    """The content of an annotation file.

    `keys` are all its entries, `dives` those that could be parsed, and `faults` has one message per fault. `facts` is
    what the file states about the video files that were labelled, by video.
    """

    dives: dict[ActionKey, Dive]
    keys: frozenset[ActionKey]
    faults: tuple[str, ...]
    facts: dict[str, VideoFacts] = field(default_factory=dict)


def read_annotations(path: Path) -> Annotations:
    """Read the dives of an annotation file, in its order, and all its faults.

    A process parses a file again only if its content has changed. The returned dictionaries are copies.

    Raises:
        UserError: the file as a whole is unreadable or holds no dives.
    """
    read = _parsed(Path(path), _digest(path))
    return replace(read, dives=dict(read.dives), facts=dict(read.facts))


def _digest(path: Path) -> bytes:
    """A digest of a file's content; b"" if it cannot be read, which parsing reports."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).digest() if Path(path).is_file() else b""
    except OSError:
        return b""


@functools.lru_cache(maxsize=4)
def _parsed(path: Path, digest: bytes) -> Annotations:
    """What `read_annotations` returns, cached by the digest of the content: a modification time can miss a change."""
    rows = parse_rows(path, DIVES)
    dives = {key: Dive(*key, **values) for key, values in rows.values.items()}
    faults = [*rows.faults, *(fault for dive in dives.values() for fault in dive.faults())]
    faults += overlap_faults(d for d in dives.values() if d.start_frame <= d.end_frame)
    faults += rows.fact_faults
    return Annotations(dives, rows.keys, tuple(f"{path}: {fault}" for fault in faults), rows.facts)


def load_annotations(path: Path, captions_path: Path | None = None) -> dict[ActionKey, Dive]:
    """Load all dives of an annotation file (.pkl, .csv, .json), in its order, with captions if their file is given.

    Raises:
        UserError: naming every fault of the file, one per line.
    """
    read = read_annotations(path)
    if read.faults:
        raise UserError.of(read.faults)
    captions = load_captions(captions_path) if captions_path else {}
    return {key: replace(dive, caption=captions[key]) if key in captions else dive for key, dive in read.dives.items()}


def load_captions(path: Path) -> dict[ActionKey, tuple[str, ...]]:
    """Load the caption tokens of each dive, `<sos>` first and `<eos>` last.

    Raises:
        UserError: the file is unreadable or holds no captions.
    """
    raw = load_pickle(path)
    if not isinstance(raw, dict) or not all(map(_is_caption, raw.values())):
        raise UserError(
            f"{path} does not hold captions (a list of words for each dive): give MTL-AQA's final_captions_dict.pkl"
        )
    return {_parse_key(key, str(path)): tuple(tokens) for key, tokens in raw.items()}


def _is_caption(tokens: Any) -> bool:
    return isinstance(tokens, (list, tuple)) and all(isinstance(word, str) for word in tokens)


def load_vocabulary(path: Path) -> list[str]:
    """Load the words of `vocab.json`, in the order of their indices.

    Raises:
        UserError: the file is unreadable or has no complete 'ix_to_word'.
    """
    try:
        words = json.loads(read_text(path))["ix_to_word"]
        listed = [words[str(index)] for index in range(len(words))]
        if not listed or not all(isinstance(word, str) for word in listed):
            raise TypeError("a word is not text")
        if len(set(listed)) < len(listed):
            raise ValueError(f"'{Counter(listed).most_common(1)[0][0]}' occurs twice")
        return listed
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not a vocabulary ({type(error).__name__}: {error}): give MTL-AQA's vocab.json"
        ) from None


# ---------------------------------------------------------------------------------------------------------- split lists


def load_split(path: Path, one_each: bool = False) -> list[ActionKey]:
    """Load the (video, number) pairs of a split list. `one_each`: every video has only the action 1, so a CSV may have the
    column video alone.

    Formats: .pkl, .csv with the columns video and number (or dive), .json, and .npy of shape (N, 2). The order is that of the file;
    the pairs of a set are sorted.

    Raises:
        UserError: the file is not a list of pairs, or names a dive twice.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"{path} is not a file{similar_files_hint(path, (*_SUFFIXES, '.npy'))}: download MTL-AQA's split lists (python -m data_preparation.download annotations), or name yours with --train_path and --test_path"
        )
    _reject_spreadsheet(path)
    suffix = path.suffix.lower()
    if suffix in _TEXT_SUFFIXES:
        rows = _csv_rows(path, DIVES)
        numbered = [any(name in row for name in DIVES.number) for row in rows]
        if not all(numbered) and (any(numbered) or not one_each):
            raise UserError(f"{path}: a split list needs the columns video and number (or dive), filled in every row")
        raw: Any = [key for key, _ in _with_keys(rows, str(path), DIVES)]
    elif suffix == ".json":
        raw = _json_rows(path)
    else:
        raw = _to_list(_load_npy(path) if suffix == ".npy" else load_pickle(path))
    if isinstance(raw, (set, frozenset)):  # a set has no order, but the random train/validation split needs one
        return sorted((_parse_key(item, str(path)) for item in raw), key=sort_key)
    if isinstance(raw, dict) and raw:
        keys_are_pairs = all(isinstance(key, tuple) for key in raw)
        raise UserError(
            f"{path} holds {_content_text(raw)}, but a split list is a list of (video, dive) pairs: "
            + ("pickle list(dictionary)" if keys_are_pairs else "pickle one of its values into a separate file")
        )
    if not isinstance(raw, (list, tuple)) or not raw:
        raise UserError(
            f"{path} holds {_content_text(raw)}, not a list of (video, dive) pairs: give MTL-AQA's train_split_0.pkl or a file like it"
        )
    if len(raw) == 2 and all(isinstance(row, (list, tuple)) and len(row) > 2 for row in raw):
        raise UserError(
            f"{path} holds 2 rows of {len(raw[0])} numbers: save it transposed, one row (video, dive) per dive"
        )
    keys = [_parse_key(item, str(path)) for item in raw]
    twice = sorted((key for key, count in Counter(keys).items() if count > 1), key=sort_key)
    if twice:
        raise UserError(f"{path} names {len(twice)} actions twice ({list_names(twice)}): remove the duplicates")
    return keys


def load_official_split(
    files: datasets.AnnotationFiles, annotated: Iterable[ActionKey]
) -> tuple[dict[str, datasets.Split], list[str]]:
    """(the split "official" of --train_path and --test_path, the faults of the lists); ({}, []) without a train list.

    Raises:
        UserError: a list as a whole is unreadable.
    """
    if not files.train:
        return {}, []
    annotated = frozenset(annotated)
    one_each = all(number == 1 for _, number in annotated)
    train, test = (load_split(path, one_each) if path else [] for path in (files.train, files.test))
    fix = "write a disjoint train list with python -m data_preparation.annotations disjoint (MTL-AQA's smaller training sets overlap its test list)"
    faults = datasets.split_faults(annotated, train, test, fix)
    return {"official": datasets.Split(tuple(train), tuple(test))}, faults


# -------------------------------------------------------------------------------------------------------- command lines


@dataclass(frozen=True)
class SummaryConfig:
    """Print a summary of a data set's annotations; exit with status 2 if they have faults."""

    dataset: Path | None = flag(None, "Data set folder; none uses DEEPSPORTS_DATASET of job_files/environment.sh.")
    annotation_path: Path | None = flag(
        None, "Annotation file (.pkl, .csv, .json), or the folder of the released files; none uses the data set's own."
    )
    train_path: Path | None = flag(None, "Train list; none uses the data set's own.")
    test_path: Path | None = flag(None, "Test list; none uses the data set's own.")
    dataset_kind: str = flag(
        datasets.DEFAULT,
        "Format of the annotations (data_preparation/datasets); mtl_aqa also reads CSV and JSON files of dives.",
        choices=datasets.names(),
    )

    def path(self, name: str) -> Path:
        """The file that --NAME_path names, or else that of the data set.

        Raises:
            UserError: neither is given.
        """
        given = getattr(self, f"{name}_path")
        if given is not None:
            return given
        folder = self.dataset or default_dataset()
        if folder is None:
            raise UserError(
                f"--{name}_path and --dataset are missing: give one, or source job_files/environment.sh first"
            )
        return DatasetLayout(folder).annotations_of(self.dataset_kind)

    def list_path(self, name: str) -> Path | None:
        """The list that --NAME_path names, or else that of the data set; None if a data set other than MTL-AQA has none."""
        folder = self.dataset or default_dataset()
        given = getattr(self, f"{name}_path")
        return given or (DatasetLayout(folder).own_list(name, self.dataset_kind) if folder else None)


_WRITERS: dict[str, Callable[[list[ActionKey]], bytes]] = {
    ".pkl": lambda keys: pickle.dumps([plain_key(key) for key in keys], protocol=3),  # the protocol of MTL-AQA's lists
    ".csv": lambda keys: "".join(
        ["video,dive\n", *(f"{video},{dive}\n" for video, dive in map(plain_key, keys))]
    ).encode(),
    ".json": lambda keys: json.dumps([plain_key(key) for key in keys]).encode(),
}


def write_split(path: Path, keys: Sequence[ActionKey]) -> None:
    """Write a list that `load_split` reads.

    Raises:
        UserError: the suffix is not .pkl, .csv or .json, or the disk is full or not writable.
    """
    if path.suffix.lower() not in _WRITERS:
        raise UserError(f"--output {path}: give a name that ends in {', '.join(_WRITERS)}")
    with reporting_write_errors(path):
        write_atomic(path, _WRITERS[path.suffix.lower()](list(keys)))


@dataclass(frozen=True)
class DisjointConfig:
    """Write a train list without the dives of a test list."""

    train_path: Path | None = flag(None, "Train list that may share dives with the test list.")
    test_path: Path | None = flag(None, "Test list.")
    output: Path | None = flag(None, "Train list to write (.pkl, .csv, .json).")

    def __post_init__(self) -> None:
        if missing := [f"--{name}" for name, value in vars(self).items() if value is None]:
            raise UserError(f"{', '.join(missing)} missing: give the two lists and the file to write")
        if self.output is not None and self.output.suffix.lower() not in _WRITERS:
            raise UserError(f"--output {self.output}: give a name that ends in {', '.join(_WRITERS)}")


def _summary(config: SummaryConfig) -> None:
    kind, annotations = config.dataset_kind, config.path("annotation")
    lists = (config.list_path("train"), config.list_path("test")) if datasets.reads_lists(kind) else (None, None)
    folder = config.dataset or default_dataset()
    captions = DatasetLayout(folder).captions_file if folder and kind == datasets.DEFAULT else None
    files = datasets.AnnotationFiles(
        annotations, lists[0], lists[1], captions if captions and captions.exists() else None
    )
    data = datasets.read(kind, files)
    if data.actions:
        print(summary(data))
    if data.faults:
        raise UserError.of(data.faults)


def _disjoint(config: DisjointConfig) -> None:
    # DisjointConfig checks that all three are given
    assert config.train_path is not None
    assert config.test_path is not None
    assert config.output is not None
    train, test = load_split(config.train_path), set(load_split(config.test_path))
    remaining = [key for key in train if key not in test]
    if not remaining:
        raise UserError(f"every dive of {config.train_path} is in the test list: give a train list with other dives")
    write_split(config.output, remaining)
    print(
        f"{config.output}: {len(remaining)} dives; {len(train) - len(remaining)} that are in the test list were left out"
    )


def main(argv: Sequence[str]) -> None:
    name, config = parse_command(
        {"summary": SummaryConfig, "disjoint": DisjointConfig}, argv, prog="python -m data_preparation.annotations"
    )
    if name == "summary":
        _summary(config)
    else:
        _disjoint(config)


if __name__ == "__main__":
    run(main)
