"""Count the frames of all clips in a folder once, and store the counts for the reader of labelled clips.

    python -m data_preparation.count_frames --source DIR/whole_videos --output DIR/annotations/frames.csv

Clips are video files (counted as ffmpeg numbers their frames), frame archives, and folders of numbered pictures. The name
of a clip is its path below the source folder, without suffix.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from data_preparation.actions import video_name, video_order
from data_preparation.archive import FrameReader
from data_preparation.common.command_line import flag, parse, run
from data_preparation.common.errors import UserError, os_error_text
from data_preparation.common.files import reporting_write_errors, write_atomic
from data_preparation.common.workers import WORKER_KILLED, check_workers, init_worker
from data_preparation.datasets.clips import COUNTS_HEADER
from data_preparation.frame_numbers import scan_video
from data_preparation.layout import ARCHIVE_SUFFIX, VIDEO_SUFFIXES
from data_preparation.similar_files import IMAGE_SUFFIXES, numberings, walk_once


@dataclass(frozen=True)
class CountConfig:
    """Count the frames of all clips in a folder, and store the counts in a CSV."""

    source: Path | None = flag(None, "Folder of the clips: videos, frame archives, or folders of pictures.")
    output: Path | None = flag(None, "CSV to write, such as DATASET/annotations/frames.csv.")
    workers: int = flag(0, "Worker processes; 0 means one per CPU core of the job.", minimum=0, maximum=1024)

    def __post_init__(self) -> None:
        if missing := [f"--{name}" for name in ("source", "output") if getattr(self, name) is None]:
            raise UserError(f"{', '.join(missing)} missing: give the folder of the clips and the CSV to write")


# ------------------------------------------------------------------------------------------------------------ counting


def find_clips(source: Path) -> list[Path]:
    """The clips below a folder: video files, archives, and folders that hold pictures. Names with a dot at the start are
    left out."""
    found: list[Path] = []
    for folder, _, names in walk_once(source):
        if folder != source and any(name.lower().endswith(IMAGE_SUFFIXES) for name in names):
            found.append(folder)
            continue
        found += [folder / name for name in names if name.lower().endswith((*VIDEO_SUFFIXES, ARCHIVE_SUFFIX))]
    return found


def count_clip(path: Path) -> tuple[int, str]:
    """(number of frames of a clip, its fault or "")."""
    try:
        if path.is_dir():
            return _count_pictures(path)
        if path.suffix.lower() == ARCHIVE_SUFFIX:
            reader = FrameReader(path)
            frames = [int(number) for number in reader.numbers]
            if frames != list(range(1, len(frames) + 1)):
                return 0, f"{path} does not hold all frames from 1 to the last: it is not the archive of a clip"
            return len(frames), "" if frames else f"{path} has no frames: remove it, or pack the clip again"
        count = scan_video(path).frame_count
        return count, "" if count else f"{path} has no frames: remove it, or download it again"
    except UserError as error:
        return 0, str(error)
    except OSError as error:
        return 0, os_error_text(error)


def _count_pictures(folder: Path) -> tuple[int, str]:
    found = numberings(os.listdir(folder))
    if len(found) != 1:
        kinds = " and ".join(numbering.text for numbering in found[:3]) or "no numbered pictures"
        return 0, f"{folder} has {kinds}: keep the numbered pictures of one clip there"
    numbers = found[0].numbers
    missing = numbers[-1] - numbers[0] + 1 - len(numbers)
    if missing:
        return (
            0,
            f"{folder} lacks {missing} pictures between {found[0].name(numbers[0])} and {found[0].name(numbers[-1])}: write the pictures of this clip again",
        )
    if numbers[0] not in (0, 1):
        return 0, f"{folder} begins with {found[0].name(numbers[0])}: number the pictures of a clip from 0 or 1"
    return len(numbers), ""


def count_all(source: Path, workers: int) -> dict[str, int]:
    """The number of frames of each clip below a folder, by name.

    Raises:
        UserError: naming every clip that cannot be counted.
    """
    clips = find_clips(source)
    if not clips:
        raise UserError(
            f"{source} has no clips: give the folder with videos ({', '.join(VIDEO_SUFFIXES)}), archives or folders of pictures"
        )
    names: list[str] = []
    bad: dict[str, list[str]] = {}  # clips by what is wrong with their names
    for clip in clips:
        relative = clip.relative_to(source)
        try:
            names.append(video_name((relative if clip.is_dir() else relative.with_suffix("")).as_posix()))
        except ValueError as error:
            bad.setdefault(str(error), []).append(str(relative))
    faults = [
        f"{source}: {len(paths)} clips ({', '.join(paths[:3])}) have names that cannot be used: {fix}"
        for fix, paths in bad.items()
    ]
    faults += [f"{source}: clip {name} exists {n} times: keep one" for name, n in Counter(names).items() if n > 1]
    if faults:
        raise UserError.of(faults)
    check_workers(workers)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(clips)), mp_context=context, initializer=init_worker) as pool:
        try:
            results = pool.map(count_clip, clips, chunksize=8)
            bar = tqdm(results, total=len(clips), unit="clip", disable=not sys.stderr.isatty())
            counts = list(bar)
        except BrokenProcessPool:
            raise UserError(WORKER_KILLED) from None
    if faults := [fault for _, fault in counts if fault]:
        raise UserError.of(faults)
    return dict(sorted(zip(names, (count for count, _ in counts), strict=True), key=lambda item: video_order(item[0])))


def main(argv: Sequence[str]) -> None:
    config = parse(
        CountConfig, argv, prog="python -m data_preparation.count_frames", description=__doc__.splitlines()[0]
    )
    # CountConfig checks that both are given
    assert config.source is not None
    assert config.output is not None
    if not config.source.is_dir():
        raise UserError(f"--source {config.source} is not a folder: give the folder of the clips")
    counts = count_all(config.source, config.workers or len(os.sched_getaffinity(0)))
    lines = [",".join(COUNTS_HEADER), *(f"{name},{count}" for name, count in counts.items())]
    with reporting_write_errors(config.output):
        write_atomic(config.output, ("\n".join(lines) + "\n").encode())
    print(f"{config.output}: {len(counts)} clips, {sum(counts.values())} frames")


if __name__ == "__main__":
    run(main)
