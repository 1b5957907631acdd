"""CoRe: the outputs, losses and optimizer steps of the original; groups, pairs, voters, references and difficulty."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from data_preparation.actions import Action, Dive, ScoreRules, action_name, video_name
from data_preparation.annotations import load_annotations, load_split
from data_preparation.common.errors import UserError
from tests.conftest import SHARED
from tests.golden import difference, golden, recipe_state, recipe_tensor
from tests.small import NoFrames, actions_of, config_of, labels_of, sampled_batch
from training.backbones.base import Backbone
from training.backbones.features.network import Features
from training.backbones.i3d.network import I3D
from training.backbones.windows import LAYOUTS
from training.data.batch import Batch, Tensors
from training.data.dataset import Plan
from training.engine.step import Step
from training.methods.base import Bank
from training.methods.core.method import CoRe
from training.methods.core.tree import RegressionTree
from training.methods.grouping import Groups, group_edges, pair_differences
from training.metrics import score_metrics, spearman
from training.model import ScoringModel, build_model
from training.rows import RowBatchNorm
from training.runtime import checkpoint
from training.runtime.ranks import Ranks
from training.runtime.run_folder import RunFolder

CPU = torch.device("cpu")
PAIRS = {"difficulty": "difficulty", "dive_number": "number", "final_score": "free"}


@cache
def reference(name: str = "core") -> dict:
    return golden(SHARED, name)


def edges_of(intervals: Sequence[Sequence[float]]) -> torch.Tensor:
    """The buffer of Groups for the intervals of a golden file."""
    return torch.tensor([left for left, _ in intervals[8:]] + [intervals[-1][1]], dtype=torch.float64)


def original(
    pairs: str, intervals: Sequence[Sequence[float]], scale: float, dtype: torch.dtype = torch.float32
) -> CoRe:
    """CoRe at its published size with the weights and intervals of a golden file."""
    method = CoRe(config_of("features", "core", pairs=pairs, voters="all"), 1024)
    names = {name: list(t.shape) for name, t in method.tree.state_dict().items()}
    method.tree.load_state_dict(recipe_state(names, scale))
    method.groups.edges.copy_(edges_of(intervals))
    return method.to(dtype)


def dive(label: float, difficulty: float, pairs: str = "difficulty", number: int = 1) -> Dive:
    """A dive with this label."""
    score = label if pairs == "free" else label * difficulty
    return Dive("01", number, 1, 103, difficulty=difficulty, final_score=score, dive_number="107B")


def pair_batch(
    method: CoRe, clips: Sequence[torch.Tensor], actions: Sequence[Dive], exemplars: Sequence[Dive]
) -> Batch:
    """The batch of these pairs; `clips` are those of the actions and of the exemplars."""
    given_values = labels_of(method, actions, "given")
    given_values["exemplar_label"] = labels_of(method, exemplars)["label"]
    named = dict(zip(("clip", "exemplar"), clips, strict=True))
    return Batch(named, given_values, labels_of(method, actions), torch.arange(len(actions)))


# ---------------------------------------------------------------------------------------------------------- goldens


@pytest.mark.parametrize("index", range(4))
def test_the_network_and_its_loss_are_the_originals(shared: Path, index: int):
    case = reference()["train"][index]
    grouping, pairs = reference()["groupings"][case["grouping"]], PAIRS[case["grouping"]]
    method = original(pairs, grouping["intervals"], case["scale"])
    assert sum(p.numel() for p in method.parameters()) == reference()["parameters"]
    # the exemplar of the first direction is video 1
    clips = [recipe_tensor(f"input:{case['name']}:{v}", case["input"], 1.0) * case["feature_scale"] for v in (2, 1)]
    second, first = (
        [dive(label, difficulty, pairs) for label, difficulty in zip(case[name], case["difficulty"], strict=True)]
        for name in ("label_2", "label_1")
    )
    batch = pair_batch(method, clips, second, first)
    outputs = method(Features(1024), batch.clips, batch.given, batch.labels)
    by_direction = {name: t.transpose(0, 1).flatten(0, 1).detach() for name, t in outputs.items()}
    assert difference(by_direction["log_probabilities"], case["leaf_log_probabilities"]) < 1e-4
    assert difference(by_direction["positions"], case["leaf_regressions"]) < 1e-4
    losses = method.loss(outputs, batch.given, batch.labels)
    if None in np.ravel(case["true_leaf"]):  # the released loss trains leaf 0 then
        deltas = np.subtract(case["label_2"], case["label_1"])
        assert (np.abs(deltas) >= method.pairing.span).any()
        leaves = method.groups.place(torch.from_numpy(deltas))[0].tolist()
        assert all(
            leaf == (15 if delta > 0 else 0) for leaf, delta in zip(leaves, deltas, strict=True) if abs(delta) >= 30
        )
        return
    assert losses["nll"].item() == pytest.approx(sum(case["nll_per_direction"]), rel=1e-4)
    assert losses["position"].item() == pytest.approx(case["mse_sum"], rel=1e-4)
    assert losses["loss"].item() == pytest.approx(case["loss"], rel=1e-4)
    losses["loss"].backward()
    for name, parameter in method.tree.named_parameters():
        assert parameter.grad.norm().item() == pytest.approx(case["gradient_norms"][name], rel=1e-3), name


def test_the_levels_of_the_tree_are_the_originals(shared: Path):
    case = reference()["train"][0]
    tree = RegressionTree(2049)
    tree.load_state_dict(recipe_state(reference()["state_dict"], case["scale"]))
    first, second = (recipe_tensor(f"input:{case['name']}:{v}", case["input"], 1.0).mean(dim=1) for v in (1, 2))
    labels = torch.tensor([*case["label_1"], *case["label_2"]])[:, None] / 30
    combined = torch.cat([torch.cat([first, second]), torch.cat([second, first]), labels], dim=1)
    for found, expected in zip(tree.levels(combined)[0][:3], case["level_log_probabilities"], strict=True):
        assert difference(found.detach(), expected) < 1e-4


def remember(method: CoRe, features: torch.Tensor, exemplars: Sequence[Dive]) -> None:
    method.remember(Bank([each.key for each in exemplars], {"features": features}, labels_of(method, exemplars)))


def exemplars_of(case: dict, pairs: str) -> list[Dive]:
    return [dive(label, case["difficulty"], pairs, 2 + i) for i, label in enumerate(case["exemplar_labels"])]


@pytest.mark.parametrize("index", range(3))
def test_scores_from_several_references_are_the_originals(shared: Path, index: int):
    case = reference()["test"][index]
    pairs = PAIRS[case["grouping"]]
    method = original(pairs, reference()["groupings"][case["grouping"]]["intervals"], case["scale"])
    target, references = (
        recipe_tensor(f"input:{case['name']}:{part}", case["input"][part], 1.0) * case["feature_scale"]
        for part in ("target", "exemplars")
    )
    remember(method, method.encode(Features(1024), references)["features"], exemplars_of(case, pairs))
    action = dive(0.0, case["difficulty"], pairs)
    score = method.predict(method.encode(Features(1024), target), labels_of(method, [action], "given"))["score"]
    assert score.tolist() == pytest.approx([case["score"]], rel=1e-4)


@pytest.mark.slow
def test_videos_to_a_score_as_the_original(shared: Path):
    """With the first reference alone, since each video takes half a minute."""
    case = reference()["pipeline"][0]
    backbone = I3D(eps=1e-5).eval()
    backbone.load_pretrained(recipe_state(reference("i3d")["state_dict"], case["backbone_scale"]))
    method = original("difficulty", reference()["groupings"]["difficulty"]["intervals"], case["head_scale"])
    times, pixels = case["input"]["repeat_frames"], case["input"]["repeat_pixels"]

    def encoded(part: str, count: int) -> Tensors:
        noise = recipe_tensor(f"input:{case['name']}:{part}", [count, 3, 26, 7, 7], 1.0)[:1]
        video = noise.repeat_interleave(times, 2)[:, :, :103].repeat_interleave(pixels, 3).repeat_interleave(pixels, 4)
        with torch.no_grad():
            return method.encode(backbone, video)

    remember(method, encoded("exemplars", 2)["features"], exemplars_of(case, "difficulty")[:1])
    given_values = labels_of(method, [dive(0.0, case["difficulty"])], "given")
    score = method.predict(encoded("target", 1), given_values)["score"].item()
    difference_of_labels = case["per_exemplar"][0]["relative_score"]
    assert score == pytest.approx((difference_of_labels + case["exemplar_labels"][0]) * case["difficulty"], rel=1e-4)


@pytest.mark.parametrize("name", PAIRS)
def test_the_groups_of_the_released_annotations_are_the_originals(shared: Path, name: str):
    expected = reference()["groupings"][name]
    method = CoRe(config_of("features", "core", pairs=PAIRS[name]), 4)
    train, _ = real_dives()
    differences = pair_differences(*method.pairing.differences_of(train))
    assert len(differences) == expected["pairs"]
    method.observe(train)
    assert method.groups.intervals.numpy() == pytest.approx(np.array(expected["intervals"]), abs=1.01e-4)
    groups = Groups(16, method.pairing.span)
    groups.edges.copy_(edges_of(expected["intervals"]))
    for case in reference()["leaves"][name]:
        leaf, position = groups.place(torch.tensor([case["delta"]], dtype=torch.float64))
        if case["leaf"] is None:  # outside of the released intervals: the outer group
            assert leaf.item() == (15 if case["delta"] > 0 else 0)
        else:
            assert (leaf.item(), position.item()) == (case["leaf"], pytest.approx(case["target"], abs=1e-9))
        assert groups.difference(leaf, position).item() == pytest.approx(case["delta"], abs=1e-9)
    known = {each.key: each for each in train}
    for case in reference()["real_pairs"][name]:
        labels = [
            method.pairing.label(known[video_name(case[part][0]), case[part][1]]) for part in ("target", "exemplar")
        ]
        assert labels[0] - labels[1] == pytest.approx(case["delta"], abs=1.01e-4)


# ----------------------------------------------------------------------------------------------------- optimizer steps


class StandIn(Backbone):
    """The backbone of the golden trajectory: mean of each window's frames, linear layer, batch norm, ReLU."""

    feature_dim = 1024

    def __init__(self) -> None:
        super().__init__()
        self.proj, self.bn = nn.Linear(8, 1024), RowBatchNorm(1024)

    def prepare(self, clip: torch.Tensor, mean_C: torch.Tensor, std_C: torch.Tensor) -> torch.Tensor:
        return clip

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        length, starts, _ = LAYOUTS["10x16"]
        windows = torch.stack([video[:, :, s : s + length].mean(dim=(2, 3, 4)) for s in starts(103)], dim=1)
        return torch.relu(self.bn(self.proj(windows).flatten(0, 1))).unflatten(0, (len(video), -1))


@pytest.mark.parametrize("index", [0, 2])
def test_twenty_optimizer_steps_are_the_originals(shared: Path, index: int):
    """In float64, through the step of the engine. The remaining case has gradients of an epoch that leak into the next."""
    file = reference("trajectories_core")
    case = file["cases"][index]
    config = config_of(
        "features", "core", optimizer="Adam", learning_rate=case["base_lr"], weight_decay=0.0,
        backbone_lr_scale=case["lr_factor"], batch_size=case["batch"],
    )  # fmt: skip
    backbone = StandIn() if "scale_backbone" in case else Features(1024)
    shapes = {f"backbone.{name}": list(t.shape) for name, t in backbone.state_dict().items()}
    state = recipe_state(shapes, case.get("scale_backbone", 1))
    backbone.load_state_dict({name.removeprefix("backbone."): t for name, t in state.items()})
    method = original("difficulty", file["intervals"], case["scale"])
    model = ScoringModel(backbone, method).double()
    clips = [recipe_tensor(f"input:{case['name']}:{v}", case["input"], 1.0).double() for v in (1, 2)]
    batches = []
    for i, rows in enumerate(case["labels"]):
        sides = [[dive(row[side], row[2]) for row in rows] for side in (0, 1)]
        batches.append(pair_batch(method, [clip[i] for clip in clips], *sides))

    step = Step(model, config, Ranks(), CPU)
    model.train()
    names = {"base_model.backbone.": model.backbone, "regressor.": method.tree}
    parameters = {prefix + name: p for prefix, part in names.items() for name, p in part.named_parameters()}
    start = {name: p.detach().clone() for name, p in parameters.items()}
    assert set(parameters) == set(case["norms"])
    for number in range(case["epochs"] * case["iterations_per_epoch"]):
        found = step(batches[number % len(batches)], config.learning_rate, number)
        assert found["loss"] == pytest.approx(case["loss"][number], rel=1e-6)
        assert found["grad_norm"] == pytest.approx(case["gradient_norm"][number], rel=1e-6)
        for name, parameter in parameters.items():
            assert parameter.norm().item() == pytest.approx(case["norms"][name][number], rel=1e-6), name
            changed = (parameter - start[name]).norm().item()
            assert changed == pytest.approx(case["changes"][name][number], rel=1e-6, abs=1e-9), name
    for name, values in case["final_first"].items():
        assert parameters[name].flatten()[: len(values)].tolist() == pytest.approx(values, rel=1e-6, abs=1e-9)


# -------------------------------------------------------------------------------------------------- groups and pairs


@cache
def real_dives() -> tuple[list[Dive], list[Dive]]:
    """The train and the test list of MTL-AQA."""
    folder = SHARED / "mtl_aqa"
    dives = load_annotations(folder / "final_annotations_dict_with_dive_number.pkl")
    return tuple([dives[key] for key in load_split(folder / f"{part}_split_0.pkl")] for part in ("train", "test"))


@given(st.lists(st.integers(0, 60), min_size=1, max_size=40), st.sampled_from([2, 4, 8]), st.sampled_from([10.0, 30.0]))
def test_edges_ascend_and_only_leftover_groups_are_empty(differences: list[int], groups: int, span: float):
    ordered = np.sort(np.array(differences) / 2)
    edges = group_edges(ordered, groups, span)
    assert (edges[0], edges[-1], len(edges)) == (0, span, groups + 1)
    inner, distinct = edges[1:-1], np.unique(ordered[(ordered > 0) & (ordered < span)])
    widths = np.diff(edges[:-1])
    assert (widths >= 0).all()
    # a repeated edge means that no difference above it is left
    assert all(not (distinct > inner[i]).any() for i in np.flatnonzero(widths[1:] == 0))
    of = Groups(2 * groups, span)
    of.edges.copy_(torch.from_numpy(edges))
    deltas = torch.tensor([*ordered, *-ordered, -2 * span, 2 * span])
    leaves, positions = of.place(deltas)
    assert of.difference(leaves, positions).numpy() == pytest.approx(deltas.numpy())
    used = of.intervals[leaves]
    assert (used[:, 1] > used[:, 0]).all() or len(np.unique(edges)) <= groups  # an empty group is no target
    # the other direction of a pair has the mirrored group and the opposite difference
    back, there = of.place(-deltas)
    away = deltas != 0
    assert torch.equal(back[away], of.leaves - 1 - leaves[away])
    assert of.difference(back, there).numpy() == pytest.approx(-deltas.numpy())


def test_no_difference_gives_the_scores_of_the_difficulty(shared: Path):
    """Every predicted difference is 0, so each test dive gets the mean execution of the train dives of its difficulty."""
    train, test = real_dives()
    method = CoRe(config_of("features", "core", voters="all", tree_width=8), 4)
    method.observe(train)
    for parameter in method.parameters():
        parameter.data.zero_()
    for level, classifier in enumerate(method.tree.clf_layers):
        classifier.bias.data[2**level] = 1  # the way to the group that starts at 0
    remember(method, torch.zeros(len(train), 4), train)
    outputs = {"features": torch.zeros(len(test), 4)}
    scores = method.predict(outputs, labels_of(method, test, "given"))["score"].numpy()
    metrics = score_metrics(scores, [each.final_score for each in test])
    assert metrics["spearman"] == pytest.approx(0.5763, abs=5e-5)
    assert metrics["mse"] == pytest.approx(219.67, abs=5e-3)
    assert metrics["r_l2_x100"] == pytest.approx(2.012, abs=5e-4)


def test_an_exemplar_is_another_training_dive_of_the_difficulty(shared: Path):
    train, _ = real_dives()
    alone = next(each for each in train if sum(other.difficulty == each.difficulty for other in train) == 1)
    pool = sorted(train, key=lambda each: each.key)
    for pairs in ("difficulty", "number", "free"):
        method = CoRe(config_of("features", "core", pairs=pairs), 4)
        plans = [
            Plan(action, NoFrames(), pool, 3, epoch, True) for action in [*train[::40], alone] for epoch in range(3)
        ]
        samples = [method.sample(plan.action, plan) for plan in plans]
        drawn = [sample.clips["exemplar"].action for sample in samples]
        again = [method.sample(plan.action, plan).clips["exemplar"].action for plan in reversed(plans)]
        assert drawn == again[::-1]
        assert (
            len({(plan.action.key, exemplar.key) for plan, exemplar in zip(plans, drawn, strict=True)}) > len(plans) / 2
        )
        for plan, exemplar, sample in zip(plans, drawn, samples, strict=True):
            assert exemplar.key != plan.action.key
            if pairs == "difficulty":
                nearest = min(abs(o.difficulty - plan.action.difficulty) for o in train if o is not plan.action)
                assert abs(exemplar.difficulty - plan.action.difficulty) == pytest.approx(nearest)
            others = {other.dive_number for other in train if other is not plan.action}
            if pairs == "number" and plan.action.dive_number in others:
                assert exemplar.dive_number == plan.action.dive_number
            assert float(sample.given["exemplar_label"]) == method.pairing.label(exemplar)
        assert set(method.sample(alone, Plan(alone, NoFrames(), pool, 3, 0, False)).clips) == {"clip"}


def test_voters_are_a_function_of_the_split_seed_and_the_dive(shared: Path):
    train, test = real_dives()
    method = CoRe(config_of("features", "core", voters="10"), 4)
    given_values = labels_of(method, [*test, train[0]], "given")
    bank = Bank([each.key for each in train], {}, labels_of(method, train))
    chosen = method.pairing.voters(given_values, bank)
    sizes = [sum(other.difficulty == each.difficulty for other in train) for each in test]
    assert [len(each) for each in chosen[:-1]] == [
        min(size, 10) or len(each) for size, each in zip(sizes, chosen, strict=False)
    ]
    assert all(
        train[row].difficulty == each.difficulty for each, rows in zip(test, chosen, strict=False) for row in rows
    )
    assert train[0].key not in {train[row].key for row in chosen[-1]}
    # of a bank in another order, for one dive alone
    order = np.random.default_rng(0).permutation(len(train))
    shuffled = Bank([train[i].key for i in order], {}, labels_of(method, [train[i] for i in order]))
    one = {name: values[5:6] for name, values in given_values.items()}
    assert {train[order[row]].key for row in method.pairing.voters(one, shuffled)[0]} == {
        train[row].key for row in chosen[5]
    }
    other_seed = CoRe(config_of("features", "core", voters="10", split_seed=1), 4)
    others = other_seed.pairing.voters(labels_of(other_seed, test, "given"), bank)
    assert any(set(a) != set(b) for a, b in zip(chosen, others, strict=False))
    # with a predicted difficulty: the references of the nearest one; nothing else is known of the dive
    predicting = CoRe(config_of("features", "core", voters="all", difficulty="predicted"), 4)
    seeds = labels_of(predicting, test[:1], "given")
    assert set(seeds) == {"voter_seed"}
    (rows,) = predicting.pairing.voters(seeds, bank, torch.tensor([3.04]))
    assert {train[row].difficulty for row in rows} == {3.0}


def test_the_swapped_pair_has_the_opposite_target():
    """The loss of a pair does not depend on which of the two is the exemplar, and both directions are trained."""
    actions = actions_of(6)
    method = CoRe(config_of("features", "core", pairs="free", tree_depth=3, tree_width=8), 12)
    clips = [recipe_tensor(name, [3, 2, 12], 1.0) for name in ("a", "b")]
    losses, outputs = [], []
    for order in (1, -1):
        sides = (actions[:3], actions[3:])[::order]
        batch = pair_batch(method, clips[::order], *sides)
        outputs.append(method(Features(12), batch.clips, batch.given, batch.labels))
        losses.append(method.loss(outputs[-1], batch.given, batch.labels)["loss"].item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    for name in outputs[0]:
        assert torch.allclose(outputs[0][name], outputs[1][name].flip(1), atol=1e-6)


def test_kinds_are_compared_apart_on_a_common_scale():
    """Labels are scores mapped to 0..100 by the range of the kind; the prediction is mapped back; no difficulty is needed."""
    ranges = {"vault": ScoreRules(12.0, 17.0), "ski": ScoreRules(8.0, 50.0)}
    scores = {"vault": [12.0, 14.5, 17.0], "ski": [8.0, 29.0, 50.0]}
    actions = [
        Action("01", 10 * i + j, 1, 103, final_score=score, kind=kind, rules=ranges[kind])
        for i, kind in enumerate(ranges)
        for j, score in enumerate(scores[kind])
    ]
    method = CoRe(config_of("features", "core", pairs="kind", tree_depth=3, tree_width=4, voters="all"), 4)
    assert [method.pairing.label(action) for action in actions] == [0, 50, 100] * 2
    method.observe(actions)
    assert method.groups.edges.tolist() == [0, 50, 100]
    for parameter in method.parameters():
        parameter.data.zero_()
    for level, classifier in enumerate(method.tree.clf_layers):
        classifier.bias.data[2**level] = 1  # every difference is 0
    remember(method, torch.zeros(6, 4), actions)
    new = [dataclasses.replace(action, number=99, final_score=None) for action in actions[::3]]
    found = method.predict({"features": torch.zeros(2, 4)}, labels_of(method, new, "given"))["score"]
    assert found.tolist() == pytest.approx([14.5, 29.0])
    assert method.notes() == []


def test_a_checkpoint_of_the_authors_loads(tmp_path: Path):
    """With the wrappers of its code: base_model and regressor, names below module., results as numpy scalars."""
    config = config_of("i3d", "core", frame_num=103, pretrained_model=str(tmp_path / "MTL_CoRe.pth"))
    tree, backbone = RegressionTree(2049), I3D()
    shapes = {name: list(t.shape) for name, t in tree.state_dict().items()}
    tree.load_state_dict(recipe_state(shapes))
    base = {f"module.backbone.{name}": t for name, t in backbone.state_dict().items()}
    classifier = {"module.backbone.conv3d_0c_1x1.conv3d.bias": torch.zeros(400)}
    results = {"epoch": 59, "epoch_best": 59, "rho_best": np.float64(0.9541), "L2_min": np.float32(25.7)}
    optimizer = torch.optim.Adam(tree.parameters()).state_dict()
    regressor = {f"module.{name}": t for name, t in tree.state_dict().items()}
    content = {"base_model": base | classifier, "regressor": regressor, "optimizer": optimizer, **results}
    torch.save(content, tmp_path / "MTL_CoRe.pth")
    model = build_model(config)
    for found, expected in ((model.method.tree, tree), (model.backbone, backbone)):
        assert all(torch.equal(t, expected.state_dict()[name]) for name, t in found.state_dict().items())
    regressor["module.reg_layer.bias"] = torch.full((16,), torch.nan)
    torch.save(content, tmp_path / "MTL_CoRe.pth")
    with pytest.raises(UserError, match="1 with NaN or infinite values"):
        build_model(config)


# ------------------------------------------------------------------------------------------------------------- runs


def features_of(dataset: Path, folder: Path) -> tuple[Path, list[Dive]]:
    """A file of features that tell the score, and the dives."""
    dives = list(load_annotations(dataset / "annotations" / "final_annotations_dict.pkl").values())
    draws = np.random.default_rng(0)
    rows = {each.name: draws.normal(size=(2, 6)) * 0.2 + each.final_score / each.difficulty / 10 for each in dives}
    np.savez(folder / "f.npz", **rows)
    return folder / "f.npz", dives


FLAGS = ["--model", "features", "--method", "core", "--tree_depth", 3, "--tree_width", 16, "--batch_size", 8, "--learning_rate", 0.003]  # fmt: skip


def test_a_run_encodes_each_dive_once_and_its_best_checkpoint_scores_alone(
    dataset: Path, train: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file, dives = features_of(dataset, tmp_path)
    encoded: list[int] = []
    encode = CoRe.encode
    monkeypatch.setattr(
        CoRe,
        "encode",
        lambda self, backbone, clip: encoded.append(0 if self.training else len(clip)) or encode(self, backbone, clip),
    )
    run = tmp_path / "runs" / "a"
    flags = [*FLAGS, "--features", file, "--run_name", "a"]
    train(*flags, "--epochs", 1)
    splits = json.loads((run / "splits.json").read_text())
    known = len(splits["train"]) + len(splits["val"])
    assert sum(encoded) == known
    encoded.clear()
    train(
        *flags, "--epochs", 2, "--evaluate", "True"
    )  # resumes; the test adds the validation dives, encoded with best.pt
    assert sum(encoded) == known + len(splits["val"]) + len(splits["test"])
    summary = json.loads((run / "summary.json").read_text())
    assert summary["notes"] == ["difficulty given"]

    # references after the resume equal a fresh encoding with the weights of the checkpoint
    config = RunFolder(run).existing_config()
    model = build_model(config).eval()
    model.load_state_dict(checkpoint.load(run / "checkpoints" / "best.pt")["model"])
    bank = model.method.bank
    assert bank.keys == sorted((video_name(video), number) for video, number in splits["train"])
    rows = np.load(file)
    fresh = torch.stack([torch.from_numpy(rows[action_name(key)]).float() for key in bank.keys])
    assert torch.equal(bank.encoded["features"], encode(model.method, model.backbone, fresh)["features"])
    # a dive that no list has, from best.pt alone
    unknown = dataclasses.replace(dives[0], video="99", final_score=0.0)
    score = model.method.predict(
        encode(model.method, model.backbone, fresh[:1]), labels_of(model.method, [unknown], "given")
    )
    assert 0 < score["score"].item() < 130


@pytest.mark.parametrize("difficulty", ["given", "predicted"])
def test_what_is_there_is_learned_and_permuted_labels_give_no_correlation(difficulty: str):
    """Of the execution alone, since the difficulty of a dive stays known. The execution is a sum of many features: by chance
    one feature alone would correlate with permuted labels."""
    draws, count, width = np.random.default_rng(1), 150, 24
    clips = torch.tensor(draws.normal(size=(2 * count, 1, width)), dtype=torch.float32)
    executions = 20 + clips[:, 0, 4:].sum(dim=1).double().numpy()
    difficulties = draws.choice([2.8, 3.0, 3.2], 2 * count)
    clips[:, 0, 0] = torch.tensor(difficulties)
    dives = [
        dive(execution, dd, number=i) for i, (execution, dd) in enumerate(zip(executions, difficulties, strict=True))
    ]
    rows = {each.key: clip for each, clip in zip(dives, clips, strict=True)}
    config = config_of("features", "core", optimizer="AdamW", batch_size=count, tree_depth=3, tree_width=16, difficulty=difficulty)  # fmt: skip
    correlations = []
    for order in (np.arange(count), *(draws.permutation(count) for _ in range(3))):
        shown = [dive(executions[j], difficulties[i], number=i) for i, j in enumerate(order)]
        torch.manual_seed(0)
        model = ScoringModel(Features(width), CoRe(config, width))
        model.method.observe(shown)
        step = Step(model, config, Ranks(), CPU)
        model.train()
        of = [
            sampled_batch(config, model.method, shown, lambda each: rows[each.key], epoch=epoch) for epoch in range(4)
        ]
        for number in range(60):
            step(of[number % 4], 1e-2, number)
        model.eval()
        with torch.no_grad():
            remember(model.method, model.method.encode(Features(width), clips[:count])["features"], shown)
            outputs = model.method.encode(Features(width), clips[count:])
        found = model.method.predict(outputs, labels_of(model.method, dives[count:], "given"))["score"].numpy()
        correlations.append(spearman(found / difficulties[count:], executions[count:]))
    assert correlations[0] > 0.8
    assert abs(np.mean(correlations[1:])) < 0.25
