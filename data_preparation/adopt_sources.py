"""Find what data_preparation.adopt packs: video files and folders of pictures, and the video that each of them is."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from data_preparation.actions import Action, ActionKey, action_name, is_chosen, video_name, video_order
from data_preparation.common.errors import UserError
from data_preparation.layout import VIDEO_SUFFIXES
from data_preparation.loose_frames import FrameFiles, counted_from_one, have_own_numbers, listed
from data_preparation.similar_files import Numbering, names_in, names_like_video, numberings, walk_once

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png")
_CLIP = re.compile(r"(?P<video>.+)[/_](?P<number>[0-9]+)")


@dataclass(frozen=True)
class Source:
    """What the archive of a video is packed from: a video file or a folder of pictures at `path`, or the folders of its
    `clips`, with the number of each picture in the whole video."""

    video: str
    path: Path
    clips: tuple[FrameFiles, ...] = ()


@dataclass(frozen=True)
class ClipEnds:
    """Where clips lie whose pictures are numbered for themselves: the last is `after` frames after its action's end."""

    actions: Mapping[ActionKey, Action]
    after: int


def find_sources(
    source: Path,
    inside: Path = Path(),
    chosen: Collection[str] | None = None,
    pattern: str | None = None,
    ends: ClipEnds | None = None,
) -> list[Source]:
    """The chosen videos in a folder (None: all), by `video_order`. A video's name is its path in `source`, without
    suffix, with `inside` before it.

    Folders VIDEO/NUMBER whose pictures have the numbers of a whole video are the clips of that video, and so are MTL-AQA's
    VV_DD; other names with _NUMBER are often videos of their own. With `ends` all folders of pictures are clips.

    Raises:
        UserError: naming everything that cannot be packed, and all chosen names that do not exist.
    """
    files, folders = _walk(source)
    found = [Source((inside / path.relative_to(source)).with_suffix("").as_posix(), path) for path in files]
    found += [Source((inside / path.relative_to(source)).as_posix(), path) for path in folders]
    faults: list[str] = []
    if chosen is not None:
        found = [one for one in found if _is_wanted(one.video, chosen)]
        for name in sorted(chosen, key=video_order):
            if not any(_is_wanted(one.video, {name}) for one in found):
                try:
                    found.append(Source(name, _similar_folder(source, name)))
                except UserError as error:
                    faults.append(str(error))
    if not found and not faults:
        raise UserError(f"{source} has no video file and no folder of numbered pictures")
    packed = list(_with_clips_joined(found, pattern, ends, faults))
    named: dict[str, Source] = {}
    for one in packed:
        try:
            video = video_name(one.video)
        except ValueError as error:
            faults.append(f"{one.path}: {error}")
            continue
        if video in named:
            faults.append(f"{one.path} and {named[video].path} are both video {video}: keep one of them")
        named.setdefault(video, replace(one, video=video))
    if faults:
        raise UserError.of(faults)
    return sorted(named.values(), key=lambda one: video_order(one.video))


def _walk(source: Path) -> tuple[list[Path], list[Path]]:
    """(video files, folders with numbered pictures) under a folder."""
    files: list[Path] = []
    folders: list[Path] = []
    for folder, _, names in walk_once(source):
        files += [folder / name for name in names if name.lower().endswith(VIDEO_SUFFIXES)]
        if folder != source and picture_numberings(names):
            folders.append(folder)
    return files, folders


def _is_wanted(name: str, chosen: Collection[str]) -> bool:
    """Whether `chosen` has a video, a folder that it is in, or the video that it is a clip of."""
    names = [name, clip["video"]] if (clip := _CLIP.fullmatch(name)) else [name]
    return any(is_chosen(f"{int(n):02d}" if n.isdigit() else n, chosen) for n in names)


def _similar_folder(source: Path, video: str) -> Path:
    """The folder that is probably meant for a video: 'video 1' for 01.

    Raises:
        UserError: there is none, or several.
    """
    folders = [name for name in names_in(source) if (source / name).is_dir() and not name.startswith(".")]
    candidates = names_like_video(folders, video)
    if len(candidates) == 1:
        return source / candidates[0]
    problem = (
        f"several folders ({', '.join(candidates)})"
        if candidates
        else f"no folder and no video file (it has {', '.join(folders[:4]) or 'no folder'})"
    )
    raise UserError(f"video {video}: {source} has {problem} for it: name one folder {video}")


def _with_clips_joined(
    found: Sequence[Source], pattern: str | None, ends: ClipEnds | None, faults: list[str]
) -> Iterator[Source]:
    """The sources, with the folders of a video's clips joined to one. Appends to `faults`."""
    groups: dict[str, list[Source]] = {}  # by name without number
    for one in found:
        clip = _CLIP.fullmatch(one.video) if one.path.is_dir() else None
        if clip:
            groups.setdefault(one.video[: clip.start("number")], []).append(one)
        elif ends and one.path.is_dir():
            faults.append(
                f"{one.path} is not named VIDEO_NUMBER or VIDEO/NUMBER, so it is not clear which action --clip_end means: rename it"
            )
        else:
            yield replace(one, video=_without_inner_folder(one))
    for name, clips in groups.items():
        try:
            yield from _joined(name, clips, pattern, ends)
        except UserError as error:
            faults += str(error).splitlines()


def _without_inner_folder(one: Source) -> str:
    """The video of a folder of pictures: '01' of 01/frames if that is all that 01 has, else its own name."""
    parent = one.video.rpartition("/")[0]
    return parent if parent.isdigit() and names_in(one.path.parent) == [one.path.name] else one.video


def _joined(name: str, clips: Sequence[Source], pattern: str | None, ends: ClipEnds | None) -> list[Source]:
    """One source of the clips NAMEnumber, if they have the numbers of the whole video, else the sources as they are.

    Raises:
        UserError: a folder has several patterns of pictures, or a clip has no place in the video.
    """
    numbers = [int(one.video[len(name) :]) for one in clips]
    order = sorted(range(len(clips)), key=numbers.__getitem__)
    parts = [find_pictures(clips[i].path, pattern) for i in order]
    video, path = name[:-1], clips[0].path
    path = path.parent if name.endswith("/") else path.with_name(Path(video).name)
    if ends:
        keys = [(video_name(video), numbers[i]) for i in order]
        return [Source(video, path, tuple(_placed(part, key, ends) for part, key in zip(parts, keys, strict=True)))]
    if have_own_numbers(parts) or (name.endswith("_") and not video.isdigit()):
        return list(clips)
    return [Source(video, path, tuple(counted_from_one(parts)))]


def _placed(part: FrameFiles, key: ActionKey, ends: ClipEnds) -> FrameFiles:
    """The pictures of a clip with their numbers in the whole video."""
    if key not in ends.actions:
        raise UserError(
            f"{part.folder}: the annotations have no action {action_name(key)}: move that folder away, or give the --annotation_path of these clips"
        )
    last = ends.actions[key].end_frame + ends.after
    placed = part.shifted(last - int(part.numbers[-1]) + part.shift)
    if placed.numbers[0] < 1:
        raise UserError(
            f"{part.folder} has {len(part.numbers)} pictures, and with --clip_end {ends.after} the last is frame {last}, so the first would lie before the video: give another --clip_end"
        )
    return placed


def picture_numberings(names: Iterable[str]) -> list[Numbering]:
    """The patterns of numbered pictures that can be packed, the one with most files first."""
    return [n for n in numberings(names) if n.pattern.lower().endswith(PICTURE_SUFFIXES)]


def find_pictures(folder: Path, pattern: str | None) -> FrameFiles:
    """The numbered pictures in a folder or, if it has none, in a subfolder.

    Raises:
        UserError: there are no numbered pictures, or several patterns and none is given.
    """
    inner = [path for name in names_in(folder) if (path := folder / name).is_dir()]
    for place in (folder, *inner):
        found = picture_numberings(names_in(place))
        if pattern is not None:
            chosen = [n for n in found if n.pattern == pattern]
            if not chosen and found:
                raise UserError(
                    f"{place} has no files {pattern}, but {listed(found)}: give one of these with --pattern"
                )
            found = chosen
        if len(found) > 1:
            raise UserError(f"{place} has {len(found)} numberings ({listed(found)}): select one with --pattern")
        if found:
            return FrameFiles(place, found[0].pattern, np.array(found[0].numbers, dtype=np.int64))
    raise UserError(
        f"{folder} has no numbered pictures ({', '.join(PICTURE_SUFFIXES)}), it holds {', '.join(names_in(folder)[:3]) or 'nothing'}: name the folder of the pictures"
    )
