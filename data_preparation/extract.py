"""Extract the frames that annotated dives need, and no others, into one archive per video.

    python -m data_preparation.extract --dataset DIR [--videos 01 02] [--height 256]

Frame numbers are those of `ffmpeg -i NN.mp4 %06d.jpg`. Finished videos are skipped. Archives are written atomically, so
a run that is killed leaves no partial archive.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType, MappingProxyType
from typing import Any

import av
import simplejpeg
from tqdm import tqdm

from data_preparation.actions import Action, VideoFacts, list_names
from data_preparation.archive import (
    FrameReader,
    StoredFrames,
    decode_grey,
    recorded_rates,
    source_rate,
    write_archive,
)
from data_preparation.common.command_line import flag, parse, run
from data_preparation.common.errors import UserError
from data_preparation.common.files import Cancelled, sha256
from data_preparation.common.limits import limit_error_text
from data_preparation.common.workers import WORKER_KILLED, check_workers, init_worker, kill_workers
from data_preparation.decoding import Decoder, FrameRange, FrameRequest, request_frames, to_jpeg
from data_preparation.frame_numbers import VideoScan, scan_video
from data_preparation.layout import DatasetLayout, archive_file, dataset_layout
from data_preparation.many_videos import MAX_LINES, grouped_lines
from data_preparation.rates import RepeatWatch, fact_faults, rate_warnings, repeat_warning, version_warnings
from data_preparation.running_extractions import announce_extraction
from data_preparation.shards import ShardConfig, command_text
from data_preparation.verified import mark_videos_verified
from data_preparation.verify import VerifyConfig, dive_frame_faults, report_text, verify

NumberedJpegs = list[tuple[int, bytes]]  # (frame number, JPEG bytes)

_CHUNK = 300  # frames that a worker returns at once; nearly all dives are shorter
_SHORT = 1000  # frames; a file that cannot be read by seeking is decoded by a worker, at once, if it has no more
_REPEAT_HEIGHT = 24  # pixels; height at which frames are compared to find repeats


@dataclass(frozen=True)
class ExtractConfig(ShardConfig):
    """Extract the frames of annotated dives into one archive per video."""

    height: int = flag(
        StoredFrames.height,
        "Height of the stored frames in pixels (width in proportion); 0 keeps the video's.",
        minimum=0,
        maximum=4320,
    )
    quality: int = flag(StoredFrames.quality, "JPEG quality.", minimum=1, maximum=100)
    window: int = flag(
        106,
        "Also store this many frames before each dive's end (for end-aligned windows of 103 frames, shifted by up to 3).",
        minimum=0,
    )
    after: int = flag(3, "Also store this many frames after each dive's end, if the video has them.", minimum=0)
    again: bool = flag(False, "Extract again, for example a damaged archive.")
    verify: bool = flag(False, "Verify all stored frames at the end, as data_preparation.verify does.")


# ------------------------------------------------------------------------------------------------------ frames to store


def merge_ranges(ranges: Iterable[FrameRange]) -> list[FrameRange]:
    """Merge ranges that overlap or touch; the result is ascending and covers the same frames."""
    result: list[FrameRange] = []
    for first, last in sorted(ranges):
        if result and first <= result[-1][1] + 1:
            result[-1] = (result[-1][0], max(result[-1][1], last))
        else:
            result.append((first, last))
    return result


def needed_ranges(dives: Iterable[Action], window: int, after: int, last_frame: int) -> list[FrameRange]:
    """The frames to store for some dives, as merged ranges within 1..last_frame.

    A dive needs the frames from its start, or `window` frames before its end if that is earlier, to `after` frames
    after its end.
    """
    return merge_ranges(
        (max(min(d.start_frame, d.end_frame - window), 1), min(d.end_frame + after, max(last_frame, d.end_frame)))
        for d in dives
    )


def split_ranges(ranges: Iterable[FrameRange]) -> Iterator[FrameRange]:
    """Split ranges into ones that are short enough to hold in memory as JPEGs."""
    for first, last in ranges:
        for start in range(first, last + 1, _CHUNK):
            yield start, min(start + _CHUNK - 1, last)


def check_length(scan: VideoScan, dives: Sequence[Action]) -> None:
    """Check that a video does not end before its last annotated dive.

    Raises:
        UserError: it does; the message names the dives that would be lost.
    """
    lost = [d.key for d in dives if d.end_frame > scan.frame_count]
    if lost:
        raise UserError(
            f"{scan.path} has {scan.frame_count} frames and its last dive ends at frame {max(d.end_frame for d in dives)}: {len(lost)} dives would be lost ({list_names(lost)}); the file is cut short or another version, download it again"
        )


def check_record(record: dict[str, Any], facts: Sequence[VideoFacts], source: Path) -> None:
    """Check an archive that exists already, by its provenance record. Raises UserError as `check_facts` does."""
    made_from = record["source"]
    rate, frames, decoded = source_rate(record), made_from["frames"], made_from.get("decoded_frames")
    if faults := [f for stated in facts for f in fact_faults(stated, rate, frames, decoded, str(source))]:
        raise UserError.of(faults)


def check_facts(scan: VideoScan, facts: Sequence[VideoFacts]) -> None:
    """Check that a video is the version that annotations or catalogue state.

    Raises:
        UserError: frame rate or frame count differ; a line for each, with both numbers.
    """
    decoded = len(scan.timestamps)
    faults = [f for stated in facts for f in fact_faults(stated, scan.rate, scan.frame_count, decoded, str(scan.path))]
    if faults:
        raise UserError.of(faults)


# ----------------------------------------------------------------------------------------------------- worker processes


_decoder: Decoder | None = None  # of this worker process


def _decode_jpegs(request: FrameRequest, height: int, quality: int) -> NumberedJpegs:
    global _decoder
    same_file = _decoder and (_decoder.path, _decoder.stream_index) == (request.path, request.stream_index)
    if _decoder is None or not same_file or request.sequential:
        if _decoder is not None:
            _decoder.close()
        _decoder = Decoder(request.path, request.stream_index, threads=1)  # one thread: the pool has a worker per core
    return [(number, to_jpeg(frame, height, quality)) for number, frame in _decoder.frames(request)]


class DecodingPool:
    """Worker processes that decode requests to JPEGs, shared by all videos that are being extracted."""

    def __init__(self, processes: int) -> None:
        context = multiprocessing.get_context("fork")
        self._pool = ProcessPoolExecutor(processes, context, init_worker)
        self._pool.submit(os.getpid).result()  # fork all workers now, before this process starts threads
        self.max_pending = processes + 1  # requests per video; bounds the memory of their results
        self.stopped = False

    def jpegs(self, requests: Iterable[FrameRequest], height: int, quality: int) -> Iterator[tuple[int, bytes]]:
        """Yield (number, JPEG bytes) for all requests, in order.

        Raises:
            UserError: a frame cannot be decoded, or a worker was killed.
            Cancelled: `stop` was called.
        """
        pending: deque[Future[NumberedJpegs]] = deque()
        requests = iter(requests)
        try:
            while True:
                while len(pending) < self.max_pending and (request := next(requests, None)) is not None:
                    pending.append(self._pool.submit(_decode_jpegs, request, height, quality))
                if not pending:
                    return
                for numbered in pending.popleft().result():
                    if self.stopped:
                        raise Cancelled
                    yield numbered
        except BrokenProcessPool:
            if self.stopped:
                raise Cancelled from None
            raise UserError(WORKER_KILLED) from None
        except RuntimeError:  # the pool was shut down
            raise Cancelled from None
        finally:
            for future in pending:
                future.cancel()

    def stop(self) -> None:
        """Cancel all requests and kill the workers."""
        self.stopped = True
        self._pool.shutdown(wait=False, cancel_futures=True)
        kill_workers()

    def close(self) -> None:
        self._pool.shutdown()


def _decode_sequentially(
    request: FrameRequest, height: int, quality: int, pool: DecodingPool
) -> Iterator[tuple[int, bytes]]:
    """Yield (number, JPEG bytes) of a file that cannot be read by seeking: decode it once, in this process."""
    decoder = Decoder(request.path, request.stream_index)
    try:
        for number, frame in decoder.frames(request):
            if pool.stopped:
                raise Cancelled
            yield number, to_jpeg(frame, height, quality)
    finally:
        decoder.close()


# ------------------------------------------------------------------------------------------------------------ one video


def settings_of(config: ExtractConfig) -> dict[str, int]:
    """The flags that determine the pixels of a stored frame."""
    return {"height": config.height, "quality": config.quality}


def stored_ranges(path: Path, source: Path, settings: dict[str, int]) -> tuple[list[FrameRange], int]:
    """The ranges that an archive already holds, and the number of frames of its source.

    ([], 0) if the archive is missing or damaged, or was made from another source or with other settings.
    """
    if not path.exists():
        return [], 0
    try:
        reader = FrameReader(path)
        record = reader.provenance
    except UserError:
        return [], 0  # damaged: it is extracted again
    made_from = record["source"]
    same_source = made_from.get("name") == source.name and made_from["bytes"] == source.stat().st_size
    recorded = sum(last - first + 1 for first, last in record["ranges"])
    if not same_source or record["settings"] != settings or len(reader.numbers) != recorded:
        return [], 0
    return [(first, last) for first, last in record["ranges"]], made_from["frames"]


def is_adopted(path: Path, dives: Sequence[Action]) -> bool:
    """Whether an archive was packed by data_preparation.adopt and has all frames of these dives."""
    if not path.exists():
        return False
    try:
        reader = FrameReader(path)
        return "adopted" in reader.provenance and not dive_frame_faults(reader, dives)
    except UserError:
        return False  # damaged: it is extracted again


@dataclass(frozen=True)
class Outcome:
    """Result of one video; `text` describes what was done or why it failed."""

    succeeded: bool
    text: str
    warnings: tuple[str, ...] = ()


def extract_video(
    layout: DatasetLayout,
    video: str,
    dives: Sequence[Action],
    config: ExtractConfig,
    pool: DecodingPool,
    on_frame: Callable[[], None],
    facts: Sequence[VideoFacts] = (),
) -> Outcome:
    """Extract one video into its archive, unless that is complete. Calls `on_frame()` for each frame stored.

    As long as source and settings stay the same, an archive only gains frames. `facts` are what annotations and
    catalogue state about the labelled version of the video.

    Raises:
        UserError: the video is faulty or not the labelled version, or the disk is full or not writable. An existing
            archive is left unchanged.
    """
    path, settings = archive_file(layout.frames, video), settings_of(config)
    if not config.again and is_adopted(path, dives):
        return Outcome(True, "packed by data_preparation.adopt, kept unchanged")
    source = layout.video_file(video)
    stored, frame_count = stored_ranges(path, source, settings)
    wanted = needed_ranges(dives, config.window, config.after, frame_count)
    if not config.again and merge_ranges([*stored, *wanted]) == stored:
        check_record(FrameReader(path).provenance, facts, source)
        return Outcome(True, "already extracted")
    scan = scan_video(source)
    check_facts(scan, facts)
    check_length(scan, dives)
    ranges = merge_ranges([*stored, *needed_ranges(dives, config.window, config.after, scan.frame_count)])
    count = sum(last - first + 1 for first, last in ranges)
    rate_stated = any(stated.frames_per_second for stated in facts)
    warnings = [*scan.warnings, *([] if rate_stated else version_warnings(scan, dives))]
    if config.height > scan.height and config.height > scan.width:  # width too: a video may be displayed rotated
        warnings.append(
            f"its frames of {scan.width}x{scan.height} are enlarged to height {config.height}, which adds bytes but no detail: --height 0 keeps their size"
        )
    record = provenance(scan, ranges, settings, warnings)
    watch = RepeatWatch()
    with ThreadPoolExecutor(1) as hashing:
        digest = hashing.submit(sha256, source, lambda: pool.stopped)

        def frames() -> Iterator[tuple[int, bytes]]:
            if scan.sequential and scan.frame_count > _SHORT:
                jpegs = _decode_sequentially(request_frames(scan, ranges), config.height, config.quality, pool)
            else:
                parts = [ranges] if scan.sequential else [[r] for r in split_ranges(ranges)]
                requests = (request_frames(scan, part) for part in parts)
                jpegs = pool.jpegs(requests, config.height, config.quality)
            for numbered in jpegs:
                if watch.wants_more and not rate_stated:
                    watch.add(numbered[0], decode_grey(numbered[1], _REPEAT_HEIGHT))
                yield numbered
                on_frame()
            if period := watch.period:
                warnings.append(repeat_warning(scan.rate, period))
                record["notes"] = warnings
            record["source"]["sha256"] = digest.result()

        write_archive(path, frames(), record)
    return Outcome(True, f"{count} frames of {scan.frame_count}, {path.stat().st_size / 1e6:.1f} MB", tuple(warnings))


def provenance(
    scan: VideoScan, ranges: Sequence[FrameRange], settings: dict[str, int], warnings: Sequence[str]
) -> dict[str, Any]:
    """The record of an archive: its source, settings and tools. The source's SHA-256 is added when it is computed."""
    return {
        "source": {
            "name": scan.path.name,
            "bytes": scan.path.stat().st_size,
            "codec": scan.codec,
            "width": scan.width,
            "height": scan.height,
            "frames_per_second": str(scan.rate),
            "frames": scan.frame_count,
            "decoded_frames": len(scan.timestamps),
        },
        "settings": settings,
        "ranges": [list(r) for r in ranges],
        "notes": list(warnings),
        "tools": {
            "av": av.__version__,
            "simplejpeg": simplejpeg.__version__,
            **{k: ".".join(map(str, v)) for k, v in av.library_versions.items()},
        },
    }


# ------------------------------------------------------------------------------------------------------------ many videos


def extract_videos(
    layout: DatasetLayout,
    work: dict[str, list[Action]],
    config: ExtractConfig,
    facts: Mapping[str, Sequence[VideoFacts]] = MappingProxyType({}),
) -> dict[str, Outcome]:
    """Extract several videos with `config.processes` worker processes and a progress bar in frames."""
    expected = sum(
        last - first + 1
        for dives in work.values()
        for first, last in needed_ranges(dives, config.window, config.after, 10**9)
    )
    check_workers(config.processes)
    pool = DecodingPool(config.processes)
    bar = tqdm(total=expected, unit="frame", unit_scale=True, desc="extracting", disable=not sys.stderr.isatty())

    def on_frame() -> None:
        bar.update()

    def extract_one(video: str) -> Outcome:
        """Never raises: an error in one video must not stop the others."""
        try:
            return extract_video(layout, video, work[video], config, pool, on_frame, facts.get(video, ()))
        except UserError as error:
            return Outcome(False, str(error))
        except Cancelled:
            return Outcome(False, f"video {video}: interrupted")
        except Exception as error:
            if text := limit_error_text(error):
                return Outcome(False, f"video {video}: {text}")
            return Outcome(False, f"video {video}: unexpected error, please report it\n{traceback.format_exc()}")

    received: list[int] = []  # signals

    def stop(number: int, _: FrameType | None) -> None:
        received.append(number)
        # Python drops an exception that a signal raises inside a weak reference's callback; this flag still ends the work
        pool.stopped = True
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(number, stop)
    outcomes: dict[str, Outcome] = {}
    announced = announce_extraction(layout.frames, work, config.shard_count)
    with announced, bar, ThreadPoolExecutor(min(config.processes, len(work))) as threads:
        pending = {threads.submit(extract_one, video): video for video in work}
        try:
            while pending:
                for future in wait(pending, return_when="FIRST_COMPLETED").done:
                    video = pending.pop(future)
                    outcomes[video] = outcome = future.result()
                    lines = [f"video {video}: {outcome.text if outcome.succeeded else 'failed'}"]
                    lines += [f"video {video}: warning: {warning}" for warning in outcome.warnings]
                    for line in lines if len(work) <= MAX_LINES else ():
                        bar.write(line, sys.stdout)
        except BaseException:  # Ctrl-C or a signal: discard partial archives and start no further video
            pool.stop()
            threads.shutdown(wait=True, cancel_futures=True)
            raise
    pool.close()
    if received:
        raise SystemExit(128 + received[0])
    return {video: outcomes[video] for video in work}


def main(argv: Sequence[str]) -> int:
    config = parse(ExtractConfig, argv, prog="python -m data_preparation.extract", description=__doc__.splitlines()[0])
    layout, work = dataset_layout(config.dataset), config.actions_by_video()
    if not work:
        print("This shard has no video: nothing to do.")
        return 0
    facts = config.stated_facts()
    outcomes = extract_videos(layout, work, config, facts)
    failed = {video: outcome.text for video, outcome in outcomes.items() if not outcome.succeeded}
    stated = {video for video, of_video in facts.items() if any(f.frames_per_second for f in of_video)}
    warnings = [(video, w) for video, outcome in outcomes.items() if len(work) > MAX_LINES for w in outcome.warnings]
    of_rates = rate_warnings(recorded_rates(layout.frames))
    warnings += [(video, w) for video, w in of_rates.items() if video in work and video not in stated]
    for line in grouped_lines((video, f"warning: {warning}") for video, warning in warnings):
        print(line)
    print(f"extracted {len(outcomes) - len(failed)} of {len(outcomes)} videos to {layout.frames}")
    extracted = {video: work[video] for video, outcome in outcomes.items() if outcome.succeeded}
    if config.verify and extracted:
        reports = verify(layout, extracted, VerifyConfig(workers=config.workers), facts)
        print(report_text(reports))
        print(mark_videos_verified(layout.frames, [r.video for r in reports if not r.faults]))
        failed |= {r.video: "\n".join(f"video {r.video}: {f}" for f in r.faults) for r in reports if r.faults}
    if failed:
        retry = replace(config, dataset=layout.root, again=config.verify)
        if len(failed) <= MAX_LINES:
            retry = replace(retry, videos=tuple(sorted(failed)), shard_index=0, shard_count=1)
        raise UserError.of([*failed.values(), f"when fixed, run: {command_text('extract', retry)}"])
    return 0


if __name__ == "__main__":
    run(main)
