"""Names and paths of a prepared data set (imports only common.errors and similar_files).

DeepSports_dataset/
    whole_videos/NN.mp4             the source videos
    whole_videos_frames/NN.zip      the frames that the dives need (archive.py)
    whole_videos_frames/NN/000001.jpg   or loose frames, as in the original code
    annotations/                    pickles, vocabulary (annotations.py)
    weights/                        published weight files
    manifest.json                   SHA-256 of the downloaded files (download.py)
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
    """The file stem and folder name of a video: two digits or more, as in MTL-AQA ('07')."""
    return f"{video:02d}"


def frame_name(number: int) -> str:
    """The file name of frame `number` (1-based), as `ffmpeg %06d.jpg` writes it."""
    return f"{number:06d}.jpg"


@dataclass(frozen=True)
class DatasetLayout:
    """The paths of one data set."""

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
        """The flags that generated a synthetic data set; real data sets do not have this file."""
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
        """The source video, in any container format.

        Raises:
            UserError: there is no file with that number, or more than one.
        """
        name = video_name(video)
        found = [p for p in self._videos() if p.stem == name and p.exists()]
        if len(found) == 1:
            return found[0]
        if found:
            raise UserError(
                f"video {name} exists {len(found)} times in {self.videos} ({', '.join(p.name for p in found)}): keep only one"
            )
        missing = f"video {name} is missing: {self.videos} has no {name}.mp4 (or {', '.join(VIDEO_SUFFIXES[1:])})"
        raise UserError(f"{missing}{self._missing_video_hint(video)}")

    def source_videos(self) -> list[int]:
        """The sorted numbers of the existing source videos."""
        return sorted({int(p.stem) for p in self._videos() if p.stem == video_name(int(p.stem))})

    def _videos(self) -> list[Path]:
        """The files whose name is a number and a video suffix, in lower or upper case."""
        paths = [self.videos / name for name in names_in(self.videos)]
        return [p for p in paths if p.suffix.lower() in VIDEO_SUFFIXES and re.fullmatch(r"[0-9]+", p.stem)]

    def _missing_video_hint(self, video: int) -> str:
        """The end of the message about a missing video: the file that is probably meant, and the command that fixes it."""
        name = video_name(video)
        inner = [path for f in (self.videos, self.root) for n in names_in(f) if (path := f / n).is_dir()]
        for folder in (self.videos, self.root, *(f for f in inner if f not in (self.videos, self.frames))):
            for found in names_with_number(names_in(folder), video, VIDEO_SUFFIXES):
                path = folder / found
                if path.is_symlink() and not path.exists():
                    return f", and {path} is a link to {os.readlink(path)}, which does not exist: make the link again"
                wanted = self.videos / (name + path.suffix.lower())
                if path != wanted and path.is_file():
                    return f", but {path} exists: if that is video {name}, rename it ({shlex.join(['mv', str(path), str(wanted)])})"
        for found in (n for n in names_in(self.videos) if n.startswith((f"{name}.", f".{name}."))):
            if found.endswith(_UNFINISHED):
                return f", only {found}: its download is unfinished: run python -m data_preparation.download videos --only {name}"
            return f", but {self.videos / found} exists: if that is the video, convert it (ffmpeg -i {found} -c copy {name}.mkv)"
        if not self.videos.is_dir():
            return f"; that folder does not exist: {self.root} has {', '.join(names_in(self.root)[:6]) or 'nothing'}"
        return f": download it (python -m data_preparation.download videos --only {name})"


def archive_file(frames_dir: Path, video: int) -> Path:
    """The frame archive of one video."""
    return frames_dir / (video_name(video) + ARCHIVE_SUFFIX)


def loose_dir(frames_dir: Path, video: int) -> Path:
    """The folder of loose frames of one video, as in the original code."""
    return frames_dir / video_name(video)


def prepared_videos(frames_dir: Path) -> list[int]:
    """The sorted numbers of the videos that have an archive or a folder of loose frames."""
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
    """The data set folder of job_files/environment.sh, or None if that file was not sourced."""
    name = os.environ.get("DEEPSPORTS_DATASET")
    return Path(name) if name else None


def dataset_layout(given: Path | None) -> DatasetLayout:
    """The layout of the data set that the --dataset flag names, or else the environment.

    Raises:
        UserError: neither names one, or it is not a folder.
    """
    folder = given or default_dataset()
    if folder is None:
        raise UserError("--dataset is missing: name the data set folder, or source job_files/environment.sh")
    if not folder.is_dir():
        raise UserError(f"--dataset {folder} is not a folder: put whole_videos/ and annotations/ there first")
    return DatasetLayout(folder)
