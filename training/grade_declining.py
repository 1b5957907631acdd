"""Measure how many clips runs decline: of their test actions (should be few) and of other things (should be nearly all).

    python -m training.grade_declining --run RUN [RUN ...] [--other FOLDER ...] [--broadcasts FOLDER ...]

--other are videos or folders of videos that show other things; they are cut into clips of the length of a training action.
--broadcasts are data sets with whole videos and annotations (python -m data_preparation.synthetic --filler 60 draws one): all
between their actions counts as other things, and their actions as actions that should not be declined, in surroundings
that the training did not have. Black and coloured frames, noise, and still pictures of test actions are always measured.
No score is looked at, so the test split is not opened by this.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_preparation.archive import FrameReaders
from data_preparation.common.command_line import flag, parse, run
from data_preparation.common.errors import UserError
from data_preparation.frame_numbers import VideoScan, scan_video
from data_preparation.layout import VIDEO_SUFFIXES
from training.clips import images_of
from training.data.dataset import ActionDataset
from training.data.splits import load_splits
from training.engine.prediction import Predictor
from training.metrics import percent_text
from training.novelty import LIMIT, describe_all
from training.runtime.ranks import Ranks
from training.runtime.run_folder import RunFolder
from training.scorer import Clip, Scorer
from training.search import clip_of, true_ranges, video_file

MOST_CLIPS = 12  # of one video
MADE = 20  # clips of each made-up kind
STILL = "a test action as a still picture"


@dataclass(frozen=True)
class GradeConfig:
    """Measure how many test actions and how many clips of other things runs decline."""

    run: tuple[Path, ...] = flag((), "Run folders.", allowed="paths")
    other: tuple[Path, ...] = flag(
        (), "Videos of other things, or folders of them: a row of the table each.", allowed="paths"
    )
    leave_out: tuple[str, ...] = flag(
        (), "Videos of --other to leave out because they show what was trained: beginnings of names.", allowed="names"
    )
    broadcasts: tuple[Path, ...] = flag(
        (), "Data sets (whole_videos, annotations) whose parts between the actions are other things.", allowed="paths"
    )
    gpu: bool = flag(True, "Use the GPU if there is one.")

    def __post_init__(self) -> None:
        faults = [f"--{name} {path} does not exist: give a file or folder" for name in ("run", "other", "broadcasts") for path in getattr(self, name) if not path.exists()]  # fmt: skip
        if not self.run:
            faults.append("--run is missing: give one run folder or more, such as runs/default")
        if faults:
            raise UserError.of(faults)


# --------------------------------------------------------------------------------------------------------------- clips


def clips_of_video(scorer: Scorer, scan: VideoScan, ranges: Sequence[tuple[int, int]]) -> Iterator[Clip]:
    """The clips of some ranges of a video, which ascend and do not overlap."""
    numbers = np.concatenate([np.arange(first, last + 1) for first, last in ranges])
    images = images_of(scan, numbers, scorer.stored, scorer.least)
    for first, last in ranges:
        frames = np.stack([next(images) for _ in range(first, last + 1)])
        yield clip_of(scorer, frames, f"{scan.path}, frames {first} to {last}")


def pieces(first: int, last: int, length: int) -> list[tuple[int, int]]:
    """Ranges of `length` frames one after the other, MOST_CLIPS at most; a shorter part is one range."""
    if last - first + 1 < length:
        return [(first, last)] if last > first else []
    starts = list(range(first, last - length + 2, length))
    chosen = starts[:: max(-(-len(starts) // MOST_CLIPS), 1)]
    return [(start, start + length - 1) for start in chosen]


def other_clips(scorer: Scorer, folder: Path, length: int, left_out: Sequence[str]) -> Iterator[Clip]:
    """Clips of the videos in a folder. Files that cannot be read are named and left out: they are never scored."""
    files = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else [folder]
    for file in files:
        if left_out and file.name.startswith(tuple(left_out)):
            continue
        try:
            scan = scan_video(file)
            yield from list(clips_of_video(scorer, scan, pieces(1, scan.frame_count, length)))
        except UserError as error:
            if file.suffix.lower() in VIDEO_SUFFIXES:
                print(f"left out: {error}", file=sys.stderr)


def broadcast_clips(scorer: Scorer, folder: Path, length: int) -> Iterator[tuple[str, Clip]]:
    """("action" or "between", clip) of the actions of a data set and of what is between them."""
    for video, actions in true_ranges(folder).items():
        scan = scan_video(video_file(folder, video))
        ranges: dict[tuple[int, int], str] = {}
        last = 0
        for action in actions:
            ranges |= dict.fromkeys(pieces(last + 1, action.start - 1, length), "between")
            ranges[action.start, action.end] = "action"
            last = action.end
        ordered = sorted(ranges)
        for place, clip in zip(ordered, clips_of_video(scorer, scan, ordered), strict=True):
            yield ranges[place], clip


def made_up(height: int, length: int, rng: np.random.Generator) -> dict[str, list[np.ndarray]]:
    """Clips (T, H, W, 3) uint8 without a video: frames of one colour, and noise."""
    shape = (length, height, height * 16 // 9, 3)
    coarse = (length, -(-shape[1] // 8), -(-shape[2] // 8), 3)
    colours = [np.zeros(3), np.full(3, 128), np.full(3, 255), *rng.integers(0, 256, (MADE - 3, 3))]
    return {
        "black, grey, white, coloured": [np.broadcast_to(c.astype(np.uint8), shape) for c in colours],
        "noise": [rng.integers(0, 256, shape, np.uint8) for _ in range(MADE)],
        "coarse noise": [
            rng.integers(0, 256, coarse, np.uint8).repeat(8, 1).repeat(8, 2)[:, : shape[1], : shape[2]]
            for _ in range(MADE)
        ],
    }


# ------------------------------------------------------------------------------------------------------------- measure


Groups = dict[str, np.ndarray]  # distances by the name of the group


def distances_by_group(options: GradeConfig, run_path: Path) -> tuple[Groups, Groups]:
    """Distances of actions that should not be declined, and of other things, in one run.

    Raises:
        UserError: the run has no distances, or a file cannot be read.
    """
    scorer = Scorer.from_run(run_path, gpu=options.gpu)
    if scorer.novelty is None:
        raise UserError(scorer.why_no_distance)
    noun, length = scorer.novelty.noun, int(np.median(scorer.novelty.lengths))
    config = dataclasses.replace(RunFolder(run_path).existing_config(), workers=0, pretrained_model="none")
    test = load_splits(config).test
    data = ActionDataset(test, config, scorer.model.method, augment=False, labelled=False)
    described = describe_all(scorer.model, Predictor(config, Ranks(), scorer.device), data)
    actions = {f"test {noun}s": scorer.novelty.distances(described)}
    clips: dict[str, list[Clip]] = {}
    for folder in options.other:
        clips[folder.resolve().name] = list(other_clips(scorer, folder, length, options.leave_out))
    for folder in options.broadcasts:
        for kind, clip in broadcast_clips(scorer, folder, length):
            name = (
                f"{noun}s of {folder.resolve().name}"
                if kind == "action"
                else f"{folder.resolve().name}, between the {noun}s"
            )
            clips.setdefault(name, []).append(clip)
    rng = np.random.default_rng(0)
    for name, made in made_up(scorer.stored.height or 72, length, rng).items():
        clips[name] = [clip_of(scorer, frames, name) for frames in made]
    readers = FrameReaders(config.root_dir)
    stills = [
        readers[action.video].image(action.start_frame + action.frame_count // 3, scorer.least)
        for action in test[: 3 * MADE]
    ]
    clips[STILL] = [clip_of(scorer, np.broadcast_to(frame, (length, *frame.shape)), STILL) for frame in stills]
    others: Groups = {}
    for name, of_group in tqdm(clips.items(), desc=run_path.name, unit="group", leave=False, disable=None):
        found = scorer.distances(of_group)
        (actions if name.startswith(f"{noun}s of ") else others)[name] = found
    return actions, others


def declined(distances: np.ndarray) -> int:
    """How many clips are declined."""
    return int((~(distances <= LIMIT)).sum())


def table(runs: Sequence[str], groups: Sequence[tuple[str, Sequence[np.ndarray]]]) -> list[str]:
    """The lines of a Markdown table: a row for each group with its distances in each run."""
    lines = [f"| declined | clips | {' | '.join(runs)} |", "|---" * (2 + len(runs)) + "|"]
    return lines + [
        f"| {name} | {len(each[0])} | {' | '.join(percent_text(declined(of_run), len(of_run)) for of_run in each)} |"
        for name, each in groups
    ]


def main(argv: Sequence[str]) -> int:
    options = parse(GradeConfig, argv, prog="python -m training.grade_declining")
    measured = [distances_by_group(options, path) for path in options.run]
    groups: list[tuple[str, list[np.ndarray]]] = []
    for part in (0, 1):
        groups += [(name, [of_run[part][name] for of_run in measured]) for name in measured[0][part]]
    groups.append(("all other things", [np.concatenate(list(others.values())) for _, others in measured]))
    print("\n".join(table([path.name for path in options.run], groups)))
    print("\nIn brackets: Wilson's 95 % interval.")
    return 0


if __name__ == "__main__":
    run(main)
