"""Numbered frames of a video -> RGB images and JPEGs, decoding little more than what is asked for."""

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

Range = tuple[int, int]  # first and last frame, inclusive

_MATRICES = {
    int(Colorspace.ITU709),
    int(Colorspace.FCC),
    int(Colorspace.SMPTE240M),
}  # others: BT.601, as ffmpeg assumes
_NEAR = 50  # frames: decoding on costs less than a seek
_STEP_BACK = 10.0  # seconds


@dataclass(frozen=True)
class FrameRequest:
    """Frames to decode: `numbers` (n,) ascending, and for each the `stamps` (n,) of the source frame that it shows:
    its timestamp, or with `sequential` its place in a whole decode."""

    path: Path
    stream_index: int
    sequential: bool
    numbers: np.ndarray
    stamps: np.ndarray


def request_frames(found: VideoScan, ranges: Sequence[Range]) -> FrameRequest:
    """The request for all frames of some ascending ranges."""
    numbers = np.concatenate([np.arange(first, last + 1) for first, last in ranges])
    sources = found.sources[numbers - 1]
    stamps = sources if found.sequential else found.timestamps[sources]
    return FrameRequest(found.path, found.stream_index, found.sequential, numbers, stamps)


class Decoder:
    """An opened video that answers requests; kept open between them, because opening a long video takes a while.

    Raises (on opening):
        UserError: as `open_video`.
    """

    def __init__(self, path: Path, stream_index: int, threads: int = 0) -> None:
        self.path, self.stream_index = path, stream_index
        self._container = open_video(path)
        self._stream = self._container.streams[stream_index]
        self._stream.thread_type = "AUTO"
        self._stream.codec_context.thread_count = threads

    def close(self) -> None:
        self._container.close()

    def frames(self, wanted: FrameRequest) -> Iterator[tuple[int, av.VideoFrame]]:
        """(number, frame) of every requested frame, in order; frames that ffmpeg repeats come again.

        Raises:
            UserError: a frame that the container announces does not decode.
        """
        if wanted.sequential:
            return self._pick(enumerate(self._container.decode(self._stream)), wanted.numbers, wanted.stamps)
        apart = np.flatnonzero(np.diff(wanted.numbers) > _NEAR) + 1
        parts = zip(np.split(wanted.numbers, apart), np.split(wanted.stamps, apart), strict=True)
        return itertools.chain.from_iterable(self._pick(self._from(s[0]), n, s) for n, s in parts)

    def _from(self, stamp: int) -> Iterator[tuple[int, av.VideoFrame]]:
        """(timestamp, frame) from a frame at or before `stamp` on; a generator, so that its faults come with its frames."""
        step = int(_STEP_BACK / self._stream.time_base)
        for start in (int(stamp), int(stamp) - step, None):  # some containers' indices send us too far
            self._container.seek(start or 0, stream=self._stream, backward=True)
            frames = self._decoded(stamp)
            first = next(frames, None)
            if first is not None and (start is None or first[0] <= stamp):
                yield first
                yield from frames
                return

    def _decoded(self, stamp: int) -> Iterator[tuple[int, av.VideoFrame]]:
        """(timestamp, frame) of what comes; before `stamp` only what later frames are made from."""
        codec = self._stream.codec_context
        for packet in self._container.demux(self._stream):
            codec.skip_frame = "NONREF" if packet.pts is not None and packet.pts < stamp else "DEFAULT"
            for frame in packet.decode():
                if frame.pts is not None:
                    yield frame.pts, frame

    def _pick(
        self, frames: Iterator[tuple[int, av.VideoFrame]], numbers: np.ndarray, stamps: np.ndarray
    ) -> Iterator[tuple[int, av.VideoFrame]]:
        at, frame = -1, None
        for number, stamp in zip(numbers.tolist(), stamps.tolist(), strict=True):
            while frame is None or at < stamp:
                try:
                    at, frame = next(frames)
                except (StopIteration, av.FFmpegError, OSError) as error:
                    cause = "the video ends before it" if isinstance(error, StopIteration) else first_line(error)
                    raise self._damaged(number, cause) from None
            if at != stamp:
                raise self._damaged(number, "the decoder skips it")
            if frame.is_corrupt:
                raise self._damaged(number, "the decoder calls it corrupt")
            yield number, frame

    def _damaged(self, number: int, cause: str) -> UserError:
        return UserError(
            f"{self.path}: frame {number} cannot be decoded ({cause}); the file is damaged, download it again"
        )


def decode_ranges(found: VideoScan, ranges: Sequence[Range]) -> Iterator[tuple[int, av.VideoFrame]]:
    """(number, frame) of every frame in the ascending ranges; opens the video for this alone.

    Raises:
        UserError: a frame that the container announces does not decode.
    """
    decoder = Decoder(found.path, found.stream_index)
    try:
        yield from decoder.frames(request_frames(found, ranges))
    finally:
        decoder.close()


# --------------------------------------------------------------------------------------------------------------- images


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
    """A stored frame: JPEG of `to_image`, chroma at half resolution as in the video."""
    image = np.ascontiguousarray(to_image(frame, height))
    return simplejpeg.encode_jpeg(image, quality=quality, colorspace="RGB", colorsubsampling="420")
