"""Select the videos that a command works on: its flags, and the shard of a job array's task."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path

from data_preparation import datasets
from data_preparation.actions import Action, VideoFacts, chosen_videos, is_chosen, video_order
from data_preparation.catalogue import catalogue_facts
from data_preparation.common.command_line import flag, to_argv
from data_preparation.common.errors import UserError
from data_preparation.layout import dataset_layout
from data_preparation.many_videos import names_text


@dataclass(frozen=True)
class ShardConfig:
    """Flags of every command that processes the videos one by one."""

    dataset: Path | None = flag(None, "Data set folder; none uses DEEPSPORTS_DATASET of job_files/environment.sh.")
    videos: tuple[str, ...] = flag(
        ("all",),
        "Videos to process: all (those with annotated actions), or names, or folders of videos.",
        allowed="all, or names such as 01 or diving/054",
    )
    annotation_path: Path | None = flag(
        None, "Annotation file (.pkl, .csv, .json), or the folder of the released files; none uses the data set's own."
    )
    dataset_kind: str = flag(
        datasets.DEFAULT,
        "Format of the annotations (data_preparation/datasets); mtl_aqa also reads CSV and JSON files of dives.",
        choices=datasets.names(),
    )
    workers: int = flag(0, "Worker processes; 0 means one per CPU core of the job.", minimum=0, maximum=1024)
    shard_index: int = flag(0, "Shard of the videos to process, from 0 (a task of a job array).", minimum=0)
    shard_count: int = flag(1, "Number of shards.", minimum=1)

    def __post_init__(self) -> None:
        if self.shard_index >= self.shard_count:
            raise UserError(
                f"--shard_index {self.shard_index} must be less than --shard_count {self.shard_count}: shards count from 0"
            )
        chosen_videos(self.videos)

    @property
    def annotation_files(self) -> datasets.AnnotationFiles:
        """The annotations without split lists.

        Raises:
            UserError: neither --annotation_path nor a data set folder is given.
        """
        found = self.annotation_path or dataset_layout(self.dataset).annotations_of(self.dataset_kind)
        return datasets.AnnotationFiles(found)

    @property
    def processes(self) -> int:
        """Number of worker processes: `workers`, or the CPU cores that this process may use."""
        return self.workers or len(os.sched_getaffinity(0))

    def actions_by_video(self) -> dict[str, list[Action]]:
        """All annotated actions of the videos of this shard, videos ascending.

        Raises:
            UserError: the annotations cannot be read, or a video has no annotated action.
        """
        by_video: dict[str, list[Action]] = {}
        for action in datasets.load(self.dataset_kind, self.annotation_files).actions.values():
            by_video.setdefault(action.video, []).append(action)
        every = sorted(by_video, key=video_order)
        wanted = chosen_videos(self.videos)
        if unknown := [name for name in sorted(wanted or ()) if not any(is_chosen(v, {name}) for v in every)]:
            raise UserError(
                f"--videos {' '.join(unknown)}: these videos have no annotated action; those that have are {names_text(every)}"
            )
        chosen = [video for video in every if is_chosen(video, wanted)]
        return {video: by_video[video] for video in chosen[self.shard_index :: self.shard_count]}

    def stated_facts(self) -> dict[str, list[VideoFacts]]:
        """What annotations and catalogue state about the video files that were labelled, by video.

        Raises:
            UserError: annotations or catalogue cannot be read.
        """
        layout = dataset_layout(self.dataset)
        annotated = datasets.read(self.dataset_kind, self.annotation_files).facts
        if self.dataset_kind != datasets.DEFAULT:  # the catalogue lists MTL-AQA's videos
            return {video: [facts] for video, facts in annotated.items()}
        synthetic = layout.synthetic_file.exists()  # its video numbers are also those of the catalogue's videos
        stated: dict[str, list[VideoFacts]] = {}
        for facts in (annotated, {} if synthetic else catalogue_facts()):
            for video, of_video in facts.items():
                stated.setdefault(video, []).append(of_video)
        return stated


def command_text(module: str, config: ShardConfig, *more: object) -> str:
    """The command line, ready to paste, that runs another command of this package with the same flags."""
    return shlex.join(["python", "-m", f"data_preparation.{module}", *to_argv(config), *map(str, more)])
