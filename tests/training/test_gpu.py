"""Half precision and its memory, on a GPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from training.config import TrainConfig
from training.cost import step_memory
from training.data.augment import OPERATIONS, augment_clips
from training.model import build_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA sees no GPU here")


@pytest.mark.parametrize("flags", [["bf16"], ["fp16"], ["fp16", "--accumulate", 2, "--ema", 0.9]])
def test_half_precision_trains_as_full_precision_does(train, tmp_path: Path, flags: list):
    losses = []
    for name, precision in (("full", ["fp32"]), ("half", flags)):
        train("--gpu", "True", "--epochs", 2, "--dropout", 0, "--run_name", name, "--precision", *precision)
        lines = (tmp_path / "runs" / name / "metrics.jsonl").read_text().splitlines()
        losses.append([r["train_loss"] for r in map(json.loads, lines) if r["type"] == "epoch"])
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


@pytest.mark.parametrize("place", range(len(OPERATIONS)), ids=OPERATIONS)
def test_each_operation_of_randaugment_gives_the_pixels_of_a_cpu_up_to_rounding(place: int):
    clips = torch.randint(0, 256, (3, 2, 3, 48, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    looks = [[int(i == place) for i in range(len(OPERATIONS))] + [row] for row in range(3)]
    on_gpu, on_cpu = augment_clips(clips.cuda(), looks).cpu(), augment_clips(clips, looks)
    assert (on_gpu.int() - on_cpu.int()).abs().max() <= 1


@pytest.mark.parametrize("thrifty", [False, True])
def test_expected_memory_is_what_cuda_gives(thrifty: bool):
    config = TrainConfig(frame_num=16, checkpoint_activations=thrifty)
    model = build_model(config).cuda().train()
    torch.cuda.reset_peak_memory_stats()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        features = model.backbone(torch.rand(2, 3, 16, 224, 224, device="cuda"))
    features.float().sum().backward()
    expected = step_memory(model, config, 2, half=True)
    measured = torch.cuda.max_memory_allocated()
    assert expected["weights"] + expected["activations"] == pytest.approx(measured, rel=0.25)
