"""Unpack frame archives to the loose layout whole_videos_frames/NN/000001.jpg, which other tools read.

python -m data_preparation.export --dataset DIR [--videos 01 02] [--output FOLDER]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from data_preparation.actions import chosen_videos, is_chosen
from data_preparation.archive import PROVENANCE, FrameReader
from data_preparation.common.command_line import flag, parse, run
from data_preparation.common.errors import UserError
from data_preparation.common.files import atomic_folder, reporting_write_errors
from data_preparation.layout import archive_file, archived_videos, dataset_layout, frame_name, loose_dir


@dataclass(frozen=True)
class ExportConfig:
    """Unpack frame archives to loose frames."""

    dataset: Path | None = flag(None, "Data set folder; none uses DEEPSPORTS_DATASET of job_files/environment.sh.")
    videos: tuple[str, ...] = flag(
        ("all",), "Videos to unpack: all (those with an archive), or numbers.", allowed="all, or numbers"
    )
    output: Path | None = flag(None, "Folder for NN/000001.jpg ...; none uses the folder of the archives.")


def export_video(archive: Path, folder: Path) -> int:
    """Unpack an archive and its provenance record to `folder`, atomically. Returns the number of frames.

    Raises:
        UserError: the folder exists already, the archive is damaged, or the disk is full.
    """
    if folder.exists():
        raise UserError(f"{folder} exists already: remove it, or give another --output")
    reader = FrameReader(archive)
    numbers = tqdm(reader.numbers.tolist(), desc=folder.name, unit="frame", disable=not sys.stderr.isatty())
    with reporting_write_errors(folder), atomic_folder(folder) as temporary:
        for number in numbers:
            (temporary / frame_name(number)).write_bytes(reader.read(number))
        (temporary / PROVENANCE).write_text(json.dumps(reader.provenance, indent=2))
    return len(reader.numbers)


def main(argv: Sequence[str]) -> int:
    config = parse(ExportConfig, argv, prog="python -m data_preparation.export", description=__doc__.splitlines()[0])
    frames = dataset_layout(config.dataset).frames
    archived = archived_videos(frames)
    wanted = chosen_videos(config.videos)
    unknown = [name for name in wanted or () if not any(is_chosen(video, {name}) for video in archived)]
    if unknown or not archived:
        raise UserError(
            f"{frames} has no archive of {' '.join(unknown) or 'any video'}; it has {' '.join(archived) or 'none'}"
        )
    faults = []
    for video in (video for video in archived if is_chosen(video, wanted)):
        try:
            folder = loose_dir(config.output or frames, video)
            print(f"{folder}: {export_video(archive_file(frames, video), folder)} frames")
        except UserError as error:
            faults.append(str(error))
    if faults:
        raise UserError.of(faults)
    return 0


if __name__ == "__main__":
    run(main)
