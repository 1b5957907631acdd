"""Check a prepared data set: every frame of every dive is there and decodes, sizes are uniform, splits are disjoint.

    python -m data_preparation.verify --dataset DIR [--sheets FOLDER]

With --sheets, a picture a video: first, middle and last frame of each dive with its label, so that shifted labels are
seen at a glance. Exit status 0: all is well; 2: something to extract again, listed.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from data_preparation.annotations import Dive, check_disjoint, load_annotations, load_split, select
from data_preparation.archive import FrameReader, open_frames
from data_preparation.cli import UserError, flag, parse, run
from data_preparation.extract import dataset_layout
from data_preparation.layout import DatasetLayout, video_name

_SHEET_HEIGHT = 96  # pixels of a picture on a contact sheet
_SHEET_COLUMNS = 4  # dives in a row


@dataclass(frozen=True)
class VerifyConfig:
    """Check a prepared data set."""

    dataset: Path | None = flag(None, "Data set folder; none takes DEEPSPORTS_DATASET of job_files/environment.sh.")
    annotation_path: Path | None = flag(None, "Annotation pickle; none takes the data set's own.")
    train_path: Path | None = flag(None, "Train list; none takes the data set's own.")
    test_path: Path | None = flag(None, "Test list; none takes the data set's own.")
    sheets: Path | None = flag(None, "Folder for contact sheets; none draws none.")


def verify_video(reader: FrameReader, dives: Sequence[Dive]) -> list[str]:
    """What is wrong with one video's frames, a sentence each."""
    faults = []
    present = set(reader.numbers.tolist())
    sizes: Counter[tuple[int, ...]] = Counter()
    for dive in dives:
        numbers = range(dive.start_frame, dive.end_frame + 1)
        missing = [n for n in numbers if n not in present]
        if missing:
            faults.append(
                f"dive {dive.name}: {len(missing)} of {dive.frame_count} frames are missing, the first is {missing[0]}"
            )
            continue
        try:
            sizes.update(reader.image(n).shape[:2] for n in numbers)
        except UserError as error:
            faults.append(f"dive {dive.name}: {error}")
    if len(sizes) > 1:
        listed = ", ".join(f"{w}x{h} ({count} frames)" for (h, w), count in sizes.most_common())
        faults.append(f"{reader.path}: frames of several sizes ({listed})")
    source = reader.provenance.get("source")
    if source and max(d.end_frame for d in dives) > source["frames"]:
        faults.append(f"{reader.path}: made from a video of {source['frames']} frames, and dives end later")
    return faults


def contact_sheet(reader: FrameReader, dives: Sequence[Dive]) -> Image.Image:
    """First, middle and last frame of each dive, with its label above."""

    def picture(number: int) -> Image.Image:
        image = Image.fromarray(reader.image(number))
        return image.resize((round(image.width * _SHEET_HEIGHT / image.height), _SHEET_HEIGHT))

    strips = []
    for d in dives:
        pictures = [picture(n) for n in (d.start_frame, (d.start_frame + d.end_frame) // 2, d.end_frame)]
        width = sum(p.width for p in pictures)
        strip = Image.new("RGB", (width + 12, _SHEET_HEIGHT + 22), "white")
        label = f"{d.name}  {d.dive_number or ''}  DD {d.difficulty:g}  score {d.final_score:g}  frames {d.start_frame}-{d.end_frame}"
        ImageDraw.Draw(strip).text((2, 4), label, fill="black")
        left = 0
        for p in pictures:
            strip.paste(p, (left, 18))
            left += p.width
        strips.append(strip)
    rows = -(-len(strips) // _SHEET_COLUMNS)
    sheet = Image.new("RGB", (strips[0].width * min(len(strips), _SHEET_COLUMNS), strips[0].height * rows), "white")
    for i, strip in enumerate(strips):
        sheet.paste(strip, ((i % _SHEET_COLUMNS) * strips[0].width, (i // _SHEET_COLUMNS) * strips[0].height))
    return sheet


def verify(layout: DatasetLayout, config: VerifyConfig) -> tuple[list[str], list[int]]:
    """(what is wrong, a sentence each; the videos to extract again).

    Raises:
        UserError: the annotation or split files themselves are unreadable or contradict each other.
    """
    dives = load_annotations(config.annotation_path or layout.annotation_file)
    train, test = load_split(config.train_path or layout.train_file), load_split(config.test_path or layout.test_file)
    check_disjoint(train, test)
    used = [*select(dives, train, "the train list"), *select(dives, test, "the test list")]
    by_video: dict[int, list[Dive]] = {}
    for dive in sorted(used, key=lambda d: d.key):
        by_video.setdefault(dive.video, []).append(dive)
    faults: list[str] = []
    again: list[int] = []
    frames = 0
    for video, its in tqdm(by_video.items(), desc="verifying", unit="video", disable=not sys.stderr.isatty()):
        try:
            reader = open_frames(layout.frames, video)
            found = verify_video(reader, its)
            frames += int(
                np.isin(reader.numbers, np.concatenate([np.arange(d.start_frame, d.end_frame + 1) for d in its])).sum()
            )
            if config.sheets and not found:
                config.sheets.mkdir(parents=True, exist_ok=True)
                contact_sheet(reader, its).save(config.sheets / f"{video_name(video)}.png")
        except UserError as error:
            found = str(error).splitlines()
        if found:
            faults += [f"video {video_name(video)}: {fault}" for fault in found]
            again.append(video)
    print(
        f"{len(by_video)} videos, {len(used)} dives ({len(train)} train, {len(test)} test), {frames} frames of dives on disk"
    )
    return faults, again


def main(argv: Sequence[str]) -> int:
    config = parse(VerifyConfig, argv, prog="python -m data_preparation.verify", description=__doc__.splitlines()[0])
    layout = dataset_layout(config.dataset)
    faults, again = verify(layout, config)
    if faults:
        raise UserError.of(
            [
                *faults,
                f"extract again: python -m data_preparation.extract --dataset {layout.root} --again True --videos {' '.join(map(video_name, again))}",
            ]
        )
    print("All frames of all dives are there and decode; the splits are disjoint.")
    if config.sheets:
        print(f"Contact sheets: {config.sheets}")
    return 0


if __name__ == "__main__":
    run(main)
