"""The checks before a job is submitted: all errors are reported at once. Imports no torch.

Weights and memory need the model, so another process checks them (training.forecast), if torch is installed.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_preparation import datasets
from data_preparation.actions import video_order
from data_preparation.annotations import load_vocabulary
from data_preparation.common.command_line import to_argv
from data_preparation.common.errors import UserError
from data_preparation.layout import DatasetLayout, prepared
from data_preparation.many_videos import MAX_LINES, names_text
from data_preparation.verified import unverified
from launch import slurm
from launch.config import REPOSITORY, LaunchConfig
from launch.fitting import Request, excess, parse_nodes, parse_partitions
from training.config import TrainConfig, batch_norm_fault, path_faults
from training.data.lists import listed_actions
from training.runtime.run_folder import RunFolder, resume_faults
from training.tasks import task_of

_SMALL_FILES_BYTES = 200 * 2**20  # for logs, plots and metrics
_FORECAST_TIMEOUT_S = 600


def print_step(what: str) -> None:
    """Name on stderr a step that may take seconds."""
    print(f"{what} ...", file=sys.stderr, flush=True)


@contextmanager
def checking(launch: LaunchConfig, training: TrainConfig, faults: list[str], notes: list[str]) -> Iterator[None]:
    """Append to `faults` a sentence for each reason why this submission could not train, and to `notes` what was not checked.

    Another process builds the model while the block runs.
    """
    print_step("checking flags, run folder and files")
    folder = RunFolder(training.run_dir)
    own, free = resume_faults(folder, training)
    faults += request_flag_faults(launch, training) + own
    if free and not own:
        notes.append(
            f"{folder.path} holds a run; these flags differ from its flags, which is allowed: {'; '.join(free)}"
        )
    files = path_faults(training)
    faults += files
    forecast = None
    if files:
        notes.append("not checked: weights and memory, because files are missing")
    elif not launch.forecast:
        notes.append("not checked: weights and memory (--forecast False)")
    else:
        print_step("building the model in another process, to check weights and memory")
        forecast = start_forecast(launch, training)
    try:
        if not files:
            print_step(f"checking the data set in {training.root_dir}")
            faults += data_faults(training)
        yield
        needed = _SMALL_FILES_BYTES
        if forecast is not None:
            if forecast.poll() is None:
                print_step("waiting for the model")
            own, found = forecast_result(forecast)
            faults += [fault for fault in own if fault not in faults]
            if found is not None:
                needed += found["checkpoint_bytes"] * (training.keep_checkpoints + 1) + found["best_bytes"]
                faults += memory_faults(launch, found)
            elif not own:
                notes.append("not checked: weights and memory, because torch is not installed on this machine")
        faults += space_faults(training.run_dir, needed, "--runs_dir")
        faults += space_faults(Path.home(), _SMALL_FILES_BYTES, "your home")
    finally:
        if forecast is not None and forecast.poll() is None:
            forecast.kill()
            forecast.wait()


def request_flag_faults(launch: LaunchConfig, training: TrainConfig) -> list[str]:
    """Contradictions between launch flags and training flags."""
    found = []
    parts = launch.world_size * max(training.accumulate, 1)
    if training.batch_size % parts:
        found.append(
            f"--batch_size {training.batch_size} cannot be divided by {launch.world_size} ranks ({launch.nodes} nodes x {launch.tasks}) x --accumulate {max(training.accumulate, 1)}: give a multiple of {parts}"
        )
    if fault := batch_norm_fault(training, launch.world_size):
        found.append(fault)
    if training.gpu and 0 < launch.gpus_per_node < launch.tasks:
        found.append(
            f"--tasks_per_node {launch.tasks} is more than --gpus_per_node {launch.gpus_per_node}, and each rank needs a GPU of its own: give as many GPUs as tasks"
        )
    if launch.gpus_per_node == 0 and training.gpu:
        found.append("--gpus_per_node 0 requests no GPU, but the training flags have --gpu True: add -- --gpu False")
    if odd := set(str(training.run_dir)) & set("%\\\n"):
        found.append(
            f"{str(training.run_dir)!r} contains {odd.pop()!r}, which Slurm would replace: give another --runs_dir"
        )
    if launch.cluster == "local" and launch.nodes > 1:
        found.append(
            f"--nodes {launch.nodes} does not fit --cluster local, which uses this machine only: drop one of them"
        )
    return found


def slurm_available(launch: LaunchConfig, found: list[str]) -> bool:
    """Whether sbatch is installed; if not, append the error to `found`."""
    if slurm.is_available():
        return True
    found.append(
        "sbatch is not installed on this machine: submit from a login node, or train here with --cluster local or bash model_train_config.sh"
    )
    return False


def check_with_slurm(script: str, launch: LaunchConfig, faults: list[str], notes: list[str]) -> None:
    """Check whether Slurm could start the job: partition, account, QOS, GPUs, sizes (sbatch --test-only). If the request is
    too large, compare it with the nodes."""
    print_step("checking with Slurm whether this job could start")
    try:
        slurm.test_only(script)
    except slurm.SlurmError as error:
        refusal = f"Slurm could not start this job ({error})"
        too_much = excess_of(request_of(launch))
        if too_much:
            faults += [f"{refusal}:", *(f"  {line}" for line in too_much)]
        else:
            faults.append(f"{refusal}: fix the launch flags or job_files/environment.sh")
    else:
        notes += [f"warning: this job may stay pending: {line}" for line in excess_of(request_of(launch))]


def request_of(launch: LaunchConfig) -> Request:
    """The resources that a submission requests."""
    return Request(
        nodes=launch.nodes,
        tasks=launch.tasks,
        cpus=launch.cpus_per_task * launch.tasks,
        memory=launch.mem_per_gpu_gb * launch.gpus_or_tasks * 1024,
        gpus=launch.gpus_per_node,
        gpu_type=launch.gpu_type,
        minutes=launch.time_min,
        partition=launch.partition,
        constraint=launch.constraint,
        exclude=launch.exclude,
    )


def excess_of(request: Request) -> list[str]:
    """The parts of a request that are too much for its partition; [] if it fits, or if Slurm does not list its nodes."""
    try:
        nodes, partitions = slurm.nodes_and_partitions()
    except slurm.SlurmError:
        return []
    return excess(request, parse_nodes(nodes), parse_partitions(partitions))


def used_videos(training: TrainConfig) -> set[str]:
    """The videos of this training's train and test lists.

    Raises:
        UserError: annotations or lists cannot be read, contradict each other, or lack what the task needs.
    """
    if training.vocabulary_file:
        load_vocabulary(training.vocabulary_file)
    data = datasets.load(training.dataset_kind, training.annotation_files)
    train, test = listed_actions(training, data)
    used = train + test if training.evaluate or training.split == "event" else train
    if faults := task_of(training.task).faults(used, data.classes):
        raise UserError.of(faults)
    return {action.video for action in train + test}


def data_faults(training: TrainConfig) -> list[str]:
    """Errors about videos that are not prepared or not verified."""
    try:
        videos = used_videos(training)
    except UserError as error:
        return str(error).splitlines()
    if training.reads != "video":
        return []
    root = training.root_dir
    layout = DatasetLayout(root.parent)
    data: list[tuple[str, Path | str]] = [("dataset", layout.root)] if root == layout.frames else []
    if training.annotation_path != layout.annotations_of(training.dataset_kind):
        data.append(("annotation_path", training.annotation_path))
    if training.dataset_kind != datasets.DEFAULT:
        data.append(("dataset_kind", training.dataset_kind))
    lists = [("train_path", training.train_path), ("test_path", training.test_path)]
    if [path for _, path in lists] == [layout.train_file, layout.test_file] or not datasets.reads_lists(
        training.dataset_kind
    ):
        lists = []
    flags, list_flags = (
        "".join(f" --{name} {shlex.quote(str(path))}" for name, path in part) for part in (data, lists)
    )
    missing = sorted(videos - prepared(root, videos), key=video_order)
    found = [
        f"video {v} has no frames in {root}: run python -m data_preparation.extract{flags} --videos {v}"
        for v in missing
    ]
    if len(missing) > MAX_LINES:
        found = [
            f"{len(missing)} of {len(videos)} videos have no frames in {root} ({names_text(missing)}): run python -m data_preparation.extract{flags}"
        ]
    if odd := unverified(root, sorted(videos - set(missing), key=video_order)):
        names = names_text(odd)
        found.append(
            f"the frames of {len(odd)} videos in {root} were not verified since they were extracted ({names}): run python -m data_preparation.verify{flags}{list_flags}"
        )
    return found


def start_forecast(launch: LaunchConfig, training: TrainConfig) -> subprocess.Popen[str]:
    """Start training.forecast. It estimates the memory of a step, which takes longest, only if --gpu_mem_gb is given."""
    wanted = launch.world_size if launch.gpus_per_node and launch.gpu_mem_gb else 0
    command = [sys.executable, "-m", "training.forecast", str(wanted), *to_argv(training)]
    return subprocess.Popen(
        command, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def forecast_result(process: subprocess.Popen[str]) -> tuple[list[str], dict | None]:
    """(errors, result of training.forecast or None) about weights and memory."""
    try:
        out, err = process.communicate(timeout=_FORECAST_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return [
            f"building the model took more than {_FORECAST_TIMEOUT_S} s: find out why, or give --forecast False"
        ], None
    if process.returncode == 0:
        return [], json.loads(out.splitlines()[-1])
    if "No module named 'torch'" in err:
        return [], None
    lines = [line.removeprefix("error: ") for line in err.splitlines() if line.startswith("error: ")]
    return lines or [f"the model cannot be built ({(err.strip().splitlines() or ['killed'])[-1]})"], None


def memory_faults(launch: LaunchConfig, forecast: dict) -> list[str]:
    """An error if the expected memory of a training step exceeds --gpu_mem_gb."""
    if not (launch.gpus_per_node and launch.gpu_mem_gb):
        return []
    expected = forecast["step_bytes"] / 1e9
    if expected <= launch.gpu_mem_gb:
        return []
    return [
        f"a step is expected to need {expected:.1f} GB on each GPU, and --gpu_mem_gb is {launch.gpu_mem_gb:g}: give --accumulate, --checkpoint_activations True, more GPUs or larger ones"
    ]


def space_faults(folder: Path, needed: float, what: str) -> list[str]:
    """An error if the disk of `folder`, which may not exist yet, has less than `needed` bytes free (quotas are not checked)."""
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        return [f"{what}: {folder} is not writable: choose another folder, or change its permissions"]
    free = shutil.disk_usage(folder).free
    if free >= needed:
        return []
    return [
        f"{what}: the disk of {folder} has {free / 1e9:.1f} GB free and {needed / 1e9:.1f} GB may be needed: make room or choose another folder"
    ]
