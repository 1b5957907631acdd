"""The table of results: one row for all seeds of the same flags; runs on other dives are refused."""

from __future__ import annotations

import dataclasses
import statistics
from pathlib import Path

from launch.readme_tables import RESULTS_README
from tests.conftest import REPOSITORY, run_main
from training.config import TrainConfig
from training.runtime.run_folder import RunFolder, write_json
from training.runtime.run_progress import RunProgress


def write_run(folder: Path, config: TrainConfig, spearman: float, tested: int = 9, **more: float) -> Path:
    run = RunFolder(folder)
    run.create(config)
    test = {"spearman": spearman, "r_l2_x100": 0.5, "mae": 4.0}
    # the last digits of a baseline depend on the seed's order of the training dives
    baselines = {"train mean": {"spearman": None, "r_l2_x100": 3.0 + config.seed * 1e-15, "mae": 11.0}}
    write_json(
        run.summary_file, {"test": test, "baselines": baselines, "method_metrics": more, "groups": {}, "checkpoint": {}}
    )
    write_json(run.splits_file, {"train": [], "val": [], "test": [[config.fold, i] for i in range(tested)]})
    return folder


def test_seeds_are_one_line(tmp_path: Path):
    values = [0.91, 0.93, 0.95]
    runs = [write_run(tmp_path / f"a-s{i}", TrainConfig(seed=i), v) for i, v in enumerate(values)]
    other = TrainConfig(seed=1, loss_spcoef_weight=0.5)
    runs.append(write_run(tmp_path / "b-s1", other, 0.97, tw_no_accuracy=0.75))
    runs.append(write_run(tmp_path / "c-s1", TrainConfig(seed=1, patience=3), 0.5))  # stopped early: not b's, not a's
    out = run_main("training.report", *runs).stdout
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if line.startswith("|")]
    assert cells[2][:5] == ["a", "timesformer", "regression", "3", f"0.930 ± {statistics.stdev(values):.3f}"]
    assert cells[3][0] == "b"
    assert cells[3][3:5] == ["1", "0.970"]
    assert cells[4][:4] == ["c", "timesformer", "regression", "1"]
    assert cells[5][0] == "*without video: train mean*"
    assert cells[5][4] == "undefined"
    assert "9 test actions." in out
    assert "b also predicts: tw no accuracy 0.75." in out


def test_other_boxes_or_features_are_another_line(tmp_path: Path):
    """Their flags are paths, which may change when data are moved; splits.json says what the files held."""
    runs = []
    for name, boxes in (("true-s0", "a"), ("true-s1", "a"), ("shuffled-s0", "b"), ("none-s1", None)):
        runs.append(write_run(tmp_path / name, TrainConfig(seed=int(name[-1])), 0.9))
        splits = {"train": [], "val": [], "test": [[1, 1]], **({"boxes": boxes} if boxes else {})}
        write_json(RunFolder(runs[-1]).splits_file, splits)
    out = run_main("training.report", *runs).stdout
    cells = [[cell.strip() for cell in line.split("|")[1:5]] for line in out.splitlines() if line.startswith("| ")]
    assert [(row[0], row[3]) for row in cells[2:5]] == [("true", "2"), ("shuffled", "1"), ("none", "1")]


def test_what_cannot_be_put_together_is_refused(tmp_path: Path):
    a = write_run(tmp_path / "a", TrainConfig(), 0.9)
    b = write_run(tmp_path / "b", dataclasses.replace(TrainConfig(), seed=1), 0.9, tested=8)
    unopened = tmp_path / "c"
    RunFolder(unopened).create(TrainConfig())
    damaged = write_run(tmp_path / "d", TrainConfig(), 0.9)
    RunFolder(damaged).summary_file.write_text("{}")
    twin = write_run(tmp_path / "twin", TrainConfig(workers=5), 0.9)
    odd = write_run(tmp_path / "e", TrainConfig(), 0.9)
    RunFolder(odd).config_file.write_text('{"batch_size": "eight"}')
    for runs, words in (
        ([a, b], "different actions"),
        ([a, a], "are the same run: give each run once"),
        ([a, twin], "a and twin have the same flags and seed 0: give one of them"),
        ([damaged], "is damaged"),
        ([odd], "is damaged"),
        ([unopened], "has no result"),
        ([tmp_path], "holds no run"),
    ):
        done = run_main("training.report", *runs, check=False)
        assert done.returncode == 2
        assert words in done.stderr


def test_folds_are_one_line(tmp_path: Path):
    config = TrainConfig(split="event", folds=2)
    runs = [
        write_run(tmp_path / f"a-f{fold}-s{seed}", dataclasses.replace(config, fold=fold, seed=seed), value)
        for (fold, seed), value in {(1, 0): 0.8, (2, 0): 0.6, (1, 1): 0.9, (2, 1): 0.7}.items()
    ]
    out = run_main("training.report", *runs).stdout
    assert f"| a | timesformer | regression | 2 | 0.750 ± {statistics.stdev([0.7, 0.8]):.3f} |" in out
    assert "18 test actions, means over 2 folds of whole events." in out
    done = run_main("training.report", *runs[:3], check=False)
    assert done.returncode == 2
    assert "a has no run for fold 2 of seed 1 (its other runs of that seed: a-f1-s1)" in done.stderr


def write_sweep(folder: Path, points: list[dict[str, list[str]]]) -> list[Path]:
    """What launch.sweep records of points; their folders are not made."""
    named = {"_".join(f"{flag}-{words[0]}" for flag, words in point.items()): point for point in points}
    write_json(folder / "sweep.json", {"points": named})
    return [folder / name for name in named]


def first_cells(out: str) -> list[str]:
    return [line.split("|")[1].strip() for line in out.splitlines() if line.startswith("|")][2:]


def test_a_sweep_is_reported_as_a_whole(tmp_path: Path):
    seeds = tmp_path / "repeat"
    seeds.mkdir()
    for seed, run in enumerate(write_sweep(seeds, [{"seed": [str(seed)]} for seed in range(3)])):
        write_run(run, TrainConfig(seed=seed), 0.9)
    assert first_cells(run_main("training.report", seeds).stdout) == ["repeat", "*without video: train mean*"]
    assert first_cells(run_main("training.report", *seeds.glob("seed-*")).stdout)[0] == "repeat"

    rates = tmp_path / "rates"
    rates.mkdir()
    grid = [{"learning_rate": [rate], "seed": [seed]} for rate in ("1e-4", "1e-5") for seed in "01"]
    *opened, failed, unopened = write_sweep(rates, grid)
    for seed, run in enumerate(opened):
        write_run(run, TrainConfig(seed=seed, learning_rate=1e-4), 0.8)
    RunFolder(failed).create(TrainConfig())
    progress = {"state": "failed", "error": "the loss became nan", "epoch": 1, "epochs": 5, "updated": 1.0}
    write_json(RunFolder(failed).progress_file, progress)
    out = run_main("training.report", rates, seeds).stdout
    assert first_cells(out)[:2] == ["rates/learning_rate-1e-4", "repeat"]
    assert f"- rates/{failed.name}: failed at epoch 1 of 5 (the loss became nan)" in out
    assert f"- rates/{unopened.name}: not started" in out
    RunFolder(unopened).create(TrainConfig())
    RunFolder(unopened).write_progress(RunProgress("finished", epoch=5, epochs=5))
    assert f"- rates/{unopened.name}: trained, test split not opened" in run_main("training.report", rates).stdout

    closed = tmp_path / "closed"
    closed.mkdir()
    write_sweep(closed, [{"seed": ["0"]}])
    done = run_main("training.report", closed, check=False)
    assert done.returncode == 2
    assert "has a result (closed/seed-0: not started)" in done.stderr


def test_the_readme_has_a_place_for_the_results_table():
    text = (REPOSITORY / RESULTS_README).read_text()
    assert "<!-- results -->" in text
    assert "<!-- end of results -->" in text
