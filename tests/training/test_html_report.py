"""report.html: its content, hostile names, and how Chromium shows it."""

from __future__ import annotations

import json
import logging
import re
import shutil
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from data_preparation import datasets
from data_preparation.actions import Action, Dive
from data_preparation.common.command_line import parse
from tests.conftest import data_flags, run_main
from training.config import TrainConfig
from training.data.facts import DataFacts
from training.data.splits import Splits
from training.engine.state import Position
from training.evaluate import summarise
from training.html_report.page import report_page, write_report_or_warn
from training.predictions import predictions_csv
from training.runtime.run_folder import RunFolder, write_json
from training.tasks import task_of

HOSTILE = '<script>alert("1")</script><img src=http://127.0.0.1:9/x onerror=alert(2)> $\\frac{$ {{ 7*7 }}'
METRICS = {"score": "spearman", "label": "accuracy"}


def write_run(folder: Path, config: TrainConfig, splits: Splits, noise: float, seed: int = 0) -> RunFolder:
    """The folder of an evaluated run, whose predictions are the truth with noise (points, or shares of the other classes)."""
    run, task, rng = RunFolder(folder), task_of(config.task), np.random.default_rng(seed)
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
    for file, actions in ((run.val_predictions_file, splits.val), (run.predictions_file, splits.test)):
        outputs = predicted(actions)
        file.write_text(predictions_csv(task, outputs, actions, classes))
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


def own_pages(tmp_path: Path, dataset: Path) -> dict[str, RunFolder]:
    score = write_run(tmp_path / HOSTILE.replace("/", "|"), *dives(dataset), noise=4.0)
    label = write_run(tmp_path / "label", *falls(), noise=0.7)
    unopened = RunFolder(tmp_path / "unopened")
    shutil.copytree(label.path, unopened.path)
    unopened.summary_file.unlink()
    return {"score": score, "label": label, "unopened": unopened}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> dict[str, Path]:
    runs = own_pages(tmp_path_factory.mktemp("pages"), dataset)
    for run in runs.values():
        assert run_main("training.report", "--html", run.path).stdout.strip() == str(run.report_file)
    return {name: run.report_file for name, run in runs.items()}


WORDS = {
    "score": (
        "Spearman",
        "95 % interval",
        "without video: train mean",
        "By position",
        "Coverage of the 90 % interval by video",
        "1 restart",
        "Nearest to the judges",
        "code revision",
        "--learning_rate",
    ),
    "label": ("accuracy", "Recall by class", "without video: majority", "Thumbnails are missing", "Least certain"),
    "unopened": ("The test split of this run was not opened", "1 restart", "code revision"),
}


@pytest.mark.parametrize("name", WORDS)
def test_a_page_has_its_parts_and_no_code_from_names(pages: dict[str, Path], name: str):
    page = pages[name].read_text()
    for words in WORDS[name]:
        assert words in page, words
    assert "<script" not in page
    assert "<img src=http" not in page
    assert "49" not in re.findall(r"\$ (\d+)", page)
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
