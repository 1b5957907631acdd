"""Feature files: which are read, which are refused; training on them equals training on frames."""

from __future__ import annotations

import copy
import csv
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_preparation.actions import Dive
from data_preparation.common.command_line import parse
from data_preparation.common.errors import UserError
from tests.conftest import data_flags, run_main, run_python, tiny_model
from training import extract_features
from training.config import TrainConfig
from training.data.dataset import ActionDataset
from training.data.features import FeatureFile
from training.data.loader import training_batches
from training.data.splits import load_splits
from training.engine.step import Step
from training.model import build_model
from training.runtime.ranks import Ranks

CPU = torch.device("cpu")

DIVES = [Dive("01", i, 1 + 100 * i, 80 + 100 * i, difficulty=3.0, final_score=60.0) for i in range(1, 6)]


def matrix(vectors: int = 3, width: int = 4) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(len(DIVES), vectors, width)).astype(np.float32)


def test_every_form_gives_the_same_rows(tmp_path: Path):
    features = matrix()
    keys = np.array([dive.key for dive in DIVES])
    np.savez(tmp_path / "named.npz", **{dive.name: row for dive, row in zip(DIVES, features, strict=True)})
    np.savez(tmp_path / "keyed.npz", keys=keys, features=features)
    np.save(tmp_path / "plain.npy", features)
    (tmp_path / "plain.csv").write_text("video,dive\n" + "".join(f"{v},{n}\n" for v, n in keys))
    for name in ("named.npz", "keyed.npz", "plain.npy"):
        file = FeatureFile(tmp_path / name)
        assert file.width == 4
        assert file.faults(DIVES) == []
        for dive, row in zip(DIVES, features, strict=True):
            assert np.array_equal(file.row(dive.key), row)


def test_hdf5_is_read_where_h5py_is(tmp_path: Path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "f.h5", "w") as file:
        for dive, row in zip(DIVES, matrix(), strict=True):
            file[dive.name] = row
    assert FeatureFile(tmp_path / "f.h5").faults(DIVES) == []


@given(st.integers(1, 5), st.integers(1, 9), st.sampled_from(["f2", "f4", "f8", "i4"]))
def test_any_number_type_and_single_vectors_are_read(count: int, width: int, kind: str):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "f.npz"
        arrays = {dive.name: np.arange(width).astype(kind) for dive in DIVES[:count]}
        np.savez(path, **arrays)
        file = FeatureFile(path)
        assert file.row(DIVES[0].key).shape == (1, width)
        assert file.row(DIVES[0].key).dtype == np.float32


def test_what_is_wrong_is_named(tmp_path: Path):
    rows = {dive.name: row for dive, row in zip(DIVES, matrix(), strict=True)}
    np.savez(tmp_path / "short.npz", **{name: row for name, row in rows.items() if name != DIVES[2].name})
    (fault,) = FeatureFile(tmp_path / "short.npz").faults(DIVES)
    assert "1 actions (01/003)" in fault
    odd = {**rows, DIVES[1].name: np.full((3, 4), np.nan)}
    np.savez(tmp_path / "nan.npz", **odd)
    (fault,) = FeatureFile(tmp_path / "nan.npz").faults(DIVES)
    assert "not finite for 1 actions (01/002)" in fault
    np.savez(tmp_path / "widths.npz", **{**rows, DIVES[1].name: np.zeros((3, 7))})
    np.savez(tmp_path / "strange.npz", a=np.zeros(3))
    np.savez(tmp_path / "text.npz", **{DIVES[0].name: np.array(["a"])})
    np.savez(tmp_path / "objects.npz", **{DIVES[0].name: np.array([{}], dtype=object)})
    np.savez(tmp_path / "keys.npz", keys=np.array([[1, 1], [1, 1]]), features=np.zeros((2, 3)))
    np.savez(tmp_path / "rows.npz", keys=np.array([[1, 1]]), features=np.zeros((2, 3)))
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 and no more")
    (tmp_path / "empty.npz").write_bytes(b"")
    for name, words in (
        ("widths.npz", "differing sizes"), ("strange.npz", "not named after an action"), ("text.npz", "not \\(vectors, width\\)"),
        ("objects.npz", "Object arrays"), ("keys.npz", "twice"), ("rows.npz", "1 keys for 2 rows"),
        ("broken.npz", "cannot be read"), ("empty.npz", "cannot be read"), ("none.npz", "cannot be read"),
        ("f.txt", "does not end in"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=words):
            FeatureFile(tmp_path / name).rows  # noqa: B018


def last_metrics(run: Path) -> dict:
    skip = {"seconds", "type"}
    return {k: v for k, v in json.loads((run / "metrics.jsonl").read_text().splitlines()[-1]).items() if k not in skip}


def predicted(run: Path) -> list[float]:
    return [float(row["predicted_score"]) for row in csv.DictReader((run / "predictions.csv").open())]


def test_a_fit_to_features_equals_one_on_the_fly(dataset: Path, train: Callable, tmp_path: Path):
    """Extraction with training flags, from a run, and on two ranks writes the same file."""
    shape = ["--frame_num", 4, "--seed", 3, "--method", "svr"]
    train("--run_name", "svr", *shape, "--evaluate", "True")
    flags = [*data_flags(dataset), *tiny_model("--method", "svr"), *shape]
    extract = ["training.extract_features", "--output"]
    done = run_main(*extract, tmp_path / "f.npz", *flags)
    assert "60 actions, 1 vector of 32 values each" in done.stdout
    run_main(*extract, tmp_path / "g.npz", "--run", tmp_path / "runs" / "svr")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nnodes", 1, "--nproc-per-node", 2]
    run_python(*torchrun, "-m", *extract, tmp_path / "h.npz", *flags)
    for name in ("g.npz", "h.npz"):
        assert (tmp_path / "f.npz").read_bytes() == (tmp_path / name).read_bytes()
    assert not list(tmp_path.glob("*.parts-*"))
    on_file = ["--model", "features", "--features", tmp_path / "f.npz", *shape]
    train("--run_name", "svr-file", *on_file, "--evaluate", "True")
    a, b = (tmp_path / "runs" / name for name in ("svr", "svr-file"))
    assert predicted(a) == pytest.approx(predicted(b), abs=1e-4)
    assert last_metrics(a) == pytest.approx(last_metrics(b), rel=1e-4)


@pytest.mark.slow
def test_steps_on_features_equal_those_on_the_fly(dataset: Path, tmp_path: Path):
    """Regression on a frozen backbone, with the same initial head."""
    argv = [*data_flags(dataset), *tiny_model(), "--freeze", "True", "--batch_size", "6"]
    frozen = parse(TrainConfig, list(map(str, argv)))
    run_main("training.extract_features", "--output", tmp_path / "f.npz", *argv)
    common = [*data_flags(dataset), *tiny_model("--model", "features"), "--batch_size", "6"]
    on_file = parse(TrainConfig, [*map(str, common), "--model", "features", "--features", str(tmp_path / "f.npz")])
    heads, losses = [], []
    for config in (frozen, on_file):
        model, actions = build_model(config), load_splits(config).train
        if heads:
            model.method.load_state_dict(heads[0])
        heads.append(copy.deepcopy(model.method.state_dict()))
        step, data = Step(model, config, Ranks(), CPU), ActionDataset(actions, config, model.method, augment=True)
        model.train()
        batches = training_batches(data, config, Ranks(), CPU, 0, 0)
        losses.append([step(batch, 1e-3, number)["loss"] for number, batch in enumerate(batches)])
    assert len(losses[0]) > 3
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_stopped_extraction_resumes(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    argv = [str(word) for word in (*data_flags(dataset), *tiny_model(), "--workers", 0)]
    monkeypatch.setattr(extract_features, "_PART", 16)
    done: list[int] = []
    whole = extract_features.compute_part

    def until_the_third(model, data, config, device, part):
        done.append(len(part))
        if len(done) == 3:
            raise KeyboardInterrupt
        return whole(model, data, config, device, part)

    monkeypatch.setattr(extract_features, "compute_part", until_the_third)
    with pytest.raises(KeyboardInterrupt):
        extract_features.main(["--output", str(tmp_path / "f.npz"), *argv])
    assert not (tmp_path / "f.npz").exists()
    extract_features.main(["--output", str(tmp_path / "f.npz"), *argv])
    assert done == [16, 16, 16, 16, 12]  # only the third was computed again
    extract_features.main(["--output", str(tmp_path / "g.npz"), *argv])
    assert (tmp_path / "f.npz").read_bytes() == (tmp_path / "g.npz").read_bytes()


def test_no_frames_are_needed(dataset: Path, train: Callable, tmp_path: Path):
    run_main("training.extract_features", "--output", tmp_path / "f.npz", *data_flags(dataset), *tiny_model())
    train(
        "--run_name", "x", "--model", "features", "--features", tmp_path / "f.npz", "--root_dir", tmp_path / "nowhere",
        "--epochs", 1,
    )  # fmt: skip
    done = train("--run_name", "y", "--model", "features", "--features", tmp_path / "no.npz", check=False)
    assert done.returncode == 2
    assert "--features" in done.stderr
    assert "is not a file" in done.stderr


def test_the_fingerprint_of_features_is_that_of_the_first_edition(tmp_path: Path):
    """Its run folders state the hash of features whose videos were whole numbers."""
    rows = matrix()
    np.savez(tmp_path / "features.npz", **{"01/002": rows[0], "12/001": rows[1], "110/003": rows[2]})
    dives = [Dive(f"{v:02d}", n, 1, 9, difficulty=3.0, final_score=80.0) for v, n in ((110, 3), (1, 2), (12, 1))]
    digest = hashlib.sha256()
    for key, row in zip([(1, 2), (12, 1), (110, 3)], rows, strict=False):
        digest.update(repr((key, row.shape)).encode() + row.tobytes())
    assert FeatureFile(tmp_path / "features.npz").fingerprint(dives) == digest.hexdigest()[:16]
