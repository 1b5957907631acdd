"""Names and paths of a prepared data set (leaf: imports only cli and similar_files).

DeepSports_dataset/
    whole_videos/NN.mp4             the source videos
    whole_videos_frames/NN.zip      the frames that some dive needs (archive.py)
    whole_videos_frames/NN/000001.jpg   or the original's loose layout
    annotations/                    pickles, vocabulary (annotations.py)
    weights/                        published weight files
    manifest.json                   SHA-256 of what was downloaded (download.py)
"""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from data_preparation.common.errors import UserError
from data_preparation.similar_files import names_in, names_with_number

VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mpg")
ARCHIVE_SUFFIX = ".zip"
_UNFINISHED = (".part", ".tmp", ".ytdl", ".crdownload", ".download")


def video_name(video: int) -> str:
    """The folder and file stem of a source video: two digits or more, as MTL-AQA writes them ('07')."""
    return f"{video:02d}"


def frame_name(number: int) -> str:
    """The file name of frame `number` (1-based), as `ffmpeg %06d.jpg` writes it."""
    return f"{number:06d}.jpg"


@dataclass(frozen=True)
class DatasetLayout:
    """Where everything of one data set lies."""

    root: Path

    @property
    def videos(self) -> Path:
        return self.root / "whole_videos"

    @property
    def frames(self) -> Path:
        return self.root / "whole_videos_frames"

    @property
    def annotations(self) -> Path:
        return self.root / "annotations"

    @property
    def weights(self) -> Path:
        return self.root / "weights"

    @property
    def manifest(self) -> Path:
        return self.root / "manifest.json"

    @property
    def synthetic_file(self) -> Path:
        """The flags that made a synthetic data set; only such a one has it."""
        return self.annotations / "synthetic.json"

    @property
    def annotation_file(self) -> Path:
        return self.annotations / "final_annotations_dict.pkl"

    @property
    def train_file(self) -> Path:
        return self.annotations / "train_split_0.pkl"

    @property
    def test_file(self) -> Path:
        return self.annotations / "test_split_0.pkl"

    @property
    def captions_file(self) -> Path:
        return self.annotations / "final_captions_dict.pkl"

    @property
    def vocabulary_file(self) -> Path:
        return self.annotations / "vocab.json"

    def video_file(self, video: int) -> Path:
        """The source video, whatever its container.

        Raises:
            UserError: no file of that number, or more than one.
        """
        name = video_name(video)
        found = [p for p in self._videos() if p.stem == name and p.exists()]
        if len(found) == 1:
            return found[0]
        if found:
            raise UserError(
                f"video {name} exists {len(found)} times in {self.videos} ({', '.join(p.name for p in found)}): keep one"
            )
        missing = f"video {name} is missing: {self.videos} has no {name}.mp4 (or {', '.join(VIDEO_SUFFIXES[1:])})"
        raise UserError(f"{missing}{self._near_miss(video)}")

    def source_videos(self) -> list[int]:
        """Numbers of the source videos that are there, ascending."""
        return sorted({int(p.stem) for p in self._videos() if p.stem == video_name(int(p.stem))})

    def _videos(self) -> list[Path]:
        """The files named by a number and the suffix of a video, in capitals too."""
        paths = [self.videos / name for name in names_in(self.videos)]
        return [p for p in paths if p.suffix.lower() in VIDEO_SUFFIXES and re.fullmatch(r"[0-9]+", p.stem)]

    def _near_miss(self, video: int) -> str:
        """The end of the sentence about a missing video: the file that is probably meant, and the command that fixes it."""
        name = video_name(video)
        inner = [path for f in (self.videos, self.root) for n in names_in(f) if (path := f / n).is_dir()]
        for folder in (self.videos, self.root, *(f for f in inner if f not in (self.videos, self.frames))):
            for found in names_with_number(names_in(folder), video, VIDEO_SUFFIXES):
                there = folder / found
                if there.is_symlink() and not there.exists():
                    return f", and {there} is a link to {os.readlink(there)}, which is not there: make the link again"
                wanted = self.videos / (name + there.suffix.lower())
                if there != wanted and there.is_file():
                    return f", but {there} is there: if that is video {name}, rename it ({shlex.join(['mv', str(there), str(wanted)])})"
        for found in (n for n in names_in(self.videos) if n.startswith((f"{name}.", f".{name}."))):
            if found.endswith(_UNFINISHED):
                return f", only {found}: its download is unfinished, give python -m data_preparation.download videos --only {name}"
            return f", but {self.videos / found} is there: if that is the video, convert it (ffmpeg -i {found} -c copy {name}.mkv)"
        if not self.videos.is_dir():
            return f"; that folder is not there: {self.root} has {', '.join(names_in(self.root)[:6]) or 'nothing'}"
        return f": download it (python -m data_preparation.download videos --only {name})"


def archive_file(frames_dir: Path, video: int) -> Path:
    """The frame archive of one video."""
    return frames_dir / (video_name(video) + ARCHIVE_SUFFIX)


def loose_dir(frames_dir: Path, video: int) -> Path:
    """The folder of loose frames of one video in the original's layout."""
    return frames_dir / video_name(video)


def prepared_videos(frames_dir: Path) -> list[int]:
    """Numbers of the videos that have an archive or a folder of loose frames, ascending."""
    if not frames_dir.is_dir():
        return []
    return sorted(
        {
            int(p.stem)
            for p in frames_dir.iterdir()
            if re.fullmatch(r"[0-9]+", p.stem)
            and p.name in (video_name(int(p.stem)), archive_file(frames_dir, int(p.stem)).name)
            and (p.is_dir() or p.suffix == ARCHIVE_SUFFIX)
        }
    )


def default_dataset() -> Path | None:
    """The data set that job_files/environment.sh names, or None when it was not sourced."""
    name = os.environ.get("DEEPSPORTS_DATASET")
    return Path(name) if name else None


def dataset_layout(given: Path | None) -> DatasetLayout:
    """The layout of the folder that a --dataset flag or else the environment names.

    Raises:
        UserError: neither does, or it is not a folder.
    """
    folder = given or default_dataset()
    if folder is None:
        raise UserError("--dataset is missing: name the data set folder, or source job_files/environment.sh")
    if not folder.is_dir():
        raise UserError(f"--dataset {folder} is not a folder: put whole_videos/ and annotations/ there first")
    return DatasetLayout(folder)
