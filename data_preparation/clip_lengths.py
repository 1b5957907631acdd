"""The number of frames of clips whose annotations do not state it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from data_preparation.archive import FrameReader
from data_preparation.common.errors import UserError
from data_preparation.frame_numbers import open_video, scan_video
from data_preparation.layout import DatasetLayout, archive_file, loose_dir
from data_preparation.similar_files import names_in

_PICTURES = (".jpg", ".jpeg", ".png")


def clip_lengths(annotations: Path, videos: Iterable[str]) -> tuple[dict[str, int], list[str]]:
    """The number of frames of each video, and a message about those that are unknown.

    Looks at the data set folder that holds the folder `annotations`: for an archive or a folder of frames, else for a video.
    """
    layout = DatasetLayout(annotations.absolute().parent)
    lengths: dict[str, int] = {}
    faults, unknown = [], []
    for video in videos:
        try:
            if length := _length(layout, video):
                lengths[video] = length
            else:
                unknown.append(video)
        except UserError as error:
            faults.append(str(error))
    if unknown:
        shown = ", ".join(unknown[:3]) + (", ..." if len(unknown) > 3 else "")
        faults.append(
            f"the lengths of {len(unknown)} clips are unknown, since {layout.root} has neither their frames nor their videos ({shown}): put the videos into {layout.videos}, or folders of frames into {layout.frames}"
        )
    return lengths, faults


def _length(layout: DatasetLayout, video: str) -> int | None:
    if (archive := archive_file(layout.frames, video)).is_file():
        return int(FrameReader(archive).provenance["source"]["frames"])
    if pictures := [name for name in names_in(loose_dir(layout.frames, video)) if name.lower().endswith(_PICTURES)]:
        return len(pictures)
    if not layout.has_video(video):
        return None
    path = layout.video_file(video)
    with open_video(path) as container:  # the header of the file, which is read at once
        streams = container.streams.video
        stated = streams[0].frames if len(streams) == 1 else 0
    return stated or scan_video(path).frame_count
