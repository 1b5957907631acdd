"""Which prepared videos were verified since they were last written: a small mark for each, beside the frames, or in a
cache folder where those may not be written (a shared data set that is mounted read-only)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from data_preparation.common.files import write_atomic
from data_preparation.layout import archive_file, loose_dir, video_name


def cache_folder() -> Path | None:
    """$DEEPSPORTS_CACHE, else $XDG_CACHE_HOME/deepsports, else ~/.cache/deepsports; None where there is no home either."""
    if own := os.environ.get("DEEPSPORTS_CACHE"):
        return Path(own).absolute()
    site = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(site):  # the standard says to ignore others
        return Path(site) / "deepsports"
    try:
        return Path.home() / ".cache" / "deepsports"
    except RuntimeError:  # no HOME and no entry in the password file
        return None


def _state(frames_dir: Path, video: int) -> str:
    """What changes when a video is extracted again, or loose frames are added or removed."""
    path = archive_file(frames_dir, video)
    status = (path if path.exists() else loose_dir(frames_dir, video)).stat()
    return f"{status.st_size} {status.st_mtime_ns}\n"


def _places(frames_dir: Path) -> list[Path]:
    """The folders that may hold the marks of a data set, in the order in which they are tried: beside the frames, and in
    the cache, keyed by the resolved path, which login and compute nodes must see alike."""
    places = [frames_dir / ".verified"]
    if cache := cache_folder():
        resolved = str(frames_dir.resolve())
        places.append(cache / "verified" / hashlib.sha256(resolved.encode(errors="surrogateescape")).hexdigest()[:32])
    return places


def mark_verified(frames_dir: Path, video: int) -> Path:
    """Remember that this video, as it is now, was read and found whole; returns the folder that holds the mark.

    Raises:
        OSError: it can be written neither beside the frames nor in the cache.
    """
    state = _state(frames_dir, video).encode()
    *first, last = _places(frames_dir)
    for place in first:
        try:
            write_atomic(place / video_name(video), state)
            return place
        except OSError:
            pass  # read-only, another user's, full: the next place
    write_atomic(last / video_name(video), state)
    return last


def mark_videos_verified(frames_dir: Path, videos: Iterable[int]) -> str:
    """Mark videos as verified; returns the sentence that says where this is remembered, or why it is not."""
    places: dict[Path, None] = {}
    for video in videos:
        try:
            places[mark_verified(frames_dir, video)] = None
        except OSError as error:
            return (
                f"This cannot be remembered ({error.strerror}: {error.filename}), so launch.submit will ask for it again: "
                f"set DEEPSPORTS_CACHE to a folder that you may write and that the cluster's nodes see, then verify again."
            )
    return f"Remembered in {' and '.join(map(str, places))}." if places else ""


def unverified(frames_dir: Path, videos: Iterable[int]) -> list[int]:
    """Those of the prepared videos that were not verified, or changed since."""
    places = _places(frames_dir)

    def verified(video: int) -> bool:
        state = _state(frames_dir, video)
        return any(_text(place / video_name(video)) == state for place in places)

    return [video for video in videos if not verified(video)]


def _text(path: Path) -> str | None:
    """The content of a mark; None where there is none that this user may read."""
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return None
