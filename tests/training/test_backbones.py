"""Backbones: the originals' outputs, parameter names and costs; and published weight files."""

from __future__ import annotations

import dataclasses
import os
import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch
from timm.models.vision_transformer import VisionTransformer

from data_preparation.common.errors import UserError
from tests.golden import difference, golden, recipe_state, recipe_tensor
from tests.small import config_of
from training.backbones import build_backbone
from training.backbones._weights import read_state_dict
from training.backbones.c3d.network import C3D
from training.backbones.timesformer.flags import ATTENTION_TYPES
from training.backbones.timesformer.network import TimeSformer, resize_pos_embed, resize_time_embed
from training.backbones.windows import LAYOUTS
from training.config import INPUT_SCALES, TrainConfig
from training.cost import multiply_adds
from training.data.batch import Batch
from training.data.transforms import to_video
from training.model import build_model


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


@pytest.mark.slow
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


def test_timesformer_starts_as_the_original_does():
    model = TimeSformer(width=192, depth=12, num_heads=3, drop_path=0.1)
    rates = [block.drop_path.rate for block in model.blocks]
    assert rates == pytest.approx([0.1 * i / 11 for i in range(12)])
    assert model.time_embed.abs().max() == 0
    assert model.blocks[3].attn.qkv.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.pos_embed.std().item() == pytest.approx(0.02, rel=0.05)
    assert [bool(block.temporal_fc.weight.any()) for block in model.blocks] == [True] + [False] * 11
    assert not any(block.attn.qkv.bias.any() for block in model.blocks)


def test_weights_are_drawn_in_one_thread(monkeypatch: pytest.MonkeyPatch):
    """Two threads do not always draw the same last digits (training.runtime.seeding.one_thread)."""
    threads = []
    monkeypatch.setattr(
        "training.model.build_backbone", lambda c: (threads.append(torch.get_num_threads()), build_backbone(c))[1]
    )
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    build_model(TrainConfig(**SMALL["timesformer"]))
    assert (threads, torch.get_num_threads()) == ([1], 2)
    torch.set_num_threads(before)


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
    assert LAYOUTS["reference"].starts(103) == [0, 16, 32, 48, 64, 80]
    assert LAYOUTS["full"].starts(103) == [0, 16, 32, 48, 64, 80, 87]
    assert LAYOUTS["full"].starts(16) == [0]
    assert LAYOUTS["full"].starts(48) == [0, 16, 32]
    assert LAYOUTS["10x16"].starts(103) == [0, 10, 20, 30, 40, 50, 60, 70, 80, 86]
    assert LAYOUTS["10x16_end"].starts(103) == [0, 10, 20, 30, 40, 50, 60, 70, 80, 87]
    assert LAYOUTS["20x8"].starts(103) == list(range(0, 96, 5))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "gmac"),
    [
        # the two linear layers after temporal attention are multiplied first: a product of the weights, one less for each token
        ({}, 196 - 12 * (8 * 196 * 768**2 - 768**3) / 1e9),
        ({"attention_type": "joint_space_time"}, 180),
        ({"attention_type": "space_only"}, 141),
        ({"model": "c3d", "frame_num": 103, "spatial_size": 112, "window_layout": "reference"}, 231),
    ],
    ids=["divided", "joint", "space", "c3d"],
)
def test_costs_are_the_originals(flags: dict, gmac: int):
    config = TrainConfig(**flags)
    model = build_model(config)
    if config.model == "timesformer":  # all tokens leave the last block of the original
        model.backbone.blocks[-1].class_only = False
    assert multiply_adds(model, config) / 1e9 == pytest.approx(gmac, abs=0.5)


SMALL = {
    "timesformer": {"spatial_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 2, "frame_num": 4},
    "c3d": {"spatial_size": 32, "frame_num": 20},
}


def clips(count: int, frames: int, size: int = 32) -> torch.Tensor:
    """(count, frames, 3, size, size) uint8 noise."""
    return torch.randint(0, 256, (count, frames, 3, size, size), generator=torch.Generator().manual_seed(0)).byte()


def test_scores_are_not_rounded_to_half_precision():
    model = build_model(TrainConfig(**SMALL["timesformer"])).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(Batch({"clip": clips(16, 4)}, {}, {}, torch.arange(16)))["execution_and_difficulty"]
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


def test_a_vit_of_timm_starts_the_network(tmp_path: Path):
    """Space-only attention on one frame is a ViT: with timm's weights it computes what timm's network computes."""
    vit = VisionTransformer(
        img_size=32, patch_size=16, embed_dim=24, depth=2, num_heads=2, num_classes=5, drop_path_rate=0.0
    ).eval()
    for p in vit.parameters():
        torch.nn.init.normal_(p, std=0.2)
    safetensors.torch.save_file(vit.state_dict(), tmp_path / "vit.safetensors")
    flags = {**SMALL["timesformer"], "frame_num": 1, "pretrained_model": str(tmp_path / "vit.safetensors")}
    image = torch.rand(3, 3, 32, 32)
    expected = vit.forward_features(image)[:, 0]
    space_only = build_model(TrainConfig(attention_type="space_only", **flags)).backbone.eval()
    assert torch.allclose(space_only(image[:, :, None])[:, 0], expected, atol=1e-5)
    divided = build_model(TrainConfig(**flags)).backbone
    first, second = divided.blocks
    assert torch.equal(second.temporal_attn.proj.weight, vit.blocks[1].attn.proj.weight)
    assert torch.equal(second.temporal_norm1.weight, vit.blocks[1].norm1.weight)
    assert second.temporal_fc.weight.abs().max() == 0
    assert first.temporal_fc.weight.abs().max() > 0
    assert divided.time_embed.abs().max() == 0


def test_positions_are_resized_in_two_dimensions(tmp_path: Path):
    """A ramp from left to right stays a ramp. Resizing along the flattened grid would mix the rows."""
    ramp = torch.linspace(0, 1, 4).repeat(4, 1)  # 4 x 4 patches
    embed = torch.cat([torch.full((1, 1, 24), 7.0), ramp.reshape(1, 16, 1).expand(1, 16, 24)], dim=1)
    resized = resize_pos_embed(embed, (6, 6))
    assert resized.shape == (1, 37, 24)
    assert (resized[:, 0] == 7).all()
    grid = resized[0, 1:, 0].view(6, 6)
    assert torch.allclose(grid, grid[:1].expand(6, 6), atol=1e-5)  # the same in every row
    assert (grid[0].diff() > 0).all()
    with pytest.raises(UserError, match="not a square number"):
        resize_pos_embed(torch.zeros(1, 13, 24), (6, 6))
    config = TrainConfig(**SMALL["timesformer"])
    torch.save(build_backbone(config).state_dict(), tmp_path / "small.pth")
    larger = dataclasses.replace(config, spatial_size=48, pretrained_model=str(tmp_path / "small.pth"))
    assert build_model(larger).backbone.pos_embed.shape == (1, 10, 24)


def test_time_embeddings_are_resized_as_requested(tmp_path: Path):
    embed = torch.arange(8.0).view(1, 8, 1)
    assert resize_time_embed(embed, 4).flatten().tolist() == [0, 2, 4, 6]  # 96 -> 48 keeps every second
    assert resize_time_embed(embed, 16).flatten().tolist() == [i // 2 for i in range(16)]
    assert resize_time_embed(embed, 4, "linear").flatten().tolist() == [0.5, 2.5, 4.5, 6.5]
    config = TrainConfig(**SMALL["timesformer"])
    state = build_backbone(config).state_dict()
    state["time_embed"] = torch.randn(1, 4, 24)
    torch.save(state, tmp_path / "four.pth")
    for mode in ("nearest", "linear"):
        flags = {**SMALL["timesformer"], "frame_num": 6, "time_embed_resize": mode}
        longer = build_model(TrainConfig(pretrained_model=str(tmp_path / "four.pth"), **flags)).backbone
        assert torch.equal(longer.time_embed, resize_time_embed(state["time_embed"], 6, mode))


def scale_of(model) -> tuple[list[float], list[float]]:
    return model.input_mean.tolist(), model.input_std.tolist()


def test_weights_bring_their_normalisation(tmp_path: Path):
    config = TrainConfig(**SMALL["timesformer"])
    video = build_backbone(config).state_dict()
    torch.save(video, tmp_path / "video.pyth")
    torch.save({n: t for n, t in video.items() if "temp" not in n and n != "time_embed"}, tmp_path / "image.pth")
    torch.save(C3D(32).state_dict(), tmp_path / "c3d.pickle")
    c3d = {"model": "c3d", **SMALL["c3d"]}
    for flags, name in (
        ({}, "unit"),
        ({"pretrained_model": str(tmp_path / "video.pyth")}, "timesformer"),
        ({"pretrained_model": str(tmp_path / "image.pth")}, "vit"),
        ({"pretrained_model": str(tmp_path / "video.pyth"), "normalize": True}, "mtl_aqa"),
        ({"pretrained_model": str(tmp_path / "video.pyth"), "input_scale": "unit"}, "unit"),
        (c3d, "imagenet"),
        ({**c3d, "pretrained_model": str(tmp_path / "c3d.pickle")}, "imagenet"),
        ({**c3d, "input_scale": "0_255"}, "0_255"),
    ):
        model = build_model(config_of(**{**SMALL["timesformer"], **flags}))
        mean, std = INPUT_SCALES[name]
        assert scale_of(model) == (pytest.approx(mean), pytest.approx(std)), flags
    white = torch.full((1, 1, 3, 2, 2), 255, dtype=torch.uint8)
    assert to_video(white, model.input_mean, model.input_std).unique().tolist() == pytest.approx([255.0])
    # a checkpoint keeps it, whatever the flags of the network that it is loaded into
    other = build_model(TrainConfig(**SMALL["timesformer"]))
    other.load_state_dict(build_model(TrainConfig(normalize=True, **SMALL["timesformer"])).state_dict())
    assert scale_of(other)[0] == pytest.approx(INPUT_SCALES["mtl_aqa"][0])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cls_token", torch.zeros(1, 1, 24, dtype=torch.int64)),
        ("pos_embed", torch.zeros(30)),
        ("pos_embed", torch.zeros(1, 17, 30)),
        ("time_embed", torch.zeros(1, 0, 24)),
    ],
)
def test_embeddings_of_another_kind_are_listed_not_resized(tmp_path: Path, name: str, value: torch.Tensor):
    state = build_backbone(TrainConfig(**SMALL["timesformer"])).state_dict()
    torch.save({**state, name: value}, tmp_path / "odd.pth")
    with pytest.raises(UserError, match=f"with another (shape|dtype) .{name}"):
        build_model(TrainConfig(pretrained_model=str(tmp_path / "odd.pth"), **SMALL["timesformer"]))


def test_an_earlier_runs_checkpoint_starts_the_backbone(tmp_path: Path):
    earlier = build_model(TrainConfig(seed=3, normalize=True, **SMALL["timesformer"]))
    torch.save({"model": earlier.state_dict()}, tmp_path / "best.pt")
    flags = {**SMALL["timesformer"], "pretrained_model": str(tmp_path / "best.pt")}
    model = build_model(TrainConfig(method="multitask", **flags))
    assert all(torch.equal(p, model.backbone.get_parameter(n)) for n, p in earlier.backbone.named_parameters())
    assert scale_of(model) == scale_of(earlier)
    assert scale_of(build_model(TrainConfig(input_scale="unit", **flags)))[0] == [0, 0, 0]


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
    (tmp_path / "page.safetensors").write_text("<html>sign in</html>")
    torch.save({"epoch": 3}, tmp_path / "none.pyth")
    torch.save({1: torch.zeros(1)}, tmp_path / "numbered.pyth")
    torch.save({"w": torch.tensor([1.0, torch.nan])}, tmp_path / "nan.pyth")
    with pytest.raises(UserError, match=r"more than weights \(it refers to posix.system\)"):
        read_state_dict(tmp_path / "evil.pyth")
    for name in (
        "evil.pyth",
        "plain.pickle",
        "page.pyth",
        "empty.pyth",
        "none.pyth",
        "missing.pyth",
        "page.safetensors",
        "numbered.pyth",
        "nan.pyth",
        "missing.safetensors",
    ):
        with pytest.raises(UserError, match=name):
            read_state_dict(tmp_path / name)
    assert not Path("pwned").exists()
