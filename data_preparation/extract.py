"""Extract the frames that annotated dives need, and no others, into one archive a video.

    python -m data_preparation.extract --dataset DIR [--videos 01 02] [--height 256]

Frames are numbered as `ffmpeg -i NN.mp4 %06d.jpg` numbers them. Finished videos are skipped; a run that is killed leaves
whole archives or none.
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

from data_preparation.archive import FrameReader, decode_grey, recorded_rates, source_rate, write_archive
from data_preparation.common.command_line import flag, parse, run
from data_preparation.common.errors import UserError
from data_preparation.common.files import Cancelled, sha256
from data_preparation.common.limits import limit_error_text
from data_preparation.common.workers import check_workers, init_worker, kill_workers
from data_preparation.decoding import Decoder, FrameRange, FrameRequest, request_frames, to_jpeg
from data_preparation.dives import Dive, VideoFacts, list_names
from data_preparation.frame_numbers import VideoScan, scan_video
from data_preparation.layout import DatasetLayout, archive_file, dataset_layout, video_name
from data_preparation.rates import RepeatWatch, fact_faults, rate_warnings, repeat_warning, version_warnings
from data_preparation.running_extractions import announce_extraction
from data_preparation.shards import ShardConfig, command_text
from data_preparation.verified import mark_videos_verified
from data_preparation.verify import VerifyConfig, dive_frame_faults, report_text, verify

Numbered = list[tuple[int, bytes]]  # frame number, JPEG

_PIECE = 300  # frames that a worker process returns at once; nearly all dives are shorter
_WATCHED_HEIGHT = 24  # pixels of the pictures that are compared to find repeats


@dataclass(frozen=True)
class ExtractConfig(ShardConfig):
    """Extract the frames of annotated dives into one archive a video."""

    height: int = flag(
        256, "Height of the stored frames in pixels, width in proportion; 0 keeps the video's.", minimum=0, maximum=4320
    )
    quality: int = flag(95, "JPEG quality.", minimum=1, maximum=100)
    window: int = flag(
        106,
        "Also keep so many frames before each dive's end (end-aligned windows of 103 frames, moved by 3).",
        minimum=0,
    )
    after: int = flag(3, "Also keep so many frames after each dive's end, where the video has them.", minimum=0)
    again: bool = flag(False, "Extract also what is extracted already (a damaged archive).")
    verify: bool = flag(False, "Read every stored frame back at the end, as data_preparation.verify does.")


# --------------------------------------------------------------------------------------------------------- what to keep


def merge_ranges(ranges: Iterable[FrameRange]) -> list[FrameRange]:
    """Ascending ranges that cover the same frames and do not touch."""
    result: list[FrameRange] = []
    for first, last in sorted(ranges):
        if result and first <= result[-1][1] + 1:
            result[-1] = (result[-1][0], max(result[-1][1], last))
        else:
            result.append((first, last))
    return result


def needed_ranges(dives: Iterable[Dive], window: int, after: int, last_frame: int) -> list[FrameRange]:
    """Merged ranges: each dive from its start (or `window` frames before its end) to `after` frames after its end,
    inside 1..last_frame."""
    return merge_ranges(
        (max(min(d.start_frame, d.end_frame - window), 1), min(d.end_frame + after, max(last_frame, d.end_frame)))
        for d in dives
    )


def split_ranges(ranges: Iterable[FrameRange]) -> Iterator[FrameRange]:
    """The same frames in ranges that are short enough to be held in memory as JPEGs."""
    for first, last in ranges:
        for start in range(first, last + 1, _PIECE):
            yield start, min(start + _PIECE - 1, last)


def check_length(found: VideoScan, dives: Sequence[Dive]) -> None:
    """Refuse a video that ends before its last annotated dive.

    Raises:
        UserError: naming the dives that would be lost.
    """
    lost = [d.key for d in dives if d.end_frame > found.frame_count]
    if lost:
        raise UserError(
            f"{found.path} has {found.frame_count} frames and dives end as late as frame {max(d.end_frame for d in dives)}: {len(lost)} dives would be lost ({list_names(lost)}); it is cut short or another version, download it again"
        )


def check_record(record: dict[str, Any], facts: Sequence[VideoFacts], source: Path) -> None:
    """The same as `check_facts` for a video that was extracted before, from its record."""
    made_from = record["source"]
    rate, frames, decoded = source_rate(record), made_from["frames"], made_from.get("decoded_frames")
    if faults := [f for stated in facts for f in fact_faults(stated, rate, frames, decoded, str(source))]:
        raise UserError.of(faults)


def check_facts(found: VideoScan, facts: Sequence[VideoFacts]) -> None:
    """Refuse a video that is not the version that annotations or catalogue state.

    Raises:
        UserError: naming both numbers, a line for each that differs.
    """
    decoded = len(found.timestamps)
    faults = [
        f for stated in facts for f in fact_faults(stated, found.rate, found.frame_count, decoded, str(found.path))
    ]
    if faults:
        raise UserError.of(faults)


# ----------------------------------------------------------------------------------------------------- worker processes


_decoder: Decoder | None = None  # of this worker process


def _jpegs(wanted: FrameRequest, height: int, quality: int) -> Numbered:
    global _decoder
    if _decoder is None or (_decoder.path, _decoder.stream_index) != (wanted.path, wanted.stream_index):
        if _decoder is not None:
            _decoder.close()
        _decoder = Decoder(wanted.path, wanted.stream_index, threads=1)  # the processes are the parallelism
    return [(number, to_jpeg(frame, height, quality)) for number, frame in _decoder.frames(wanted)]


class DecodingPool:
    """Worker processes that turn requests into JPEGs, shared by the videos under way."""

    def __init__(self, processes: int) -> None:
        context = multiprocessing.get_context("fork")
        self._pool = ProcessPoolExecutor(processes, context, init_worker)
        self._pool.submit(os.getpid).result()  # forks all of them now, before there are threads
        self.ahead = processes + 1  # requests under way, which bounds the memory of their results
        self.stopped = False

    def jpegs(self, requests: Iterable[FrameRequest], height: int, quality: int) -> Iterator[tuple[int, bytes]]:
        """(number, JPEG) of all requests in order.

        Raises:
            UserError: a frame does not decode, or a worker was killed.
            Cancelled: `stop` was called.
        """
        waiting: deque[Future[Numbered]] = deque()
        requests = iter(requests)
        try:
            while True:
                while len(waiting) < self.ahead and (wanted := next(requests, None)) is not None:
                    waiting.append(self._pool.submit(_jpegs, wanted, height, quality))
                if not waiting:
                    return
                for numbered in waiting.popleft().result():
                    if self.stopped:
                        raise Cancelled
                    yield numbered
        except BrokenProcessPool:
            if self.stopped:
                raise Cancelled from None
            raise UserError("a worker process was killed: out of memory? Use fewer --workers") from None
        except RuntimeError:  # the pool takes no more requests
            raise Cancelled from None
        finally:
            for future in waiting:
                future.cancel()

    def stop(self) -> None:
        """Give up what is under way."""
        self.stopped = True
        self._pool.shutdown(wait=False, cancel_futures=True)
        kill_workers()

    def close(self) -> None:
        self._pool.shutdown()


def _decoded_here(wanted: FrameRequest, height: int, quality: int, pool: DecodingPool) -> Iterator[tuple[int, bytes]]:
    """The same without the pool: a file that cannot be entered in the middle is decoded once, from its start."""
    decoder = Decoder(wanted.path, wanted.stream_index)
    try:
        for number, frame in decoder.frames(wanted):
            if pool.stopped:
                raise Cancelled
            yield number, to_jpeg(frame, height, quality)
    finally:
        decoder.close()


# ------------------------------------------------------------------------------------------------------- one whole video


def settings_of(config: ExtractConfig) -> dict[str, int]:
    """What decides how a stored frame looks."""
    return {"height": config.height, "quality": config.quality}


def stored_ranges(path: Path, source: Path, settings: dict[str, int]) -> tuple[list[FrameRange], int]:
    """(what an archive holds already of this source with these settings, the source's frames); ([], 0) where it is
    absent, damaged or made otherwise."""
    if not path.exists():
        return [], 0
    try:
        reader = FrameReader(path)
        record = reader.provenance
    except UserError:
        return [], 0  # extracted again
    made_from = record["source"]
    same = made_from.get("name") == source.name and made_from["bytes"] == source.stat().st_size
    held = sum(last - first + 1 for first, last in record["ranges"])
    if not same or record["settings"] != settings or len(reader.numbers) != held:
        return [], 0
    return [(first, last) for first, last in record["ranges"]], made_from["frames"]


def is_adopted(path: Path, dives: Sequence[Dive]) -> bool:
    """Whether an archive was packed from loose frames and has all frames of these dives."""
    if not path.exists():
        return False
    try:
        reader = FrameReader(path)
        return "adopted" in reader.provenance and not dive_frame_faults(reader, dives)
    except UserError:
        return False  # extracted again


@dataclass(frozen=True)
class Outcome:
    """What became of one video."""

    well: bool
    text: str
    notes: tuple[str, ...] = ()


def extract_video(
    layout: DatasetLayout,
    video: int,
    dives: Sequence[Dive],
    config: ExtractConfig,
    pool: DecodingPool,
    on_frame: Callable[[], None],
    facts: Sequence[VideoFacts] = (),
) -> Outcome:
    """Make the archive of one video, or find it made. `on_frame()` is called as frames are stored.

    An archive only ever gains frames while its source and its settings are the same. `facts` are what is stated of the
    video that was labelled.

    Raises:
        UserError: the video, another version than was labelled, or the disk; the archive that was there before is then as it was.
    """
    path, settings = archive_file(layout.frames, video), settings_of(config)
    if not config.again and is_adopted(path, dives):
        return Outcome(True, "packed by data_preparation.adopt, left as it is")
    source = layout.video_file(video)
    stored, frame_count = stored_ranges(path, source, settings)
    wanted = needed_ranges(dives, config.window, config.after, frame_count)
    if not config.again and merge_ranges([*stored, *wanted]) == stored:
        check_record(FrameReader(path).provenance, facts, source)
        return Outcome(True, "done before")
    found = scan_video(source)
    check_facts(found, facts)
    check_length(found, dives)
    ranges = merge_ranges([*stored, *needed_ranges(dives, config.window, config.after, found.frame_count)])
    count = sum(last - first + 1 for first, last in ranges)
    rate_stated = any(stated.frames_per_second for stated in facts)
    notes = [*found.notes, *([] if rate_stated else version_warnings(found, dives))]
    if config.height > found.height and config.height > found.width:  # also of a video that is turned by 90 degrees
        notes.append(
            f"its pictures of {found.width}x{found.height} are enlarged to height {config.height}, which adds size and nothing else: --height 0 keeps them"
        )
    record = provenance(found, ranges, settings, notes)
    watch = RepeatWatch()
    with ThreadPoolExecutor(1) as reading:
        digest = reading.submit(sha256, source, lambda: pool.stopped)

        def frames() -> Iterator[tuple[int, bytes]]:
            if found.sequential:
                jpegs = _decoded_here(request_frames(found, ranges), config.height, config.quality, pool)
            else:
                jpegs = pool.jpegs(
                    (request_frames(found, [r]) for r in split_ranges(ranges)), config.height, config.quality
                )
            for numbered in jpegs:
                if watch.wants_more and not rate_stated:
                    watch.see(numbered[0], decode_grey(numbered[1], _WATCHED_HEIGHT))
                yield numbered
                on_frame()
            if period := watch.period:
                notes.append(repeat_warning(found.rate, period))
                record["notes"] = notes
            record["source"]["sha256"] = digest.result()

        write_archive(path, frames(), record)
    return Outcome(True, f"{count} frames of {found.frame_count}, {path.stat().st_size / 1e6:.1f} MB", tuple(notes))


def provenance(
    found: VideoScan, ranges: Sequence[FrameRange], settings: dict[str, int], notes: Sequence[str]
) -> dict[str, Any]:
    """Where an archive's frames come from and how they were made; the source's SHA-256 is added when it is known."""
    return {
        "source": {
            "name": found.path.name,
            "bytes": found.path.stat().st_size,
            "codec": found.codec,
            "width": found.width,
            "height": found.height,
            "frames_per_second": str(found.rate),
            "frames": found.frame_count,
            "decoded_frames": len(found.timestamps),
        },
        "settings": settings,
        "ranges": [list(r) for r in ranges],
        "notes": list(notes),
        "tools": {
            "av": av.__version__,
            "simplejpeg": simplejpeg.__version__,
            **{k: ".".join(map(str, v)) for k, v in av.library_versions.items()},
        },
    }


# ------------------------------------------------------------------------------------------------------------ many videos


def extract_videos(
    layout: DatasetLayout,
    work: dict[int, list[Dive]],
    config: ExtractConfig,
    facts: Mapping[int, Sequence[VideoFacts]] = MappingProxyType({}),
) -> dict[int, Outcome]:
    """Extract several videos with `config.processes` processes and a progress bar in frames."""
    expected = sum(
        last - first + 1
        for dives in work.values()
        for first, last in needed_ranges(dives, config.window, config.after, 10**9)
    )
    check_workers(config.processes)
    pool = DecodingPool(config.processes)
    bar = tqdm(total=expected, unit="frame", unit_scale=True, desc="extracting", disable=not sys.stderr.isatty())

    def one(video: int) -> Outcome:
        """Never an exception: one video's fault must not stop the others."""
        try:
            return extract_video(layout, video, work[video], config, pool, bar.update, facts.get(video, ()))
        except UserError as error:
            return Outcome(False, str(error))
        except Cancelled:
            return Outcome(False, f"video {video_name(video)}: interrupted")
        except Exception as error:
            if text := limit_error_text(error):
                return Outcome(False, f"video {video_name(video)}: {text}")
            return Outcome(False, f"video {video_name(video)}: unexpected, please report it\n{traceback.format_exc()}")

    told: list[int] = []

    def stop(number: int, _: FrameType | None) -> None:
        """Python drops an exception that a signal raises in the wrong moment (a weak reference's callback): the pool is
        told as well, so the work ends in any case."""
        told.append(number)
        pool.stopped = True
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores HUP
            signal.signal(number, stop)
    outcomes: dict[int, Outcome] = {}
    announced = announce_extraction(layout.frames, work, config.shard_count)
    with announced, bar, ThreadPoolExecutor(min(config.processes, len(work))) as threads:
        waiting = {threads.submit(one, video): video for video in work}
        try:
            while waiting:
                for future in wait(waiting, return_when="FIRST_COMPLETED").done:
                    video = waiting.pop(future)
                    outcomes[video] = outcome = future.result()
                    bar.write(f"video {video_name(video)}: {outcome.text if outcome.well else 'failed'}", sys.stdout)
                    for note in outcome.notes:
                        bar.write(f"video {video_name(video)}: note: {note}", sys.stdout)
        except BaseException:  # Ctrl-C, a signal: the videos under way leave nothing, the others are not begun
            pool.stop()
            threads.shutdown(wait=True, cancel_futures=True)
            raise
    pool.close()
    if told:
        raise SystemExit(128 + told[0])
    return dict(sorted(outcomes.items()))


def main(argv: Sequence[str]) -> int:
    config = parse(ExtractConfig, argv, prog="python -m data_preparation.extract", description=__doc__.splitlines()[0])
    layout, work = dataset_layout(config.dataset), config.dives_by_video()
    if not work:
        print("This shard has no video: nothing to do.")
        return 0
    facts = config.stated_facts()
    outcomes = extract_videos(layout, work, config, facts)
    failed = {video: outcome.text for video, outcome in outcomes.items() if not outcome.well}
    stated = {video for video, of_video in facts.items() if any(f.frames_per_second for f in of_video)}
    for video, note in rate_warnings(recorded_rates(layout.frames)).items():
        if video in work and video not in stated:
            print(f"video {video_name(video)}: note: {note}")
    print(f"{len(outcomes) - len(failed)} of {len(outcomes)} videos are extracted in {layout.frames}")
    made = {video: work[video] for video, outcome in outcomes.items() if outcome.well}
    if config.verify and made:
        reports = verify(layout, made, VerifyConfig(workers=config.workers), facts)
        print(report_text(reports))
        print(mark_videos_verified(layout.frames, [r.video for r in reports if not r.faults]))
        failed |= {
            r.video: "\n".join(f"video {video_name(r.video)}: {f}" for f in r.faults) for r in reports if r.faults
        }
    if failed:
        names = tuple(map(video_name, sorted(failed)))
        same = replace(config, dataset=layout.root, videos=names, again=config.verify, shard_index=0, shard_count=1)
        raise UserError.of([*failed.values(), f"again, when fixed: {command_text('extract', same)}"])
    return 0


if __name__ == "__main__":
    run(main)
