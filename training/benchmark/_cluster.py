"""A small simulation of data-parallel training on a cluster: steps, loaders, network and shared file system.

All times are in seconds and all sizes in bytes. Every function is pure, so the figures follow from the inputs alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_BUCKET = 25e6  # bytes of a gradient bucket of DistributedDataParallel
_STEPS = 200


@dataclass(frozen=True)
class Hardware:
    """Figures of the cluster: published ones, or those of your own."""

    step: float  # forward and backward of one rank's batch
    jitter: float  # standard deviation of a step relative to its mean
    gpus_per_node: int
    workers: int  # of each rank
    inside_bytes: float  # bandwidth between the GPUs of a node, a second and GPU
    network_bytes: float  # bandwidth of the network, a second and GPU
    latency: float  # of one message between nodes
    storage_bytes: float  # of the shared file system, a second
    storage_operations: float  # metadata operations of the shared file system, a second


@dataclass(frozen=True)
class Work:
    """What the training does; measured by training.benchmark.scale where it can be."""

    clips: int  # of the data set
    validated: int  # clips of the validation split
    videos: int  # archives
    batch: int  # clips of a rank's batch
    clip_bytes: float
    clip_cpu: float  # to load a clip in a worker, its archive being open
    open_cpu: float  # to open an archive
    open_bytes: float
    open_operations: float
    kept_archives: int  # that a worker keeps open
    plan_cpu: float  # of a sample in the training process
    epoch_cpu: float  # to order and divide the samples of an epoch
    gradient_bytes: float
    checkpoint_bytes: float
    copy_bytes: float  # a second, from the weights to the memory of the writer
    row_cpu: float  # to read the outputs of a validation clip from another rank
    start_cpu: float  # imports, annotations, model
    meet: float  # of one rank at the rendezvous


def all_reduce(size: float, ranks: int, hardware: Hardware) -> float:
    """A ring inside each node and between the nodes; over many nodes NCCL takes a tree, if that is faster."""
    inside, nodes = min(ranks, hardware.gpus_per_node), -(-ranks // hardware.gpus_per_node)
    seconds = 2 * (inside - 1) / inside * size / hardware.inside_bytes
    if nodes > 1:
        share = size / inside  # each GPU of a node reduces its share with the other nodes
        ring = 2 * (nodes - 1) / nodes * share / hardware.network_bytes + 2 * (nodes - 1) * hardware.latency
        tree = 2 * share / hardware.network_bytes + 2 * np.ceil(np.log2(nodes)) * hardware.latency
        seconds += min(ring, tree)
    return float(seconds)


def exposed_all_reduce(ranks: int, work: Work, hardware: Hardware) -> float:
    """The part of the reduction that the backward pass (two thirds of a step) does not hide: at least the last bucket."""
    if ranks == 1:
        return 0.0
    whole = all_reduce(work.gradient_bytes, ranks, hardware)
    last = all_reduce(min(_BUCKET, work.gradient_bytes), ranks, hardware)
    return max(whole - 2 / 3 * hardware.step, last)


def missed(work: Work) -> float:
    """The share of clips whose archive a worker has to open: it keeps `kept_archives` of the videos open."""
    return max(0.0, 1 - work.kept_archives / work.videos)


def load_seconds(ranks: int, work: Work, hardware: Hardware) -> float:
    """The time in which one rank's workers load a batch; all ranks share the file system."""
    clip = work.clip_cpu + missed(work) * work.open_cpu
    computing = max(work.batch * clip / hardware.workers, work.batch * work.plan_cpu)
    clips = work.batch * ranks
    reading = clips * (work.clip_bytes + missed(work) * work.open_bytes) / hardware.storage_bytes
    opening = clips * missed(work) * work.open_operations / hardware.storage_operations
    return max(computing, reading, opening)


def step_seconds(ranks: int, work: Work, hardware: Hardware, prefetch: int = 4, seed: int = 0) -> float:
    """The mean step: every rank takes the next batch when it is loaded, computes, and waits for the slowest."""
    rng = np.random.default_rng(seed)
    made = load_seconds(ranks, work, hardware)
    exposed = exposed_all_reduce(ranks, work, hardware)
    # the time of a step is right-skewed, and so is the time of a batch
    spread = np.sqrt(np.log1p(hardware.jitter**2))
    depth = prefetch * hardware.workers
    ready = np.zeros(ranks)  # when each rank's newest batch is loaded
    taken = np.zeros((depth, ranks))  # when the last `depth` batches were taken: the queue has that many places
    now = 0.0
    for number in range(_STEPS):
        ready = np.maximum(ready, taken[number % depth]) + made * rng.lognormal(-(spread**2) / 2, spread, ranks)
        begins = np.maximum(now, ready)
        taken[number % depth] = begins
        ends = begins + hardware.step * rng.lognormal(-(spread**2) / 2, spread, ranks)
        now = float(ends.max()) + exposed
    return now / _STEPS


def epoch_seconds(ranks: int, work: Work, hardware: Hardware) -> dict[str, float]:
    """The parts of an epoch: its steps, what is done once before them, and what the validation sends around."""
    steps = work.clips // (work.batch * ranks)
    return {
        "steps": steps * step_seconds(ranks, work, hardware),
        "order of the epoch": work.epoch_cpu,
        "outputs of the validation": work.validated * work.row_cpu if ranks > 1 else 0.0,
        "checkpoint": work.checkpoint_bytes / work.copy_bytes,
    }


def start_seconds(ranks: int, work: Work, hardware: Hardware, opened_by_each: float) -> dict[str, float]:
    """The parts of a start. `opened_by_each` is the share of all archives that one rank opens."""
    opened = work.videos * opened_by_each
    total = opened * ranks * work.open_operations
    return {
        "imports, annotations, model": work.start_cpu,
        "opening archives, CPU": opened * work.open_cpu,
        "opening archives, file system": total / hardware.storage_operations,
        "rendezvous": ranks * work.meet,
    }
