"""Check a prepared data set: every frame of every dive is there and decodes, archives are what their records say, sizes
are uniform, splits are disjoint.

    python -m data_preparation.verify --dataset DIR [--sheets FOLDER]

With --sheets, a picture a video: first, middle and last frame of each dive with its label, so that shifted labels are
seen at a glance. Exit status 0: all is well; 2: something to extract again, listed.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from data_preparation.annotations import list_faults, load_split
from data_preparation.archive import FrameReader, open_frames
from data_preparation.cli import UserError, flag, parse, run
from data_preparation.decoding import stored_size
from data_preparation.dives import Dive
from data_preparation.files import sha256, whole_file, write_whole, writing
from data_preparation.layout import DatasetLayout, archive_file, dataset_layout, video_name
from data_preparation.shares import ShareConfig, command_text
from data_preparation.verified import mark_verified
from data_preparation.workers import check_workers, follow_parent

_SHEET_HEIGHT = 96  # pixels of a picture on a contact sheet
_SHEET_COLUMNS = 4  # dives in a row
_LABEL_HEIGHT, _GAP = 18, 12


@dataclass(frozen=True)
class VerifyConfig(ShareConfig):
    """Check a prepared data set."""

    train_path: Path | None = flag(None, "Train list; none takes the data set's own.")
    test_path: Path | None = flag(None, "Test list; none takes the data set's own.")
    sources: bool = flag(False, "Also compare the SHA-256 of the source videos with the archives' records.")
    sheets: Path | None = flag(None, "Folder for contact sheets; none draws none.")
    report: Path | None = flag(None, "Text file for the report, which is printed in any case.")


@dataclass(frozen=True)
class VideoReport:
    """What was found of one video: `shapes` counts the (height, width) of its frames."""

    video: int
    dives: int
    frames: int = 0
    size_bytes: int = 0
    shapes: tuple[tuple[int, int], ...] = ()
    origin: str = ""
    settings: tuple[tuple[str, int], ...] = ()  # flags that the archive was made with
    faults: tuple[str, ...] = ()


def dive_frame_faults(reader: FrameReader, dives: Sequence[Dive]) -> list[str]:
    """Dives whose frames are not all there, a sentence each."""
    faults = []
    present = set(reader.numbers.tolist())
    for dive in dives:
        missing = [n for n in range(dive.start_frame, dive.end_frame + 1) if n not in present]
        if missing:
            faults.append(
                f"dive {dive.name}: {len(missing)} of {dive.frame_count} frames are missing, the first is {missing[0]}"
            )
    return faults


def record_faults(reader: FrameReader, record: dict[str, Any], shapes: Counter[tuple[int, int]]) -> list[str]:
    """Where an archive is not what its provenance record says, a sentence each."""
    faults = []
    recorded = np.concatenate([np.arange(first, last + 1) for first, last in record["ranges"]])
    source, height = record["source"], record["settings"]["height"]
    expected = stored_size(source["width"], source["height"], height)
    turned = stored_size(source["height"], source["width"], height)  # a display rotation of 90 degrees
    absent, extra = np.setdiff1d(recorded, reader.numbers), np.setdiff1d(reader.numbers, recorded)
    if len(absent):
        faults.append(f"{len(absent)} frames of its record are missing, the first is {absent[0]}")
    if len(extra):
        faults.append(f"{len(extra)} frames are not in its record, the first is {extra[0]}")
    for height, width in shapes:
        if (width, height) not in (expected, turned):
            faults.append(f"frames of {width}x{height}, its record says {expected[0]}x{expected[1]}")
    return faults


def source_faults(layout: DatasetLayout, video: int, record: dict[str, Any]) -> list[str]:
    """Whether the source video is still the one that the archive was made of."""
    source = layout.video_file(video)
    made_from = record.get("source", {})
    if sha256(source) != made_from.get("sha256"):
        return [f"{source} is not the file that the archive was made of (another SHA-256)"]
    return []


def verify_video(layout: DatasetLayout, video: int, dives: Sequence[Dive], config: VerifyConfig) -> VideoReport:
    """Check one video: reads and decodes all its stored frames, and draws its contact sheet if asked to."""
    try:
        reader = open_frames(layout.frames, video)
        archived = not reader.path.is_dir()
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
        if archived:
            faults += [f"{reader.path}: {fault}" for fault in record_faults(reader, record, shapes)]
            if config.sources:
                faults += source_faults(layout, video, record)
    except UserError as error:
        return VideoReport(video, len(dives), faults=tuple(str(error).splitlines()))
    if config.sheets and (drawable := _drawable(reader, dives, faults)):
        sheet = config.sheets / f"{video_name(video)}.png"
        with writing(sheet), whole_file(sheet) as temporary:
            contact_sheet(reader, drawable).save(temporary, format="PNG")
    source = record.get("source", {})
    origin = f"{source.get('name')} at {source.get('frames_per_second')} fps" if archived else "loose frames"
    size = reader.path.stat().st_size if archived else 0
    settings = tuple(sorted(record.get("settings", {}).items()))
    return VideoReport(video, len(dives), len(checked), size, tuple(shapes), origin, settings, tuple(faults))


# -------------------------------------------------------------------------------------------------------- contact sheet


def _drawable(reader: FrameReader, dives: Sequence[Dive], faults: Sequence[str]) -> list[Dive]:
    if not faults:
        return list(dives)
    drawable = []
    for dive in dives:
        try:
            for number in _shown(dive):
                reader.image(number)
            drawable.append(dive)
        except UserError:
            pass  # named in the report
    return drawable


def _shown(dive: Dive) -> tuple[int, int, int]:
    return dive.start_frame, (dive.start_frame + dive.end_frame) // 2, dive.end_frame


def contact_sheet(reader: FrameReader, dives: Sequence[Dive]) -> Image.Image:
    """First, middle and last frame of each dive, with its label above."""

    def picture(number: int) -> Image.Image:
        image = Image.fromarray(reader.image(number))
        return image.resize((round(image.width * _SHEET_HEIGHT / image.height), _SHEET_HEIGHT))

    strips = []
    for d in dives:
        pictures = [picture(n) for n in _shown(d)]
        label = f"{d.name}  {d.dive_number or ''}  DD {d.difficulty:g}  score {d.final_score:g}  frames {d.start_frame}-{d.end_frame}"
        width = max(sum(p.width for p in pictures), int(ImageDraw.Draw(pictures[0]).textlength(label))) + _GAP
        strip = Image.new("RGB", (width, _SHEET_HEIGHT + _LABEL_HEIGHT + 4), "white")
        ImageDraw.Draw(strip).text((2, 4), label, fill="black")
        left = 0
        for p in pictures:
            strip.paste(p, (left, _LABEL_HEIGHT))
            left += p.width
        strips.append(strip)
    columns, rows = min(len(strips), _SHEET_COLUMNS), -(-len(strips) // _SHEET_COLUMNS)
    cell_width, cell_height = max(s.width for s in strips), strips[0].height
    sheet = Image.new("RGB", (cell_width * columns, cell_height * rows), "white")
    for i, strip in enumerate(strips):
        sheet.paste(strip, ((i % columns) * cell_width, (i // columns) * cell_height))
    return sheet


# ----------------------------------------------------------------------------------------------------- the whole data set


def verify(layout: DatasetLayout, work: dict[int, list[Dive]], config: VerifyConfig) -> list[VideoReport]:
    """Check several videos, `config.processes` at a time, with a progress bar."""
    check_workers(min(config.processes, len(work)))
    # spawned, not forked: nothing of a parent with threads is carried over
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(config.processes, len(work)), context, follow_parent) as pool:
        waiting = [pool.submit(verify_video, layout, video, dives, config) for video, dives in work.items()]
        done = tqdm(
            as_completed(waiting), total=len(work), desc="verifying", unit="video", disable=not sys.stderr.isatty()
        )
        try:
            reports = sorted((future.result() for future in done), key=lambda report: report.video)
        except BrokenProcessPool:
            raise UserError("a worker process was killed: out of memory? Use fewer --workers") from None
    for report in reports:
        if not report.faults:
            with suppress(OSError):  # frames of others, read only: then nobody remembers
                mark_verified(layout.frames, report.video)
    return reports


def height_faults(reports: Sequence[VideoReport]) -> list[str]:
    """Videos whose frames have another height than most, a sentence each."""
    heights = {r.video: r.shapes[0][0] for r in reports if len(r.shapes) == 1}
    if len(set(heights.values())) < 2:
        return []
    usual = Counter(heights.values()).most_common(1)[0][0]
    return [
        f"video {video_name(video)}: frames of height {height}, those of the other videos have {usual}"
        for video, height in heights.items()
        if height != usual
    ]


def report_text(reports: Sequence[VideoReport]) -> str:
    """The report as a table, a row a video."""
    lines = ["video   dives    frames     size       MB   made of"]
    for r in reports:
        size = "x".join(map(str, reversed(r.shapes[0]))) if len(r.shapes) == 1 else "?"
        lines.append(
            f"{video_name(r.video):>5} {r.dives:>7} {r.frames:>9} {size:>8} {r.size_bytes / 1e6:>8.1f}   {r.origin}{'   FAULTY' if r.faults else ''}"
        )
    lines.append(
        f"total {sum(r.dives for r in reports):>7} {sum(r.frames for r in reports):>9} {'':>8} {sum(r.size_bytes for r in reports) / 1e6:>8.1f}"
    )
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    config = parse(VerifyConfig, argv, prog="python -m data_preparation.verify", description=__doc__.splitlines()[0])
    layout, work = dataset_layout(config.dataset), config.dives_by_video()
    if not work:
        print("No video falls to this share: nothing to do.")
        return 0
    train, test = load_split(config.train_path or layout.train_file), load_split(config.test_path or layout.test_file)
    annotated = ShareConfig(dataset=config.dataset, annotation_path=config.annotation_path).dives_by_video()
    lists = list_faults({d.key: d for dives in annotated.values() for d in dives}, train, test)
    reports = verify(layout, work, config)
    odd_heights = height_faults(reports)
    text = (
        report_text(reports)
        + f"\n{len(work)} videos, {sum(r.dives for r in reports)} dives; the lists name {len(train)} to train and {len(test)} to test"
    )
    faults = [*lists, *(f"video {video_name(r.video)}: {fault}" for r in reports for fault in r.faults), *odd_heights]
    if faults:
        text += "\n\n" + "\n".join(faults)
    else:
        text += "\n\nAll frames of all dives are there and decode; the splits are disjoint."
    if config.report:
        with writing(config.report):
            write_whole(config.report, (text + "\n").encode())
    print(text.split("\n\n")[0] if faults else text)
    if config.sheets:
        print(f"Contact sheets: {config.sheets}")
    if not faults:
        return 0
    again = [r.video for r in reports if r.faults] or (list(work) if odd_heights else [])
    if again:
        faults.append(f"extract again: {_repair(layout, again, reports, config)}")
    raise UserError.of(faults)


def _repair(layout: DatasetLayout, videos: Sequence[int], reports: Sequence[VideoReport], config: VerifyConfig) -> str:
    """The command that extracts videos again, with the settings that most archives have."""
    same = ShareConfig(layout.root, tuple(map(video_name, videos)), config.annotation_path)
    usual = Counter(r.settings for r in reports if r.settings).most_common(1)
    flags = [word for name, value in (usual[0][0] if usual else ()) for word in (f"--{name}", value)]
    there = any(archive_file(layout.frames, video).exists() for video in videos)
    return command_text("extract", same, *(("--again", True) if there else ()), *flags)


if __name__ == "__main__":
    run(main)
