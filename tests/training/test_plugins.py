"""Backbones and methods are found by their folders, and each has flags of its own."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from data_preparation.common.command_line import parse
from data_preparation.common.errors import UserError
from tests.conftest import data_flags, run_python, tiny_model
from tests.small import METHODS, MODELS
from training import plugins
from training.config import TrainConfig, as_record, config_class, differences, from_record

METHOD = '''
import numpy as np, torch
from training.methods.base import Method
def build(config, feature_dim, data): return Points(config, feature_dim)
class Points(Method):
    def __init__(self, config, feature_dim):
        super().__init__()
        self.head, self.unit = torch.nn.Linear(feature_dim, 1), config.points_unit
    def labels(self, action): return {"score": np.float32(action.final_score)}
    def encode(self, backbone, clip): return {"points": self.head(backbone(clip).mean(dim=1))[:, 0], "unused": self.head.bias.expand(len(clip))}
    def loss(self, outputs, given, labels): return {"loss": ((outputs["points"] - labels["score"] / self.unit) ** 2).mean()}
    def predict(self, outputs, given): return {"score": outputs["points"] * self.unit}
'''  # fmt: skip
FLAGS = """
from dataclasses import dataclass
from data_preparation.common.command_line import flag
from training.plugins import MethodFlags
@dataclass(frozen=True)
class Flags(MethodFlags):
    points_unit: float = flag(50.0, "Points of one unit.", minimum=1)
"""


@pytest.fixture
def points(tmp_path: Path) -> dict[str, str]:
    """The environment variable that names a user's plug-in folder with a method of ten lines."""
    folder = tmp_path / "plugins" / "methods" / "points"
    folder.mkdir(parents=True)
    (folder / "method.py").write_text(METHOD)
    (folder / "flags.py").write_text(FLAGS)
    return {"DEEPSPORTS_PLUGINS": str(tmp_path / "plugins")}


ALL_IN_ONE_PROCESS = """
import json, sys
from tests.conftest import run_main
for command in json.loads(sys.argv[1]): print(run_main(*command).stdout)
"""


@pytest.mark.slow
def test_a_plug_in_may_import_timm_before_anything_of_the_project():
    """In a process of its own: tests/conftest.py prepares torchvision for all tests of this one."""
    run_python("-c", "from training.plugins import build_function; build_function('backbones', 'timesformer')")


def test_a_method_of_ten_lines_trains_resumes_and_is_evaluated(points: dict[str, str], dataset: Path, tmp_path: Path):
    flags = ["--method", "points", "--points_unit", "40"]
    train = ["training.train", *data_flags(dataset), "--runs_dir", str(tmp_path), *tiny_model(*flags), *flags]
    commands = [
        [*train, "--run_name", name, "--epochs", epochs] for name, epochs in (("p", "3"), ("q", "1"), ("q", "3"))
    ]
    commands.append(["training.evaluate", "--run", str(tmp_path / "q"), "--gpu", "False"])
    commands.append(["training.train", "--help", "--method", "points"])
    out = run_python("-c", ALL_IN_ONE_PROCESS, json.dumps(commands), env=points).stdout

    def losses(run: Path) -> list[float]:
        records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        return [record["train_loss"] for record in records if record["type"] == "epoch"]

    assert losses(tmp_path / "p") == losses(tmp_path / "q")
    assert len(losses(tmp_path / "p")) == 3
    assert "Test Spearman" in out
    assert "--points_unit" in out
    assert "--topology" not in out


def test_a_plug_in_folder_that_is_not_there_is_named():
    done = run_python(
        "-m", "training.train", "--method", "points", env={"DEEPSPORTS_PLUGINS": "/not/there"}, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: DEEPSPORTS_PLUGINS /not/there is not a folder")


def test_a_flag_of_another_owner_is_refused_by_name():
    with pytest.raises(UserError) as error:
        parse(
            TrainConfig,
            ["--model", "c3d", "--frame_num", "16", "--patch_size", "8", "--method", "svr", "--topology", "8"],
        )
    assert "--patch_size belongs to --model timesformer" in str(error.value)
    # a copy of a plug-in (.github/CONTRIBUTING.md) owns the same flags
    assert re.search(r"--topology belongs to (--method \w+ and )*--method regression", str(error.value))
    with pytest.raises(UserError, match=r"--window_layout belongs to --model c3d and .*--model i3d"):
        TrainConfig(window_layout="full")


def test_flags_of_common_backbones_and_methods_do_not_clash():
    common = {field.name for field in dataclasses.fields(TrainConfig)}
    of = {
        kind: {n: {f.name for f in dataclasses.fields(plugins.flags_of(kind, n))} for n in plugins.names(kind)}
        for kind in plugins.FLAG_OF
    }
    for kind, owned in of.items():
        for name, flags in owned.items():
            assert not flags & common, f"{kind}/{name}"
    for model, mine in of[plugins.BACKBONES].items():
        for method, theirs in of[plugins.METHODS].items():
            assert not mine & theirs, f"{model} and {method}"


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", METHODS)
def test_every_pair_has_one_flat_class(model: str, method: str):
    cls = config_class(model, method)
    names = [field.name for field in dataclasses.fields(cls)]
    assert len(names) == len(set(names))
    assert issubclass(cls, TrainConfig)


def test_a_pair_that_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(plugins.flags_of(plugins.METHODS, "multitask"), "needs", "stages", raising=False)
    with pytest.raises(
        UserError, match="--method multitask needs stages of the backbone and --model timesformer offers"
    ):
        TrainConfig(method="multitask")
    assert TrainConfig(method="multitask", model="i3d", frame_num=103).needs == "stages"


def test_a_configuration_of_the_first_edition_loads():
    """It had the flags of all backbones and methods, whatever was chosen."""
    old = {
        **as_record(TrainConfig(method="svr")),
        "topology": [16],
        "dropout": [0.1],
        "patch_size": 8,
        "window_layout": "reference",
    }
    assert from_record(old) == TrainConfig(method="svr", patch_size=8)
    with pytest.raises(UserError, match="does not know: no_such_flag"):
        from_record({**old, "no_such_flag": 3})


def test_another_method_is_one_difference_not_many():
    fixed, free = differences(TrainConfig(), TrainConfig(method="svr", epochs=7))
    assert fixed == ["--method: regression -> svr"]
    assert free == ["--epochs: 5 -> 7"]
