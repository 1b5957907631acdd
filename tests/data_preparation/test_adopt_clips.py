"""data_preparation.adopt: folders of clips, and of pictures of clips, become archives."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from data_preparation.actions import Action
from data_preparation.adopt_sources import ClipEnds, find_sources
from data_preparation.archive import FrameReader, record_fault
from data_preparation.common.errors import UserError
from data_preparation.common.files import sha256
from data_preparation.layout import archived_videos
from tests.conftest import run_main
from tests.data_preparation.test_adopt import COUNT, moving_video

ADOPT = "data_preparation.adopt"


def picture(path: Path, grey: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(simplejpeg.encode_jpeg(np.full((8, 8, 3), grey, np.uint8), quality=90))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return moving_video(tmp_path_factory.mktemp("clip") / "clip.mp4")


def test_a_folder_of_clips_becomes_archives_with_their_origin(clip: Path, tmp_path: Path):
    source, frames = tmp_path / "in", tmp_path / "out"
    for name in ("diving/054.mp4", "diving/100.MP4", "v_Punch_g03_c01.mp4", "7.mp4"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(clip, source / name)
    (source / "diving" / "notes.txt").write_text("x")
    (source / "broken.mp4").write_bytes(clip.read_bytes()[:3000])
    flags = ["--source", source, "--output", frames, "--height", 32, "--workers", 2]
    failed = run_main(ADOPT, *flags, check=False)
    assert failed.returncode == 2
    assert len(failed.stderr.splitlines()) == 1
    assert str(source / "broken.mp4") in failed.stderr
    assert f"4 of 5 videos are packed in {frames}, {4 * COUNT} frames" in failed.stdout
    assert archived_videos(frames) == ["07", "diving/054", "diving/100", "v_Punch_g03_c01"]
    reader = FrameReader(frames / "diving" / "054.zip")
    assert reader.numbers.tolist() == list(range(1, COUNT + 1))
    assert reader.image(COUNT).shape == (32, 48, 3)
    record = reader.provenance
    assert record_fault(record) is None
    origin = {"name": "054.mp4", "bytes": clip.stat().st_size, "frames": COUNT, "sha256": sha256(clip)}
    assert {name: record["source"][name] for name in origin} == origin
    assert record["adopted"] == {"file": str((source / "diving" / "054.mp4").resolve())}
    before = {path: path.stat().st_mtime_ns for path in frames.rglob("*.zip")}
    (source / "broken.mp4").unlink()
    again = run_main(ADOPT, *flags)
    assert again.stdout.count("already packed") == 4
    assert before == {path: path.stat().st_mtime_ns for path in frames.rglob("*.zip")}
    other = run_main(ADOPT, *flags, "--quality", 80, "--videos", "diving", check=False)
    assert other.stderr.count("was packed from another version of") == 2


def test_shards_and_folders_select_videos(clip: Path, tmp_path: Path):
    for name in ("a/1", "a/2", "b/1", "b/2", "c/1"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / f"{name}.mp4").symlink_to(clip)
    flags = ["--source", tmp_path / "in", "--output", tmp_path / "out", "--height", 16, "--workers", 1]
    run_main(ADOPT, *flags, "--videos", "a", "b/2")
    assert archived_videos(tmp_path / "out") == ["a/1", "a/2", "b/2"]
    run_main(ADOPT, *flags, "--shard_index", 0, "--shard_count", 2)
    assert archived_videos(tmp_path / "out") == ["a/1", "a/2", "b/1", "b/2", "c/1"]
    missing = run_main(ADOPT, *flags, "--videos", "d", "a/1", check=False)
    assert missing.returncode == 2
    assert "video d: " in missing.stderr


def found_in(source: Path, **options) -> dict[str, list[int]]:
    """The frame numbers of the clips that were joined to each video; [] if it is one folder or one file."""
    return {
        one.video: [n for part in one.clips for n in part.numbers.tolist()] for one in find_sources(source, **options)
    }


def test_the_video_of_each_folder_of_pictures(tmp_path: Path):
    for name in (
        "AQA7/diving/054/img_00001.jpg",  # numbered for itself: a video
        "AQA7/diving/055/img_00001.jpg",
        "FINA/Men_r1/0/00040.jpg",  # clips with the numbers of the whole video
        "FINA/Men_r1/0/00041.jpg",
        "FINA/Men_r1/1/00090.jpg",
        "01/000001.jpg",
        "02/frames/000001.jpg",
        "match_1/000120.jpg",  # a video of its own, as in FR-FS
        "match_1/000140.jpg",
        "match_2/000130.jpg",
        "v_Punch_g03_c01/image_001.jpg",
        "26_03/000100.jpg",
        "26_12/000200.jpg",
        "26_12/000201.jpg",
    ):
        picture(tmp_path / name, 9)
    assert found_in(tmp_path) == {
        "01": [],
        "02": [],
        "26": [100, 200, 201],
        "AQA7/diving/054": [],
        "AQA7/diving/055": [],
        "FINA/Men_r1": [40, 41, 90],
        "match_1": [],
        "match_2": [],
        "v_Punch_g03_c01": [],
    }
    assert list(found_in(tmp_path, chosen={"26", "AQA7"})) == ["26", "AQA7/diving/054", "AQA7/diving/055"]
    assert list(found_in(tmp_path / "AQA7" / "diving", inside=Path("diving"))) == ["diving/054", "diving/055"]


def test_clips_numbered_for_themselves_are_placed_by_their_annotations(tmp_path: Path):
    """109 pictures that end 3 frames after the dive, as in USDL and TPT; files count from 0 in one of the clips."""
    frames = tmp_path / "set" / "whole_videos_frames"
    for clip, first in (("01_01", 1), ("01_02", 0)):
        for i in range(109):
            picture(tmp_path / "in" / clip / f"{first + i:06d}.jpg", i)
    frames.mkdir(parents=True)
    table = tmp_path / "dives.csv"
    table.write_text(
        "video,dive,start_frame,end_frame,difficulty,final_score\n1,1,1204,1310,3.0,60\n1,2,2000,2100,3.0,60\n"
    )
    flags = ["--dataset", tmp_path / "set", "--source", tmp_path / "in", "--annotation_path", table, "--workers", 1]
    run_main(ADOPT, *flags, "--clip_end", 3)
    reader = FrameReader(frames / "01.zip")
    assert reader.numbers.tolist() == [*range(1205, 1314), *range(1995, 2104)]
    assert abs(int(reader.image(1310)[0, 0, 0]) - 105) <= 2
    assert abs(int(reader.image(2103)[0, 0, 0]) - 108) <= 2
    actions = {("01", 1): Action("01", 1, 50, 60)}
    with pytest.raises(UserError) as error:
        find_sources(tmp_path / "in", ends=ClipEnds(actions, 3))
    assert "the annotations have no action 01/002" in str(error.value) or "lie before the video" in str(error.value)


def test_odd_files_are_named_once(tmp_path: Path):
    for number in (1, 2, 5):
        picture(tmp_path / "in" / "01" / f"img_{number:05d}.jpg", number)
    picture(tmp_path / "in" / "01" / "cover.jpg", 0)
    flags = ["--source", tmp_path / "in", "--output", tmp_path / "out", "--workers", 1]
    done = run_main(ADOPT, *flags)
    assert "01: warning: 2 numbers are missing between its files, the first is img_00003.jpg" in done.stdout
    assert "1 more pictures, which are not packed, such as cover.jpg" in done.stdout
    new = run_main(ADOPT, *flags[:2], "--dataset", tmp_path / "new", "--dataset_kind", "table", "--workers", 1)
    assert f"verify --dataset {tmp_path / 'new'} --dataset_kind table --sheets sheets" in new.stdout
    picture(tmp_path / "in" / "video 2" / "1.jpg", 0)
    (tmp_path / "in" / "03.mp4").write_bytes(b"")
    picture(tmp_path / "in" / "03" / "1.jpg", 0)
    both = run_main(ADOPT, *flags, check=False)
    assert both.returncode == 2
    assert "are both video 03: keep one of them" in both.stderr
    assert "video 2: write a video's name with letters" in both.stderr
    assert (
        "no video file and no folder of numbered pictures"
        in run_main(ADOPT, "--source", tmp_path / "out", "--output", tmp_path / "x", check=False).stderr
    )
