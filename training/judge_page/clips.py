"""The clips that people have uploaded: what is known of each, and the private folder that holds its files until it is removed."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from training.judge_page.records import Verdict, VideoFacts

PREFIX = "deepsports_judge_"
_LOCK = "in_use"


@dataclass
class Clip:
    """An uploaded clip. `state` is one of:

    reading   the worker opens the file, or the clip waits for that
    ready     it can be trimmed and scored
    scoring   the worker scores it, or the clip waits for that
    scored    `verdict` is known; the upload is deleted
    failed    `error` says why; all its files are deleted
    """

    id: str
    folder: Path
    name: str = ""
    state: str = "reading"
    path: Path | None = None
    facts: VideoFacts | None = None
    verdict: Verdict | None = None
    error: str = ""
    touched: float = field(default_factory=time.monotonic)

    @property
    def busy(self) -> bool:
        return self.state in ("reading", "scoring")

    def delete_upload(self) -> None:
        if self.path is not None:
            self.path.unlink(missing_ok=True)
            self.path = None

    def fail(self, sentence: str) -> None:
        """End with an error. The message names the file as the person named it, not by its path."""
        self.error = sentence.replace(str(self.path), self.name) if self.path else sentence
        self.path = None
        shutil.rmtree(self.folder, ignore_errors=True)
        self.state = "failed"  # last: who waits for it then finds no files


class Clips:
    """All clips by their random id. At most `bound` are held; the oldest that nobody waits for are removed after `keep_s`."""

    def __init__(self, folder: Path, bound: int, keep_s: float) -> None:
        self.folder, self.bound, self.keep_s = folder, bound, keep_s
        self._clips: dict[str, Clip] = {}
        self._lock = threading.Lock()

    def new(self) -> Clip | None:
        """A clip with an empty folder, or None if too many are held."""
        self.remove_old()
        with self._lock:
            if len(self._clips) >= self.bound:
                return None
            name = secrets.token_urlsafe(16)
            clip = Clip(name, self.folder / name)
            clip.folder.mkdir(mode=0o700)
            self._clips[name] = clip
            return clip

    def get(self, name: str) -> Clip | None:
        clip = self._clips.get(name)
        if clip is not None:
            clip.touched = time.monotonic()
        return clip

    def remove(self, clip: Clip) -> None:
        """Forget a clip and delete its files."""
        with self._lock:
            self._clips.pop(clip.id, None)
        shutil.rmtree(clip.folder, ignore_errors=True)

    def remove_old(self) -> None:
        """Remove the clips that nobody has looked at for `keep_s`."""
        now = time.monotonic()
        for clip in list(self._clips.values()):
            if not clip.busy and now - clip.touched > self.keep_s:
                self.remove(clip)


class PrivateFolder:
    """A temporary folder that only this user can open, removed at exit. Folders that a killed page has left are removed, too."""

    def __init__(self) -> None:
        self._lock: TextIO | None = None
        self.path = Path(tempfile.gettempdir())

    def __enter__(self) -> Path:
        for left in self.path.glob(f"{PREFIX}*"):
            if _is_abandoned(left):
                shutil.rmtree(left, ignore_errors=True)
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX))  # mode 0700
        self._lock = open(self.path / _LOCK, "w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        return self.path

    def __exit__(self, *_: object) -> None:
        assert self._lock is not None
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


def _is_abandoned(folder: Path) -> bool:
    """Whether the page of this user that made a folder has ended: then its lock is free."""
    try:
        if folder.lstat().st_uid != os.getuid():  # another user may have put anything there, such as a pipe that blocks
            return False
        with open(folder / _LOCK, "r+") as file:  # NFS locks only files that are open for writing
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except OSError:
        return False
