"""The search for actions in long videos, and the commands that grade it and the declining."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_preparation.frame_numbers import scan_video
from data_preparation.synthetic.canvas import encode_video
from tests.conftest import run_main, run_python
from training.clips import images_of
from training.scorer import Scorer
from training.search import (
    Range,
    blocks,
    changes,
    cuts,
    find_actions,
    matches,
    nearest_only,
    search,
    small_grey,
    temporal_iou,
    true_ranges,
    video_file,
    window_lengths,
    windows,
)


@given(st.integers(0, 200), st.integers(1, 30), st.integers(0, 60))
def test_each_frame_starts_windows_in_one_block_and_finds_those_around_it(count: int, longest: int, before: int):
    numbers = []
    for first, frames, starts in blocks([np.array(i) for i in range(1, count + 1)], longest, before):
        assert [int(frame) for frame in frames] == list(range(first, first + len(frames)))
        assert len(frames) <= before + 2 * longest
        for start in starts:
            numbers.append(first + start)
            assert first <= max(first + start - before, 1)
            assert first + len(frames) - 1 >= min(first + start + longest - 1, count)
    assert numbers == list(range(1, count + 1))


ranges = st.builds(
    lambda start, length, distance: Range(start, start + length, distance),
    st.integers(1, 300), st.integers(1, 60), st.floats(0, 1),
)  # fmt: skip


@given(st.lists(ranges, max_size=30))
def test_of_ranges_that_overlap_the_nearest_is_kept(found: list[Range]):
    kept = nearest_only(found)
    assert kept == sorted(kept)
    assert not found or min(found, key=lambda r: r.distance).distance in [r.distance for r in kept]
    for i, a in enumerate(kept):
        assert all(temporal_iou(a, b) < 0.3 for b in kept[:i])
    assert matches(kept, kept) == len(kept)
    assert matches(kept, []) == 0


def test_windows_have_no_cut_inside_and_move():
    change = np.full(60, 0.01)
    change[[0, 20]] = 0, 0.3  # a cut before index 20
    change[40:] = 0  # nothing moves
    is_cut = cuts(change)
    assert np.flatnonzero(is_cut).tolist() == [20]
    found = windows(change, is_cut, [10, 20], range(60))
    assert (20, 29) in found
    assert (0, 19) in found
    assert all(not a + 2 < 20 < b - 1 for a, b in found)
    assert max(a for a, _ in found) < 40
    assert window_lengths(np.array([50, 51, 52, 100]), 2.0)[0] == 100
    assert window_lengths(np.array([50, 51, 52, 100]), 2.0)[-1] == 200


def test_search_finds_what_the_distance_accepts():
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 40, (32, 48, 3), np.uint8) for _ in range(300)]

    def distances(block: np.ndarray, first: int, planned: list[tuple[int, int]]) -> np.ndarray:
        true = [Range(61, 90), Range(205, 236)]
        return np.array([0.1 + 2 * (1 - max(temporal_iou(Range(*window), t) for t in true)) for window in planned])

    found = search(iter(frames), [26, 30, 34], distances, frames_before=40)
    assert matches(found, [Range(61, 90), Range(205, 236)], iou=0.8) == len(found) == 2


@pytest.fixture(scope="module")
def broadcast(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first dives of the data set that the runs of these tests are trained on."""
    folder = tmp_path_factory.mktemp("broadcast") / "drawn"
    run_python("-m", "data_preparation.synthetic", "--dataset", folder, "--videos", 1, "--dives", 4)
    return folder


def test_dives_of_a_broadcast_are_found_and_other_things_declined(
    train: Callable[..., Any], broadcast: Path, tmp_path: Path
):
    train("--run_name", "run", "--epochs", 2)
    run = tmp_path / "runs" / "run"
    scorer = Scorer.from_run(run, gpu=False)
    scan = scan_video(video_file(broadcast, "01"))
    found, true = find_actions(scorer, scan), true_ranges(broadcast)["01"]
    assert matches(found, true) == len(found) >= 3
    numbers = np.arange(1, scan.frame_count + 1)
    grey = [small_grey(frame) for frame in images_of(scan, numbers, scorer.stored)]
    is_cut = cuts(changes(grey))
    assert not any(is_cut[r.start : r.end].any() for r in true)
    assert is_cut.any()

    still = tmp_path / "still.mp4"
    encode_video([Image.new("RGB", (128, 72), (90, 90, 90))] * 48, still, (128, 72), 25, lambda: None)
    flags = ("--run", run, "--video", scan.path, still, "--gpu", "False", "--out", tmp_path / "out")
    printed = run_main("training.predict", *flags).stdout
    predictions = json.loads((tmp_path / "out" / "predictions.json").read_text())["predictions"]
    *of_dives, declined = predictions
    assert [(p["start_frame"], p["end_frame"]) for p in of_dives] == [(r.start, r.end) for r in found]
    assert all(p["score"] > 0 and not p["declined"] for p in of_dives)
    assert declined["declined"]
    assert declined["distance"] > declined["threshold"]
    assert (declined["score"], declined["low"]) == (None, None)
    assert "not a dive like those it was trained on" in printed
    assert run_main("training.predict", *flags, "--decline", "False", "--search", "never").stdout.count("declined") == 0
    graded = run_main("training.grade_declining", "--run", run, "--broadcasts", broadcast, "--gpu", "False").stdout
    row = next(line for line in graded.splitlines() if line.startswith("| all other things"))
    assert float(row.split("|")[3].split("%")[0]) >= 95
    searched = run_main("training.grade_search", "--run", run, "--broadcasts", broadcast, "--gpu", "False").stdout
    assert f"| 4 | {25.0 * matches(found, true):.1f} %" in searched
