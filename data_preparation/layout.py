"""Names and paths of a prepared data set (imports only actions, datasets, common.errors and similar_files).

DeepSports_dataset/
    whole_videos/NN.mp4             the source videos; those of clips may lie in folders (diving/054.avi)
    whole_videos_frames/NN.zip      the frames that the actions need (archive.py)
    whole_videos_frames/NN/000001.jpg   or loose frames, as in the original code
    annotations/                    pickles, vocabulary (annotations.py)
    weights/                        published weight files
    manifest.json                   SHA-256 of the downloaded files (download.py)
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from data_preparation.actions import video_order
from data_preparation.common.errors import UserError
from data_preparation.datasets import DEFAULT
from data_preparation.similar_files import names_in, names_like_video

VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mpg")
ARCHIVE_SUFFIX = ".zip"
_UNFINISHED = (".part", ".tmp", ".ytdl", ".crdownload", ".download")


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

    def annotations_of(self, kind: str) -> Path:
        """The annotations of a data set of a kind (--dataset_kind): MTL-AQA's file; of others, the whole folder."""
        return self.annotation_file if kind == DEFAULT else self.annotations

    @property
    def train_file(self) -> Path:
        return self.annotations / "train_split_0.pkl"

    @property
    def test_file(self) -> Path:
        return self.annotations / "test_split_0.pkl"

    def own_list(self, name: str, kind: str) -> Path | None:
        """The train or test list of a data set of a kind; None if it has none, which only MTL-AQA's may not."""
        path = self.train_file if name == "train" else self.test_file
        return path if kind == DEFAULT or path.is_file() else None

    @property
    def captions_file(self) -> Path:
        return self.annotations / "final_captions_dict.pkl"

    @property
    def vocabulary_file(self) -> Path:
        return self.annotations / "vocab.json"

    def video_file(self, video: str) -> Path:
        """The source video, in any container format.

        Raises:
            UserError: there is no file of that name, or more than one.
        """
        name = video
        found = [path for path in self._files_of(video) if path.exists()]
        if len(found) == 1:
            return found[0]
        if found:
            raise UserError(
                f"video {name} exists {len(found)} times in {self.videos} ({', '.join(p.name for p in found)}): keep only one"
            )
        missing = f"video {name} is missing: {self.videos} has no {name}.mp4 (or {', '.join(VIDEO_SUFFIXES[1:])})"
        raise UserError(f"{missing}{self._missing_video_hint(video)}")

    def has_video(self, video: str) -> bool:
        """Whether the source video exists."""
        return bool(self._files_of(video))

    def _files_of(self, video: str) -> list[Path]:
        """The files in whole_videos with the name of a video and a video suffix, in lower or upper case."""
        path = self.videos / video
        # a folder may have 10,000 clips, so the names of other videos are dropped first
        found = [path.parent / name for name in names_in(path.parent) if name.startswith(path.name)]
        return [file for file in found if file.stem == path.name and file.suffix.lower() in VIDEO_SUFFIXES]

    def _missing_video_hint(self, video: str) -> str:
        """The end of the message about a missing video: the file that is probably meant, and the command that fixes it."""
        name = video
        inner = [path for f in (self.videos, self.root) for n in names_in(f) if (path := f / n).is_dir()]
        if "/" in video:  # one of many clips
            inner = [(self.videos / video).parent]
        for folder in (self.videos, self.root, *(f for f in inner if f not in (self.videos, self.frames))):
            for found in names_like_video(names_in(folder), video, VIDEO_SUFFIXES):
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


def archive_file(frames_dir: Path, video: str) -> Path:
    """The frame archive of one video."""
    return frames_dir / (video + ARCHIVE_SUFFIX)


def loose_dir(frames_dir: Path, video: str) -> Path:
    """The folder of loose frames of one video, as in the original code."""
    return frames_dir / video


def prepared(frames_dir: Path, videos: Iterable[str]) -> set[str]:
    """Those of some videos that have an archive, a folder of loose frames, or folders of clips named VIDEO_NUMBER.

    Lists each folder once, whatever the number of videos.
    """
    by_folder: dict[Path, list[str]] = {}
    for video in videos:
        by_folder.setdefault(loose_dir(frames_dir, video).parent, []).append(video)
    found: set[str] = set()
    for folder, of_folder in by_folder.items():
        archives, folders = _archives_and_folders(folder)
        of_clips = {name.rpartition("_")[0] for name in folders if name.rpartition("_")[2].isdecimal()}
        names = {video: loose_dir(frames_dir, video).name for video in of_folder}
        found |= {
            v for v, name in names.items() if name in folders or name in of_clips or name + ARCHIVE_SUFFIX in archives
        }
    return found


def _archives_and_folders(folder: Path) -> tuple[set[str], set[str]]:
    """The names of the archives and of the folders in a folder; two empty sets if it cannot be read."""
    archives: set[str] = set()
    folders: set[str] = set()
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(ARCHIVE_SUFFIX):
                archives.add(entry.name)
            if entry.is_dir():
                folders.add(entry.name)
    return archives, folders


def archived_videos(frames_dir: Path) -> list[str]:
    """The names of the videos that have an archive, in order (`video_order`)."""
    found = []
    for place, inner, names in os.walk(frames_dir):
        inner[:] = [name for name in inner if not name.startswith(".")]
        folder = Path(place).relative_to(frames_dir)
        stems = (name.removesuffix(ARCHIVE_SUFFIX) for name in names if name.endswith(ARCHIVE_SUFFIX))
        found += [(folder / stem).as_posix() for stem in stems if not stem.startswith(".")]
    return sorted(found, key=video_order)


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
