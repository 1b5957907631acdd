"""The benchmarks run, and what they compare computes the same. Times are never checked."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from data_preparation.common.command_line import parse
from data_preparation.common.errors import UserError
from tests.conftest import data_flags, tiny_model
from tests.small import tiny_config
from training.benchmark import __main__ as benchmark
from training.benchmark import step
from training.benchmark._cluster import Hardware, Work, step_seconds
from training.benchmark._reference_step import FORWARDS
from training.benchmark._result import Common, Result, Row, Timing, markdown
from training.benchmark._training import start_up_parts
from training.benchmark._transformers_step import name_in_transformers
from training.benchmark.loader import why_no_torchcodec
from training.benchmark.scale import breaks_first, simulate
from training.config import TrainConfig
from training.model import build_model
from training.runtime.run_folder import RunFolder


def test_every_command_has_flags_and_a_sentence():
    for name, module in benchmark.commands().items():
        assert module.Config.__doc__, name
        assert callable(module.measure), name
    assert {"all", "augment", "loader", "resume", "saving", "start", "step"} <= set(benchmark.commands())


def test_all_finds_its_parts(monkeypatch: pytest.MonkeyPatch):
    ran, commands = [], benchmark.commands()

    def measure(name: str, config: Common) -> Result:
        ran.append((name, config.rounds))
        return Result([Row(name)])

    for name in set(commands) - {"all"}:
        monkeypatch.setattr(commands[name], "measure", partial(measure, name))
    rows = commands["all"].measure(commands["all"].Config(rounds=4)).rows
    assert ran == [(name, 4) for name in commands if name not in ("all", "saving", "scale")]
    assert [row.name for row in rows[:2]] == ["AUGMENT", "augment"]


def test_a_row_has_ratio_and_share():
    timings = {"ours": Timing([3.0, 1.0, 2.0], [1.0] * 3), "reference": Timing([8.0] * 3, [6.0] * 3)}
    row = Row.of("a", timings | {"ceiling": Timing([1.0] * 3, [1.0] * 3)})
    assert row.cells() == ["a", "2000 ms", "8000 ms", "4 x", "1000 ms", "50%", "of CPU times 6 x"]
    text = markdown([["", "x", ""], ["name", "-", ""]])
    assert text.splitlines() == [
        "|      | x |",
        "|------|---|",
        "| name | - |",
    ]  # a column without any text is left out


def test_a_torchcodec_that_does_not_load_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    package = tmp_path / "torchcodec"
    package.mkdir()
    (package / "__init__.py").write_text("raise OSError('libtorchcodec_image.so')")
    (tmp_path / "torchcodec-1.0.dist-info").mkdir()
    (tmp_path / "torchcodec-1.0.dist-info" / "METADATA").write_text("Name: torchcodec\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert why_no_torchcodec() == f"torchcodec 1.0 does not load with torch {torch.__version__}"


@pytest.mark.parametrize("model", ["timesformer", "c3d"])
def test_the_reference_network_computes_the_same(model: str):
    own = build_model(tiny_config(model, "regression", seed=1)).eval()
    for parameter in own.backbone.parameters():  # some start at zero
        torch.nn.init.normal_(parameter, std=0.05)
    config = own.method.config
    video = torch.randn(2, 3, config.frame_num, *config.input_size)
    found = []
    for forward in (own.backbone, partial(FORWARDS[type(own.backbone)], own.backbone)):
        own.zero_grad()
        features = forward(video)
        features.square().sum().backward()
        found.append((features.detach(), [p.grad.clone() for p in own.backbone.parameters()]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)


def test_every_parameter_has_a_name_in_transformers():
    names = build_model(tiny_config("timesformer", "regression")).backbone.state_dict()
    theirs = {name: name_in_transformers(name) for name in names}
    assert len(set(theirs.values())) == len(theirs)
    assert theirs["blocks.1.attn.qkv.weight"] == "encoder.layer.1.attention.attention.qkv.weight"
    assert theirs["blocks.0.temporal_attn.proj.bias"] == "encoder.layer.0.temporal_attention.output.dense.bias"
    assert theirs["blocks.0.mlp.fc2.bias"] == "encoder.layer.0.output.dense.bias"
    assert theirs["norm.weight"] == "layernorm.weight"
    parts = {"embeddings", "encoder", "layernorm"}
    assert {name.split(".")[0] for name in theirs.values()} == parts


def test_step_prints_a_table_and_writes_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    tiny = {"model": "timesformer", "embed_dim": 24, "depth": 2, "num_heads": 2, "spatial_size": 32, "frame_num": 4}
    monkeypatch.setitem(step.CASES, ("small", "timesformer_8"), ("a tiny one", tiny, 2))
    file = tmp_path / "step.json"
    argv = ["step", "--cases", "timesformer_8", "--rounds", "2", "--gpu", "False", "--json", str(file)]
    assert benchmark.main(argv) == 0
    assert "| a tiny one" in capsys.readouterr().out
    content = json.loads(file.read_text())
    assert len(content["rows"][0]["timings"]["ours"]["wall"]) == 2
    assert content["rows"][0]["ceiling"] > 0
    assert content["machine"]["torch"] == torch.__version__
    assert content["a tiny one"]["difference_from_the_reference"] < 1e-4


@pytest.mark.slow
def test_a_training_logs_the_parts_of_its_start_up(train):
    done = train("--epochs", 1, env={})
    parts = start_up_parts(done.stderr)
    assert done.stderr.count("Start-up:") == 1
    assert {"imports", "data", "model", "checkpoint", "first batch", "first step"} <= set(parts)
    whole = parts.pop("all")
    assert sum(parts.values()) == pytest.approx(whole, abs=0.1)


def test_a_log_without_a_first_step_is_named():
    with pytest.raises(UserError, match="first step"):
        start_up_parts("12:00:00 INFO nothing")


def test_headspace_needs_a_run():
    with pytest.raises(UserError, match="--run"):
        benchmark.main(["loader", "--headspace", "True"])


@pytest.mark.slow
def test_headspace_measures_a_run_and_changes_nothing(dataset: Path, tmp_path: Path, capsys):
    config = parse(TrainConfig, [*data_flags(dataset), *tiny_model(), "--runs_dir", str(tmp_path)])
    run = RunFolder(config.run_dir)
    run.create(config)
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    benchmark.main(["loader", "--headspace", "--run", str(run.path), "--steps", "2", "--rounds", "1", "--gpu", "False"])
    assert "Gap to one batch that is in memory:" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*")} == before


@pytest.mark.slow
def test_loader_prints_a_table(capsys):
    assert benchmark.main(["loader", "--height", "144", "--rounds", "1", "--workers", "1"]) == 0
    text = capsys.readouterr().out
    assert "| 48 frames of 256 x 455, crop 224" in text
    assert "| the first batch of an epoch" in text


def test_a_cluster_is_slower_where_something_is_scarce():
    hardware = Hardware(0.1, 0.03, 8, 8, 300e9, 40e9, 15e-6, 100e9, 50e3)
    work = Work(
        clips=100_000, validated=20_000, videos=1000, batch=16, clip_bytes=3e5, clip_cpu=5e-3, open_cpu=1e-3, open_bytes=5e5,
        open_operations=1, kept_archives=256, plan_cpu=3e-5, epoch_cpu=0.05, gradient_bytes=5e8, checkpoint_bytes=1.5e9,
        copy_bytes=5e9, row_cpu=1e-6, start_cpu=2.0, meet=3e-4,
    )  # fmt: skip
    one, many = (step_seconds(ranks, work, hardware) for ranks in (1, 64))
    assert pytest.approx(one, rel=0.05) == 0.1
    assert one < many < 1.2 * one  # the slowest of 64, and the last bucket of the gradient
    assert step_seconds(64, replace(work, clip_cpu=1.0), hardware) > 1.9  # 16 clips by 8 workers
    assert step_seconds(64, work, replace(hardware, storage_operations=500)) > 1.5
    points = [simulate(ranks, replace(work, row_cpu=1e-3), hardware, 1.0) for ranks in (1, 64)]
    assert breaks_first(points).startswith("Outputs of the validation breaks first, at 64 GPUs")
    assert simulate(64, work, hardware, 1 / 64).efficiency > 0.8


@pytest.mark.slow
def test_scale_names_what_breaks_first_and_draws(tmp_path: Path, capsys):
    picture = tmp_path / "scale.png"
    benchmark.main(["scale", "--measured", "500", "--clips_per_video", "10", "--plot", str(picture)])
    text = capsys.readouterr().out
    assert "breaks first" in text or "Nothing costs" in text
    assert "| 1000 " in text
    assert picture.stat().st_size > 10_000
