"""Which extractions are at work on a folder of frames: each keeps a small file beside the frames, and touches it.

A file instead of a lock or a process list, since other nodes of a cluster see it, too.
"""

from __future__ import annotations

import json
import os
import re
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from data_preparation.common.files import is_writer_alive, remove_stale_temporaries

_TOUCHED_EVERY = 20  # seconds
_ALIVE_WITHIN = 300  # seconds since the last touch, on another host, whose clock may differ by a little
_NAME = re.compile(r"\.extracting\.(?P<host>.+)\.(?P<pid>[0-9]+)\.tmp")


@dataclass(frozen=True)
class Extraction:
    """One extraction at work: the videos of its share, and of how many shares it is one."""

    host: str
    pid: int
    videos: frozenset[int]
    shares: int

    @property
    def text(self) -> str:
        return f"process {self.pid} on {self.host}"


@contextmanager
def under_way(frames_dir: Path, videos: Iterable[int], shares: int) -> Iterator[None]:
    """Tell others while the block runs that these videos are being extracted. Where the folder cannot be written to,
    nobody is told; the archives say why."""
    # the naming of temporary files, so that those of killed extractions are removed in the same way
    mark = frames_dir / f".extracting.{socket.gethostname()}.{os.getpid()}.tmp"
    done = threading.Event()

    def keep_alive() -> None:
        while not done.wait(_TOUCHED_EVERY):
            with suppress(OSError):
                os.utime(mark)

    try:
        with suppress(OSError):
            frames_dir.mkdir(parents=True, exist_ok=True)
            remove_stale_temporaries(frames_dir / "extracting")
            mark.write_text(json.dumps({"videos": sorted(videos), "shares": shares}))
        threading.Thread(target=keep_alive, daemon=True).start()
        yield
    finally:
        done.set()
        with suppress(OSError):
            mark.unlink(missing_ok=True)


def extractions(frames_dir: Path) -> list[Extraction]:
    """The extractions that are at work on a folder of frames now."""
    found = []
    with suppress(OSError):
        for path in sorted(frames_dir.iterdir()):
            if (match := _NAME.fullmatch(path.name)) and is_writer_alive(
                path, match["host"], int(match["pid"]), _ALIVE_WITHIN
            ):
                with suppress(OSError, ValueError, KeyError, TypeError):
                    said = json.loads(path.read_text())
                    videos = frozenset(map(int, said["videos"]))
                    found.append(Extraction(match["host"], int(match["pid"]), videos, int(said["shares"])))
    return found
