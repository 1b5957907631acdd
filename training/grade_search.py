"""Measure how many actions of whole videos a search finds, and how much of what it finds are actions.

    python -m training.grade_search --run RUN [RUN ...] --broadcasts FOLDER [FOLDER ...]

--broadcasts are data sets with whole videos and annotations (python -m data_preparation.synthetic --seed 7 draws one). A range
that is found is right if its temporal IoU with an annotated action is 0.5 or more; each action counts once.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_preparation.common.command_line import flag, parse, run
from data_preparation.common.errors import UserError
from data_preparation.frame_numbers import scan_video
from training.metrics import percent_text
from training.scorer import Scorer
from training.search import find_actions, matches, temporal_iou, true_ranges, video_file


@dataclass(frozen=True)
class GradeConfig:
    """Measure recall and precision of the search for actions in whole videos."""

    run: tuple[Path, ...] = flag((), "Run folders.", allowed="paths")
    broadcasts: tuple[Path, ...] = flag((), "Data sets with whole_videos and annotations.", allowed="paths")
    videos: int = flag(0, "Videos of each data set; 0 means all.", minimum=0)
    gpu: bool = flag(True, "Use the GPU if there is one.")

    def __post_init__(self) -> None:
        faults = [
            f"--{name} is missing: give one folder or more" for name in ("run", "broadcasts") if not getattr(self, name)
        ]
        faults += [
            f"--{name} {path} does not exist: give a folder"
            for name in ("run", "broadcasts")
            for path in getattr(self, name)
            if not path.exists()
        ]
        if faults:
            raise UserError.of(faults)


def row(scorer: Scorer, folder: Path, videos: int) -> list[str]:
    """The cells of a data set: actions, recall, precision, mean IoU of the actions that a found range overlaps, frames per second."""
    right = found_count = true_count = frames = 0
    ious: list[float] = []
    started = time.perf_counter()
    by_video = true_ranges(folder)
    for video in list(by_video)[: videos or None]:
        scan = scan_video(video_file(folder, video))
        found = find_actions(scorer, scan)
        true = by_video[video]
        right, found_count, true_count = right + matches(found, true), found_count + len(found), true_count + len(true)
        ious += [max((temporal_iou(f, t) for f in found), default=0.0) for t in true]
        frames += scan.frame_count
    rate = frames / (time.perf_counter() - started)
    hit = [iou for iou in ious if iou > 0]
    return [
        str(true_count),
        percent_text(right, true_count),
        percent_text(right, found_count),
        f"{np.mean(hit):.2f}" if hit else "none",
        f"{rate:.0f}",
    ]


def main(argv: Sequence[str]) -> int:
    options = parse(GradeConfig, argv, prog="python -m training.grade_search")
    print(
        "| run | videos | actions | recall | precision | mean IoU | frames per second |\n|---|---|---|---|---|---|---|"
    )
    for path in options.run:
        scorer = Scorer.from_run(path, gpu=options.gpu)
        for folder in options.broadcasts:
            print(
                f"| {path.name} | {folder.resolve().name} | {' | '.join(row(scorer, folder, options.videos))} |",
                flush=True,
            )
    print("\nRecall and precision at a temporal IoU of 0.5; in brackets: Wilson's 95 % interval.")
    return 0


if __name__ == "__main__":
    run(main)
