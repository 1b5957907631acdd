"""--batch_size auto and --accumulate auto: choose both by the expected memory of a step, before the first step.

The global batch is chosen once, at the first start of a run. Later starts keep it, and process it in more parts if the memory
is smaller.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache

import torch

from data_preparation.common.errors import UserError
from data_preparation.common.limits import available_memory, read_resource_limits, resident_bytes, total_memory
from training.config import AUTO, TrainConfig
from training.cost import step_memory
from training.model import ScoringModel
from training.runtime import collectives
from training.runtime.ranks import Ranks, allocated_memory, ranks_on_node

# Measured on an H100 (training/README.md): steps needed up to 4.5 % more than expected, and PyTorch reserved 5 % more than that.
# Not in the expectation: workspaces, the buffers of nccl, the batches themselves
_USABLE, _APART_BYTES = 0.85, 2**30
_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Choice:
    """What was chosen, and lines about it for the log."""

    batch_size: int
    accumulate: int
    lines: tuple[str, ...] = ()


def choose(
    config: TrainConfig,
    world_size: int,
    actions: int,
    room: float,
    expected: Callable[[int], float],
    saved: Choice | None = None,
) -> Choice:
    """Choose what is auto. `room` and the `expected` memory of so many actions at a time are in bytes, for each rank; `actions`
    is the number of training actions. `saved` is what the last start of the run had.

    Raises:
        UserError: not even the smallest part fits.
    """
    unit = smallest_part(config)
    lines = []
    batch_size = config.batch_size or (saved.batch_size if saved else 0)
    if not batch_size:
        parts = 1 if config.accumulates_automatically else config.accumulate
        rows = unit  # of each rank and part
        while 2 * rows * parts * world_size <= actions and expected(2 * rows) <= room:
            rows *= 2
        batch_size = rows * parts * world_size
        in_parts = f" in {parts} parts" if parts > 1 else ""
        lines.append(
            f"--batch_size auto: {batch_size} ({world_size} rank{'s' if world_size > 1 else ''} x {rows * parts} actions{in_parts}; {_of(expected(rows), room)})"
        )
    accumulate = config.accumulate
    if config.accumulates_automatically:
        own = batch_size // world_size
        possible = [n for n in range(1, own + 1) if own % n == 0 and own // n % unit == 0] or [1]
        before = saved.accumulate if saved and saved.accumulate in possible else None
        tried = [n for n in possible if before is None or n >= before]
        accumulate = next((n for n in tried if expected(own // n) <= room), tried[-1])
        if accumulate > tried[0] or config.accumulate == AUTO:
            need = f"{_of(expected(own // accumulate), room)}"
            fewer = [n for n in tried if n < accumulate]
            why = f"; {fewer[-1]} would need {expected(own // fewer[-1]) / _GIB:.3g} GiB" if fewer else ""
            since = f" instead of {before} as before" if before not in (None, accumulate) else ""
            lines.append(
                f"--accumulate auto: {accumulate} part{'s' if accumulate > 1 else ''}{since} of {own // accumulate} actions per rank ({need}{why})"
            )
    rows = batch_size // world_size // accumulate
    if expected(rows) > room:
        raise UserError(
            f"the smallest part of a step, {rows} action{'s' if rows > 1 else ''} per rank, is expected to need {_of(expected(rows), room)}: give --checkpoint_activations True, a smaller --frame_num or --spatial_size, or a larger GPU"
        )
    return Choice(batch_size, accumulate, tuple(lines))


def _of(expected: float, room: float) -> str:
    return f"{expected / _GIB:.3g} of {room / _GIB:.3g} GiB expected"


def smallest_part(config: TrainConfig) -> int:
    """The fewest actions that can be processed at a time: trained batch norm needs a whole group."""
    return 1 if config.batch_norm == "frozen" else config.bn_group


def room_of(device: torch.device, ranks: Ranks, is_resumed: bool) -> float:
    """Bytes that the step of this rank may use, with a margin: of the GPU, or of the memory of the job or this node.

    At the first start what is free counts, later the whole memory: what other processes use for a moment must not change the
    number of parts, and with it the rounding.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return _USABLE * (total if is_resumed else free) - _APART_BYTES
    return _USABLE * (host_memory(ranks, total_memory() if is_resumed else available_memory()) or 0.0)


def host_memory(ranks: Ranks, of_node: int | None) -> float | None:
    """Bytes of host memory that this rank may add: its share of the limits of the job and of `of_node` bytes; None if unknown."""
    here = ranks_on_node(ranks)
    limits = [limit for limit in (read_resource_limits().memory_bytes, allocated_memory()) if limit is not None]
    allowed = [limit / here - resident_bytes() for limit in limits]
    return min([*([] if of_node is None else [of_node / here]), *allowed], default=None)


def resolve(
    config: TrainConfig,
    model: ScoringModel,
    ranks: Ranks,
    device: torch.device,
    half: bool,
    actions: int,
    saved: Callable[[], TrainConfig | None],
) -> tuple[TrainConfig, tuple[str, ...]]:
    """The configuration with numbers in place of auto, the same on every rank, and lines for the log. A collective. `saved`
    returns the configuration of the run's last start; only the first rank calls it.

    Raises:
        UserError: not even the smallest part of a batch fits.
    """
    if config.batch_size != AUTO and config.accumulate != AUTO:
        return config, ()
    last = collectives.on_first_rank(saved)
    room = min(collectives.gather_objects(room_of(device, ranks, last is not None)))

    @cache
    def expected(rows: int) -> float:
        return step_memory(model, config, rows * config.clips_per_sample, half, ranks)["total"]

    def choice() -> Choice:
        before = None if last is None else Choice(last.batch_size, last.accumulate)
        return choose(config, ranks.world_size, actions, room, expected, before)

    chosen = collectives.on_first_rank(choice)
    found = dataclasses.replace(config, batch_size=chosen.batch_size, accumulate=chosen.accumulate)
    return found, chosen.lines
