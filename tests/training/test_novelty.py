"""The distance of a clip from the training clips: what is declined, and what a run folder stores of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_preparation.common.errors import UserError
from tests.small import FACTS, VIDEO_MODELS, clips_of, fits, tiny_config
from training import novelty
from training.data.batch import Batch
from training.model import build_model
from training.runtime.run_folder import RunFolder


def spread_data(count: int, seed: int) -> dict[str, np.ndarray]:
    """Clips of one kind: correlated values, one of them always the same."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((count, 12)) @ np.random.default_rng(0).standard_normal((12, 12))
    return {"features": np.c_[mixed, np.full(count, 3.0)], "picture": rng.standard_normal((count, 4)) + 5}


@pytest.mark.parametrize("validated", [30, 500])
def test_what_is_unlike_is_declined(validated: int, tmp_path: Path) -> None:
    fitted = novelty.fit(spread_data(900, 1), spread_data(validated, 2))
    novelty.save(tmp_path / "calibration.npz", fitted)
    read = novelty.load(tmp_path / "calibration.npz")
    like = spread_data(2000, 3)
    assert np.allclose(read.distances(like), fitted.distances(like), rtol=1e-4)
    assert (read.distances(like) > novelty.LIMIT).mean() < (0.02 if validated == 500 else 0.1)
    assert fitted.expected_declined == pytest.approx(1 / 31 if validated == 30 else 1 - 496 / 501)
    for name, shift in (("features", 40.0), ("picture", 40.0), ("features", np.nan)):
        other = {**like, name: like[name] + shift}
        assert (read.distances(other) > novelty.LIMIT).all()
    moved = {**like, "features": like["features"] + np.eye(13)[12]}  # the value that never changes
    assert (read.distances(moved) > novelty.LIMIT).all()


def test_features_that_are_always_the_same_decline_nothing(tmp_path: Path) -> None:
    """As those of a network all of whose last units are zero."""
    dead = {name: np.zeros((30, 8)) for name in ("features", "picture")}
    novelty.save(tmp_path / "calibration.npz", novelty.fit(dead, dead))
    assert (novelty.load(tmp_path / "calibration.npz").distances(dead) == 0).all()


@pytest.mark.parametrize("part", [0, 1])
def test_features_that_are_not_finite_are_refused(part: int) -> None:
    both = [spread_data(40, 1), spread_data(20, 2)]
    both[part]["features"][3, 2] = np.inf
    with pytest.raises(novelty.NotFinite, match="--precision fp32"):
        novelty.fit(*both)


def test_damaged_file_is_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "calibration.npz"
    assert novelty.load(file) is None
    novelty.save(file, novelty.fit(spread_data(40, 1), spread_data(20, 2)))
    whole = file.read_bytes()
    for content in (b"", whole[: len(whole) // 2], b"PK" + bytes(100), whole.replace(b"picture.mean", b"picture.nean")):
        file.write_bytes(content)
        with pytest.raises(UserError, match=r"training\.calibrate"):
            novelty.load(file)


@pytest.mark.parametrize("model", VIDEO_MODELS)
def test_descriptions_of_all_backbones(model: str) -> None:
    method = next(name for name in ("regression", "classify", "abn", "multitask") if fits(model, name))
    config = tiny_config(model, method)
    network = build_model(config, FACTS).eval()
    clip = clips_of(config, 3)
    with torch.no_grad():
        described = novelty.describe(network, Batch({"clip": clip}, {}, {}, torch.arange(3)))
        alone = novelty.describe(network, Batch({"clip": clip[:1]}, {}, {}, torch.arange(1)))
    assert described["features"].shape == (3, network.backbone.feature_dim)
    assert described["picture"].shape == (3, 5 + min(config.frame_num - 1, novelty.MOTION_STEPS))
    assert all(torch.isfinite(values).all() for values in described.values())
    assert torch.allclose(described["picture"][:1], alone["picture"], atol=1e-6)


def test_run_folder_has_the_distances_of_its_best_checkpoint(train: Callable[..., Any], tmp_path: Path) -> None:
    flags = ("--run_name", "run", "--epochs", 2)
    train(*flags)
    run = RunFolder(tmp_path / "runs" / "run")
    stored = novelty.load(run.novelty_file)
    assert (stored.epoch, stored.noun, stored.rate) == (run.val_predictions_epoch(), "dive", 25)
    assert 40 <= stored.lengths.min() <= stored.lengths.max() <= 56

    whole = run.novelty_file.read_bytes()
    run.novelty_file.unlink()  # as in a run of an older version
    train(*flags)
    assert run.novelty_file.read_bytes() == whole
