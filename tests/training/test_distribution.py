"""USDL and MUSDL: targets, outputs, losses and optimizer steps of the originals, and the rules from judges to final scores."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from data_preparation.actions import DIVING, Action, Dive, judge_exceptions
from data_preparation.annotations import load_annotations
from data_preparation.common.errors import UserError
from data_preparation.datasets.jigsaws import RULES as JIGSAWS
from tests.conftest import SHARED
from tests.golden import difference, follow, golden, recipe_state, recipe_tensor
from tests.small import config_of, labels_of
from training.backbones.base import Backbone
from training.backbones.features.network import Features
from training.backbones.i3d.network import I3D, Mixed, Unit
from training.backbones.windows import LAYOUTS
from training.data.batch import Batch, Tensors
from training.data.facts import DataFacts
from training.engine.step import Step
from training.methods import build_method
from training.methods.base import Method
from training.methods.distribution import gaussian_target
from training.model import ScoringModel
from training.rows import set_batch_norm
from training.runtime.ranks import Ranks

CPU = torch.device("cpu")
FACTS = DataFacts(rules={"": DIVING})


@cache
def reference(name: str = "usdl_musdl") -> dict:
    return golden(SHARED, name)


def own_name(name: str) -> str:
    """The name of an original's parameter in the method: evaluator.0.layer2.weight -> heads.0.2.weight."""
    *path, layer, kind = name.removeprefix("evaluator.").split(".")
    head = f"heads.{path[0]}" if path else "head"
    return f"{head}.{2 * (int(layer.removeprefix('layer')) - 1)}.{kind}"


def original(kind: str, scale: float, width: int = 1024, **flags) -> Method:
    """The method with the weights of a golden file."""
    method = build_method(config_of("features", kind.lower(), **flags), width, FACTS)
    names = reference()["state_dict"][kind]
    shapes = {name: list(method.get_parameter(own_name(name)).shape) for name in names}
    method.load_state_dict({own_name(name): t for name, t in recipe_state(shapes, scale).items()})
    return method


def dives(scores, judges, difficulties) -> list[Dive]:
    return [
        Dive("01", i, 1, 103, difficulty=d, final_score=score, judge_scores=tuple(given))
        for i, (score, given, d) in enumerate(zip(scores, judges, difficulties, strict=True))
    ]


def test_the_targets_are_the_originals(shared: Path):
    for part in ("targets", "targets_other_std"):
        for case in reference()[part]["usdl"]:
            centre = np.array(case["final_score"] * 100 / 104.5)
            assert gaussian_target(centre, 101, case["std"]) == pytest.approx(case["target"], rel=1e-4, abs=1e-7)
        for case in reference()[part]["musdl"]:
            found = gaussian_target(np.array(case["judge_score"] * 2), 21, case["std"])
            assert found == pytest.approx(case["target"], rel=1e-4, abs=1e-7)
    # JIGSAWS: totals of 6 to 30 in 25 bins, sub-scores of 1 to 5 in 5 bins, both with a deviation of 1
    assert gaussian_target(np.array(8.0 - 6), 25, 1.0)[:4] == pytest.approx(
        [0.05424, 0.24308, 0.40077, 0.24308], abs=1e-5
    )
    assert gaussian_target(np.array(0.0), 5, 1.0)[:3] == pytest.approx([0.57035, 0.34593, 0.07719], abs=1e-5)


@pytest.mark.parametrize("kind", ["USDL", "MUSDL"])
@pytest.mark.parametrize("index", range(3))
def test_outputs_loss_and_scores_are_the_originals(shared: Path, kind: str, index: int):
    case = reference()["cases"][index]
    method = original(kind, case["scale"], target_std=case["std"])
    actions = dives(case["final_score"], case["judge_scores"], case["difficulty"])
    clip = recipe_tensor(f"input:{case['name']}", case["input"], 1.0)
    given, labels = labels_of(method, actions, "given"), labels_of(method, actions)
    outputs = method(Features(1024), {"clip": clip}, given, labels)
    assert difference(outputs["logits"].softmax(dim=-1), case[kind]["probabilities"]) < 1e-4
    loss = method.loss(outputs, given, labels)["loss"]
    assert loss.item() == pytest.approx(case[kind]["loss"], rel=1e-4)
    loss.backward()
    for name, norm in case[kind]["gradient_norms"].items():
        assert method.get_parameter(own_name(name)).grad.norm().item() == pytest.approx(norm, rel=1e-3), name
    scores = method.predict(outputs, given)["score"]
    assert scores.tolist() == pytest.approx(case[kind]["decoded"], rel=1e-5)


@pytest.mark.slow
def test_a_clip_gives_the_score_of_the_original(shared: Path):
    """103 frames through I3D in ten windows and both heads."""
    (case,) = reference()["pipeline"]
    backbone = I3D("10x16_end").eval()
    names = {name.replace("batch3d", "bn"): name for name in backbone.state_dict()}  # the piergiaj dialect
    dialect = {"branch_0": "b0", "branch_1.0": "b1a", "branch_1.1": "b1b", "branch_2.0": "b2a", "branch_2.1": "b2b", "branch_3.1": "b3b"}  # fmt: skip
    shapes = {}
    for theirs, ours in names.items():
        for before, after in dialect.items():
            theirs = theirs.replace(f".{before}.", f".{after}.")
        shapes[theirs[0].upper() + theirs[1:]] = (ours, list(backbone.state_dict()[ours].shape))
    state = recipe_state({theirs: shape for theirs, (_, shape) in shapes.items()}, case["backbone_scale"])
    backbone.load_state_dict({shapes[theirs][0]: t for theirs, t in state.items()})
    drawn = recipe_tensor(f"input:{case['name']}", [case["input"]["batch"], 3, 26, 7, 7], 1.0)
    clip = drawn.repeat_interleave(case["input"]["repeat_frames"], 2)[:, :, :103]
    for axis in (3, 4):
        clip = clip.repeat_interleave(case["input"]["repeat_pixels"], axis)
    with torch.no_grad():
        features = backbone(clip)
    assert difference(features.mean(dim=1)[0, :16], case["average"][0]["first"]) < 1e-4
    actions = dives([80.0], [[8.0] * 7], case["difficulty"])
    for kind in ("USDL", "MUSDL"):
        method = original(kind, case["head_scale"])
        given = labels_of(method, actions, "given")
        outputs = method(Features(1024), {"clip": features}, given, {})
        assert difference(outputs["logits"].softmax(dim=-1), case[kind]["probabilities"]) < 1e-4
        assert method.predict(outputs, given)["score"].tolist() == pytest.approx(case[kind]["predicted"], rel=1e-5)


# ----------------------------------------------------------------------------------------------------- optimizer steps


class Stem(Backbone):
    """The small part of an I3D that stands for the whole in the golden trajectories."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.feature_dim, quarter = width, width // 4
        self.conv = Unit(3, 8, 3, 2, 1e-3, 0.01)
        self.mixed = Mixed((8, quarter, 6, quarter, 2, quarter, quarter), 1e-3, 0.01)

    def prepare(self, clip: torch.Tensor, mean_C: torch.Tensor, std_C: torch.Tensor) -> torch.Tensor:
        return clip

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        length, starts, _ = LAYOUTS["10x16_end"]
        windows = torch.stack([video[:, :, s : s + length] for s in starts(103)], dim=1).flatten(0, 1)
        return self.mixed(self.conv(windows)).mean(dim=(2, 3, 4)).unflatten(0, (len(video), -1))


_BRANCHES = {"b0": "branch_0", "b1a": "branch_1.0", "b1b": "branch_1.1", "b2a": "branch_2.0", "b2b": "branch_2.1", "b3b": "branch_3.1"}  # fmt: skip


def own_stem_name(name: str) -> str:
    """i3d.mixed.b1a.bn.weight -> mixed.branch_1.0.batch3d.weight."""
    first, *rest = name.removeprefix("i3d.").replace("bn.", "batch3d.").split(".")
    return ".".join([first, *(_BRANCHES.get(part, part) for part in rest)])


@pytest.mark.parametrize("index", range(5))
def test_optimizer_steps_are_the_originals(shared: Path, index: int):
    """In float64, through the step of the engine. With a stem, its batch norm trains: over all videos of a batch, or as two
    replicas over two each. The last batch of those cases has three videos, which --bn_group does not split into 2 + 1."""
    case = reference("trajectories_usdl_musdl")["cases"][index]
    of_stem = "stem_width" in case
    flags = {
        "target_std": case["std"],
        "optimizer": "Adam",
        "learning_rate": case["lr"],
        "weight_decay": case["weight_decay"],
    }
    width = case.get("stem_width", 1024)
    method = original(case["kind"], case["scale"], width, **flags)
    backbone = Stem(width) if of_stem else Features(1024)
    names = {name: f"method.{own_name(name)}" for name in reference()["state_dict"][case["kind"]]}
    if of_stem:
        stem_names = [n.removeprefix("i3d.") for n in (*case["norms"], *case["running_after"]) if n.startswith("i3d.")]
        own = backbone.state_dict()
        shapes = {name: list(own[own_stem_name(name)].shape) for name in stem_names}
        backbone.load_state_dict({own_stem_name(n): t for n, t in recipe_state(shapes, case["stem_scale"]).items()})
        names |= {f"i3d.{name}": f"backbone.{own_stem_name(name)}" for name in stem_names}
    model = ScoringModel(backbone, method, trains_batch_norm=True).double()
    set_batch_norm(model, group=4 // case.get("replicas", 1), together=False)
    clips = recipe_tensor(f"input:{case['name']}", case["input"], 1.0).double()
    whole = [size for size in case["batches"] if size == case["batches"][0]]
    batches = []
    for row, size in enumerate(whole):
        actions = dives(*zip(*case["dives"][row], strict=True))
        part = clips[row * size : (row + 1) * size]
        given, labels = labels_of(method, actions, "given"), labels_of(method, actions)
        batches.append(Batch({"clip": part}, given, labels, torch.arange(size)))
    steps = case["epochs"] * len(whole)
    config = config_of("features", case["kind"].lower(), batch_size=whole[0], **flags)
    repeated = [batches[number % len(batches)] for number in range(steps)]
    follow(Step(model, config, Ranks(), CPU), repeated, case, names, [case["lr"]] * steps)


# -------------------------------------------------------------------------------------------------------------- rules


def oracle(method: Method, actions: list[Action]) -> Tensors:
    """Outputs whose most probable bin is the true score of each judge."""
    return {"logits": labels_of(method, actions)["distributions"].log()}


def test_true_judges_give_the_final_scores_that_follow_from_the_rules(shared: Path):
    dives_of_set = load_annotations(shared / "mtl_aqa" / "final_annotations_dict_with_dive_number.pkl")
    actions = list(dives_of_set.values())
    method = build_method(config_of("features", "musdl"), 4, FACTS)
    scores = method.predict(oracle(method, actions), labels_of(method, actions, "given"))["score"]
    wrong = {a.key for a, score in zip(actions, scores.tolist(), strict=True) if abs(score - a.final_score) > 0.06}
    assert len(actions) - len(wrong) == 1385
    assert wrong == {action.key for action in judge_exceptions(actions)}


def test_sub_scores_are_added_without_difficulty():
    kind, rules = next(iter(JIGSAWS.items()))
    sub_scores = [(1, 2, 3, 4, 5, 1), (5, 5, 5, 5, 5, 5), (1, 1, 1, 1, 1, 1)]
    actions = [
        Action("a", i, 1, 9, kind=kind, rules=rules, final_score=sum(s), judge_scores=s)
        for i, s in enumerate(sub_scores)
    ]
    flags = {"judges": 6, "judge_range": (1.0, 5.0), "judge_bins": 5, "judges_total": "sum", "target_std": 1.0}
    method = build_method(config_of("features", "musdl", **flags), 4, DataFacts())
    assert method.predict(oracle(method, actions), {})["score"].tolist() == pytest.approx([16, 30, 6])
    total = build_method(config_of("features", "usdl", score_bins=25, target_std=1.0), 4, DataFacts(rules=JIGSAWS))
    outputs = {"logits": labels_of(total, actions)["distribution"].log()}
    found = total.predict(outputs, labels_of(total, actions, "given"))["score"]
    assert found.tolist() == pytest.approx([16, 30, 6])


def test_an_expectation_is_not_rounded_to_bins():
    method = build_method(config_of("features", "usdl", decode="expectation"), 4, FACTS)
    actions = dives([40.3], [[5.0] * 7], [3.0])
    outputs = {"logits": labels_of(method, actions)["distribution"].log()}
    found = method.predict(outputs, labels_of(method, actions, "given"))["score"]
    assert found.tolist() == pytest.approx([40.3], abs=1e-3)


@pytest.mark.parametrize(
    ("judges", "message"),
    [
        (None, "dive 01/000 has no judge_scores"),
        ([5.0] * 5, "has 5 judges' scores and --judges is 7"),
        ([5.0] * 6 + [45.0], r"judges' scores \(45\) outside of --judge_range 0 10"),
    ],
)
def test_judges_that_do_not_fit_are_named(judges: list[float] | None, message: str):
    method = build_method(config_of("features", "musdl"), 4, FACTS)
    action = Dive("01", 0, 1, 9, difficulty=3.0, final_score=45.0, judge_scores=judges and tuple(judges))
    with pytest.raises(UserError, match=message):
        method.labels(action)


def test_the_published_sizes(shared: Path):
    for kind, count in reference()["parameters"].items():
        method: nn.Module = build_method(config_of("features", kind.lower()), 1024, FACTS)
        assert sum(p.numel() for p in method.parameters()) == count
