"""Pack clips into frame archives: video files, or the loose frames of other tools with the names and numbers expected here.

    python -m data_preparation.adopt --dataset DIR --source AQA-7/Actions
    python -m data_preparation.adopt --dataset DIR [--videos 01 02] [--pattern img_%05d.jpg] [--first_number 0]

Every video file and every folder of pictures under --source becomes an archive of the same name. All frames of a video
file are stored, numbered as ffmpeg does. Frame 1 of a folder is the first picture of a video, as in ffmpeg; loops with
OpenCV often count from 0. If the source video is in whole_videos, pictures are compared with it. Nothing in --source is
changed, and finished archives are skipped.
"""

from __future__ import annotations

import multiprocessing
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image
from tqdm import tqdm

from data_preparation import datasets
from data_preparation.actions import chosen_videos
from data_preparation.adopt_sources import ClipEnds, Source, find_pictures, find_sources
from data_preparation.alignment import Alignment, compare_with_video
from data_preparation.archive import FrameReader, decode_grey, write_archive
from data_preparation.common.command_line import flag, parse, run
from data_preparation.common.errors import UserError, first_line
from data_preparation.common.files import reporting_write_errors, sha256
from data_preparation.common.limits import limit_error_text
from data_preparation.common.workers import WORKER_KILLED, check_workers, init_worker, kill_workers
from data_preparation.decoding import Decoder, request_frames, to_jpeg
from data_preparation.extract import merge_ranges, provenance
from data_preparation.frame_numbers import VideoScan, scan_video
from data_preparation.layout import DatasetLayout, archive_file, dataset_layout
from data_preparation.loose_frames import FrameFiles, LooseFrames, combine
from data_preparation.many_videos import MAX_LINES, grouped_lines
from data_preparation.shards import ShardConfig, command_text
from data_preparation.similar_files import IMAGE_SUFFIXES, names_in

_SAMPLES = 12  # pictures of a video that are compared with the source video


@dataclass(frozen=True)
class AdoptConfig(ShardConfig):
    """Pack video files and loose frames of other tools into frame archives."""

    videos: tuple[str, ...] = flag(
        ("all",), "Videos: all that --source has, or names, or folders of videos.", allowed="all, or names such as 01"
    )
    source: Path | None = flag(
        None,
        "Folder with video files, or with a folder of pictures for each video, also in subfolders; none uses whole_videos_frames of the data set.",
    )
    output: Path | None = flag(None, "Folder for the archives; none uses whole_videos_frames of the data set.")
    pattern: str | None = flag(None, "Pattern of the pictures' file names, such as img_%05d.jpg; none detects it.")
    first_number: int | None = flag(
        None, "Number of the first picture of a video in the file names; none detects it.", minimum=0, maximum=1
    )
    clip_end: int | None = flag(
        None,
        "For folders VIDEO_NUMBER or VIDEO/NUMBER, each with the pictures of one annotated action, numbered for themselves: the last picture is this many frames after the action's end (3 for the 109 pictures of USDL and TPT).",
        minimum=0,
    )
    height: int = flag(
        256, "Height of the stored frames of video files in pixels; 0 keeps the video's.", minimum=0, maximum=4320
    )
    quality: int = flag(95, "JPEG quality for video files and for pictures that are not JPEGs.", minimum=1, maximum=100)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pattern is not None and not re.fullmatch(r"[^%/]*%(0[1-9])?d[^%/]*", self.pattern):
            raise UserError(
                f"--pattern {self.pattern}: give the pattern of a file name with one number, such as img_%05d.jpg"
            )

    @property
    def settings(self) -> dict[str, int]:
        """The flags that determine the pixels of a video file's frames."""
        return {"height": self.height, "quality": self.quality}


@dataclass(frozen=True)
class Outcome:
    """Result of one video: its frames, a line about it, and warnings."""

    frames: int
    text: str
    warnings: tuple[str, ...] = ()


# ------------------------------------------------------------------------------------------------------------ pictures


def _open_picture(path: Path) -> Image.Image:
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(
            f"{path} is not a readable picture ({first_line(error)}): write it again, or delete it"
        ) from None


def to_frame(path: Path, quality: int) -> tuple[bytes, bool]:
    """Convert a picture file to (JPEG bytes, whether they are a copy of the file).

    Raises:
        UserError: it is not a readable picture.
    """
    content = path.read_bytes()
    if content.startswith(b"\xff\xd8"):
        try:
            _, _, colours, _ = simplejpeg.decode_jpeg_header(content)
            decode_grey(content, 8)  # decodes the whole picture, or raises
            if colours in ("YCbCr", "RGB"):
                return content, True
        except ValueError:
            pass  # PIL may be able to read it, or names the fault
    image = np.ascontiguousarray(_open_picture(path))
    return simplejpeg.encode_jpeg(image, quality=quality, colorspace="RGB", colorsubsampling="420"), False


def numbered_pictures(folder: Path, config: AdoptConfig, source: VideoScan | None) -> FrameFiles:
    """The pictures of a folder, with the numbers of their frames in the video.

    Raises:
        UserError: the numbers contradict the flags or the source video, or do not show whether they count from 0 or 1.
    """
    pictures = find_pictures(folder, config.pattern)
    lowest, first = pictures.first_file, config.first_number
    name = pictures.pattern % lowest
    if first == 1 and lowest == 0:
        raise UserError(f"{pictures.folder / name} exists, so its files count from 0: give --first_number 0")
    if first is None and lowest in (0, 1):
        first = lowest
    shift = None
    if source is not None:
        result = _compare(pictures.shifted(0 if first is None else 1 - first), source)
        shift = result.shift
        if result.rate:
            raise UserError(
                f"{pictures.folder} has the pictures of a file of about {round(result.rate)} frames per second, but {source.path.name} has {float(source.rate):g}, so they are of different versions: extract that video, or delete it if the labels belong to the other version"
            )
    if first is None and shift in (0, 1):
        return pictures.shifted(shift)
    if first is None:
        raise UserError(
            f"{pictures.folder} begins with {name}, which does not show whether its files count from 0 or 1: give --first_number"
        )
    if shift and source is not None:
        raise UserError(
            f"{pictures.folder}: with --first_number {first} picture N would be frame N{shift:+d} of {source.path.name} in ffmpeg's numbering: "
            + (f"give --first_number {1 - first}" if 1 - first == first - shift else "number them like ffmpeg")
        )
    return pictures.shifted(1 - first)


def _compare(pictures: FrameFiles, source: VideoScan) -> Alignment:
    numbers = pictures.numbers.tolist()
    chosen = {numbers[i] for i in np.linspace(0, len(numbers) - 1, _SAMPLES + 2).round().astype(int).tolist()}
    return compare_with_video(source, sorted(chosen), lambda n: np.asarray(_open_picture(pictures.path(n))))


def pack_pictures(source: Source, pictures: LooseFrames, target: Path, quality: int, scan: VideoScan | None) -> Outcome:
    """Write the archive of one video atomically. `scan` is that of its video file, if there is one.

    Raises:
        UserError: a picture is not readable or has another size than the first, or the disk is full.
    """
    numbers, part = pictures.numbers.tolist(), pictures.parts[0]
    first_path = pictures.path(numbers[0])
    first = _open_picture(first_path)
    notes = [note for one in pictures.parts for note in picture_notes(one)]
    record: dict[str, Any] = {
        "source": {
            "name": f"{part.folder.name}/{part.pattern}",
            "bytes": sum(pictures.path(n).stat().st_size for n in numbers),
            "width": first.width,
            "height": first.height,
            "frames": max(numbers[-1], scan.frame_count if scan else 0),
        },
        "settings": {"height": 0, "quality": quality},
        "ranges": [list(r) for r in merge_ranges((n, n) for n in numbers)],
        "notes": notes,
        "adopted": {
            "folder": str((source.path if source.clips else part.folder).resolve()),
            "pattern": part.pattern,
            "first_number": 1 - part.shift,
        },
    }
    if source.clips:
        record["adopted"]["clips"] = {
            one.folder.name: {"pattern": one.pattern, "shift": one.shift} for one in source.clips
        }
    encoded = 0

    def frames() -> Iterator[tuple[int, bytes]]:
        nonlocal encoded
        for number in numbers:
            path = pictures.path(number)
            jpeg, is_copy = to_frame(path, quality)
            encoded += not is_copy
            height, width, _, _ = simplejpeg.decode_jpeg_header(jpeg)
            if (width, height) != first.size:
                raise UserError(
                    f"{path} has {width}x{height} pixels and {first_path.name} has {first.width}x{first.height}: keep only the pictures of one video"
                )
            yield number, jpeg
        record["adopted"]["encoded"] = encoded

    write_archive(target, frames(), record)
    converted = f", {encoded} of them encoded" if encoded else ""
    compared = f", compared with {scan.path.name}" if scan else ""
    first_frame = f"{first_path.name} is frame {numbers[0]}"
    return Outcome(len(numbers), f"{target}: {len(numbers)} frames{converted}; {first_frame}{compared}", tuple(notes))


def picture_notes(pictures: FrameFiles) -> list[str]:
    """What is odd about the files of a folder: a sentence each."""
    numbers, notes = pictures.numbers, []
    if missing := int(numbers[-1] - numbers[0]) + 1 - len(numbers):
        gap = int(numbers[np.flatnonzero(np.diff(numbers) > 1)[0]]) + 1
        notes.append(
            f"{missing} numbers are missing between its files, the first is {pictures.pattern % (gap - pictures.shift)}"
        )
    images = [name for name in names_in(pictures.folder) if name.lower().endswith(IMAGE_SUFFIXES)]
    if more := len(images) - len(numbers):
        packed = {pictures.path(n).name for n in numbers.tolist()}
        other = next(name for name in images if name not in packed)
        notes.append(f"its folder has {more} more pictures, which are not packed, such as {other}")
    return notes


# --------------------------------------------------------------------------------------------------------- video files


def pack_file(path: Path, target: Path, config: AdoptConfig) -> Outcome:
    """Write all frames of a video file to an archive, atomically, with the record that an extraction writes.

    Raises:
        UserError: the file is faulty, or the disk is full.
    """
    scan = scan_video(path)
    ranges = [(1, scan.frame_count)]
    record = provenance(scan, ranges, config.settings, scan.warnings)
    record["source"]["sha256"] = sha256(path)
    record["adopted"] = {"file": str(path.resolve())}
    decoder = Decoder(path, scan.stream_index, threads=1)  # one thread: there is a worker per core
    try:
        frames = decoder.frames(request_frames(scan, ranges))
        write_archive(target, ((n, to_jpeg(frame, config.height, config.quality)) for n, frame in frames), record)
    finally:
        decoder.close()
    return Outcome(scan.frame_count, f"{target}: {scan.frame_count} frames of {path.name}", scan.warnings)


# ---------------------------------------------------------------------------------------------------------- one video


def packed_already(source: Source, target: Path, config: AdoptConfig) -> Outcome | None:
    """The outcome if an archive was packed from this source before, or None if there is no archive.

    Raises:
        UserError: the archive was made from something else, or with other flags.
    """
    if not target.exists():
        return None
    other = f"{target} exists and is used instead of {source.path}: delete it to pack that"
    try:
        reader = FrameReader(target)
        record = reader.provenance
        adopted = record["adopted"]
    except (UserError, KeyError, TypeError):
        raise UserError(other) from None
    outcome = Outcome(len(reader.numbers), f"{target}: already packed")
    path = source.path.resolve()
    if source.path.is_file():
        if adopted.get("file") != str(path):
            raise UserError(other)
        if record["source"]["bytes"] != path.stat().st_size or record["settings"] != config.settings:
            raise UserError(
                f"{target} was packed from another version of {source.path.name}, or with another --height or --quality: delete it to pack it again"
            )
        return outcome
    if adopted.get("folder") not in [str(path), *(str(path / name) for name in names_in(path))]:
        raise UserError(other)
    return outcome


def adopt_video(source: Source, target: Path, layout: DatasetLayout | None, config: AdoptConfig) -> Outcome:
    """Pack one video, unless that was done before.

    Raises:
        UserError: the archive exists and was made from something else, the source is faulty, or the disk is full.
    """
    if done := packed_already(source, target, config):
        return done
    if source.path.is_file():
        return pack_file(source.path, target, config)
    scan = None
    if layout is not None and layout.has_video(source.video):
        scan = scan_video(layout.video_file(source.video))
    parts = source.clips or [numbered_pictures(source.path, config, scan)]
    return pack_pictures(source, combine(parts), target, config.quality, scan)


# --------------------------------------------------------------------------------------------------------- many videos


def _adopt(source: Source, target: Path, layout: DatasetLayout | None, config: AdoptConfig) -> Outcome | str:
    """What a worker does: the outcome, or the error. Never raises, because an error in one video must not stop the others."""
    try:
        return adopt_video(source, target, layout, config)
    except UserError as error:
        return str(error)
    except Exception as error:
        if text := limit_error_text(error):
            return f"{source.path}: {text}"
        return f"{source.path}: unexpected error, please report it\n{traceback.format_exc()}"


def adopt_videos(
    sources: Sequence[Source], output: Path, layout: DatasetLayout | None, config: AdoptConfig
) -> dict[str, Outcome | str]:
    """The outcome or the error of each video, packed `config.processes` at a time, with a progress bar."""
    processes = min(config.processes, len(sources))
    check_workers(processes)
    context = multiprocessing.get_context("spawn")  # not fork: this process may have threads
    pool = ProcessPoolExecutor(processes, context, init_worker)
    bar = tqdm(total=len(sources), desc="packing", unit="video", disable=not sys.stderr.isatty())
    outcomes: dict[str, Outcome | str] = {}
    try:
        pending = {
            pool.submit(_adopt, one, archive_file(output, one.video), layout, config): one.video for one in sources
        }
        for future in as_completed(pending):
            outcomes[pending[future]] = future.result()
            bar.update()
        pool.shutdown()
    except BrokenProcessPool:
        raise UserError(WORKER_KILLED) from None
    except BaseException:  # Ctrl-C or a signal: an archive is complete or absent
        pool.shutdown(wait=False, cancel_futures=True)
        kill_workers()
        raise
    finally:
        bar.close()
    return {one.video: outcomes[one.video] for one in sources}


def places(config: AdoptConfig) -> tuple[DatasetLayout | None, Path, Path, Path]:
    """(data set if one is needed, folder to pack, folder of all archives, place of the videos in that folder).

    Raises:
        UserError: a folder is missing.
    """
    layout = None
    if config.source is None or config.output is None or config.dataset is not None or config.clip_end is not None:
        if config.dataset is not None and config.source is not None and config.source.is_dir():
            with reporting_write_errors(config.dataset):
                config.dataset.mkdir(parents=True, exist_ok=True)
        layout = dataset_layout(config.dataset)
    source = config.source or (layout.frames if layout else Path())
    output = config.output or (layout.frames if layout else Path())
    if not source.is_dir():
        raise UserError(f"{source} is not a folder: give the folder with the videos or their pictures with --source")
    root = layout.frames.resolve() if layout else output.resolve()
    if output.resolve().is_relative_to(root):
        return layout, source, root, output.resolve().relative_to(root)
    return layout, source, output, Path()


def main(argv: Sequence[str]) -> int:
    config = parse(AdoptConfig, argv, prog="python -m data_preparation.adopt", description=__doc__.splitlines()[0])
    layout, source, output, inside = places(config)
    ends = None
    if config.clip_end is not None:
        ends = ClipEnds(datasets.load(config.dataset_kind, config.annotation_files).actions, config.clip_end)
    found = find_sources(source, inside, chosen_videos(config.videos), config.pattern, ends)
    chosen = found[config.shard_index :: config.shard_count]
    if not chosen:
        print("This shard has no video: nothing to do.")
        return 0
    outcomes = adopt_videos(chosen, output, layout, config)
    done = {video: outcome for video, outcome in outcomes.items() if isinstance(outcome, Outcome)}
    for outcome in done.values() if len(chosen) <= MAX_LINES else ():
        print(outcome.text)
    for line in grouped_lines((video, f"warning: {w}") for video, outcome in done.items() for w in outcome.warnings):
        print(line)
    if done:
        frames = sum(outcome.frames for outcome in done.values())
        print(f"{len(done)} of {len(chosen)} videos are packed in {output / inside}, {frames} frames")
    if faults := [line for outcome in outcomes.values() if isinstance(outcome, str) for line in outcome.splitlines()]:
        raise UserError.of(faults)
    checked = ShardConfig(config.dataset, annotation_path=config.annotation_path, dataset_kind=config.dataset_kind)
    print(f"Check them: {command_text('verify', checked, '--sheets', 'sheets')}")
    return 0


if __name__ == "__main__":
    run(main)
