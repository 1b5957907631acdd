"""The contracts between the engine, the data and plug-ins: sample plans, views, random samples, groups, references, unused outputs."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given
from hypothesis import strategies as st

from data_preparation.actions import Dive, plain_key
from tests.small import DIVES, batch_of, config_of
from training.config import GEOMETRIES
from training.data.batch import Rows, Tensors, chunk_batch
from training.data.dataset import ActionDataset, Plan
from training.data.plan import Sample, View
from training.data.transforms import apply_view, crop_source_size, crop_view, squash_view
from training.engine import step as step_module
from training.engine.prediction import Predictor, validation_metrics
from training.engine.step import Step
from training.methods.base import ComparingMethod, ParameterGroup
from training.methods.regression.method import Regression, mlp_head
from training.model import ScoringModel, build_model
from training.runtime import checkpoint, collectives
from training.runtime.ranks import Ranks
from training.runtime.seeding import generator
from training.schedule import learning_rate
from training.tasks import task_of

SMALL = {"spatial_size": 32, "embed_dim": 24, "depth": 1, "num_heads": 2, "frame_num": 4, "topology": (16,), "dropout": (0.0,), "drop_path": 0.0, "batch_size": 8}  # fmt: skip
CPU = torch.device("cpu")


def model_with(method_of, **flags) -> tuple[ScoringModel, object]:
    """A small TimeSformer with a method of the test's own."""
    config = config_of(**{**SMALL, **flags})
    model = build_model(config)
    model.method = method_of(mlp_head(model.backbone.feature_dim, config), config)
    return model, config


# ------------------------------------------------------------------------------------------------- views and random samples


@given(
    st.integers(20, 60), st.integers(20, 90), st.integers(8, 40), st.integers(0, 99),
    st.sampled_from(("squashed", *GEOMETRIES)), st.data(),
)  # fmt: skip
def test_points_go_where_the_pixels_go(
    height: int, width: int, size: int, seed: int, geometry: str, data: st.DataObject
):
    """A bright square of a frame is where `View.points` says it is, cropped, flipped or squashed."""
    view = squash_view(size) if geometry == "squashed" else crop_view(size, generator(seed), geometry)
    x, y = data.draw(st.integers(4, width - 5)), data.draw(st.integers(4, height - 5))
    frame = np.zeros((1, height, width, 3), np.uint8)
    frame[:, y - 3 : y + 4, x - 3 : x + 4] = 255
    seen = apply_view(view, frame)[0, 0].double()
    assert tuple(seen.shape) == view.size == (size, size)
    found_x, found_y = view.points(np.array([x + 0.5, y + 0.5]), height, width)
    half_x, half_y = 3.5 * view.resize[1] / width, 3.5 * view.resize[0] / height
    if half_x + 1 < found_x < size - half_x - 1 and half_y + 1 < found_y < size - half_y - 1:  # wholly inside
        columns, rows = torch.arange(size) + 0.5, torch.arange(size) + 0.5
        assert float((seen.sum(0) * columns).sum() / seen.sum()) == pytest.approx(found_x, abs=0.6)
        assert float((seen.sum(1) * rows).sum() / seen.sum()) == pytest.approx(found_y, abs=0.6)


def test_geometries_crop_what_they_say():
    """The standard one draws the numbers of the first edition, so that old runs resume with the same pixels."""
    draws = generator(5)
    (height, width), size = crop_source_size(224), 224
    top, left = (int(draws.integers(0, extent - size + 1)) for extent in (height, width))
    assert crop_view(size, generator(5)) == View((256, 455), (top, left, size, size), bool(draws.random() < 0.5))
    swapped, nearest = (crop_view(size, generator(5), name) for name in ("swapped", "swapped_nearest"))
    assert swapped.resize == nearest.resize == (455, 256)
    assert not swapped.nearest
    assert nearest.nearest
    centred = {crop_view(size, generator(seed), "centre_crop") for seed in range(20)}
    assert centred == {View((256, 455), (16, 115, size, size), flip) for flip in (False, True)}
    with pytest.raises(Exception, match="--data_aug True"):
        config_of(geometry="swapped")


class NoFrames:
    """A source that plans without a disk: the draw itself stands for the clip."""

    def plan(self, action: Dive, rng: np.random.Generator | None) -> tuple:
        return (action.key, None if rng is None else rng.random())

    def faults(self, actions: Sequence[Dive]) -> list[str]:
        return []


def plan_of(action: Dive, epoch: int = 2, augment: bool = True) -> Plan:
    return Plan(action, NoFrames(), DIVES, 7, epoch, augment)


def test_draws_are_named_and_do_not_move_each_other():
    plan = plan_of(DIVES[3])
    alone = plan.clip(DIVES[3])
    plan.rng("jitter").random(100)
    assert plan.clip(DIVES[3]) == alone
    assert plan.clip(DIVES[5], "exemplar")[1] != alone[1]
    # the stream of the first edition
    assert alone[1] == generator(7, "clip", 2, *plain_key(DIVES[3].key)).random()
    assert plan_of(DIVES[3], epoch=3).clip(DIVES[3]) != alone
    assert plan_of(DIVES[3], augment=False).rng("clip") is None


# --------------------------------------------------------------------------------------------- parameter groups, rates


class Grouped(Regression):
    def parameter_groups(self, names: Sequence[str]) -> list[ParameterGroup]:
        bias = [name for name in names if name.endswith("bias")]
        return [ParameterGroup([n for n in names if n not in bias]), ParameterGroup(bias, rate=2.0, decay=0.0)]


def test_groups_have_their_own_rates_and_decays():
    model, config = model_with(Grouped, optimizer="SGD", momentum=0.0, weight_decay=0.1, backbone_lr_scale=0.25)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    step = Step(model, config, Ranks(), CPU)
    step(batch_of(config, model.method), 0.01, 0)
    for name, p in model.named_parameters():
        bias = name.endswith("bias")
        rate = 0.01 * (2 if bias else 1) * (0.25 if name.startswith("backbone.") else 1)
        expected = start[name] - rate * (p.grad + (0 if bias else 0.1) * start[name])
        assert torch.allclose(p, expected, atol=1e-6), name


def test_an_optimizer_saved_before_there_were_groups_is_read(tmp_path: Path):
    model, config = model_with(Regression, optimizer="AdamW")
    step = Step(model, config, Ranks(), CPU)
    batch = batch_of(config, model.method)
    step(batch, 0.01, 0)
    state = copy.deepcopy(step.state())
    for group in state["optimizer"]["param_groups"]:
        del group["rate"]
    again = Step(model_with(Regression, optimizer="AdamW")[0], config, Ranks(), CPU)
    again.load_state(state)
    assert again(batch, 0.01, 1) == step(batch, 0.01, 1)


def test_rates_fall_after_the_named_epochs_and_nesterov_is_torchs():
    config = config_of(**SMALL, learning_rate=0.5, lr_schedule="steps", lr_steps=(2, 3), lr_gamma=0.1, epochs=5)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], 0.5)
    torchs = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 3], 0.1)
    for epoch in range(5):
        for step in range(4):
            assert learning_rate(epoch * 4 + step, 20, config) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        torchs.step()
    model, config = model_with(Regression, optimizer="SGD", nesterov=True)
    assert Step(model, config, Ranks(), CPU).optimizer.defaults["nesterov"]


# ------------------------------------------------------------------------------------------------------- references


class Nearest(ComparingMethod, Regression):
    """Scores an action as the reference with the nearest encoding; its training pairs an action with another one."""

    def sample(self, action: Dive, plan: Plan) -> Sample:
        rng = plan.rng("exemplar")
        other = action if rng is None else plan.pool[int(rng.integers(len(plan.pool)))]
        clips = {"clip": plan.clip(action), "exemplar": plan.clip(other, "exemplar clip")}
        return Sample(clips, self.given(action), self.labels(action))

    def encode(self, backbone, clip: torch.Tensor) -> Tensors:
        return {"code": backbone(clip).mean(dim=1), **super().encode(backbone, clip)}

    def predict(self, outputs: Tensors, given: Tensors) -> Tensors:
        nearest = torch.cdist(outputs["code"], self.bank.encoded["code"]).argmin(dim=1)
        return {"score": self.bank.labels["final_score"][nearest]}

    def loss(self, outputs: Tensors, given: Tensors, labels: Tensors) -> Tensors:
        error = (outputs["execution_and_difficulty"] - labels["execution_and_difficulty"]).square().mean()
        return {"loss": error}


def test_references_are_encoded_with_the_weights_and_saved_with_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model, config = model_with(Nearest)
    model.eval()
    batch = batch_of(config, model.method)

    def one_batch(self, forward, data):
        with torch.no_grad():
            return Rows(forward(batch), batch.given, batch.labels)

    monkeypatch.setattr(Predictor, "forward_all", one_batch)
    monkeypatch.setattr("training.data.dataset.source_of", lambda config: NoFrames())
    data = ActionDataset(DIVES, config, model.method, augment=True, pool=DIVES)
    Predictor(config, Ranks(), CPU).encode_references(model, data.references)
    assert model.method.bank.keys == [dive.key for dive in DIVES]
    with torch.no_grad():
        rows = Rows(model(batch), batch.given, batch.labels)
    assert validation_metrics(model, task_of("score"), rows, DIVES)["val_mae"] == pytest.approx(
        0
    )  # each is nearest to itself
    checkpoint.save(tmp_path / "best.pt", {"model": model.state_dict()})
    other, _ = model_with(Nearest)
    other.load_state_dict(checkpoint.load(tmp_path / "best.pt")["model"])
    assert torch.equal(other.method.predict(*rows[:2])["score"], model.method.predict(*rows[:2])["score"])
    # an exemplar is a function of (seed, epoch, action), and of training actions alone
    first, again, later = (data.plan(epoch, 4).sample.clips["exemplar"] for epoch in (1, 1, 2))
    assert first == again != later
    assert set(data.plan(1, 4).sample.clips) == {"clip", "exemplar"}


# --------------------------------------------------------------------------------------------------- unused outputs


class Unused(Regression):
    """Computes something that its loss does not use."""

    def __init__(self, head, config) -> None:
        super().__init__(head, config)
        self.spare = torch.nn.Linear(24, 3)

    def encode(self, backbone, clip: torch.Tensor) -> Tensors:
        features = backbone(clip).mean(dim=1)
        return {"spare": self.spare(features), "execution_and_difficulty": self.head(features)}


class AsOnGpus(step_module.DistributedDataParallel):
    """What the training uses on GPUs: parameters without a gradient end it at the next step."""

    def __init__(self, module, **options) -> None:
        super().__init__(module, **{**options, "find_unused_parameters": False})


def _steps_on_rank(rank: int, join: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{join}", rank=rank, world_size=2)
    step_module.DistributedDataParallel = AsOnGpus
    model, config = model_with(Unused)
    step = Step(model, config, Ranks(rank, 2), CPU)
    batch = chunk_batch(batch_of(config, model.method), 2)[rank]
    for number in range(3):
        step(batch, 0.01, number)
    assert not any(p.grad is None for p in model.parameters())
    del step
    collectives.disconnect()


@pytest.mark.slow
def test_an_output_that_the_loss_does_not_use_ends_no_training(tmp_path: Path):
    mp.start_processes(_steps_on_rank, (str(tmp_path / "join"),), nprocs=2, start_method="forkserver")


def test_a_rank_batch_that_is_not_a_multiple_of_the_group_is_refused():
    with pytest.raises(Exception, match="bn_group"):
        config_of(**{**SMALL, "batch_norm": "trained", "bn_group": 3})
    config = config_of(**{**SMALL, "batch_norm": "trained", "bn_group": 4})
    assert dataclasses.replace(config, accumulate=2).bn_group == 4
    with pytest.raises(Exception, match="bn_group"):
        dataclasses.replace(config, accumulate=4)
