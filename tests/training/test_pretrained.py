"""Exported models: every backbone and method gives the same predictions without its run folder."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch

from data_preparation.annotations import load_split, write_split
from data_preparation.common.errors import UserError
from tests.conftest import REPOSITORY, run_main
from tests.small import FACTS
from tests.training.test_conformance import DIVES, PAIRS, batch_for, config_for
from tests.training.test_conformance import features_file as features_file
from tests.training.test_scorer import clip_of
from training import onnx_export, pretrained
from training.config import TrainConfig
from training.data.batch import Batch, Rows
from training.data.splits import load_splits
from training.export import export
from training.methods.base import Bank, ComparingMethod
from training.model import ScoringModel, build_model
from training.onnx_export import Network, example_inputs, onnx_fault, write_onnx
from training.runtime import checkpoint
from training.runtime.run_folder import RunFolder

EXPORTED = [(model, method) for model, method in PAIRS if model != "features"]
IDS = [f"{model}-{method}" for model, method in EXPORTED]


def clips_alone(config: TrainConfig, labelled: TrainConfig | None = None) -> Batch:
    """A batch without exemplars, as in validation; `labelled` is the configuration of its labels, if that is another one."""
    batch = batch_for(config, build_model(labelled or config, FACTS))
    return batch._replace(clips={"clip": batch.clips["clip"]})


def ready_model(config: TrainConfig, batch: Batch) -> ScoringModel:
    """A network with random weights, with the references or the fitted part that its method needs to predict."""
    model = build_model(config, FACTS).eval()
    with torch.no_grad():
        encoded = model(batch)
    if model.method.fits_features:
        rows = Rows(encoded, batch.given, batch.labels)
        model.method.fit(rows, rows)
    if isinstance(model.method, ComparingMethod):
        model.method.remember(Bank([dive.key for dive in DIVES], encoded, batch.labels))
    return model


def run_of(model: ScoringModel, config: TrainConfig, folder: Path) -> RunFolder:
    """A run folder with a network as its best checkpoint."""
    run = RunFolder(folder)
    run.create(config)
    run.facts_file.write_text(json.dumps(FACTS.record()))
    position = {"epoch": 1, "best_epoch": 1, "best": 0.5}
    trained_on = {"trained_on": '{"labels": [], "frames": {}, "is_complete": true}'}
    checkpoint.save(run.best_checkpoint, {"model": model.state_dict(), "position": position, **trained_on})
    return run


def predicted(model: ScoringModel, batch: Batch) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return model.method.predict(model(batch._replace(labels={})), batch.given)


@pytest.mark.parametrize(("model", "method"), EXPORTED, ids=IDS)
def test_an_exported_model_predicts_the_same(model: str, method: str, features_file: Path, tmp_path: Path):
    private = tmp_path / "private"
    private.mkdir()
    flags = {
        name: private / "lists" / f"{name}.pkl" for name in ("root_dir", "annotation_path", "train_path", "test_path")
    }
    if method == "multitask":
        words = ["<eos>", "<sos>", "a", "dive"]
        vocabulary = private / "my_vocab.json"
        vocabulary.write_text(json.dumps({"ix_to_word": {str(i): word for i, word in enumerate(words)}}))
        flags |= {"vocabulary_path": str(vocabulary), "captions_path": str(private / "captions.pkl")}
    config = config_for(model, method, features_file, runs_dir=private / "runs", **flags)
    batch = clips_alone(config, config_for(model, method, features_file))  # without captions
    network = ready_model(config, batch)
    expected = predicted(network, batch)
    run = run_of(network, config, private / "runs" / "x")
    export(run, tmp_path / "handed_on")
    shutil.rmtree(private)
    found = pretrained.load(tmp_path / "handed_on")
    same = predicted(found.model, batch)
    assert set(same) == set(expected)
    assert all(torch.equal(same[name], expected[name]) for name in expected)
    for file in (tmp_path / "handed_on").iterdir():
        assert str(tmp_path).encode() not in file.read_bytes(), file.name
    assert not {"host", "command"} & set(found.record["trained_with"] | found.record["exported_with"])


def test_what_is_not_an_exported_model_is_refused(features_file: Path, tmp_path: Path):
    config = config_for("timesformer", "core", features_file)
    batch = clips_alone(config)
    run, good = run_of(ready_model(config, batch), config, tmp_path / "run"), tmp_path / "good"
    export(run, good)
    with pytest.raises(UserError, match="exists: give another folder"):
        export(run, good)
    weights, flags = (good / "model.safetensors").read_bytes(), json.loads((good / "config.json").read_text())

    def refused(what: str, name: str | None = None, content: bytes | dict = b"") -> None:
        folder = tmp_path / "bad"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(good, folder)
        if name:
            (folder / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        with pytest.raises(UserError) as error:
            pretrained.load(folder)
        assert what in str(error.value)
        assert "\n" not in str(error.value)

    refused("SHA-256", "model.safetensors", weights[:-1] + bytes([weights[-1] ^ 1]))
    refused("SHA-256", "model.safetensors", weights[:1000])
    refused("is damaged", "config.json", b'{"deepsports_model": 1,')
    refused("is damaged (flags missing)", "config.json", {n: v for n, v in flags.items() if n != "flags"})
    refused("config.json of something else", "config.json", {"architectures": ["BertModel"]})
    refused("has the format 2", "config.json", {**flags, "deepsports_model": 2})
    refused("does not fit the network", "config.json", {**flags, "flags": {**flags["flags"], "depth": 1}})
    refused("--model nowhere", "config.json", {**flags, "flags": {**flags["flags"], "model": "nowhere"}})
    refused("config.json", "config.json", {**flags, "data": {"classes": 3}})
    for folder, what in (
        (tmp_path / "none", "is not a folder"),
        (run.path, "export it first"),
        (tmp_path, "no config.json"),
    ):
        with pytest.raises(UserError, match=what):
            pretrained.load(folder)
    (good / "model.safetensors").unlink()
    with pytest.raises(UserError, match="copy the folder again"):
        pretrained.load(good)


def test_a_failed_export_leaves_nothing(features_file: Path, tmp_path: Path):
    config = config_for("timesformer", "core", features_file)
    run = run_of(ready_model(config, clips_alone(config)), config, tmp_path / "run")
    with pytest.raises(UserError, match="--method core cannot be written as ONNX because it looks for references"):
        export(run, tmp_path / "out", onnx=True)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    read_only = config_for("features", "regression", features_file)
    run.create(read_only)
    with pytest.raises(UserError, match="was trained on a feature file"):
        export(run, tmp_path / "out")


def test_an_exported_model_states_what_it_was_trained_on(train, dataset: Path, tmp_path: Path):
    known, test = (load_split(dataset / "annotations" / f"{part}_split_0.pkl") for part in ("train", "test"))
    write_split(tmp_path / "train.csv", [*known[:20], *test[:5]])
    write_split(tmp_path / "test.csv", known[20:25])
    lists = ["--train_path", tmp_path / "train.csv", "--test_path", tmp_path / "test.csv"]
    train("--run_name", "first", "--epochs", 1, *lists, "--evaluate", "True")
    out = tmp_path / "handed_on"
    done = run_main("training.export", "--run", tmp_path / "runs" / "first", "--out", out)
    assert done.stdout.endswith(": README.md, calibration.json, calibration.npz, config.json, model.safetensors\n")
    card = (out / "README.md").read_text()
    assert "Test Spearman" in card
    assert "without video, train mean" in card
    assert "20 training, 5 validation, 5 test actions" in card
    assert str(tmp_path) not in card

    # the scores of the run, from frames in memory, without the run folder
    run = RunFolder(tmp_path / "runs" / "first")
    config, rows = run.existing_config(), list(csv.DictReader(run.predictions_file.open()))
    splits = load_splits(config)
    shutil.move(run.path, tmp_path / "elsewhere")
    scorer = pretrained.from_pretrained(out, gpu=False)
    found = scorer.predict([clip_of(config, action) for action in splits.test])
    scores = {(row["video"], row["number"]): float(row["predicted_score"]) for row in rows}
    assert len(found) == len(scores) == 5
    for action, prediction in zip(splits.test, found, strict=True):
        assert prediction.values["score"] == pytest.approx(scores[str(int(action.video)), str(action.number)], abs=1e-6)
    assert (scorer.calibration is None) == ("gives no intervals" in card)
    assert (scorer.novelty is None) == ("does not decline" in card)
    video = dataset / "whole_videos" / "01.mp4"
    done = run_main("training.predict", "--run", out, "--video", video, "--start", 1, "--end", 60, "--gpu", "False")
    assert "1-60" in done.stdout
    with pytest.raises(UserError, match="is a run folder: export it first"):
        pretrained.from_pretrained(tmp_path / "elsewhere")

    weights = ["--pretrained_model", out / "model.safetensors"]
    done = train("--run_name", "second", "--epochs", 1, *weights, check=False)
    assert done.returncode == 2
    assert f"was trained on 5 of the {len(test)} test actions" in done.stderr
    listed = tmp_path / "runs" / "second" / "leave_out.csv"
    train("--run_name", "second", "--epochs", 1, *weights, "--leave_out", listed)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "method"), EXPORTED, ids=IDS)
def test_onnx_gives_the_same_numbers(model: str, method: str, features_file: Path, tmp_path: Path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed; ONNX is optional")
    flags = {"depth": 1} if (model, method != "regression") == ("timesformer", True) else {}  # each block takes seconds
    config = config_for(model, method, features_file, **flags)
    network, file = ready_model(config, clips_alone(config)), tmp_path / "model.onnx"
    if fault := onnx_fault(config, network):
        assert fault.startswith(f"--method {method} cannot be written as ONNX because ")
        return
    write_onnx(file, config, network, FACTS)
    assert str(REPOSITORY).encode() not in file.read_bytes()
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        inputs = example_inputs(config, network, FACTS, batch)
        with torch.no_grad():
            expected = Network(network, list(inputs)[1:]).named(*inputs.values())
        found = session.run(list(expected), {name: value.numpy() for name, value in inputs.items()})
        for name, value in zip(expected, found, strict=True):
            assert torch.allclose(torch.from_numpy(value), expected[name], rtol=1e-4, atol=1e-4), name


def test_onnx_without_its_packages_is_refused(features_file: Path, monkeypatch):
    config = config_for("timesformer", "regression", features_file)
    monkeypatch.setattr(onnx_export, "find_spec", lambda name: None)
    fault = onnx_fault(config, build_model(config, FACTS))
    assert fault == "--onnx True needs onnx and onnxscript: pip install onnx onnxscript, or give --onnx False"
