"""What can be known before a job queues: everything wrong at once, without torch on this machine's part.

Weights and memory need the model, so they are looked at by another process (training.forecast), where torch is there.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from data_preparation.annotations import check_disjoint, load_annotations, load_split, load_vocabulary, select
from data_preparation.cli import UserError, to_argv
from data_preparation.layout import DatasetLayout, prepared_videos, video_name
from data_preparation.verified import unverified
from launch import slurm
from launch.config import REPOSITORY, LaunchConfig
from training.config import TrainConfig, differences, path_faults
from training.run_folder import RunFolder

_LITTLE = 200 * 2**20  # bytes that logs, plots and metrics may come to
_FORECAST_TIMEOUT_S = 600


def check(launch: LaunchConfig, training: TrainConfig) -> tuple[list[str], list[str]]:
    """(why this submission could not train, a sentence each; what could not be looked at)."""
    found = request_flag_faults(launch, training) + run_faults(training)
    files = path_faults(training)
    if not files:
        files = data_faults(training)
    found += files
    notes: list[str] = []
    needed = _LITTLE
    if files:
        notes.append("weights and memory, before the files above are there")
    elif not launch.forecast:
        notes.append("weights and memory (--forecast False)")
    else:
        faults, forecast = forecast_of(launch, training)
        found += faults
        if forecast is None and not faults:
            notes.append("weights and memory: there is no torch on this machine")
        if forecast is not None:
            needed += forecast["checkpoint_bytes"] * (training.keep_checkpoints + 1) + forecast["best_bytes"]
            found += memory_faults(launch, forecast)
    found += space_faults(training.run_dir, needed, "--runs_dir")
    found += space_faults(Path.home(), _LITTLE, "your home")
    return found, notes


def run_faults(training: TrainConfig) -> list[str]:
    """Whether the run folder holds a run that these flags could not go on with."""
    folder = RunFolder(training.run_dir)
    try:
        saved = folder.saved_config()
    except UserError as error:
        return [str(error) if str(folder.path) in str(error) else f"{folder.config_file}: {error}"]
    if saved is None or not (folder.checkpoints() or folder.best_checkpoint.exists() or folder.summary_file.exists()):
        return []
    if not training.resume:
        return [f"{folder.path} holds a run and --resume is False: give another --run_name, or let it resume"]
    fixed, _ = differences(saved, training)
    if fixed:
        return [
            f"{folder.path} holds a run with other flags ({'; '.join(fixed)}): give another --run_name, or its flags"
        ]
    return []


def request_flag_faults(launch: LaunchConfig, training: TrainConfig) -> list[str]:
    """What is wrong with the launch flags and the training flags taken together."""
    found = []
    parts = launch.processes * training.accumulate
    if training.batch_size % parts:
        found.append(
            f"--batch_size {training.batch_size} cannot be shared by {launch.processes} processes ({launch.nodes} nodes x {launch.tasks}) in --accumulate {training.accumulate} parts: give a multiple of {parts}"
        )
    if training.gpu and 0 < launch.gpus_per_node < launch.tasks:
        found.append(
            f"--tasks_per_node {launch.tasks} processes cannot share --gpus_per_node {launch.gpus_per_node} GPUs: give as many GPUs as tasks"
        )
    if launch.gpus_per_node == 0 and training.gpu:
        found.append("--gpus_per_node 0 asks for no GPU and the training flags say --gpu True: add -- --gpu False")
    if odd := set(str(training.run_dir)) & set("%\\\n"):
        found.append(
            f"{str(training.run_dir)!r} has {odd.pop()!r} in it, which Slurm would replace: give another --runs_dir"
        )
    if launch.cluster == "local" and launch.nodes > 1:
        found.append(f"--nodes {launch.nodes} is more than this one machine: drop --cluster local, or --nodes")
    return found


def slurm_is_here(launch: LaunchConfig, found: list[str]) -> bool:
    """Whether sbatch can be asked; if not, `found` gets the sentence."""
    if slurm.here():
        return True
    found.append(
        "sbatch is not on this machine: submit from a login node, or train here with --cluster local or bash model_train_config.sh"
    )
    return False


def request_faults(script: str) -> list[str]:
    """Whether Slurm would ever start the job: partition, account, QOS, GPUs, sizes (sbatch --test-only)."""
    try:
        slurm.test_only(script)
    except slurm.SlurmError as error:
        return [f"Slurm could not start this job ({error}): mend the launch flags or job_files/environment.sh"]
    return []


def used_videos(training: TrainConfig) -> set[int]:
    """The videos that the lists of this training name.

    Raises:
        UserError: annotations or lists that are unreadable or do not fit together.
    """
    dives = load_annotations(training.annotation_path, training.captions_file)
    if training.vocabulary_file:
        load_vocabulary(training.vocabulary_file)
    train, test = load_split(training.train_path), load_split(training.test_path)
    check_disjoint(train, test)
    used = select(dives, train, str(training.train_path)) + select(dives, test, str(training.test_path))
    wanted = training.video_numbers
    return {d.video for d in used if wanted is None or d.video in wanted}


def data_faults(training: TrainConfig) -> list[str]:
    """Whether all videos are prepared and verified."""
    try:
        videos = used_videos(training)
    except UserError as error:
        return str(error).splitlines()
    root = training.root_dir
    layout = DatasetLayout(root.parent)
    data = [("dataset", layout.root)] if root == layout.frames else []
    if training.annotation_path != layout.annotation_file:
        data.append(("annotation_path", training.annotation_path))
    lists = [("train_path", training.train_path), ("test_path", training.test_path)]
    if [path for _, path in lists] == [layout.train_file, layout.test_file]:
        lists = []
    flags, list_flags = (
        "".join(f" --{name} {shlex.quote(str(path))}" for name, path in part) for part in (data, lists)
    )
    missing = sorted(videos - set(prepared_videos(root)))
    found = [
        f"video {video_name(v)} has no frames in {root}: run python -m data_preparation.extract{flags} --videos {video_name(v)}"
        for v in missing
    ]
    if odd := unverified(root, sorted(videos - set(missing))):
        names = " ".join(map(video_name, odd))
        found.append(
            f"the frames of {len(odd)} videos in {root} were not verified since they were extracted ({names}): run python -m data_preparation.verify{flags}{list_flags}"
        )
    return found


def forecast_of(launch: LaunchConfig, training: TrainConfig) -> tuple[list[str], dict | None]:
    """(faults, what training.forecast says, or None where it cannot say) about weights and memory."""
    command = [sys.executable, "-m", "training.forecast", str(launch.processes), *to_argv(training)]
    try:
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=_FORECAST_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return [f"building the model took more than {_FORECAST_TIMEOUT_S} s: look why, or say --forecast False"], None
    if done.returncode == 0:
        return [], json.loads(done.stdout.splitlines()[-1])
    if "No module named 'torch'" in done.stderr:
        return [], None
    lines = [line.removeprefix("error: ") for line in done.stderr.splitlines() if line.startswith("error: ")]
    return lines or [f"the model cannot be built ({(done.stderr.strip().splitlines() or ['killed'])[-1]})"], None


def memory_faults(launch: LaunchConfig, forecast: dict) -> list[str]:
    """The expected memory of a training step against the card, where both are known."""
    if not (launch.gpus_per_node and launch.gpu_mem_gb):
        return []
    expected = forecast["step_bytes"] / 1e9
    if expected <= launch.gpu_mem_gb:
        return []
    return [
        f"a step is expected to take {expected:.1f} GB on each GPU and --gpu_mem_gb says {launch.gpu_mem_gb:g}: give --accumulate, --checkpoint_activations True, more GPUs or larger ones"
    ]


def space_faults(folder: Path, needed: float, what: str) -> list[str]:
    """Whether the disk of a folder, which may not exist yet, has `needed` bytes free (quotas are not seen)."""
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        return [f"{what}: nothing can be written to {folder}: choose another place, or change its permissions"]
    free = shutil.disk_usage(folder).free
    if free >= needed:
        return []
    return [
        f"{what}: the disk of {folder} has {free / 1e9:.1f} GB free and {needed / 1e9:.1f} GB may be needed: make room or choose another place"
    ]
