"""Benchmark data preparation against alternatives, in one run. Compare the ratios, not the seconds.

    python -m data_preparation.benchmark extraction              # against "ffmpeg everything, then delete"
    python -m data_preparation.benchmark containers              # uncompressed ZIP against other containers
    python -m data_preparation.benchmark timeline --like FILE    # a data set of full length, drawn at a small size

Needs ffmpeg. The test suite checks only that it runs, never the times.
"""

from __future__ import annotations

import io
import os
import pickle
import resource
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_preparation.archive import FrameReader, write_archive
from data_preparation.common.command_line import flag, parse_command, run
from data_preparation.common.errors import UserError
from data_preparation.decoding import decode_ranges, to_jpeg
from data_preparation.frame_numbers import scan_video
from data_preparation.layout import DatasetLayout, archive_file, archived_videos, frame_name

_DIVE_FRAMES = 106  # MTL-AQA's mean
_CLIP_FRAMES = 48


@dataclass(frozen=True)
class ExtractionConfig:
    """Extract a partly annotated 720p H.264 broadcast, and compare with "ffmpeg everything, then delete"."""

    video: Path | None = flag(None, "A broadcast video; none generates one (1280x720, 25 fps, GOP 250).")
    frames: int = flag(12000, "Number of frames of the generated broadcast.", minimum=100)
    share: float = flag(0.064, "Fraction of the frames inside dives; MTL-AQA's is 0.064.", minimum=0.001, maximum=0.5)
    height: int = flag(256, "Height of the stored frames in pixels.", minimum=0)
    folder: Path | None = flag(None, "Working folder; none uses the system's temporary folder.")


@dataclass(frozen=True)
class ContainersConfig:
    """Compare containers for frames: time to write, to open and to read a clip at a random place; size."""

    frames: int = flag(10000, "Number of frames in the container; an archive of MTL-AQA has about 10,000.", minimum=100)
    clips: int = flag(200, "Number of clips to read, of 48 frames each.", minimum=1)
    folder: Path | None = flag(None, "Working folder; none uses the system's temporary folder.")


@dataclass(frozen=True)
class TimelineConfig:
    """Generate, extract and verify a data set of full length: small videos with the timeline of a real one."""

    like: Path | None = flag(None, "Annotation file that gives the timeline.")
    width: int = flag(96, "Width of the generated videos in pixels.", minimum=16)
    height: int = flag(54, "Height of the generated videos and of the stored frames in pixels.", minimum=16)
    dataset: Path | None = flag(None, "Folder for the data set, which is kept; none uses a temporary folder.")

    def __post_init__(self) -> None:
        if self.like is None:
            raise UserError("--like is missing: give an annotation file, such as MTL-AQA's final_annotations_dict.pkl")


@contextmanager
def _working_folder(folder: Path | None) -> Iterator[Path]:
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
    path = Path(tempfile.mkdtemp(prefix="deepsports-benchmark-", dir=folder))
    try:
        yield path
    finally:
        shutil.rmtree(path)


def _run_timed(command: Sequence[object]) -> float:
    """Run a command and return the seconds that it takes.

    Raises:
        UserError: the command failed.
    """
    started = time.perf_counter()
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{command[0]} failed: {(done.stderr or done.stdout).strip().splitlines()[-1]}")
    return time.perf_counter() - started


def _module(name: str, *arguments: object) -> list[object]:
    return [sys.executable, "-m", f"data_preparation.{name}", *arguments]


def _size_and_files(folder: Path) -> tuple[int, int]:
    """(bytes, number of files) of a folder."""
    files = [p for p in folder.rglob("*") if p.is_file()]
    return sum(p.stat().st_size for p in files), len(files)


def _peak_memory_mb() -> float:
    """Peak memory, in MB, of the largest child process that has ended so far."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    )


# ------------------------------------------------------------------------------------------------------------- extraction


def _generate_broadcast(path: Path, frames: int) -> None:
    source = f"testsrc2=size=1280x720:rate=25:duration={frames / 25}"
    _run_timed(
        ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", source, "-vf", "noise=alls=8:allf=t", "-c:v", "libx264",
         "-preset", "veryfast", "-crf", "23", "-g", "250", "-bf", "3", "-pix_fmt", "yuv420p", path]
    )  # fmt: skip


def _annotate(layout: DatasetLayout, frame_count: int, fraction: float) -> int:
    """Write annotations with dives at even distances; return the number of frames inside them."""
    dives = max(round(frame_count * fraction / _DIVE_FRAMES), 1)
    length = round(frame_count * fraction / dives)
    starts = np.linspace(length, frame_count - 2 * length, dives).astype(int)
    fields = {
        (1, i): {"start_frame": int(s), "end_frame": int(s) + length - 1, "difficulty": 3.0, "final_score": 60.0}
        for i, s in enumerate(starts, start=1)
    }
    layout.annotations.mkdir(parents=True)
    layout.annotation_file.write_bytes(pickle.dumps(fields))
    return dives * length


def extraction(config: ExtractionConfig) -> None:
    with _working_folder(config.folder) as folder:
        layout = DatasetLayout(folder / "set")
        layout.videos.mkdir(parents=True)
        video = layout.videos / f"01{config.video.suffix if config.video else '.mp4'}"
        if config.video:
            video.symlink_to(config.video.resolve())
        else:
            print(f"generating {config.frames} frames at 1280x720 ...", flush=True)
            _generate_broadcast(video, config.frames)
        count = scan_video(video).frame_count
        annotated = _annotate(layout, count, config.share)
        loose = folder / "loose"
        loose.mkdir()
        ffmpeg_seconds = _run_timed(["ffmpeg", "-v", "error", "-i", video, loose / "%06d.jpg"])
        peak, files = _size_and_files(loose)
        started = time.perf_counter()
        kept = set(np.concatenate([np.arange(a, b + 1) for a, b in _dive_ranges(layout)]).tolist())
        for path in loose.iterdir():
            if int(path.stem) not in kept:
                path.unlink()
        ffmpeg_seconds += time.perf_counter() - started
        before = _peak_memory_mb()
        extract_seconds = _run_timed(_module("extract", "--dataset", layout.root, "--height", config.height))
        stored, archives = _size_and_files(layout.frames)
    print(f"{count} frames, {annotated} of them ({annotated / count:.1%}) in dives, stored at height {config.height}")
    print(
        _table(
            [
                ("", "seconds", "peak MB", "peak files"),
                ("ffmpeg, then delete", f"{ffmpeg_seconds:.1f}", f"{peak / 1e6:.1f}", f"{files}"),
                ("data_preparation.extract", f"{extract_seconds:.1f}", f"{stored / 1e6:.1f}", f"{archives}"),
                ("ratio", f"{ffmpeg_seconds / extract_seconds:.1f}", f"{peak / stored:.1f}", f"{files / archives:.0f}"),
            ]
        )
    )
    after = _peak_memory_mb()
    memory = f"{after:.0f} MB" if after > before else f"below {before:.0f} MB"
    print(f"peak memory of the largest process of the extraction: {memory}")


def _dive_ranges(layout: DatasetLayout) -> list[tuple[int, int]]:
    fields = pickle.loads(layout.annotation_file.read_bytes())  # written by _annotate
    return [(f["start_frame"], f["end_frame"]) for f in fields.values()]


# ------------------------------------------------------------------------------------------------------------- containers

Frames = Sequence[tuple[int, bytes]]
Read = Callable[[int], bytes]


def _loose(path: Path, frames: Frames) -> Callable[[], Read]:
    path.mkdir()
    for number, jpeg in frames:
        (path / frame_name(number)).write_bytes(jpeg)
    return lambda: lambda number: (path / frame_name(number)).read_bytes()


def _zip(path: Path, frames: Frames) -> Callable[[], Read]:
    write_archive(path, iter(frames), {})
    return lambda: FrameReader(path).read


def _deflated(path: Path, frames: Frames) -> Callable[[], Read]:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, jpeg in frames:
            archive.writestr(frame_name(number), jpeg)
    return lambda: FrameReader(path).read


def _tar(path: Path, frames: Frames) -> Callable[[], Read]:
    with tarfile.open(path, "w") as archive:
        for number, jpeg in frames:
            member = tarfile.TarInfo(frame_name(number))
            member.size = len(jpeg)
            archive.addfile(member, io.BytesIO(jpeg))

    def opened() -> Read:
        archive = tarfile.open(path)  # noqa: SIM115 - lives as long as the reader
        members = {int(member.name[:-4]): member for member in archive}

        def read(number: int) -> bytes:
            file = archive.extractfile(members[number])
            assert file is not None  # all members are regular files
            return file.read()

        return read

    return opened


def _sqlite(path: Path, frames: Frames) -> Callable[[], Read]:
    with sqlite3.connect(path) as base:
        base.execute("create table frames (number integer primary key, jpeg blob)")
        base.executemany("insert into frames values (?, ?)", frames)
    base.close()

    def opened() -> Read:
        base = sqlite3.connect(path)
        return lambda number: base.execute("select jpeg from frames where number = ?", (number,)).fetchone()[0]

    return opened


CONTAINERS = {
    "loose files": _loose,
    "ZIP, uncompressed": _zip,
    "ZIP, deflated": _deflated,
    "tar": _tar,
    "SQLite": _sqlite,
}


def containers(config: ContainersConfig) -> None:
    rng = np.random.default_rng(0)
    with _working_folder(config.folder) as folder:
        video = folder / "video.mp4"
        _generate_broadcast(video, 250)
        jpegs = [to_jpeg(frame, 256, 95) for _, frame in decode_ranges(scan_video(video), [(1, 250)])]
        frames = [(n, jpegs[n % len(jpegs)]) for n in range(1, config.frames + 1)]
        starts = rng.integers(1, config.frames - _CLIP_FRAMES, size=config.clips).tolist()
        rows = [("", "write s", "MB", "files", "open ms", f"{_CLIP_FRAMES} frames ms")]
        for name, make in CONTAINERS.items():
            path = folder / name.replace(" ", "_")
            path.mkdir()
            started = time.perf_counter()
            opened = make(path / "01", frames)
            written = time.perf_counter()
            read = opened()
            ready = time.perf_counter()
            for start in starts:
                for number in range(start, start + _CLIP_FRAMES):
                    assert read(number) == frames[number - 1][1]
            clip = (time.perf_counter() - ready) / config.clips
            size, files = _size_and_files(path)
            rows.append(
                (name, f"{written - started:.2f}", f"{size / 1e6:.1f}", f"{files}", f"{(ready - written) * 1e3:.1f}", f"{clip * 1e3:.2f}")
            )  # fmt: skip
    print(_table(rows))


# --------------------------------------------------------------------------------------------------------------- timeline


def timeline(config: TimelineConfig) -> None:
    with _working_folder(None) as folder:
        layout = DatasetLayout(config.dataset or folder / "set")
        size = ["--width", config.width, "--height", config.height]
        rows = [("", "seconds", "MB", "peak memory MB")]
        steps = {
            "generate": (_module("synthetic", "--dataset", layout.root, "--like", config.like, "--keep_timeline", True, *size, "--workers", len(os.sched_getaffinity(0))), layout.videos),
            "extract": (_module("extract", "--dataset", layout.root, "--height", config.height), layout.frames),
            "verify": (_module("verify", "--dataset", layout.root), layout.frames),
        }  # fmt: skip
        for name, (command, made) in steps.items():
            seconds = _run_timed(command)
            rows.append((name, f"{seconds:.1f}", f"{_size_and_files(made)[0] / 1e6:.1f}", f"{_peak_memory_mb():.0f}"))
            print(f"{name}: {seconds:.1f} s", flush=True)
        videos = archived_videos(layout.frames)
        total = sum(FrameReader(archive_file(layout.frames, v)).provenance["source"]["frames"] for v in videos)
        stored = sum(len(FrameReader(archive_file(layout.frames, v)).numbers) for v in videos)
    print(f"{len(videos)} videos ({' '.join(videos)}), {total} frames, {stored} of them stored")
    print(_table(rows))


def main(argv: Sequence[str]) -> None:
    commands = {"extraction": ExtractionConfig, "containers": ContainersConfig, "timeline": TimelineConfig}
    _, config = parse_command(commands, argv, prog="python -m data_preparation.benchmark")
    if shutil.which("ffmpeg") is None:
        raise UserError("ffmpeg is missing: install it, or load its module")
    if isinstance(config, ExtractionConfig):
        extraction(config)
    elif isinstance(config, ContainersConfig):
        containers(config)
    else:
        timeline(config)


if __name__ == "__main__":
    run(main)
