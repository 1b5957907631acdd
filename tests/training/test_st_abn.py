"""ST-ABN: the outputs, attention maps, gradients and optimizer steps of both public codes, and its weight files."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

from data_preparation.common.errors import UserError
from tests.conftest import SHARED
from tests.golden import compare_running, difference, follow, golden, recipe_video, scaled_state
from tests.small import DIVES, batch_of, config_of, tiny_config
from training.backbones.st_abn.network import CLASSIFIERS, ORIGINAL, STABN, STAGES_OF_RESNET
from training.backbones.tsm.network import TSM
from training.config import TrainConfig
from training.data.batch import Batch, Tensors
from training.data.facts import DataFacts
from training.engine.step import Step
from training.methods import build_method
from training.methods.abn.method import TwoBranches
from training.model import ScoringModel, build_model
from training.rows import set_batch_norm
from training.runtime.ranks import Ranks

OF_ORIGINAL = {"necks.att_head.fc": "fc_att_out", "cls_head.fc_cls": "fc"}


@cache
def reference(name: str = "st_abn") -> dict:
    return golden(SHARED, name)


def plain_name(name: str) -> str:
    """The name of a parameter of the authors' first code in the plain code."""
    path, _, kind = name.rpartition(".")
    if path in OF_ORIGINAL:
        return f"{OF_ORIGINAL[path]}.{kind}"
    first, _, rest = name.removeprefix("backbone.").partition(".")
    return f"{ORIGINAL.get(first, first)}.{rest}"


def config_for(case: dict, **flags) -> TrainConfig:
    frames = case["config"].get("sample_duration") or case["config"]["nsegments"]
    channels = case["config"]["num_classes"]
    depth = case["net"].removeprefix("abn_").removeprefix("resnet")
    given = {"frame_num": frames, "attention_channels": channels, "resnet_depth": depth, "branch_dropout": 0.0}
    return config_of("st_abn", "abn", attention_relu=case.get("code") == "O", **given, **flags)


def branches(config: TrainConfig, backbone: STABN, state: Tensors) -> TwoBranches:
    """Both branches with the weights of a golden file. The attention classifier of the plain code always has 174 outputs."""
    classes = tuple(map(str, range(len(state["fc.bias"]))))
    method = build_method(config, backbone.feature_dim, DataFacts(classes))
    assert isinstance(method, TwoBranches)
    method.fc_att_out = nn.Linear(method.fc_att_out.in_features, len(state["fc_att_out.bias"]))
    method.load_state_dict({name: t for name, t in state.items() if name.startswith(CLASSIFIERS)})
    return method


def network(config: TrainConfig) -> STABN:
    return STABN(
        config.resnet_depth, frames=config.frame_num, channels=config.attention_channels, relu=config.attention_relu
    )


@pytest.mark.parametrize("index", [pytest.param(0, marks=pytest.mark.slow), 1, 2, 3])
def test_the_network_is_the_originals(shared: Path, index: int):
    case = reference()["cases"][index]
    config = config_for(case)
    state = scaled_state(case["state_dict"], 1.0)
    backbone = network(config).eval()
    # a weight file of the first code comes without its prefix, see build_model
    of_backbone = {
        n.removeprefix("backbone."): t for n, t in state.items() if not n.startswith(("necks.", "cls_head."))
    }
    assert backbone.load_pretrained(of_backbone) == ["classifiers dropped"]
    method = branches(config, backbone, {plain_name(name): t for name, t in state.items()}).eval()
    assert sum(p.numel() for part in (backbone, method) for p in part.parameters()) == case["parameters"]

    seen: dict[str, torch.Tensor] = {}
    for name in ("layer3", "layer_att_common", "conv_att_mechanism", "layer4"):
        backbone.get_submodule(name)[-1].register_forward_hook(
            lambda _, __, output, name=name: seen.update({name: output})
        )
    # in float64, because some gradients are so small that float32 changes them by a thousandth
    for part in (backbone, method):
        part.double()
    video = recipe_video(case).double()
    outputs = method.encode(backbone, video)
    maps = backbone.with_maps(video)[1]
    seen["conv_att_common"] = maps["attention"]
    for name, known in case["stages"].items():
        name = plain_name(f"{name}.").rstrip(".").removesuffix(".1")
        if name in seen:
            assert list(seen[name].shape) == known["shape"], name
            assert seen[name].norm().item() == pytest.approx(known["norm"], rel=1e-4), name
            assert seen[name].flatten()[:8].tolist() == pytest.approx(known["head"], rel=1e-3, abs=1e-4), name
    spatial, known = maps["spatial_attention"].detach(), case["spatial_attention"]
    assert list(spatial.shape) == known["shape"]
    assert difference(spatial[0, 0, 0], known["first_frame_first_sample"]) < 1e-4
    assert difference(spatial[:, 0].flatten(2).norm(dim=2), known["norm_per_frame"]) < 1e-4
    assert difference(maps["temporal_attention"].detach(), case["temporal_attention"]) < 1e-4
    assert difference(outputs["logits"].detach(), case["perception_logits"]) < 1e-4
    assert difference(outputs["attention_logits"].detach(), case["attention_logits"]) < 1e-4
    if "gradient_norms_of_sum_of_squared_logits" in case:
        sum(t.square().sum() for t in outputs.values()).backward()
        for name, norm in case["gradient_norms_of_sum_of_squared_logits"].items():
            owner = method if name.startswith(CLASSIFIERS) else backbone
            assert owner.get_parameter(name).grad.norm().item() == pytest.approx(norm, rel=1e-3), name


@pytest.mark.parametrize("index", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_optimizer_steps_are_the_originals(shared: Path, index: int):
    """In float64, through the step of the engine: both cross-entropies, Nesterov momentum, and clipping in the second case."""
    case = reference("trajectories_st_abn")["cases"][index]
    flags = {"optimizer": "SGD", "nesterov": True, "batch_size": case["batch"], "learning_rate": 0.01}
    config = config_for(case, weight_decay=5e-4, clip_grad=case.get("clip_gradient", 0.0), **flags)
    backbone = network(config)
    backbone.prepare = lambda clip, mean, std: clip
    shapes = {name: list(t.shape) for name, t in backbone.state_dict().items()}
    channels, classes = config.attention_channels, case["config"]["num_classes"]
    shapes |= {
        "fc.weight": [classes, backbone.feature_dim],
        "fc.bias": [classes],
        "conv_att_out.0.weight": [channels, channels, 1, 1, 1],
        "fc_att_out.weight": [174, channels * config.frame_num],
        "fc_att_out.bias": [174],
    }
    state = scaled_state(shapes, 1.0)
    backbone.load_pretrained(state)
    model = ScoringModel(backbone, branches(config, backbone, state), trains_batch_norm=True).double()
    set_batch_norm(model, group=case["batch"], together=True)
    clips = recipe_video(case).double().split(case["batch"])
    batches = [
        Batch({"clip": clip}, {}, {"label": torch.tensor(row)}, torch.arange(len(clip)))
        for clip, row in zip(clips, case["labels"], strict=True)
    ]
    names = {name: f"{'method' if name.startswith(CLASSIFIERS) else 'backbone'}.{name}" for name in shapes}
    case = {**case, "gradient_norm": case.get("gradient_norm_before_clipping", case["gradient_norm"])}
    step = Step(model, config, Ranks(), torch.device("cpu"))
    follow(step, batches * case["epochs"], case, names, [rate for (rate,) in case["learning_rates"]])
    compare_running(model, case, names)


def test_resnets_of_images_start_it(tmp_path: Path):
    image = TSM("50", 8).base_model.state_dict()
    torch.save({**image, "fc.weight": torch.zeros(10, 256), "fc.bias": torch.zeros(10)}, tmp_path / "resnet.pth")
    flags = {"resnet_width": 8, "frame_num": 4, "attention_channels": 6}
    model = build_model(config_of("st_abn", "regression", pretrained_model=str(tmp_path / "resnet.pth"), **flags))
    own = model.backbone.state_dict()
    for name, weight in image.items():
        assert name.startswith(STAGES_OF_RESNET)
        assert torch.allclose(own[name].sum(dim=2) if weight.ndim == 4 else own[name], weight, atol=1e-6)


def test_both_branches_learn_scores():
    config = tiny_config("st_abn", "abn", predicts="score", batch_norm="trained", optimizer="AdamW", bn_group=2)
    model = build_model(config)
    step = Step(model, config, Ranks(), torch.device("cpu"))
    batch = batch_of(config, model.method)
    model.train()
    losses = [step(batch, 1e-3, number) for number in range(20)]
    assert losses[0]["loss"] == pytest.approx(losses[0]["perception"] + losses[0]["attention"])
    assert losses[-1]["loss"] < losses[0]["loss"]
    model.eval()
    assert model.method.predict(model(batch), batch.given)["score"].shape == (8,)


def test_classes_are_balanced_and_scores_cannot_be():
    method = build_method(tiny_config("st_abn", "abn", balance=True), 8, DataFacts(("fall", "landing")))
    actions = [dataclasses.replace(action, label=int(action.number > 1)) for action in DIVES]
    assert method.repeats(actions) == [3] * 2 + [1] * 6
    with pytest.raises(UserError, match="--balance True requires classes: give --predicts label"):
        tiny_config("st_abn", "abn", balance=True, predicts="score")
