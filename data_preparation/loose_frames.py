"""Loose frames of a video: which file of its folder, or of its clips' folders, holds which frame.

    07/000123.jpg                       the layout of the original code
    07/img_00123.jpg, 07/00000123.jpg   other names with one number
    07/000000.jpg                       numbered from 0: file N is frame N + 1
    07/12/00123.jpg, 07_12/00123.jpg    a folder for each clip, numbers of the whole video

Reading needs JPEGs. `data_preparation.adopt` packs other pictures, and clips whose numbers start again in each folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from data_preparation.common.errors import UserError
from data_preparation.similar_files import Numbering, names_in, numberings

FRAME_PATTERN = "%06d.jpg"
_FRAME_FILE = re.compile(r"([0-9]{6}|[1-9][0-9]{6,8})\.jpg")
_JPEG = (".jpg", ".jpeg")


def is_frame_file(name: str) -> bool:
    """Whether a file name has the form of a stored frame's (`000123.jpg`)."""
    return _FRAME_FILE.fullmatch(name) is not None


def is_jpeg_file(name: str) -> bool:
    return name.lower().endswith(_JPEG)


@dataclass(frozen=True)
class FrameFiles:
    """The frames in one folder: frame N of `numbers` (n,) int64, ascending, is the file `pattern % (N - shift)`."""

    folder: Path
    pattern: str
    numbers: np.ndarray
    shift: int = 0

    def path(self, number: int) -> Path:
        """The file with a frame."""
        return self.folder / (self.pattern % (number - self.shift))

    @property
    def first_file(self) -> int:
        """The lowest number in the file names."""
        return int(self.numbers[0]) - self.shift

    def shifted(self, shift: int) -> FrameFiles:
        """The same files, with the number of a frame `shift` higher than that in the name of its file."""
        return replace(self, numbers=self.numbers + (shift - self.shift), shift=shift)


@dataclass(frozen=True)
class LooseFrames:
    """The loose frames of one video.

    `numbers` (frames,) int64 are frame numbers from 1, ascending, and `part_of` (frames,) is the index of the folder in
    `parts` with that frame.
    """

    parts: tuple[FrameFiles, ...]
    numbers: np.ndarray
    part_of: np.ndarray

    @property
    def from_zero(self) -> bool:
        """Whether the files count from 0, and so the number of a frame is one higher than that of its file."""
        return self.parts[0].shift == 1

    def path(self, number: int) -> Path:
        """The file with a frame.

        Raises:
            KeyError: there is none.
        """
        index = int(np.searchsorted(self.numbers, number))
        if index == len(self.numbers) or self.numbers[index] != number:
            raise KeyError(number)
        return self.parts[self.part_of[index]].path(number)


def find_loose_frames(folder: Path) -> LooseFrames | None:
    """The loose frames of the video whose folder is `folder`, or None if there are none that can be read as they are.

    Raises:
        UserError: a folder has several kinds of names, or the names do not show which frames of the video the files are.
    """
    if own := frame_files(folder):
        return combine(counted_from_one([own]))
    clips = clip_folders(folder)
    parts = [files for clip in clips if (files := frame_files(clip))]
    if not parts:
        return None
    if have_own_numbers(parts):
        raise UserError(
            f"{parts[0].folder} begins with {parts[0].pattern % parts[0].first_file}, and so does each clip's folder of {folder.name}, so the names do not show which frames of the video these are: pack the clips with python -m data_preparation.adopt --clip_end (see its --help)"
        )
    return combine(counted_from_one(parts))


def counted_from_one(parts: Sequence[FrameFiles]) -> list[FrameFiles]:
    """The folders of a video with frame numbers from 1: shifted by one if the files count from 0, which a file 0 shows."""
    shift = int(any(part.first_file == 0 for part in parts))
    return [part.shifted(shift) for part in parts]


def combine(parts: Sequence[FrameFiles]) -> LooseFrames:
    """The frames of several folders of a video."""
    together = np.concatenate([part.numbers for part in parts])
    part_of = np.repeat(np.arange(len(parts)), [len(part.numbers) for part in parts])
    numbers, first_index = np.unique(together, return_index=True)  # clips may share frames
    return LooseFrames(tuple(parts), numbers, part_of[first_index])


def frame_files(folder: Path) -> FrameFiles | None:
    """The numbered JPEGs of a folder; None if there are none.

    Raises:
        UserError: there are several kinds of names and none is that of stored frames (`000123.jpg`).
    """
    jpegs = [name for name in names_in(folder) if is_jpeg_file(name)]
    if not jpegs:
        return None
    if too_long := [name for name in jpegs if re.search(r"[0-9]{16}", name)]:
        raise UserError(f"{folder / too_long[0]}: its number has too many digits for a frame: remove it, or rename it")
    if all(map(is_frame_file, jpegs)):  # quick: a folder may hold 100,000 frames
        return FrameFiles(folder, FRAME_PATTERN, _array(int(name[:-4]) for name in jpegs))
    found = numberings(jpegs)
    chosen = [n for n in found if n.pattern == FRAME_PATTERN] or found
    if len(chosen) > 1:
        raise UserError(
            f"{folder} has files of {len(found)} patterns ({listed(found)}): keep only the frames of the video there, or pack those of one pattern (python -m data_preparation.adopt --pattern {found[0].pattern})"
        )
    return FrameFiles(folder, chosen[0].pattern, _array(chosen[0].numbers)) if chosen else None


def clip_folders(folder: Path) -> list[Path]:
    """The folders of a video's clips, by clip number: 07/12 or 07_12 for the clip 12 of the video folder 07."""
    inner = [folder / name for name in names_in(folder) if name.isdecimal()]
    beside = [
        folder.with_name(name)
        for name in (names_in(folder.parent) if not inner else ())
        if name.startswith(f"{folder.name}_") and name[len(folder.name) + 1 :].isdecimal()
    ]
    return sorted((path for path in inner or beside if path.is_dir()), key=clip_number)


def clip_number(folder: Path) -> int:
    """The clip number in the name of a clip's folder: 12 for 07/12 and for 07_12."""
    return int(folder.name.rpartition("_")[2])


def have_own_numbers(parts: Sequence[FrameFiles]) -> bool:
    """Whether the files count from 0 or 1 in each clip's folder, not through the whole video."""
    return all(part.first_file <= 1 for part in parts)


def listed(found: Sequence[Numbering]) -> str:
    """A list of numberings for messages."""
    return "; ".join(f"{n.pattern}: {n.text}" for n in found[:4])


def _array(numbers: Iterable[int]) -> np.ndarray:
    return np.sort(np.fromiter(numbers, np.int64))
