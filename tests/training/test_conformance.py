"""Tests of every backbone and method. Plug-ins are found by name, so a new one is tested without any change here."""

from __future__ import annotations

import copy
import dataclasses
import gc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from data_preparation.actions import Dive
from data_preparation.boxes import Boxes, boxes_file, write_boxes
from data_preparation.common.command_line import parse
from data_preparation.common.errors import UserError
from tests.small import (
    FACTS,
    METHODS,
    MODELS,
    VIDEO_MODELS,
    actions_of,
    batch_of,
    fits,
    judges_of,
    sampled_batch,
    tiny_argv,
    tiny_config,
)
from training import plugins
from training.config import TrainConfig
from training.data.batch import Batch, Rows, chunk_batch
from training.engine.loop import Engine
from training.engine.optimizers import build_optimizer
from training.engine.step import Step
from training.methods.base import Bank, ComparingMethod
from training.model import ScoringModel, build_model
from training.novelty import describe, outputs_and_descriptions
from training.rows import RowBatchNorm
from training.runtime import checkpoint, collectives
from training.runtime.determinism import deterministic_algorithms
from training.runtime.interruption import InterruptionFlag
from training.runtime.ranks import Ranks
from training.runtime.run_folder import RunFolder

CPU = torch.device("cpu")
DIVES = actions_of(12)
# every backbone with the default method, every method on video and on features
PAIRS = [(model, "regression") for model in MODELS]
PAIRS += [(model, method) for model in ("timesformer", "features") for method in METHODS if method != "regression" and fits(model, method)]  # fmt: skip
# and what fits neither of them on the first backbone that it fits
OTHERS = [method for method in METHODS if not any(fits(model, method) for model in ("timesformer", "features"))]
PAIRS += [next((model, method) for model in MODELS if fits(model, method)) for method in OTHERS]
NAMES = [f"{model}-{method}" for model, method in PAIRS]


@pytest.fixture(scope="module")
def features_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features that tell the score: 3 vectors of 12 numbers for each of DIVES. Boxes are beside them, in boxes/."""
    file = tmp_path_factory.mktemp("features") / "f.npz"
    draws = np.random.default_rng(0)
    rows = {dive.name: draws.normal(size=(3, 12)) * 0.3 + dive.final_score / 30 for dive in DIVES}
    np.savez(file, **rows)
    frames = np.array([frame for frame in range(1, DIVES[-1].end_frame + 1) if frame % 7])
    middle = draws.uniform(4, 60, (len(frames), 1, 2))
    middle[(DIVES[3].start_frame <= frames) & (frames <= DIVES[3].end_frame)] = -50  # outside of the picture
    corners = middle + np.array([(-9, -9), (9, -9), (9, 9), (-9, 9)])  # (N, 4, 2)
    write_boxes(boxes_file(file.parent / "boxes", DIVES[0].video), Boxes(frames, corners, 64, 64))
    return file


def config_for(model: str, method: str, features: Path, **flags) -> TrainConfig:
    more = {"features": features} if model == "features" else {}
    if hasattr(plugins.flags_of(plugins.METHODS, method), "boxes"):
        more["boxes"] = str(features.parent / "boxes")
    return tiny_config(model, method, **{"batch_size": 12, "optimizer": "SGD", "learning_rate": 0.01, **more, **flags})


def batch_for(config: TrainConfig, model: ScoringModel) -> Batch:
    if config.reads == "video":
        return batch_of(config, model.method, DIVES)
    return sampled_batch(config, model.method, DIVES, features_of(config))


def features_of(config: TrainConfig) -> Callable[[Dive], torch.Tensor]:
    rows = np.load(config.features)
    return lambda dive: torch.from_numpy(rows[dive.name]).float()


def with_batch_norm(model: ScoringModel) -> bool:
    return any(isinstance(module, RowBatchNorm) for module in model.modules())


def after_steps(config: TrainConfig, ranks: Ranks, steps: int = 2) -> tuple[dict[str, torch.Tensor], list[float]]:
    """The model's tensors after the first of some steps on this rank's share of one batch, and the losses of all."""
    model = build_model(config, FACTS)
    if model.method.fits_features:
        return {}, []
    step = Step(model, config, ranks, CPU)
    model.train()
    batch = chunk_batch(batch_for(config, model), ranks.world_size)[ranks.rank]
    losses = [step(batch, config.learning_rate, 0)["loss"]]
    moved = {name: t.clone() for name, t in model.state_dict().items() if isinstance(t, torch.Tensor)}
    return moved, losses + [step(batch, config.learning_rate, number)["loss"] for number in range(1, steps)]


WORLD_SIZES = (2, 3)


def _on_rank(rank: int, folder: Path, configs: dict[str, TrainConfig]) -> None:
    """One of three processes; the last one is not among the two ranks of the smaller world."""
    torch.set_num_threads(1)
    for world in WORLD_SIZES:
        if rank < world:
            join = f"file://{folder}/join{world}"
            dist.init_process_group("gloo", init_method=join, rank=rank, world_size=world)
            found = {name: after_steps(config, Ranks(rank, world)) for name, config in configs.items()}
            torch.save(found, folder / f"{world}-{rank}.pt")
            collectives.disconnect()


@pytest.fixture(scope="module")
def on_ranks(features_file: Path, tmp_path_factory: pytest.TempPathFactory, rank_server: None) -> dict[str, list]:
    """What `after_steps` gives on every rank of 2 and of 3, for every pair of plug-ins."""
    folder = tmp_path_factory.mktemp("ranks")
    configs = {name: stepping(*pair, features_file) for name, pair in zip(NAMES, PAIRS, strict=True)}
    mp.start_processes(_on_rank, (folder, configs), nprocs=max(WORLD_SIZES), start_method="forkserver")
    found: dict[str, list] = {name: [] for name in NAMES}
    for world in WORLD_SIZES:
        for rank in range(world):
            for name, result in torch.load(folder / f"{world}-{rank}.pt").items():
                found[name].append(result)
    return found


def stepping(model: str, method: str, features: Path) -> TrainConfig:
    return config_for(model, method, features, batch_norm="trained", bn_group=2, learning_rate=0.001)


def close(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], start: dict[str, torch.Tensor]) -> float:
    """The largest difference of two models, relative to how far the first has moved as a whole."""
    floats = [name for name in a if a[name].is_floating_point()]
    moved = torch.stack([(a[n] - start[n]).norm() for n in floats]).norm()
    return float(torch.stack([(a[n] - b[n]).norm() for n in floats]).norm() / moved)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_step_on_any_number_of_ranks_and_with_any_accumulation(
    name: str, features_file: Path, on_ranks: dict[str, list]
):
    """With dropout, stochastic depth and trained batch norm, running statistics included."""
    config = stepping(*dict(zip(NAMES, PAIRS, strict=True))[name], features_file)
    start = {n: t for n, t in build_model(config, FACTS).state_dict().items() if isinstance(t, torch.Tensor)}
    whole, losses = after_steps(config, Ranks())
    if not losses:
        pytest.skip("fitted at once: there are no steps")
    in_parts = [after_steps(dataclasses.replace(config, accumulate=parts), Ranks()) for parts in (2, 3)]
    for found, same in [*in_parts, *on_ranks[name]]:
        assert same[0] == pytest.approx(losses[0], rel=1e-5)
        assert close(whole, found, start) < 1e-3
        running = [name for name in whole if "running" in name]
        assert all(torch.allclose(whole[name], found[name], rtol=1e-4, atol=1e-6) for name in running)
        # batch statistics of a few values, as in so small a network, amplify the rounding of the first step
        assert same[1] == pytest.approx(losses[1], rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "method"), PAIRS, ids=NAMES)
def test_recomputed_parts_with_checkpointed_activations_change_nothing(model: str, method: str, features_file: Path):
    config = config_for(model, method, features_file, batch_norm="trained", accumulate=2)
    kept, losses = after_steps(config, Ranks())
    for how in ("True", "selective"):
        again, same = after_steps(dataclasses.replace(config, checkpoint_activations=how), Ranks())
        assert losses == same
        assert all(torch.equal(kept[name], again[name]) for name in kept)


@pytest.mark.parametrize(("model", "method"), PAIRS, ids=NAMES)
def test_a_run_resumes_bit_for_bit(model: str, method: str, features_file: Path, tmp_path: Path):
    config = config_for(model, method, features_file, batch_norm="trained", ema=0.9, optimizer="AdamW")

    def engine() -> Engine:
        made = Engine(build_model(config, FACTS), config, RunFolder(tmp_path), Ranks(), CPU, InterruptionFlag())
        made.model.train()
        return made

    first = engine()
    if first.model.method.fits_features:
        pytest.skip("fitted at once: there are no steps")
    batch = batch_for(config, first.model)
    first.step(batch, 0.01, 0)
    checkpoint.save(tmp_path / "c.pt", copy.deepcopy(first.state()))
    resumed = engine()
    resumed.load_state(checkpoint.load(tmp_path / "c.pt"))
    assert first.step(batch, 0.01, 1) == resumed.step(batch, 0.01, 1)
    for a, b in zip(first.step.state()["average"].values(), resumed.step.state()["average"].values(), strict=True):
        assert not isinstance(a, torch.Tensor) or torch.equal(a, b)


class NoWaiting(TorchDispatchMode):
    """Refuses operations whose result the training process would wait for, if it were on a GPU."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "repeat_interleave.Tensor")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func).removeprefix("aten.")
        indexed = name.startswith("index.Tensor") and any(i is not None and i.dtype == torch.bool for i in args[1])
        assert not indexed, "an index of type bool"
        assert not name.startswith(self.WAITING), name
        return func(*args, **kwargs or {})


WAIT = {"tsanet"}  # the attention of a batch is as long as the longest tube in it


@pytest.mark.parametrize(("model", "method"), PAIRS, ids=NAMES)
def test_a_step_waits_for_no_value(model: str, method: str, features_file: Path):
    """With the fused optimizer of a GPU. The losses are read later."""
    config = config_for(model, method, features_file, batch_norm="trained", optimizer="AdamW", accumulate=2)
    network = build_model(config, FACTS)
    if network.method.fits_features:
        pytest.skip("fitted at once: there are no steps")
    if method in WAIT:
        pytest.skip("sizes of its tensors depend on values")
    step = Step(network, config, Ranks(), CPU)
    step.optimizer = build_optimizer(network, config, fused=True)
    network.train()
    batch = batch_for(config, network)
    with NoWaiting():
        result = step.compute(batch, 0)
        step.commit(0.01)
    assert result.read()["loss"] > 0


class InOrder(TorchDispatchMode):
    """Refuses operations that on CUDA add with atomics even with deterministic algorithms: those that PyTorch refuses itself
    (torch.use_deterministic_algorithms), and the one of adaptive_max_pool3d, which it does not."""

    ATOMIC = (
        "max_pool3d_with_indices_backward", "adaptive_max_pool2d_backward", "adaptive_max_pool3d_backward", "fractional_max_pool",
        "max_unpool", "avg_pool3d_backward", "_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward",
        "upsample_linear1d_backward", "upsample_bilinear2d_backward", "upsample_bicubic2d_backward",
        "upsample_trilinear3d_backward", "_upsample_bilinear2d_aa_backward", "_upsample_bicubic2d_aa_backward",
        "reflection_pad1d_backward", "reflection_pad2d_backward", "reflection_pad3d_backward", "nll_loss2d", "_ctc_loss_backward",
        "_embedding_bag", "put_", "put.", "histc", "median.dim", "kthvalue", "grid_sampler_2d_backward", "grid_sampler_3d_backward",
    )  # fmt: skip

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func).removeprefix("aten.")
        assert not name.startswith(self.ATOMIC), f"{name} (training/pooling.py has max pooling with an order)"
        assert not (name.startswith("cumsum") and args[0].is_floating_point()), name
        assert not (name.startswith("bincount") and args[1:] and args[1] is not None), name  # with weights
        assert not (name.startswith("scatter_reduce") and "prod" in args), name
        return func(*args, **kwargs or {})


@pytest.mark.parametrize(("model", "method"), PAIRS, ids=NAMES)
def test_nothing_of_a_step_stays_in_the_memory_of_cuda_graphs(
    model: str, method: str, features_file: Path, monkeypatch: pytest.MonkeyPatch
):
    """With --cuda_graphs the next step overwrites all that the compiled backbone computed, and the gradients."""
    config = config_for(model, method, features_file, batch_norm="trained")
    network = build_model(config, FACTS).train()
    if network.method.fits_features:
        pytest.skip("fitted at once: there are no steps")
    step, backbone = Step(network, config, Ranks(), CPU), network.backbone
    created, alive = NewMemory(), []

    def compiled_call(*inputs: torch.Tensor) -> torch.Tensor:  # torch.compile replaces the same attribute
        with created:
            return backbone._call_impl(*inputs)

    def mark_step_begin() -> None:
        gc.collect()
        gradients = sum(p.grad is not None for p in network.parameters())
        alive.append((sum(not memory.expired() for memory in created.memory), gradients))

    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", mark_step_begin)
    backbone._compiled_call_impl = compiled_call
    batch, results = batch_for(config, network), []
    for number, parts in enumerate((1, 2)):
        step.config = dataclasses.replace(config, compile=True, cuda_graphs=True, accumulate=parts)
        results.append(step.compute(batch, number))
        step.commit(0.01)
    mark_step_begin()
    assert alive == 3 * [(0, 0)]


class NewMemory(TorchDispatchMode):
    """Weak references to the memory of the tensors that are created inside."""

    def __init__(self) -> None:
        super().__init__()
        self.memory: list[StorageWeakRef] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        given, made = (
            {t.untyped_storage().data_ptr(): t for t in tree_leaves(tree) if isinstance(t, torch.Tensor)}
            for tree in ((args, kwargs), found)
        )
        self.memory += [StorageWeakRef(t.untyped_storage()) for place, t in made.items() if place not in given]
        return found


@pytest.mark.parametrize(("model", "method"), PAIRS, ids=NAMES)
def test_a_step_has_deterministic_algorithms(model: str, method: str, features_file: Path):
    """On the CPU two steps give the same bits; no operation of a step lacks an order on a GPU."""
    config = config_for(model, method, features_file, batch_norm="trained", deterministic=True)
    with deterministic_algorithms(config.deterministic):
        assert torch.are_deterministic_algorithms_enabled()
        found, losses = after_steps(config, Ranks(), 1)
        with InOrder():
            again, same = after_steps(config, Ranks(), 1)
    assert not torch.are_deterministic_algorithms_enabled()
    assert losses == same
    assert all(torch.equal(found[name], again[name]) for name in found)


def choices(kind: str, name: str) -> list[tuple[str, str]]:
    """The flags of a plug-in that have choices, with each choice but the default."""
    found = []
    for field in dataclasses.fields(plugins.flags_of(kind, name)):
        values = field.metadata["choices"] or ((True, False) if isinstance(field.default, bool) else ())
        found += [(field.name, str(value)) for value in values if value != field.default]
    return found


CHOICES = [
    (kind, name, flag)
    for kind, names in ((plugins.BACKBONES, MODELS), (plugins.METHODS, METHODS))
    for name in names
    for flag in dict(choices(kind, name))
]


@pytest.mark.parametrize(("kind", "name", "flag"), CHOICES, ids=["-".join(each) for each in CHOICES])
def test_a_step_has_deterministic_algorithms_with_each_choice_of(kind: str, name: str, flag: str, features_file: Path):
    """On the first backbone that has it, the smallest first. A window layout may need longer clips than all small networks have."""
    pairs = (
        [(name, "regression")]
        if kind == plugins.BACKBONES
        else [(m, name) for m in ("features", "timesformer", *MODELS)]
    )
    for value in (value for own, value in choices(kind, name) if own == flag):
        pair = next((pair for pair in pairs if is_valid([*tiny_argv(*pair), f"--{flag}", value])), None)
        if pair is None:
            continue
        config = config_for(*pair, features_file, **{flag: value == "True" if value in ("True", "False") else value})
        network = build_model(config, FACTS)
        step, batch = Step(network.train(), config, Ranks(), CPU), chunk_batch(batch_for(config, network), 4)[0]
        with deterministic_algorithms(True), InOrder():
            step(batch, 0.01, 0)


def is_valid(argv: list[str]) -> bool:
    try:
        parse(TrainConfig, argv)
    except UserError:
        return False
    return True


@pytest.mark.parametrize(("model", "method"), PAIRS, ids=NAMES)
def test_a_prediction_looks_at_its_own_clip_alone(model: str, method: str, features_file: Path):
    config = config_for(model, method, features_file)
    network = build_model(config, FACTS).eval()
    batch = batch_for(config, network)
    batch = batch._replace(clips={"clip": batch.clips["clip"]})
    with torch.no_grad():
        outputs = network(batch)
        if network.method.fits_features:
            network.method.fit(*[type("R", (), {"outputs": outputs, "labels": batch.labels})] * 2)
        if isinstance(network.method, ComparingMethod):
            network.method.remember(Bank([dive.key for dive in DIVES], outputs, batch.labels))
        together = network.method.predict(outputs, batch.given)
        assert together
        assert all(len(predicted) == len(DIVES) for predicted in together.values())
        one = chunk_batch(batch, len(DIVES))[3]
        alone = network.method.predict(network(one), one.given)
        # and not at the labels
        unlabelled = network.method.predict(network(one._replace(labels={})), one.given)
        for name, predicted in together.items():
            assert torch.allclose(alone[name][0], predicted[3], atol=1e-3)
            assert torch.equal(unlabelled[name], alone[name])


@pytest.mark.parametrize(("model", "method"), PAIRS, ids=NAMES)
@torch.no_grad()
def test_one_pass_of_the_backbone_gives_outputs_and_descriptions(model: str, method: str, features_file: Path):
    """As two passes do, bit for bit. Only attention in the middle of a network needs a second pass."""
    config = config_for(model, method, features_file)
    network = build_model(config, FACTS).eval()
    batch = batch_for(config, network)
    batch = batch._replace(clips={"clip": batch.clips["clip"]}, labels={})
    wanted = network(batch), describe(network, batch)
    passes = []
    first_layer = next(m for m in network.backbone.modules() if not list(m.children()))
    first_layer.register_forward_hook(lambda *_: passes.append(1))
    found = outputs_and_descriptions(network, batch)
    for have, want in zip(found, wanted, strict=True):
        assert have.keys() == want.keys()
        assert all(torch.equal(have[name], want[name]) for name in want)
    assert len(passes) <= (2 if method == "tsanet" else 1)
    assert not {"forward", "with_maps"} & set(vars(network.backbone))


@pytest.mark.parametrize(("model", "method"), PAIRS, ids=NAMES)
def test_a_few_samples_are_overfitted(model: str, method: str, features_file: Path):
    """At one of two learning rates: at a large one, a deep network with trained batch norm may get stuck."""
    config = config_for(model, method, features_file, optimizer="AdamW", batch_norm="trained")
    noise = {"dropout": (0.0,), "drop_path": 0.0, "head_dropout": 0.0}
    config = dataclasses.replace(config, **{n: v for n, v in noise.items() if n in config.__dataclass_fields__})
    left = {}
    for learning_rate in (3e-4, 1e-3):
        network = build_model(config, FACTS)
        if network.method.fits_features:
            pytest.skip("fitted at once: there are no steps")
        step = Step(network, config, Ranks(), CPU)
        network.train()
        batch = chunk_batch(batch_for(config, network), 3)[
            0
        ]  # a small batch, so that the largest network takes seconds
        first = least = step(batch, learning_rate, 0)["loss"]
        for number in range(1, 200):
            least = min(least, step(batch, learning_rate, number)["loss"])
            if least < 0.2 * first:
                return
        left[learning_rate] = round(float(least / first), 2)
    pytest.fail(f"after 200 steps of AdamW, the least loss by learning rate is this share of the first: {left}")


def unexplained(method: str, folder: Path, permuted: bool) -> float:
    """Mean squared error on 64 other actions, as a share of their variance, after 300 steps on 64 whose features tell the
    score. For classes: the errors, as a share of those of the largest class."""
    draws = np.random.default_rng(1)
    dives = [
        Dive(
            "01",
            i,
            1 + 100 * i,
            80 + 100 * i,
            difficulty=3.0 + i % 9 / 8,
            final_score=30.0 + i * 37 % 60,
            label=i * 37 % 60 // 20,
            judge_scores=judges_of(30.0 + i * 37 % 60, 3.0 + i % 9 / 8),
            position=i % 3,
            armstand=i % 2,
            rotation_type=i % 4,
            ss_no=i % 10,
            tw_no=i % 8,
        )
        for i in range(128)
    ]
    rows = torch.tensor(draws.normal(size=(128, 1, 12)) * 0.1, dtype=torch.float32)
    rows[:, 0, 0] += torch.tensor([dive.final_score / 30 for dive in dives])
    rows[:, 0, 1] += torch.tensor([dive.difficulty for dive in dives])
    np.savez(folder / "f.npz", **{dive.name: row.numpy() for dive, row in zip(dives, rows, strict=True)})
    config = config_for("features", method, folder / "f.npz", optimizer="AdamW")
    model = build_model(config, FACTS)
    scores = np.random.default_rng(2).permutation(64) if permuted else np.arange(64)
    shown = [
        dataclasses.replace(
            dives[i],
            **{name: getattr(dives[j], name) for name in ("final_score", "difficulty", "judge_scores", "label")},
        )
        for i, j in enumerate(scores)
    ]
    model.method.observe(shown)
    parts = [
        sampled_batch(config, model.method, actions, features_of(config), augment=augment)
        for actions, augment in ((shown, True), (shown, False), (dives[64:], False))
    ]
    if model.method.fits_features:
        with torch.no_grad():
            train, val = (Rows(model(part), part.given, part.labels) for part in parts[1:])
        model.method.fit(train, val)
    else:
        step = Step(model, dataclasses.replace(config, batch_size=64), Ranks(), CPU)
        model.train()
        for number in range(300):
            step(parts[0], 1e-2, number)
    model.eval()
    with torch.no_grad():
        if isinstance(model.method, ComparingMethod):
            model.method.remember(Bank([dive.key for dive in shown], model(parts[1]), parts[1].labels))
        found = model.method.predict(model(parts[2]), parts[2].given)
    if config.task == "label":
        labels = torch.tensor([dive.label for dive in dives[64:]])
        wrong = (found["probability"].argmax(dim=1) != labels).double().mean()
        return float(wrong / (1 - labels.bincount().max() / len(labels)))
    true = np.array([dive.final_score for dive in dives[64:]])
    return float(np.mean((found["score"].double().numpy() - true) ** 2) / true.var())


@pytest.mark.slow
@pytest.mark.parametrize("method", [method for method in METHODS if ("features", method) in PAIRS])
def test_what_is_there_is_learned_and_permuted_labels_give_nothing(method: str, tmp_path: Path):
    real, permuted = (unexplained(method, tmp_path, permuted) for permuted in (False, True))
    assert real < 0.5, f"{real:.0%} of the variance of the true scores is not explained"
    assert permuted > 0.7, f"trained on permuted labels, only {permuted:.0%} of the variance is not explained"


@pytest.mark.parametrize("model", VIDEO_MODELS)
def test_a_frozen_backbone_does_not_move(model: str, features_file: Path):
    config = config_for(model, "regression", features_file, freeze=True, batch_norm="trained")
    start = build_model(config, FACTS).backbone.state_dict()
    after, _ = after_steps(config, Ranks())
    assert all(torch.equal(after[f"backbone.{name}"], tensor) for name, tensor in start.items())


@pytest.mark.parametrize("model", VIDEO_MODELS)
def test_half_precision_runs_and_scores_stay_whole(model: str, features_file: Path):
    config = config_for(model, "regression", features_file)
    network = build_model(config, FACTS).eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = network(batch_for(config, network))
    assert all(t.dtype == torch.float32 for t in outputs.values() if t.is_floating_point())
    assert all(torch.isfinite(t).all() for t in outputs.values() if t.is_floating_point())


@pytest.mark.parametrize(("model", "method"), PAIRS, ids=NAMES)
def test_the_configuration_of_a_plug_in_is_whole(model: str, method: str, features_file: Path):
    """It pickles (workers and submitit need that), and its command line gives it again."""
    import pickle

    from data_preparation.common.command_line import parse, to_argv
    from training.config import as_record, from_record

    config = config_for(model, method, features_file)
    assert pickle.loads(pickle.dumps(config)) == config
    assert from_record(as_record(config)) == config
    assert parse(TrainConfig, to_argv(config)) == config


@pytest.mark.parametrize("model", VIDEO_MODELS)
def test_trained_batch_norm_does_something_and_frozen_does_not(model: str, features_file: Path):
    config = config_for(model, "regression", features_file)
    network = build_model(config, FACTS)
    if not with_batch_norm(network):
        pytest.skip("this backbone has no batch norm")
    for choice, moves in (("frozen", False), ("trained", True)):
        after, _ = after_steps(dataclasses.replace(config, batch_norm=choice), Ranks(), 1)
        running = [n for n in after if n.endswith("running_mean")]
        start = network.state_dict()
        assert any(not torch.equal(after[n], start[n]) for n in running) == moves


@pytest.mark.parametrize("model", VIDEO_MODELS)
def test_a_backbone_has_what_it_offers(model: str, features_file: Path):
    config = config_for(model, "regression", features_file)
    network = build_model(config, FACTS).backbone.eval()
    offers = plugins.flags_of(plugins.BACKBONES, model).offers
    video = torch.rand(2, 3, config.frame_num, config.spatial_size, config.spatial_size)
    with torch.no_grad():
        features = network(video)
        if "stages" in offers:
            vectors = network.pool(network.tail(network.stem(network.windows(video))))
            assert torch.allclose(vectors.reshape(2, -1, network.feature_dim), features, atol=1e-5)
        if "maps" in offers:
            same, maps = network.with_maps(video)
            assert torch.allclose(same, features, atol=1e-5)
            assert maps
            assert all(len(each) == 2 for each in maps.values())
