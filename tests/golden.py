"""Golden outputs of the original code (../shared/golden), and the weights and inputs that they were computed with."""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path

import pytest
import torch

from training.data.batch import Batch
from training.engine.step import Step


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


def scaled_state(
    shapes: dict[str, list[int]], gain: float, overrides: dict[str, float] | None = None
) -> dict[str, torch.Tensor]:
    """Weights as in the golden outputs of tsm, st_abn and mscadc: tensors of two or more axes keep the size of signals, with
    `gain` as their variance; `overrides` has scales of single tensors."""
    state = recipe_state(shapes)
    for name, shape in shapes.items():
        if len(shape) >= 2:
            scale = (gain * shape[0] / math.prod(shape)) ** 0.5
            state[name] = recipe_tensor(name, shape, (overrides or {}).get(name, scale))
    return state


def recipe_video(case: dict) -> torch.Tensor:
    """The clip (B, 3, T, H, W) of a golden case: noise whose values are repeated in time and space."""
    video = recipe_tensor(f"input:{case['name']}", case["input_seed_shape"], 1.0)
    for axis, times in zip((2, 3, 4), case["input_repeat"], strict=True):
        video = video.repeat_interleave(times, axis)
    assert list(video.shape) == case["input"]
    return video


def fan_in_state(shapes: dict[str, list[int]], se_scale: float) -> dict[str, torch.Tensor]:
    """The weights of PECoP's golden outputs: tensors of two or more axes keep the size of signals; adapter scales (se) have
    a scale of their own."""
    state = recipe_state(shapes)
    for name, shape in shapes.items():
        if name.endswith(".se"):
            state[name] = recipe_tensor(name, shape, se_scale)
        elif len(shape) >= 2:
            state[name] = recipe_tensor(name, shape, (2 * shape[0] / math.prod(shape)) ** 0.5)
    return state


def follow(
    step: Step,
    batches: list[Batch],
    case: dict,
    own_names: dict[str, str],
    rates: list[float],
    tolerance: float = 1e-6,
    of_changes: float = 1e-6,
) -> None:
    """Run the optimizer steps of an original's trajectory in float64 and compare loss, gradient norm and every parameter to
    `tolerance`, and how far each parameter moved to `of_changes`. `own_names` maps the original's parameter names to ours."""
    own = dict(step.model.named_parameters())
    parameters = {name: own[own_names[name]] for name in case["norms"] if name not in case.get("rounding_noise", ())}
    start = {name: p.detach().clone() for name, p in parameters.items()}
    state = {name: t.clone() for name, t in step.model.state_dict().items() if isinstance(t, torch.Tensor)}
    step.model.train()
    for number, (batch, rate) in enumerate(zip(batches, rates, strict=True)):
        found = step(batch, rate, number)
        assert found["loss"] == pytest.approx(case["loss"][number], rel=tolerance), number
        assert found["grad_norm"] == pytest.approx(case["gradient_norm"][number], rel=tolerance), number
        for name, p in parameters.items():
            assert float(p.detach().norm()) == pytest.approx(
                case["norms"][name][number], rel=tolerance, abs=1e-3 * tolerance
            ), name
            change = float((p.detach() - start[name]).norm())
            assert change == pytest.approx(case["changes"][name][number], rel=of_changes, abs=1e-9), name
    fixed = [own_names[name] for name in case.get("unchanged", ())]
    if "running_after" not in case:
        fixed += [name for name in state if "running_" in name]
    after = step.model.state_dict()
    assert all(torch.equal(after[name], state[name]) for name in fixed)


def compare_running(model: torch.nn.Module, case: dict, own_names: dict[str, str], tolerance: float = 1e-6) -> None:
    """Compare the running statistics after the steps of a trajectory to `tolerance`."""
    buffers = dict(model.named_buffers())
    for name, expected in case["running_after"].items():
        if name == "others":
            continue
        found = buffers[own_names[name]]
        if name.endswith("num_batches_tracked"):
            assert int(found) == expected, name
        else:
            assert float(found.norm()) == pytest.approx(expected["norm"], rel=tolerance), name
            first = found[: len(expected["first"])].tolist()
            assert first == pytest.approx(expected["first"], rel=tolerance, abs=tolerance * expected["norm"]), name


def golden(shared: Path, name: str):
    return json.loads((shared / "golden" / f"{name}.json").read_text())


def difference(found: torch.Tensor, expected) -> float:
    expected = torch.tensor(expected)
    return ((found - expected).abs().max() / expected.abs().max()).item()
