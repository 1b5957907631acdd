"""Verify a prepared data set: all frames of all dives exist and decode, archives match their records, all frames of a
video have one size, the splits are disjoint.

    python -m data_preparation.verify --dataset DIR [--sheets FOLDER]

With --sheets, draws one contact sheet per video: first, middle and last frame of each dive with its label, which makes
shifted labels visible. Exit status 0: no errors; 2: errors, listed with their fixes.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from data_preparation import datasets
from data_preparation.actions import Action, VideoFacts, video_order
from data_preparation.alignment import compare_with_video, sample_frames
from data_preparation.archive import FrameReader, adopt_command, extract_first, open_frames, source_rate
from data_preparation.common.command_line import flag, parse, run
from data_preparation.common.errors import UserError
from data_preparation.common.files import atomic_file, reporting_write_errors, sha256, write_atomic
from data_preparation.common.workers import WORKER_KILLED, check_workers, init_worker
from data_preparation.decoding import stored_size
from data_preparation.frame_numbers import scan_video
from data_preparation.layout import DatasetLayout, archive_file, dataset_layout
from data_preparation.loose_frames import is_frame_file
from data_preparation.many_videos import MAX_LINES, grouped_lines, names_text
from data_preparation.rates import fact_faults, rate_warnings
from data_preparation.running_extractions import Extraction, running_extractions
from data_preparation.shards import ShardConfig, command_text
from data_preparation.similar_files import names_in, numberings
from data_preparation.verified import mark_videos_verified

_MAX_LISTED_DIVES = 5  # dives of a video whose missing frames are listed one by one
_SHEET_HEIGHT = 96  # pixels; height of a frame on a contact sheet
_SHEET_COLUMNS = 4  # dives per row
_LABEL_HEIGHT, _GAP = 18, 12  # pixels


@dataclass(frozen=True)
class VerifyConfig(ShardConfig):
    """Verify a prepared data set."""

    train_path: Path | None = flag(None, "Train list; none uses the data set's own.")
    test_path: Path | None = flag(None, "Test list; none uses the data set's own.")
    sources: bool = flag(False, "Also compare the SHA-256 of each source video with its archive's record.")
    sheets: Path | None = flag(None, "Folder for contact sheets; without it none are drawn.")
    report: Path | None = flag(None, "Text file to write the report to. The report is always printed.")


@dataclass(frozen=True)
class VideoReport:
    """Result of verifying one video."""

    video: str
    dives: int
    frames: int = 0
    size_bytes: int = 0
    shapes: tuple[tuple[int, int], ...] = ()  # the distinct (height, width) of its frames
    origin: str = ""  # what the frames were made from
    settings: tuple[tuple[str, int], ...] = ()  # flags of the extraction
    faults: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    rate: Fraction | None = None  # frames per second of the source video
    source_frames: int | None = None  # as ffmpeg numbers them
    decoded_frames: int | None = None  # as a decoder counts them
    has_sheet: bool = False
    extraction_state: str = ""  # set if a running extraction explains why frames are missing


def dive_frame_faults(reader: FrameReader, dives: Sequence[Action]) -> list[str]:
    """Errors of dives that lack frames: a sentence each for the first few, and the number of the others."""
    faults: list[str] = []
    present = set(reader.numbers.tolist())
    for dive in dives:
        missing = [n for n in range(dive.start_frame, dive.end_frame + 1) if n not in present]
        if missing:
            faults.append(
                f"{dive.title}: {len(missing)} of {dive.frame_count} frames are missing, the first is {missing[0]}"
            )
    if len(faults) > _MAX_LISTED_DIVES:
        faults = [*faults[:_MAX_LISTED_DIVES], f"{len(faults) - _MAX_LISTED_DIVES} more {dives[0].noun}s lack frames"]
    if faults and reader.loose:
        others = numberings(name for name in names_in(reader.path) if not is_frame_file(name))
        faults += [f"{reader.path} also has {others[0].text}, which may be the missing frames"] if others else []
    return faults


def alignment_faults(
    layout: DatasetLayout, video: str, reader: FrameReader, dives: Sequence[Action]
) -> tuple[list[str], list[str]]:
    """(errors, warnings) about frames that another tool numbered, from a comparison with the source video if it exists."""
    try:
        scan = scan_video(layout.video_file(video))
    except UserError:
        return [], []  # nothing to compare with
    present = set(reader.numbers.tolist())
    result = compare_with_video(scan, [n for n in sample_frames(dives) if n in present], reader.image)
    if result.shift:
        frames = "frame" if abs(result.shift) == 1 else "frames"
        distance = f"{abs(result.shift)} {frames} {'late' if result.shift > 0 else 'early'}"
        fix = adopt_command(reader.path, "--first_number", 0) if result.shift == 1 and reader.loose else ""
        return [
            f"{reader.path}: its frames are {distance}: file N is frame N{result.shift:+d} of {scan.path.name} by ffmpeg's numbers; "
            + (f"they were numbered from 0: {fix}" if fix else "number them as ffmpeg does, or extract the video")
        ], []
    if result.rate:
        return [
            f"{reader.path}: its frames are those of a file of about {round(result.rate)} frames per second, and {scan.path.name} has {float(scan.rate):g}, so they are of another version than the one in whole_videos; remove these frames and extract the video, or remove the video if the labels count the other version's frames"
        ], []
    if result.compared and result.unmatched > result.compared / 2:
        return [], [
            f"{result.unmatched} of {result.compared} frames match no frame of {scan.path.name} near their number: they may be of another version or numbered differently; check the contact sheet"
        ]
    return [], []


def record_faults(reader: FrameReader, record: dict[str, Any], shapes: Counter[tuple[int, int]]) -> list[str]:
    """Differences between an archive and its provenance record, a sentence each."""
    faults = []
    recorded = np.concatenate([np.arange(first, last + 1) for first, last in record["ranges"]])
    source, height = record["source"], record["settings"]["height"]
    expected = stored_size(source["width"], source["height"], height)
    turned = stored_size(source["height"], source["width"], height)  # displayed with a rotation of 90 degrees
    absent, extra = np.setdiff1d(recorded, reader.numbers), np.setdiff1d(reader.numbers, recorded)
    if len(absent):
        faults.append(f"{len(absent)} frames of its record are missing, the first is {absent[0]}")
    if len(extra):
        faults.append(f"{len(extra)} frames are not in its record, the first is {extra[0]}")
    for height, width in shapes:
        if (width, height) not in (expected, turned):
            faults.append(f"frames have size {width}x{height}, and its record states {expected[0]}x{expected[1]}")
    return faults


def source_faults(layout: DatasetLayout, video: str, record: dict[str, Any]) -> list[str]:
    """The error if the source video is no longer the one that the archive was made from."""
    source = layout.video_file(video)
    made_from = record.get("source", {})
    if sha256(source) != made_from.get("sha256"):
        return [f"{source} is not the file that the archive was made from (another SHA-256)"]
    return []


def verify_video(
    layout: DatasetLayout, video: str, dives: Sequence[Action], config: VerifyConfig, classes: Sequence[str] = ()
) -> VideoReport:
    """Verify one video: read and decode all stored frames and, with --sheets, draw the contact sheet."""
    try:
        reader = open_frames(layout.frames, video)
        archived = reader.loose is None
        record = reader.provenance
        faults = dive_frame_faults(reader, dives)
        needed = {n for d in dives for n in range(d.start_frame, d.end_frame + 1)}
        checked = reader.numbers if archived else reader.numbers[np.isin(reader.numbers, list(needed))]
        shapes: Counter[tuple[int, int]] = Counter()
        damaged: list[str] = []
        for number in checked.tolist():
            try:
                shapes[reader.image(number).shape[:2]] += 1
            except UserError as error:
                damaged.append(str(error))
        faults += damaged[:3]
        if len(damaged) > 3:
            faults.append(f"{reader.path}: {len(damaged) - 3} more frames are damaged")
        if len(shapes) > 1:
            listed = ", ".join(f"{w}x{h} ({count} frames)" for (h, w), count in shapes.most_common())
            faults.append(f"{reader.path}: frames of several sizes ({listed})")
        warnings = list(map(str, record.get("notes", ())))
        if reader.loose and reader.loose.from_zero:
            first = reader.numbers[0]
            warnings.append(f"its files count from 0, so {reader.loose.path(first).name} is read as frame {first}")
        if not archived or "folder" in record.get("adopted", {}):  # another tool numbered them
            shift_faults, shift_warnings = alignment_faults(layout, video, reader, dives)
            faults, warnings = faults + shift_faults, warnings + shift_warnings
        if archived:
            faults += [f"{reader.path}: {fault}" for fault in record_faults(reader, record, shapes)]
            if config.sources and "adopted" not in record:
                faults += source_faults(layout, video, record)
    except UserError as error:
        return VideoReport(video, len(dives), faults=tuple(str(error).splitlines()))
    drawable: list[Action] = []
    if config.sheets and (drawable := _drawable(reader, dives, faults)):
        sheet = config.sheets / f"{video}.png"
        with reporting_write_errors(sheet), atomic_file(sheet) as temporary:
            contact_sheet(reader, drawable, classes).save(temporary, format="PNG")
    source = record.get("source", {})
    rate = source.get("frames_per_second")
    origin = str(source.get("name")) + (f" at {rate} fps" if rate else "") if archived else "loose frames"
    size = reader.path.stat().st_size if archived else 0
    settings = tuple(sorted(record.get("settings", {}).items()))
    return VideoReport(
        video, len(dives), len(checked), size, tuple(shapes), origin, settings, tuple(faults), tuple(warnings),
        source_rate(record), source.get("frames"), source.get("decoded_frames"), bool(drawable),
    )  # fmt: skip


# -------------------------------------------------------------------------------------------------------- contact sheet


def _drawable(reader: FrameReader, dives: Sequence[Action], faults: Sequence[str]) -> list[Action]:
    if not faults:
        return list(dives)
    drawable = []
    for dive in dives:
        try:
            for number in _sheet_frames(dive):
                reader.image(number)
            drawable.append(dive)
        except UserError:
            pass  # already in the report
    return drawable


def _sheet_frames(dive: Action) -> tuple[int, int, int]:
    return dive.start_frame, (dive.start_frame + dive.end_frame) // 2, dive.end_frame


def contact_sheet(reader: FrameReader, dives: Sequence[Action], classes: Sequence[str] = ()) -> Image.Image:
    """Draw the first, middle and last frame of each dive under its label."""

    def thumbnail(number: int) -> Image.Image:
        image = Image.fromarray(reader.image(number))
        return image.resize((round(image.width * _SHEET_HEIGHT / image.height), _SHEET_HEIGHT))

    strips = []
    for d in dives:
        images = [thumbnail(n) for n in _sheet_frames(d)]
        label = f"{d.name}  {d.label_text(classes)}  frames {d.start_frame}-{d.end_frame}"
        width = max(sum(i.width for i in images), int(ImageDraw.Draw(images[0]).textlength(label))) + _GAP
        strip = Image.new("RGB", (width, _SHEET_HEIGHT + _LABEL_HEIGHT + 4), "white")
        ImageDraw.Draw(strip).text((2, 4), label, fill="black")
        left = 0
        for image in images:
            strip.paste(image, (left, _LABEL_HEIGHT))
            left += image.width
        strips.append(strip)
    columns, rows = min(len(strips), _SHEET_COLUMNS), -(-len(strips) // _SHEET_COLUMNS)
    cell_width, cell_height = max(s.width for s in strips), strips[0].height
    sheet = Image.new("RGB", (cell_width * columns, cell_height * rows), "white")
    for i, strip in enumerate(strips):
        sheet.paste(strip, ((i % columns) * cell_width, (i // columns) * cell_height))
    return sheet


# ----------------------------------------------------------------------------------------------------- the whole data set


def verify(
    layout: DatasetLayout,
    work: dict[str, list[Action]],
    config: VerifyConfig,
    facts: Mapping[str, Sequence[VideoFacts]] = MappingProxyType({}),
    classes: Sequence[str] = (),
) -> list[VideoReport]:
    """Verify several videos, `config.processes` at a time, with a progress bar.

    A video that a running extraction has not finished yet is reported as such, not as faulty.
    """
    before = running_extractions(layout.frames)
    check_workers(min(config.processes, len(work)))
    # spawn, not fork: this process may have threads
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(config.processes, len(work)), context, init_worker) as pool:
        pending = [pool.submit(verify_video, layout, video, dives, config, classes) for video, dives in work.items()]
        done = tqdm(
            as_completed(pending), total=len(work), desc="verifying", unit="video", disable=not sys.stderr.isatty()
        )
        try:
            reports = sorted((future.result() for future in done), key=lambda report: video_order(report.video))
        except BrokenProcessPool:
            raise UserError(WORKER_KILLED) from None
    reports = [_with_stated_faults(report, facts.get(report.video, ())) for report in reports]
    running = [*before, *running_extractions(layout.frames)]
    return [_with_extraction(layout, report, running) for report in reports]


def _with_extraction(layout: DatasetLayout, report: VideoReport, running: Sequence[Extraction]) -> VideoReport:
    """The report, with `extraction_state` set if a running extraction explains its errors."""
    if not report.faults:
        return report
    if any(report.video in e.videos for e in running):
        return replace(report, extraction_state="extraction running")
    absent = not archive_file(layout.frames, report.video).exists()
    if absent and any(e.shards > 1 for e in running):  # another task of the job array extracts it, and may be pending
        return replace(report, extraction_state="not extracted yet; an extraction of another shard is running")
    return report


def _with_stated_faults(report: VideoReport, facts: Sequence[VideoFacts]) -> VideoReport:
    """The report, with errors added if the source is not the version that annotations or catalogue state."""
    name = report.origin.split(" at ")[0]
    found = [
        f
        for stated in facts
        for f in fact_faults(stated, report.rate, report.source_frames, report.decoded_frames, name)
    ]
    return replace(report, faults=(*report.faults, *found))


def height_faults(reports: Sequence[VideoReport]) -> list[str]:
    """Errors of videos whose frames have another height than those of most videos."""
    heights = {r.video: r.shapes[0][0] for r in reports if len(r.shapes) == 1}
    if len(set(heights.values())) < 2:
        return []
    usual = Counter(heights.values()).most_common(1)[0][0]
    return grouped_lines(
        (video, f"frames of height {height}, and those of most videos have {usual}")
        for video, height in heights.items()
        if height != usual
    )


def _state(report: VideoReport) -> str:
    if report.extraction_state:
        return f"   {report.extraction_state}"
    if is_absent(report):
        return "   not extracted"
    return "   FAULTY" if report.faults else ""


def is_absent(report: VideoReport) -> bool:
    """Whether a video was not extracted yet, and no other file or folder may be its frames."""
    return bool(report.faults) and report.faults[0].endswith(extract_first(report.video))


def report_text(reports: Sequence[VideoReport]) -> str:
    """The report as a table: a row per video or, if there are many, per faulty video and per folder of the others."""
    wide = max(5, *(len(r.video) for r in reports)) if len(reports) <= MAX_LINES else 5
    lines = [f"{'video':<{wide}} actions    frames     size       MB   made from"]
    for r in reports if len(reports) <= MAX_LINES else _joined_by_folder(reports):
        size = "x".join(map(str, reversed(r.shapes[0]))) if len(r.shapes) == 1 else "?"
        lines.append(
            f"{r.video:>{wide}} {r.dives:>7} {r.frames:>9} {size:>8} {r.size_bytes / 1e6:>8.1f}   {r.origin}{_state(r)}"
        )
    lines.append(
        f"{'total':<{wide}} {sum(r.dives for r in reports):>7} {sum(r.frames for r in reports):>9} {'':>8} {sum(r.size_bytes for r in reports) / 1e6:>8.1f}"
    )
    return "\n".join(lines)


def _noun(work: Mapping[str, Sequence[Action]]) -> str:
    """What an action of these videos is called."""
    return next(iter(work.values()))[0].noun


def _joined_by_folder(reports: Sequence[VideoReport]) -> list[VideoReport]:
    """The reports of faulty videos as they are, at most MAX_LINES, and one for all other videos of each folder."""
    groups: dict[str, list[VideoReport]] = {}
    faulty = [report for report in reports if report.faults]
    for report in reports:
        if not report.faults:
            groups.setdefault(report.video.rpartition("/")[0], []).append(report)
    joined = [
        VideoReport(
            f"{folder}/" if folder else "others",
            sum(r.dives for r in of_folder),
            sum(r.frames for r in of_folder),
            sum(r.size_bytes for r in of_folder),
            tuple({shape for r in of_folder for shape in r.shapes}),
            f"{len(of_folder)} videos",
        )
        for folder, of_folder in groups.items()
    ]
    return [*faulty[:MAX_LINES], *joined]


def main(argv: Sequence[str]) -> int:
    config = parse(VerifyConfig, argv, prog="python -m data_preparation.verify", description=__doc__.splitlines()[0])
    layout, work = dataset_layout(config.dataset), config.actions_by_video()
    if not work:
        print("This shard has no video: nothing to do.")
        return 0
    files = config.annotation_files
    if datasets.reads_lists(config.dataset_kind):
        own = (layout.own_list(name, config.dataset_kind) for name in ("train", "test"))
        train, test = (given or found for given, found in zip((config.train_path, config.test_path), own, strict=True))
        files = replace(files, train=train, test=test)
    data = datasets.read(config.dataset_kind, files)
    facts = config.stated_facts()
    reports = verify(layout, work, config, facts, data.classes)
    remembered = mark_videos_verified(layout.frames, [r.video for r in reports if not r.faults])
    other_heights = height_faults(reports)
    unfinished = [r for r in reports if r.extraction_state]
    faulty = [r for r in reports if r.faults and not r.extraction_state]
    text = (
        report_text(reports)
        + f"\n{len(work)} videos, {sum(r.dives for r in reports)} {_noun(work)}s; {data.splits_text}"
    )
    if warnings := all_warnings(reports, facts):
        text += "\n" + "\n".join(warnings)
    absent = [r.video for r in faulty if is_absent(r)]
    faults = [*data.faults, *_absent_faults(absent, len(reports), layout)]
    missing = set(absent)
    faults += grouped_lines((r.video, fault) for r in faulty if r.video not in missing for fault in r.faults)
    faults += other_heights
    for state in dict.fromkeys(r.extraction_state for r in unfinished):
        names = names_text([r.video for r in unfinished if r.extraction_state == state])
        faults.append(f"video {names}: {state}: verify again when the extraction has ended")
    if faults:
        text += "\n\n" + "\n".join(faults)
    else:
        text += f"\n\nAll frames of all {_noun(work)}s exist and decode{'; the splits are disjoint' if data.splits else ''}."
        text += " Read the warnings above." if warnings else ""
        text += f"\n{remembered}"
    if config.report:
        with reporting_write_errors(config.report):
            write_atomic(config.report, (text + "\n").encode())
    print(text.split("\n\n")[0] if faults else text)
    if drawn := sum(r.has_sheet for r in reports):
        print(f"Contact sheets: {drawn} in {config.sheets}")
    if not faults:
        return 0
    again = [r.video for r in faulty if _extraction_helps(r)] or (list(work) if other_heights else [])
    if again:
        faults.append(
            f"{'extract them' if set(again) <= set(absent) else 'extract again'}: {_extract_command(layout, again, reports, config)}"
        )
    raise UserError.of(faults)


def all_warnings(reports: Sequence[VideoReport], facts: Mapping[str, Sequence[VideoFacts]]) -> list[str]:
    """All warnings, a line each: those of the videos, and those about frame rates that differ between videos."""
    of_rates = rate_warnings({r.video: r.rate for r in reports if r.rate})
    stated = {video for video, of_video in facts.items() if any(f.frames_per_second for f in of_video)}
    found = []
    for r in reports:
        of_rate = [of_rates[r.video]] if r.video in of_rates and r.video not in stated else []
        found += [(r.video, f"warning: {warning}") for warning in (*r.warnings, *of_rate)]
    return grouped_lines(found)


def _absent_faults(videos: Sequence[str], total: int, layout: DatasetLayout) -> list[str]:
    """The error about videos that were not extracted yet, in one sentence."""
    if not videos:
        return []
    names = names_text(videos)
    return [
        f"{len(videos)} of {total} videos are not extracted ({names}; no {archive_file(layout.frames, videos[0]).name} in {layout.frames}): if job_files/prepare_dataset.job is in the queue (squeue --me), verify again when it has ended"
    ]


def _extraction_helps(report: VideoReport) -> bool:
    """Whether extracting again can fix a video. Not if its messages name misnamed frames or another version."""
    others = ("data_preparation.adopt", "rename ", "another version")
    return not any(words in fault for fault in report.faults for words in others)


def _extract_command(
    layout: DatasetLayout, videos: Sequence[str], reports: Sequence[VideoReport], config: VerifyConfig
) -> str:
    """The command that extracts videos again, with the settings of most archives."""
    names = tuple(videos) if len(videos) <= MAX_LINES else config.videos  # finished videos are skipped
    chosen = ShardConfig(layout.root, names, config.annotation_path, config.dataset_kind)
    usual = Counter(r.settings for r in reports if r.settings).most_common(1)
    flags = [word for name, value in (usual[0][0] if usual else ()) for word in (f"--{name}", value)]
    exists = any(archive_file(layout.frames, video).exists() for video in videos)
    return command_text("extract", chosen, *(("--again", True) if exists else ()), *flags)


if __name__ == "__main__":
    run(main)
