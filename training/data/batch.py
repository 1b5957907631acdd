"""What travels from the workers to the network: tensors by name, actions in the first dimension (leaf)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

Tensors = dict[str, torch.Tensor]


class Batch(NamedTuple):
    """`clips` are seen by the network alone and never leave their rank. `given` and `labels` are gathered over the ranks
    for the loss; only `given` is there for a prediction. `index` (B,) int64 is each action's place in its data set."""

    clips: Tensors
    given: Tensors
    labels: Tensors
    index: torch.Tensor

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        """The batch with every tensor changed."""
        groups = ({name: change(t) for name, t in group.items()} for group in self[:3])
        return Batch(*groups, change(self.index))


class Rows(NamedTuple):
    """What a method said of some actions, and what is known of them."""

    outputs: Tensors
    given: Tensors
    labels: Tensors


def chunk(rows: Tensors, parts: int) -> list[Tensors]:
    """Named rows as `parts` smaller ones, in order."""
    pieces = {name: tensor.chunk(parts) for name, tensor in rows.items()}
    return [{name: chunks[part] for name, chunks in pieces.items()} for part in range(parts)]


def chunk_batch(batch: Batch, parts: int) -> list[Batch]:
    """A batch as `parts` smaller ones, in order."""
    groups = [chunk(group, parts) for group in batch[:3]]
    return [Batch(*of_part, index) for *of_part, index in zip(*groups, batch.index.chunk(parts), strict=True)]


def concat(parts: Sequence[Tensors]) -> Tensors:
    """Undo `chunk`."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
