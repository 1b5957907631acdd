"""Which videos of which data set a command works on: the flags and the share of a job array's task."""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from data_preparation.annotations import load_annotations, read_annotations
from data_preparation.catalogue import catalogue_facts
from data_preparation.common.command_line import flag, to_argv
from data_preparation.common.errors import UserError
from data_preparation.dives import Dive, VideoFacts
from data_preparation.layout import dataset_layout, video_name


@dataclass(frozen=True)
class ShareConfig:
    """Flags of every command that goes through the videos."""

    dataset: Path | None = flag(None, "Data set folder; none takes DEEPSPORTS_DATASET of job_files/environment.sh.")
    videos: tuple[str, ...] = flag(
        ("all",), "Videos: all that have dives, or numbers.", allowed="all, or video numbers"
    )
    annotation_path: Path | None = flag(None, "Annotation file (.pkl, .csv, .json); none takes the data set's own.")
    workers: int = flag(0, "Processes; 0 is one for each CPU core of the job.", minimum=0, maximum=1024)
    shard_index: int = flag(0, "Which share of the videos this call does, from 0 (a job array's task).", minimum=0)
    shard_count: int = flag(1, "Number of shares.", minimum=1)

    def __post_init__(self) -> None:
        if self.shard_index >= self.shard_count:
            raise UserError(
                f"--shard_index {self.shard_index} is not below --shard_count {self.shard_count}: shares count from 0"
            )
        if not self.all_videos and not all(re.fullmatch("[0-9]{1,6}", v) for v in self.videos):
            raise UserError(f"--videos {' '.join(self.videos)}: give 'all' or video numbers such as 01 02")

    @property
    def all_videos(self) -> bool:
        return [v.lower() for v in self.videos] == ["all"]

    @property
    def processes(self) -> int:
        """Processes to use: `workers`, or the CPU cores that this process may use."""
        return self.workers or len(os.sched_getaffinity(0))

    def dives_by_video(self) -> dict[int, list[Dive]]:
        """All annotated dives of the videos of this share, videos ascending.

        Raises:
            UserError: unreadable annotations, or videos that have no dive.
        """
        by_video: dict[int, list[Dive]] = {}
        for dive in load_annotations(self.annotation_path or dataset_layout(self.dataset).annotation_file).values():
            by_video.setdefault(dive.video, []).append(dive)
        chosen = sorted(by_video) if self.all_videos else sorted({int(v) for v in self.videos})
        if unknown := [video_name(v) for v in chosen if v not in by_video]:
            raise UserError(
                f"--videos {' '.join(unknown)}: no dive of these videos is annotated; the annotated ones are {' '.join(map(video_name, sorted(by_video)))}"
            )
        return {video: by_video[video] for video in chosen[self.shard_index :: self.shard_count]}

    def stated_facts(self) -> dict[int, list[VideoFacts]]:
        """What annotations and catalogue state of the files that the labels were made on, by video.

        Raises:
            UserError: unreadable annotations or catalogue.
        """
        layout = dataset_layout(self.dataset)
        annotated = read_annotations(self.annotation_path or layout.annotation_file).facts
        drawn = layout.synthetic_file.exists()  # its videos have the numbers of those in the catalogue
        stated: dict[int, list[VideoFacts]] = {}
        for facts in (annotated, {} if drawn else catalogue_facts()):
            for video, of_video in facts.items():
                stated.setdefault(video, []).append(of_video)
        return stated


def command_text(module: str, config: ShareConfig, *more: object) -> str:
    """The command line that a person can paste to call another command of this room with the same flags."""
    return shlex.join(["python", "-m", f"data_preparation.{module}", *to_argv(config), *map(str, more)])
