"""What can be known before a job queues: everything wrong at once, without torch."""

from __future__ import annotations

import shutil

from data_preparation.annotations import check_disjoint, load_annotations, load_split, load_vocabulary, select
from data_preparation.cli import UserError
from data_preparation.layout import prepared_videos, video_name
from launch.config import LaunchConfig
from training.config import TrainConfig, path_faults


def faults(launch: LaunchConfig, training: TrainConfig) -> list[str]:
    """Why this submission could not train, a sentence each; [] when nothing is known to be wrong."""
    found = path_faults(training)
    if not found:
        found += _data_faults(training)
    processes = launch.nodes * launch.tasks
    parts = processes * training.accumulate
    if training.batch_size % parts:
        found.append(
            f"--batch_size {training.batch_size} cannot be shared by {processes} processes ({launch.nodes} nodes x {launch.tasks}) in --accumulate {training.accumulate} parts: give a multiple of {parts}"
        )
    if training.gpu and 0 < launch.gpus_per_node < launch.tasks:
        found.append(
            f"--tasks_per_node {launch.tasks} processes cannot share --gpus_per_node {launch.gpus_per_node} GPUs: give as many GPUs as tasks"
        )
    if launch.gpus_per_node == 0 and training.gpu:
        found.append("--gpus_per_node 0 asks for no GPU and the training flags say --gpu True: add -- --gpu False")
    if not launch.dry_run and shutil.which("sbatch") is None:
        found.append(
            "sbatch is not on this machine: submit from a login node, or train here with bash model_train_config.sh"
        )
    return found


def _data_faults(training: TrainConfig) -> list[str]:
    try:
        dives = load_annotations(training.annotation_path, training.captions_file)
        if training.vocabulary_file:
            load_vocabulary(training.vocabulary_file)
        train, test = load_split(training.train_path), load_split(training.test_path)
        check_disjoint(train, test)
        used = select(dives, train, str(training.train_path)) + select(dives, test, str(training.test_path))
    except UserError as error:
        return str(error).splitlines()
    wanted = training.video_numbers
    videos = {d.video for d in used if wanted is None or d.video in wanted}
    missing = sorted(videos - set(prepared_videos(training.root_dir)))
    return [
        f"video {video_name(v)} has no frames in {training.root_dir}: run python -m data_preparation.extract --videos {video_name(v)}"
        for v in missing
    ]
