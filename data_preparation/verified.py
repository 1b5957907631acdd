"""Which prepared videos were verified since they were last written: a small mark for each, beside the frames (leaf)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from data_preparation.files import write_whole
from data_preparation.layout import archive_file, loose_dir, video_name


def _state(frames_dir: Path, video: int) -> str:
    """What changes when a video is extracted again, or loose frames are added or removed."""
    path = archive_file(frames_dir, video)
    status = (path if path.exists() else loose_dir(frames_dir, video)).stat()
    return f"{status.st_size} {status.st_mtime_ns}\n"


def _mark(frames_dir: Path, video: int) -> Path:
    return frames_dir / ".verified" / video_name(video)


def mark_verified(frames_dir: Path, video: int) -> None:
    """Remember that this video, as it is now, was read and found whole.

    Raises:
        OSError: the mark cannot be written.
    """
    write_whole(_mark(frames_dir, video), _state(frames_dir, video).encode())


def unverified(frames_dir: Path, videos: Iterable[int]) -> list[int]:
    """Those of the prepared videos that were not verified, or changed since."""
    return [
        video
        for video in videos
        if not (mark := _mark(frames_dir, video)).exists() or mark.read_text() != _state(frames_dir, video)
    ]
