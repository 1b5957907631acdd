"""PECoP: adapters in I3D and the pretext task, against the original's outputs and optimizer steps."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_preparation.common.errors import UserError
from data_preparation.datasets import AnnotationFiles, DataSet, read
from tests.conftest import SHARED, run_python
from tests.golden import fan_in_state, follow, golden, recipe_tensor
from tests.small import DIVES, NoFrames, config_of, tiny_config
from training.backbones.base import Backbone
from training.backbones.i3d.network import ADAPTER, I3D, Adapter, Mixed, Pool, Unit
from training.data.batch import Batch
from training.data.dataset import Plan
from training.engine.step import Step
from training.methods.vspp.method import VSPP, Pace, pace_frames
from training.model import ScoringModel, build_model
from training.rows import set_batch_norm
from training.runtime.ranks import Ranks

CPU = torch.device("cpu")
HEADS = {"logits_p.conv3d": "method.speed", "logits_s.conv3d": "method.segment"}


@cache
def reference() -> dict:
    return golden(SHARED, "pecop")


def norm(tensor: torch.Tensor) -> float:
    return tensor.detach().double().norm().item()


def own_name(name: str) -> str:
    """A name of the original's wrapper -> of ScoringModel: model.* -> backbone.*, logits_p.conv3d.* -> method.speed.*"""
    head, _, last = name.rpartition(".")
    return f"{HEADS[head]}.{last}" if head in HEADS else name.replace("model.", "backbone.", 1)


def own_state(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The heads are 1x1x1 convolutions in the original and linear layers here."""
    return {
        own_name(name): t.flatten(1) if name.startswith("logits") and t.ndim > 1 else t for name, t in state.items()
    }


def vspp_config(**flags):
    return dataclasses.replace(
        tiny_config("i3d", "vspp"), adapters=True, segments=4, pretext_dropout=0.0, frame_num=32, window_layout="4x32",
        bn_eps=1e-5, optimizer="SGD", momentum=0.9, weight_decay=1e-4, **flags,
    )  # fmt: skip


@pytest.mark.parametrize("index", [pytest.param(0, marks=pytest.mark.slow), 1], ids=["32 frames", "16 frames"])
def test_adapters_and_heads_are_the_originals(shared: Path, index: int):
    case = reference()["cases"][index]
    state = fan_in_state(reference()["state_dict"], 0.3)
    model = build_model(vspp_config(adapters_only=True)).eval()
    model.load_state_dict(own_state(state), strict=False)
    blocky = recipe_tensor("input:" + case["name"], case["input_seed_shape"], 1.0)
    for axis, often in enumerate(case["input_repeat"], start=2):
        blocky = blocky.repeat_interleave(often, axis)
    backbone = model.backbone
    for name, maps in backbone.end_points(blocky):
        if known := case["blocks"].get(name):
            assert list(maps.shape) == known["after"]["shape"]
            assert norm(maps) == pytest.approx(known["after"]["norm"], rel=1e-4), name
    features_BND = backbone.pool(maps)
    assert norm(features_BND) == pytest.approx(case["feature"]["norm"], rel=1e-4)
    outputs = {name: getattr(model.method, name)(features_BND).mean(dim=1) for name in ("speed", "segment")}
    for name, logits in outputs.items():
        assert torch.allclose(logits, torch.tensor(case[f"{name}_logits"]), rtol=1e-4, atol=1e-3)
    if "loss" not in case:
        return
    labels = {name: torch.tensor(case["loss"][f"{name}_labels"]) for name in ("speed", "segment")}
    loss = model.method.loss(outputs, {}, labels)["loss"]
    assert float(loss) == pytest.approx(case["loss"]["value"], rel=1e-4)
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert set(gradients) == {own_name(name) for name in case["loss"]["gradient_norms"]}
    for name, expected in case["loss"]["gradient_norms"].items():
        assert norm(gradients[own_name(name)]) == pytest.approx(expected, rel=1e-3), name


def test_the_adapters_have_the_published_sizes(shared: Path):
    model = build_model(vspp_config())
    sizes = {
        name: sum(p.numel() for p in block.tuning_module.parameters())
        for name, block in model.backbone.named_children()
        if isinstance(block, Mixed)
    }
    assert sizes == reference()["adapter_parameters"]
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {own_name(name) for name in reference()["trainable_names"]}
    frozen = [p for p in build_model(vspp_config(adapters_only=False)).backbone.parameters() if not p.requires_grad]
    assert not frozen


class Narrow(Backbone):
    """The narrow I3D of the trajectories: one convolution, then nine Mixed blocks with adapters."""

    feature_dim = 1024
    adapters_only = True
    is_trainable = I3D.is_trainable

    def __init__(self, unit: int) -> None:
        super().__init__()
        self.conv3d_1a_7x7 = Unit(3, 8, 3, 2, 1e-5, 0.1)
        self.pool = Pool((1, 3, 3), (1, 2, 2))
        inputs = 8
        for name in ("3b", "3c", "4b", "4c", "4d", "4e", "4f", "5b", "5c"):
            sizes = (384, 4, 384, 4, 128, 128) if name == "5c" else (unit, 3, unit, 2, unit, unit)
            block = Mixed((inputs, *sizes), 1e-5, 0.1)
            block.tuning_module = Adapter(block.channels, zero=False)
            self.add_module(f"mixed_{name}", block)
            inputs = block.channels

    def prepare(self, clip: torch.Tensor, mean_C: torch.Tensor, std_C: torch.Tensor) -> torch.Tensor:
        return clip

    def forward(self, video_BCTHW: torch.Tensor) -> torch.Tensor:
        x = video_BCTHW
        for layer in self.children():
            x = layer(x)
        return x.mean(dim=(3, 4)).transpose(1, 2)  # (B, T', 1024)


@pytest.mark.parametrize("index", [0, 1], ids=["frozen batch norm", "released"])
def test_twenty_optimizer_steps_are_the_originals(shared: Path, index: int):
    cases = golden(shared, "trajectories_pecop")["cases"]
    case, shapes = cases[index], cases[0]["state_dict"]  # both have the same network
    released = not case["frozen_batch_norm_in_eval"]
    config = vspp_config(batch_size=case["batch"], batch_norm="trained" if released else "frozen")
    model = ScoringModel(Narrow(case["unit"]), VSPP(config, 1024), trains_batch_norm=released)
    set_batch_norm(model, group=case["batch"], together=False)
    missing, unexpected = model.load_state_dict(own_state(fan_in_state(shapes, 0.5)), strict=False)
    assert not unexpected
    assert all(name.startswith("input_") for name in missing)
    video = recipe_tensor("input:" + case["name"], case["input"], 1.0).double()
    model.double()
    batches = [
        Batch(
            {"clip": video[row]},
            {},
            {name: torch.tensor(case[f"{name}_labels"][row]) for name in ("speed", "segment")},
            torch.arange(case["batch"]),
        )
        for row in range(len(video))
    ] * case["epochs"]
    rates = [rate for (rate,) in case["learning_rates"]]
    follow(Step(model, config, Ranks(), CPU), batches, case, {n: own_name(n) for n in shapes}, rates)
    for name, known in case.get("running_after", {}).items():
        found = model.state_dict()[own_name(name)]
        assert norm(found) == pytest.approx(known["norm"] if isinstance(known, dict) else known, rel=1e-6)


def test_weights_without_adapters_start_it_and_half_of_them_do_not(tmp_path: Path):
    small = {"frame_num": 16, "spatial_size": 32, "window_layout": "full", "adapter_init": "zero"}
    plain = build_model(config_of("i3d", **small))
    torch.save(plain.backbone.state_dict(), tmp_path / "plain.pth")
    config = config_of("i3d", **small, adapters=True, seed=1, pretrained_model=str(tmp_path / "plain.pth"))
    adapted = build_model(config)
    clip = torch.rand(1, 3, 16, 32, 32)
    with torch.no_grad():  # adapters that start with zeros change nothing
        assert torch.equal(adapted.eval().backbone(clip), plain.eval().backbone(clip))
    state = adapted.state_dict()
    torch.save(
        {"model": state, "position": {}}, tmp_path / "best.pt"
    )  # of a pretext run: its backbone starts any method
    again = build_model(dataclasses.replace(config, seed=2, pretrained_model=str(tmp_path / "best.pt")))
    names = [name for name in state if f".{ADAPTER}." in name]
    assert names
    assert all(torch.equal(again.state_dict()[name], state[name]) for name in names)
    torch.save({name: t for name, t in state.items() if name not in names[:1]}, tmp_path / "part.pt")
    with pytest.raises(UserError, match=r"1 missing \(mixed_3b.tuning_module.se"):
        build_model(dataclasses.replace(config, pretrained_model=str(tmp_path / "part.pt")))
    with pytest.raises(UserError, match="unexpected"):
        build_model(config_of("i3d", **small, pretrained_model=str(tmp_path / "best.pt")))


def test_a_released_checkpoint_starts_it(shared: Path, tmp_path: Path):
    """The whole wrapper, with the names of a replica."""
    state = fan_in_state(reference()["state_dict"], 0.3)
    file = tmp_path / "gait_adapter03.pth.tar"
    torch.save({"epoch": 3, "state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, file)
    found = build_model(vspp_config(pretrained_model=str(file))).backbone.state_dict()
    assert all(torch.equal(tensor, state[f"model.{name}"]) for name, tensor in found.items())


# ------------------------------------------------------------------------------------------------------ the pretext task


@given(st.integers(8, 40), st.integers(1, 4), st.integers(1, 6), st.integers(2, 4), st.data())
def test_one_segment_has_another_stride(length: int, usual: int, stride: int, segments: int, data: st.DataObject):
    segment = data.draw(st.integers(0, segments - 1))
    frames = pace_frames(length, usual, Pace(stride, segment, 5), segments)
    steps = np.diff(frames)
    first, end = segment * length // segments, (segment + 1) * length // segments
    assert frames[0] == 5
    assert (steps[max(first - 1, 0) : end - 1] == stride).all()
    assert (np.delete(steps, slice(max(first - 1, 0), end - 1)) == usual).all()


def test_frames_are_the_originals_up_to_the_end_of_the_segment(shared: Path):
    """Behind it the original has another stride for one frame, and it jumps to frame 1 at the end of the video."""
    for case in reference()["sampling"]:
        pace = Pace(case["rate"], case["segment"] - 1, case["start"])
        frames = pace_frames(case["clip_len"], case["normal_stride"], pace, case["max_segment"]).tolist()
        known = case["frames"]
        same = case["segment"] * case["clip_len"] // case["max_segment"]
        jumps = [i for i in range(1, len(known)) if known[i] < known[i - 1]]
        assert frames[: min([same, *jumps])] == known[: min([same, *jumps])]


def test_labels_are_draws_that_fit_the_action():
    config = vspp_config()
    method = VSPP(config, 8)

    def sample(action, epoch: int, augment: bool = True):
        return method.sample(action, Plan(action, NoFrames(), DIVES, config.seed, epoch, augment))

    seen = set()
    for epoch in range(40):
        for action in DIVES:
            planned = sample(action, epoch)
            frames = planned.clips["clip"].frames
            assert action.start_frame <= frames[0]
            assert frames[-1] <= action.end_frame
            seen.add((int(planned.labels["speed"]), int(planned.labels["segment"])))
    assert seen == {
        (speed, segment) for speed in (1, 2, 3, 4) for segment in range(4)
    }  # at stride 1, class 0 never occurs
    assert sample(DIVES[0], 3).clips == sample(DIVES[0], 3).clips != sample(DIVES[0], 4).clips
    fixed = sample(DIVES[0], 0, augment=False)
    assert fixed.clips == sample(DIVES[0], 1, augment=False).clips
    assert {name: int(value) for name, value in fixed.labels.items()} == {
        name: int(value) for name, value in method.labels(DIVES[0]).items()
    }
    short = dataclasses.replace(DIVES[0], end_frame=DIVES[0].start_frame + 42)  # 43 frames: strides 2 and no more
    assert {int(sample(short, epoch).labels["speed"]) for epoch in range(20)} == {1}
    with pytest.raises(UserError, match="dive 01/000 has 39 frames and --method vspp needs 40"):
        method.labels(dataclasses.replace(short, end_frame=short.start_frame + 38))
    dense = VSPP(dataclasses.replace(config, speed_classes="drawn"), 8)
    assert dense.speed.out_features == 4
    assert set(dense.class_of_stride.values()) == {0, 1, 2, 3}


def test_wrong_combinations_are_refused():
    with pytest.raises(UserError, match="--method vspp needs frames of the backbone and --model features offers"):
        config_of("features", "vspp")
    with pytest.raises(UserError, match="--frame_num 7 gives 4 segments fewer than two frames each: give 8 or more"):
        config_of("timesformer", "vspp", frame_num=7)


# ----------------------------------------------------------------------------------------------------- the original's lists


def pecop_list(path: Path, rows: list[str]) -> DataSet:
    path.write_text("\n".join(rows) + "\n")
    return read("pecop_list", AnnotationFiles(path))


def test_the_lists_of_the_original_are_read(tmp_path: Path):
    data = pecop_list(tmp_path / "list.txt", ["gait_1 2 150 P01", "gait_2\t0  99 P01", "", "gait_1 4 103 P02"])
    assert not data.faults
    assert [(a.video, a.number, a.end_frame, a.group, a.label) for a in data.actions.values()] == [
        ("P01/gait_1", 1, 150, "P01", None), ("P01/gait_2", 1, 99, "P01", None), ("P02/gait_1", 1, 103, "P02", None),
    ]  # fmt: skip
    assert data.splits["official"].train == tuple(data.actions)
    assert data.splits["official"].test == ()
    bad = pecop_list(tmp_path / "bad.txt", ["a 1 9", "a x 9 P", "a 1 0 P", "a? 1 9 P", "b 1 9 P", "b 1 9 P"])
    assert len(bad.faults) == 5
    assert all(str(tmp_path / "bad.txt") in fault and ": " in fault for fault in bad.faults)
    with pytest.raises(UserError, match=r"none\.txt is not a file"):
        read("pecop_list", AnnotationFiles(tmp_path / "none.txt"))


def test_a_list_and_folders_of_pictures_are_all_that_the_pretext_task_needs(tmp_path: Path):
    picture = simplejpeg.encode_jpeg(np.full((24, 32, 3), 128, np.uint8))
    rows = []
    for performer in ("P01", "P02", "P03"):
        folder = tmp_path / "frames" / performer / "walk"
        folder.mkdir(parents=True)
        for number in range(1, 41):
            (folder / f"{number:06d}.jpg").write_bytes(picture)
        rows.append(f"walk 0 40 {performer}")
    (tmp_path / "list.txt").write_text("\n".join(rows))
    model = [
        "--model",
        "timesformer",
        "--spatial_size",
        16,
        "--frame_num",
        4,
        "--embed_dim",
        24,
        "--depth",
        1,
        "--num_heads",
        2,
    ]
    out = run_python(
        "-m", "training.train", "--dataset_kind", "pecop_list", "--annotation_path", tmp_path / "list.txt",
        "--root_dir", tmp_path / "frames", "--runs_dir", tmp_path, "--run_name", "pre", "--gpu", False, "--workers", 0, *model,
        "--method", "vspp", "--segments", 2, "--batch_size", 2, "--epochs", 1,
    )  # fmt: skip
    assert "validation negative loss" in out.stdout + out.stderr
    assert (tmp_path / "pre" / "checkpoints" / "best.pt").is_file()
    assert not (tmp_path / "pre" / "summary.json").exists()
