"""Labelled clips: each video is one clip of a class, or has clips that a list names.

Reads a folder with one of

    train.txt, test.txt    rows "path frames label", "path start frames label" (start counts from 0) or "file label", as
                           TSN, TSM and mmaction use them; or train.json, test.json with mmaction's records; class names
                           in classes.txt, label 0 first
    classInd.txt, trainlist01.txt, testlist01.txt, ...    UCF101's lists (Soomro et al., 2012); list 0K is fold K
    frames.csv alone       one folder a class: train/CLASS/clip and test/CLASS/clip, or CLASS/clip without a test list

frames.csv holds the number of frames of each clip (`data_preparation.count_frames`). Lists without counts need it, and
counts in lists are compared with it.
"""

from __future__ import annotations

import re
import shlex
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from data_preparation.actions import LAST_FRAME, Action, ActionKey, list_names, video_name
from data_preparation.common.errors import UserError, first_line
from data_preparation.datasets import AnnotationFiles, DataSet, Split, group_warnings, repeated_faults, shared_faults
from data_preparation.layout import VIDEO_SUFFIXES
from data_preparation.similar_files import names_in
from data_preparation.text_tables import CLASS_NAMES, csv_cells, load_json, read_class_names, read_text, whole_number

READS_LISTS = False

COUNTS_FILE = "frames.csv"
COUNTS_HEADER = ["clip", "frames"]

_UCF_CLASSES = "classInd.txt"
_UCF_LIST = re.compile(r"(train|test)list([0-9]+)\.txt")
_UCF_GROUP = re.compile(r"(.*_g[0-9]+)_c[0-9]+")  # v_Punch_g03_c01 is a clip of source video g03 of its class
_LIST_SUFFIXES = (".txt", ".json")
_TRAIN_FOLDER, _TEST_FOLDERS = "train", ("test", "val", "validation")


@dataclass(frozen=True)
class Row:
    """A clip of a list: `start` frames of the video are before it; `frames` and `label` are None if not given."""

    video: str
    start: int
    frames: int | None
    label: int | None


@dataclass
class Faults:
    """Collects faults of rows by their cause, so that a list with 100,000 bad rows gets one sentence for each cause."""

    where: Path
    rows: dict[tuple[str, str], list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, number: int, problem: str, fix: str, example: str = "") -> None:
        self.rows[problem, fix].append(f"{number}{f' ({example})' if example else ''}")

    def sentences(self) -> list[str]:
        return [
            f"{self.where}: {'row' if len(rows) == 1 else f'{len(rows)} rows,'} {', '.join(rows[:3])}{', ...' if len(rows) > 3 else ''}: {problem}: {fix}"
            for (problem, fix), rows in self.rows.items()
        ]


# --------------------------------------------------------------------------------------------------------- files -> rows


def count_command(source: str, output: Path) -> str:
    """The command that writes the counts, for messages."""
    return shlex.join(["python", "-m", "data_preparation.count_frames", "--source", source, "--output", str(output)])


def read_counts(path: Path) -> dict[str, int]:
    """The number of frames of each clip in a file that data_preparation.count_frames wrote.

    Raises:
        UserError: naming every fault of the file.
    """
    header, rows, faults = csv_cells(path)
    if [name.lower() for name in header] != COUNTS_HEADER:
        raise UserError(
            f"{path} does not begin with the line {','.join(COUNTS_HEADER)}: write it with count_frames again"
        )
    counts: dict[str, int] = {}
    bad, twice = [], []
    for number, cells in rows:
        try:
            name, count = video_name(cells[0]), int(cells[1])
            if not 1 <= count <= LAST_FRAME:
                raise ValueError
        except (ValueError, IndexError):
            bad.append(str(number))
            continue
        if name in counts:
            twice.append(name)
        counts[name] = count
    if bad:
        faults.append(
            f"{path}: {len(bad)} rows ({', '.join(bad[:5])}) are not the name of a clip and a number of frames from 1: correct them, or write the file with count_frames again"
        )
    if twice:
        faults.append(f"{path} names {len(twice)} clips twice ({', '.join(twice[:5])}): keep one row of each")
    if faults:
        raise UserError.of(faults)
    return counts


def clip_name(path: str) -> str:
    """The name of the video of a clip: its path without the suffix of a video file.

    Raises:
        ValueError: it cannot be the name of a video.
    """
    path = path.removeprefix("./").replace("\\", "/")
    suffix = PurePosixPath(path).suffix
    return video_name(path.removesuffix(suffix) if suffix.lower() in VIDEO_SUFFIXES else path)


def _add_row(rows: list[Row], faults: Faults, number: int, path: str, start: Any, frames: Any, label: Any) -> None:
    """Append a row, or its fault. Numbers may be text; None means not given."""
    try:
        name = clip_name(path)
    except ValueError as error:
        if path.startswith("/"):
            faults.add(number, "the path is absolute", "write it relative to the folder of the videos", path)
        else:
            faults.add(number, "the path cannot be the name of a video", str(error), path)
        return
    numbers: list[int | None] = []
    for text, what in ((start, "start"), (frames, "number of frames"), (label, "label")):
        try:
            numbers.append(None if text is None else whole_number(text))
        except (TypeError, ValueError, OverflowError):
            faults.add(number, f"the {what} is not a whole number", "correct it", str(text)[:40])
            return
    first, count, index = numbers
    if first is not None and not 0 <= first <= LAST_FRAME:
        faults.add(number, "the start is not a frame number", "count from 0", str(first))
    elif count is not None and not 1 <= count <= LAST_FRAME:
        faults.add(number, "the clip has no frames", "remove the row, or write the right number", str(count))
    elif index is not None and index < 0:
        faults.add(number, "the label is negative", "labels count from 0", str(index))
    else:
        rows.append(Row(name, first or 0, count, index))


def parse_list(path: Path) -> tuple[list[Row], list[str]]:
    """(rows, faults) of a list in text: "file label", "path frames label" or "path start frames label".

    Raises:
        UserError: the file as a whole is unreadable or empty.
    """
    lines = [(number, line.split()) for number, line in enumerate(read_text(path).splitlines(), start=1)]
    lines = [(number, cells) for number, cells in lines if cells]
    if not lines:
        raise UserError(f"{path} is empty: write one row for each clip, such as 'path frames label'")
    columns = Counter(len(cells) for _, cells in lines).most_common(1)[0][0]
    if not 2 <= columns <= 4:
        reason = "several labels for a clip are not supported" if columns > 4 else "labels are missing"
        raise UserError(
            f"{path} has rows of {columns} columns ({reason}): write 'path frames label', 'path start frames label' or 'file label'"
        )
    rows: list[Row] = []
    faults = Faults(path)
    for number, cells in lines:
        if len(cells) != columns:
            faults.add(
                number,
                f"not {columns} columns as in the other rows",
                "correct it (a path must not have blanks)",
                f"it has {len(cells)}",
            )
            continue
        start = cells[1] if columns == 4 else None
        frames = cells[-2] if columns > 2 else None
        _add_row(rows, faults, number, cells[0], start, frames, cells[-1])
    return rows, faults.sentences()


def parse_records(path: Path) -> tuple[list[Row], list[str]]:
    """(rows, faults) of a JSON list of mmaction's records: frame_dir or filename, total_frames, and label, a number or a
    list of one.

    Raises:
        UserError: the file as a whole is unreadable or empty.
    """
    try:
        records, repeated = load_json(read_text(path))
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({first_line(error)}): correct it") from None
    if repeated:
        raise UserError(f"{path}: a record has {', '.join(map(repr, repeated[:5]))} twice: keep one of each")
    if not isinstance(records, list) or not records:
        raise UserError(f"{path} is not a JSON list of records: write one object for each clip")
    rows: list[Row] = []
    faults = Faults(path)
    for number, record in enumerate(records, start=1):
        name = record.get("frame_dir", record.get("filename")) if isinstance(record, dict) else None
        if not isinstance(name, str):
            faults.add(number, "it is not an object with frame_dir or filename", "write one for each clip")
            continue
        label = record.get("label")
        if isinstance(label, list) and len(label) == 1:
            label = label[0]
        if isinstance(label, list) or label is None:
            faults.add(number, "it does not have one label", "write one whole number, since several are not supported")
            continue
        _add_row(rows, faults, number, name, None, record.get("total_frames"), label)
    return rows, faults.sentences()


def parse_ucf_list(path: Path, classes: Sequence[str]) -> tuple[list[Row], list[str]]:
    """(rows, faults) of a list of UCF101: "Class/v_Class_gGG_cCC.avi", in train lists followed by the number of the class
    from 1. Labels count from 0.

    Raises:
        UserError: the file as a whole is unreadable or empty.
    """
    index = {name: label for label, name in enumerate(classes)}
    rows: list[Row] = []
    faults = Faults(path)
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        cells = line.split()
        if not cells:
            continue
        name = PurePosixPath(cells[0]).parent.name
        if len(cells) > 2:
            faults.add(number, "more than a file and a number", "correct it (a path must not have blanks)")
        elif name not in index:
            faults.add(number, f"its folder is not a class of {_UCF_CLASSES}", "correct one of them", name or cells[0])
        elif len(cells) == 2 and cells[1] != str(index[name] + 1):
            faults.add(
                number, f"its number is not that of its folder in {_UCF_CLASSES}", "correct one of them",
                f"{cells[1]} instead of {index[name] + 1} for {name}",
            )  # fmt: skip
        else:
            _add_row(rows, faults, number, cells[0], None, None, index[name])
    if not rows and not faults.rows:
        raise UserError(f"{path} is empty: download it again")
    return rows, faults.sentences()


def read_ucf_classes(path: Path) -> tuple[str, ...]:
    """The class names of UCF101's classInd.txt, rows "n Class" with n from 1.

    Raises:
        UserError: naming every fault.
    """
    names: dict[int, str] = {}
    faults = Faults(path)
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        cells = line.split()
        if not cells:
            continue
        if len(cells) != 2 or not cells[0].isdecimal():
            faults.add(number, "it is not 'number class'", "correct it", line.strip()[:40])
        elif int(cells[0]) in names or cells[1] in names.values():
            faults.add(number, "its number or its class occurs twice", "keep one", line.strip()[:40])
        else:
            names[int(cells[0])] = cells[1]
    sentences = faults.sentences()
    if not sentences and sorted(names) != list(range(1, len(names) + 1)):
        sentences.append(f"{path}: its numbers are not 1 to {len(names)}: number the classes from 1 without gaps")
    if not names and not sentences:
        sentences.append(f"{path} is empty: write one row 'number class' for each class")
    if sentences:
        raise UserError.of(sentences)
    return tuple(names[number] for number in sorted(names))


# ------------------------------------------------------------------------------------------------------ rows -> actions


def group_of(video: str, clips: int) -> str:
    """What the clips of a video are never split from: the source video of UCF101's clips, by their names; the video itself if
    it has several clips; otherwise nothing ("")."""
    match = _UCF_GROUP.fullmatch(video)
    return match[1] if match else video if clips > 1 else ""


@dataclass(frozen=True)
class Lists:
    """The rows of all lists: of the train and test part of each split, by the split's name."""

    splits: dict[str, tuple[list[Row], list[Row]]]
    classes: tuple[str, ...]
    faults: list[str]


def _ucf_lists(folder: Path, classes: tuple[str, ...]) -> Lists:
    """The lists of a folder with classInd.txt.

    Raises:
        UserError: a list is unreadable as a whole, or one of a pair is missing.
    """
    found: dict[int, dict[str, Path]] = defaultdict(dict)
    for name in names_in(folder):
        if match := _UCF_LIST.fullmatch(name):
            found[int(match[2])][match[1]] = folder / name
    faults, splits = [], {}
    if not found:
        raise UserError(
            f"{folder} has {_UCF_CLASSES} but no trainlist01.txt and testlist01.txt: copy UCF101's lists there"
        )
    for fold, pair in sorted(found.items()):
        if len(pair) < 2:
            raise UserError(f"{folder} has only {next(iter(pair.values())).name} of fold {fold}: copy both lists there")
        parts = []
        for part in ("train", "test"):
            rows, own_faults = parse_ucf_list(pair[part], classes)
            parts.append(rows)
            faults += own_faults
        splits[f"fold{fold}"] = (parts[0], parts[1])
    return Lists(splits, classes, faults)


def _plain_lists(paths: Sequence[Path], classes: tuple[str, ...]) -> Lists:
    """The rows of a train list and a test list; classes are numbered if they have no names."""
    parts, faults = [], []
    for path in paths:
        rows, own_faults = (parse_records if path.suffix.lower() == ".json" else parse_list)(path)
        parts.append(rows)
        faults += own_faults
    labels = [row.label for rows in parts for row in rows if row.label is not None]
    most = len(classes) or len(parts[0])  # each class needs a clip in the train list
    above = [label for label in labels if label >= most]
    if above and parts[0]:  # a train list without a readable row has its own sentence
        stated = f"{CLASS_NAMES} has {most} classes" if classes else f"the train list has {most} clips"
        faults.append(
            f"{paths[0]} and {paths[1]}: {len(above)} rows have labels above {most - 1} (the highest is {max(above)}), and {stated}: correct one of them"
        )
    classes = classes or tuple(map(str, range(max((label for label in labels if label < most), default=0) + 1)))
    if len(classes) > 1 and len(parts[1]) > 1 and not any(row.label for row in parts[1]):
        faults.append(
            f"{paths[1]}: every clip has label 0, as in a list of clips whose labels are secret: give a list with labels instead, such as the validation list"
        )
    return Lists({"official": (parts[0], parts[1])}, classes, faults)


def _folder_lists(counts: Mapping[str, int], where: Path) -> Lists:
    """One folder a class: the rows follow from the names of the clips in frames.csv.

    Raises:
        UserError: clips lie in no folder of a class, or some are in neither part.
    """
    tops = {name.split("/")[0] for name in counts}
    test_tops = sorted(tops & {*_TEST_FOLDERS})
    depth = 3 if _TRAIN_FOLDER in tops and test_tops else 2
    if depth == 3 and tops != {_TRAIN_FOLDER, test_tops[0]}:
        raise UserError(
            f"{where} has clips in {', '.join(sorted(tops))}: put all clips into {_TRAIN_FOLDER} and {test_tops[0]}"
        )
    if bad := [name for name in counts if name.count("/") != depth - 1]:
        raise UserError(
            f"{where}: {len(bad)} clips ({', '.join(bad[:3])}) are not named CLASS/clip, train/CLASS/clip or test/CLASS/clip: put each clip into the folder of its class, or add lists (train.txt, test.txt)"
        )
    class_of = {name: name.split("/")[depth - 2] for name in counts}
    classes = tuple(sorted(set(class_of.values())))
    index = {name: label for label, name in enumerate(classes)}
    rows = {name: Row(name, 0, None, index[c]) for name, c in class_of.items()}
    if depth == 2:
        return Lists({"official": (list(rows.values()), [])}, classes, [])
    train = [row for name, row in rows.items() if name.startswith(f"{_TRAIN_FOLDER}/")]
    test = [row for name, row in rows.items() if not name.startswith(f"{_TRAIN_FOLDER}/")]
    return Lists({"official": (train, test)}, classes, [])


def _given_lists(folder: Path) -> list[Path]:
    """The train and the test list of the folder: train.txt or train.json, test.txt or test.json; [] if it has neither.

    Raises:
        UserError: one of them is missing, or there are two.
    """
    paths = []
    for part in ("train", "test"):
        own = [path for suffix in _LIST_SUFFIXES if (path := folder / f"{part}{suffix}").is_file()]
        if len(own) > 1:
            raise UserError(f"{folder} has {own[0].name} and {own[1].name}: keep one")
        paths += own
    if len(paths) == 1:
        others = [n for n in names_in(folder) if n.endswith(_LIST_SUFFIXES) and folder / n not in paths]
        listed = f" (the folder has {', '.join(others[:5])})" if others else ""
        raise UserError(
            f"{folder} has only one list, {paths[0].name}{listed}: give both, with the names train.txt and test.txt"
        )
    return paths


def _with_counts(
    rows: Collection[Row], counts: Mapping[str, int] | None, where: Path, faults: list[str], warnings: list[str]
) -> dict[Row, int]:
    """The number of frames of each row; rows that have none or too many become faults, too few a warning."""
    found: dict[Row, int] = {}
    unknown, missing, short, longer = [], [], [], []
    clips_of = Counter(row.video for row in rows)
    for row in rows:
        whole = None if counts is None else counts.get(row.video)
        if counts is not None and whole is None:
            missing.append(row.video)
        elif row.frames is None and whole is None:
            unknown.append(row.video)
        elif whole is not None and row.start + (row.frames or 1) > whole:
            short.append(f"{row.video}: {row.start + (row.frames or 1)}, has {whole}")
        else:
            found[row] = row.frames if row.frames is not None else (whole or 0) - row.start
            if whole is not None and found[row] < whole and clips_of[row.video] == 1:
                longer.append(f"{row.video}: {found[row]}, has {whole}")
    if unknown:
        faults.append(
            f"{where}: the lists do not state the number of frames of {len(unknown)} clips ({', '.join(unknown[:3])}): count them once ({count_command('DATASET/whole_videos', where / COUNTS_FILE)})"
        )
    if missing:
        faults.append(
            f"{where / COUNTS_FILE}: {len(missing)} clips of the lists ({', '.join(missing[:3])}) are missing: download them and count again, or remove their rows"
        )
    if short:
        faults.append(
            f"{where / COUNTS_FILE}: {len(short)} clips have fewer frames than the lists need ({'; '.join(short[:3])}): correct the lists"
        )
    if longer:
        warnings.append(
            f"{where / COUNTS_FILE}: {len(longer)} clips have more frames than the lists state ({'; '.join(longer[:3])}): the further frames are not used"
        )
    return found


def read(files: AnnotationFiles) -> DataSet:
    """Read a folder of lists, or frames.csv alone (see the module's text).

    Raises:
        UserError: a file as a whole is unreadable, or there are no lists.
    """
    folder = files.annotations
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: name the folder of the lists with --annotation_path")
    paths = _given_lists(folder)
    counts_file = folder / COUNTS_FILE
    counts = read_counts(counts_file) if counts_file.is_file() else None
    class_file = folder / CLASS_NAMES
    if paths:
        ucf_classes = folder / _UCF_CLASSES
        if class_file.is_file():
            classes = read_class_names(class_file)
        else:
            classes = read_ucf_classes(ucf_classes) if ucf_classes.is_file() else ()
        lists = _plain_lists(paths, classes)
    elif (folder / _UCF_CLASSES).is_file():
        lists = _ucf_lists(folder, read_ucf_classes(folder / _UCF_CLASSES))
    elif counts is not None:
        lists = _folder_lists(counts, counts_file)
    else:
        raise UserError(
            f"{folder} has no lists (train.txt and test.txt, or UCF101's {_UCF_CLASSES} and trainlist01.txt): copy them there, or for one folder a class count the clips ({count_command('DATASET/whole_videos', counts_file)})"
        )
    return _data_set(folder, lists, counts)


def _data_set(folder: Path, lists: Lists, counts: Mapping[str, int] | None) -> DataSet:
    faults: list[str] = list(lists.faults)
    warnings: list[str] = []
    rows = dict.fromkeys(row for parts in lists.splits.values() for part in parts for row in part)
    frames = _with_counts(rows, counts, folder, faults, warnings)
    keys = _keys(rows)
    clips_of = Counter(video for video, _ in keys.values())
    actions: dict[ActionKey, Action] = {}
    differing = []
    for row, count in frames.items():
        key = keys[_place(row)]
        if key in actions and actions[key].label != row.label:
            differing.append(key)
        actions[key] = Action(
            *key, row.start + 1, row.start + count, label=row.label, group=group_of(row.video, clips_of[row.video])
        )  # fmt: skip
    counted = {(row.video, row.start, row.frames) for row in rows if row.frames is not None}
    if twice := [f"{video}, start {start}" for (video, start), n in Counter(c[:2] for c in counted).items() if n > 1]:
        faults.append(
            f"{folder}: {len(twice)} clips ({'; '.join(twice[:3])}) are given with different numbers of frames: keep one row of each"
        )
    if differing:
        faults.append(f"{folder}: {len(differing)} clips ({list_names(differing)}) have two labels: correct the lists")
    splits = {}
    for name, parts in lists.splits.items():
        train, test = (tuple(keys[_place(row)] for row in part) for part in parts)
        where = f"{folder}, {name}" if name.startswith("fold") else str(folder)
        splits[name] = Split(train, test)
        for part, keys_of_part in (("train", train), ("test", test)):
            faults += repeated_faults(f"{where}: the {part} list", keys_of_part)
        faults += [f"{where}: {fault}" for fault in (*shared_faults(train, test), *_overlaps(actions, train, test))]
        seen = {row.label for row in parts[0]}
        absent = [c for label, c in enumerate(lists.classes) if label not in seen]
        if absent and parts[0]:
            faults.append(
                f"{where}: {len(absent)} of {len(lists.classes)} classes ({', '.join(absent[:5])}) have no clip in the train list: add clips, or leave these classes out"
            )
    warnings += group_warnings(actions, splits)
    if counts is None:
        warnings.append(
            f"{folder}: the numbers of frames of the lists were not compared with the clips: count them once ({count_command('DATASET/whole_videos', folder / COUNTS_FILE)})"
        )
    return DataSet(actions, splits, lists.classes, {}, tuple(faults), tuple(warnings), {}, frozenset(keys.values()))


def _overlaps(actions: Mapping[ActionKey, Action], train: Sequence[ActionKey], test: Sequence[ActionKey]) -> list[str]:
    """A message if different clips of the train list and of the test list have frames in common."""
    in_train = set(train)
    by_video: dict[str, list[Action]] = defaultdict(list)
    for key in in_train ^ set(test):
        if key in actions:
            by_video[key[0]].append(actions[key])
    shared = []
    for clips in by_video.values():
        ends = {True: 0, False: 0}  # the last frame so far of the clips of each list
        for clip in sorted(clips, key=lambda each: each.start_frame):
            own = clip.key in in_train
            if clip.start_frame <= ends[not own]:
                shared.append(clip.key)
            ends[own] = max(ends[own], clip.end_frame)
    if not shared:
        return []
    return [
        f"{len(shared)} clips ({list_names(sorted(shared))}) have frames of a clip of the other list, so the test result would be meaningless: correct the starts and numbers of frames, or remove them from one list"
    ]


def _place(row: Row) -> tuple[str, int, int | None]:
    """What tells the clips of the lists apart."""
    return (row.video, row.start, row.frames)


def _keys(rows: Iterable[Row]) -> dict[tuple[str, int, int | None], ActionKey]:
    """The key of each clip: clips of one video are numbered from 1 by their start."""
    places: dict[str, set[tuple[str, int, int | None]]] = defaultdict(set)
    for row in rows:
        places[row.video].add(_place(row))
    return {
        place: (video, number)
        for video, of_video in places.items()
        for number, place in enumerate(sorted(of_video, key=lambda p: (p[1], p[2] or 0)), start=1)
    }
