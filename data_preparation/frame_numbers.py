"""Which source frame `ffmpeg -i VIDEO %06d.jpg` calls frame N (ffmpeg 5.1), found without decoding.

ffmpeg writes images at a constant rate, so it repeats and drops frames wherever a video's timestamps are not regular:
annotations that count ffmpeg's files count those. The rule below is ffmpeg's (`-vsync cfr`), fed with the timestamps of
the packets; where those cannot be trusted, with the timestamps of a whole decode.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from data_preparation.common.errors import UserError, first_line
from data_preparation.dives import LAST_FRAME
from data_preparation.file_types import file_type_hint

DEFAULT_DISPOSITION_BONUS = 5_000_000  # ffmpeg's preference for a stream marked default, in pixels
_FORMATS = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "flv", "mpeg", "mpegts", "asf", "mxf", "ogg"}
_NOT_ENTERED_IN_THE_MIDDLE = {"avi", "flv"}  # no times of presentation; no seeking without an index
_SLACK_SECONDS, _SLACK_SHARE = 2, Fraction(1, 100)  # between a file's length and that of its frames: sound ends later


@dataclass(frozen=True)
class VideoScan:
    """A video's frames as ffmpeg numbers them.

    `sources[n - 1]` is the source frame (0-based, presentation order) that ffmpeg writes as number n. `timestamps` are
    those of the source frames in the stream's time base, ascending; with `sequential` they cannot be used to seek, and
    frames are counted from the start of a decode instead.
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
    notes: tuple[str, ...] = ()  # what a person should know of how this file is numbered

    @property
    def frame_count(self) -> int:
        """How many images ffmpeg would write."""
        return len(self.sources)


def cfr_sources(times: Sequence[float], durations: Sequence[float], *, keep_start_gap: bool) -> np.ndarray:
    """ffmpeg's constant-rate rule: for each image number (from 0), the index of the source frame it shows.

    `times` and `durations` are in units of one image, times from the container's start. `keep_start_gap` repeats the
    first frame where the stream starts late, as ffmpeg does when the file has other streams to stay in step with.
    """
    sources: list[int] = []
    repeats: list[int] = [0, 0, 0]  # of the three last frames, newest first
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


def _off_the_middle(time: float) -> float:
    """ffmpeg moves each time by a hair, so that none lies in the middle between two images."""
    return time + (2.0**-17 if time > 0 else -(2.0**-17))


def open_video(path: Path) -> av.container.InputContainer:
    """The opened container.

    Raises:
        UserError: the file is missing, empty, a folder, unreadable, or no video.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder: put the video file in its place")
    if not path.exists():
        raise UserError(f"{path} is missing: download it")
    if not os.access(path, os.R_OK):
        raise UserError(f"{path} may not be read: change its permissions")
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty (0 bytes): download it again")
    try:
        container = av.open(os.path.abspath(path))  # 'a:b' would be a protocol
    except (av.FFmpegError, OSError, ValueError) as error:
        told = file_type_hint(path, wanted={"video"})
        raise UserError(
            f"{path} cannot be opened as a video{f', {told}' if told else f' ({first_line(error)}): download it again'}"
        ) from None
    if container.format.name not in _FORMATS:  # a playlist would bring in other files
        container.close()
        told = file_type_hint(path, wanted={"video"})
        raise UserError(
            f"{path} is not a video but '{container.format.name}'{f', {told}' if told else ': download it again'}"
        )
    return container


def pictures(container: av.container.InputContainer) -> list[av.VideoStream]:
    """The video streams, cover pictures left out."""
    return [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]


def best_stream(container: av.container.InputContainer) -> av.VideoStream:
    """The video stream that ffmpeg would choose: the most pixels, one marked default before others.

    Raises:
        UserError: there is no video stream.
    """

    def score(stream: av.VideoStream) -> int:
        default = bool(stream.disposition & av.stream.Disposition.default)
        return stream.codec_context.width * stream.codec_context.height + DEFAULT_DISPOSITION_BONUS * default

    best = max(pictures(container), key=score, default=None)
    if best is None:
        raise UserError(f"{container.name} has no video stream: download the video again")
    return best


def image_rate(stream: av.VideoStream) -> Fraction:
    """Images per second that ffmpeg 5.1 would write of a stream."""
    codec_rate = stream.codec_context.framerate
    if codec_rate and stream.base_rate == 2 * codec_rate and stream.base_rate > 210:
        return codec_rate  # newer versions count fields here, find that too fast, and take the average instead
    return stream.guessed_rate or stream.average_rate or Fraction(25)


Found = list[tuple[int, int]]  # timestamp and duration of each frame, in the stream's time base


@dataclass(frozen=True)
class _Packets:
    """What a pass over a stream's packets finds; `frames` are those that are shown, in the order of decoding."""

    frames: list[tuple[int | None, int]]
    hidden: int
    reordered: bool
    broken: str | None  # why reading ended, if not at the end


def _read_packets(container: av.container.InputContainer, stream: av.VideoStream) -> _Packets:
    frames, total, reordered, broken = [], 0, False, None
    try:
        for packet in container.demux(stream):
            total += packet.size > 0
            if packet.size and not packet.is_discard:
                frames.append((packet.pts, packet.duration or 0))
                reordered = reordered or packet.pts != packet.dts
    except (av.FFmpegError, OSError) as error:
        broken = first_line(error)
    return _Packets(frames, total - len(frames), reordered, broken)


def scan_video(path: Path) -> VideoScan:
    """Number a video's frames by reading its packets; decodes only where the packets' timestamps cannot be trusted.

    Raises:
        UserError: the file cannot be opened, has no frames, or fewer than it announces.
    """
    with open_video(path) as container:
        stream = best_stream(container)
        packets = _read_packets(container, stream)
        held = len(packets.frames) + packets.hidden
        if stream.frames > held:
            raise UserError(
                f"{path} announces {stream.frames} frames and holds {held}: it is cut short or damaged, download it again"
            )
        stamps = [pts for pts, _ in packets.frames]
        sequential = (
            container.format.name in _NOT_ENTERED_IN_THE_MIDDLE or None in stamps or len(set(stamps)) < len(stamps)
        )
        found = _decoded_timestamps(path, stream.index) if sequential else sorted(packets.frames)
        if not found:
            raise UserError(f"{path} yields no frame: download it again")
        rate, codec = image_rate(stream), stream.codec_context
        start = Fraction(container.start_time or 0, av.time_base)
        times = [_off_the_middle(float((pts * stream.time_base - start) * rate)) for pts, _ in found]
        if max(times) > LAST_FRAME:
            raise UserError(
                f"{path} has timestamps that jump by {max(times) / rate / 3600:.0f} hours: it is damaged, download it again"
            )
        durations = _durations(container, stream, found, packets.reordered, rate)
        sources = cfr_sources(times, durations, keep_start_gap=len(container.streams) > 1)
        return VideoScan(
            path, stream.index, rate, sources, np.asarray([pts for pts, _ in found], dtype=np.int64), sequential,
            codec.width, codec.height, codec.name,
            (*_file_notes(container, stream, packets, len(sources) / rate), *_timing_notes(sources, sequential)),
        )  # fmt: skip


def _durations(
    container: av.container.InputContainer, stream: av.VideoStream, found: Found, reordered: bool, rate: Fraction
) -> list[float]:
    """Each frame's duration in images, as ffmpeg 5.1 sees it."""
    durations = [float(duration * stream.time_base * rate) for _, duration in found]
    codec_rate = stream.codec_context.framerate
    if "mp4" in container.format.name and codec_rate:
        if reordered:  # it does not read the durations of an mp4 with B-frames: it takes the codec's frame rate
            return [float(rate / codec_rate)] * len(found)
        if stream.duration:  # and it takes the length of the stream for its end, also where the stream starts late
            last = stream.duration - found[-1][0]
            durations[-1] = float(last * stream.time_base * rate if last >= 0 else rate / codec_rate)
    return durations


def _file_notes(
    container: av.container.InputContainer, stream: av.VideoStream, packets: _Packets, seconds: Fraction
) -> list[str]:
    """What a person should know of a file before trusting its numbers."""
    notes = []
    if (streams := len(pictures(container))) > 1:
        size = f"{stream.codec_context.width}x{stream.codec_context.height}"
        notes.append(f"it has {streams} video streams; ffmpeg takes number {stream.index} ({size}), and so do we")
    if packets.hidden:
        held = len(packets.frames) + packets.hidden
        notes.append(f"an edit list hides {packets.hidden} of its {held} frames; ffmpeg leaves them out, and so do we")
    if packets.broken:
        notes.append(f"reading it ended early ({packets.broken}): is it whole?")
    length = Fraction(container.duration or 0, av.time_base)
    if length and abs(seconds - length) > max(_SLACK_SECONDS, _SLACK_SHARE * length):
        notes.append(f"its frames fill {float(seconds):.1f} s, the file says {float(length):.1f} s: is it whole?")
    return notes


def _timing_notes(sources: np.ndarray, sequential: bool) -> list[str]:
    """Where ffmpeg's numbers are not those of a reader that counts decoded frames, and where ours rest on a decode."""
    notes = []
    differs = np.flatnonzero(sources != np.arange(len(sources)))
    if len(differs):
        repeated, dropped = int((np.diff(sources) == 0).sum()), int(np.maximum(np.diff(sources) - 1, 0).sum())
        notes.append(
            f"its timestamps are uneven, so ffmpeg repeats {repeated} and drops {dropped} frames; readers that count decoded frames number it otherwise from frame {int(differs[0]) + 1} on"
        )
    if sequential:
        notes.append(
            "its kind of file does not tell where a frame is, so it is decoded from its start instead of by seeking"
        )
    return notes


def _decoded_timestamps(path: Path, stream_index: int) -> Found:
    """(timestamp, duration) of each frame in the order of a whole decode: the packets' times of presentation where they
    only ever rise, else their times of decoding (B-frames in AVI, which stores no others).

    Raises:
        UserError: neither rise.
    """
    found: list[tuple[int | None, int | None, int]] = []
    with open_video(path) as container:
        stream = container.streams[stream_index]
        stream.thread_type = "AUTO"
        try:
            found = [(frame.pts, frame.dts, frame.duration or 0) for frame in container.decode(stream)]
        except (av.FFmpegError, OSError):
            return []  # named by the decode that follows, which meets the same fault
    for column in (0, 1):
        stamps = [row[column] for row in found]
        for i in range(1, len(stamps)):  # frames that a decoder held back to the end come out without a time
            if stamps[i] is None and stamps[i - 1] is not None:
                stamps[i] = stamps[i - 1] + max(found[i][2], 1)
        if None not in stamps and stamps == sorted(stamps):
            return [(stamp, row[2]) for stamp, row in zip(stamps, found, strict=True)]
    if not found:
        return []
    raise UserError(
        f"{path} has timestamps that start anew or are missing, so ffmpeg's numbers cannot be told: write it anew (ffmpeg -i {path.name} new.mp4) and look at the contact sheets of data_preparation.verify"
    )
