"""The tube of TSA-Net: boxes on the grid of a feature map, and self-attention between its positions."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch
from torch import nn

from data_preparation.boxes import areas
from training.rows import MaskedBatchNorm, full_precision

# ------------------------------------------------------------------------------------------------------- boxes to cells


def touched_cells(corners: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """The cells that convex boxes touch: corners (T, 4, 2) of (x, y) in cells -> (T, rows, columns) bool.

    Cell (r, c) covers x from c to c + 1 and y from r to r + 1. A frame without a box has NaN corners and touches no cell.
    """
    x, y = np.arange(columns) + 0.5, np.arange(rows) + 0.5  # centres of the cells
    low, high = corners.min(axis=1), corners.max(axis=1)  # (T, 2)
    in_columns = (low[:, :1] < x + 0.5) & (high[:, :1] > x - 0.5)  # (T, columns)
    in_rows = (low[:, 1:] < y + 0.5) & (high[:, 1:] > y - 0.5)  # (T, rows)
    touched = in_rows[:, :, None] & in_columns[:, None, :]
    side = np.roll(corners, -1, axis=1) - corners  # (T, 4, 2)
    # normals that point inwards; a cell is outside if no corner of it is on the inner side of an edge
    normal = np.stack([-side[..., 1], side[..., 0]], axis=-1) * np.sign(areas(corners))[:, None, None]
    for edge in range(4):
        nx, ny = normal[:, edge, 0, None, None], normal[:, edge, 1, None, None]
        offset = (normal[:, edge] * corners[:, edge]).sum(axis=-1)[:, None, None]
        touched &= nx * x + ny * y[:, None] + (np.abs(nx) + np.abs(ny)) / 2 > offset
    return touched


def released_cells(corners: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """As `touched_cells`, with the corners cut to whole numbers and drawn as filled polygons, as the authors' code does with OpenCV.

    A box is drawn thinner than it is.
    """
    cells = np.zeros((len(corners), rows, columns), bool)
    for frame, box in enumerate(corners):
        if not np.isnan(box).any():
            _fill(cells[frame], np.trunc(box).astype(int))
    return cells


Point = tuple[int, int]


def _fill(cells: np.ndarray, points: np.ndarray) -> None:
    """Fill a convex polygon of whole-numbered points (P, 2), its outline included, as OpenCV's fillConvexPoly."""
    rows, columns = cells.shape
    ends: list[Point] = []  # (x, y) on the edges; each row is filled between its outermost ones
    for (x0, y0), (x1, y1) in pairwise([*points.tolist(), points[0].tolist()]):
        ends += [(math.floor(x0 + (x1 - x0) * (y - y0) / (y1 - y0) + 0.5), y) for y in range(min(y0, y1), max(y0, y1))]
        first, last = sorted(_clipped((x0, y0), (x1, y1), columns - 1, rows - 1))
        steps = max(abs(last[0] - first[0]), abs(last[1] - first[1]), 1)
        ends += [
            (_between(first[0], last[0], k, steps), _between(first[1], last[1], k, steps)) for k in range(steps + 1)
        ]
    for y in range(rows):
        if across := [x for x, row in ends if row == y]:
            cells[y, max(min(across), 0) : max(max(across) + 1, 0)] = True


def _clipped(start: Point, end: Point, right: int, bottom: int) -> tuple[Point, Point]:
    """Cut an edge at the borders of the grid, to whole numbers. An edge outside stays outside."""
    ends = [start, end]
    for axis, limit in ((1, bottom), (0, right)):  # y, then x
        if not (
            0 <= ends[0][axis] <= limit or 0 <= ends[1][axis] <= limit or (ends[0][axis] < 0) != (ends[1][axis] < 0)
        ):
            return start, end
        for i in (0, 1):
            here, there = ends[i], ends[1 - i]
            if not 0 <= here[axis] <= limit:
                border = 0 if here[axis] < 0 else limit
                moved = int((border - here[axis]) * (there[1 - axis] - here[1 - axis]) / (there[axis] - here[axis]))
                other = here[1 - axis] + moved
                ends[i] = (border, other) if axis == 0 else (other, border)
    return ends[0], ends[1]


def _between(start: int, end: int, step: int, steps: int) -> int:
    """start + (end - start) * step / steps, rounded; a half goes towards the start."""
    distance = (2 * abs(end - start) * step + steps - 1) // (2 * steps)
    return start + distance if end > start else start - distance


# ------------------------------------------------------------------------------------------------------------ attention


class TubeAttention(nn.Module):
    """Self-attention between the positions of a tube: maps (B, C, P) and tube (B, P) bool -> (B, C, P).

    A non-local block whose queries and keys are the features as they are, without scaling. Its last batch norm starts with zeros,
    so the block starts as the identity. Other positions stay as they are, and so does a clip with an empty tube.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.g = nn.Conv1d(channels, channels, 1)
        norm = MaskedBatchNorm(channels)
        nn.init.zeros_(norm.weight)
        self.W = nn.Sequential(nn.Conv1d(channels, channels, 1), norm)

    def forward(self, maps: torch.Tensor, tube: torch.Tensor) -> torch.Tensor:
        # the positions of each tube first; shorter tubes are filled up with positions outside
        length = max(int(tube.sum(dim=1).max()), 1)
        index = tube.byte().argsort(dim=1, descending=True, stable=True)[:, :length]  # (B, N)
        valid = tube.gather(1, index)
        index = index[:, None].expand(-1, maps.shape[1], -1)  # (B, C, N)
        with torch.autocast(maps.device.type, enabled=False):  # without scaling, rounding would change the softmax
            features = full_precision(maps.gather(2, index))
            scores = features.transpose(1, 2) @ features  # (B, N, N)
            weights = scores.masked_fill(~valid[:, None], torch.finfo(scores.dtype).min).softmax(dim=2)
            attended = self.g(features) @ weights.transpose(1, 2)  # (B, C, N)
            convolution, norm = self.W
            change = norm(convolution(attended), valid) * valid[:, None]
        return maps.scatter_add(2, index, change.to(maps.dtype))
