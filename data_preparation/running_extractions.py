"""Record which extractions are running on a folder of frames, in a small file that each keeps there and touches.

A file is used instead of a lock or a process list because the other nodes of a cluster see it too.
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

from data_preparation.actions import video_name
from data_preparation.common.files import is_writer_alive, remove_stale_temporaries

_TOUCH_INTERVAL = 20  # seconds
_ALIVE_WITHIN = 300  # seconds since the last touch, on another host, whose clock may differ by a little
_FILE_NAME = re.compile(r"\.extracting\.(?P<host>.+)\.(?P<pid>[0-9]+)\.tmp")


@dataclass(frozen=True)
class Extraction:
    """A running extraction: the videos of its shard, and the number of shards it is one of."""

    host: str
    pid: int
    videos: frozenset[str]
    shards: int


@contextmanager
def announce_extraction(frames_dir: Path, videos: Iterable[str], shards: int) -> Iterator[None]:
    """Announce to other processes, while the block runs, that these videos are being extracted.

    If the folder cannot be written to, there is no announcement; writing the first archive reports the error.
    """
    # named like the temporary files of common.files, so that the same code removes those of killed extractions
    mark = frames_dir / f".extracting.{socket.gethostname()}.{os.getpid()}.tmp"
    done = threading.Event()

    def keep_alive() -> None:
        while not done.wait(_TOUCH_INTERVAL):
            with suppress(OSError):
                os.utime(mark)

    try:
        with suppress(OSError):
            frames_dir.mkdir(parents=True, exist_ok=True)
            remove_stale_temporaries(frames_dir / "extracting")
            mark.write_text(json.dumps({"videos": sorted(videos), "shares": shards}))
        threading.Thread(target=keep_alive, daemon=True).start()
        yield
    finally:
        done.set()
        with suppress(OSError):
            mark.unlink(missing_ok=True)


def running_extractions(frames_dir: Path) -> list[Extraction]:
    """The extractions that are running on a folder of frames now."""
    extractions = []
    with suppress(OSError):
        for path in sorted(frames_dir.iterdir()):
            if (match := _FILE_NAME.fullmatch(path.name)) and is_writer_alive(
                path, match["host"], int(match["pid"]), _ALIVE_WITHIN
            ):
                with suppress(OSError, ValueError, KeyError, TypeError):
                    content = json.loads(path.read_text())
                    videos = frozenset(map(video_name, content["videos"]))
                    extractions.append(Extraction(match["host"], int(match["pid"]), videos, int(content["shares"])))
    return extractions
