"""TSA-Net: tubes, attention, head and optimizer steps of the original; boxes move with the pixels."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from data_preparation.actions import DIVING, Action
from data_preparation.boxes import Boxes, boxes_file, in_sequence, write_boxes
from data_preparation.common.errors import UserError
from tests.conftest import SHARED
from tests.golden import difference, follow, golden, recipe_state, recipe_tensor
from tests.small import config_of
from training.backbones.base import Backbone
from training.backbones.i3d.network import I3D, Unit
from training.backbones.windows import LAYOUTS
from training.config import TrainConfig
from training.data.batch import Batch
from training.data.dataset import Plan, label_faults
from training.data.facts import DataFacts
from training.data.sources import FrameSource
from training.data.transforms import apply_view
from training.engine.step import Step
from training.methods import build_method
from training.methods.tsanet.method import TubeClassifier, _boxes_in
from training.methods.tsanet.tube import TubeAttention, released_cells, touched_cells
from training.model import ScoringModel
from training.rows import MaskedBatchNorm, gather_running_statistics, set_batch_norm, update_running_statistics
from training.runtime.ranks import Ranks

CPU = torch.device("cpu")
FALLS = DataFacts(("no fall", "fall"))
GRID = 14


@cache
def reference(name: str = "tsa") -> dict:
    return golden(SHARED, name)


@cache
def released_tube(name: str) -> torch.Tensor:
    """The tube of a golden file's boxes for each frame (103, 14, 14) uint8, as the released code draws it."""
    case = next(case for case in reference()["boxes_cases"] if case["name"] == name)
    corners = in_sequence(np.array(case["boxes_in_file"], float).reshape(-1, 4, 2))
    cells = released_cells(corners * 14 / (640, 360), GRID, GRID)
    return torch.from_numpy(cells.astype(np.uint8))


def steps_of(tube_BTHW: torch.Tensor) -> torch.Tensor:
    """(B, 103, 14, 14) -> (B, 28, 14, 14) bool: four frames joined per step of each window."""
    windows = I3D.windows(type("L", (), {"layout": LAYOUTS["full"]})(), tube_BTHW[:, None].float())
    return (F.adaptive_max_pool3d(windows, (4, GRID, GRID)) > 0).reshape(len(tube_BTHW), -1, GRID, GRID)


@pytest.mark.parametrize("name", ["tube", "thin", "leaving"])
def test_the_released_tube_is_the_originals(shared: Path, name: str):
    case = next(case for case in reference()["boxes_cases"] if case["name"] == name)
    found = steps_of(released_tube(name)[None])[0]
    rows = (found.long() << torch.arange(GRID)).sum(dim=-1)  # bit x is column x
    assert rows.tolist() == case["mask_rows"]


def attention_of(scale: float) -> TubeAttention:
    attention = TubeAttention(480)
    state = recipe_state(reference()["state_dict"]["module"], scale)
    attention.load_state_dict({name.removeprefix("NL_1D."): tensor for name, tensor in state.items()})
    return attention


def module_case(case: dict) -> tuple[TubeAttention, torch.Tensor, torch.Tensor]:
    attention = attention_of(case["scale"]).train(case["training"])
    maps = recipe_tensor(f"input:{case['name']}", case["input"], case["input_scale"]).requires_grad_()
    tube = steps_of(torch.stack([released_tube(video["boxes"]) for video in case["videos"]])).flatten(1)
    return attention, maps, tube


@pytest.mark.parametrize(("part", "index"), [("module", 0), ("module", 1), ("module", 2), ("module_training", 0)])
def test_the_attention_is_the_originals(shared: Path, part: str, index: int):
    case = reference()[part][index]
    attention, maps, tube = module_case(case)
    found = attention(maps.flatten(2), tube)
    for row, video in enumerate(case["videos"]):
        inside = found[row][:, tube[row]]  # (480, N) in the order of step, row, column
        assert inside.shape[1] == video["masked"]
        assert torch.equal(found[row][:, ~tube[row]], maps[row].flatten(1)[:, ~tube[row]])
        assert difference(inside[:8, :8], video["inside_first_positions"]) < 1e-4
        assert difference(inside[-8:, -4:], video["inside_last_positions"]) < 1e-4
        assert inside.norm().item() == pytest.approx(video["inside_norm"], rel=1e-4)
        assert found[row].norm().item() == pytest.approx(video["output_norm"], rel=1e-4)
    found.square().sum().backward()
    for name, norm in case["gradient_norms"].items():
        own = attention.get_parameter(name.removeprefix("NL_1D."))
        assert own.grad.norm().item() == pytest.approx(norm, rel=1e-3), name
    assert maps.grad.norm().item() == pytest.approx(case["input_gradient_norm"], rel=1e-3)
    if case["training"]:
        update_running_statistics(gather_running_statistics(attention, lambda rows: rows))
        for name, after in case["running_after"].items():
            own = attention.state_dict()[name.removeprefix("NL_1D.")]
            assert difference(own[:8], after["first"]) < 1e-4
            assert own.norm().item() == pytest.approx(after["norm"], rel=1e-4)


def test_an_empty_tube_changes_nothing(shared: Path):
    attention = attention_of(0.05).train()
    maps, tube = torch.randn(3, 480, 40), torch.zeros(3, 40, dtype=torch.bool)
    tube[1, 5:25], tube[2, 7] = True, True  # the second clip has a tube, the third a single position
    found = attention(maps, tube)
    assert torch.equal(found[0], maps[0])
    assert torch.isfinite(found).all()
    found.sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in attention.parameters())
    norm = attention.W[1]
    assert isinstance(norm, MaskedBatchNorm)
    update_running_statistics(gather_running_statistics(attention, lambda rows: rows))
    assert norm.num_batches_tracked == 1
    alone = attention(maps[1:2], tube[1:2])
    assert torch.allclose(alone[0], found[1], atol=1e-5)
    attention.eval()
    assert torch.equal(attention(maps[:1], tube[:1])[0], maps[0])


# ---------------------------------------------------------------------------------------------------- the whole network


def flags_of(**flags) -> TrainConfig:
    return config_of("i3d", "tsanet", window_layout="full", frame_num=103, **flags)


def method_of(config: TrainConfig, width: int, scale: float) -> TubeClassifier:
    """The method with the head of a golden file, loaded as from a released checkpoint."""
    method = build_method(config, width, FALLS)
    method.load_pretrained({"evaluator": recipe_state(reference()["state_dict"]["head"], scale)})
    return method


def test_head_and_loss_are_the_originals(shared: Path):
    (case,) = reference()["head"]
    method = method_of(flags_of(boxes="none"), 1024, case["scale"])
    assert sum(p.numel() for p in method.head.parameters()) == reference()["parameters"]["head"]
    assert sum(p.numel() for p in TubeAttention(480).parameters()) == reference()["parameters"]["module"]
    logits = method.head(recipe_tensor(f"input:{case['name']}", case["input"], 1.0))
    assert difference(method.predict({"logits": logits}, {})["probability"][:, 1:], case["output"]) < 1e-4
    loss = method.loss({"logits": logits}, {}, {"label": torch.tensor(case["labels"])})["loss"]
    assert loss.item() == pytest.approx(case["loss"], rel=1e-4)
    loss.backward()
    own = dict(zip(case["gradient_norms"], method.head.parameters(), strict=True))
    for name, norm in case["gradient_norms"].items():
        assert own[name].grad.norm().item() == pytest.approx(norm, rel=1e-3), name


class Stages(Backbone):
    """The small backbone of the golden trajectories: a stage before the attention, one after it."""

    layout = LAYOUTS["full"]
    windows = I3D.windows

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.feature_dim = width
        self.stem, self.tail = Unit(3, channels, 3, 1, 1e-3, 0.01), Unit(channels, width, 3, 2, 1e-3, 0.01)
        self.stem.stride = self.stem.conv3d.stride = (4, 2, 2)

    def prepare(self, clip: torch.Tensor, mean_C: torch.Tensor, std_C: torch.Tensor) -> torch.Tensor:
        return clip

    def pool(self, maps: torch.Tensor) -> torch.Tensor:
        return maps.mean(dim=(2, 3, 4))[:, None]


class Averaged(Backbone):
    """The clip features of the golden trajectory of the head alone, as a network in stages."""

    feature_dim = 1024

    def prepare(self, clip: torch.Tensor, mean_C: torch.Tensor, std_C: torch.Tensor) -> torch.Tensor:
        return clip

    windows = stem = tail = lambda self, features: features

    def pool(self, features_BND: torch.Tensor) -> torch.Tensor:
        return features_BND.flatten(0, 1)[:, None]


def own_step_name(name: str) -> str:
    """i3d.stage1.bn.weight -> backbone.stem.batch3d.weight, evaluator.evaluator.layer2.bias -> method.head.3.bias."""
    first, *path = name.split(".")
    if first == "i3d":
        stage = {"stage1": "stem", "stage2": "tail"}[path[0]]
        return ".".join(["backbone", stage, *path[1:]]).replace(".bn.", ".batch3d.")
    if first == "TSA_module":
        return ".".join(["method.attention", *path[1:]])
    return f"method.head.{3 * (int(path[1].removeprefix('layer')) - 1)}.{path[2]}"


@pytest.mark.parametrize("index", range(5))
def test_optimizer_steps_are_the_originals(shared: Path, index: int):
    """In float64, through the step of the engine: the head alone, without attention, with it in the released and in the right
    order, and from a fresh attention."""
    case = reference("trajectories_tsa")["cases"][index]
    with_stages = "channels" in case
    config = flags_of(
        optimizer="Adam",
        learning_rate=case["lr"],
        weight_decay=case["weight_decay"],
        batch_size=case["batch"],
        boxes="boxes" if case["attention"] else "none",
        released_tube=case.get("order") == "released",
    )
    width = case.get("width", 1024)
    backbone = Stages(case["channels"], width) if with_stages else Averaged()
    method = build_method(config, width, FALLS)
    if case["attention"]:
        method.add_attention(case["channels"])
    names = {name: own_step_name(name) for name in (*case["norms"], *case.get("running_after", ()))}
    model = ScoringModel(backbone, method, trains_batch_norm=True)
    own = model.state_dict()
    for prefix, scale in (
        ("i3d.", "scale_backbone"),
        ("evaluator.evaluator.", "scale"),
        ("TSA_module.", "scale_module"),
    ):
        start = "evaluator." if prefix.startswith("evaluator") else prefix
        shapes = {n.removeprefix(start): list(own[names[n]].shape) for n in names if n.startswith(prefix)}
        for name, tensor in recipe_state(shapes, case.get(scale, 1)).items():
            own[names[start + name]].copy_(tensor)
    if case.get("zero_start"):
        nn.init.zeros_(method.attention.W[1].weight)
        nn.init.zeros_(method.attention.W[1].bias)
    model.double()
    set_batch_norm(model, group=case["batch"], together=False)
    clips = recipe_tensor(f"input:{case['name']}", case["input"], 1.0).double()
    labels = torch.tensor(case["labels"])
    batches = []
    for row in range(0, len(clips), case["batch"]):
        rows = slice(row, row + case["batch"])
        tubes = (
            {"tube": torch.stack([released_tube(name) for name in case["boxes"][rows]])} if case["attention"] else {}
        )
        batches.append(Batch({"clip": clips[rows]}, tubes, {"label": labels[rows]}, torch.arange(case["batch"])))
    steps = len(case["loss"])
    repeated = [batches[number % case["iterations_per_epoch"]] for number in range(steps)]
    follow(Step(model, config, Ranks(), CPU), repeated, case, names, [case["lr"]] * steps)
    after = model.state_dict()
    for name, expected in case.get("running_after", {}).items():
        found = after[names[name]]
        if isinstance(expected, int):
            assert found == expected
        else:
            assert found.flatten()[:4].tolist() == pytest.approx(expected["first"], rel=1e-6)
            assert found.norm().item() == pytest.approx(expected["norm"], rel=1e-6)


@pytest.mark.slow
def test_a_clip_gives_the_probability_of_the_original(shared: Path):
    """103 frames through I3D in seven windows: without attention, in the right and in the released order of steps."""
    (case,) = reference()["pipeline"]
    backbone = I3D("full").eval()
    backbone.load_pretrained(recipe_state(reference("i3d")["piergiaj_state_dict"], case["backbone_scale"]))
    clip = recipe_tensor(f"input:{case['name']}", [1, 3, 26, 7, 7], 1.0)
    clip = clip.repeat_interleave(case["input"]["repeat_frames"], 2)[:, :, :103]
    for axis in (3, 4):
        clip = clip.repeat_interleave(case["input"]["repeat_pixels"], axis)
    with torch.no_grad():
        maps = backbone.stem(backbone.windows(clip))
    backbone.stem = lambda windows: maps
    tube = {"tube": released_tube(case["boxes"][0])[None]}
    for name, boxes in (("plain", "none"), ("clip_major", "boxes"), ("released_order", "boxes")):
        method = method_of(
            flags_of(boxes=boxes, released_tube=name == "released_order"), 1024, case["head_scale"]
        ).eval()
        if method.attention:
            method.attention = attention_of(case["module_scale"]).eval()
        with torch.no_grad():
            average = method.features(backbone, clip, tube)
            found = method.predict(method(backbone, {"clip": clip}, tube, {}), {})["probability"][:, 1:]
        assert difference(average[0, :16], case[name]["average"][0]["first"]) < 1e-4
        assert difference(found, case[name]["output"]) < 1e-4


# --------------------------------------------------------------------------------------------------- boxes follow pixels


def frames_with_boxes(draws: np.random.Generator, count: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """(count, height, width, 3) black frames, each with a white upright box, and the corners (count, 4, 2)."""
    frames = np.zeros((count, height, width, 3), np.uint8)
    corners = np.zeros((count, 4, 2))
    for index in range(count):
        (left, right), (top, bottom) = (np.sort(draws.choice(n + 1, 2, replace=False)) for n in (width, height))
        frames[index, top:bottom, left:right] = 255
        corners[index] = [(left, top), (right, top), (right, bottom), (left, bottom)]
    return frames, corners


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), scale=st.sampled_from([1, 2]), missing=st.booleans())
def test_boxes_follow_crop_flip_and_frames_exactly(tmp_path_factory, seed: int, scale: int, missing: bool):
    """The tube that a method plans is where the pixels of the drawn boxes are, in every frame of the clip."""
    folder = tmp_path_factory.mktemp("boxes")
    # frames of the size that clips are cropped from, so that no pixel is mixed with another; boxes of another size
    frames, corners = frames_with_boxes(np.random.default_rng(seed), 40, 73, 130)
    kept = np.arange(40) % 3 > 0 if missing else np.ones(40, bool)
    frames[~kept] = 0
    write_boxes(
        boxes_file(folder, "a"), Boxes(np.flatnonzero(kept) + 1, corners[kept] * scale, 130 * scale, 73 * scale)
    )
    config = config_of(
        "i3d", "tsanet", boxes=str(folder), spatial_size=64, data_aug=True, frame_num=18, frame_method="spaced_varied_new",
        seed=seed,
    )  # fmt: skip
    method = build_method(config, 1024, FALLS)
    action = Action("a", 1, 1, 40, label=1)
    sample = method.sample(action, Plan(action, FrameSource(config), [action], seed, 0, True))
    clip = sample.clips["clip"]
    pixels = apply_view(clip.view, frames[np.array(clip.frames) - 1])[:, 0]  # (T, 64, 64)
    cells = F.max_pool2d(pixels[:, None].float(), 16)[:, 0] > 0
    assert torch.equal(torch.from_numpy(sample.given["tube"]) > 0, cells)


@settings(max_examples=50)
@given(st.lists(st.floats(-3, 9), min_size=6, max_size=6))
def test_cells_that_a_turned_box_touches(numbers: list[float]):
    """Against a fine grid of points: every cell with a point inside is touched, and no cell far from the box is."""
    centre, first, second = np.array(numbers).reshape(3, 2)
    quad = in_sequence(np.array([first, second, 2 * centre - first, 2 * centre - second]))
    side = np.roll(quad, -1, axis=0) - quad
    if min(np.hypot(*side.T)) < 0.5 or abs(side[0, 0] * side[1, 1] - side[0, 1] * side[1, 0]) < 0.5:
        return
    found = touched_cells(quad[None], 6, 6)[0]
    ticks = (np.arange(6 * 20) + 0.5) / 20
    x, y = np.meshgrid(ticks, ticks)
    offsets = np.stack([x, y], axis=-1)[:, :, None] - quad  # (120, 120, 4, 2)
    inside = (side[:, 0] * offsets[..., 1] - side[:, 1] * offsets[..., 0] > 0).all(axis=-1)
    sampled = inside.reshape(6, 20, 6, 20).any(axis=(1, 3))
    assert not (sampled & ~found).any()
    assert found.sum() <= sampled.sum() + 12  # cells that the box touches with less than the distance of two points


def test_the_tube_of_the_cells_that_the_sheet_states():
    """The crop of FR-FS: x' = (x * 455 / 640 - 115) / 16 and y' = (y * 256 / 360 - 16) / 16; frames without a box have none."""
    config = config_of("i3d", "tsanet", frame_num=17, data_aug=True, geometry="centre_crop")
    view = FrameSource(config).plan_frames(Action("a", 1, 1, 17), (1,), None).view
    corners = np.array([[200.0, 60.0], [400.0, 60.0], [400.0, 300.0], [200.0, 300.0]])
    cells = view.points(corners, 360, 640) / 16
    assert cells[0] == pytest.approx([(200 * 455 / 640 - 115) / 16, (60 * 256 / 360 - 16) / 16])
    found = touched_cells(np.stack([cells, np.full((4, 2), np.nan)]), GRID, GRID)
    (low_x, low_y), (high_x, high_y) = cells[0], cells[2]
    expected = np.zeros((GRID, GRID), bool)
    expected[int(low_y) : int(np.ceil(high_y)), int(low_x) : int(np.ceil(high_x))] = True
    assert np.array_equal(found[0], expected)
    assert not found[1].any()


def test_actions_without_boxes_are_refused_by_name(tmp_path: Path):
    corners = np.array([[[0, 0], [4, 0], [4, 4], [0, 4]]], float)
    for name, frame in (("a", 5), ("b", 50)):
        write_boxes(boxes_file(tmp_path, name), Boxes(np.array([frame]), corners, 8, 8))
    actions = [Action(name, 1, 1, 20, label=0) for name in "abc"]
    config = config_of("i3d", "tsanet", frame_num=17, boxes=str(tmp_path))
    faults = label_faults(actions, build_method(config, 1024, FALLS))
    assert len(faults) == 2
    assert "action b/001 has no boxes" in faults[0]
    assert f"{tmp_path / 'c.csv'} is missing" in faults[1]
    plain = build_method(config_of("i3d", "tsanet", frame_num=17, boxes="none"), 1024, FALLS)
    assert label_faults(actions, plain) == []
    with pytest.raises(UserError, match="--method tsanet needs stages"):
        config_of("timesformer", "tsanet")


def test_scores_are_predicted_as_usdl_does(tmp_path: Path):
    """A step with boxes in windows of 16 frames; the task of the run is that of the flag."""
    corners = np.array([[[8, 8], [40, 8], [40, 60], [8, 60]]] * 20, float)
    write_boxes(boxes_file(tmp_path, "a"), Boxes(np.arange(1, 21), corners, 64, 64))
    config = config_of(
        "i3d", "tsanet", window_layout="full", frame_num=18, spatial_size=28, boxes=str(tmp_path), predicts="score", batch_size=2,
    )  # fmt: skip
    assert (config.task, flags_of().task) == ("score", "label")
    action = Action("a", 1, 1, 20, final_score=80.0, rules=DIVING)
    method = build_method(config, 32, DataFacts((), {"": DIVING}))
    method.add_attention(16)
    model = ScoringModel(Stages(16, 32), method, trains_batch_norm=True)
    set_batch_norm(model, group=2, together=False)
    sample = method.sample(action, Plan(action, FrameSource(config), [action], 0, 0, True))
    assert sample.given["tube"].shape == (18, 2, 2)
    assert sample.given["tube"].any()
    given, labels = (
        {name: torch.as_tensor(np.stack([value] * 2)) for name, value in part.items()}
        for part in (sample.given, sample.labels)
    )
    batch = Batch({"clip": torch.randn(2, 3, 18, 28, 28)}, given, labels, torch.arange(2))
    found = Step(model.train(), config, Ranks(), CPU)(batch, 1e-3, 0)
    assert found["loss"] > 0
    scores = method.predict(model.eval()(batch), given)["score"]
    assert scores.shape == (2,)
    assert ((scores >= 0) & (scores <= DIVING.high)).all()
    # a run resumes only with the same boxes
    before = method.record([action])
    write_boxes(boxes_file(tmp_path, "a"), Boxes(np.arange(1, 21), corners + 1, 64, 64))
    _boxes_in.cache_clear()
    assert method.record([action]) != before
