"""Clips from video files, for the Scorer: frames numbered, converted and compressed as data_preparation.extract does."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from data_preparation.actions import Action
from data_preparation.archive import StoredFrames, decode_image
from data_preparation.common.errors import UserError
from data_preparation.decoding import Decoder, request_numbers, to_jpeg
from data_preparation.file_types import file_type_of, read_head
from data_preparation.frame_numbers import VideoScan
from data_preparation.layout import VIDEO_SUFFIXES
from training.scorer import Clip, Scorer

_SECONDS = re.compile(r"(\d+(?:\.\d+)?)s")
_CLOCK = re.compile(r"(?:(\d+):)?(\d+):(\d+(?:\.\d+)?)")


# ------------------------------------------------------------------------------------------------------------- places


@dataclass(frozen=True)
class Place:
    """A place in a video: the number of a frame (from 1), or a time in seconds."""

    text: str
    frame: int | None = None
    seconds: Fraction | None = None

    @classmethod
    def parse(cls, text: str) -> Place:
        """'120' is a frame; '4.5s', '1:23.5' and '1:02:03' are times.

        Raises:
            ValueError: it is neither.
        """
        if text.isascii() and text.isdigit() and 0 < int(text) < 10**9:
            return cls(text, frame=int(text))
        if found := _SECONDS.fullmatch(text):
            return cls(text, seconds=Fraction(found[1]))
        if found := _CLOCK.fullmatch(text):
            return cls(text, seconds=Fraction(int(found[1] or 0) * 3600 + int(found[2]) * 60) + Fraction(found[3]))
        raise ValueError(f"'{text}' is neither a frame number from 1, such as 120, nor a time, such as 4.5s or 1:23.5")

    def first_frame(self, rate: Fraction) -> int:
        """The frame that is shown at this place."""
        return self.frame if self.seconds is None else math.floor(self.seconds * rate) + 1  # type: ignore[return-value]

    def last_frame(self, rate: Fraction) -> int:
        """The last frame that begins before this time, or the frame itself."""
        return self.frame if self.seconds is None else max(math.ceil(self.seconds * rate), 1)  # type: ignore[return-value]


def frame_range(scan: VideoScan, start: Place | None, end: Place | None) -> tuple[int, int]:
    """The first and the last frame of an action in a video. Without start or end it begins or ends with the video.

    Raises:
        UserError: the range is empty, or not within the video.
    """
    first = 1 if start is None else start.first_frame(scan.rate)
    last = scan.frame_count if end is None else end.last_frame(scan.rate)
    length = f"{scan.frame_count} frames, {float(scan.frame_count / scan.rate):.2f} s"
    for name, place, frame in (("--start", start, first), ("--end", end, last)):
        if place is not None and frame > scan.frame_count:
            raise UserError(
                f"{scan.path} has {length}, and {name} {place.text} is frame {frame}: give one within the video"
            )
    if first > last:
        raise UserError(
            f"{scan.path}: the action would begin at frame {first} and end at frame {last}: give --start before --end"
        )
    return first, last


# -------------------------------------------------------------------------------------------------------------- files


def video_files(paths: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """(the given files and the videos in the given folders, the other files in these folders), each sorted within its folder.

    Raises:
        UserError: naming all paths that do not exist, and folders without videos.
    """
    found: list[Path] = []
    other: list[Path] = []
    faults = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            if not path.exists():
                faults.append(f"--video {path} does not exist (relative to {Path.cwd()}): give a file or folder")
            continue
        files = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
        videos = [file for file in files if is_video(file)]
        if not videos:
            faults.append(f"--video {path} holds no video: give a folder of videos, or the files")
        found += videos
        other += [file for file in files if file not in set(videos)]
    if faults:
        raise UserError.of(faults)
    return list(dict.fromkeys(found)), other


def is_video(file: Path) -> bool:
    """Whether a file is a video by its suffix or its first bytes."""
    if file.suffix.lower() in VIDEO_SUFFIXES:
        return True
    try:
        head = file_type_of(read_head(file))
    except OSError:
        return False
    return head is not None and head.kind == "video"


# ------------------------------------------------------------------------------------------------------------- frames


def images_of(
    scan: VideoScan, numbers: np.ndarray, stored: StoredFrames, least: tuple[int, int] | None = None
) -> Iterator[np.ndarray]:
    """Yield the frames of a video with these ascending numbers (T,), each (H, W, 3) uint8 with the pixels that an archive would
    give; `least` is Scorer.least.

    Raises:
        UserError: a frame cannot be decoded.
    """
    decoder = Decoder(scan.path, scan.stream_index)
    try:
        for _, frame in decoder.frames(request_numbers(scan, numbers)):
            yield decode_image(to_jpeg(frame, stored.height, stored.quality), least)
    finally:
        decoder.close()


def read_frames(
    scan: VideoScan, numbers: np.ndarray, stored: StoredFrames, least: tuple[int, int] | None = None
) -> np.ndarray:
    """The frames of `images_of` together, (T, H, W, 3) uint8.

    Raises:
        UserError: a frame cannot be decoded, or the frames differ in size.
    """
    images = list(images_of(scan, numbers, stored, least))
    sizes = {image.shape for image in images}
    if len(sizes) > 1:
        listed = ", ".join(f"{width}x{height}" for height, width, _ in sorted(sizes))
        raise UserError(f"{scan.path} changes the size of its frames ({listed}): cut it into files of one size")
    return np.stack(images)


def read_clip(
    scorer: Scorer,
    scan: VideoScan,
    frames: tuple[int, int],
    *,
    clips_each: int = 1,
    whole: bool = False,
    name: str = "",
    **known: Any,
) -> Clip:
    """The clip of an action from the first to the last of `frames`; `known` as in Scorer.action. It holds the frames that the
    network reads, with `whole` all of the action.

    Raises:
        UserError: a frame cannot be decoded, or the action lacks a value that the method needs.
    """
    action = scorer.action(scan.path.stem, 1, *frames, **known)
    numbers = scorer.frames_of(action, scan.frame_count, clips_each)
    if whole:
        numbers = np.union1d(numbers, np.arange(frames[0], frames[1] + 1))
    images = read_frames(scan, numbers, scorer.stored, scorer.least)
    return Clip(images, action, name or str(scan.path), float(scan.rate), numbers)


def warnings_of(scorer: Scorer, scan: VideoScan, action: Action) -> list[str]:
    """What is to be known about an action of a video, a sentence each."""
    found = list(scan.warnings)
    if action.frame_count < (count := scorer.config.frame_num):
        found.append(f"the action has {action.frame_count} frames and the network reads {count}, so some are repeated")
    method = scorer.config.method
    return found + [
        f"its {name} is not used: --method {method} of this run does not look at it" for name in scorer.unused(action)
    ]


def action_ranges(
    scorer: Scorer, scan: VideoScan, start: Place | None, end: Place | None, search: str = "auto"
) -> Sequence[tuple[int, int]]:
    """The first and last frame of each action of a video.

    Without start and end the video is one action as a whole, or is searched for actions: always with `search` "always", never with
    "never", with "auto" if it is long for one action and the run has distances.

    Raises:
        UserError: as `frame_range`, or a search finds nothing.
    """
    from training.search import find_actions, is_long  # here, because it reads frames with this module

    whole = start is None and end is None
    if whole and search != "never" and (search == "always" or is_long(scorer, scan)):
        found = find_actions(scorer, scan)
        if not found:
            assert scorer.novelty is not None
            raise UserError(
                f"{scan.path}: no {scorer.novelty.noun} like those of the training was found in {scan.frame_count} frames: give --start and --end, or --search never to score the video as a whole"
            )
        return [(each.start, each.end) for each in found]
    return [frame_range(scan, start, end)]
