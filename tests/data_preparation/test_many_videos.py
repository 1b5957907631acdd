"""Messages about thousands of videos stay short."""

from __future__ import annotations

from pathlib import Path

from data_preparation.actions import Action
from data_preparation.many_videos import MAX_LINES, grouped_lines, names_text
from data_preparation.verify import VideoReport, report_text
from training.config import TrainConfig
from training.data.sources import frame_faults

VIDEOS = [f"{kind}/{i:04d}" for kind in ("diving", "vault") for i in range(1500)]


def test_equal_messages_about_many_videos_are_one_line():
    few = [("01", "a"), ("02", "a")]
    assert grouped_lines(few) == ["video 01: a", "video 02: a"]
    many = [*((video, "a") for video in VIDEOS), ("07", "b")]
    assert grouped_lines(many) == [
        "3000 videos (diving/0000, diving/0001, diving/0002, diving/0003, diving/0004, ...): a",
        "video 07: b",
    ]
    assert names_text(VIDEOS[:2]) == "diving/0000 diving/0001"
    assert names_text(VIDEOS).endswith("diving/0004 and 2995 more")


def test_the_report_of_many_videos_has_a_row_per_folder_and_per_faulty_video():
    reports = [VideoReport(v, 1, 103, 10**6, ((256, 340),), faults=("x",) if v == "vault/0007" else ()) for v in VIDEOS]
    rows = report_text(reports).splitlines()
    assert len(rows) == 5
    assert rows[1].split()[0] == "vault/0007"
    assert rows[2].split() == ["diving/", "1500", "154500", "340x256", "1500.0", "1500", "videos"]
    assert rows[-1].split()[:3] == ["total", "3000", "309000"]
    assert len(report_text(reports[:MAX_LINES]).splitlines()) == MAX_LINES + 2


def test_thousands_of_missing_videos_are_one_message(tmp_path: Path):
    actions = [Action(video, 1, 1, 103) for video in VIDEOS]
    config = TrainConfig(root_dir=tmp_path, frame_num=4, frame_method="spaced_fixed")
    (fault,) = frame_faults(actions, config)
    assert f"3000 of 3000 videos have no frames in {tmp_path}" in fault
