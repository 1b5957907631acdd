"""Videos of another version than the labelled one: stated facts refuse them, signs of it give warnings."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from data_preparation.actions import Dive, VideoFacts
from data_preparation.annotations import load_annotations
from data_preparation.catalogue import catalogue_facts
from data_preparation.common.errors import UserError
from data_preparation.extract import check_facts
from data_preparation.frame_numbers import VideoScan
from data_preparation.layout import DatasetLayout
from data_preparation.rates import RepeatWatch, rate_warnings, repeated_every, version_warnings
from data_preparation.running_extractions import announce_extraction, running_extractions
from tests.conftest import REPOSITORY, run_python

LABELLED = 25  # frames per second that the labels count


def broadcast(path: Path, rate: int, seconds: int = 16) -> Path:
    """Encode a broadcast made at 25 frames per second at another rate, as a converter does: by repeating frames."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=rate, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for i in range(seconds * rate):
            moment = i * LABELLED // rate
            image = np.full((64, 96, 3), 40, np.uint8)
            image[:, (moment * 3) % 90 : (moment * 3) % 90 + 6] = 230
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        out.mux(stream.encode())
    return path


def make_dataset(root: Path, rates: dict[int, int], stated: str = "") -> DatasetLayout:
    layout = DatasetLayout(root)
    layout.videos.mkdir(parents=True)
    layout.annotations.mkdir()
    rows, keys = (
        [f"video,dive,start_frame,end_frame,difficulty,final_score{',frames_per_second' if stated else ''}"],
        [],
    )
    for video, rate in rates.items():
        broadcast(layout.videos / f"{video:02d}.mp4", rate)
        for k in range(3):
            rows.append(f"{video},{k + 1},{130 * k + 10},{130 * k + 110},3,{50 + k}{',' + stated if stated else ''}")
            keys.append(f"{video},{k + 1}")
    (layout.annotations / "dives.csv").write_text("\n".join(rows) + "\n")
    (layout.annotations / "train.csv").write_text("video,dive\n" + "\n".join(keys[1:]) + "\n")
    (layout.annotations / "test.csv").write_text(f"video,dive\n{keys[0]}\n")
    return layout


def call(module: str, layout: DatasetLayout, *flags: object):
    a = layout.annotations
    lists = ["--train_path", a / "train.csv", "--test_path", a / "test.csv"] if module == "verify" else []
    shared = ["--dataset", layout.root, "--annotation_path", a / "dives.csv", "--workers", 1]
    return run_python("-m", f"data_preparation.{module}", *shared, *lists, *flags, check=False)


@pytest.mark.parametrize(
    ("rate", "warnings"),
    [
        (25, []),
        (30, ["1 of 6 frames repeats the one before it: the broadcast was made at 25 frames per second"]),
        (
            50,
            ["it has 50 frames per second", "cover only the first 46% of it", "1 of 2 frames repeats the one before"],
        ),
    ],
)
def test_extract_and_verify_warn_about_a_file_at_another_rate(tmp_path: Path, rate: int, warnings: list[str]):
    layout = make_dataset(tmp_path, {1: rate})
    done, checked = call("extract", layout, "--height", 0), call("verify", layout)
    assert (done.returncode, checked.returncode) == (0, 0)
    for output in (done.stdout, checked.stdout):
        assert output.count("warning: ") == len(warnings)
        assert all(warning in output for warning in warnings)
    assert ("Read the warnings above" in checked.stdout) == bool(warnings)


def test_a_file_that_differs_from_the_stated_rate_is_refused(tmp_path: Path):
    layout = make_dataset(tmp_path, {1: 30})
    assert call("extract", layout, "--height", 0).returncode == 0
    assert call("verify", layout).returncode == 0
    rows = (layout.annotations / "dives.csv").read_text().splitlines()
    stated = [rows[0] + ",frames_per_second", *(row + ",25" for row in rows[1:])]
    (layout.annotations / "dives.csv").write_text("\n".join(stated) + "\n")
    for done in (call("verify", layout), call("extract", layout, "--height", 0), call("extract", layout)):
        assert done.returncode == 2
        assert "01.mp4 has 30 frames per second and dives.csv states 25" in done.stderr
        assert "-r 25 new.mp4" in done.stderr


def test_a_video_whose_rate_differs_from_the_others_gives_a_warning(tmp_path: Path):
    layout = make_dataset(tmp_path, {1: 25, 2: 25, 3: 30})
    done, checked = call("extract", layout, "--height", 0), call("verify", layout)
    for output in (done.stdout, checked.stdout):
        assert "video 03: warning: it has 30 frames per second and 2 of the other videos have 25" in output
        assert "video 01: warning" not in output


def scanned(rate: Fraction, frames: int, decoded: int | None = None) -> VideoScan:
    numbers = np.arange(frames)
    return VideoScan(Path("01.mp4"), 0, rate, numbers, np.arange(decoded or frames), False, 96, 64, "h264")


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (VideoFacts(Fraction("29.97"), None, "a"), None),
        (VideoFacts(Fraction(30000, 1001), 1000, "a"), None),
        (VideoFacts(Fraction(30), None, "a"), "has 29.97 frames per second and a states 30"),
        (VideoFacts(None, 990, "a"), "has 1000 frames and a states 990 .a reader that counts decoded frames finds 990"),
        (VideoFacts(None, 1001, "a"), "has 1000 frames and a states 1001: it is another version"),
        (VideoFacts(), None),
    ],
)
def test_stated_facts_are_compared(facts: VideoFacts, words: str | None):
    found = scanned(Fraction(30000, 1001), 1000, 990)
    if words is None:
        check_facts(found, [facts])
        return
    with pytest.raises(UserError, match=words):
        check_facts(found, [facts])


def test_a_catalogue_states_facts_too(tmp_path: Path):
    path = tmp_path / "c.ini"
    path.write_text(
        "[videos/07.mp4]\nsources = x\nframes_per_second = 30000/1001\nframes = 900\n[weights/w.pth]\nsources = y\n"
    )
    assert catalogue_facts(path) == {"07": VideoFacts(Fraction(30000, 1001), 900, "c.ini")}
    path.write_text("[videos/07.mp4]\nsources = x\nframes_per_second = fast\nframes = -1\n")
    with pytest.raises(UserError, match=r"frames '-1' is not a whole number above 0\n.*frames_per_second 'fast'"):
        catalogue_facts(path)
    assert catalogue_facts() == {}


def test_the_real_timeline_gives_no_warning(shared: Path):
    """A broadcast at 25 or 30 frames per second that continues for ten minutes after its last dive."""
    dives: dict[int, list[Dive]] = {}
    for dive in load_annotations(shared / "mtl_aqa" / "final_annotations_dict.pkl").values():
        dives.setdefault(dive.video, []).append(dive)
    for rate in (25, Fraction(30000, 1001)):
        for its in dives.values():
            last = max(d.end_frame for d in its)
            assert version_warnings(scanned(Fraction(rate), last + round(600 * rate)), its) == []
            twice = version_warnings(scanned(Fraction(2 * rate), 2 * last), its)
            for words in ("frames per second, and labels", "cover only the first 50% of it"):
                assert any(words in warning for warning in twice)


def test_rates_without_a_majority_give_one_warning():
    assert rate_warnings({1: Fraction(25), 2: Fraction(25)}) == {}
    (warning,) = rate_warnings({1: Fraction(25), 2: Fraction(30)}).values()
    assert "1 at 25, 1 at 30" in warning


@pytest.mark.parametrize("period", [2, 3, 5, 6])
def test_repeated_frames_are_found(period: int):
    rng = np.random.default_rng(0)
    moving = {n: float(rng.uniform(2, 9)) for n in range(100, 220)}
    assert repeated_every(moving) is None
    assert repeated_every({n: 0.1 if n % period == 1 else d for n, d in moving.items()}) == period
    assert repeated_every(dict.fromkeys(moving, 0.0)) is None
    watch, picture = RepeatWatch(), np.zeros((4, 4), np.uint8)
    for n in range(1, 90):
        if n % period:
            picture = rng.integers(0, 255, (4, 4)).astype(np.uint8)
        watch.add(n, picture)
    assert watch.period == period


# ----------------------------------------------------------------------------------------------- running extractions


def test_running_extractions_are_listed_and_killed_ones_are_not(tmp_path: Path):
    frames = tmp_path / "frames"
    with announce_extraction(frames, ["01", "02"], 15):
        (found,) = running_extractions(frames)
        assert (found.videos, found.shards) == (frozenset({"01", "02"}), 15)
    assert list(frames.iterdir()) == []
    code = f"import os, pathlib; from data_preparation.running_extractions import announce_extraction\nwith announce_extraction(pathlib.Path({str(frames)!r}), ['01'], 1): os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False)
    assert len(list(frames.iterdir())) == 1
    assert running_extractions(frames) == []
    with announce_extraction(frames, ["01"], 1):
        pass
    assert list(frames.iterdir()) == []


def test_verify_distinguishes_a_running_extraction_from_errors(tmp_path: Path):
    layout = make_dataset(tmp_path / "set", {1: 25, 2: 25, 3: 25})
    assert call("extract", layout, "--videos", "01", "--height", 0).returncode == 0
    with announce_extraction(layout.frames, [2], 3):
        checked = call("verify", layout, "--sheets", tmp_path / "sheets")
    assert checked.returncode == 2
    assert "video 02: extraction running: verify again when the extraction has ended" in checked.stderr
    assert "video 03: not extracted yet; an extraction of another shard is running" in checked.stderr
    assert "FAULTY" not in checked.stdout
    assert "python -m data_preparation.extract" not in checked.stderr
    assert f"Contact sheets: 1 in {tmp_path / 'sheets'}" in checked.stdout
    after = call("verify", layout, "--videos", "02", "03", "--sheets", tmp_path / "sheets")
    assert after.returncode == 2
    assert "Contact sheets" not in after.stdout
    assert "2 of 2 videos are not extracted (02 03;" in after.stderr
    assert "extract them: python -m data_preparation.extract" in after.stderr
