"""Decode numbered frames of a video to RGB images and JPEGs. Seeks, so that few other frames are decoded."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import simplejpeg
from av.video.reformatter import Colorspace

from data_preparation.common.errors import UserError, first_line
from data_preparation.frame_numbers import VideoScan, open_video

FrameRange = tuple[int, int]  # first and last frame number, inclusive

# Matrices of H.273 that libswscale has coefficients for: BT.709, FCC, SMPTE 240M, BT.2020 (both kinds). Like ffmpeg,
# use BT.601 for any other value: BT.601 itself, unspecified, and those that libswscale does not have.
_STATED_MATRICES = {1, 4, 7, 9, 10}
_SEEK_DISTANCE = 50  # frames; decoding a shorter gap costs less than a seek
_SEEK_MARGIN = 10.0  # seconds to go back when a seek lands too late


@dataclass(frozen=True)
class FrameRequest:
    """Frames to decode from one video.

    `numbers` (n,) are ascending frame numbers. `positions` (n,) identify the source frame of each: by its timestamp or,
    with `sequential`, by its index in a decode from the start.
    """

    path: Path
    stream_index: int
    sequential: bool
    numbers: np.ndarray
    positions: np.ndarray


def request_frames(scan: VideoScan, ranges: Sequence[FrameRange]) -> FrameRequest:
    """Build the request for all frames of the ascending `ranges`."""
    return request_numbers(scan, np.concatenate([np.arange(first, last + 1) for first, last in ranges]))


def request_numbers(scan: VideoScan, numbers: np.ndarray) -> FrameRequest:
    """Build the request for the frames with these ascending numbers (n,)."""
    sources = scan.sources[numbers - 1]
    positions = sources if scan.sequential else scan.timestamps[sources]
    return FrameRequest(scan.path, scan.stream_index, scan.sequential, numbers, positions)


class Decoder:
    """An open video that answers requests. Keep it open between requests: opening a long video takes a while.

    Raises (on opening):
        UserError: as `open_video`.
    """

    def __init__(self, path: Path, stream_index: int, threads: int = 0) -> None:
        self.path, self.stream_index = path, stream_index
        self._container = open_video(path)
        stream = self._container.streams[stream_index]
        assert isinstance(stream, av.VideoStream)
        self._stream = stream
        self._stream.thread_type = "AUTO"
        self._stream.codec_context.thread_count = threads

    def close(self) -> None:
        self._container.close()

    def frames(self, request: FrameRequest) -> Iterator[tuple[int, av.VideoFrame]]:
        """Yield (number, frame) for every requested frame, in order. A frame that ffmpeg repeats is yielded again.

        Raises:
            UserError: a frame that the container lists cannot be decoded.
        """
        if request.sequential:
            return self._select(enumerate(self._container.decode(self._stream)), request.numbers, request.positions)
        gaps = np.flatnonzero(np.diff(request.numbers) > _SEEK_DISTANCE) + 1
        parts = zip(np.split(request.numbers, gaps), np.split(request.positions, gaps), strict=True)
        return itertools.chain.from_iterable(self._select(self._seek(s[0]), n, s) for n, s in parts)

    def _seek(self, timestamp: int) -> Iterator[tuple[int, av.VideoFrame]]:
        """Yield (timestamp, frame) starting at or before `timestamp`. A generator, so that errors come with frames."""
        assert self._stream.time_base is not None
        margin = int(_SEEK_MARGIN / self._stream.time_base)
        # the index of some containers leads past the frame: then start earlier, at last from the beginning
        for start in (int(timestamp), int(timestamp) - margin, None):
            self._container.seek(start or 0, stream=self._stream, backward=True)
            frames = self._decode_from(timestamp)
            first = next(frames, None)
            if first is not None and (start is None or first[0] <= timestamp):
                yield first
                yield from frames
                return

    def _decode_from(self, timestamp: int) -> Iterator[tuple[int, av.VideoFrame]]:
        """Yield (timestamp, frame) from the current place on. Before `timestamp`, decode only reference frames."""
        codec = self._stream.codec_context
        for packet in self._container.demux(self._stream):
            codec.skip_frame = "NONREF" if packet.pts is not None and packet.pts < timestamp else "DEFAULT"
            for frame in packet.decode():
                if isinstance(frame, av.VideoFrame) and frame.pts is not None:
                    yield frame.pts, frame

    def _select(
        self, frames: Iterator[tuple[int, av.VideoFrame]], numbers: np.ndarray, positions: np.ndarray
    ) -> Iterator[tuple[int, av.VideoFrame]]:
        """Pick the frames at `positions` (n,) from (position, frame) pairs; yield them with their `numbers` (n,)."""
        current, frame = -1, None
        for number, position in zip(numbers.tolist(), positions.tolist(), strict=True):
            while frame is None or current < position:
                try:
                    current, frame = next(frames)
                except (StopIteration, av.FFmpegError, OSError) as error:
                    cause = "the video ends before it" if isinstance(error, StopIteration) else first_line(error)
                    raise self._damaged(number, cause) from None
            if current != position:
                raise self._damaged(number, "the decoder skips it")
            if frame.is_corrupt:
                raise self._damaged(number, "the decoder marks it as corrupt")
            yield number, frame

    def _damaged(self, number: int, cause: str) -> UserError:
        return UserError(
            f"{self.path}: frame {number} cannot be decoded ({cause}); the file is damaged, download it again"
        )


def decode_ranges(scan: VideoScan, ranges: Sequence[FrameRange]) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yield (number, frame) for every frame of the ascending `ranges`; opens and closes the video.

    Raises:
        UserError: a frame that the container lists cannot be decoded.
    """
    decoder = Decoder(scan.path, scan.stream_index)
    try:
        yield from decoder.frames(request_frames(scan, ranges))
    finally:
        decoder.close()


# --------------------------------------------------------------------------------------------------------------- images


def stored_size(width: int, height: int, wanted_height: int) -> tuple[int, int]:
    """(width, height) of the stored frames of a video that displays as `width` x `height`; height 0 keeps the size."""
    return (width, height) if wanted_height == 0 else (max(round(width * wanted_height / height), 1), wanted_height)


def to_image(frame: av.VideoFrame, wanted_height: int) -> np.ndarray:
    """Convert a frame to (H, W, 3) uint8 RGB, upright and scaled, converted with the colour matrix that the stream states.

    One bicubic libswscale conversion, as in ffmpeg, so the pixels are those of `ffmpeg -vf scale -pix_fmt rgb24`.
    """
    rotation = frame.rotation % 360
    sideways = rotation in (90, 270)
    displayed = (frame.height, frame.width) if sideways else (frame.width, frame.height)
    width, height = stored_size(*displayed, wanted_height)
    if sideways:
        width, height = height, width
    matrix = frame.colorspace if frame.colorspace in _STATED_MATRICES else Colorspace.DEFAULT
    image = frame.reformat(
        width, height, "rgb24", matrix, Colorspace.DEFAULT, "BICUBIC", src_color_range=frame.color_range
    ).to_ndarray()
    return np.rot90(image, rotation // 90) if rotation else image


def to_jpeg(frame: av.VideoFrame, height: int, quality: int) -> bytes:
    """Encode a frame as it is stored: the JPEG of `to_image`, with chroma at half resolution as in the video."""
    image = np.ascontiguousarray(to_image(frame, height))
    return simplejpeg.encode_jpeg(image, quality=quality, colorspace="RGB", colorsubsampling="420")
