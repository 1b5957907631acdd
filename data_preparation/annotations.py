"""Annotation files -> Dive records (leaf).

Reads MTL-AQA's own pickles (Parmar and Morris, "What and How Well You Performed? A Multitask Learning Approach to
Action Quality Assessment", CVPR 2019) with an unpickler that can build builtins and numpy scalars and arrays only,
because annotation files are downloads and a pickle can run code.
"""

from __future__ import annotations

import io
import json
import math
import pickle
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_preparation.cli import UserError

DiveKey = tuple[int, int]  # (video, dive number within the video)

# The label vocabulary of MTL-AQA, by index, verified against the dive numbers.
POSITIONS = ("free", "pike", "tuck")  # letters D, B, C
ROTATION_TYPES = ("back", "forward", "inward", "reverse")
ATTRIBUTE_CLASSES = {"position": 3, "armstand": 2, "rotation_type": 4, "ss_no": 10, "tw_no": 8}


@dataclass(frozen=True)
class Dive:
    """One judged dive of a broadcast.

    Frames are 1-based and inclusive, numbered as `ffmpeg -i NN.mp4 %06d.jpg` numbers them. `difficulty` is the degree
    of difficulty, `final_score` is in points (0 to about 120). The other fields are None where a file does not have
    them; `ss_no` and `tw_no` count half somersaults and half twists.
    """

    video: int
    number: int
    start_frame: int
    end_frame: int
    difficulty: float
    final_score: float
    position: int | None = None
    armstand: int | None = None
    rotation_type: int | None = None
    ss_no: int | None = None
    tw_no: int | None = None
    judge_scores: tuple[float, ...] | None = None
    dive_number: str | None = None
    caption: tuple[str, ...] | None = None

    @property
    def key(self) -> DiveKey:
        return (self.video, self.number)

    @property
    def frame_count(self) -> int:
        return self.end_frame - self.start_frame + 1

    @property
    def name(self) -> str:
        """How messages name a dive: video and number ('03/055')."""
        return f"{self.video:02d}/{self.number:03d}"


# ---------------------------------------------------------------------------------------------- restricted unpickling


def _numpy_globals() -> dict[tuple[str, str], Any]:
    import numpy as np
    from numpy._core import multiarray, numeric  # home of what numpy's own pickles name, under its old and its new path

    allowed: dict[tuple[str, str], Any] = {("numpy", "dtype"): np.dtype, ("numpy", "ndarray"): np.ndarray}
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        allowed[(module, "scalar")] = multiarray.scalar
        allowed[(module, "_reconstruct")] = multiarray._reconstruct
    for module in ("numpy.core.numeric", "numpy._core.numeric"):
        allowed[(module, "_frombuffer")] = numeric._frombuffer  # arrays of protocol 5
    return allowed


def _latin1_bytes(text: str, encoding: str = "latin1") -> bytes:
    """What pickles of protocol 2 call `_codecs.encode` for: bytes written as text."""
    return text.encode(encoding)


class _RestrictedUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        allowed = {**_numpy_globals(), ("_codecs", "encode"): _latin1_bytes}
        try:
            return allowed[(module, name)]
        except KeyError:
            raise UserError(
                f"refused: the pickle wants to load '{module}.{name}', which no annotation needs; do not trust this file"
            ) from None


def load_pickle(path: Path) -> Any:
    """The content of an untrusted pickle of builtins and numpy scalars and arrays.

    Raises:
        UserError: the file is missing, is no pickle, or names anything else (which is then not loaded).
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give the path of an annotation file") from None
    try:
        return _RestrictedUnpickler(io.BytesIO(data)).load()
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception as error:  # a damaged pickle can raise anything
        raise UserError(
            f"{path} is not a readable pickle ({type(error).__name__}: {error}): download it again"
        ) from None


# ------------------------------------------------------------------------------------------------------ file -> Dives


def _key(raw: Any, where: str) -> DiveKey:
    try:
        video, number = raw
        return (int(video), int(number))  # numpy.uint8 and numpy.int64 occur in released files
    except (TypeError, ValueError):
        raise UserError(f"{where}: '{raw}' is not a (video, dive) pair") from None


_REQUIRED = ("start_frame", "end_frame", "difficulty", "final_score")


def _dive(key: DiveKey, fields: Mapping[str, Any]) -> Dive:
    attributes = {name: int(fields[name]) for name in ATTRIBUTE_CLASSES if name in fields}
    judges = fields.get("judge_scores")
    return Dive(
        video=key[0],
        number=key[1],
        start_frame=int(fields["start_frame"]),
        end_frame=int(fields["end_frame"]),
        difficulty=float(fields["difficulty"]),
        final_score=float(fields["final_score"]),
        judge_scores=None if judges is None else tuple(float(score) for score in judges),
        dive_number=fields.get("dive_number"),
        **attributes,
    )


def dive_faults(dive: Dive) -> list[str]:
    """What is impossible about one dive, a sentence each."""
    faults = []
    if not 1 <= dive.start_frame <= dive.end_frame:
        faults.append(
            f"dive {dive.name}: frames {dive.start_frame} to {dive.end_frame} are no range that starts at 1 or later"
        )
    if not (math.isfinite(dive.difficulty) and dive.difficulty > 0):
        faults.append(f"dive {dive.name}: difficulty {dive.difficulty} must be greater than 0")
    if not (math.isfinite(dive.final_score) and dive.final_score >= 0):
        faults.append(f"dive {dive.name}: final score {dive.final_score} must be 0 or more")
    for name, classes in ATTRIBUTE_CLASSES.items():
        value = getattr(dive, name)
        if value is not None and not 0 <= value < classes:
            faults.append(f"dive {dive.name}: {name} {value} is outside 0 to {classes - 1}")
    return faults


def load_annotations(path: Path, captions_path: Path | None = None) -> dict[DiveKey, Dive]:
    """All dives of an annotation pickle, in the file's order; captions are joined when their file is given.

    Raises:
        UserError: naming every fault of the file, one a line.
    """
    raw = load_pickle(path)
    if not isinstance(raw, dict) or not raw:
        raise UserError(
            f"{path} holds no dictionary of dives: give MTL-AQA's final_annotations_dict.pkl or a file like it"
        )
    captions = load_captions(captions_path) if captions_path else {}
    dives: dict[DiveKey, Dive] = {}
    faults: list[str] = []
    for raw_key, fields in raw.items():
        key = _key(raw_key, str(path))
        missing = [name for name in _REQUIRED if not isinstance(fields, dict) or name not in fields]
        if missing:
            faults.append(f"dive {key[0]:02d}/{key[1]:03d}: {', '.join(missing)} missing")
            continue
        try:
            dive = _dive(key, fields)
        except (TypeError, ValueError) as error:
            faults.append(f"dive {key[0]:02d}/{key[1]:03d}: {error}")
            continue
        if key in captions:
            dive = Dive(**{**dive.__dict__, "caption": captions[key]})
        faults += dive_faults(dive)
        dives[key] = dive
    if faults:
        raise UserError.of(f"{path}: {fault}" for fault in faults)
    return dives


def load_captions(path: Path) -> dict[DiveKey, tuple[str, ...]]:
    """Caption tokens by dive, `<sos>` first and `<eos>` last, keys as plain ints."""
    return {_key(key, str(path)): tuple(tokens) for key, tokens in load_pickle(path).items()}


def load_vocabulary(path: Path) -> list[str]:
    """The words of `vocab.json` by index."""
    words = json.loads(Path(path).read_text())["ix_to_word"]
    return [words[str(index)] for index in range(len(words))]


def load_split(path: Path) -> list[DiveKey]:
    """The (video, dive) pairs of a split list, in the file's order.

    Raises:
        UserError: the file is no list of pairs, or names a dive twice.
    """
    raw = load_pickle(path)
    if not isinstance(raw, (list, tuple)) or not raw:
        raise UserError(
            f"{path} holds no list of (video, dive) pairs: give MTL-AQA's train_split_0.pkl or a file like it"
        )
    keys = [_key(item, str(path)) for item in raw]
    twice = sorted({key for key in keys if keys.count(key) > 1}) if len(set(keys)) < len(keys) else []
    if twice:
        raise UserError(f"{path} names {len(twice)} dives twice, the first of them {twice[0]}: remove the repetitions")
    return keys


def select(dives: Mapping[DiveKey, Dive], keys: Iterable[DiveKey], where: str) -> list[Dive]:
    """The dives that a split list names, in its order.

    Raises:
        UserError: the list names dives that have no annotation.
    """
    keys = list(keys)
    absent = [key for key in keys if key not in dives]
    if absent:
        listed = ", ".join(f"{video:02d}/{number:03d}" for video, number in absent[:5])
        raise UserError(
            f"{where} names {len(absent)} dives without annotation ({listed}{', ...' if len(absent) > 5 else ''}): use lists and annotations of the same data set"
        )
    return [dives[key] for key in keys]


def check_disjoint(train: Iterable[DiveKey], test: Iterable[DiveKey]) -> None:
    """Refuses a train list that shares dives with the test list.

    Raises:
        UserError: naming how many are shared.
    """
    shared = sorted(set(train) & set(test))
    if shared:
        raise UserError(
            f"the train and test lists share {len(shared)} dives, the first of them {shared[0]}: the test result would be worthless, remove them from one list"
        )
