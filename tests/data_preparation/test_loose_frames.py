"""Frames that are read where they lie: names and numbers of other tools, a folder for each clip, thousands of archives."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from data_preparation.archive import FrameReader, FrameReaders, max_open_readers, open_frames, write_archive
from data_preparation.common.errors import UserError
from data_preparation.layout import archive_file, prepared

CLIPS = {1: range(40, 52), 2: range(60, 75), 11: range(90, 99)}  # the frames of three clips, by clip number
FRAMES = [n for frames in CLIPS.values() for n in frames]


def content(number: int) -> bytes:
    return f"frame {number}".encode()


def write(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content(number))


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("{frame:06d}.jpg", 1),
        ("{frame:06d}.jpg", 0),
        ("{frame:08d}.jpg", 1),
        ("{frame:05d}.jpg", 0),
        ("img_{frame:05d}.jpg", 1),
        ("image_{frame:03d}.JPG", 0),
        ("07-{frame}.jpeg", 1),
    ],
)
def test_a_folder_is_read_with_any_one_pattern_of_names(tmp_path: Path, name: str, first: int):
    for number in range(1, 121):
        write(tmp_path / "07" / name.format(frame=number - 1 + first), number)
    (tmp_path / "07" / "Thumbs.db").write_bytes(b"x")
    reader = open_frames(tmp_path, "07")
    assert reader.numbers.tolist() == list(range(1, 121))
    assert [reader.read(n) for n in (1, 77, 120)] == [content(n) for n in (1, 77, 120)]
    assert reader.loose
    assert reader.loose.from_zero == (first == 0)


@pytest.mark.parametrize(
    "name", ["07/{clip}/{frame:08d}.jpg", "07_{clip:02d}/{frame:05d}.jpg", "07/{clip}/{frame}.jpg"]
)
@pytest.mark.parametrize("from_zero", [False, True])
def test_clips_are_read_with_the_numbers_of_the_whole_video(tmp_path: Path, name: str, from_zero: bool):
    """As in FineDiving (video/instance) and in MTL-AQA's clips (VV_DD). Clip 1 begins with file 0 if files count from 0."""
    clips = {**CLIPS, 1: range(1, 52)} if from_zero else CLIPS
    for clip, frames in clips.items():
        for number in frames:
            write(tmp_path / name.format(clip=clip, frame=number - from_zero), number)
    write(tmp_path / "07_old" / "00001.jpg", 1)  # not a clip
    assert prepared(tmp_path, ["07", "08"]) == {"07"}
    reader = open_frames(tmp_path, "07")
    assert reader.numbers.tolist() == [n for frames in clips.values() for n in frames]
    assert all(reader.read(n) == content(n) for n in reader.numbers.tolist())
    with pytest.raises(UserError, match="has no frame 55"):
        reader.read(55)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["07/00001.jpg", "07/img_1.jpg"], "07 has files of 2 patterns .*: keep only the frames of the video there"),
        (["07/1/001.jpg", "07/2/001.jpg"], "07/1 begins with 001.jpg, and so does each clip's .*adopt --clip_end"),
        (["07_1/0.jpg", "07_2/0.jpg"], "07_1 begins with 0.jpg, .*adopt --clip_end"),
        (["07/00001.png"], "07 has 1 file 00001.png, which are not read from there: .*data_preparation.adopt"),
        (["07/cover.jpg"], "07 has no images"),
    ],
)
def test_folders_that_do_not_show_which_frames_they_have_are_refused(tmp_path: Path, files: list[str], words: str):
    for name in files:
        write(tmp_path / name, 1)
    with pytest.raises(UserError, match=words) as error:
        open_frames(tmp_path, "07")
    assert len(str(error.value).splitlines()) == 1


def test_frames_of_the_original_layout_are_read_although_other_pictures_lie_beside_them(tmp_path: Path):
    for number in FRAMES:
        write(tmp_path / "07" / f"{number:06d}.jpg", number)
    for name in ("img_00001.jpg", "cover.jpg", "1/00001.jpg", "provenance.json"):
        write(tmp_path / "07" / name, -1)
    reader = FrameReader(tmp_path / "07")
    assert reader.numbers.tolist() == FRAMES
    assert reader.read(40) == content(40)


def test_few_archives_are_open_at_the_same_time(tmp_path: Path):
    record = {
        "source": {"bytes": 1, "width": 8, "height": 8, "frames": 9},
        "settings": {"height": 8, "quality": 90},
        "ranges": [[1, 2]],
    }
    videos = [f"diving/{i:03d}" for i in range(30)]
    for i, video in enumerate(videos):
        write_archive(archive_file(tmp_path, video), [(n, content(i * 100 + n)) for n in (1, 2)], record)
    readers = FrameReaders(tmp_path, limit=4)
    kept = readers[videos[0]]
    for _ in range(2):
        assert [readers[v].read(2) for v in videos] == [content(i * 100 + 2) for i in range(30)]
    open_files = [os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")]
    assert len(readers) == sum(name.startswith(str(tmp_path)) for name in open_files) == 4
    assert kept.read(1) == content(1)  # opens its archive again
    assert len(pickle.loads(pickle.dumps(readers))) == 0
    assert 1 <= max_open_readers() <= 256
