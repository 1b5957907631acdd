"""Write a synthetic data set like MTL-AQA: videos of drawn dives, and annotation files in the same formats.

    python -m data_preparation.synthetic --dataset DIR
    python -m data_preparation.synthetic --sheet dives.png
    python -m data_preparation.synthetic --dataset DIR --like final_annotations_dict.pkl --keep_timeline True

    DIR/whole_videos/NN.mp4     H.264, 25 frames per second, long GOPs with B-frames, filler between the dives
    DIR/annotations/            final_annotations_dict.pkl, final_annotations_dict_with_dive_number.pkl,
                                final_captions_dict.pkl, vocab.json, train_split_0.pkl, test_split_0.pkl,
                                synthetic.json (the flags of this set)

All random numbers are a function of (seed, video, dive), so the same flags give the same pixels with any number of
workers. Videos are written atomically: a second call with the same flags makes only the missing ones.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pickle
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data_preparation.actions import (
    ATTRIBUTE_CLASSES,
    POSITIONS,
    ROTATION_TYPES,
    ActionKey,
    Dive,
    plain_key,
    sort_key,
    video_name,
    video_order,
)
from data_preparation.annotations import load_annotations, load_split
from data_preparation.common.command_line import flag, parse, run
from data_preparation.common.errors import UserError
from data_preparation.common.files import atomic_file, write_atomic
from data_preparation.layout import DatasetLayout, default_dataset
from data_preparation.synthetic.canvas import (
    TASKS,
    claim,
    encode_video,
    odd_size_faults,
    random_stream,
    write_missing,
)
from data_preparation.synthetic.diver import BOARDS, FILLERS, Board, Performance, Stage, make_performance, sample_look

DRAWING = 1  # increase when the same flags give other pixels or labels
DEFAULT_VIDEOS = 8
DEFAULT_DIVES = 1200
TEST_FRACTION = 0.25
EXECUTION_BETA = (7.4, 2.9)  # beta distribution of mean 0.72, deviation 0.135: MTL-AQA's score / difficulty / 30

# purposes of the random streams
DIVE, JUDGES, PICTURE, LOOK, FILLER, WORDS, SPLIT = range(7)


@dataclass(frozen=True)
class SyntheticConfig:
    """Write a synthetic data set like MTL-AQA: videos of drawn dives and their annotation files."""

    task: str = flag(
        "dive", "What is drawn; see the other flags of fall and actions with --task NAME --help.", choices=TASKS
    )
    dataset: Path | None = flag(None, "Folder to write; none uses DEEPSPORTS_DATASET of job_files/environment.sh.")
    videos: int | None = flag(
        None, f"Number of videos; none means {DEFAULT_VIDEOS}, or with --like all of its videos.", minimum=1
    )
    dives: int | None = flag(
        None, f"Total number of dives; none means {DEFAULT_DIVES}, or with --like all of its dives.", minimum=2
    )
    width: int = flag(160, "Width of the videos in pixels (even).", minimum=32)
    height: int = flag(90, "Height of the videos in pixels (even).", minimum=32)
    fps: int = flag(25, "Frames per second.", minimum=1)
    min_frames: int = flag(40, "Frames of the shortest dive (MTL-AQA: 55).", minimum=16)
    max_frames: int = flag(56, "Frames of the longest dive (MTL-AQA: 274, nearly all below 150).", minimum=16)
    filler: int = flag(12, "Frames of filler before each dive and at the end of a video.", minimum=0)
    noise: float = flag(0.25, "Standard deviation of a judge's error, in points out of 10.", minimum=0, maximum=5)
    like: Path | None = flag(
        None, "Annotation pickle to imitate: the same videos, dives, labels and dive lengths, with shorter gaps."
    )
    keep_timeline: bool = flag(
        False,
        "With --like, keep its frame numbers: gaps have their full length, and --filler only applies after the last dive.",
    )
    workers: int = flag(2, "Worker processes, one video each.", minimum=1)
    seed: int = flag(0, "Random seed.", minimum=0)
    sheet: Path | None = flag(None, "Write only a labelled contact sheet of a few dives, to this PNG file.")

    def __post_init__(self) -> None:
        faults = odd_size_faults(self.width, self.height)
        if self.min_frames > self.max_frames:
            faults.append(
                f"--min_frames {self.min_frames} is greater than --max_frames {self.max_frames}: give a smaller --min_frames"
            )
        if self.keep_timeline and self.like is None:
            faults.append("--keep_timeline True needs the annotation file whose timeline to keep: add --like PATH")
        if self.like is None and self.total_dives < 2 * self.total_videos:
            faults.append(
                f"--dives {self.total_dives} is too few for --videos {self.total_videos}: "
                "each video needs 2, one for the train list and one for the test list"
            )
        if faults:
            raise UserError.of(faults)

    @property
    def total_videos(self) -> int:
        return DEFAULT_VIDEOS if self.videos is None else self.videos

    @property
    def total_dives(self) -> int:
        return DEFAULT_DIVES if self.dives is None else self.dives


# ----------------------------------------------------------------------------------------------- repertoire and scores


@dataclass(frozen=True)
class ListedDive:
    """One entry of the repertoire; `weight` is proportional to how often it is sampled."""

    number: str
    kind: str
    difficulty: float
    weight: float


# Degrees of difficulty are those of the rule books (3 m springboard, 10 m platform). As in MTL-AQA, few dives are easy
# and most are between 3.0 and 3.6. The weights give a mean of 3.1 and a relative standard deviation of 13 %.
REPERTOIRE = tuple(
    ListedDive(*entry)
    for entry in (
        ("103B", "springboard", 1.6, 2),
        ("201B", "springboard", 1.8, 1),
        ("301B", "springboard", 1.9, 1),
        ("403B", "springboard", 2.0, 2),
        ("5132D", "springboard", 2.1, 3),
        ("105B", "springboard", 2.4, 5),
        ("405C", "springboard", 2.7, 7),
        ("205C", "springboard", 2.8, 7),
        ("305C", "springboard", 2.8, 7),
        ("205B", "springboard", 3.0, 8),
        ("305B", "springboard", 3.0, 8),
        ("405B", "springboard", 3.0, 7),
        ("5152B", "springboard", 3.0, 8),
        ("107B", "springboard", 3.1, 10),
        ("614B", "platform", 2.4, 3),
        ("405C", "platform", 2.7, 5),
        ("305C", "platform", 2.8, 6),
        ("107B", "platform", 3.0, 10),
        ("407C", "platform", 3.2, 18),
        ("5253B", "platform", 3.2, 16),
        ("6243D", "platform", 3.2, 11),
        ("207C", "platform", 3.3, 14),
        ("626C", "platform", 3.3, 10),
        ("307C", "platform", 3.4, 14),
        ("626B", "platform", 3.5, 8),
        ("207B", "platform", 3.6, 11),
        ("5255B", "platform", 3.6, 10),
        ("109C", "platform", 3.7, 12),
        ("409C", "platform", 4.1, 3),
    )
)

_LETTERS = {"D": 0, "B": 1, "C": 2}  # free, pike, tuck
_GROUPS = {"1": "forward", "2": "back", "3": "reverse", "4": "inward"}


class Attributes(TypedDict):
    """The five attributes of a dive in MTL-AQA."""

    position: int
    armstand: int
    rotation_type: int
    ss_no: int
    tw_no: int


def attributes(number: str) -> Attributes:
    """Parse a dive number: '5253B' is twisting, back, 5 half somersaults, 3 half twists, pike.

    The first digit is the group: 1 to 4 are directions, 5 is twisting, 6 is armstand; the second digit of groups 5 and
    6 is the direction. The third digit counts half somersaults, the fourth (if any) half twists.
    """
    digits, letter = number[:-1], number[-1]
    direction = _GROUPS[digits[1] if digits[0] in "56" else digits[0]]
    return {
        "position": _LETTERS[letter],
        "armstand": int(digits[0] == "6"),
        "rotation_type": ROTATION_TYPES.index(direction),
        "ss_no": int(digits[2]),
        "tw_no": int(digits[3:] or 0),
    }


def dive_number(dive: Dive) -> str:
    """The dive number of a dive with known attributes (the inverse of `attributes`)."""
    assert dive.rotation_type is not None
    direction = next(digit for digit, name in _GROUPS.items() if name == ROTATION_TYPES[dive.rotation_type])
    letter = next(letter for letter, position in _LETTERS.items() if position == dive.position)
    twist = str(dive.tw_no) if dive.tw_no else ""
    if dive.armstand or dive.tw_no:
        return f"{6 if dive.armstand else 5}{direction}{dive.ss_no}{twist}{letter}"
    return f"{direction}0{dive.ss_no}{letter}"


def choose_board(kind: str, difficulty: float) -> Board:
    """Choose the board of a kind for a dive: the greater the difficulty, the higher the board."""
    limits = {"springboard": ((2.5, 1.0), (9.9, 3.0)), "platform": ((2.9, 5.0), (3.25, 7.5), (9.9, 10.0))}
    height = next(height for limit, height in limits[kind] if difficulty < limit)
    return next(board for board in BOARDS if (board.kind, board.height) == (kind, height))


def final_score(judges: Sequence[float], difficulty: float) -> float:
    """The final score in points: the sum of the middle three of seven judges' scores, times the difficulty."""
    return round(sum(sorted(judges)[2:5]) * difficulty, 2)


def sample_judge_scores(execution: float, noise: float, rng: np.random.Generator) -> tuple[float, ...]:
    """Sample the scores of seven judges, 0 to 10 in steps of 0.5, for a dive of quality `execution` (0 to 1).

    `noise` is the standard deviation of a judge's error, in points out of 10.
    """
    scores = 10 * execution + noise * rng.standard_normal(7)
    return tuple(float(score) for score in np.clip(np.round(2 * scores) / 2, 0, 10))


def judge_scores_for_total(total: float, rng: np.random.Generator) -> tuple[float, ...]:
    """Seven scores in steps of 0.5 whose middle three sum to `total` (0 to 30), as nearly as the steps allow."""
    halves = min(max(round(2 * total), 0), 60)
    middle = sorted((halves + i) // 3 for i in range(3))
    outer = [max(middle[0] - 1, 0), middle[0], middle[2], min(middle[2] + 1, 20)]
    scores = [score / 2 for score in (*outer[:2], *middle, *outer[2:])]
    return tuple(scores[i] for i in rng.permutation(7))


# ---------------------------------------------------------------------------------------------------------------- plan


@dataclass(frozen=True)
class VideoPlan:
    """One video: its dives in order, the board of each dive, and its number of frames."""

    video: str
    dives: tuple[Dive, ...]
    boards: tuple[Board, ...]
    frames: int


def sample_dive(config: SyntheticConfig, video: str, number: int) -> tuple[Dive, Board]:
    """Sample a dive of the repertoire and its board. Its frames start at 1; `lay_out` moves them to their place."""
    rng = random_stream(config.seed, DIVE, video, number)
    weights = np.array([entry.weight for entry in REPERTOIRE])
    listed = REPERTOIRE[rng.choice(len(REPERTOIRE), p=weights / weights.sum())]
    judges = sample_judge_scores(
        rng.beta(*EXECUTION_BETA), config.noise, random_stream(config.seed, JUDGES, video, number)
    )
    dive = Dive(
        video=video,
        number=number,
        start_frame=1,
        end_frame=int(rng.integers(config.min_frames, config.max_frames + 1)),
        difficulty=listed.difficulty,
        final_score=final_score(judges, listed.difficulty),
        judge_scores=judges,
        dive_number=listed.number,
        **attributes(listed.number),
    )
    return dive, choose_board(listed.kind, listed.difficulty)


def lay_out(dives: Sequence[Dive], filler: int) -> list[Dive]:
    """Place the dives of one video one after the other, with `filler` frames before each."""
    placed, last = [], 0
    for dive in dives:
        start = last + filler + 1
        last = start + dive.frame_count - 1
        placed.append(replace(dive, start_frame=start, end_frame=last))
    return placed


def sample_plan(config: SyntheticConfig) -> list[VideoPlan]:
    """Sample the videos of a set from the repertoire, with nearly equal numbers of dives."""
    plans = []
    for video in range(1, config.total_videos + 1):
        count = (config.total_dives + config.total_videos - video) // config.total_videos
        sampled = [sample_dive(config, video_name(video), number) for number in range(1, count + 1)]
        dives = lay_out([dive for dive, _ in sampled], config.filler)
        plans.append(_video_plan(dives, [board for _, board in sampled], config.filler))
    return plans


def _video_plan(dives: Sequence[Dive], boards: Sequence[Board], filler: int) -> VideoPlan:
    return VideoPlan(dives[0].video, tuple(dives), tuple(boards), dives[-1].end_frame + filler)


def thin_out(keys: Sequence[ActionKey], count: int) -> list[ActionKey]:
    """Select `count` of the keys at even distances, so that every video keeps its proportion."""
    return [keys[i * len(keys) // count] for i in range(min(count, len(keys)))]


def plan_like(config: SyntheticConfig) -> list[VideoPlan]:
    """The videos of the annotation file --like, reduced to --videos and --dives.

    Raises:
        UserError: the file is faulty, or a dive has no attributes.
    """
    assert config.like is not None
    dives = load_annotations(config.like)
    incomplete = [d.name for d in dives.values() if any(getattr(d, name) is None for name in ATTRIBUTE_CLASSES)]
    if incomplete:
        raise UserError(
            f"{config.like} has no {', '.join(ATTRIBUTE_CLASSES)} for dive {incomplete[0]}, which are needed to draw "
            "it: give MTL-AQA's final_annotations_dict.pkl or a file like it"
        )
    videos = sorted({video for video, _ in dives}, key=video_order)[: config.videos]
    keys = sorted((key for key in dives if key[0] in videos), key=sort_key)
    keys = keys if config.dives is None else thin_out(keys, config.dives)
    plans = []
    for video in videos:
        chosen = sorted((dives[key] for key in keys if key[0] == video), key=lambda dive: dive.start_frame)
        if not chosen:
            continue
        # an event uses one kind of board, and armstands exist on the platform only; check all dives of the file
        platform = any(dive.armstand for key, dive in dives.items() if key[0] == video)
        placed = chosen if config.keep_timeline else lay_out(chosen, config.filler)
        judged_dives = [_with_judges(dive, config.seed) for dive in placed]
        boards = [choose_board("platform" if platform else "springboard", dive.difficulty) for dive in placed]
        plans.append(_video_plan(judged_dives, boards, config.filler))
    return plans


def _with_judges(dive: Dive, seed: int) -> Dive:
    """The dive with judges' scores and dive number added if the file has none."""
    rng = random_stream(seed, JUDGES, *dive.key)
    return replace(
        dive,
        judge_scores=dive.judge_scores or judge_scores_for_total(dive.final_score / dive.difficulty, rng),
        dive_number=dive.dive_number or dive_number(dive),
    )


def make_plan(config: SyntheticConfig) -> list[VideoPlan]:
    """Plan all videos of the set, with captions."""
    plans = sample_plan(config) if config.like is None else plan_like(config)
    return [replace(p, dives=tuple(replace(d, caption=caption(d, config.seed)) for d in p.dives)) for p in plans]


# ------------------------------------------------------------------------------------------------------------ captions

_HALVES = (
    *("no", "half a", "one", "one and a half", "two", "two and a half"),
    *("three", "three and a half", "four", "four and a half"),
)
_OPENINGS = ("here is", "next up is", "and now we see", "this is", "from the board comes", "up now with")
_VERDICTS = (
    (0.88, ("a superb dive with hardly any splash", "ripped into the water", "that is right on top of it")),
    (0.78, ("a very good dive and a clean entry", "nice and vertical into the water", "the judges will like that")),
    (0.66, ("a solid dive with a little splash", "just a touch off the vertical", "good but there is more in it")),
    (0.50, ("he is over on the entry with plenty of splash", "the legs came apart there", "short of vertical")),
    (0.00, ("oh dear that is a big miss", "a lot of water in the air", "he lost that one completely")),
)


def execution_of(dive: Dive) -> float:
    """The quality of a dive according to its judges, 0 to 1: score / difficulty / 30."""
    return dive.final_score / dive.difficulty / 30


def describe(dive: Dive) -> str:
    """Describe a dive as commentators do: 'back two and a half somersaults with one twist in the pike position'."""
    assert dive.rotation_type is not None
    assert dive.position is not None

    def counted(halves: int, noun: str) -> str:
        return f"{_HALVES[halves]} {noun}" + ("" if halves in (1, 2) else "s")

    words = [ROTATION_TYPES[dive.rotation_type], counted(dive.ss_no, "somersault") if dive.ss_no else "jump"]
    if dive.armstand:
        words.insert(0, "armstand")
    if dive.tw_no:
        words.append(f"with {counted(dive.tw_no, 'twist')}")
    return " ".join([*words, f"in the {POSITIONS[dive.position]} position"])


def caption(dive: Dive, seed: int) -> tuple[str, ...]:
    """The commentator's sentence about a dive, as tokens from <sos> to <eos>."""
    rng = random_stream(seed, WORDS, *dive.key)
    verdicts = next(lines for least, lines in _VERDICTS if execution_of(dive) >= least)
    parts = [
        _OPENINGS[rng.integers(len(_OPENINGS))],
        describe(dive),
        "and" if rng.random() < 0.5 else "well",
        verdicts[rng.integers(len(verdicts))],
    ]
    if rng.random() < 0.5:
        parts.append(f"the tariff is {dive.difficulty}")
    if rng.random() < 0.5:
        parts.append(f"{dive.final_score:g} points for that")
    return ("<sos>", *" ".join(parts).split(), "<eos>")


def vocabulary(captions: Sequence[Sequence[str]]) -> dict[str, dict[str, Any]]:
    """MTL-AQA's vocab.json: words by index and indices by word, in order of appearance; <eos> is 0, <sos> is 1."""
    words = list(dict.fromkeys(["<eos>", "<sos>", *(word for tokens in captions for word in tokens)]))
    return {
        "ix_to_word": {str(i): word for i, word in enumerate(words)},
        "word_to_ix": {word: i for i, word in enumerate(words)},
    }


# -------------------------------------------------------------------------------------------------------------- frames


def render_frames(config: SyntheticConfig, plan: VideoPlan) -> Iterator[Image.Image]:
    """Yield the frames of one video in order; the first is frame 1."""
    stage = make_stage(config, plan.video)
    next_frame = 1
    for dive, board in zip(plan.dives, plan.boards, strict=True):
        yield from _filler_frames(config, stage, plan.video, dive.number, dive.start_frame - next_frame)
        performed = make_performance(dive, board, random_stream(config.seed, PICTURE, *dive.key))
        for i in range(dive.frame_count):
            yield stage.dive_frame(performed, i / max(dive.frame_count - 1, 1))
        next_frame = dive.end_frame + 1
    yield from _filler_frames(config, stage, plan.video, 0, plan.frames - next_frame + 1)


def make_stage(config: SyntheticConfig, video: str) -> Stage:
    """The scenery of one video."""
    rng = random_stream(config.seed, LOOK, video)
    return Stage(sample_look(rng), config.width, config.height, rng)


def _filler_frames(config: SyntheticConfig, stage: Stage, video: str, before: int, count: int) -> Iterator[Image.Image]:
    """Yield the filler before dive `before` (0: after the last). A replay shows an unrelated dive, so it leaks no label."""
    rng = random_stream(config.seed, FILLER, video, before)
    kind = FILLERS[rng.integers(len(FILLERS))]
    listed = REPERTOIRE[rng.integers(len(REPERTOIRE))]
    replayed = Dive(
        video, 0, 1, 1, difficulty=1.0, final_score=30 * rng.beta(*EXECUTION_BETA), **attributes(listed.number)
    )
    performed: Performance = make_performance(replayed, choose_board(listed.kind, listed.difficulty), rng)
    for i in range(count):
        yield stage.filler_frame(kind, performed, i / max(count - 1, 1))


def write_video(config: SyntheticConfig, plan: VideoPlan, path: Path, progress: Callable[[], None]) -> None:
    """Encode one video and write it atomically. Calls `progress()` for each frame."""
    encode_video(render_frames(config, plan), path, (config.width, config.height), config.fps, progress)


# ---------------------------------------------------------------------------------------------------- annotation files


def annotation(dive: Dive) -> dict[str, Any]:
    """A dive as a dictionary with MTL-AQA's ten keys."""
    return {
        "primary_view": 0,
        "start_frame": dive.start_frame,
        "end_frame": dive.end_frame,
        "position": dive.position,
        "difficulty": dive.difficulty,
        "armstand": dive.armstand,
        "rotation_type": dive.rotation_type,
        "ss_no": dive.ss_no,
        "tw_no": dive.tw_no,
        "final_score": dive.final_score,
    }


def extended_annotation(dive: Dive) -> dict[str, Any]:
    """The ten keys plus the judges' scores (7 floats) and the dive number, as in CoRe's file."""
    return {**annotation(dive), "judge_scores": np.array(dive.judge_scores), "dive_number": dive.dive_number}


def split_keys(plans: Sequence[VideoPlan], seed: int) -> tuple[list[ActionKey], list[ActionKey]]:
    """(train, test) keys, both shuffled: a quarter of each video's dives is for testing."""
    train: list[ActionKey] = []
    test: list[ActionKey] = []
    for plan in plans:
        keys = [plan.dives[i].key for i in random_stream(seed, SPLIT, plan.video).permutation(len(plan.dives))]
        tested = min(max(round(TEST_FRACTION * len(keys)), 1), len(keys) - 1)
        test += keys[:tested]
        train += keys[tested:]
    rng = random_stream(seed, SPLIT)
    return [train[i] for i in rng.permutation(len(train))], [test[i] for i in rng.permutation(len(test))]


def _splits(
    config: SyntheticConfig, plans: Sequence[VideoPlan], layout: DatasetLayout
) -> tuple[list[ActionKey], list[ActionKey]]:
    """The split lists next to the file --like if they fit, else a random split."""
    if config.like is not None:
        lists = [config.like.with_name(p.name) for p in (layout.train_file, layout.test_file)]
        if all(p.exists() for p in lists):
            here = {dive.key for plan in plans for dive in plan.dives}
            train, test = ([key for key in load_split(p) if key in here] for p in lists)
            if train and test and len(train) + len(test) == len(here):
                return train, test
    return split_keys(plans, config.seed)


def write_annotations(config: SyntheticConfig, plans: Sequence[VideoPlan], layout: DatasetLayout) -> None:
    """Write all annotation files of the set."""
    dives = sorted((dive for plan in plans for dive in plan.dives), key=lambda dive: sort_key(dive.key))
    captions = {plain_key(dive.key): list(dive.caption or ()) for dive in dives}
    train, test = _splits(config, plans, layout)
    numbered = layout.annotation_file.with_name("final_annotations_dict_with_dive_number.pkl")
    for path, content, protocol in (
        (layout.annotation_file, {plain_key(dive.key): annotation(dive) for dive in dives}, 3),
        (numbered, {plain_key(dive.key): extended_annotation(dive) for dive in dives}, 4),
        (layout.captions_file, captions, 3),
        (layout.train_file, list(map(plain_key, train)), 3),
        (layout.test_file, list(map(plain_key, test)), 3),
    ):
        write_atomic(path, pickle.dumps(content, protocol=protocol))
    words = json.dumps(vocabulary(list(captions.values())))
    write_atomic(layout.vocabulary_file, words.encode())


# ----------------------------------------------------------------------------------------------------------- whole set


def provenance(config: SyntheticConfig) -> dict[str, Any]:
    """Everything that determines the pixels and labels: two sets of equal provenance are equal."""
    irrelevant = ("task", "dataset", "workers", "sheet", "like")
    flags = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name not in irrelevant}
    copied = None if config.like is None else hashlib.sha256(config.like.read_bytes()).hexdigest()
    return {"made_by": "data_preparation.synthetic", "drawing": DRAWING, "like_sha256": copied, "flags": flags}


def write_videos(config: SyntheticConfig, plans: Sequence[VideoPlan], layout: DatasetLayout) -> None:
    """Write the missing videos, one per worker, longest first."""
    paths = {layout.videos / f"{plan.video}.mp4": plan for plan in sorted(plans, key=lambda p: -p.frames)}
    missing = {path: plan for path, plan in paths.items() if not path.exists()}
    frames = sum(plan.frames for plan in missing.values())
    write_missing(partial(write_video, config), missing, config.workers, frames)


def generate(config: SyntheticConfig) -> list[VideoPlan]:
    """Write the whole set to `config.dataset` (or the default data set) and return its plan.

    Raises:
        UserError: no folder is given, or it holds another data set.
    """
    root = config.dataset or default_dataset()
    if root is None:
        raise UserError("no folder for the synthetic set: give --dataset DIR or set DEEPSPORTS_DATASET")
    layout = DatasetLayout(root)
    plans = make_plan(config)
    claim(layout, provenance(config))
    write_annotations(config, plans, layout)
    write_videos(config, plans, layout)
    return plans


# ------------------------------------------------------------------------------------------------------ contact sheet

SHEET_FRAMES = 8
SHEET_DIVES = 6


def sheet_choice(plans: Sequence[VideoPlan]) -> list[tuple[Dive, Board]]:
    """Choose dives of different groups and their boards, from the best execution to the worst."""
    dives = [(dive, board) for plan in plans for dive, board in zip(plan.dives, plan.boards, strict=True)]
    wanted = np.linspace(0.92, 0.42, SHEET_DIVES)
    chosen: list[tuple[Dive, Board]] = []
    for group, quality in zip("461523", wanted, strict=True):
        of_group = [entry for entry in dives if str(entry[0].dive_number).startswith(group)] or dives
        chosen.append(min(of_group, key=lambda entry: abs(execution_of(entry[0]) - quality)))
    return chosen


def contact_sheet(
    config: SyntheticConfig, plans: Sequence[VideoPlan], width: int = 192, height: int = 108
) -> Image.Image:
    """Draw a few dives: eight evenly spaced frames each, under a line with their labels."""
    gap, line = 4, 30
    chosen = sheet_choice(plans)
    sheet = Image.new(
        "RGB", (SHEET_FRAMES * (width + gap) + gap, len(chosen) * (height + line + gap) + gap), (250, 250, 248)
    )
    draw = ImageDraw.Draw(sheet)
    bold, plain = ImageFont.load_default(17), ImageFont.load_default(15)
    sized = replace(config, width=width, height=height)
    for row, (dive, board) in enumerate(chosen):
        y = row * (height + line + gap) + gap
        judges = "  ".join(f"{score:g}" for score in dive.judge_scores or ())
        draw.text((gap + 2, y + line / 2), f"{dive.dive_number}", fill=(20, 20, 30), font=bold, anchor="lm")
        text = f"{board.name}, {describe(dive)}      difficulty {dive.difficulty:g}      judges {judges}"
        draw.text((gap + 76, y + line / 2), text, fill=(70, 70, 80), font=plain, anchor="lm")
        score = f"{dive.final_score:.2f} points"
        draw.text((sheet.width - gap - 2, y + line / 2), score, fill=(20, 20, 30), font=bold, anchor="rm")
        stage = make_stage(sized, dive.video)
        performed = make_performance(dive, board, random_stream(config.seed, PICTURE, *dive.key))
        for i in range(SHEET_FRAMES):
            frame = stage.dive_frame(performed, i / (SHEET_FRAMES - 1))
            sheet.paste(frame, (gap + i * (width + gap), y + line))
    return sheet


def main(argv: Sequence[str]) -> None:
    config = parse(SyntheticConfig, argv, "python -m data_preparation.synthetic")
    if config.sheet is not None:
        sheet = contact_sheet(config, make_plan(config))
        config.sheet.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(config.sheet) as temporary:
            sheet.save(temporary, format="PNG")
        print(f"contact sheet: {config.sheet}")
        return
    plans = generate(config)
    boards = Counter(board.kind for plan in plans for board in plan.boards)
    print(
        f"{sum(boards.values())} dives ({', '.join(f'{n} {board}' for board, n in sorted(boards.items()))}) in "
        f"{len(plans)} videos, {sum(plan.frames for plan in plans)} frames: {config.dataset or default_dataset()}"
    )


if __name__ == "__main__":
    run(main)
