"""Copies of frame archives on a disk of the node, made once and shared by all jobs there.

DEEPSPORTS_STAGE=require        copy the archives of a run before it trains; end with status 2 if they do not fit
DEEPSPORTS_STAGE=try            read them from --root_dir if they do not fit, with a warning
DEEPSPORTS_STAGE_DIR            folder on a disk of the node, by default $TMPDIR, else /tmp
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from data_preparation.common.errors import UserError, first_line
from data_preparation.common.files import atomic_file
from data_preparation.layout import archive_file
from data_preparation.many_videos import names_text
from data_preparation.transfer import size_text

log = logging.getLogger(__name__)

VARIABLE, FOLDER_VARIABLE = "DEEPSPORTS_STAGE", "DEEPSPORTS_STAGE_DIR"


def frames_on_node(frames_dir: Path, videos: Iterable[str], env: Mapping[str, str] = os.environ) -> Path:
    """The folder from which to read the frames of these videos: the copy on this node, as the variables above say, or `frames_dir`.

    Raises:
        UserError: a variable is wrong, or DEEPSPORTS_STAGE is require and the archives cannot be copied.
    """
    mode = env.get(VARIABLE, "")
    if not mode:
        return frames_dir
    if mode not in ("try", "require"):
        raise UserError(f"{VARIABLE} is '{mode}': set it to try or require, or unset it")
    folder = Path(env.get(FOLDER_VARIABLE) or env.get("TMPDIR") or tempfile.gettempdir())
    try:
        return stage(frames_dir, videos, folder)
    except UserError as error:
        if mode == "require":
            raise
        log.warning("%s; frames are read from %s (%s is try)", error, frames_dir, VARIABLE)
        return frames_dir


def stage(frames_dir: Path, videos: Iterable[str], folder: Path) -> Path:
    """Copy the archives of some videos to a folder of `folder` for this user and `frames_dir`, and return it.

    Archives that are there already, with the size and time of the original, are not copied again. Other processes of the node that
    stage the same frames wait meanwhile.

    Raises:
        UserError: a video has no archive, there is too little space, or a file cannot be read or written.
    """
    key = hashlib.sha256(os.fsencode(frames_dir.resolve())).hexdigest()[:16]
    staged = folder / f"deepsports-frames-{os.getuid()}-{key}"
    names = sorted(set(videos))
    copies = {archive_file(staged, video): archive_file(frames_dir, video) for video in names}
    if missing := [video for video in names if not archive_file(frames_dir, video).is_file()]:
        raise UserError(
            f"{len(missing)} videos have no archive in {frames_dir} to copy to {folder} ({names_text(missing)}): extract them, pack loose frames with data_preparation.adopt, or unset {VARIABLE}"
        )
    started = time.perf_counter()
    try:
        staged.mkdir(parents=True, exist_ok=True, mode=0o700)
        if staged.stat().st_uid != os.getuid():
            raise UserError(f"{staged} belongs to another user: set {FOLDER_VARIABLE} to another folder")
        with open(staged / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            absent = {copy: source for copy, source in copies.items() if not _is_copy(copy, source)}
            needed, free = sum(source.stat().st_size for source in absent.values()), shutil.disk_usage(staged).free
            if needed > free:
                raise UserError(
                    f"{folder} has {size_text(free)} free and the archives of this run take {size_text(needed)} more: set {FOLDER_VARIABLE} to a larger disk of the node, or {VARIABLE}=try"
                )
            for copy, source in absent.items():
                with atomic_file(copy) as temporary:
                    shutil.copyfile(source, temporary)
                    shutil.copystat(source, temporary)
    except OSError as error:
        raise UserError(
            f"the archives of {frames_dir} cannot be copied to {staged} ({first_line(error)}): set {FOLDER_VARIABLE} to a folder on a disk of the node, or {VARIABLE}=try"
        ) from None
    if absent:
        log.info(
            "Copied %d of %d archives (%s) to %s in %.1f s",
            len(absent), len(copies), size_text(needed), staged, time.perf_counter() - started,
        )  # fmt: skip
    return staged


def _is_copy(copy: Path, source: Path) -> bool:
    """Whether a copy has the size and the time of its original. Each frame has a checksum, which is compared when it is read."""
    if not copy.exists():
        return False
    there, here = copy.stat(), source.stat()
    return (there.st_size, there.st_mtime_ns) == (here.st_size, here.st_mtime_ns)
