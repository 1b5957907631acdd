"""Records which prepared videos were verified since they were last written.

Each video has a small marker file, next to the frames or, if that folder is read-only (a shared data set), in a cache
folder.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from data_preparation.common.files import write_atomic
from data_preparation.layout import archive_file, loose_dir
from data_preparation.loose_frames import clip_folders

_THREADS = 16  # a shared file system takes milliseconds to open or write a file, and data sets of clips have thousands


def cache_folder() -> Path | None:
    """$DEEPSPORTS_CACHE, else $XDG_CACHE_HOME/deepsports, else ~/.cache/deepsports; None if there is no home folder."""
    if own := os.environ.get("DEEPSPORTS_CACHE"):
        return Path(own).absolute()
    site = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(site):  # the XDG standard ignores relative paths
        return Path(site) / "deepsports"
    try:
        return Path.home() / ".cache" / "deepsports"
    except RuntimeError:  # no HOME and no entry in the password file
        return None


def _state(frames_dir: Path, video: str) -> str:
    """A text that changes when a video is extracted again, or when loose frames are added or removed."""
    path, folder = archive_file(frames_dir, video), loose_dir(frames_dir, video)
    paths = [path] if path.exists() else [*([folder] if folder.exists() else []), *clip_folders(folder)]
    return "".join(f"{status.st_size} {status.st_mtime_ns}\n" for status in map(os.stat, paths))


def _places(frames_dir: Path) -> list[Path]:
    """The folders for the markers of a data set, in the order in which they are tried.

    First next to the frames, then in the cache. The cache key is the resolved path, which must be the same on login and
    compute nodes.
    """
    places = [frames_dir / ".verified"]
    if cache := cache_folder():
        resolved = str(frames_dir.resolve())
        places.append(cache / "verified" / hashlib.sha256(resolved.encode(errors="surrogateescape")).hexdigest()[:32])
    return places


def mark_verified(frames_dir: Path, video: str) -> Path:
    """Record that this video, in its present state, was verified; return the folder with the marker.

    Raises:
        OSError: the marker can be written neither next to the frames nor in the cache.
    """
    state = _state(frames_dir, video).encode()
    *first, last = _places(frames_dir)
    for place in first:
        try:
            write_atomic(place / video, state)
            return place
        except OSError:
            pass  # read-only, owned by another user, or full: try the next folder
    write_atomic(last / video, state)
    return last


def mark_videos_verified(frames_dir: Path, videos: Iterable[str]) -> str:
    """Record that videos were verified; return a sentence with the folder, or with the reason why it failed."""
    try:
        with ThreadPoolExecutor(_THREADS) as threads:
            places = dict.fromkeys(threads.map(lambda video: mark_verified(frames_dir, video), videos))
    except OSError as error:
        return (
            f"The verification could not be recorded ({error.strerror}: {error.filename}), so launch.submit will ask for it again: "
            f"set DEEPSPORTS_CACHE to a writable folder that the nodes of the cluster can read, then verify again."
        )
    return f"Verification recorded in {' and '.join(map(str, places))}." if places else ""


def unverified(frames_dir: Path, videos: Iterable[str]) -> list[str]:
    """The videos that were not verified, or that changed after they were verified."""
    places = _places(frames_dir)

    def verified(video: str) -> bool:
        state = _state(frames_dir, video)
        return any(_read_marker(place / video) == state for place in places)

    videos = list(videos)
    with ThreadPoolExecutor(_THREADS) as threads:
        return [
            video for video, is_verified in zip(videos, threads.map(verified, videos), strict=True) if not is_verified
        ]


def _read_marker(path: Path) -> str | None:
    """The content of a marker file; None if there is none that this user may read."""
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return None
