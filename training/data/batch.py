"""Batches: tensors by name, with the action as first dimension. Imports nothing of the project."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

Tensors = dict[str, torch.Tensor]


class Batch(NamedTuple):
    """A batch of B actions.

    `clips` go into the network and stay on their rank. `given` and `labels` are gathered over the ranks for the loss; a
    prediction may use `given` only. `action_index` (B,) int64 is the position of each action in its data set. `looks` are the
    draws of an augmentation that is applied on the device, by name of the clip (data.augment.as_tensor).
    """

    clips: Tensors
    given: Tensors
    labels: Tensors
    action_index: torch.Tensor
    looks: Tensors = {}  # noqa: RUF012 (never changed)

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        """The batch with `change` applied to every tensor."""
        clips, given, labels, looks = (
            {name: change(t) for name, t in group.items()} for group in (*self[:3], self.looks)
        )
        return Batch(clips, given, labels, change(self.action_index), looks)


class Rows(NamedTuple):
    """The method's outputs for some actions, with their `given` and `labels`; row i of each tensor is action i."""

    outputs: Tensors
    given: Tensors
    labels: Tensors

    def mean_of_views(self, views: int) -> Rows:
        """A row for each action instead of one for each of its `views`: the mean of floating-point outputs, and what the first view
        has of everything else."""
        split = {name: t.unflatten(0, (-1, views)) for name, t in self.outputs.items()}
        outputs = {name: t.mean(dim=1) if t.is_floating_point() else t[:, 0] for name, t in split.items()}
        return Rows(outputs, *({name: t[::views] for name, t in group.items()} for group in self[1:]))


def chunk(rows: Tensors, parts: int) -> list[Tensors]:
    """torch.chunk of each tensor: `parts` dictionaries, in order."""
    pieces = {name: tensor.chunk(parts) for name, tensor in rows.items()}
    return [{name: chunks[part] for name, chunks in pieces.items()} for part in range(parts)]


def chunk_batch(batch: Batch, parts: int) -> list[Batch]:
    """The batch in `parts` smaller ones, in order."""
    clips, given, labels, looks = (chunk(group, parts) for group in (*batch[:3], batch.looks))
    return list(map(Batch, clips, given, labels, batch.action_index.chunk(parts), looks))


def concat(parts: Sequence[Tensors]) -> Tensors:
    """torch.cat of the tensors of each name: the inverse of `chunk`."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
