"""Turn frame archives back into the original's loose layout, whole_videos_frames/NN/000001.jpg, for other tools.

python -m data_preparation.export --dataset DIR [--videos 01 02] [--output FOLDER]
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from data_preparation.archive import PROVENANCE, FrameReader
from data_preparation.common.command_line import flag, parse, run
from data_preparation.common.errors import UserError
from data_preparation.common.files import atomic_folder, reporting_write_errors
from data_preparation.layout import archive_file, dataset_layout, frame_name, loose_dir, prepared_videos, video_name


@dataclass(frozen=True)
class ExportConfig:
    """Turn frame archives back into loose frames."""

    dataset: Path | None = flag(None, "Data set folder; none takes DEEPSPORTS_DATASET of job_files/environment.sh.")
    videos: tuple[str, ...] = flag(("all",), "Videos: all that have an archive, or numbers.", allowed="all, or numbers")
    output: Path | None = flag(None, "Folder for NN/000001.jpg ...; none puts them beside the archives.")


def export_video(archive: Path, folder: Path) -> int:
    """Write every frame of an archive, and its provenance record, to a folder that appears when it is whole; returns
    the number of frames.

    Raises:
        UserError: the folder is there already, the archive is damaged, or the disk is full.
    """
    if folder.exists():
        raise UserError(f"{folder} is there already: remove it, or name another --output")
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
    archived = [video for video in prepared_videos(frames) if archive_file(frames, video).exists()]
    asked = [video_name(v) for v in archived] if [v.lower() for v in config.videos] == ["all"] else config.videos
    unknown = [name for name in asked if not (re.fullmatch("[0-9]{1,6}", name) and int(name) in archived)]
    if unknown or not archived:
        raise UserError(
            f"{frames} has no archive of {' '.join(unknown) or 'any video'}; there are {' '.join(map(video_name, archived)) or 'none'}"
        )
    faults = []
    for video in sorted({int(name) for name in asked}):
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
