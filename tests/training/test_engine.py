"""One training step: the large batch in small parts, averages of weights, recomputed activations, non-finite values."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import pytest
import torch

from data_preparation.common.errors import UserError
from tests import small
from tests.small import DIVES, config_of
from training.config import TrainConfig
from training.cost import step_memory
from training.data.batch import Batch, chunk, chunk_batch, concat
from training.data.dataset import ActionDataset
from training.engine.average import weight_average
from training.engine.loop import Engine
from training.engine.optimizers import build_optimizer
from training.engine.prediction import non_finite_rows
from training.engine.results import NonFiniteLoss
from training.losses import mse
from training.model import build_model
from training.rows import RowDropout, RowDropPath, batch_part
from training.runtime.determinism import deterministic_algorithms
from training.runtime.interruption import InterruptionFlag
from training.runtime.ranks import Ranks
from training.runtime.run_folder import RunFolder
from training.runtime.seeding import seed_all

SMALL = {"spatial_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 2, "frame_num": 4, "topology": (16,)}


def engine_of(tmp_path: Path, **flags) -> Engine:
    config = config_of(batch_size=8, optimizer="SGD", **{**SMALL, "dropout": (0.0,), "drop_path": 0.0, **flags})
    engine = Engine(build_model(config), config, RunFolder(tmp_path), Ranks(), torch.device("cpu"), InterruptionFlag())
    engine.train_data = ActionDataset(DIVES, config, engine.model.method, augment=True)
    engine.model.train()
    return engine


def batch_of(engine: Engine) -> Batch:
    return small.batch_of(engine.config, engine.model.method)


def weights_after_a_step(engine: Engine) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    losses = engine.step(batch_of(engine), 0.05, 0)
    return {name: p.detach().clone() for name, p in engine.model.named_parameters()}, losses


@pytest.mark.parametrize("method", ["regression", "multitask"])
@pytest.mark.parametrize("parts", [2, 4, 8])
def test_a_batch_in_parts_moves_the_weights_as_the_whole_does(tmp_path: Path, method: str, parts: int):
    flags = {"method": method, "loss_spcoef_weight": 5.0, "spcoef_strength": 1.0}
    start = dict(engine_of(tmp_path, **flags).model.named_parameters())
    whole, losses = weights_after_a_step(engine_of(tmp_path, **flags))
    in_parts, same_losses = weights_after_a_step(engine_of(tmp_path, accumulate=parts, **flags))

    def distance(found: dict[str, torch.Tensor]) -> float:
        """The largest difference from the whole batch's step, relative to that step."""
        moved = [name for name in whole if not torch.equal(whole[name], start[name])]
        return max(float((found[n] - whole[n]).norm() / (whole[n] - start[n]).norm()) for n in moved)

    assert losses == pytest.approx(same_losses, rel=1e-4, abs=1e-5)
    assert distance(in_parts) < 1e-3
    # adding up the parts' own losses, as accumulation is mostly done, ranks within the parts: another direction
    naive = engine_of(tmp_path, **flags)
    for part in chunk_batch(batch_of(naive), parts):
        (naive.model.method.loss(naive.model(part), part.given, part.labels)["loss"] / parts).backward()
    with torch.no_grad():
        for p in naive.model.parameters():
            p -= 0.05 * p.grad
        assert distance(dict(naive.model.named_parameters())) > 0.01


@pytest.mark.parametrize("parts", [2, 4])
def test_noise_belongs_to_the_rows_of_the_batch(tmp_path: Path, parts: int):
    """Dropout and stochastic depth of a step are the same whether its dives go through whole or in parts."""
    flags = {"dropout": (0.5,), "drop_path": 0.4}
    whole, _ = weights_after_a_step(engine_of(tmp_path / "a", **flags))
    in_parts, _ = weights_after_a_step(engine_of(tmp_path / "b", accumulate=parts, **flags))
    without, _ = weights_after_a_step(engine_of(tmp_path / "c"))
    assert all(torch.allclose(whole[n], in_parts[n], atol=1e-5) for n in whole)
    assert not all(torch.allclose(whole[n], without[n], atol=1e-4) for n in whole)


def test_noise_has_its_rate_and_mean():
    seed_all(0)
    x = torch.ones(200, 500)
    dropped = RowDropout(0.3)(x)
    assert float((dropped == 0).float().mean()) == pytest.approx(0.3, abs=0.01)
    assert float(dropped.mean()) == pytest.approx(1, abs=0.02)
    paths = RowDropPath(0.3)(x.repeat(20, 1))
    assert all(len(row.unique()) == 1 for row in paths)
    assert float((paths[:, 0] == 0).float().mean()) == pytest.approx(0.3, abs=0.03)
    assert torch.equal(RowDropout(0.3).eval()(x), x)
    assert float(RowDropout(1.0)(x).sum()) == 0
    with batch_part(1, 2):
        seed_all(1)
        second = RowDropout(0.5)(x)
    seed_all(1)
    assert torch.equal(RowDropout(0.5)(x.repeat(2, 1))[200:], second)


def test_both_passes_of_a_part_draw_the_same_dropout(tmp_path: Path):
    engine = engine_of(tmp_path, dropout=(0.5,), drop_path=0.3, accumulate=2)
    first, second = chunk_batch(batch_of(engine), 2)
    with torch.no_grad():
        once, other = engine.step._forward(first, 0, 0), engine.step._forward(second, 0, 1)
        again = engine.step._forward(first, 0, 0)
    assert torch.equal(once["execution_and_difficulty"], again["execution_and_difficulty"])
    as_first = engine.step._forward(second, 0, 0)  # another dropout mask than that of part 1
    assert not torch.equal(as_first["execution_and_difficulty"], other["execution_and_difficulty"])


def test_concat_is_the_inverse_of_chunk():
    rows = {"a": torch.arange(6), "b": torch.rand(6, 2)}
    parts = chunk(rows, 3)
    assert [part["a"].tolist() for part in parts] == [[0, 1], [2, 3], [4, 5]]
    assert all(torch.equal(concat(parts)[name], rows[name]) for name in rows)


def test_the_average_follows_the_weights(tmp_path: Path):
    engine = engine_of(tmp_path, ema=0.9)
    expected = None
    for _ in range(3):
        weights, _ = weights_after_a_step(engine)
        expected = weights if expected is None else {n: 0.9 * expected[n] + 0.1 * weights[n] for n in weights}
    judged = dict(engine.step.validated_model.named_parameters())
    assert all(torch.allclose(judged[n], expected[n], atol=1e-6) for n in expected)
    assert engine.step.validated_model is not engine.model
    resumed = engine_of(tmp_path, ema=0.9)
    resumed.load_state(copy.deepcopy(engine.state()))
    assert all(torch.equal(p, judged[n]) for n, p in resumed.step.validated_model.named_parameters())


@pytest.mark.parametrize("how", ["True", "selective"])
@pytest.mark.parametrize("model", ["timesformer", "c3d"])
def test_recomputed_activations_change_nothing(tmp_path: Path, model: str, how: str):
    flags = {
        "model": model,
        "dropout": (0.5,),
        "frame_num": 16,
        **({"drop_path": 0.3} if model == "timesformer" else {}),
    }
    kept, _ = weights_after_a_step(engine_of(tmp_path, **flags))
    recomputed, _ = weights_after_a_step(engine_of(tmp_path, checkpoint_activations=how, **flags))
    assert all(torch.equal(kept[name], recomputed[name]) for name in kept)


@pytest.mark.slow
def test_expected_memory_of_c3d_is_what_an_h100_used():
    """8 clips in bf16 with AdamW used 4.95 GiB (training/README.md): pooling keeps bf16 on CUDA, not on the CPU."""
    config = TrainConfig(model="c3d", frame_num=103, spatial_size=112, window_layout="reference", batch_size=8)
    expected = step_memory(build_model(config), config, 8, half=True)["total"] / 2**30
    assert expected == pytest.approx(4.95, rel=0.05)


@pytest.mark.slow
def test_expected_memory_of_recomputed_blocks_with_pooling():
    """The backward pass computes them again in the same precision, and they need less memory."""
    config = config_of("i3d", frame_num=16, spatial_size=96, window_layout="full", batch_size=4)
    kept, recomputed = (
        step_memory(build_model(c), c, 4, half=True)["activations"]
        for c in (config, dataclasses.replace(config, checkpoint_activations=True))
    )
    assert recomputed < 0.8 * kept


def test_expected_memory_is_what_a_step_keeps(tmp_path: Path):
    flags = {
        **SMALL,
        "embed_dim": 96,
        "depth": 6,
        "num_heads": 6,
        "spatial_size": 64,
        "frame_num": 8,
        "drop_path": 0,
        "dropout": (0.0,),
    }
    config = TrainConfig(**flags)
    model = build_model(config)
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model.backbone(torch.rand(4, 3, 8, 64, 64))
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    measured = sum(t.untyped_storage().nbytes() for pointer, t in kept.items() if pointer not in own)
    assert output.requires_grad
    expected = step_memory(model, config, 4, half=False)
    assert expected["activations"] == pytest.approx(measured, rel=0.25)
    assert expected["weights"] == 4 * sum(p.numel() for p in model.parameters())
    assert expected["optimizer"] == 2 * expected["weights"]
    double = step_memory(model, config, 8, half=False)["activations"]
    assert double == pytest.approx(2 * expected["activations"], rel=0.1)
    assert step_memory(model, config, 4, half=True)["activations"] < 0.8 * expected["activations"]
    thrifty = TrainConfig(checkpoint_activations=True, **flags)
    assert step_memory(build_model(thrifty), thrifty, 4, half=False)["activations"] < 0.5 * expected["activations"]


def test_a_non_finite_loss_names_ranks_and_dives(tmp_path: Path):
    engine = engine_of(tmp_path)
    engine.ranks = Ranks(0, 4)
    assert "rank 2: actions 01/005)" in engine._non_finite_loss_text(
        NonFiniteLoss(float("nan"), 0, [5], torch.arange(8))
    )
    assert non_finite_rows({"a": torch.tensor([1.0, torch.inf]), "n": torch.tensor([1, 2])}) == [1]


def test_a_non_finite_loss_or_gradient_changes_no_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    engine = engine_of(tmp_path)
    before = {name: p.detach().clone() for name, p in engine.model.named_parameters()}
    batch = batch_of(engine)
    batch.labels["execution_and_difficulty"][3] = torch.inf
    with pytest.raises(NonFiniteLoss, match="the loss became inf"):
        engine.step(batch, 0.05, 0)
    monkeypatch.setattr(
        "training.methods.regression.method.mse", lambda p, t: mse(p, t) + (p.sum() * 0).sqrt()
    )  # 0 * inf
    with pytest.raises(UserError, match="the gradient became nan"):
        engine.step(batch_of(engine), 0.05, 0)
    assert all(torch.equal(p, before[name]) for name, p in engine.model.named_parameters())


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("every", ["0", "1"])
def test_a_failed_step_is_named_later_and_neither_it_nor_later_ones_change_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fused: bool, every: str
):
    """`fused` is the arithmetic of a GPU. The losses are read when a line is logged (here after step 10), two steps later, or for a checkpoint after each step."""

    def engine_in(folder: str, losses: list[float]) -> Engine:
        config = small.tiny_config(
            "tsm", "regression", batch_size=8, batch_norm="trained", ema=0.9, log_every=10, checkpoint_every=every
        )
        engine = Engine(
            build_model(config), config, RunFolder(tmp_path / folder), Ranks(), torch.device("cpu"), InterruptionFlag()
        )
        engine.run.best_checkpoint.parent.mkdir(parents=True)
        engine.step.optimizer = build_optimizer(engine.model, config, fused)
        engine.step.average = weight_average(engine.model, 0.9, lambda: engine.step.failed, on_gpu=fused)
        engine.train_data = ActionDataset(DIVES, config, engine.model.method, augment=True)
        whole = batch_of(engine)

        def batches(*_, **__):
            for number, loss in enumerate(losses):
                labels = {name: tensor.clone() for name, tensor in whole.labels.items()}
                labels["execution_and_difficulty"][number] = loss
                yield whole._replace(labels=labels)

        monkeypatch.setattr("training.engine.loop.training_batches", batches)
        return engine

    known = engine_in("known", [1.0, 1.0, 1.0])
    known._train_epoch(3)
    engine = engine_in("failed", [1.0, 1.0, 1.0, float("nan"), 1.0, 1.0, 1.0])
    engine.total_steps = 7
    with pytest.raises(
        UserError, match=r"^the loss became nan at step 4, before the weights were updated \(rank 0: actions "
    ):
        engine._train_epoch(7)
    expected, found = known.step.state(), engine.step.state()
    for part in ("model", "average"):
        for name, tensor in expected[part].items():
            if isinstance(tensor, torch.Tensor) and name != "n_averaged":
                assert torch.equal(found[part][name], tensor), name
    engine.checkpoints.wait()
    assert [int(path.stem[-8:]) for path in engine.run.checkpoints()] == ([3, 2] if every == "1" else [])
    with pytest.raises(UserError, match="at step 4"):
        engine.state()


def test_in_fp16_the_scaler_skips_what_follows_a_failed_step(tmp_path: Path):
    """An infinite gradient alone is normal there: the scaler lowers its scale."""
    engine = engine_of(tmp_path)
    engine.step.optimizer = build_optimizer(engine.model, engine.config, fused=True)
    engine.step.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**126)
    good, bad = batch_of(engine), batch_of(engine)
    bad.labels["execution_and_difficulty"][3] = torch.inf
    before = {name: p.detach().clone() for name, p in engine.model.named_parameters()}
    assert engine.step(good, 0.05, 0)["grad_norm"] in (
        pytest.approx(float("inf")),
        pytest.approx(float("nan"), nan_ok=True),
    )
    assert engine.step.scaler.get_scale() == 2.0**125
    engine.step.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for number, batch in enumerate((bad, good)):
        engine.step.compute(batch, number)
        engine.step.commit(0.05)
    assert all(torch.equal(p, before[name]) for name, p in engine.model.named_parameters())


def test_an_operation_without_a_deterministic_algorithm_is_named():
    """torch refuses it only on a GPU; on a CPU there is another one."""
    with (
        pytest.raises(
            UserError, match="no deterministic algorithm for put_ on this device: give --deterministic False"
        ),
        deterministic_algorithms(True),
    ):
        torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2))
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_batch_with_too_few_rows_is_refused(tmp_path: Path):
    engine = engine_of(tmp_path)
    engine._check_rows(batch_of(engine))
    with pytest.raises(UserError, match="the batch of rank 0 for step 1 has 4 actions instead of 8: fix the reader"):
        engine._check_rows(chunk_batch(batch_of(engine), 2)[0])
