"""Golden outputs of the original code (../shared/golden), and the weights and inputs that they were computed with."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import torch


def recipe_tensor(name: str, shape, scale: float) -> torch.Tensor:
    """A random tensor whose seed is its name: the weights and inputs of the golden outputs."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.randn(tuple(shape), generator=generator) * scale


def recipe_state(shapes: dict[str, list[int]], scale: float = 0.05) -> dict[str, torch.Tensor]:
    """Weights as in the golden outputs: scales of norms near 1, running variances of at least 1, counters 0."""
    state = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(0)
        elif name.endswith("running_var"):
            state[name] = 1 + recipe_tensor(name, shape, scale).abs()
        else:
            state[name] = recipe_tensor(name, shape, scale) + float(name.endswith(".weight") and len(shape) == 1)
    return state


def golden(shared: Path, name: str):
    return json.loads((shared / "golden" / f"{name}.json").read_text())


def difference(found: torch.Tensor, expected) -> float:
    expected = torch.tensor(expected)
    return ((found - expected).abs().max() / expected.abs().max()).item()
