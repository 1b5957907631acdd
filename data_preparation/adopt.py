"""Pack loose frames of other tools into frame archives, with the names and numbers that this project expects.

    python -m data_preparation.adopt --dataset DIR [--videos 01 02] [--pattern img_%05d.jpg] [--first_number 0]

Frame 1 is the first picture of a video, as in ffmpeg; loops with OpenCV often count from 0. If the source video is in
whole_videos, the pictures are compared with it. The loose frames are not changed.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image
from tqdm import tqdm

from data_preparation.actions import chosen_videos, video_name, video_order
from data_preparation.alignment import Alignment, compare_with_video
from data_preparation.archive import FrameReader, decode_grey, write_archive
from data_preparation.common.command_line import flag, parse, run
from data_preparation.common.errors import UserError, first_line
from data_preparation.extract import merge_ranges
from data_preparation.frame_numbers import VideoScan, scan_video
from data_preparation.layout import DatasetLayout, archive_file, dataset_layout
from data_preparation.similar_files import Numbering, names_in, names_like_video, numberings

_SUFFIXES = (".jpg", ".jpeg", ".png")
_SAMPLES = 12  # pictures of a video that are compared with the source video


@dataclass(frozen=True)
class AdoptConfig:
    """Pack loose frames of other tools into frame archives with the expected names and numbers."""

    dataset: Path | None = flag(None, "Data set folder; none uses DEEPSPORTS_DATASET of job_files/environment.sh.")
    source: Path | None = flag(
        None, "Folder with a folder of pictures for each video; none uses whole_videos_frames of the data set."
    )
    output: Path | None = flag(None, "Folder for the archives; none uses whole_videos_frames of the data set.")
    videos: tuple[str, ...] = flag(("all",), "Videos: all that have a folder, or numbers.", allowed="all, or numbers")
    pattern: str | None = flag(None, "Pattern of the file names, such as img_%05d.jpg; none detects it.")
    first_number: int | None = flag(
        None, "Number of the first picture of a video in the file names; none detects it.", minimum=0, maximum=1
    )
    quality: int = flag(95, "JPEG quality for pictures that are not JPEGs.", minimum=1, maximum=100)

    def __post_init__(self) -> None:
        if self.pattern is not None and not re.fullmatch(r"[^%/]*%(0[1-9])?d[^%/]*", self.pattern):
            raise UserError(
                f"--pattern {self.pattern}: give the pattern of a file name with one number, such as img_%05d.jpg"
            )


@dataclass(frozen=True)
class LooseFrames:
    """The loose frames of one video: files in `folder` named by `numbering`; frame 1 has the number `first_number`."""

    folder: Path
    numbering: Numbering
    first_number: int

    @property
    def numbers(self) -> list[int]:
        """The frame numbers, counted from 1."""
        return [n - self.first_number + 1 for n in self.numbering.numbers]

    def path(self, number: int) -> Path:
        """The file with a frame number."""
        return self.folder / self.numbering.name(number + self.first_number - 1)

    def image(self, number: int) -> np.ndarray:
        """A frame as (H, W, 3) uint8.

        Raises:
            UserError: it is not a readable picture.
        """
        return np.asarray(_open_picture(self.path(number)))


def _open_picture(path: Path) -> Image.Image:
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(
            f"{path} is not a readable picture ({first_line(error)}): write it again, or delete it"
        ) from None


def to_frame(path: Path, quality: int) -> tuple[bytes, bool]:
    """Convert a picture file to (JPEG bytes, whether they are a copy of the file).

    Raises:
        UserError: it is not a readable picture.
    """
    content = path.read_bytes()
    if content.startswith(b"\xff\xd8"):
        try:
            _, _, colours, _ = simplejpeg.decode_jpeg_header(content)
            decode_grey(content, 8)  # decodes the whole picture, or raises
            if colours in ("YCbCr", "RGB"):
                return content, True
        except ValueError:
            pass  # PIL may be able to read it, or names the fault
    image = np.ascontiguousarray(_open_picture(path))
    return simplejpeg.encode_jpeg(image, quality=quality, colorspace="RGB", colorsubsampling="420"), False


# --------------------------------------------------------------------------------------------------- finding the frames


def find_numbering(folder: Path, pattern: str | None) -> tuple[Path, Numbering]:
    """Find numbered pictures in a folder or in a subfolder of it: (folder with the pictures, numbering of its files).

    Raises:
        UserError: there are no numbered pictures, or several numberings and no pattern that selects one.
    """
    inner = [path for name in names_in(folder) if (path := folder / name).is_dir()]
    for place in (folder, *inner):
        found = [n for n in numberings(names_in(place)) if n.pattern.lower().endswith(_SUFFIXES)]
        if pattern is not None:
            chosen = [n for n in found if n.pattern == pattern]
            if not chosen and found:
                raise UserError(
                    f"{place} has no files {pattern}, but {_listed(found)}: give one of these with --pattern"
                )
            found = chosen
        if len(found) > 1:
            raise UserError(f"{place} has {len(found)} numberings ({_listed(found)}): select one with --pattern")
        if found:
            return place, found[0]
    raise UserError(
        f"{folder} has no numbered pictures ({', '.join(_SUFFIXES)}), it holds {', '.join(names_in(folder)[:3]) or 'nothing'}: name the folder of the pictures"
    )


def _listed(found: Sequence[Numbering]) -> str:
    return "; ".join(f"{n.pattern}: {n.text}" for n in found[:4])


def find_loose_frames(folder: Path, config: AdoptConfig, source: VideoScan | None) -> LooseFrames:
    """Find the loose frames of a folder and the number of the first picture in their names.

    Raises:
        UserError: the numbers contradict the flags or the source video, or do not show whether they count from 0 or 1.
    """
    place, numbering = find_numbering(folder, config.pattern)
    lowest, first = numbering.numbers[0], config.first_number
    if first == 1 and lowest == 0:
        raise UserError(f"{place / numbering.name(0)} exists, so its files count from 0: give --first_number 0")
    if first is None and lowest in (0, 1):
        first = lowest
    shift = None
    if source is not None:
        result = _compare(LooseFrames(place, numbering, 1 if first is None else first), source)
        shift = result.shift
        if result.rate:
            raise UserError(
                f"{place} has the pictures of a file of about {round(result.rate)} frames per second, but {source.path.name} has {float(source.rate):g}, so they are of different versions: extract that video, or delete it if the labels belong to the other version"
            )
    if first is None and shift in (0, 1):
        return LooseFrames(place, numbering, 1 - shift)
    if first is None:
        raise UserError(
            f"{place} begins with {numbering.name(lowest)}, which does not show whether its files count from 0 or 1: give --first_number"
        )
    if shift and source is not None:
        raise UserError(
            f"{place}: with --first_number {first} picture N would be frame N{shift:+d} of {source.path.name} in ffmpeg's numbering: "
            + (f"give --first_number {1 - first}" if 1 - first == first - shift else "number them like ffmpeg")
        )
    return LooseFrames(place, numbering, first)


def _compare(loose: LooseFrames, source: VideoScan) -> Alignment:
    numbers = loose.numbers
    chosen = {numbers[i] for i in np.linspace(0, len(numbers) - 1, _SAMPLES + 2).round().astype(int).tolist()}
    return compare_with_video(source, sorted(chosen), loose.image)


def video_folders(source: Path, config: AdoptConfig) -> dict[str, Path]:
    """The folder of pictures of each requested video, by video.

    Raises:
        UserError: naming all videos that have no folder or several.
    """
    folders = [name for name in names_in(source) if (source / name).is_dir() and not name.startswith(".")]
    wanted = chosen_videos(config.videos)
    if wanted is None:
        numbered = {video_name(d[0]) for name in folders if len(d := re.findall(r"[0-9]+", name)) == 1}
        if not numbered:
            raise UserError(f"{source} has no folder named after a video's number, such as {video_name(1)}")
    asked = sorted(numbered if wanted is None else wanted, key=video_order)
    found, faults = {}, []
    for video in asked:
        exact = [name for name in folders if name == video]
        candidates = exact or names_like_video(folders, video)
        if len(candidates) == 1:
            found[video] = source / candidates[0]
        else:
            problem = (
                f"several folders ({', '.join(candidates)})"
                if candidates
                else f"no folder (it has {', '.join(folders[:4]) or 'none'})"
            )
            faults.append(f"video {video}: {source} has {problem} for it: name one folder {video}")
    if faults:
        raise UserError.of(faults)
    return found


# ------------------------------------------------------------------------------------------------------------- packing


def pack(loose: LooseFrames, target: Path, quality: int, source: VideoScan | None) -> int:
    """Write the archive of one video atomically; return the number of pictures that were encoded.

    Raises:
        UserError: a picture is not readable or has another size than the first, or the disk is full.
    """
    first = _open_picture(loose.path(loose.numbers[0]))
    ranges = merge_ranges((n, n) for n in loose.numbers)
    record: dict[str, Any] = {
        "source": {
            "name": f"{loose.folder.name}/{loose.numbering.pattern}",
            "bytes": sum(loose.path(n).stat().st_size for n in loose.numbers),
            "width": first.width,
            "height": first.height,
            "frames": max(loose.numbers[-1], source.frame_count if source else 0),
        },
        "settings": {"height": 0, "quality": quality},
        "ranges": [list(r) for r in ranges],
        "notes": [],
        "adopted": {
            "folder": str(loose.folder.resolve()),
            "pattern": loose.numbering.pattern,
            "first_number": loose.first_number,
        },
    }
    encoded = 0

    def frames() -> Iterator[tuple[int, bytes]]:
        nonlocal encoded
        bar = tqdm(loose.numbers, desc=target.name, unit="frame", disable=not sys.stderr.isatty())
        for number in bar:
            jpeg, is_copy = to_frame(loose.path(number), quality)
            encoded += not is_copy
            height, width, _, _ = simplejpeg.decode_jpeg_header(jpeg)
            if (width, height) != first.size:
                raise UserError(
                    f"{loose.path(number)} has {width}x{height} pixels and {loose.path(loose.numbers[0]).name} has {first.width}x{first.height}: keep only the pictures of one video"
                )
            yield number, jpeg
        record["adopted"]["encoded"] = encoded

    write_archive(target, frames(), record)
    return encoded


def _packed_from(folder: Path, target: Path) -> bool:
    """Whether an archive was packed from this folder."""
    try:
        packed = Path(FrameReader(target).provenance["adopted"]["folder"])
    except (UserError, KeyError, TypeError):
        return False
    return packed in (folder.resolve(), *(folder.resolve() / name for name in names_in(folder)))


def adopt_video(layout: DatasetLayout | None, video: str, folder: Path, target: Path, config: AdoptConfig) -> str:
    """Pack the frames of one video; return a one-line summary.

    Raises:
        UserError: the archive exists, or as `find_loose_frames` and `pack`.
    """
    if target.exists() and _packed_from(folder, target):
        return f"{target}: already packed"
    if target.exists():
        raise UserError(f"{target} exists and is used instead of {folder}: delete it to pack that folder")
    source = None
    if layout is not None and layout.has_video(video):
        source = scan_video(layout.video_file(video))
    loose = find_loose_frames(folder, config, source)
    encoded = pack(loose, target, config.quality, source)
    count, name = len(loose.numbers), loose.numbering.name(loose.numbering.numbers[0])
    checked = f", compared with {source.path.name}" if source else ""
    converted = f", {encoded} of them encoded" if encoded else ""
    return f"{target}: {count} frames{converted}; {name} is frame {loose.numbers[0]}{checked}"


def main(argv: Sequence[str]) -> int:
    config = parse(AdoptConfig, argv, prog="python -m data_preparation.adopt", description=__doc__.splitlines()[0])
    if config.source is not None and config.output is not None and config.dataset is None:
        layout, source, output = None, config.source, config.output  # needs no data set
    else:
        layout = dataset_layout(config.dataset)
        source, output = config.source or layout.frames, config.output or layout.frames
    if not source.is_dir():
        raise UserError(f"{source} is not a folder: give the folder with the folders of pictures with --source")
    faults = []
    for video, folder in video_folders(source, config).items():
        try:
            print(adopt_video(layout, video, folder, archive_file(output, video), config))
        except UserError as error:
            faults += str(error).splitlines()
    if faults:
        raise UserError.of(faults)
    print("Check them: python -m data_preparation.verify --sheets sheets")
    return 0


if __name__ == "__main__":
    run(main)
