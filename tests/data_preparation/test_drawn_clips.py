"""Drawn clips for classification: balance, groups, truth about boxes and frames, reproducibility."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from data_preparation import datasets
from data_preparation.boxes import boxes_file, read_boxes
from data_preparation.common.command_line import parse
from data_preparation.common.errors import UserError
from data_preparation.datasets import AnnotationFiles, DataSet
from data_preparation.layout import DatasetLayout
from data_preparation.synthetic import __main__ as synthetic
from data_preparation.synthetic import clips, skating
from data_preparation.synthetic.cameras import Camera
from data_preparation.synthetic.clips import SCENES, ClipsConfig, Film, generate, make_plan
from tests.conftest import run_python
from tests.data_preparation.test_synthetic import content

SMALL = ClipsConfig(clips=30, performers=5, width=64, height=48, min_frames=16, max_frames=20, workers=1, seed=2)


PAIR = replace(SMALL, performers=6, skaters=2, width=106)


@pytest.fixture(scope="module", params=[*SCENES, "pair"])
def config(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ClipsConfig:
    """A written set of each task, and one with two skaters."""
    config = PAIR if request.param == "pair" else replace(SMALL, task=request.param)
    config = replace(config, dataset=tmp_path_factory.mktemp(request.param) / "set")
    generate(config)
    return config


def read(root: Path) -> DataSet:
    layout = DatasetLayout(root)
    return datasets.load("table", AnnotationFiles(layout.annotations, layout.train_file, layout.test_file))


def depths(corners: np.ndarray, points: np.ndarray) -> np.ndarray:
    """How far points (N, 2) lie inside each side of a box (N, 4), whose corners (4, 2) are clockwise on the screen."""
    sides = np.roll(corners, -1, axis=0) - corners
    offsets = points[:, None] - corners  # (N, 4, 2)
    return (sides[:, 0] * offsets[..., 1] - sides[:, 1] * offsets[..., 0]) / np.hypot(*sides.T)


def test_classes_and_groups(config):
    data = read(config.dataset)
    assert data.classes == SCENES[config.task].CLASSES
    assert len(data.actions) == config.clips
    parts = data.parts("official")
    assert len(parts[0]) + len(parts[1]) == config.clips
    assert not {a.group for a in parts[0]} & {a.group for a in parts[1]}
    pattern = Counter(SCENES[config.task].PATTERN)
    for part in parts:  # six clips of each performer: the shares are exact for falls, and nearly for five classes
        counts = Counter(data.classes[a.label] for a in part)
        for name, share in pattern.items():
            assert counts[name] == pytest.approx(share * len(part) / pattern.total(), abs=len(part) / 6)
    assert all((config.dataset / "whole_videos" / f"{a.video}.mp4").is_file() for a in data.actions.values())


def test_boxes_hold_the_figure_and_little_else(config):
    for plan in make_plan(config)[:6]:
        film = Film(config, plan)
        boxes = read_boxes(boxes_file(config.dataset / "boxes", plan.name))
        assert boxes.frames.tolist() == list(range(1, plan.frames + 1))
        assert (boxes.width, boxes.height) == (config.width, config.height)
        for index in range(plan.frames):
            drawn, empty = (np.asarray(film.frame(index, figure)).astype(int) for figure in (True, False))
            rows, columns = (np.abs(drawn - empty).max(axis=2) > 24).nonzero()
            pixels = np.stack([columns + 0.5, rows + 0.5], axis=1)
            assert len(pixels) > 40
            depth = depths(boxes.corners[index], pixels)
            assert depth.min() > 0
            assert depth.min(axis=0).max() < 5  # no side is far from the figure


def test_videos_show_the_drawn_frames(config):
    plan = make_plan(config)[0]
    with av.open(str(config.dataset / "whole_videos" / f"{plan.name}.mp4")) as container:
        decoded = [frame.to_ndarray(format="rgb24").astype(int) for frame in container.decode(video=0)]
    drawn = [np.asarray(image).astype(int) for image in clips.render(config, plan)]
    assert len(decoded) == len(drawn) == plan.frames
    assert max(np.abs(a.mean(axis=2) - b.mean(axis=2)).mean() for a, b in zip(decoded, drawn, strict=True)) < 4


def test_only_the_decisive_frames_tell_a_fall():
    config = replace(SMALL, task="fall")
    plan = next(p for p in make_plan(config) if p.label == "fall")
    fall, landing = (Film(config, replace(plan, label=name)) for name in ("fall", "landing"))
    first, last = fall.decisive()
    assert fall.decisive() == landing.decisive()
    # the scenery is cut to what the camera sees, so figures and cameras are compared instead of pixels
    for index in range(first):
        assert (fall.figures[index].joints == landing.figures[index].joints).all()
        assert fall.cameras[index] == landing.cameras[index]
    assert last == plan.frames - 1
    assert fall.figures[last]["head"][1] < 0.6 * landing.figures[last]["head"][1]


def test_the_decisive_part_is_written(config):
    written = json.loads((config.dataset / "annotations" / "decisive.json").read_text())
    assert list(written) == [plan.name for plan in make_plan(config)]
    for name, part in written.items():
        boxes = read_boxes(boxes_file(config.dataset / "boxes", name))
        assert 1 <= part["first_frame"] < part["last_frame"] == boxes.frames[-1]
        assert (part["first_frame"] > 1) == (SCENES[config.task] is skating)
        left, top, right, bottom = part["box"]
        corners = boxes.corners[part["first_frame"] - 1 :].reshape(-1, 2).clip(0, (config.width, config.height))
        assert (corners.min(axis=0) >= (left, top)).all()
        assert (corners.max(axis=0) <= (right, bottom)).all()


def test_same_flags_same_bytes(config, tmp_path):
    argv = ["--task", config.task, "--dataset", tmp_path / "again", "--workers", 2, "--seed", config.seed]
    argv += ["--clips", config.clips, "--performers", config.performers, "--width", config.width]
    argv += [
        "--skaters",
        config.skaters,
        "--height",
        config.height,
        "--min_frames",
        config.min_frames,
        "--max_frames",
        config.max_frames,
    ]
    run_python("-m", "data_preparation.synthetic", *argv)
    assert content(tmp_path / "again") == content(config.dataset)
    other = make_plan(replace(config, seed=3))
    assert [p.label for p in other] != [p.label for p in make_plan(config)]


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--task", "fall", "--clips", "20", "--performers", "10"], "--clips 20 is too few .* give 30 or more"),
        (["--task", "actions", "--width", "65"], "--width 65 is odd"),
        (["--task", "fall", "--dives", "20"], "--dives"),
        (["--task", "actions", "--skaters", "2", "--width", "160"], "--skaters 2 is for --task fall only"),
        (["--task", "fall", "--skaters", "2"], "--width 72 is too narrow for --skaters 2: give 160 or more"),
        (["--task", "fall", "--skaters", "2", "--performers", "5"], "--performers 5 is too few .* give 6 or more"),
        (["--task", "slalom"], "'slalom' is not allowed; allowed: dive, fall, actions"),
        (["--task", "fall", "--clips", "120"], "give --dataset DIR"),
    ],
)
def test_errors_are_reported(argv, sentence, monkeypatch):
    monkeypatch.delenv("DEEPSPORTS_DATASET", raising=False)
    with pytest.raises(UserError, match=sentence):
        synthetic.main(argv)


def test_only_the_boxes_tell_which_of_two_skaters_counts():
    """Outcome, side and depth of the second skater have nothing to do with the label, and both skaters are in one list."""
    config = replace(PAIR, clips=180, performers=12)
    plans = make_plan(config)
    lists = [{plan.performer for plan in part} for part in clips.split_plans(plans, config.seed)]
    seen: Counter = Counter()
    for plan in plans:
        film = Film(config, plan)
        assert plan.companion != plan.performer
        assert any({plan.performer, plan.companion} <= performers for performers in lists)
        assert film.companion is not None
        seen[plan.label, "fell", bool(film.companion.skate.fallen)] += 1
        seen[plan.label, "on the right", film.companion.gap > 0] += 1
        seen[plan.label, "in front", film.companion.in_front] += 1
        first, _ = film.decisive()
        middle = film.quad(first).mean(axis=0)[0]
        assert (middle < config.width / 2) == (film.companion.gap > 0)  # the other one is on the other side
    for label, share in (("landing", 120), ("fall", 60)):
        assert seen[label, "fell", True] / share == pytest.approx(1 / 3, abs=0.15)
        assert seen[label, "on the right", True] / share == pytest.approx(0.5, abs=0.15)
        assert seen[label, "in front", True] / share == pytest.approx(0.5, abs=0.15)


def test_cameras_change_colours_and_nothing_else():
    plain, varied = (replace(SMALL, task="actions", cameras=cameras) for cameras in ("alike", "varied"))
    films = [Film(varied, plan) for plan in make_plan(varied)[:6]]
    assert make_plan(plain) == make_plan(varied)
    assert films[0].camera == films[5].camera  # of the same performer
    assert len({film.camera for film in films}) == 5
    assert not np.array_equal(films[0].frame(3), Film(plain, films[0].plan).frame(3))
    assert np.array_equal(films[0].frame(3), Film(varied, films[0].plan).frame(3))
    assert np.array_equal(films[0].quad(3), Film(plain, films[0].plan).quad(3))
    same = Camera(1, 1, 1, (1, 1, 1), 0)
    image = Film(plain, films[0].plan).frame(0)
    assert np.array_equal(same.shows(image, np.random.default_rng(0)), image)


def test_contact_sheet(tmp_path):
    for task in SCENES:
        synthetic.main(["--task", task, "--sheet", str(tmp_path / f"{task}.png")])
    assert {p.name for p in tmp_path.iterdir()} == {"fall.png", "actions.png"}
    assert parse(ClipsConfig, ["--task", "actions"]).task == "actions"
