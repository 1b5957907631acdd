"""Backbones: the originals' outputs, parameter names and costs; published weight files; and what every backbone owes."""

from __future__ import annotations

import json
import os
import pickle
import zlib
from pathlib import Path

import pytest
import torch

from data_preparation.cli import UserError
from data_preparation.dives import Dive
from training.backbones import build_backbone
from training.backbones._weights import read_state_dict
from training.backbones.c3d import C3D, window_starts
from training.backbones.timesformer import TimeSformer, resize_pos_embed, resize_time_embed
from training.config import ATTENTION_TYPES, TrainConfig
from training.cost import multiply_adds
from training.model import build_model


def recipe_tensor(name: str, shape, scale: float) -> torch.Tensor:
    """The golden outputs' weights and inputs, rebuilt from names alone."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.randn(tuple(shape), generator=generator) * scale


def recipe_state(shapes: dict[str, list[int]], scale: float = 0.05) -> dict[str, torch.Tensor]:
    return {
        name: recipe_tensor(name, shape, scale) + float(name.endswith(".weight") and len(shape) == 1)
        for name, shape in shapes.items()
    }


def golden(shared: Path, name: str):
    return json.loads((shared / "golden" / f"{name}.json").read_text())


def difference(found: torch.Tensor, expected) -> float:
    expected = torch.tensor(expected)
    return ((found - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("index", range(5))
def test_timesformer_is_the_original(shared: Path, index: int):
    case = golden(shared, "timesformer_small")[index]
    original, (_, _, frames, size, _) = case["config"], case["input"]
    model = TimeSformer(
        size, original["patch_size"], frames, original["embed_dim"], original["depth"], original["num_heads"],
        original["attention_type"], num_classes=original["num_classes"],
    ).eval()  # fmt: skip
    state = recipe_state(case["state_dict"])
    assert set(model.state_dict()) == set(state)
    if frames != original["num_frames"]:
        state["time_embed"] = resize_time_embed(state["time_embed"], frames)
    if size != original["img_size"]:
        state["pos_embed"] = resize_pos_embed(state["pos_embed"], model.patch_embed.grid_size, "nearest")
    model.load_state_dict(state)
    video = recipe_tensor("input:" + case["name"], case["input"], 1.0).requires_grad_()
    output = model(video)[:, 0]
    output.square().sum().backward()
    assert difference(output.detach(), case["output"]) < 1e-4
    assert video.grad.norm().item() == pytest.approx(case["input_gradient_norm"], rel=1e-4)
    gradients = dict(model.named_parameters())
    resized = {"time_embed"} if frames != original["num_frames"] else set()
    resized |= {"pos_embed"} if size != original["img_size"] else set()
    for name, norm in case["gradient_norms"].items():
        if name not in resized:
            assert gradients[name].grad.norm().item() == pytest.approx(norm, rel=1e-4), name
    model.head = torch.nn.Identity()
    assert difference(model(video)[:, 0].detach(), case["features"]) < 1e-4


def test_timesformer_base_loads_a_released_file(shared: Path, tmp_path: Path):
    base, loaded = golden(shared, "timesformer_base")
    state = recipe_state(base["state_dict"], base["scale"])
    model = TimeSformer(num_classes=400).eval()
    assert sum(p.numel() for p in model.parameters()) == base["parameters"]
    model.load_state_dict(state)
    with torch.no_grad():
        assert (
            difference(model(recipe_tensor("input:" + base["name"], base["input"], 1.0))[:, 0], base["output"]) < 1e-4
        )
    file = tmp_path / "TimeSformer.pyth"
    released = {
        "epoch": 15,
        "model_state": {f"model.{k}": v for k, v in state.items()},
        "optimizer_state": {},
        "cfg": "TRAIN:",
    }
    torch.save(released, file)
    longer = build_model(TrainConfig(frame_num=16, pretrained_model=str(file))).backbone.eval()
    with torch.no_grad():
        found = longer(recipe_tensor("input:" + loaded["name"], loaded["input"], 1.0))[:, 0]
    assert difference(found, loaded["features"]) < 1e-4


@pytest.mark.parametrize("index", [0, 1])
def test_c3d_is_the_original(shared: Path, index: int):
    file = golden(shared, "c3d_avg")
    case = file["cases"][index]
    state = recipe_state(file["state_dict"], file["scale"])
    model = C3D(112, "reference")
    model.load_state_dict({k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")})
    with torch.no_grad():
        features = model(recipe_tensor("input:" + case["name"], case["input"], 1.0))
    assert features.shape == (case["input"][0], case["windows"], 8192)
    expected = torch.tensor(case["clip_feature_head"])
    assert difference(features[..., : expected.shape[-1]], case["clip_feature_head"]) < 1e-4


def test_windows():
    assert window_starts(103, "reference") == [0, 16, 32, 48, 64, 80]
    assert window_starts(103, "full") == [0, 16, 32, 48, 64, 80, 87]
    assert window_starts(16, "full") == [0]
    assert window_starts(48, "full") == [0, 16, 32]


@pytest.mark.parametrize(
    ("flags", "gmac"),
    [
        ({}, 196),
        ({"attention_type": "joint_space_time"}, 180),
        ({"attention_type": "space_only"}, 141),
        ({"model": "c3d", "frame_num": 103, "spatial_size": 112, "window_layout": "reference"}, 231),
    ],
)
def test_costs_are_the_originals(flags: dict, gmac: int):
    config = TrainConfig(**flags)
    assert multiply_adds(build_model(config), config) / 1e9 == pytest.approx(gmac, abs=0.5)


SMALL = {
    "timesformer": {"spatial_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 2, "frame_num": 4},
    "c3d": {"spatial_size": 32, "frame_num": 20},
}


def clips(count: int, frames: int, size: int = 32) -> torch.Tensor:
    """(count, frames, 3, size, size) uint8 noise."""
    return torch.randint(0, 256, (count, frames, 3, size, size), generator=torch.Generator().manual_seed(0)).byte()


@pytest.mark.parametrize("decoder", [False, True])
@pytest.mark.parametrize("method", TrainConfig.__dataclass_fields__["method"].metadata["choices"])
@pytest.mark.parametrize("name", TrainConfig.__dataclass_fields__["model"].metadata["choices"])
def test_every_backbone_runs_with_every_method(name: str, method: str, decoder: bool):
    config = TrainConfig(model=name, method=method, use_decoder=decoder, dropout=(0, 0), drop_path=0, **SMALL[name])
    model = build_model(config).eval()
    batch = {"clip": clips(3, config.frame_num)}
    features = model.backbone(torch.rand(3, 3, config.frame_num, 32, 32))
    assert features.ndim == 3
    assert features.shape[0] == 3
    assert features.shape[2] == model.backbone.feature_dim
    dives = [Dive(1, i, 1, 99, 3.0 + i / 10, 60.0 + 5 * i, i % 3, 0, i % 4, i, i) for i in range(3)]
    rows = [model.method.targets(dive) for dive in dives]
    targets = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    outputs = model(batch)
    if model.method.fits_at_once:
        model.method.fit(outputs, targets, outputs, targets)
        assert not any(p.requires_grad for p in model.parameters())
    else:
        model.method.loss(outputs, targets)["loss"].backward()
        sum(t.sum() for t in model(batch).values()).backward()
        assert all(p.grad is not None for p in model.parameters())
    scores = model.method.scores(outputs).detach()
    assert scores.shape == (3,)
    assert all(len(column) == 3 for column in model.method.columns(outputs).values())
    # a prediction does not depend on its batch mates
    alone = model.method.scores(model({"clip": batch["clip"][1:2]})).detach()
    assert float(alone) == pytest.approx(float(scores[1]), abs=1e-3)


def test_scores_are_not_rounded_to_half_precision():
    model = build_model(TrainConfig(**SMALL["timesformer"])).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model({"clip": clips(16, 4)})["execution_and_difficulty"]
    assert outputs.dtype == torch.float32
    assert not torch.equal(outputs, outputs.to(torch.bfloat16).float())


def test_freeze_trains_the_head_only():
    model = build_model(TrainConfig(freeze=True, **SMALL["timesformer"]))
    model.train()
    assert not any(m.training for m in model.backbone.modules())
    assert {n.split(".")[0] for n, p in model.named_parameters() if p.requires_grad} == {"method"}


@pytest.mark.parametrize("attention", ATTENTION_TYPES)
def test_flags_shape_the_network(attention: str):
    config = TrainConfig(
        attention_type=attention, spatial_size=48, patch_size=8, embed_dim=40, depth=5, num_heads=5, frame_num=6
    )
    backbone = build_backbone(config)
    assert len(backbone.blocks) == 5
    assert backbone.patch_embed.proj.weight.shape == (40, 3, 8, 8)
    assert backbone.pos_embed.shape == (1, 37, 40)
    assert backbone(torch.rand(1, 3, 6, 48, 48)).shape == (1, 1, 40)


# ------------------------------------------------------------------------------------------------------ weight files


def test_c3d_pickle_loads(tmp_path: Path):
    state = {n: recipe_tensor(n, t.shape, 0.02) for n, t in C3D(112).state_dict().items()}
    file = {**state, "fc6.weight": torch.zeros(4, 4), "fc7.bias": torch.zeros(4), "fc8.weight": torch.zeros(4, 4)}
    torch.save(file, tmp_path / "c3d.pickle")
    config = TrainConfig(model="c3d", frame_num=16, spatial_size=112, pretrained_model=str(tmp_path / "c3d.pickle"))
    assert torch.equal(build_model(config).backbone.conv5b.bias, state["conv5b.bias"])


def test_image_weights_start_the_temporal_part(tmp_path: Path):
    config = TrainConfig(**SMALL["timesformer"])
    state = {n: t for n, t in build_backbone(config).state_dict().items() if "temporal" not in n and n != "time_embed"}
    torch.save(state, tmp_path / "vit.pth")
    block = build_model(
        TrainConfig(pretrained_model=str(tmp_path / "vit.pth"), **SMALL["timesformer"])
    ).backbone.blocks[1]
    assert torch.equal(block.temporal_attn.qkv.weight, block.attn.qkv.weight)
    assert torch.equal(block.temporal_norm1.bias, block.norm1.bias)


def test_weights_that_do_not_fit_are_listed(tmp_path: Path):
    state = build_backbone(TrainConfig(**SMALL["timesformer"])).state_dict()
    state["blocks.7.norm1.weight"] = torch.zeros(24)
    state["norm.weight"] = torch.zeros(25)
    del state["cls_token"]
    torch.save(state, tmp_path / "odd.pth")
    with pytest.raises(UserError) as error:
        build_model(TrainConfig(pretrained_model=str(tmp_path / "odd.pth"), **SMALL["timesformer"]))
    for word in ("cls_token", "blocks.7.norm1.weight", "norm.weight (25,) for (24,)"):
        assert word in str(error.value)


class Malicious:
    def __reduce__(self):
        return (os.system, ("touch pwned",))


def test_weight_files_are_not_trusted(tmp_path: Path):
    torch.save({"model_state": {"w": torch.zeros(1)}, "x": Malicious()}, tmp_path / "evil.pyth")
    (tmp_path / "plain.pickle").write_bytes(pickle.dumps(Malicious()))
    (tmp_path / "page.pyth").write_text("<html>sign in</html>")
    (tmp_path / "empty.pyth").write_bytes(b"")
    torch.save({"epoch": 3}, tmp_path / "none.pyth")
    for name in ("evil.pyth", "plain.pickle", "page.pyth", "empty.pyth", "none.pyth", "missing.pyth"):
        with pytest.raises(UserError, match=name):
            read_state_dict(tmp_path / name)
    assert not Path("pwned").exists()
