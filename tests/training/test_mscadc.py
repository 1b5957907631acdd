"""MSCADC: the outputs, gradients and optimizer steps of the original, and its heads under the conditions of every method."""

from __future__ import annotations

import dataclasses
import math
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from data_preparation.actions import ATTRIBUTE_CLASSES
from data_preparation.common.errors import UserError
from tests.conftest import SHARED
from tests.golden import compare_running, difference, follow, golden, recipe_tensor, recipe_video, scaled_state
from tests.small import batch_of, config_of, tiny_config
from training.backbones.base import Backbone
from training.backbones.mscadc.network import MSCADC
from training.data.batch import Batch, Tensors, chunk_batch
from training.engine.step import Step
from training.methods.multitask.context import WIDTH, caption_vector
from training.methods.multitask.method import ContextMultitask
from training.methods.multitask.s2vt import S2VT, caption_mask
from training.model import ScoringModel, build_model
from training.rows import RowBatchNorm, set_batch_norm
from training.runtime.ranks import Ranks

CPU = torch.device("cpu")
ATTRIBUTE = {"position": "position", "armstand": "armstand", "rot_type": "rotation_type", "ss_no": "ss_no", "tw_no": "tw_no"}  # fmt: skip
PARTS = {"score": "score", "dive": "attributes", "caption": "caption"}


@cache
def reference(name: str = "mscadc") -> dict:
    return golden(SHARED, name)


def own_name(name: str) -> str:
    """The name of an original's parameter in the model."""
    part, _, rest = name.partition(".")
    if part == "body":
        return f"backbone.{rest}"
    layer, _, kind = rest.rpartition(".")
    if layer.startswith("head_conv3"):
        where = {"score": "score", "caption": "caption_conv"}.get(part)
        return f"method.{where or 'attributes.' + ATTRIBUTE[layer.removeprefix('head_conv3_')]}.{kind}"
    return f"method.context.{PARTS[part]}.{rest}" if layer.startswith(("head", "cntxt")) else f"method.captioner.{rest}"


def model_of(file: dict, state: Tensors, backbone: Backbone, channels: int) -> ScoringModel:
    """The model with the weights of a golden file."""
    c = file["caption_config"]
    words = ["<eos>", "<sos>", *map(str, range(c["vocab_size"] - 2))]
    method = ContextMultitask(config_of("mscadc", "multitask", heads="context", frame_num=16), channels, words)
    method.captioner = S2VT(c["vocab_size"], WIDTH * 100, c["dim_hidden"], c["dim_word"], c["n_layers"])
    model = ScoringModel(backbone, method, trains_batch_norm=True)
    own = {own_name(name): t for name, t in state.items()}
    assert set(own) | {"input_mean", "input_std", "method._extra_state"} == set(model.state_dict())
    model.load_state_dict(own, strict=False)
    return model


@pytest.mark.parametrize("index", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_body_and_heads_are_the_originals(shared: Path, index: int):
    case = reference()["cases"][index]
    state = scaled_state(reference()["state_dict"], 2.0, reference()["scale_overrides"])
    model = model_of(reference(), state, MSCADC(), 256).eval()
    assert sum(p.numel() for p in model.backbone.parameters()) == reference()["parameters"]["body"]
    method = model.method
    own = {part: sum(p.numel() for p in head.parameters()) for part, head in method.context.items()}
    own["score"] += sum(p.numel() for p in method.score.parameters())
    own["attributes"] += sum(p.numel() for p in method.attributes.parameters())
    own["caption"] += sum(p.numel() for part in (method.caption_conv, method.captioner) for p in part.parameters())
    assert own == {PARTS[part]: reference()["parameters"][part] for part in PARTS}

    def check(maps: torch.Tensor, known: dict) -> None:
        assert list(maps.shape) == known["shape"]
        assert maps.double().norm().item() == pytest.approx(known["norm"], rel=1e-4)
        first = maps.flatten()[: len(known["head"])].tolist()
        assert first == pytest.approx(known["head"], rel=1e-3, abs=1e-4)

    video = recipe_video(case)
    seen: dict[str, torch.Tensor] = {}
    for name in ("head_conv1", "cntxt_conv1", "cntxt_conv6", "head_bn1", "head_conv2"):
        method.context["score"].get_submodule(name).register_forward_hook(
            lambda _, __, output, name=name: seen.update({name: output})
        )
    outputs, vectors = method.heads(model.backbone, video)
    check(model.backbone.with_maps(video)[1]["volume"], case["body"])
    seen["cntxt_pad"] = F.pad(seen["head_conv1"], (9,) * 6, mode="replicate")
    seen["head_pool1"] = F.max_pool3d(F.relu(seen["head_bn1"]), 2)
    for name, maps in seen.items():
        check(maps, case["score_head_layers"][name])
    assert difference(outputs["score"].detach(), case["score"]) < 1e-4
    for name, logits in case["dive"].items():
        assert difference(outputs[name].detach(), logits) < 1e-4
    tokens = torch.tensor(case["caption_tokens"])
    log_probabilities = method.captioner(vectors, tokens).detach()
    known = case["caption_teacher_forced_log_probs_first3_steps"]
    assert difference(log_probabilities[:, :3], known) < 1e-4
    assert difference(log_probabilities.norm(dim=2), case["caption_log_prob_norm_per_step"]) < 1e-4
    for found, expected in zip(
        method.captioner.greedy(vectors, 12).tolist(), case["caption_greedy_tokens"], strict=True
    ):
        end = expected.index(0) + 1  # the original goes on after <eos>
        assert found[:end] == expected[:end]
    total = sum(outputs[name].square().sum() for name in ("score", *ATTRIBUTE_CLASSES))
    if "scalar" in case:
        assert total.item() == pytest.approx(case["scalar"], rel=1e-4)
        total.backward()
        for name, norm in case["gradient_norms_of_scalar"].items():
            assert model.get_parameter(own_name(name)).grad.norm().item() == pytest.approx(norm, rel=1e-3), name


class Body(Backbone):
    """The stand-in of the golden trajectory for the body."""

    feature_dim = 256

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv3d(3, 256, 1), RowBatchNorm(256)

    def prepare(self, clip: torch.Tensor, mean_C: torch.Tensor, std_C: torch.Tensor) -> torch.Tensor:
        return clip

    def with_maps(self, video: torch.Tensor) -> tuple[torch.Tensor, Tensors]:
        maps = F.relu(self.bn1(self.conv1(F.avg_pool3d(video, (8, 1, 1)))))
        return maps.mean(dim=(3, 4)).transpose(1, 2), {"volume": maps}


def test_optimizer_steps_are_the_originals(shared: Path):
    """Through the step of the engine, running statistics included. The numbers of the original are float32: it differs by up to
    0.01 in the changes of single parameters from a run whose weights were moved by 1e-7."""
    (case,) = reference("trajectories_mscadc")["cases"]
    state = scaled_state(case["state_dict"], 2.0, case["scale_overrides"])
    model = model_of(case, state, Body(), 256)
    for gru in (model.method.captioner.rnn1, model.method.captioner.rnn2):
        gru.row_dropout.rate = 0.0
    set_batch_norm(model, group=case["batch"], together=True)
    clips = recipe_tensor(f"input:{case['name']}", case["input"], 1.0).split(case["batch"])
    names = ["final_score", *ATTRIBUTE_CLASSES]
    batches = []
    for number, clip in enumerate(clips):
        rows = slice(number * case["batch"], (number + 1) * case["batch"])
        labels: Tensors = {n: torch.tensor(column) for n, column in zip(names, zip(*case["dives"][rows], strict=True), strict=True)}  # fmt: skip
        labels["caption"] = torch.tensor(case["captions"][rows])
        assert caption_mask(labels["caption"]).sum(dim=1).tolist() == case["caption_mask_ones"][rows]
        batches.append(Batch({"clip": clip}, {}, labels, torch.arange(len(clip))))
    config = config_of("mscadc", "multitask", heads="context", frame_num=16, optimizer="Adam", batch_size=case["batch"], learning_rate=case["lr"], weight_decay=0.0)  # fmt: skip
    own_names = {name: own_name(name) for name in case["state_dict"]}
    step = Step(model, config, Ranks(), CPU)
    follow(
        step,
        batches * case["epochs"],
        case,
        own_names,
        [case["lr"]] * len(batches) * case["epochs"],
        1e-4,
        of_changes=0.02,
    )
    compare_running(model, case, own_names, 2e-3)


def test_the_vector_of_the_captioner_is_max_pooling_with_stride_1():
    maps = torch.rand(2, WIDTH, 2, 11, 11)
    assert torch.equal(caption_vector(maps)[:, 0], F.max_pool3d(maps, 2, 1).flatten(1))
    assert caption_vector(torch.rand(2, WIDTH, 3, 4, 4)).shape == (2, 1, WIDTH * 100)


def test_context_heads_do_not_depend_on_the_split_of_the_batch():
    """In training on the loss and the statistics, in evaluation on the other rows."""
    config = tiny_config("mscadc", "multitask", heads="context", batch_norm="trained", batch_size=4, bn_group=2)
    found = []
    for parts in (1, 2):
        model = build_model(config)
        batch = batch_of(config, model.method)
        four = chunk_batch(batch, 2)[0]
        step = Step(model, dataclasses.replace(config, accumulate=parts), Ranks(), CPU)
        model.train()
        loss = step(four, 1e-4, 0)["loss"]
        found.append((loss, model.state_dict()["method.context.score.head_bn1.running_mean"]))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-5)
    assert torch.allclose(found[0][1], found[1][1], rtol=1e-4, atol=1e-6)
    model.eval()
    with torch.no_grad():
        together, alone = model(four), model(chunk_batch(four, 4)[2])
    assert all(torch.allclose(alone[name][0], t[2], atol=1e-5) for name, t in together.items())


def test_context_heads_need_maps():
    with pytest.raises(UserError, match="needs volume of the backbone and --model c3d offers"):
        config_of("c3d", "multitask", heads="context")
    assert math.prod(caption_vector(torch.rand(1, WIDTH, 2, 11, 11)).shape) == 1200
