"""Frames that other tools wrote, with other names and numbers: packing them, and messages of verify and training about them."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from data_preparation.actions import Dive
from data_preparation.adopt import AdoptConfig, to_frame
from data_preparation.adopt_sources import find_pictures
from data_preparation.alignment import REACH, frame_shift
from data_preparation.archive import FrameReader, open_frames, record_fault
from data_preparation.common.command_line import parse
from data_preparation.common.errors import UserError
from data_preparation.layout import DatasetLayout, prepared
from data_preparation.similar_files import numberings
from tests.conftest import run_python
from training.config import TrainConfig
from training.data.sources import frame_faults

COUNT = 210  # frames of the video


def moving_video(path: Path) -> Path:
    """Write a video whose frames differ little from their neighbours and much from distant ones: a moving bar on waves."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for i in range(COUNT):
            wave = 110 + 80 * np.sin(np.arange(96) / 15 + i / 25)
            image = np.repeat(np.tile(wave, (64, 1))[:, :, None], 3, 2).astype(np.uint8)
            image[:20, (i * 3) % 90 : (i * 3) % 90 + 6] = 230
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        container.mux(stream.encode())
    return path


def loose_frames(video: Path, folder: Path, pattern: str, first: int, leave_out: int = 0) -> None:
    """Write frames like a user's own loop; the first `leave_out` frames are not written."""
    folder.mkdir(parents=True)
    for i, frame in enumerate(av.open(str(video)).decode(video=0)):
        if i >= leave_out:
            frame.to_image().save(folder / (pattern % (first + i)), quality=95)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return moving_video(tmp_path_factory.mktemp("video") / "01.mp4")


@pytest.fixture
def dataset(video: Path, tmp_path: Path) -> DatasetLayout:
    """A data set of one video with two dives, without frames."""
    layout = DatasetLayout(tmp_path / "set")
    layout.annotations.mkdir(parents=True)
    layout.videos.mkdir()
    (layout.videos / "01.mp4").symlink_to(video)
    rows = "video,dive,start_frame,end_frame,difficulty,final_score\n1,1,90,129,3.0,60\n1,2,150,189,3.0,60\n"
    (layout.annotations / "dives.csv").write_text(rows)
    (layout.annotations / "train.csv").write_text("video,dive\n1,1\n")
    (layout.annotations / "test.csv").write_text("video,dive\n1,2\n")
    return layout


def verify(layout: DatasetLayout, *flags: object):
    a = layout.annotations
    lists = ["--train_path", a / "train.csv", "--test_path", a / "test.csv", "--annotation_path", a / "dives.csv"]
    module = ["-m", "data_preparation.verify", "--dataset", layout.root]
    return run_python(*module, *lists, "--workers", 1, *flags, check=False)


def adopt(*flags: object):
    return run_python("-m", "data_preparation.adopt", *flags, check=False)


def training_faults(layout: DatasetLayout) -> list[str]:
    dives = [
        Dive("01", 1, 90, 129, difficulty=3.0, final_score=60.0),
        Dive("01", 2, 150, 189, difficulty=3.0, final_score=60.0),
    ]
    return frame_faults(dives, TrainConfig(root_dir=layout.frames, frame_num=4, frame_method="spaced_fixed"))


def test_frames_numbered_from_0_are_read_shifted_by_one_and_packed_with_the_right_numbers(
    dataset: DatasetLayout, video: Path
):
    folder = dataset.frames / "01"
    loose_frames(video, folder, "%06d.jpg", 0)
    checked = verify(dataset)
    assert checked.returncode == 0
    assert "video 01: warning: its files count from 0, so 000000.jpg is read as frame 1" in checked.stdout
    assert training_faults(dataset) == []
    assert open_frames(dataset.frames, "01").read(1) == (folder / "000000.jpg").read_bytes()
    done = adopt("--dataset", dataset.root, "--videos", "01")
    assert done.returncode == 0, done.stderr
    assert "000000.jpg is frame 1, compared with 01.mp4" in done.stdout
    reader = open_frames(dataset.frames, "01")
    assert reader.path.name == "01.zip"
    assert reader.numbers.tolist() == list(range(1, COUNT + 1))
    assert reader.read(1) == (folder / "000000.jpg").read_bytes()
    assert record_fault(reader.provenance) is None
    assert len(list(folder.iterdir())) == COUNT
    assert verify(dataset, "--sources", True).returncode == 0
    assert training_faults(dataset) == []
    assert "already packed" in adopt("--dataset", dataset.root).stdout
    extract = ["-m", "data_preparation.extract", "--dataset", dataset.root, "--annotation_path"]
    extracted = run_python(*extract, dataset.annotations / "dives.csv")
    assert "packed by data_preparation.adopt, kept unchanged" in extracted.stdout


def test_a_shift_that_no_name_shows_is_found_by_comparison_with_the_video(dataset: DatasetLayout, video: Path):
    """The files count from 0, and file 0 is missing."""
    loose_frames(video, dataset.frames / "01", "%06d.jpg", 0, leave_out=1)
    checked = verify(dataset)
    assert checked.returncode == 2
    assert "its frames are 1 frame late: file N is frame N+1 of 01.mp4" in checked.stderr
    assert "--videos 01 --first_number 0" in checked.stderr
    refused = adopt("--dataset", dataset.root)
    assert refused.returncode == 2
    assert "give --first_number 0" in refused.stderr
    assert not (dataset.frames / "01.zip").exists()
    assert adopt("--dataset", dataset.root, "--first_number", 0).returncode == 0
    assert open_frames(dataset.frames, "01").numbers[0] == 2
    assert verify(dataset).returncode == 0


def test_frames_of_another_frame_rate_are_found_by_comparison_with_the_video(dataset: DatasetLayout, video: Path):
    """Frames of the same broadcast at 30 frames per second, numbered from 1, none missing."""
    folder = dataset.frames / "01"
    folder.mkdir(parents=True)
    images = [frame.to_image() for frame in av.open(str(video)).decode(video=0)]
    for i in range(COUNT * 30 // 25):
        images[i * 25 // 30].save(folder / f"{i + 1:06d}.jpg", quality=95)
    checked = verify(dataset)
    assert checked.returncode == 2
    assert "of a file of about 30 frames per second, and 01.mp4 has 25" in checked.stderr
    assert adopt("--dataset", dataset.root).returncode == 2
    assert not (dataset.frames / "01.zip").exists()


def test_correctly_numbered_loose_frames_pass(dataset: DatasetLayout, video: Path):
    loose_frames(video, dataset.frames / "01", "%06d.jpg", 1)
    assert verify(dataset).returncode == 0
    assert training_faults(dataset) == []


@pytest.mark.parametrize(
    ("folder", "pattern", "first"),
    [("01", "%06d.png", 0), ("01/frames", "frame%d.jpg", 0), ("video 1", "%05d.jpg", 1)],
)
def test_frames_that_cannot_be_read_as_they_are_are_reported_in_one_sentence(
    dataset: DatasetLayout, video: Path, folder: str, pattern: str, first: int
):
    loose_frames(video, dataset.frames / folder, pattern, first)
    checked = verify(dataset)
    assert checked.returncode == 2
    messages = [line for line in checked.stderr.splitlines() if line.startswith("error: video 01")]
    assert len(messages) == 1
    assert f"{COUNT} files {pattern % first} to {pattern % (first + COUNT - 1)}" in messages[0]
    assert "data_preparation.adopt" in messages[0]
    assert pattern % first in " ".join(training_faults(dataset))
    assert adopt("--dataset", dataset.root, "--videos", "01").returncode == 0
    assert verify(dataset).returncode == 0


@pytest.mark.parametrize("pattern", ["img_%05d.jpg", "%08d.jpg"])
def test_frames_with_other_names_are_verified_and_compared_with_the_video(
    dataset: DatasetLayout, video: Path, pattern: str
):
    loose_frames(video, dataset.frames / "01", pattern, 1)
    assert verify(dataset).returncode == 0
    assert training_faults(dataset) == []
    shutil.rmtree(dataset.frames / "01")
    loose_frames(video, dataset.frames / "01", pattern, 2)
    checked = verify(dataset)
    assert checked.returncode == 2
    assert "its frames are 1 frame early" in checked.stderr


def test_ambiguous_numbers_need_a_flag(video: Path, tmp_path: Path):
    """Without the video, numbers that start in the middle do not show whether they count from 0 or 1."""
    flags = ["--source", tmp_path / "in", "--output", tmp_path / "out"]
    loose_frames(video, tmp_path / "in" / "01", "x%04d.jpg", 0, leave_out=40)
    refused = adopt(*flags)
    assert refused.returncode == 2
    assert "begins with x0040.jpg, which does not show whether its files count from 0 or 1" in refused.stderr
    assert adopt(*flags, "--first_number", 0).returncode == 0
    assert FrameReader(tmp_path / "out" / "01.zip").numbers[0] == 41
    loose_frames(video, tmp_path / "in" / "02", "%06d.jpg", 1)
    Image.new("RGB", (96, 64)).save(tmp_path / "in" / "02" / "img_1.jpg")
    both = adopt(*flags, "--videos", "02")
    assert "has 2 numberings" in both.stderr
    (tmp_path / "in" / "02" / "000077.jpg").write_bytes(b"not a picture")
    damaged = adopt(*flags, "--videos", "02", "--pattern", "%06d.jpg")
    assert damaged.returncode == 2
    assert "000077.jpg is not a readable picture" in damaged.stderr
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["01.zip"]  # complete or absent


def test_a_zip_of_other_names_or_numbers_is_refused(tmp_path: Path):
    for names, words in (
        (["000000.jpg", "000001.jpg"], "is numbered from 0"),
        (["01/000001.jpg", "01/000002.jpg"], "has 2 files 000001.jpg to 000002.jpg and none named 000001.jpg"),
        (["img_00001.jpg"], "has 1 file img_00001.jpg"),
    ):
        with zipfile.ZipFile(tmp_path / "01.zip", "w") as archive:
            for name in names:
                archive.writestr(name, b"x")
        with pytest.raises(UserError, match=words):
            open_frames(tmp_path, "01")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["1/000001.jpg"], "mv .*/1 .*/01"),
        (["01.ZIP"], "mv .*01.ZIP .*01.zip"),
        (["01.tar"], "unpack it into a folder 01"),
        (["01_00001.jpg", "01_00002.jpg"], "itself has 2 files 01_00001.jpg to 01_00002.jpg"),
        (["01/cover.jpg"], "has no images"),
        (["whole_videos_frames/01/000001.jpg"], "give the folder .*whole_videos_frames instead"),
        (["02.zip"], "01.zip is missing: extract the video first"),
    ],
)
def test_the_message_about_missing_frames_names_similar_files(tmp_path: Path, files: list[str], words: str):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError, match=words):
        open_frames(tmp_path, "01")
    assert "01" not in prepared(tmp_path, ["01"]) or (tmp_path / "01").is_dir()


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["whole_videos/video 1.mp4"], "mv '.*video 1.mp4' .*01.mp4"),
        (["whole_videos/03_final.mp4", "whole_videos/001.mp4"], "001.mp4 exists"),
        (["whole_videos/01.mp4.part"], "its download is unfinished"),
        (["01.mp4"], "mv .*01.mp4 .*whole_videos/01.mp4"),
        (["videos/01.mp4"], "mv .*videos/01.mp4 .*whole_videos/01.mp4"),
        (["whole_videos/01.ts"], "convert it"),
        (["whole_videos/02.mp4"], "download it"),
    ],
)
def test_the_message_about_a_missing_video_names_similar_files(tmp_path: Path, files: list[str], words: str):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError, match=words):
        DatasetLayout(tmp_path).video_file("01")


def test_a_suffix_in_capitals_is_accepted_and_a_broken_link_is_reported(tmp_path: Path):
    layout = DatasetLayout(tmp_path)
    layout.videos.mkdir()
    (layout.videos / "01.MP4").write_bytes(b"x")
    (layout.videos / "02.mp4").symlink_to("/not/there.mp4")
    assert layout.video_file("01").name == "01.MP4"
    with pytest.raises(UserError, match=r"02.mp4 is a link to /not/there.mp4, which does not exist"):
        layout.video_file("02")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["img_00001.jpg", "img_00002.jpg", "img_100000.jpg"], {"img_%05d.jpg": (1, 2, 100000)}),
        (["1.jpg", "2.jpg", "10.jpg"], {"%d.jpg": (1, 2, 10)}),
        (["100.png", "101.png"], {"%03d.png": (100, 101)}),
        (["00001.jpg", "000001.jpg"], {"%05d.jpg": (1,), "%06d.jpg": (1,)}),
        (["50%_1.jpg", "50%_2.jpg"], {"50%%_%d.jpg": (1, 2)}),
        (["cover.jpg", "1.txt", ".1.jpg"], {}),
    ],
)
def test_numberings_are_found_in_names(names: list[str], expected: dict[str, tuple[int, ...]]):
    found = numberings(names)
    assert {n.pattern: n.numbers for n in found} == expected
    assert {n.name(number) for n in found for number in n.numbers} <= set(names)


def test_readable_jpegs_are_copied_and_others_are_encoded(tmp_path: Path):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (32, 48, 3), np.uint8))
    for mode, copied in (("RGB", True), ("L", False), ("CMYK", False)):
        path = tmp_path / f"{mode}.jpg"
        image.convert(mode).save(path)
        jpeg, is_copy = to_frame(path, 95)
        assert is_copy == copied
        assert (jpeg == path.read_bytes()) == copied
    image.save(tmp_path / "a.png")
    assert to_frame(tmp_path / "a.png", 95)[0].startswith(b"\xff\xd8")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "RGB.jpg").read_bytes()[:400])
    with pytest.raises(UserError, match="not a readable picture"):
        to_frame(tmp_path / "cut.jpg", 95)


def test_the_message_about_a_missing_pattern_names_existing_ones(tmp_path: Path):
    (tmp_path / "a_1.jpg").write_bytes(b"x")
    with pytest.raises(UserError, match=r"has no files b_%d.jpg, but a_%d.jpg: 1 file a_1.jpg"):
        find_pictures(tmp_path, "b_%d.jpg")
    with pytest.raises(UserError, match="a file name with one number"):
        parse(AdoptConfig, ["--pattern", "img_*.jpg"])


def test_a_shift_is_found_only_if_something_moves():
    rng = np.random.default_rng(0)
    around = [rng.uniform(0, 255, (18, 32)).astype(np.float32) for _ in range(2 * REACH + 1)]
    for shift in range(-REACH, REACH + 1):
        assert frame_shift(around[REACH + shift] + 1, around) == shift
    assert frame_shift(around[0], [around[0]] * len(around)) is None
