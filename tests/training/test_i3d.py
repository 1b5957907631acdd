"""I3D: the originals' maps, features and running statistics, in both dialects of its weight files."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from data_preparation.common.errors import UserError
from tests.conftest import SHARED
from tests.golden import golden, recipe_state, recipe_tensor
from tests.small import config_of
from training.backbones.i3d.network import I3D, own_name, pad_same
from training.model import build_model
from training.rows import batch_part, gather_running_statistics, set_batch_norm, update_running_statistics

CASES = range(8)


@cache
def reference() -> dict:
    return golden(SHARED, "i3d")


def video(case: dict) -> torch.Tensor:
    """(batch, 3, frames, 224, 224) of the golden file's recipe."""
    given = case["input"]
    often, side = given["repeat_frames"], given["repeat_pixels"]
    shape = [given["batch"], 3, -(-given["frames"] // often), 224 // side, 224 // side]
    noise = recipe_tensor("input:" + given["name"], shape, 1.0)
    return (
        noise.repeat_interleave(often, 2)[:, :, : given["frames"]].repeat_interleave(side, 3).repeat_interleave(side, 4)
    )


def weights(names: str = "state_dict") -> dict[str, torch.Tensor]:
    return recipe_state(reference()[names], reference()["scale"])


def norm(tensor: torch.Tensor) -> float:
    return tensor.double().norm().item()


@pytest.mark.parametrize("index", CASES)
def test_every_end_point_is_the_originals(shared: Path, index: int):
    case = reference()["cases"][index]
    model = I3D(eps=case["eps"]).eval()
    model.load_pretrained(weights())
    with torch.no_grad():
        for name, maps in model.end_points(video(case)):
            if known := case.get("maps", {}).get(name):
                assert list(maps.shape) == known["shape"], name
                assert norm(maps) == pytest.approx(known["norm"], rel=1e-4), name
                assert maps.flatten()[: len(known["first"])].tolist() == pytest.approx(
                    known["first"], rel=1e-3, abs=1e-4
                )
        features = model.pool(maps)  # (batch, positions, 1024)
    if "features_norm" in case:
        assert norm(features) == pytest.approx(case["features_norm"], rel=1e-4)


def test_the_other_dialect_is_the_same_network(shared: Path):
    names = reference()["unit_map_hassony2_to_piergiaj"]
    parts = {"conv3d": "conv3d", "bn": "batch3d"}
    for ours, theirs in names.items():
        for part, own_part in parts.items():
            if not ours.startswith("conv3d_0c"):
                assert own_name(f"{theirs}.{part}.weight") == f"{ours}.{own_part}.weight"
    model = I3D()
    notes = model.load_pretrained(weights("piergiaj_state_dict"))
    assert notes == ["parameter names converted from the piergiaj port", "classifier dropped"]
    state = weights("piergiaj_state_dict")
    assert torch.equal(model.mixed_5c.branch_3[1].conv3d.weight, state["Mixed_5c.b3b.conv3d.weight"])
    assert sum(p.numel() for p in model.parameters()) == reference()["parameters"]["without_classifier"]


@pytest.mark.parametrize("dialect", ["hassony2", "piergiaj"])
def test_training_moves_the_running_statistics_as_the_originals(shared: Path, dialect: str):
    case = next(c for c in reference()["train_mode"] if dialect in c)
    known = case[dialect]
    model = I3D(eps=case["eps"], momentum=known["momentum"])
    model.load_pretrained(weights())  # the other dialect's code ran on the same weights under its names
    set_batch_norm(model, group=case["input"]["batch"], together=False)
    model.train()
    with torch.no_grad(), batch_part(0, 1, case["input"]["batch"]):
        features = model.pool(model.tail(model.stem(video(case))))
    for row, expected in zip(features[:, 0], case["features"], strict=True):
        assert norm(row) == pytest.approx(expected["norm"], rel=1e-4)
    update_running_statistics(gather_running_statistics(model, lambda numbers: numbers))
    state = model.state_dict()
    for name, expected in known["running"].items():
        found = state[name if dialect == "hassony2" else own_name(name)]
        assert norm(found) == pytest.approx(expected["norm"], rel=1e-4), name
        assert found[:4].tolist() == pytest.approx(expected["first"], rel=1e-3, abs=1e-5)


def test_gradients_are_the_originals(shared: Path):
    case = reference()["gradients"][0]
    model = I3D(eps=case["eps"]).eval()
    state = weights()
    model.load_pretrained(state)
    clip = video(case).requires_grad_()
    features = model.pool(model.tail(model.stem(clip)))
    weight, bias = (state[f"conv3d_0c_1x1.conv3d.{part}"] for part in ("weight", "bias"))
    logits = features @ weight.flatten(1).T + bias
    total = features.square().sum() + logits.mean(dim=1).square().sum()
    assert total.item() == pytest.approx(case["value"], rel=1e-4)
    total.backward()
    parameters = dict(model.named_parameters())
    for name, expected in case["gradient_norms"].items():
        if not name.startswith("conv3d_0c"):
            assert norm(parameters[name].grad) == pytest.approx(expected, rel=1e-3), name
    assert norm(clip.grad) == pytest.approx(case["input_gradient_norm"], rel=1e-3)


@pytest.mark.parametrize("layout", ["10x16", "10x16_end", "20x8", "full"])
def test_a_clip_of_103_frames_is_cut_into_windows(layout: str):
    model = I3D(layout).eval()
    with torch.no_grad():
        features = model(torch.rand(1, 3, 103, 32, 32))
    assert features.shape == (1, {"10x16": 10, "10x16_end": 10, "20x8": 20, "full": 7}[layout], 1024)


def test_padding_is_computed_from_the_size():
    for size in range(1, 20):
        for kernel, stride in ((7, 2), (3, 2), (3, 1), (2, 2), (1, 1)):
            x = torch.ones(1, 1, size, size, size)
            padded = pad_same(x, (kernel,) * 3, (stride,) * 3)
            assert (padded.shape[2] - kernel) // stride + 1 == -(-size // stride)


def test_a_released_core_checkpoint_starts_it(shared: Path, tmp_path: Path):
    """A wrapper with base_model, the names of a replica, and a numpy number beside them."""
    state = {
        f"module.backbone.{name}": tensor for name, tensor in weights().items() if not name.startswith("conv3d_0c")
    }
    torch.save({"base_model": state, "regressor": {}, "epoch": 3, "rho_best": np.float64(0.95)}, tmp_path / "core.pth")
    config = config_of(
        "i3d", frame_num=16, spatial_size=32, window_layout="full", pretrained_model=str(tmp_path / "core.pth")
    )
    model = build_model(config)
    assert torch.equal(
        model.backbone.conv3d_1a_7x7.batch3d.running_mean, weights()["conv3d_1a_7x7.batch3d.running_mean"]
    )
    del state["module.backbone.mixed_4b.branch_0.conv3d.weight"]
    torch.save({"base_model": state}, tmp_path / "part.pth")
    with pytest.raises(UserError, match=r"1 missing \(mixed_4b.branch_0.conv3d.weight"):
        build_model(
            config_of(
                "i3d", frame_num=16, spatial_size=32, window_layout="full", pretrained_model=str(tmp_path / "part.pth")
            )
        )
