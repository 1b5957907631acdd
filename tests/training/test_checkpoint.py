"""Checkpoints and plots: written completely or not at all; checkpoints are verified before use."""

from __future__ import annotations

import itertools
import math
import subprocess
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from data_preparation.common.errors import UserError
from training.plots import draw_losses
from training.runtime import checkpoint
from training.runtime.run_folder import RunFolder
from training.schedule import learning_rate
from training.tasks import task_of


def test_a_checkpoint_comes_back(tmp_path: Path):
    content = {"model": {"w": torch.arange(5.0)}, "position": {"epoch": 3, "best_spearman": math.nan}}
    checkpoint.save(tmp_path / "c.pt", content)
    found = checkpoint.load(tmp_path / "c.pt")
    assert torch.equal(found["model"]["w"], content["model"]["w"])
    assert [p.name for p in tmp_path.iterdir()] == ["c.pt"]


@pytest.mark.parametrize("cut", [0, 10, 500])
def test_a_torn_checkpoint_is_named(tmp_path: Path, cut: int):
    checkpoint.save(tmp_path / "c.pt", {"w": torch.zeros(100)})
    (tmp_path / "c.pt").write_bytes((tmp_path / "c.pt").read_bytes()[:cut])
    with pytest.raises(UserError, match=r"c\.pt is damaged"):
        checkpoint.load(tmp_path / "c.pt")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_a_changed_bit_is_detected_or_has_no_effect(tmp_path: Path, data: st.DataObject):
    """Some bytes of a ZIP are padding. If any other byte is changed, the checkpoint is refused."""
    content = {"w": torch.arange(100.0), "position": {"step": 7}}
    checkpoint.save(tmp_path / "c.pt", content)
    raw = bytearray((tmp_path / "c.pt").read_bytes())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    (tmp_path / "c.pt").write_bytes(raw)
    try:
        found = checkpoint.load(tmp_path / "c.pt")
    except UserError:
        return
    assert torch.equal(found["w"], content["w"])
    assert found["position"] == {"step": 7}


def test_a_checkpoint_holds_the_values_at_the_time_of_the_call(tmp_path: Path):
    """Training continues while a thread writes: its changes do not reach the file, and an error of the thread is reported."""
    writer = checkpoint.Writer()
    weight = torch.zeros(1_000_000)
    done: list[bool] = []
    state = {"w": weight, "list": [weight], "n": 1}
    writer.put(state, lambda copy: {tmp_path / "c.pt": copy}, afterwards=lambda: done.append(True))
    weight += 1
    writer.wait()
    assert done == [True]
    found = checkpoint.load(tmp_path / "c.pt")
    assert float(found["w"].sum()) == float(found["list"][0].sum()) == 0
    writer.put({**state, "n": 2, "new": torch.ones(2)}, lambda copy: {tmp_path / "d.pt": copy})  # into the same memory
    writer.wait()
    found = checkpoint.load(tmp_path / "d.pt")
    assert float(found["w"].mean()) == float(found["list"][0].mean()) == 1
    assert (found["n"], found["new"].tolist()) == (2, [1, 1])
    (tmp_path / "file").write_text("")
    writer.put({}, lambda _: {tmp_path / "file" / "c.pt": {}})
    with pytest.raises(UserError, match="could not be written"):
        writer.wait()
    writer.wait()  # reported once


def test_a_full_disk_keeps_the_checkpoint_that_was_there(tmp_path: Path):
    """A real full disk: a file system of 1 MB."""
    mount = tmp_path / "small"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", mount], capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        checkpoint.save(mount / "c.pt", {"w": torch.zeros(1000)})
        with pytest.raises(UserError, match="make room"):
            checkpoint.save(mount / "c.pt", {"w": torch.rand(1_000_000)})
        assert checkpoint.load(mount / "c.pt")["w"].shape == (1000,)
        assert [p.name for p in mount.iterdir()] == ["c.pt"]
    finally:
        subprocess.run(["umount", mount], check=True)


def test_log_lines_after_the_checkpoint_are_removed_on_resume(tmp_path: Path):
    run = RunFolder(tmp_path)
    for step in range(1, 7):
        run.append_metrics({"type": "step", "epoch": 1 + step // 4, "step": step, "loss": math.nan})
        if step == 3:
            run.append_metrics({"type": "epoch", "epoch": 1, "step": 3, "val_spearman": 0.5})
    with open(run.metrics_file, "a") as file:
        file.write('{"type": "step", "ep')  # cut off by a kill
    run.rewind_metrics(epochs_done=1, global_step=4)
    assert [r["step"] for r in run.metrics("step")] == [1, 2, 3, 4]
    assert [r["epoch"] for r in run.metrics("epoch")] == [1]
    assert "NaN" not in run.metrics_file.read_text()


@pytest.mark.parametrize("spearmans", [[0.1, 0.6, 0.4], [None, None], [None, 0.2], [-0.5]])
def test_the_plot_is_drawn_whatever_the_run(tmp_path: Path, spearmans: list):
    epochs = [
        {"epoch": i + 1, "train_loss": 1 / (i + 1), "val_loss": 1.2 / (i + 1), "val_spearman": r}
        for i, r in enumerate(spearmans)
    ]
    draw_losses(epochs, tmp_path / "losses.png", "a run", task_of("score").metric)
    image = Image.open(tmp_path / "losses.png")
    assert image.size[0] > 1000
    assert len(image.convert("RGB").getcolors(1 << 24)) > 20
    assert [p.name for p in tmp_path.iterdir()] == ["losses.png"]


def test_the_learning_rate_is_a_function_of_the_step():
    from training.config import TrainConfig

    config = TrainConfig(learning_rate=1.0, lr_schedule="cosine", warmup_steps=10)
    rates = [learning_rate(step, 110, config) for step in range(110)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == max(rates) == pytest.approx(1.0)
    assert rates[60] == pytest.approx(0.5)
    assert rates[-1] < 0.001
    assert all(b <= a for a, b in itertools.pairwise(rates[10:]))
    assert {learning_rate(s, 110, TrainConfig(learning_rate=0.3)) for s in range(110)} == {0.3}
