"""Checks, before the first step, whether the limits of this machine allow what a training needs."""

from __future__ import annotations

import logging
import math
from typing import NamedTuple

import torch

from data_preparation.actions import Action
from data_preparation.archive import max_open_readers
from data_preparation.common.errors import UserError
from data_preparation.common.limits import (
    ResourceLimits,
    ResourceNeeds,
    cores,
    cpu_seconds,
    exceeded_limits,
    open_file_count,
    read_resource_limits,
    resident_bytes,
    temporary_folder_faults,
    temporary_folder_warning,
)
from training.config import TrainConfig
from training.data.handover import NEEDS_GPU
from training.data.loader import evaluation_size, steps_per_epoch
from training.data.plan import crop_source_size
from training.data.splits import Splits
from training.model import ScoringModel
from training.runtime.ranks import Ranks, allocated_memory, ranks_on_node

log = logging.getLogger(__name__)

# measured: memory that a worker adds to its fork server, its threads, and its open files besides frames
_WORKER_BYTES = 30 * 2**20
_SERVER_BYTES = 90 * 2**20
_WORKER_THREADS = 3
_WORKER_FILES = 14
_FILES_PER_WORKER = 5  # that the training process opens for each worker
_OTHER_FILES = 18  # of the training process: logs, metrics, a checkpoint, sockets of other ranks, the cache
_OTHER_THREADS = 3  # of the training process: the checkpoint writer, the pin-memory thread, tqdm's monitor
_PAGE = 4096


class _Load(NamedTuple):
    """What one rank loads: bytes of clips per batch, and batches at the same time."""

    clip_bytes: int
    batches: int


def _largest_load(config: TrainConfig, world_size: int, training: int, evaluated: int) -> _Load:
    """The larger load of training and evaluation."""

    def load(clips: int, batches: int, size: tuple[int, int] = config.input_size) -> _Load:
        clip_bytes = clips * config.frame_num * 3 * math.prod(size)  # uint8
        return _Load(clip_bytes, min(min(config.loader_workers, batches) * config.prefetch + 1, batches))

    size = evaluation_size(config)
    views = evaluated * config.test_clips * config.test_crops
    loads = [load(size, -(-views // size // world_size), config.test_size)]
    if training:
        clips = config.batch_size // world_size * config.clips_per_sample
        loads.append(load(clips, steps_per_epoch(training, config.batch_size)))
    return max(loads, key=lambda of: of[0] * of[1])


def shared_bytes(config: TrainConfig, world_size: int, training: int, evaluated: int, tensors: int) -> int:
    """Bytes of shared memory of one rank: its workers share each tensor of a batch in a segment of its own, and write clips to the
    same segments again.

    `training` and `evaluated` are numbers of actions, `tensors` the number of tensors per sample.
    """
    if not config.loader_workers:
        return 0
    clip_bytes, batches = _largest_load(config, world_size, training, evaluated)
    return batches * (-(-clip_bytes // _PAGE) + tensors - 1) * _PAGE


def needs(
    config: TrainConfig,
    model: ScoringModel,
    ranks: Ranks,
    device: torch.device,
    training: list[Action],
    evaluated: list[Action],
) -> ResourceNeeds:
    """The minimum that a training needs on this machine; an evaluation if `training` is empty."""
    here = ranks_on_node(ranks)
    workers = config.loader_workers
    tensors = config.clips_per_sample * (2 if config.augment_on == "device" else 1)  # clips, and the draws of each
    shared = shared_bytes(config, ranks.world_size, len(training), len(evaluated), tensors)
    _, batches = _largest_load(config, ranks.world_size, len(training), len(evaluated))
    videos = min(
        len({d.video for d in [*training, *evaluated]}), max_open_readers()
    )  # archives that a reader keeps open
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    moving = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad) if training else 0
    # on the CPU: gradients, and the two moments of Adam
    trained = moving * (3 if config.optimizer.startswith("Adam") else 1) if device.type == "cpu" else 0
    files = open_file_count() + _OTHER_FILES + _FILES_PER_WORKER * workers + 2 * tensors + (0 if workers else videos)
    prefetched = min(config.prefetch, -(-batches // max(workers, 1)))  # by each worker
    of_worker = _WORKER_FILES + videos + 2 * tensors * prefetched  # open buffers, and those on their way
    batch_bytes = shared // max(batches, 1)
    # the resized frames of a clip of several crops
    kept = config.frame_num * 3 * math.prod(crop_source_size(config.spatial_size)) if config.test_crops > 1 else 0
    return ResourceNeeds(
        files=max(files, of_worker if workers else 0),
        processes=here * (_WORKER_THREADS * workers + _OTHER_THREADS),
        workers=bool(workers),
        shared_bytes=here * shared,
        memory_bytes=here
        * (resident_bytes() + trained + bool(workers) * _SERVER_BYTES + workers * (_WORKER_BYTES + kept) + shared),
        address_bytes=max(trained + 2 * batch_bytes, prefetched * batch_bytes),
        file_bytes=max(batch_bytes, weights if training else 0),
    )


def check_machine(
    config: TrainConfig, model: ScoringModel, ranks: Ranks, device: torch.device, splits: Splits, *, trains: bool
) -> int | None:
    """Check all limits of this machine that matter to the training or, with `trains` False, to the evaluation; return the bytes of
    memory that they leave, None if no limit is known.

    Raises:
        UserError: limits are too low; it names all of them.
    """
    training = list(splits.train) if trains else []
    evaluated = list(
        max(
            splits.train if trains and model.method.fits_features else (),
            splits.val if trains else (),
            splits.test,
            key=len,
        )
    )
    limits = read_resource_limits()
    given = allocated_memory()
    if given is not None and (limits.memory_bytes is None or given < limits.memory_bytes):
        limits = ResourceLimits(**{**vars(limits), "memory_bytes": given})
    need = needs(config, model, ranks, device, training, evaluated)
    faults = exceeded_limits(need, limits)
    if config.loader_workers:
        faults += temporary_folder_faults()
    if config.frame_decode == "gpu" and device.type != "cuda":
        faults.append(NEEDS_GPU)
    if trains and config.cuda_graphs and device.type != "cuda":
        faults.append(
            "--cuda_graphs True needs a GPU and this process uses none: run it on a GPU, or give --cuda_graphs False"
        )
    if faults:
        raise UserError.of(faults)
    for warning in machine_warnings(config):
        log.warning(warning)
    return None if limits.memory_bytes is None else limits.memory_bytes - need.memory_bytes


def machine_warnings(config: TrainConfig) -> list[str]:
    """Warnings about limits that allow the training to start, but may make it slow or end it early."""
    found = []
    if config.loader_workers > (available := cores()):
        found.append(
            f"--workers {config.loader_workers} and this process may use {available} CPU core{'s' if available > 1 else ''}: request as many cores as workers (--cpus-per-task, --cpus_per_gpu), or fewer --workers"
        )
    if config.loader_workers and (text := temporary_folder_warning()):
        found.append(text)
    if (seconds := cpu_seconds()) is not None:
        found.append(
            f"the system ends this process after {seconds} s of CPU time (ulimit -t), as login nodes do: train in a job, or raise that limit"
        )
    return found
