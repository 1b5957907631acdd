"""Extract the frames that annotated dives need, and no others, into one archive a video.

    python -m data_preparation.extract --dataset DIR [--videos 01 02] [--height 256]

Frames are numbered as `ffmpeg -i NN.mp4 %06d.jpg` numbers them. Finished videos are skipped; a run that is killed leaves
whole archives or none.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import simplejpeg
from av.video.reformatter import Colorspace
from tqdm import tqdm

from data_preparation.annotations import Dive, load_annotations
from data_preparation.archive import FrameReader, write_archive
from data_preparation.cli import UserError, first_line, flag, parse, run
from data_preparation.frame_numbers import VideoScan, open_video, scan
from data_preparation.layout import DatasetLayout, archive_file, default_dataset, video_name

Range = tuple[int, int]  # first and last frame, inclusive

_MATRICES = {
    int(Colorspace.ITU709),
    int(Colorspace.FCC),
    int(Colorspace.SMPTE240M),
}  # others: BT.601, as ffmpeg assumes
_NEAR = 50  # frames: decoding on costs less than a seek


@dataclass(frozen=True)
class ExtractConfig:
    """Extract the frames of annotated dives into one archive a video."""

    dataset: Path | None = flag(None, "Data set folder; none takes DEEPSPORTS_DATASET of job_files/environment.sh.")
    videos: tuple[str, ...] = flag(
        ("all",), "Videos to extract: all that have dives, or numbers.", allowed="all, or video numbers"
    )
    annotation_path: Path | None = flag(None, "Annotation pickle; none takes the data set's own.")
    height: int = flag(
        256, "Height of the stored frames in pixels, width in proportion; 0 keeps the video's.", minimum=0
    )
    quality: int = flag(95, "JPEG quality.", minimum=1, maximum=100)
    window: int = flag(
        106,
        "Also keep so many frames before each dive's end (end-aligned windows of 103 frames, moved by 3).",
        minimum=0,
    )
    after: int = flag(3, "Also keep so many frames after each dive's end, where the video has them.", minimum=0)
    again: bool = flag(False, "Extract also what is extracted already (a damaged archive).")
    workers: int = flag(1, "Videos extracted at the same time.", minimum=1)
    shard_index: int = flag(0, "Which share of the videos this call does, from 0 (a job array's task).", minimum=0)
    shard_count: int = flag(1, "Number of shares.", minimum=1)

    def __post_init__(self) -> None:
        if self.shard_index >= self.shard_count:
            raise UserError(
                f"--shard_index {self.shard_index} is not below --shard_count {self.shard_count}: shares count from 0"
            )
        if [v.lower() for v in self.videos] != ["all"] and not all(v.isdigit() for v in self.videos):
            raise UserError(f"--videos {' '.join(self.videos)}: give 'all' or video numbers such as 01 02")


# --------------------------------------------------------------------------------------------------------- what to keep


def needed_ranges(dives: Iterable[Dive], window: int, after: int, last_frame: int) -> list[Range]:
    """Merged, ascending frame ranges: each dive from its start (or `window` frames before its end) to `after` frames
    after its end, inside 1..last_frame."""
    wanted = sorted(
        (max(min(d.start_frame, d.end_frame - window), 1), min(d.end_frame + after, max(last_frame, d.end_frame)))
        for d in dives
    )
    merged: list[Range] = []
    for first, last in wanted:
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    return merged


def check_reach(found: VideoScan, dives: Sequence[Dive]) -> None:
    """Refuse a video that ends before its last annotated dive.

    Raises:
        UserError: naming the dives that would be lost.
    """
    lost = [d.name for d in dives if d.end_frame > found.frame_count]
    if lost:
        listed = ", ".join(lost[:5]) + (", ..." if len(lost) > 5 else "")
        raise UserError(
            f"{found.path} has {found.frame_count} frames and dives end as late as frame {max(d.end_frame for d in dives)}: {len(lost)} dives would be lost ({listed}); it is cut short or another version, download it again"
        )


# ------------------------------------------------------------------------------------------------------------- decoding


def decode_ranges(found: VideoScan, ranges: Sequence[Range]) -> Iterator[tuple[int, av.VideoFrame]]:
    """(number, frame) of every frame in the ranges, in order; frames that ffmpeg repeats come again.

    Raises:
        UserError: a frame that the container announces does not decode.
    """
    numbers = np.concatenate([np.arange(first, last + 1) for first, last in ranges])
    sources = found.sources[numbers - 1]
    with open_video(found.path) as container:
        stream = container.streams[found.stream_index]
        stream.thread_type = "AUTO"
        frames = _source_frames(container, stream, found, np.unique(sources))
        current: tuple[int, av.VideoFrame] | None = None
        for number, source in zip(numbers.tolist(), sources.tolist(), strict=True):
            while current is None or current[0] < source:
                try:
                    current = next(frames)
                except (StopIteration, av.FFmpegError, OSError) as error:
                    cause = "the video ends before it" if isinstance(error, StopIteration) else first_line(error)
                    raise UserError(
                        f"{found.path}: frame {number} cannot be decoded ({cause}); the file is damaged, download it again"
                    ) from None
            if current[0] != source:
                raise UserError(
                    f"{found.path}: frame {number} cannot be decoded (the decoder skips it); the file is damaged, download it again"
                )
            yield number, current[1]


def _source_frames(
    container: av.container.InputContainer, stream: av.VideoStream, found: VideoScan, wanted: np.ndarray
) -> Iterator[tuple[int, av.VideoFrame]]:
    """(source index, frame) ascending, at least all `wanted` ones (sorted); seeks over what is not wanted."""
    if found.sequential:
        yield from enumerate(container.decode(stream))
        return
    index_of = {pts: index for index, pts in enumerate(found.timestamps.tolist())}
    starts = [wanted[0], *wanted[1:][np.diff(wanted) > _NEAR]]
    ends = [*wanted[:-1][np.diff(wanted) > _NEAR], wanted[-1]]
    for first, last in zip(starts, ends, strict=True):
        container.seek(int(found.timestamps[first]), stream=stream, backward=True)
        frames = container.decode(stream)
        late = True
        for frame in frames:
            index = index_of.get(frame.pts)
            if index is None:
                continue
            if late and index > first:  # the container's index sent us too far: enter from the start
                container.seek(0, stream=stream, backward=True, any_frame=False)
                frames = container.decode(stream)
                yield from ((i, f) for f in frames if (i := index_of.get(f.pts)) is not None and first <= i <= last)
                break
            late = False
            if index >= first:
                yield index, frame
            if index >= last:
                break


def stored_size(width: int, height: int, wanted_height: int) -> tuple[int, int]:
    """(width, height) of stored frames for a picture of `width` x `height` as it is shown."""
    return (width, height) if wanted_height == 0 else (max(round(width * wanted_height / height), 1), wanted_height)


def to_image(frame: av.VideoFrame, wanted_height: int) -> np.ndarray:
    """(H, W, 3) uint8 RGB, upright, scaled in the colour conversion (bicubic, as ffmpeg scales)."""
    turned = frame.rotation % 360
    sideways = turned in (90, 270)
    shown = (frame.height, frame.width) if sideways else (frame.width, frame.height)
    width, height = stored_size(*shown, wanted_height)
    if sideways:
        width, height = height, width
    matrix = Colorspace(frame.colorspace) if frame.colorspace in _MATRICES else Colorspace.DEFAULT
    image = frame.reformat(
        width, height, "rgb24", matrix, Colorspace.DEFAULT, "BICUBIC", src_color_range=frame.color_range
    ).to_ndarray()
    return np.rot90(image, turned // 90) if turned else image


def to_jpeg(frame: av.VideoFrame, height: int, quality: int) -> bytes:
    image = np.ascontiguousarray(to_image(frame, height))
    return simplejpeg.encode_jpeg(image, quality=quality, colorspace="RGB", colorsubsampling="420")


# ------------------------------------------------------------------------------------------------------- one whole video


def settings_of(config: ExtractConfig) -> dict[str, int]:
    """What decides an archive's content besides the video and the dives."""
    return {"height": config.height, "quality": config.quality, "window": config.window, "after": config.after}


def is_done(path: Path, source: Path, dives: Sequence[Dive], settings: dict[str, int]) -> bool:
    """Whether an archive holds these dives of this file with these settings already."""
    if not path.exists():
        return False
    try:
        record = FrameReader(path).provenance
    except UserError:
        return False  # damaged: extracted anew
    same_source = record["source"]["name"] == source.name and record["source"]["bytes"] == source.stat().st_size
    return same_source and record["settings"] == settings and record["dives"] == dive_ranges(dives)


def dive_ranges(dives: Sequence[Dive]) -> list[list[int]]:
    return sorted([d.number, d.start_frame, d.end_frame] for d in dives)


def extract_video(
    layout: DatasetLayout, video: int, dives: Sequence[Dive], config: ExtractConfig, on_frame: Callable[[int], None]
) -> str:
    """Make the archive of one video, or find it made; returns what happened, for the report.

    `on_frame(n)` is called as frames are stored. Raises UserError, and then leaves what was there before.
    """
    source, path, settings = layout.video_file(video), archive_file(layout.frames, video), settings_of(config)
    if not config.again and is_done(path, source, dives, settings):
        return "done before"
    found = scan(source)
    check_reach(found, dives)
    ranges = needed_ranges(dives, config.window, config.after, found.frame_count)
    count = sum(last - first + 1 for first, last in ranges)

    def frames() -> Iterator[tuple[int, bytes]]:
        for number, frame in decode_ranges(found, ranges):
            yield number, to_jpeg(frame, config.height, config.quality)
            on_frame(1)

    write_archive(path, frames(), provenance(found, dives, ranges, settings))
    return f"{count} frames of {found.frame_count}, {path.stat().st_size / 1e6:.1f} MB"


def provenance(
    found: VideoScan, dives: Sequence[Dive], ranges: Sequence[Range], settings: dict[str, int]
) -> dict[str, Any]:
    """Where an archive's frames come from and how they were made."""
    digest = hashlib.sha256()
    with open(found.path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return {
        "source": {
            "name": found.path.name,
            "bytes": found.path.stat().st_size,
            "sha256": digest.hexdigest(),
            "codec": found.codec,
            "width": found.width,
            "height": found.height,
            "frames_per_second": str(found.rate),
            "frames": found.frame_count,
            "numbered_by": "whole decode" if found.sequential else "packet timestamps",
        },
        "settings": settings,
        "dives": dive_ranges(dives),
        "ranges": [list(r) for r in ranges],
        "tools": {
            "av": av.__version__,
            "simplejpeg": simplejpeg.__version__,
            **{k: ".".join(map(str, v)) for k, v in av.library_versions.items()},
        },
    }


# ------------------------------------------------------------------------------------------------------------ many videos


_frames_stored: Any = None  # a counter shared with the worker processes


def _share_counter(counter: Any) -> None:
    global _frames_stored
    _frames_stored = counter


def _count(frames: int) -> None:
    with _frames_stored.get_lock():
        _frames_stored.value += frames


def _work(layout: DatasetLayout, video: int, dives: Sequence[Dive], config: ExtractConfig) -> tuple[bool, str]:
    """(whether it went well, what happened), never an exception: one video's fault must not stop the others."""
    try:
        return True, extract_video(layout, video, dives, config, _count)
    except UserError as error:
        return False, str(error)
    except Exception:
        return False, f"video {video_name(video)}: unexpected fault, please report it\n{traceback.format_exc()}"


def _result(video: int, future: Future) -> tuple[bool, str]:
    if error := future.exception():
        return False, f"video {video_name(video)}: its process was killed ({error}); out of memory? Use fewer --workers"
    return future.result()


def extract_videos(
    layout: DatasetLayout, work: dict[int, list[Dive]], config: ExtractConfig
) -> dict[int, tuple[bool, str]]:
    """Extract several videos, `config.workers` at a time, with a progress bar in frames."""
    context = multiprocessing.get_context("fork")
    counter = context.Value("q", 0)
    expected = sum(
        last - first + 1
        for dives in work.values()
        for first, last in needed_ranges(dives, config.window, config.after, 10**9)
    )
    results: dict[int, tuple[bool, str]] = {}
    pool = ProcessPoolExecutor(min(config.workers, len(work)), context, _share_counter, (counter,))
    bar = tqdm(total=expected, unit="frame", desc="extracting", disable=not sys.stderr.isatty())
    with pool, bar:
        waiting: dict[Future, int] = {pool.submit(_work, layout, v, dives, config): v for v, dives in work.items()}
        try:
            while waiting:
                for future in wait(waiting, timeout=0.5, return_when="FIRST_COMPLETED").done:
                    video = waiting.pop(future)
                    results[video] = _result(video, future)
                    bar.write(f"video {video_name(video)}: {results[video][1]}", file=sys.stdout)
                bar.update(counter.value - bar.n)
        except BaseException:  # Ctrl-C: the videos under way leave nothing, the others are not begun
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return dict(sorted(results.items()))


def dives_by_video(config: ExtractConfig, layout: DatasetLayout) -> dict[int, list[Dive]]:
    """The dives of the videos that this call is to extract.

    Raises:
        UserError: unreadable annotations, or videos that have no dive.
    """
    by_video: dict[int, list[Dive]] = {}
    for dive in load_annotations(config.annotation_path or layout.annotation_file).values():
        by_video.setdefault(dive.video, []).append(dive)
    if [v.lower() for v in config.videos] != ["all"]:
        asked = sorted({int(v) for v in config.videos})
        if unknown := [video_name(v) for v in asked if v not in by_video]:
            raise UserError(
                f"--videos {' '.join(unknown)}: no dive of these videos is annotated; the annotated ones are {' '.join(map(video_name, sorted(by_video)))}"
            )
        by_video = {v: by_video[v] for v in asked}
    share = sorted(by_video)[config.shard_index :: config.shard_count]
    return {video: by_video[video] for video in share}


def dataset_layout(dataset: Path | None) -> DatasetLayout:
    """The layout of the folder that a flag or the environment names.

    Raises:
        UserError: neither does, or it is no folder.
    """
    folder = dataset or default_dataset()
    if folder is None:
        raise UserError("--dataset is missing: name the data set folder, or source job_files/environment.sh")
    if not folder.is_dir():
        raise UserError(f"--dataset {folder} is no folder: put whole_videos/ and annotations/ there first")
    return DatasetLayout(folder)


def main(argv: Sequence[str]) -> int:
    config = parse(ExtractConfig, argv, prog="python -m data_preparation.extract", description=__doc__.splitlines()[0])
    layout = dataset_layout(config.dataset)
    work = dives_by_video(config, layout)
    if not work:
        print("No video falls to this share: nothing to do.")
        return 0
    results = extract_videos(layout, work, config)
    failed = {video: what for video, (well, what) in results.items() if not well}
    print(f"{len(results) - len(failed)} of {len(results)} videos are extracted in {layout.frames}")
    if failed:
        raise UserError.of(
            [
                *failed.values(),
                f"again, when mended: python -m data_preparation.extract --dataset {layout.root} --videos {' '.join(map(video_name, failed))}",
            ]
        )
    return 0


if __name__ == "__main__":
    run(main)
