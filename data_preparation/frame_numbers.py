"""Find which source frame `ffmpeg -i VIDEO %06d.jpg` (ffmpeg 5.1) writes as frame N, without decoding the video.

ffmpeg writes images at a constant rate: it repeats and drops frames where the timestamps of a video are uneven.
Annotations that count ffmpeg's files include those repeats and drops. `cfr_sources` implements ffmpeg's rule
(`-vsync cfr`) on the timestamps of the packets or, if those are unreliable, on the timestamps of a full decode.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from data_preparation.actions import LAST_FRAME
from data_preparation.common.errors import UserError, first_line
from data_preparation.file_types import file_type_hint

DEFAULT_DISPOSITION_BONUS = 5_000_000  # pixels; how much ffmpeg prefers a stream that is marked as default
_FORMATS = {
    "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "flv", "mpeg", "mpegts", "asf", "mxf", "ogg", "gif", "yuv4mpegpipe",
}  # fmt: skip
# AVI has no presentation timestamps, the others no seeking without an index
_UNSEEKABLE_FORMATS = {"avi", "flv", "gif", "yuv4mpegpipe"}
# allowed difference between the length of a file and of its video stream: the sound often ends later
_LENGTH_TOLERANCE_SECONDS, _LENGTH_TOLERANCE_FRACTION = 2, Fraction(1, 100)


@dataclass(frozen=True)
class VideoScan:
    """The frames of a video as ffmpeg numbers them.

    `sources` (frame_count,) int64: `sources[n - 1]` is the index (from 0, presentation order) of the source frame that
    ffmpeg writes as number n. `timestamps` (source frames,) int64 ascend, in units of the stream's time base.
    `sequential` means that the file cannot be read by seeking: its frames are counted in a decode from the start.
    """

    path: Path
    stream_index: int
    rate: Fraction
    sources: np.ndarray
    timestamps: np.ndarray
    sequential: bool
    width: int
    height: int
    codec: str
    warnings: tuple[str, ...] = ()  # reasons to check the numbering, a sentence each

    @property
    def frame_count(self) -> int:
        """Number of images that ffmpeg would write."""
        return len(self.sources)


def cfr_sources(times: Sequence[float], durations: Sequence[float], *, keep_start_gap: bool) -> np.ndarray:
    """Apply ffmpeg's constant-rate rule: for each image (from 0), the index of the source frame that it shows.

    `times` (from the start of the container) and `durations` are in units of one image. With `keep_start_gap` the
    first frame is repeated if the stream starts late, as ffmpeg does to stay in sync with the file's other streams.
    """
    sources: list[int] = []
    repeats: list[int] = [0, 0, 0]  # of the last three frames, newest first
    for index, (time, duration) in enumerate(zip(times, durations, strict=True)):
        if index == 0 and not keep_start_gap and time >= 0.5:
            shift = round(time)
            times = [t - shift for t in times]
            return cfr_sources(times, durations, keep_start_gap=True)
        ahead = time - len(sources)
        end = ahead + (round(duration) if round(duration) > 0 else 1)
        if ahead < 0 < end:
            ahead = 0.0
        count, earlier = 1, 0
        if end < -1.1:
            count = 0
        elif end > 1.1:
            count = round(end)
            earlier = round(ahead - 0.6) if ahead > 1.1 else 0
        earlier = min(earlier, count)
        repeats = [earlier, *repeats[:2]]
        previous = max(index - 1, 0)
        sources += [previous] * earlier + [index] * (count - earlier)
    if sources:
        sources += [len(times) - 1] * sorted(repeats)[1]
    return np.asarray(sources, dtype=np.int64)


def _nudge(time: float) -> float:
    """Move a time slightly, as ffmpeg does, so that none lies exactly halfway between two images."""
    return time + (2.0**-17 if time > 0 else -(2.0**-17))


def open_video(path: Path) -> av.container.InputContainer:
    """Open a video file.

    Raises:
        UserError: the file is missing, empty, a folder, unreadable, or not a video.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder: put the video file in its place")
    if not path.exists():
        raise UserError(f"{path} is missing: download it")
    if not path.is_file():
        raise UserError(f"{path} is not a regular file: put the video file in its place")
    if not os.access(path, os.R_OK):
        raise UserError(f"{path} is not readable: change its permissions")
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty (0 bytes): download it again")
    try:
        container = av.open(os.path.abspath(path))  # ffmpeg reads 'a:b' as protocol a
    except (av.FFmpegError, OSError, ValueError) as error:
        cause = file_type_hint(path, wanted={"video"})
        raise UserError(
            f"{path} cannot be opened as a video{f', {cause}' if cause else f' ({first_line(error)}): download it again'}"
        ) from None
    if container.format.name not in _FORMATS:  # for example a playlist, which would open other files
        container.close()
        cause = file_type_hint(path, wanted={"video"})
        raise UserError(
            f"{path} is not a video but '{container.format.name}'{f', {cause}' if cause else ': download it again'}"
        )
    return container


def video_streams(container: av.container.InputContainer) -> list[av.VideoStream]:
    """The video streams of a container, without cover pictures."""
    return [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]


def best_stream(container: av.container.InputContainer) -> av.VideoStream:
    """The video stream that ffmpeg selects: the one with the most pixels, with a bonus for one marked as default.

    Raises:
        UserError: the file has no video stream.
    """

    def score(stream: av.VideoStream) -> int:
        default = bool(stream.disposition & av.stream.Disposition.default)
        return stream.codec_context.width * stream.codec_context.height + DEFAULT_DISPOSITION_BONUS * default

    best = max(video_streams(container), key=score, default=None)
    if best is None:
        raise UserError(f"{container.name} has no video stream: download the video again")
    return best


def image_rate(stream: av.VideoStream) -> Fraction:
    """Images per second that ffmpeg 5.1 writes for a stream."""
    codec_rate = stream.codec_context.framerate
    if codec_rate and stream.base_rate == 2 * codec_rate and stream.base_rate > 210:
        return codec_rate  # newer versions count fields here, reject the rate as too high and use the average
    return stream.guessed_rate or stream.average_rate or Fraction(25)


FrameTimes = list[tuple[int, int]]  # (timestamp, duration) of each frame, in units of the stream's time base


@dataclass(frozen=True)
class _Packets:
    """Result of reading all packets of a stream."""

    frames: list[tuple[int | None, int]]  # (timestamp, duration) of the frames that are shown, in decoding order
    hidden: int  # number of frames that an edit list hides
    reordered: bool  # whether there are B-frames
    read_error: str | None  # why reading stopped before the end of the file


def _read_packets(container: av.container.InputContainer, stream: av.VideoStream) -> _Packets:
    frames, total, reordered, read_error = [], 0, False, None
    try:
        for packet in container.demux(stream):
            total += packet.size > 0
            if packet.size and not packet.is_discard:
                frames.append((packet.pts, packet.duration or 0))
                reordered = reordered or packet.pts != packet.dts
    except (av.FFmpegError, OSError) as error:
        read_error = first_line(error)
    return _Packets(frames, total - len(frames), reordered, read_error)


def scan_video(path: Path) -> VideoScan:
    """Number the frames of a video from its packets; decodes it only if the timestamps of the packets are unreliable.

    Raises:
        UserError: the file cannot be opened, has no frames, or has fewer frames than its header states.
    """
    with open_video(path) as container:
        stream = best_stream(container)
        time_base = stream.time_base
        assert time_base is not None
        packets = _read_packets(container, stream)
        stored = len(packets.frames) + packets.hidden
        if stream.frames > stored:
            raise UserError(
                f"{path} should have {stream.frames} frames and has {stored}: it is cut short or damaged, download it again"
            )
        in_order = sorted((pts, duration) for pts, duration in packets.frames if pts is not None)
        distinct = len({pts for pts, _ in in_order}) == len(packets.frames)
        sequential = container.format.name in _UNSEEKABLE_FORMATS or not distinct
        frames = _decoded_timestamps(path, stream.index) if sequential else in_order
        if not frames:
            raise UserError(f"{path} has no frame that can be decoded: download it again")
        rate, codec = image_rate(stream), stream.codec_context
        start = Fraction(container.start_time or 0, av.time_base)
        times = [_nudge(float((pts * time_base - start) * rate)) for pts, _ in frames]
        if max(times) > LAST_FRAME:
            raise UserError(
                f"{path} has timestamps that jump by {max(times) / rate / 3600:.0f} hours: it is damaged, download it again"
            )
        durations = _durations(container, stream, time_base, frames, packets.reordered, rate)
        sources = cfr_sources(times, durations, keep_start_gap=len(container.streams) > 1)
        return VideoScan(
            path, stream.index, rate, sources, np.asarray([pts for pts, _ in frames], dtype=np.int64), sequential,
            codec.width, codec.height, codec.name,
            (*_file_warnings(container, stream, packets, len(sources) / rate), *_timing_warnings(sources, sequential)),
        )  # fmt: skip


def _durations(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    time_base: Fraction,
    frames: FrameTimes,
    reordered: bool,
    rate: Fraction,
) -> list[float]:
    """Duration of each frame as ffmpeg 5.1 computes it, in units of one image."""
    durations = [float(duration * time_base * rate) for _, duration in frames]
    codec_rate = stream.codec_context.framerate
    if "mp4" in container.format.name and codec_rate:
        if reordered:  # ffmpeg ignores the durations in an mp4 with B-frames and uses the codec's frame rate
            return [float(rate / codec_rate)] * len(frames)
        if stream.duration:  # ffmpeg ends the last frame at the stream's duration, even if the stream starts late
            last = stream.duration - frames[-1][0]
            durations[-1] = float(last * time_base * rate if last >= 0 else rate / codec_rate)
    return durations


def _file_warnings(
    container: av.container.InputContainer, stream: av.VideoStream, packets: _Packets, seconds: Fraction
) -> list[str]:
    """Warnings about several streams, edit lists and files that may be incomplete."""
    warnings = []
    if (streams := len(video_streams(container))) > 1:
        size = f"{stream.codec_context.width}x{stream.codec_context.height}"
        warnings.append(f"it has {streams} video streams; number {stream.index} ({size}) is used, as ffmpeg does")
    if packets.hidden:
        stored = len(packets.frames) + packets.hidden
        warnings.append(
            f"an edit list hides {packets.hidden} of its {stored} frames; they are left out, as ffmpeg does"
        )
    if packets.read_error:
        warnings.append(f"it could not be read to its end ({packets.read_error}): check whether it is complete")
    length = Fraction(container.duration or 0, av.time_base)
    if length and abs(seconds - length) > max(Fraction(_LENGTH_TOLERANCE_SECONDS), _LENGTH_TOLERANCE_FRACTION * length):
        warnings.append(
            f"its frames last {float(seconds):.1f} s and the file states {float(length):.1f} s: check whether it is complete"
        )
    return warnings


def _timing_warnings(sources: np.ndarray, sequential: bool) -> list[str]:
    """Warnings if ffmpeg's numbers differ from a plain count of decoded frames, or if seeking is impossible."""
    warnings = []
    differs = np.flatnonzero(sources != np.arange(len(sources)))
    if len(differs):
        repeated, dropped = int((np.diff(sources) == 0).sum()), int(np.maximum(np.diff(sources) - 1, 0).sum())
        warnings.append(
            f"its timestamps are uneven, so ffmpeg repeats {repeated} and drops {dropped} frames; readers that count decoded frames have other numbers from frame {int(differs[0]) + 1} on"
        )
    if sequential:
        warnings.append("this kind of file has no usable index, so it is decoded from its start instead of by seeking")
    return warnings


def _decoded_timestamps(path: Path, stream_index: int) -> FrameTimes:
    """(timestamp, duration) of each frame of a full decode, in order.

    The timestamps are presentation times if those ascend, else decoding times (AVI stores no others, so an AVI with
    B-frames needs them).

    Raises:
        UserError: neither ascend.
    """
    decoded: list[tuple[int | None, int | None, int]] = []  # presentation time, decoding time, duration
    with open_video(path) as container:
        stream = container.streams[stream_index]
        assert isinstance(stream, av.VideoStream)
        stream.thread_type = "AUTO"
        try:
            decoded = [(frame.pts, frame.dts, frame.duration or 0) for frame in container.decode(stream)]
        except (av.FFmpegError, OSError):
            return []  # the caller reports that the file has no frame that can be decoded
    for stamps in ([pts for pts, _, _ in decoded], [dts for _, dts, _ in decoded]):
        frames: FrameTimes = []
        for stamp, (_, _, duration) in zip(stamps, decoded, strict=True):
            if stamp is None and frames:  # frames that a decoder held back to the end have no timestamp
                stamp = frames[-1][0] + max(duration, 1)
            if stamp is None or (frames and stamp < frames[-1][0]):
                break
            frames.append((stamp, duration))
        if len(frames) == len(decoded):
            return frames
    raise UserError(
        f"{path} has timestamps that restart or are missing, so ffmpeg's numbers cannot be determined: re-encode it (ffmpeg -i {path.name} new.mp4) and check the contact sheets of data_preparation.verify"
    )
