"""TPT: the outputs, losses and optimizer steps of the original; references, the bank, and what a step needs."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

from data_preparation.common.errors import UserError
from tests.conftest import SHARED
from tests.golden import follow, golden, recipe_state, recipe_tensor
from tests.small import actions_of, config_of, sampled_batch, tiny_config
from training.backbones.base import Backbone
from training.backbones.features.network import Features
from training.config import TrainConfig
from training.data.batch import Batch
from training.engine.step import Step
from training.methods.base import Bank
from training.methods.tpt.decoder import centres, ranking_loss, sparsity_loss
from training.methods.tpt.method import TPT
from training.model import ScoringModel, build_model
from training.rows import RowBatchNorm
from training.runtime import checkpoint
from training.runtime.ranks import Ranks

CPU = torch.device("cpu")


@cache
def reference(name: str = "tpt") -> dict:
    return golden(SHARED, name)


def config_for(case: dict, **flags) -> TrainConfig:
    sizes = case["config"]
    return config_of(
        "features", "tpt", parts=sizes["num_cluster"], part_width=sizes["d_model"], part_hidden=sizes["d_ffn"],
        ranking_margin=sizes["margin_factor"], part_dropout=0.0, optimizer="Adam", weight_decay=0.0, **flags,
    )  # fmt: skip


def original(
    case: dict, shapes: dict, intervals: list, config: TrainConfig, backbone: Backbone | None = None
) -> ScoringModel:
    """A model with the weights of a golden case and its groups."""
    state = recipe_state(shapes, case["scale"])
    for name in state:
        if name.endswith(".temp"):
            state[name] = torch.tensor(0.07)
        if name in case["scale_overrides"]:
            state[name] = recipe_tensor(name, shapes[name], case["scale_overrides"][name])
    if scale := case.get("scale_backbone"):
        state |= recipe_state({name: shape for name, shape in shapes.items() if name.startswith("backbone.")}, scale)
    model = ScoringModel(backbone or Features(1024), TPT(config, 1024))
    own = {own_name(name): tensor for name, tensor in state.items()}
    missing, unexpected = model.load_state_dict(own, strict=False)
    assert not unexpected
    assert all("input_" in name or "groups" in name or "extra_state" in name for name in missing), missing
    edges = [left for left, _ in intervals[8:]] + [intervals[-1][1]]
    model.method.groups.edges.copy_(torch.tensor(edges, dtype=torch.float64))
    return model


def own_name(name: str) -> str:
    return name if name.startswith("backbone.") else f"method.{name}"


def pair_batch(clips: dict[str, torch.Tensor], label: list[float], exemplar_label: list[float]) -> Batch:
    labels, given = (torch.tensor(values, dtype=torch.float64) for values in (label, exemplar_label))
    return Batch(clips, {"exemplar_label": given}, {"label": labels}, torch.arange(len(labels)))


@pytest.mark.parametrize("index", range(4))
def test_network_and_losses_are_the_originals(shared: Path, index: int):
    case = reference()["cases"][index]
    known = case.get("training_loss")
    groups = reference()["cases"][0]["training_loss"]["groups"]
    model = original(case, case["state_dict"], groups, config_for(case)).eval()
    inputs = {name.split()[0]: given for name, given in case["inputs"].items()}
    clips = {
        name: recipe_tensor(f"input:{inputs[part]['video']}", inputs[part]["shape"], 1.0) * inputs[part]["factor"]
        for name, part in (("clip", "query"), ("exemplar", "exemplar"))
    }
    batch = pair_batch(clips, *(known[f"scores_{part}"] if known else [14.0] for part in ("query", "exemplar")))
    outputs = model(batch)
    # the original's rows: pair(query, exemplar), then pair(exemplar, query); here the exemplar comes first
    for name, key in (("log_probabilities", "leaf_log_prob"), ("positions", "leaf_regression")):
        found = torch.cat([outputs[name][:, 1], outputs[name][:, 0]])
        assert torch.allclose(found, torch.tensor(case[key]), rtol=1e-4, atol=1e-4)
    attention = torch.cat([outputs["attention"][:, 1], outputs["attention"][:, 0]])  # (2B, L, T, K), query first
    for layer, expected in enumerate(case["attention_centres"].values()):
        assert torch.allclose(centres(attention[:, layer]), torch.tensor(expected), rtol=1e-4)
    encoded = model.method.encode(model.backbone, clips["clip"])["features"]
    assert torch.allclose(encoded.norm(dim=2), torch.tensor(case["queries_norm"]), rtol=1e-4)
    if known is None:
        return
    losses = model.method.loss(outputs, batch.given, batch.labels)
    names = {"nll": "classification", "position": "regression", "ranking": "ranking", "sparsity": "sparsity"}
    for name, key in {**names, "loss": "total"}.items():
        assert losses[name].item() == pytest.approx(known[key], rel=1e-4), name
    losses["loss"].backward()
    parameters = dict(model.named_parameters())
    for name, expected in known["gradient_norms"].items():
        assert parameters[own_name(name)].grad.double().norm().item() == pytest.approx(expected, rel=1e-3), name


@pytest.mark.parametrize("index", range(2))
def test_losses_of_the_attention_are_the_originals(shared: Path, index: int):
    case = reference()["attention_losses"][index]
    factor = float(case["attention"].split(" of ")[1].split(" * ")[0])
    shape = (case["batch"], case["T"], case["K"])
    attention = (recipe_tensor(f"input:{case['name']}", shape, 1.0) * factor).softmax(dim=1).requires_grad_()
    assert torch.allclose(centres(attention), torch.tensor(case["centres"]), rtol=1e-4)
    ranking, sparsity = ranking_loss(attention, case["margin"]), sparsity_loss(attention)
    assert ranking.item() == pytest.approx(case["ranking"], rel=1e-5)
    assert sparsity.item() == pytest.approx(case["sparsity"], rel=1e-5)
    (ranking + 0.05 * sparsity).backward()
    assert attention.grad is not None
    assert attention.grad.norm().item() == pytest.approx(case["attention_gradient_norm"], rel=1e-4)


class Projection(Backbone):
    """The stand-in of the trajectories for a backbone whose batch norm is frozen."""

    feature_dim = 1024

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.proj, self.bn = nn.Linear(inputs, 1024), RowBatchNorm(1024)

    def prepare(self, clip: torch.Tensor, mean_C: torch.Tensor, std_C: torch.Tensor) -> torch.Tensor:
        return clip

    def forward(self, clip_BTC: torch.Tensor) -> torch.Tensor:
        return self.bn(self.proj(clip_BTC).flatten(0, 1)).relu().unflatten(0, clip_BTC.shape[:2])


@pytest.mark.parametrize("index", range(4), ids=["small", "backbone", "features", "published"])
def test_twenty_optimizer_steps_are_the_originals(shared: Path, index: int):
    file = reference("trajectories_tpt")
    case = file["cases"][index]
    # one group of parameters with weight decay, in the original's mode for features
    flags = {"output_lr_scale": 1.0} if case["use_pretrain"] else {}
    config = config_for(case, batch_size=case["batch"], learning_rate=1e-4, **flags)
    config = dataclasses.replace(config, weight_decay=5e-4 if case["use_pretrain"] else 0.0)
    inputs = case["input"][-1]
    model = original(case, shapes_of(case), file["intervals"], config, None if inputs == 1024 else Projection(inputs))
    videos = [
        recipe_tensor(f"input:{case['name']}:{number}", case["input"], 1.0) * case["input_factor"] for number in (1, 2)
    ]
    batches = []
    for row, pairs in enumerate(case["labels"]):
        clips = {name: video[row].double() for name, video in zip(("clip", "exemplar"), videos, strict=True)}
        batches.append(pair_batch(clips, [pair[0] for pair in pairs], [pair[1] for pair in pairs]))
    step = Step(model.double(), config, Ranks(), CPU)
    names = {name: own_name(name) for name in case["norms"]}
    follow(step, batches * case["epochs"], case, names, [1e-4] * len(case["loss"]))


def shapes_of(case: dict) -> dict[str, list[int]]:
    """The names and shapes of the original's tensors."""
    shapes = {name: list(p.shape) for name, p in TPT(config_for(case), 1024).named_parameters()}
    if (inputs := case["input"][-1]) < 1024:
        shapes |= {f"backbone.{name}": list(t.shape) for name, t in Projection(inputs).state_dict().items()}
    return shapes


# ------------------------------------------------------------------------------------------------- pairs and references


def test_a_swapped_pair_gives_swapped_directions_and_after_training_the_other_sign():
    draws = torch.Generator().manual_seed(0)
    dives = [dataclasses.replace(dive, difficulty=3.0) for dive in actions_of(16)]
    rows = {dive.key: torch.randn(6, 12, generator=draws) * 0.1 + dive.final_score / 30 for dive in dives}
    config = dataclasses.replace(config_of("features", "tpt", parts=2, part_width=16, part_hidden=16), batch_size=16, optimizer="AdamW", part_dropout=0.0)  # fmt: skip
    model = ScoringModel(Features(12), TPT(config, 12))
    model.method.observe(dives)
    batch = sampled_batch(config, model.method, dives, lambda dive: rows[dive.key])
    step = Step(model, config, Ranks(), CPU)
    model.train()
    for number in range(150):
        step(batch, 3e-3, number)
    model.eval()
    swapped = batch._replace(clips={"clip": batch.clips["exemplar"], "exemplar": batch.clips["clip"]})
    with torch.no_grad():
        outputs, other = model(batch), model(swapped)
    for name in ("log_probabilities", "positions"):
        assert torch.allclose(outputs[name].flip(1), other[name], atol=1e-5)
    leaf = outputs["log_probabilities"].argmax(dim=2)  # (B, 2)
    position = outputs["positions"].gather(2, leaf[..., None])[..., 0]
    forth, back = model.method.groups.difference(leaf, position).unbind(dim=1)
    clear = forth.abs() > 1
    assert clear.sum() > 8
    assert (forth.sign() == -back.sign())[clear].all()


def test_the_bank_keeps_parts_and_equals_a_fresh_encoding_after_a_resume(tmp_path: Path):
    config = tiny_config("timesformer", "tpt", batch_size=8)
    dives = actions_of(8)
    model = build_model(config)
    batch = sampled_batch(config, model.method, dives, lambda dive: torch.full((4, 3, 32, 32), 20 * dive.number).byte(), augment=False)  # fmt: skip
    model.eval()
    with torch.no_grad():
        outputs = model(batch)
        model.method.remember(Bank([dive.key for dive in dives], outputs, batch.labels))
    checkpoint.save(tmp_path / "best.pt", {"model": model.state_dict()})
    again = build_model(dataclasses.replace(config, seed=1)).eval()
    again.load_state_dict(checkpoint.load(tmp_path / "best.pt")["model"])
    bank = again.method.bank
    assert set(bank.encoded) == {"features"}
    assert bank.encoded["features"].shape == (8, 2, 16)  # parts, and not windows
    with torch.no_grad():
        assert torch.equal(again(batch)["features"], bank.encoded["features"])
    assert torch.equal(again.method.predict(outputs, batch.given)["score"], model.method.predict(outputs, batch.given)["score"])  # fmt: skip


def test_published_rates_and_what_does_not_fit(caplog: pytest.LogCaptureFixture):
    config = config_of("features", "tpt", learning_rate=1e-4)
    model = ScoringModel(Features(1024), TPT(config, 1024))
    rates = {name: group.rate for group in model.parameter_groups(config) for name in group.names}
    assert {name for name, rate in rates.items() if rate == 10} == {
        name for name, _ in model.named_parameters() if ".cls." in name or ".reg." in name
    }
    assert sum(p.numel() for p in model.parameters()) == 5_656_354
    with pytest.raises(UserError, match="--part_width 12 is not a multiple of 8"):
        config_of("features", "tpt", part_width=12)
    for _ in range(2):
        model.method.encode(model.backbone, torch.zeros(2, 4, 1024))
    (warning,) = caplog.messages
    assert warning.startswith("--parts 5 and the backbone gives 4 vectors of a clip")
    assert model.method.notes() == ["difficulty given"]
