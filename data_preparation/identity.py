"""Which actions of two data sets are the same, and which actions a model was trained on.

The same dive has another key in another data set, and other frame limits: MTL-AQA's (3, 24) is FineDiving's ('03', 24), and
UNLV-Dive's clip 24 is another one. So an action is identified in three ways:

* by name, if it is one of MTL-AQA's dives (`mtl_aqa_names`);
* by its key, frames, score and label, which finds the same row in two tables;
* by the SHA-256 of the source video and its frames there, if its archive states them, whatever the tables say.
"""

from __future__ import annotations

import csv
import hashlib
import json
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from data_preparation.actions import Action, ActionKey, sort_key
from data_preparation.archive import open_frames
from data_preparation.common.errors import UserError

_MTL_AQA_DIVES = Path(__file__).with_name("datasets") / "mtl_aqa_dives.csv"

# Share of the actions of a video, or of a list, whose scores must be those of the known dives. Data sets of the same videos
# correct or mistype a few labels; a list of other actions agrees in about 1 % of them by chance.
_AGREEMENT = 0.9

# UNLV-Dive (Parmar and Morris, "Learning to Score Olympic Events", CVPRW 2017) and AQA-7's class "diving" (the same clips)
# are the dives of these videos of MTL-AQA, in this order and in the order of the dives. Two dives are missing, and three
# labels differ slightly. MTL-AQA's own list of UNLV-Dive (split_370_4) numbers the dives without regard to gaps, so 191 of
# its 370 keys name another dive.
_UNLV_DIVES = 370
_UNLV_VIDEOS = ("03", "02", "01")


# ------------------------------------------------------------------------------------------------------- known data sets


@cache
def mtl_aqa_dives() -> dict[ActionKey, tuple[float, float]]:
    """(final score, difficulty) of every dive of MTL-AQA."""
    with open(_MTL_AQA_DIVES, newline="") as file:
        rows = csv.DictReader(line for line in file if not line.startswith("#"))
        return {(r["video"], int(r["dive"])): (float(r["final_score"]), float(r["difficulty"])) for r in rows}


def mtl_aqa_names(actions: Iterable[Action]) -> dict[ActionKey, ActionKey]:
    """MTL-AQA's key of those actions that are its dives. `actions` must be all of a data set.

    MTL-AQA, its excerpts and FineDiving number these dives alike: the scores of a video show whether it is the same one.
    FineDiving changed the frame limits of most dives and the difficulty of some, so neither is compared.
    """
    found: dict[ActionKey, ActionKey] = {}
    by_video, by_kind = defaultdict(list), defaultdict(list)
    for action in actions:
        by_video[action.video].append(action)
        by_kind[action.kind].append(action)
    dives = mtl_aqa_dives()
    for numbered in by_video.values():
        same = [a for a in numbered if a.key in dives and _rounded(a.final_score) == dives[a.key][0]]
        if len(same) >= _AGREEMENT * len(numbered):
            found |= {action.key: action.key for action in numbered if action.key in dives}
    for clips in by_kind.values():
        if len(clips) == _UNLV_DIVES:
            found |= _unlv_names(sorted(clips, key=lambda action: sort_key(action.key)))
    return found


def _unlv_names(clips: Sequence[Action]) -> dict[ActionKey, ActionKey]:
    """MTL-AQA's keys of UNLV-Dive's clips, found by order, score and difficulty; {} for clips of other actions."""
    dives = mtl_aqa_dives()
    names = [key for video in _UNLV_VIDEOS for key in sorted(key for key in dives if key[0] == video)]
    known_difficulty = all(clip.difficulty is not None for clip in clips)  # AQA-7 has none
    ours = [tuple(_rounded(value) for value in (c.final_score, c.difficulty))[: 1 + known_difficulty] for c in clips]
    theirs = [dives[name][: 1 + known_difficulty] for name in names]
    same = differing = 0
    found: dict[ActionKey, ActionKey] = {}
    for kind, start, end, other_start, other_end in SequenceMatcher(None, ours, theirs, autojunk=False).get_opcodes():
        if end - start == other_end - other_start:  # labels that differ slightly stand at the same place in both lists
            found |= {clip.key: name for clip, name in zip(clips[start:end], names[other_start:other_end], strict=True)}
        same += (end - start) * (kind == "equal")
        differing += (end - start) * (kind != "equal")
    return found if same >= _AGREEMENT * (same + differing) else {}


def _rounded(value: float | None) -> float | None:
    """A score or a difficulty without the float noise of some files."""
    return None if value is None else round(float(value), 2)


# ------------------------------------------------------------------------------------------------------------- identities


@dataclass(frozen=True)
class Identity:
    """What identifies an action in any data set: a hash of its name or labels, and its frames in the source video, of which
    `source` is a hash ("" if it is unknown)."""

    label: str
    source: str
    start_frame: int
    end_frame: int


def identities(actions: Iterable[Action], sources: Mapping[str, str] | None = None) -> dict[ActionKey, Identity]:
    """The identity of each action. `actions` must be all of a data set; `sources` are hashes of source videos by video, as
    `source_hashes` returns them."""
    actions = list(actions)
    names = mtl_aqa_names(actions)
    found: dict[ActionKey, Identity] = {}
    for action in actions:
        score = None if action.final_score is None else float(action.final_score)
        labels = (*action.key, action.start_frame, action.end_frame, score, action.label)
        content = ("mtl_aqa", *names[action.key]) if action.key in names else labels
        source = (sources or {}).get(action.video, "")
        found[action.key] = Identity(_short_hash(content), source, action.start_frame, action.end_frame)
    return found


def source_hashes(frames_dir: Path, videos: Iterable[str]) -> dict[str, str]:
    """A hash of the source file of each video whose archive states its SHA-256. Skips loose frames and unreadable archives."""
    found = {}
    for video in dict.fromkeys(videos):
        with suppress(UserError, KeyError):
            found[video] = str(open_frames(frames_dir, video).provenance["source"]["sha256"])[:16]
    return found


def _short_hash(content: tuple) -> str:
    return hashlib.sha256(repr(content).encode()).hexdigest()[:16]


# ------------------------------------------------------------------------------------------------------------ trained on


@dataclass(frozen=True)
class TrainedOn:
    """The actions that weights were trained on, including those of the weights that the training started from.

    `labels` are hashes of names or labels, `frames` (first, last) by the hash of the source video. `is_complete` is False if
    the weights of an earlier training did not state theirs.
    """

    labels: frozenset[str] = frozenset()
    frames: Mapping[str, frozenset[tuple[int, int]]] = field(default_factory=dict)
    is_complete: bool = True

    @classmethod
    def of(cls, found: Iterable[Identity]) -> TrainedOn:
        """Weights that were trained on the actions with these identities."""
        found = list(found)
        frames = defaultdict(set)
        for each in found:
            if each.source:
                frames[each.source].add((each.start_frame, each.end_frame))
        return cls(frozenset(each.label for each in found), {s: frozenset(ranges) for s, ranges in frames.items()})

    def __or__(self, other: TrainedOn) -> TrainedOn:
        sources = {*self.frames, *other.frames}
        nothing: frozenset[tuple[int, int]] = frozenset()
        frames = {source: self.frames.get(source, nothing) | other.frames.get(source, nothing) for source in sources}
        return TrainedOn(self.labels | other.labels, frames, self.is_complete and other.is_complete)

    @cached_property
    def _sorted_frames(self) -> dict[str, tuple[list[tuple[int, int]], int]]:
        """The ranges of each source, and the length of the longest."""
        return {s: (sorted(ranges), max(b - a for a, b in ranges)) for s, ranges in self.frames.items()}

    def holds(self, action: Identity) -> bool:
        """Whether the weights were trained on an action: the same name or labels, or at least half of the shorter one's
        frames in common. Neighbouring actions may share a few frames."""
        if action.label in self.labels:
            return True
        if action.source not in self.frames:
            return False
        ranges, longest = self._sorted_frames[action.source]
        start, end = action.start_frame, action.end_frame
        for first, last in ranges[bisect_left(ranges, (start - longest, 0)) :]:
            if first > end:
                break
            if 2 * (min(end, last) - max(start, first) + 1) >= min(end - start, last - first) + 1:
                return True
        return False

    def as_text(self) -> str:
        """The entry in checkpoints and feature files, as JSON."""
        frames = {source: sorted(ranges) for source, ranges in sorted(self.frames.items())}
        return json.dumps({"labels": sorted(self.labels), "frames": frames, "is_complete": self.is_complete})

    @classmethod
    def from_text(cls, text: Any) -> TrainedOn:
        """The inverse of `as_text`.

        Raises:
            ValueError: it is not such an entry.
        """
        try:
            record = json.loads(text)
            frames = {
                str(source): frozenset((int(first), int(last)) for first, last in ranges)
                for source, ranges in record["frames"].items()
                if ranges
            }
            return cls(frozenset(map(str, record["labels"])), frames, bool(record["is_complete"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"the actions that it was trained on are unreadable: {error!r}") from None
