"""TSM: the outputs, gradients and optimizer steps of the original, and its weight files."""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from data_preparation.common.errors import UserError
from tests.conftest import SHARED
from tests.golden import compare_running, difference, follow, golden, recipe_tensor, recipe_video, scaled_state
from tests.small import config_of
from training.backbones.tsm.network import TSM, pool_frames, shift
from training.data.batch import Batch
from training.data.facts import DataFacts
from training.engine.step import Step
from training.methods import build_method
from training.model import ScoringModel, build_model
from training.rows import set_batch_norm
from training.runtime.ranks import Ranks

PLACES = {"blockres": "residual", "block": "block"}


@cache
def reference(name: str = "tsm") -> dict:
    return golden(SHARED, name)


def network(case: dict) -> TSM:
    """The network of a golden case, without weights."""
    c = case["config"]
    depth = c["base_model"].removeprefix("resnet")
    return TSM(depth, shift_place=PLACES[c["shift_place"]], temporal_pool=c.get("temporal_pool", False))


def test_the_shift_alone_is_the_originals(shared: Path):
    for case in reference()["shift_cases"]:
        x = recipe_tensor(f"input:{case['name']}", case["input"], 1.0)
        assert difference(shift(x, case["n_segment"], case["fold_div"]), case["output"]) < 1e-6
    (case,) = reference()["temporal_pool_cases"]
    x = recipe_tensor(f"input:{case['name']}", case["input"], 1.0)
    assert difference(pool_frames(x, case["n_segment"]), case["output"]) < 1e-6


@pytest.mark.parametrize("index", range(4))
def test_the_network_is_the_originals(shared: Path, index: int):
    case = reference()["cases"][index]
    model = network(case).eval()
    state = scaled_state(case["state_dict"], 1.0)
    assert model.load_pretrained(state) == ["classifier dropped"]
    shifted = {f"{name}{'' if model.shifts_blocks else '.conv1'}" for name in model.shifted}
    assert shifted == {name.removeprefix("base_model.").replace(".net.", ".") for name in case["shifted"]}
    weight, bias = state["new_fc.weight"], state["new_fc.bias"]
    assert sum(p.numel() for p in [*model.parameters(), weight, bias]) == case["parameters"]
    for name, maps in model.end_points(video := recipe_video(case)):
        known = case["stages"][name]
        assert list(maps.shape) == known["shape"]
        assert maps.norm().item() == pytest.approx(known["norm"], rel=1e-4)
        assert maps.flatten()[:8].tolist() == pytest.approx(known["head"], rel=1e-3, abs=1e-4)
    features = model(video)
    assert difference(features.detach().norm(dim=2), case["frame_feature_norm"]) < 1e-4
    assert difference(features.detach().mean(dim=1)[:, :16], case["feature_mean_over_frames_first16"]) < 1e-4
    logits = F.linear(features, weight, bias)
    assert difference(logits.detach(), case["frame_logits"]) < 1e-4
    output = logits.mean(dim=1)
    assert difference(output.detach(), case["output"]) < 1e-4
    output.square().sum().backward()
    for name, norm in case.get("gradient_norms_of_sum_of_squared_output", {}).items():
        if not name.startswith("new_fc."):
            found = model.get_parameter(name.replace(".net.", ".")).grad
            assert found.norm().item() == pytest.approx(norm, rel=1e-3), name


@pytest.mark.parametrize("index", [pytest.param(0, marks=pytest.mark.slow), 1, 2])
def test_optimizer_steps_are_the_originals(shared: Path, index: int):
    """In float64, through the step of the engine: parameter groups with their rates and decay, clipping, and all batch norms
    trained or only the first."""
    case = reference("trajectories_tsm")["cases"][index]
    backbone = network(case)
    backbone.prepare = lambda clip, mean, std: clip
    config = config_of(
        "tsm",
        "classify",
        head_dropout=0.0,
        head_on_each=True,
        optimizer="SGD",
        batch_size=case["batch"],
        learning_rate=5 * case["lr"],
        weight_decay=case["groups"][0]["weight_decay"],
        backbone_lr_scale=0.2,  # the classifier has five times the rate of the backbone
        bias_lr_scale=2.0,
        decay_of="weights",
        clip_grad=case["clip_gradient"] or 0.0,
    )
    classes = tuple(map(str, range(case["config"]["num_class"])))
    method = build_method(config, backbone.feature_dim, DataFacts(classes))
    model = ScoringModel(backbone, method, trains_batch_norm="first" if case["partial_bn"] else True)
    originals = {
        f"backbone.{name}": name.replace(".conv1.", ".conv1.net.") if ".layer" in name else name
        for name in backbone.state_dict()
    } | {"method.head.1.weight": "new_fc.weight", "method.head.1.bias": "new_fc.bias"}
    shapes = {theirs: list(model.state_dict()[ours].shape) for ours, theirs in originals.items()}
    state = scaled_state(shapes, 1.0)
    model.load_state_dict({ours: state[theirs] for ours, theirs in originals.items()}, strict=False)
    model.double()
    set_batch_norm(model, group=case["batch"], together=True)
    clips = recipe_video(case).double().split(case["batch"])
    labels = [{"label": torch.tensor(row)} for row in case["labels"]]
    batches = [
        Batch({"clip": clip}, {}, label, torch.arange(len(clip))) for clip, label in zip(clips, labels, strict=True)
    ]
    step = Step(model, config, Ranks(), torch.device("cpu"))
    rates = [row[6] for row in case["learning_rates"]]
    # the first convolution has a group of its own in the original, with the factors of all others
    found, expected = Counter(), Counter()
    for group in step.optimizer.param_groups:
        found[round(group["rate"], 9), group["weight_decay"]] += len(group["params"])
    for group in case["groups"]:
        if group["tensors"]:
            expected[round(group["lr"] / rates[0], 9), group["weight_decay"]] += group["tensors"]
    assert found == expected
    names = {theirs: ours for ours, theirs in originals.items()}
    case = {**case, "gradient_norm": case.get("gradient_norm_before_clipping", case["gradient_norm"])}
    follow(step, batches * case["epochs"], case, names, rates)
    compare_running(model, case, names)


def test_released_files_and_resnets_of_timm_start_it(tmp_path: Path):
    config = config_of("tsm", resnet_depth="18", resnet_width=8, pretrained_model=str(tmp_path / "w.pth"))
    own = TSM("18", 8).base_model.state_dict()
    released = {f"module.base_model.{name.replace('conv1', 'conv1.net') if 'layer' in name else name}": t for name, t in own.items()}  # fmt: skip
    for content in (
        {"epoch": 3, "state_dict": {**released, "module.new_fc.weight": torch.zeros(4, 64)}},
        {**own, "fc.weight": torch.zeros(1000, 64), "fc.bias": torch.zeros(1000)},
    ):
        torch.save(content, tmp_path / "w.pth")
        model = build_model(config)
        assert all(torch.equal(t, own[n]) for n, t in model.backbone.base_model.state_dict().items())
        assert model.input_scale == "imagenet"
    torch.save({n: t for n, t in own.items() if n != "layer2.0.conv1.weight"}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"1 missing \(base_model.layer2.0.conv1.weight"):
        build_model(config)


def test_resnet_101_shifts_in_every_second_block():
    assert len(TSM("101", 8).shifted) == 2 + 2 + 12 + 2
