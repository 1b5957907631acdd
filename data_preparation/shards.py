"""Select the videos that a command works on: its flags, and the shard of a job array's task."""

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
class ShardConfig:
    """Flags of every command that processes the videos one by one."""

    dataset: Path | None = flag(None, "Data set folder; none uses DEEPSPORTS_DATASET of job_files/environment.sh.")
    videos: tuple[str, ...] = flag(
        ("all",), "Videos to process: all (those with annotated dives), or numbers.", allowed="all, or video numbers"
    )
    annotation_path: Path | None = flag(None, "Annotation file (.pkl, .csv, .json); none uses the data set's own.")
    workers: int = flag(0, "Worker processes; 0 means one per CPU core of the job.", minimum=0, maximum=1024)
    shard_index: int = flag(0, "Shard of the videos to process, from 0 (a task of a job array).", minimum=0)
    shard_count: int = flag(1, "Number of shards.", minimum=1)

    def __post_init__(self) -> None:
        if self.shard_index >= self.shard_count:
            raise UserError(
                f"--shard_index {self.shard_index} must be less than --shard_count {self.shard_count}: shards count from 0"
            )
        if not self.all_videos and not all(re.fullmatch("[0-9]{1,6}", v) for v in self.videos):
            raise UserError(f"--videos {' '.join(self.videos)}: give 'all' or video numbers such as 01 02")

    @property
    def all_videos(self) -> bool:
        return [v.lower() for v in self.videos] == ["all"]

    @property
    def processes(self) -> int:
        """Number of worker processes: `workers`, or the CPU cores that this process may use."""
        return self.workers or len(os.sched_getaffinity(0))

    def dives_by_video(self) -> dict[int, list[Dive]]:
        """All annotated dives of the videos of this shard, videos ascending.

        Raises:
            UserError: the annotations cannot be read, or a video has no annotated dive.
        """
        by_video: dict[int, list[Dive]] = {}
        for dive in load_annotations(self.annotation_path or dataset_layout(self.dataset).annotation_file).values():
            by_video.setdefault(dive.video, []).append(dive)
        chosen = sorted(by_video) if self.all_videos else sorted({int(v) for v in self.videos})
        if unknown := [video_name(v) for v in chosen if v not in by_video]:
            raise UserError(
                f"--videos {' '.join(unknown)}: these videos have no annotated dive; those that have are {' '.join(map(video_name, sorted(by_video)))}"
            )
        return {video: by_video[video] for video in chosen[self.shard_index :: self.shard_count]}

    def stated_facts(self) -> dict[int, list[VideoFacts]]:
        """What annotations and catalogue state about the video files that were labelled, by video.

        Raises:
            UserError: annotations or catalogue cannot be read.
        """
        layout = dataset_layout(self.dataset)
        annotated = read_annotations(self.annotation_path or layout.annotation_file).facts
        synthetic = layout.synthetic_file.exists()  # its video numbers are also those of the catalogue's videos
        stated: dict[int, list[VideoFacts]] = {}
        for facts in (annotated, {} if synthetic else catalogue_facts()):
            for video, of_video in facts.items():
                stated.setdefault(video, []).append(of_video)
        return stated


def command_text(module: str, config: ShardConfig, *more: object) -> str:
    """The command line, ready to paste, that runs another command of this package with the same flags."""
    return shlex.join(["python", "-m", f"data_preparation.{module}", *to_argv(config), *map(str, more)])
