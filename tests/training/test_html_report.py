"""report.html: its content, hostile names, and how Chromium shows it."""

from __future__ import annotations

import json
import logging
import re
import shutil
import urllib.parse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_preparation import datasets
from data_preparation.actions import Action, Dive
from data_preparation.common.command_line import parse
from tests.conftest import data_flags, run_main
from training.calibration import Calibration, coverage, write_calibration
from training.compare import predictions_of
from training.config import TrainConfig
from training.data.facts import DataFacts
from training.data.splits import Splits
from training.engine.state import Position
from training.evaluate import summarise
from training.html_report.page import coverage_section, report_page, write_report_or_warn
from training.metrics import spearman_rows
from training.power import about, actions_for_accuracies, actions_for_correlations
from training.predictions import predictions_csv
from training.runtime.run_folder import RunFolder, write_json
from training.tasks import task_of

HOSTILE = '<script>alert("1")</script><img src=http://127.0.0.1:9/x onerror=alert(2)> $\\frac{$ {{ 7*7 }}'
METRICS = {"score": "spearman", "label": "accuracy"}


def write_run(folder: Path, config: TrainConfig, splits: Splits, noise: float) -> RunFolder:
    """The folder of an evaluated run, whose predictions are the truth with noise (points, or shares of the other classes)."""
    run, task, rng = RunFolder(folder), task_of(config.task), np.random.default_rng(config.seed)
    run.create(config)
    write_json(run.splits_file, splits.record())
    classes = splits.facts.classes

    def predicted(actions: list[Action]) -> dict[str, np.ndarray]:
        truth = task.truth(actions).values
        if not classes:
            return {"score": truth + rng.normal(0, noise, len(truth))}
        chances = rng.dirichlet(np.ones(len(classes)), len(truth)) * noise
        chances[np.arange(len(truth)), truth] += 1 - noise
        return {"probability": chances}

    metric = METRICS[config.task]
    for step in range(1, 9):
        run.append_metrics({"type": "step", "epoch": 1, "step": step, "loss": 1 / step, "data_s": 0.01, "step_s": 0.1})
    for epoch in (1, 2):
        record = {"type": "epoch", "epoch": epoch, "step": 4 * epoch, "val_loss": 1.0, f"val_{metric}": epoch / 3}
        run.append_metrics({**record, "seconds": 2.0})
    run.record_resume(1, 4)
    validated = predicted(splits.val)
    epochs = {"epoch": [2] * len(splits.val)}
    run.val_predictions_file.write_text(predictions_csv(task, validated, splits.val, classes, epochs))
    write_calibration(run, task)
    outputs = predicted(splits.test)
    run.predictions_file.write_text(predictions_csv(task, outputs, splits.test, classes))
    position = Position(epoch=2, best_epoch=2, best=2 / 3)
    summary = {**summarise(task, outputs, splits, position), "method_metrics": {}, "notes": []}
    write_json(run.summary_file, summary)
    return run


def dives(dataset: Path) -> tuple[TrainConfig, Splits]:
    """The prepared dives in three parts."""
    config = parse(TrainConfig, data_flags(dataset))
    actions = list(datasets.load(config.dataset_kind, config.annotation_files).actions.values())
    assert isinstance(actions[0], Dive)
    return config, Splits(*(actions[part::3] for part in range(3)), DataFacts())


def falls() -> tuple[TrainConfig, Splits]:
    """Clips of three classes, whose frames are missing."""
    config = parse(TrainConfig, ["--method", "classify", "--root_dir", "/missing"])
    clips = [Action(f"falls/{i}", 1, 1, 20, label=i % 3) for i in range(90)]
    return config, Splits(clips[:30], clips[30:60], clips[60:], DataFacts(classes=("fall", HOSTILE, "no fall")))


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> dict[str, Path]:
    """Pages of a run of each task, of a run without a result, and of comparisons."""
    folder = tmp_path_factory.mktemp("pages")
    score = write_run(folder / HOSTILE.replace("/", "|"), *dives(dataset), noise=4.0)
    config, splits = dives(dataset)
    better = write_run(folder / "better-s1", replace(config, seed=1), splits, noise=1.0)
    config, splits = falls()
    label = write_run(folder / "label-s0", config, splits, noise=0.6)
    other = write_run(folder / "label-s1", replace(config, seed=1), splits, noise=0.7)
    unopened = RunFolder(folder / "unopened")
    shutil.copytree(label.path, unopened.path)
    unopened.summary_file.unlink()
    given = {
        "score": [score.path],
        "label": [label.path],
        "unopened": [unopened.path],
        "scores compared": [score.path, better.path, "--output", folder / "scores.html"],
        "labels compared": [label.path, other.path],
    }
    files = {name: run_main("training.report", "--html", *words).stdout.strip() for name, words in given.items()}
    assert files["score"] == str(score.report_file)
    assert files["labels compared"] == str(folder / "comparison.html")
    return {name: Path(file) for name, file in files.items()}


WORDS = {
    "score": (
        "Spearman",
        "95 % interval",
        "without video: train mean",
        "By position",
        "By video",
        "90 % interval: score ±",
        "1 restart",
        "Nearest to the judges",
        "code revision",
        "--learning_rate",
    ),
    "label": ("accuracy", "Recall by class", "without video: majority", "Thumbnails are missing", "Least certain"),
    "unopened": ("The test split of this run was not opened", "1 restart", "code revision"),
    "scores compared": (
        "Paired test",
        "better-s1",
        "no difference",
        "How many test actions a claim takes",
    ),
    "labels compared": ("Paired test", "McNemar", "How many test actions a claim takes", "20% differ"),
}


@pytest.mark.parametrize("name", WORDS)
def test_a_page_has_its_parts_and_no_code_from_names(pages: dict[str, Path], name: str):
    page = pages[name].read_text()
    for words in WORDS[name]:
        assert words in page, words
    assert "<script" not in page
    assert "<img src=http" not in page
    assert ("{{ 7*7 }}" in page) == (name in ("score", "label", "scores compared"))
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert all(source.startswith(("data:", "#")) for source in sources)
    assert sum(source.startswith("data:image/jpeg") for source in sources) == (60 if name == "score" else 0)
    assert re.findall(r"<(?:img|[a-z]+ role=\"img\")(?![^>]*(?:alt|aria-label)=\"[^\"]+\")[^>]*>", page) == []
    assert len(page) < 3e6


def test_an_error_of_the_page_is_a_warning_with_the_fix(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    run = write_run(tmp_path / "a", *falls(), noise=0.5)
    run.predictions_file.unlink()
    with caplog.at_level(logging.WARNING):
        write_report_or_warn(run)
    assert not run.report_file.exists()
    (record,) = caplog.records
    assert f"then run python -m training.report --html {run.path}" in record.getMessage()


def test_the_same_run_gives_the_same_drawings(tmp_path: Path):
    run = write_run(tmp_path / "a", *falls(), noise=0.5)
    one, other = (re.findall(r"<svg.*?</svg>", report_page(run), re.DOTALL) for _ in range(2))
    assert one == other
    assert len(one) > 5


def test_what_cannot_be_compared_on_a_page_is_refused(tmp_path: Path, dataset: Path):
    score, label = write_run(tmp_path / "a", *dives(dataset), noise=1), write_run(tmp_path / "b", *falls(), noise=0.5)
    done = run_main("training.report", "--html", score.path, label.path, check=False)
    assert done.returncode == 2
    assert "tested on different actions" in done.stderr
    assert not (tmp_path / "comparison.html").exists()
    label.predictions_file.write_text("video,number\n")
    done = run_main("training.report", "--html", label.path, check=False)
    assert done.returncode == 2
    assert "restore it from a copy" in done.stderr
    label.predictions_file.unlink()
    done = run_main("training.report", "--html", label.path, check=False)
    assert (done.returncode, "has no predictions.csv" in done.stderr) == (2, True), done.stderr
    combined = RunFolder(tmp_path / "combined")
    combined.path.mkdir()
    write_json(combined.combination_file, {})
    for words, problem in (
        (["--html", combined.path], "the mean of several"),
        ([score.path, "--maps", "True"], "--maps is for the page of one run"),
        (["--html", score.path, "--output", tmp_path / "x.html"], "--output is for the page of several"),
    ):
        done = run_main("training.report", *words, check=False)
        assert (done.returncode, problem in done.stderr) == (2, True), done.stderr


def test_a_run_with_few_validation_actions_has_no_coverage(tmp_path: Path, dataset: Path):
    run = write_run(tmp_path / "a", *dives(dataset), noise=1)
    few = Calibration("score", 2, {"": [1.0] * 5}, {"": [50.0] * 5})
    section = coverage_section(run, predictions_of(run.path), few)
    assert "5 validation actions are too few" in section.text
    assert len(section.pictures) == 1  # the predicted and the true values
    assert coverage(few, predictions_of(run.path)) == []


# ------------------------------------------------------------------------------------------------------------- power


def test_the_number_of_actions_is_that_of_published_software_and_has_the_power():
    # the R package pwrss (checked by its author against PASS and G*Power): power.z.steiger(.35, .45, .05, power = .8)
    assert actions_for_correlations(0.35, 0.45, 0.05, rank=False) == 1138
    assert actions_for_correlations(0.9, 0.9, 0.5) is None
    assert actions_for_correlations(0.9, float("nan"), 0.5) is None
    rng = np.random.default_rng(0)
    for a, b, between in ((0.96, 0.95, 0.95), (0.7, 0.6, 0.5)):
        count = actions_for_correlations(a, b, between)
        # Pearson's correlation of normal variables with this Spearman correlation
        one, two, three = (2 * np.sin(np.pi * r / 6) for r in (a, b, between))
        factor = np.linalg.cholesky([[1, one, two], [one, 1, three], [two, three, 1]])
        drawn = rng.standard_normal((600, count, 3)) @ factor.T
        gains = [np.arctanh(spearman_rows(drawn[..., i], drawn[..., 0])) for i in (1, 2)]
        found = np.mean((gains[0] - gains[1]) / (gains[0] - gains[1]).std() > 1.96)
        assert 0.76 < found < 0.9
    # Connor (1987): the normal approximation of McNemar's test
    count = actions_for_accuracies(0.12, 0.06)
    differing = rng.multinomial(count, [0.12, 0.06, 0.82], 4000)
    z = (differing[:, 0] - differing[:, 1]) / np.sqrt(differing[:, 0] + differing[:, 1])
    assert np.mean(np.abs(z) > 1.96) == pytest.approx(0.8, abs=0.02)
    assert [about(n) for n in (None, 62, 742, 137460)] == ["no number", "62", "750", "140,000"]


# --------------------------------------------------------------------------------------------------------- in a browser


class Chromium:
    """A headless Chromium that opens files."""

    def __init__(self) -> None:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        options = webdriver.ChromeOptions()
        for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))

    def open(self, file: Path, width: int) -> None:
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False},
        )
        self.driver.get(f"file://{urllib.parse.quote(str(file))}")

    def requests(self) -> list[str]:
        """The addresses that were requested since the last call."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Chromium]:
    if not (shutil.which("chromedriver") and shutil.which("chromium")):
        pytest.skip("Chromium or its driver is not installed (Debian: chromium, chromium-driver)")
    pytest.importorskip("selenium")
    browser = Chromium()
    yield browser
    browser.driver.quit()


@pytest.mark.slow
@pytest.mark.parametrize("name", WORDS)
def test_a_browser_shows_the_page(pages: dict[str, Path], chromium: Chromium, name: str):
    file = pages[name]
    for width in (1280, 800):
        chromium.open(file, width)
        assert {url.partition(":")[0] for url in chromium.requests()} <= {"file", "data"}
        assert chromium.driver.get_log("browser") == []
        shown = chromium.driver.execute_script("return document.body.innerText")
        assert WORDS[name][0].lower() in shown.lower()
        root = "document.documentElement"
        assert chromium.driver.execute_script(f"return {root}.scrollWidth - {root}.clientWidth") <= 0
        cut = "return [...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth + 1).length"
        assert chromium.driver.execute_script(cut) == 0
        broken = "return [...document.images].filter(image => !image.naturalWidth).length"
        assert chromium.driver.execute_script(broken) == 0
