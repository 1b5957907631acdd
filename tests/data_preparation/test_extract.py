"""Extraction: frame numbers and pixels compared with ffmpeg's output, which frames are stored, and bad input."""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from data_preparation.actions import Dive, video_name
from data_preparation.archive import FrameReader, open_frames, write_archive
from data_preparation.common.errors import UserError
from data_preparation.decoding import decode_ranges, to_image
from data_preparation.extract import check_length, needed_ranges
from data_preparation.frame_numbers import scan_video
from data_preparation.layout import DatasetLayout
from tests.conftest import PATIENCE_S, REPOSITORY, SHARED, run_python

CLIPS = sorted(p for p in (SHARED / "clips").rglob("*") if p.suffix in (".mp4", ".avi", ".mkv", ".mov", ".webm"))
READABLE = [p for p in CLIPS if p.parent.name != "broken"]
needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")


def ffmpeg_frames(video: Path, folder: Path) -> list[np.ndarray]:
    """The frames in ffmpeg's numbering, as (H, W) luma; index 0 is frame 1."""
    subprocess.run(["ffmpeg", "-v", "error", "-i", video, "-pix_fmt", "gray", folder / "%06d.png"], check=True)
    return [np.asarray(Image.open(p)) for p in sorted(folder.glob("*.png"))]


def luma(image: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(image).convert("L"))


def assert_same_frames_as_ffmpeg(video: Path, tmp_path: Path, tolerance: float = 4.0) -> None:
    expected = ffmpeg_frames(video, tmp_path)
    found = scan_video(video)
    assert found.frame_count == len(expected)
    # the whole video, and late parts alone, which are reached by seeking
    count = found.frame_count
    for ranges in ([(1, count)], [(max(count - 4, 1), count)], [(count // 2 + 1, count // 2 + 1)]):
        for number, frame in decode_ranges(found, ranges):
            image = to_image(frame, 0)
            reference = expected[number - 1]
            assert image.shape[:2] == reference.shape
            error = np.abs(luma(image).astype(int) - reference).mean()
            assert error < tolerance, f"frame {number}"
            for neighbour in (number - 1, number + 1):  # a neighbouring frame must not match better
                if 1 <= neighbour <= count:
                    other = np.abs(luma(image).astype(int) - expected[neighbour - 1]).mean()
                    assert error < other + 0.5, f"frame {number} looks like {neighbour}"


@needs_ffmpeg
@pytest.mark.parametrize("video", READABLE, ids=lambda p: p.name)
def test_real_files_are_numbered_as_ffmpeg_numbers_them(video: Path, tmp_path: Path):
    assert_same_frames_as_ffmpeg(video, tmp_path, tolerance=10.0 if "mpeg2" in video.name else 4.0)


def test_the_real_files_exist():
    if not SHARED.is_dir():
        pytest.skip(f"the reference data is not at {SHARED}")
    assert len(READABLE) >= 15


def encode(path: Path, stamps: list[int], rate: Fraction = Fraction(25), gop: int = 12, bframes: int = 2) -> Path:
    """Encode an H.264 file. The grey level of frame i depends on i; it is shown at stamps[i], in 1 / rate / 4 seconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            "libx264", rate=rate, options={"bf": str(bframes), "g": str(gop), "preset": "veryfast"}
        )
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = 1 / (rate * 4)
        for i, stamp in enumerate(stamps):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 16 + (i * 37) % 220, np.uint8), "rgb24")
            frame.pts, frame.time_base = stamp, 1 / (rate * 4)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@needs_ffmpeg
@pytest.mark.parametrize(
    ("name", "stamps", "rate"),
    [
        ("b_frames", [4 * i for i in range(60)], Fraction(25)),
        ("ntsc", [4 * i for i in range(60)], Fraction(30000, 1001)),
        ("late_start", [4 * i + 40 for i in range(40)], Fraction(25)),
        ("gaps", [4 * i for i in range(60) if i % 7 not in (3, 4)], Fraction(25)),
        ("long_gap", [4 * i for i in range(20)] + [4 * i + 120 for i in range(20, 40)], Fraction(25)),
        ("crowded", [4 * i - (2 if i % 3 == 1 else 0) for i in range(60)], Fraction(25)),
        ("one_frame", [0], Fraction(25)),
    ],
)
def test_encoded_files_are_numbered_as_ffmpeg_numbers_them(
    name: str, stamps: list[int], rate: Fraction, tmp_path: Path
):
    (tmp_path / "png").mkdir()
    assert_same_frames_as_ffmpeg(encode(tmp_path / f"{name}.mp4", stamps, rate), tmp_path / "png")


SOURCE = "-f lavfi -i testsrc2=size=160x120:rate=25:duration=8"
SOUND = "-f lavfi -i sine=duration=8 -c:a aac"
X264 = "-c:v libx264 -preset veryfast -bf 3 -g 50"
UNEVEN = r"-vf select='not(mod(n\,7)-3)+gt(mod(n\,3)\,0)' -vsync vfr"
MADE_BY_FFMPEG = {
    "open_gop.mp4": f"{SOURCE} {X264} -x264-params open-gop=1",
    "open_gop.ts": f"{SOURCE} {X264} -x264-params open-gop=1",
    "sound.mp4": f"{SOURCE} {SOUND} {X264}",
    "h264.mkv": f"{SOURCE} {X264}",
    "h264.flv": f"{SOURCE} {X264}",
    "mpeg2.mpg": f"{SOURCE} -c:v mpeg2video -b:v 2M -bf 2 -g 15",
    "xvid.avi": f"{SOURCE} -c:v mpeg4 -b:v 2M -bf 2 -g 60",
    "vp9.webm": f"{SOURCE} -c:v libvpx-vp9 -deadline realtime -cpu-used 8 -g 60",
    "fragmented.mp4": f"{SOURCE} {X264} -movflags frag_keyframe+empty_moov",
    "uneven.mp4": f"{SOURCE} {UNEVEN} {X264}",
    "uneven.mkv": f"{SOURCE} {UNEVEN} {X264}",
    "uneven.ts": f"{SOURCE} {UNEVEN} {X264}",
    "jitter.mp4": f"{SOURCE} -vf setpts=PTS+random(0)*0.02/TB -vsync vfr -enc_time_base 1/90000 {X264}",
    "film.mkv": f"{SOURCE.replace('25', '24000/1001')} {X264}",
    "interlaced.mp4": f"{SOURCE} -vf tinterlace=interleave_top,fieldorder=tff {X264} -flags +ildct+ilme",
    "two_pictures.mp4": f"{SOURCE} -f lavfi -i testsrc=size=192x128:rate=30:duration=8 -map 0 -map 1 {X264}",
    "two_pictures.mkv": f"{SOURCE} -f lavfi -i testsrc=size=192x128:rate=30:duration=8 -map 0 -map 1 {X264} -disposition:v:0 0 -disposition:v:1 default",
    "edit_list.mp4": "-ss 3.3 -i {sound} -c copy",
    "cut.mkv": "-ss 3.3 -i {sound} -c copy",
    "late_picture.mp4": "-itsoffset 1.7 -i {sound} -i {sound} -map 0:v -map 1:a -c copy",
    "late_picture.mkv": "-itsoffset 1.7 -i {sound} -i {sound} -map 0:v -map 1:a -c copy",
    "rotated.mp4": "-i {sound} -metadata:s:v rotate=90 -c copy",
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_by_ffmpeg("sound.mp4", tmp_path_factory.mktemp("sound"))


def make_by_ffmpeg(name: str, folder: Path, sound: Path | None = None) -> Path:
    arguments = MADE_BY_FFMPEG[name].replace("{sound}", str(sound)).replace("'", "").split()
    subprocess.run(["ffmpeg", "-v", "error", *arguments, folder / name], check=True)
    return folder / name


@needs_ffmpeg
@pytest.mark.parametrize("name", MADE_BY_FFMPEG)
def test_files_made_by_ffmpeg_are_numbered_as_ffmpeg_numbers_them(name: str, sound: Path, tmp_path: Path):
    (tmp_path / "png").mkdir()
    assert_same_frames_as_ffmpeg(make_by_ffmpeg(name, tmp_path, sound), tmp_path / "png")


@needs_ffmpeg
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.integers(1, 14), min_size=2, max_size=50),
    st.sampled_from([Fraction(25), Fraction(30000, 1001), Fraction(50)]),
    st.integers(0, 3), st.integers(0, 60), st.sampled_from(["mp4", "mkv"]),
)  # fmt: skip
@pytest.mark.slow
def test_any_timing_is_numbered_as_ffmpeg_numbers_it(tmp_path, steps, rate, bframes, start, container):
    """Frames that are 0.25 to 3.5 frame durations apart."""
    stamps = [start, *(start + int(s) for s in np.cumsum(steps))]
    with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
        (Path(folder) / "png").mkdir()
        video = encode(Path(folder) / f"v.{container}", stamps, rate, bframes=bframes)
        assert_same_frames_as_ffmpeg(video, Path(folder) / "png")


@needs_ffmpeg
@pytest.mark.parametrize(
    ("name", "warning"),
    [
        ("uneven.mp4", r"ffmpeg repeats \d+ and drops 0 frames; readers that count decoded frames have other numbers"),
        ("edit_list.mp4", r"an edit list hides \d+ of its \d+ frames"),
        ("two_pictures.mkv", r"2 video streams; number 1 \(192x128\) is used, as ffmpeg does"),
        ("xvid.avi", "decoded from its start instead of by seeking"),
        ("sound.mp4", None),
    ],
)
def test_warnings_about_frame_numbers(name: str, warning: str | None, sound: Path, tmp_path: Path):
    warnings = scan_video(make_by_ffmpeg(name, tmp_path, sound)).warnings
    assert re.search(warning, "\n".join(warnings)) if warning else warnings == ()


X265_10_BIT = "-c:v libx265 -preset ultrafast -x265-params log-level=none -pix_fmt yuv420p10le"
X264_10_BIT = "-c:v libx264 -preset ultrafast -pix_fmt yuv420p10le"
X264_8_BIT = "-c:v libx264 -preset ultrafast -pix_fmt yuv420p"
VP9 = "-c:v libvpx-vp9 -deadline realtime -cpu-used 8 -pix_fmt yuv420p"


@needs_ffmpeg
@pytest.mark.parametrize("color_range", ["tv", "pc"])
@pytest.mark.parametrize(
    ("encoder", "matrix"),
    [
        (X265_10_BIT, "bt2020nc"), (X265_10_BIT, "bt709"), (X265_10_BIT, None), (X264_10_BIT, "bt2020nc"),
        (X264_8_BIT, "bt2020c"), (X264_8_BIT, "bt709"), (X264_8_BIT, "fcc"), (X264_8_BIT, "smpte170m"),
        (X264_8_BIT, "bt470bg"), (X264_8_BIT, "smpte240m"), (X264_8_BIT, None), (VP9, "bt2020nc"),
    ],
    ids=lambda value: str(value).removeprefix("-c:v ").split(" ")[0],
)  # fmt: skip
def test_colours_are_ffmpegs(encoder: str, matrix: str | None, color_range: str, tmp_path: Path):
    """Full size, reduced and enlarged. Equal to the last bit for ffmpeg 5.1; other versions may round differently."""
    video = tmp_path / "colours.mkv"
    converted = f"scale=out_range={color_range}"
    if matrix:
        converted += f":out_color_matrix={matrix.removesuffix('nc').removesuffix('c').removesuffix('bg')}"
    tags = f"-color_range {color_range}" + (f" -colorspace {matrix}" if matrix else "")
    subprocess.run(
        ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", "testsrc2=size=322x180:rate=25:duration=0.12",
         "-vf", converted, *tags.split(), *encoder.split(), video], check=True,
    )  # fmt: skip
    frames = [frame for _, frame in decode_ranges(scan_video(video), [(1, 3)])]
    for height, width in ((0, 322), (90, 161), (256, 458)):
        scaled = ["-vf", f"scale={width}:{height}"] if height else []
        command = ["ffmpeg", "-v", "error", "-i", video, *scaled, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
        pixels = subprocess.run(command, check=True, capture_output=True).stdout
        expected = np.frombuffer(pixels, np.uint8).reshape(3, height or 180, width, 3)
        images = np.stack([to_image(frame, height) for frame in frames])
        assert np.abs(images.astype(int) - expected).max() <= 1


def test_seeking_decodes_few_frames(tmp_path: Path):
    """Frame 900 of 1000 is reached without decoding the first 800."""
    video = encode(tmp_path / "long.mp4", [4 * i for i in range(1000)], gop=50)
    decoded = sum(1 for _ in decode_ranges(scan_video(video), [(900, 905)]))
    assert decoded == 6
    with av.open(str(video)) as container:
        stream = container.streams.video[0]
        container.seek(int(scan_video(video).timestamps[899]), stream=stream)
        assert next(container.decode(stream)).pts >= scan_video(video).timestamps[840]


# ------------------------------------------------------------------------------------------------------ stored frames


@given(
    st.lists(st.tuples(st.integers(1, 900), st.integers(0, 200)), min_size=1, max_size=8),
    st.integers(0, 120), st.integers(0, 5), st.integers(1100, 1200),
)  # fmt: skip
def test_ranges_cover_every_dive_and_its_window_without_overlap(spans, window, after, last):
    dives = [
        Dive("01", i, start, start + length, difficulty=3.0, final_score=60.0)
        for i, (start, length) in enumerate(spans)
    ]
    ranges = needed_ranges(dives, window, after, last)
    stored = [n for first, end in ranges for n in range(first, end + 1)]
    assert len(set(stored)) == len(stored)
    assert all(b[0] > a[1] + 1 for a, b in itertools.pairwise(ranges))
    expected = set()
    for d in dives:
        expected |= set(range(max(min(d.start_frame, d.end_frame - window), 1), min(d.end_frame + after, last) + 1))
    assert set(stored) == expected


def make_dataset(folder: Path, videos: dict[int, Path], dives: list[Dive]) -> Path:
    layout = DatasetLayout(folder)
    layout.videos.mkdir(parents=True)
    layout.annotations.mkdir()
    for number, source in videos.items():
        shutil.copy(source, layout.videos / f"{number:02d}{source.suffix}")
    fields = {
        d.key: {
            "start_frame": d.start_frame,
            "end_frame": d.end_frame,
            "difficulty": d.difficulty,
            "final_score": d.final_score,
        }
        for d in dives
    }
    for path, content in (
        (layout.annotation_file, fields), (layout.train_file, list(fields)[1:]), (layout.test_file, list(fields)[:1]),
    ):  # fmt: skip
        path.write_bytes(pickle.dumps(content, 3))
    return folder


def extract(folder: Path, *flags: object):
    return run_python("-m", "data_preparation.extract", "--dataset", folder, *flags, check=False)


@pytest.fixture
def two_videos(tmp_path: Path) -> Path:
    video = encode(tmp_path / "v.mp4", [4 * i for i in range(400)])
    dives = [
        Dive(video_name(v), d, 100 * d, 100 * d + 30, difficulty=3.0, final_score=60.0)
        for v in (1, 2)
        for d in (1, 2, 3)
    ]
    return make_dataset(tmp_path / "set", {1: video, 2: video}, dives)


def test_extract_verify_and_extract_again(two_videos: Path, tmp_path: Path):
    done = extract(two_videos, "--height", 24, "--window", 40, "--workers", 2)
    assert done.returncode == 0, done.stderr
    reader = open_frames(two_videos / "whole_videos_frames", "01")
    assert reader.numbers.tolist() == [n for d in (1, 2, 3) for n in range(100 * d - 10, 100 * d + 34)]
    assert reader.image(115).shape == (24, 32, 3)
    assert reader.provenance["source"]["frames"] == 400
    assert zipfile.ZipFile(reader.path).testzip() is None
    before = reader.path.stat().st_mtime_ns
    assert extract(two_videos, "--height", 24, "--window", 40).stdout.count("already extracted") == 2
    assert reader.path.stat().st_mtime_ns == before
    assert "already extracted" not in extract(two_videos, "--height", 30, "--window", 40).stdout
    assert open_frames(two_videos / "whole_videos_frames", "02").image(115).shape == (30, 40, 3)
    checked = run_python("-m", "data_preparation.verify", "--dataset", two_videos, "--sheets", tmp_path / "sheets")
    assert "2 videos, 6 dives; the lists name 5 to train and 1 to test" in checked.stdout
    assert Image.open(tmp_path / "sheets" / "01.png").size[0] > 100
    assert not list(two_videos.rglob("*.tmp"))


def test_verify_gives_the_command_that_extracts_again(two_videos: Path):
    assert extract(two_videos, "--height", 24).returncode == 0
    frames = two_videos / "whole_videos_frames"
    with zipfile.ZipFile(frames / "01.zip") as whole:
        kept = {n: whole.read(n) for n in whole.namelist() if n != "000110.jpg"}
    with zipfile.ZipFile(frames / "01.zip", "w") as cut:
        for name, content in kept.items():
            cut.writestr(name, content)
    damaged = bytearray((frames / "02.zip").read_bytes())
    damaged[damaged.index(b"000110.jpg") + 200] ^= 0xFF
    (frames / "02.zip").write_bytes(damaged)
    checked = run_python("-m", "data_preparation.verify", "--dataset", two_videos, check=False)
    assert checked.returncode == 2
    assert "dive 01/001: 1 of 31 frames are missing, the first is 110" in checked.stderr
    assert "frame 110 is damaged" in checked.stderr
    assert f"--dataset {two_videos} --videos 01 02 --again True --height 24 --quality 95" in checked.stderr


def test_shards_cover_all_videos_once(two_videos: Path):
    assert "1 of 1 videos" in extract(two_videos, "--shard_index", 1, "--shard_count", 2).stdout
    assert [p.name for p in (two_videos / "whole_videos_frames").iterdir()] == ["02.zip"]
    assert "nothing to do" in extract(two_videos, "--shard_index", 2, "--shard_count", 3).stdout
    assert extract(two_videos, "--shard_index", 2, "--shard_count", 2).returncode == 2


def test_a_killed_extraction_leaves_no_archive(two_videos: Path):
    code = (
        "import os, sys, data_preparation.extract as e\n"
        "original = e.to_jpeg\n"
        "def dying(*a, n=[0]):\n    n[0] += 1\n    if n[0] > 50: os.kill(os.getpid(), 9)\n    return original(*a)\n"
        "e.to_jpeg = dying\n"
        f"sys.exit(e.main(['--dataset', {str(two_videos)!r}]))"
    )
    done = run_python("-c", code, check=False)
    assert done.returncode != 0
    assert "killed" in done.stderr
    assert not list((two_videos / "whole_videos_frames").glob("*.zip"))
    assert extract(two_videos).returncode == 0


def test_a_full_disk_is_an_error_and_no_archive(tmp_path: Path):
    def frames():
        yield 1, b"x"
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="No space left"):
        write_archive(tmp_path / "01.zip", frames(), {})
    assert not list(tmp_path.iterdir())


def test_loose_frames_are_read(two_videos: Path):
    assert extract(two_videos, "--height", 24).returncode == 0
    frames = two_videos / "whole_videos_frames"
    with zipfile.ZipFile(frames / "01.zip") as archive:
        archive.extractall(frames / "01")
    from_archive = open_frames(frames, "01")
    (frames / "01.zip").rename(frames / "kept")
    loose = open_frames(frames, "01")
    assert loose.path.is_dir()
    assert loose.numbers.tolist() == from_archive.numbers.tolist()
    assert FrameReader(frames / "kept").read(115) == loose.read(115)


def test_extracting_more_dives_adds_frames_and_removes_none(two_videos: Path):
    """Extracting for some of the dives keeps the frames of the others."""
    annotations = DatasetLayout(two_videos).annotation_file
    fields = pickle.loads(annotations.read_bytes())
    first = {key: value for key, value in fields.items() if key[1] == 1}
    (two_videos / "first.pkl").write_bytes(pickle.dumps(first, 3))
    flags = ("--height", 24, "--window", 0, "--after", 0)
    assert extract(two_videos, *flags, "--annotation_path", two_videos / "first.pkl").returncode == 0
    frames = two_videos / "whole_videos_frames"
    assert open_frames(frames, "01").numbers.tolist() == list(range(100, 131))
    assert extract(two_videos, *flags).returncode == 0
    everything = [n for d in (1, 2, 3) for n in range(100 * d, 100 * d + 31)]
    assert open_frames(frames, "01").numbers.tolist() == everything
    again = extract(two_videos, *flags, "--again", True, "--annotation_path", two_videos / "first.pkl")
    assert again.returncode == 0
    assert open_frames(frames, "01").numbers.tolist() == everything


def test_one_process_and_several_make_the_same_archive(two_videos: Path):
    frames = two_videos / "whole_videos_frames"
    assert extract(two_videos, "--workers", 1, "--height", 24).returncode == 0
    one = {p.name: zipfile.ZipFile(p).read("000115.jpg") for p in frames.iterdir()}
    crcs = [i.CRC for i in zipfile.ZipFile(frames / "01.zip").infolist()]
    assert extract(two_videos, "--workers", 3, "--height", 24, "--again", True).returncode == 0
    assert {p.name: zipfile.ZipFile(p).read("000115.jpg") for p in frames.iterdir()} == one
    assert [i.CRC for i in zipfile.ZipFile(frames / "01.zip").infolist()] == crcs


def test_concurrent_extractions_of_the_same_video(two_videos: Path):
    command = [sys.executable, "-m", "data_preparation.extract", "--dataset", str(two_videos), "--height", "24"]
    running = [subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE) for _ in range(3)]
    assert [p.wait() for p in running] == [0, 0, 0]
    frames = two_videos / "whole_videos_frames"
    assert sorted(p.name for p in frames.iterdir()) == ["01.zip", "02.zip"]
    assert zipfile.ZipFile(frames / "01.zip").testzip() is None
    assert run_python("-m", "data_preparation.verify", "--dataset", two_videos).returncode == 0


def processes_of(folder: Path) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if str(folder).encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_killed_extraction_leaves_no_archive_and_no_process(tmp_path: Path, number: int):
    video = encode(tmp_path / "v.mp4", [4 * i for i in range(3000)])
    folder = make_dataset(
        tmp_path / "set",
        {1: video},
        [
            Dive("01", 1, 10, 2990, difficulty=3.0, final_score=60.0),
            Dive("01", 2, 2995, 2999, difficulty=3.0, final_score=60.0),
        ],
    )
    command = [sys.executable, "-m", "data_preparation.extract", "--dataset", str(folder), "--height", "1080"]
    running = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    frames = folder / "whole_videos_frames"
    deadline = time.monotonic() + PATIENCE_S
    while not (frames.exists() and list(frames.iterdir())) and time.monotonic() < deadline:
        time.sleep(0.05)
    running.send_signal(number)
    assert (
        running.wait(PATIENCE_S)
        == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGHUP: 129}[number]
    )
    assert not list(frames.glob("*.zip"))
    deadline = time.monotonic() + PATIENCE_S
    while processes_of(folder) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert processes_of(folder) == []
    assert extract(folder, "--height", 24).returncode == 0
    assert [p.name for p in frames.iterdir()] == ["01.zip"]  # no temporary file of the killed extraction is left


@pytest.mark.skipif(os.geteuid() != 0, reason="making a small disk needs root")
def test_a_full_disk_is_an_error_and_leaves_no_archive(two_videos: Path):
    frames = two_videos / "whole_videos_frames"
    frames.mkdir()
    script = (
        f"mount -t tmpfs -o size=64k none {frames} || exit 77\n"
        f"{sys.executable} -m data_preparation.extract --dataset {two_videos} --height 480; status=$?\n"
        f"ls -A {frames}; exit $status"
    )
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], cwd=REPOSITORY, capture_output=True, text=True)
    if done.returncode == 77:
        pytest.skip("this machine does not let root mount a file system")
    assert done.returncode == 2
    assert "01.zip could not be written (No space left on device): make room on that disk" in done.stderr
    assert ".zip" not in done.stdout.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_export_to_loose_frames(two_videos: Path, tmp_path: Path):
    assert extract(two_videos, "--height", 24).returncode == 0
    frames = two_videos / "whole_videos_frames"
    archived = {n: open_frames(frames, "01").read(n) for n in open_frames(frames, "01").numbers.tolist()}

    def export(*flags: object):
        return run_python("-m", "data_preparation.export", "--dataset", two_videos, *flags, check=False)

    assert export("--videos", "01", "--output", tmp_path / "loose").returncode == 0
    assert {int(p.stem): p.read_bytes() for p in (tmp_path / "loose" / "01").glob("*.jpg")} == archived
    assert not (tmp_path / "loose" / "02").exists()
    refused = export("--output", tmp_path / "loose")
    assert refused.returncode == 2
    assert "01 exists already" in refused.stderr
    assert (tmp_path / "loose" / "02").is_dir()
    assert "no archive of 07" in export("--videos", "07").stderr
    assert export().returncode == 0
    for name in ("01.zip", "02.zip"):
        (frames / name).unlink()
    checked = run_python("-m", "data_preparation.verify", "--dataset", two_videos)
    assert checked.stdout.count("loose frames") == 2


def test_verify_compares_archives_with_their_records_and_sources(two_videos: Path, tmp_path: Path):
    assert extract(two_videos, "--height", 24).returncode == 0
    frames = two_videos / "whole_videos_frames"

    def verify(*flags: object):
        return run_python("-m", "data_preparation.verify", "--dataset", two_videos, *flags, check=False)

    assert verify("--sources", True).returncode == 0
    with zipfile.ZipFile(frames / "01.zip", "a") as archive:
        archive.writestr("000399.jpg", archive.read("000110.jpg"))
    with open(two_videos / "whole_videos" / "02.mp4", "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"!")
    checked = verify("--sources", True, "--report", tmp_path / "report.txt")
    assert checked.returncode == 2
    assert "1 frames are not in its record, the first is 399" in checked.stderr
    assert "02.mp4 is not the file that the archive was made from" in checked.stderr
    assert "01.mp4 at 25 fps   FAULTY" in (tmp_path / "report.txt").read_text()
    assert extract(two_videos, "--videos", "02", "--height", 30, "--again", True).returncode == 0
    assert "frames of height 30" in verify("--videos", "all").stderr or "frames of height 24" in verify().stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "record",
    [None, b"", b"\xff{", b"[]", b'"text"', b"{}", b'{"source": 5, "settings": {"height": "a"}, "ranges": "x"}',
     b'{"source": {"bytes": 1, "width": 64, "height": 48, "frames": 9}, "settings": {"height": 24, "quality": 95}, "ranges": [[1, 1e9]]}'],
)  # fmt: skip
def test_an_archive_with_a_bad_record_is_refused_and_extracted_again(two_videos: Path, record: bytes | None):
    assert extract(two_videos, "--height", 24).returncode == 0
    path = two_videos / "whole_videos_frames" / "01.zip"
    with zipfile.ZipFile(path) as whole:
        kept = {n: whole.read(n) for n in whole.namelist() if n != "provenance.json"}
    with zipfile.ZipFile(path, "w") as made:
        for name, content in {**kept, **({} if record is None else {"provenance.json": record})}.items():
            made.writestr(name, content)
    for module in ("verify", "export"):
        done = run_python("-m", f"data_preparation.{module}", "--dataset", two_videos, "--videos", "01", check=False)
        assert done.returncode == 2
        assert "01.zip has no readable provenance.json" in done.stderr
        assert "Traceback" not in done.stderr
    assert not (path.parent / "01").exists()
    assert extract(two_videos, "--height", 24, "--verify", True).returncode == 0


def test_verify_refuses_lists_that_overlap_or_lack_annotation(two_videos: Path):
    layout = DatasetLayout(two_videos)
    assert extract(two_videos, "--height", 24).returncode == 0
    layout.train_file.write_bytes(pickle.dumps([(1, 1), (1, 2), (9, 9)], 3))
    checked = run_python("-m", "data_preparation.verify", "--dataset", two_videos, check=False)
    assert checked.returncode == 2
    assert "the train list names 1 actions without annotation (09/009)" in checked.stderr
    assert "share 1 actions (01/001)" in checked.stderr


def test_an_implausible_frame_rate_is_a_warning(two_videos: Path):
    done = extract(two_videos, "--height", 24)  # its dives last 31 frames, 1.2 s
    assert "the median dive lasts 1.2 s" in done.stdout


# --------------------------------------------------------------------------------------------------------- bad input


def bad_files(folder: Path) -> dict[str, Path]:
    whole = encode(folder / "whole.mp4", [4 * i for i in range(200)])
    made = {"truncated": whole.read_bytes()[:3000], "empty": b"", "text": b"this is not a video\n" * 50}
    for name, content in made.items():
        (folder / f"{name}.mp4").write_bytes(content)
    with av.open(str(folder / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100, layout="mono")
        for _ in range(20):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            frame.rate = 44100
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return {p.stem: p for p in folder.glob("*.mp4") if p != whole}


def test_bad_files_are_reported_and_good_ones_extracted(tmp_path: Path):
    (tmp_path / "bad").mkdir()
    bad = [*bad_files(tmp_path / "bad").values(), *(p for p in CLIPS if p.parent.name == "broken")]
    good = encode(tmp_path / "good.mp4", [4 * i for i in range(200)])
    videos = {1: good, **{i + 2: path for i, path in enumerate(bad)}}
    folder = make_dataset(
        tmp_path / "set",
        videos,
        [Dive(video_name(v), 1, 40, 49, difficulty=3.0, final_score=60.0) for v in [*videos, 90, 91]],
    )
    (folder / "whole_videos" / "91.mp4").mkdir()
    done = extract(folder, "--height", 24, "--window", 0)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "1 of " in done.stdout
    assert [p.name for p in (folder / "whole_videos_frames").iterdir()] == ["01.zip"]
    for video in videos:
        assert video == 1 or f"{video:02d}{videos[video].suffix}" in done.stderr, (
            f"{videos[video].name} is not reported"
        )
    assert "video 90 is missing" in done.stderr
    assert "91.mp4 is a folder" in done.stderr


def without_roots_privileges() -> list[str]:
    """The start of a command line that drops root's right to read and write any file."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("root can read any file, and setpriv (util-linux) is not installed")
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search"]


def test_unreadable_files_and_unwritable_folders_are_reported(two_videos: Path):
    layout = DatasetLayout(two_videos)
    command = [*without_roots_privileges(), sys.executable, "-m", "data_preparation.extract", "--dataset", two_videos]
    layout.video_file("01").chmod(0)
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert "01.mp4 is not readable: change its permissions" in done.stderr
    assert [p.name for p in layout.frames.iterdir()] == ["02.zip"]
    layout.video_file("01").chmod(0o644)
    layout.frames.chmod(0o555)
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert "01.zip could not be written (Permission denied)" in done.stderr
    layout.annotation_file.chmod(0)
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert "final_annotations_dict.pkl cannot be read (Permission denied)" in done.stderr


def test_a_short_video_is_refused_with_the_dives_that_would_be_lost(tmp_path: Path):
    found = scan_video(encode(tmp_path / "v.mp4", [4 * i for i in range(50)]))
    with pytest.raises(UserError, match=r"1 dives would be lost \(01/002\)"):
        check_length(
            found,
            [
                Dive("01", 1, 5, 50, difficulty=3.0, final_score=60.0),
                Dive("01", 2, 40, 51, difficulty=3.0, final_score=60.0),
            ],
        )


def test_extract_without_a_data_set():
    done = run_python("-m", "data_preparation.extract", check=False, env={"DEEPSPORTS_DATASET": ""})
    assert done.returncode == 2
    assert "--dataset is missing" in done.stderr


def test_extract_and_verify_do_not_import_torch():
    code = "import sys, data_preparation.extract, data_preparation.verify; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY).returncode == 0


@needs_ffmpeg
@pytest.mark.slow
def test_the_benchmark_prints_ratios(tmp_path: Path):
    """That it runs and counts correctly; times are not tested."""

    def benchmark(*arguments: object) -> str:
        return run_python("-m", "data_preparation.benchmark", *arguments).stdout

    output = benchmark("extraction", "--frames", 200, "--share", 0.1, "--folder", tmp_path)
    assert "200 frames, 20 of them (10.0%) in dives" in output
    assert re.search(r"^ratio +[\d.]+ +[\d.]+ +200$", output, re.MULTILINE)
    output = benchmark("containers", "--frames", 100, "--clips", 2, "--folder", tmp_path)
    assert [line.split("  ")[0] for line in output.splitlines()[1:]] == [
        "loose files", "ZIP, uncompressed", "ZIP, deflated", "tar", "SQLite",
    ]  # fmt: skip
    assert list(tmp_path.iterdir()) == []
