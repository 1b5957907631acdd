"""Two runs on the same dives: the paired bootstrap, and what cannot be compared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_preparation.actions import Dive, video_name
from tests.conftest import run_main
from training.metrics import difficulty_band, group_metrics, paired_interval, score_metrics
from training.predictions import predictions_csv
from training.tasks import task_of

TRUE = np.random.default_rng(0).normal(65, 15, 200).clip(0, 100)
DIVES = [
    Dive(video_name(1 + i % 3), i, 1, 9, difficulty=2.0 + (i % 20) / 10, final_score=float(y), position=i % 3)
    for i, y in enumerate(TRUE)
]


def noisy(noise: float, seed: int = 1) -> np.ndarray:
    return TRUE + np.random.default_rng(seed).normal(0, noise, len(TRUE))


def write_run(folder: Path, predicted: np.ndarray, dives: list[Dive] = DIVES) -> Path:
    folder.mkdir()
    (folder / "predictions.csv").write_text(predictions_csv(task_of("score"), {"score": predicted}, dives))
    return folder


def test_the_paired_interval_detects_a_better_run_only():
    low, high, share = paired_interval(noisy(12), noisy(4), TRUE)
    assert 0 < low < high
    assert share == 1
    assert paired_interval(noisy(5), noisy(5), TRUE) == (0, 0, 0.5)
    low, high, share = paired_interval(noisy(5, 1), noisy(5, 2), TRUE)
    assert low < 0 < high
    assert 0.02 < share < 0.98
    # pairing makes small gains significant, because both runs are wrong about the same dives
    shared = noisy(10)
    paired = paired_interval(shared, shared + 0.15 * (TRUE - shared), TRUE)
    assert paired[0] > 0


def test_the_table_of_two_runs(tmp_path: Path):
    a, b = write_run(tmp_path / "a", noisy(9)), write_run(tmp_path / "b", noisy(3))
    out = run_main("training.compare", a, b).stdout
    print(out)
    expected = [score_metrics(p, TRUE)["spearman"] for p in (noisy(9), noisy(3))]
    line = next(line.split() for line in out.splitlines() if line.startswith("Spearman"))
    assert [float(v) for v in line[1:3]] == pytest.approx(expected, abs=1e-4)
    assert float(line[3]) == pytest.approx(expected[1] - expected[0], abs=1e-4)
    assert "B better (Spearman) in 100.0%" in out


def test_runs_of_other_dives_are_refused(tmp_path: Path):
    a, b = write_run(tmp_path / "a", noisy(9)), write_run(tmp_path / "b", noisy(9)[:150], DIVES[:150])
    constant = run_main("training.compare", a, write_run(tmp_path / "same", 0 * noisy(9))).stdout
    assert "Spearman of same is undefined: all predicted (or all true) scores are equal." in constant
    assert "nan" not in constant
    for arguments, words in (
        ([a, b], "tested on 200 actions and b on 150, 150 of them in common"),
        ([a, tmp_path / "none"], "has no predictions.csv"),
        ([a], "give two run folders"),
        ([a, write_run(tmp_path / "nan", noisy(9) * np.nan)], "a score is not a finite number"),
        ([a, write_run(tmp_path / "twice", noisy(9), [DIVES[0], *DIVES[:-1]])], "or an action occurs twice"),
        ([a, write_run(tmp_path / "empty", noisy(9)[:0], [])], "fewer than 3 actions"),
    ):
        done = run_main("training.compare", *arguments, check=False)
        assert done.returncode == 2
        assert words in done.stderr


def test_groups():
    groups = group_metrics(list(noisy(5) + 2), DIVES)
    assert set(groups) == {"event", "difficulty", "position"}
    assert list(groups["event"]) == ["01", "02", "03"]
    assert all(sum(g["dives"] for g in grouping.values()) == 200 for grouping in groups.values())
    assert np.average([g["bias"] for g in groups["event"].values()], weights=[67, 67, 66]) == pytest.approx(2, abs=1)
    mixed = group_metrics(list(noisy(5)), [replace(d, kind=f"k{d.number % 2}") for d in DIVES])
    assert list(mixed["event"]) == ["k0: 01", "k0: 02", "k0: 03", "k1: 01", "k1: 02", "k1: 03"]
    assert [difficulty_band(d) for d in (1.5, 2.9, 3.0, 3.45, 4.1)] == [
        "1.5 to 1.9", "2.5 to 2.9", "3.0 to 3.4", "3.0 to 3.4", "4.0 to 4.4",
    ]  # fmt: skip
