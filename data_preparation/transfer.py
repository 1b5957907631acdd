"""Download one file from one source to NAME.part: from the web (with resume and retries), a local copy, or YouTube."""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from tqdm import tqdm

from data_preparation.catalogue import Artefact, content_fault, is_web, is_youtube
from data_preparation.common.errors import UserError, first_line
from data_preparation.common.files import Cancelled, write_atomic
from data_preparation.file_types import HEAD_BYTES

_BLOCK = 1 << 14  # bytes per write; a broken connection loses at most one block
_MAX_WAIT_S = 60.0  # seconds between two attempts
_RETRY_STATUSES = {408, 425, 429, 500, 502, 503, 504}


class SourceError(Exception):
    """A source cannot provide the file; another source may."""


class RetryableError(Exception):
    """A transfer failed and may be retried, after `wait` seconds if the server asks for that."""

    def __init__(self, text: str, wait: float | None = None) -> None:
        super().__init__(text)
        self.wait = wait


def size_text(size: float) -> str:
    """A number of bytes with a unit."""
    return next(f"{size / scale:.3g} {unit}" for scale, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "bytes")) if size >= scale or scale == 1)  # fmt: skip


class DiskSpace:
    """Reserves disk space for the bytes that running downloads have still to write, so that they fit on the disk together."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reserved: dict[Path, int] = {}

    def reserve(self, path: Path, size: int) -> None:
        """Reserve `size` bytes for a file.

        Raises:
            UserError: the disk has less free space than this file and the running downloads need.
        """
        with self._lock:
            others = sum(size for other, size in self._reserved.items() if other != path)
            free = shutil.disk_usage(path.parent).free
            if size + others > free:
                raise UserError(
                    f"{path.parent} has {size_text(free)} free, but {path.stem} and the running downloads need {size_text(size + others)}: free some space, or name another --dataset"
                )
            self._reserved[path] = size

    def release(self, path: Path, size: int | None = None) -> None:
        """Reduce the reservation by `size` bytes that were written, or (None) delete it."""
        with self._lock:
            left = self._reserved.pop(path, 0) - (size or 0)
            if size is not None and left > 0:
                self._reserved[path] = left


@dataclass
class PartialFile:
    """NAME.part, and NAME.part.json with the source of its bytes: only the same source may continue the file."""

    path: Path

    @property
    def record(self) -> Path:
        return self.path.with_name(self.path.name + ".json")

    def bytes_from(self, source: str) -> int:
        """Number of bytes that were already downloaded from this source."""
        try:
            known = json.loads(self.record.read_text())
            return self.path.stat().st_size if known["source"] == source else 0
        except (OSError, ValueError, KeyError, TypeError):
            return 0

    def version(self) -> str | None:
        """The version of the file on the server (ETag or Last-Modified) that the bytes belong to."""
        try:
            return json.loads(self.record.read_text())["tag"]
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def start(self, source: str, version: str | None) -> None:
        """Empty the file and record its source, before the first byte is written."""
        self.path.write_bytes(b"")
        write_atomic(self.record, json.dumps({"source": source, "tag": version}).encode())

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self.record.unlink(missing_ok=True)


@dataclass(frozen=True)
class Transfer:
    """One download: its file, the state that it shares with other downloads, and its progress bar and messages."""

    artefact: Artefact
    part: PartialFile
    bar: tqdm
    report: Callable[[str], None]  # prints a message
    space: DiskSpace
    stop: threading.Event
    retries: int
    timeout: float  # seconds

    def check_stop(self) -> None:
        """
        Raises:
            Cancelled: the user interrupted the command.
        """
        if self.stop.is_set():
            raise Cancelled

    def pause(self, seconds: float) -> None:
        """Wait.

        Raises:
            Cancelled: the user interrupted the command.
        """
        if self.stop.wait(seconds):
            raise Cancelled

    def add_written(self, size: int) -> None:
        """Update the progress bar and the reservation after `size` bytes were written."""
        self.space.release(self.part.path, size)
        self.bar.update(size)
        self.check_stop()


def fetch(transfer: Transfer, source: str) -> None:
    """Complete the partial file from a source.

    Raises:
        SourceError: the source cannot provide the file.
        UserError: the disk has too little space.
        Cancelled: the user interrupted the command.
    """
    if is_youtube(source):
        _fetch_youtube(transfer, source)
    elif is_web(source):
        _fetch_web(transfer, source)
    else:
        _fetch_local(transfer, Path(source))


def _fetch_web(transfer: Transfer, url: str) -> None:
    """Complete the partial file from an http(s) link. `transfer.retries` counts only attempts that receive nothing new.

    Raises:
        SourceError: the server does not have the file, sends another file, or the connection breaks too often.
    """
    part = transfer.part
    failed, longest = 0, part.bytes_from(url)
    while True:
        try:
            _attempt(transfer, url)
            return
        except RetryableError as error:
            longest, before = max(longest, part.bytes_from(url)), longest
            failed = 0 if longest > before else failed + 1
            if failed > transfer.retries:
                raise SourceError(f"{error}; gave up after {failed} failed attempts") from None
            transfer.pause(min(error.wait or 2.0 ** max(failed - 1, 0), _MAX_WAIT_S))


def _attempt(transfer: Transfer, url: str) -> None:
    artefact, part = transfer.artefact, transfer.part
    present = part.bytes_from(url)  # bytes
    # no compression: Range counts bytes of the file
    headers = {"Accept-Encoding": "identity", "User-Agent": "DeepSports"}
    if present:
        headers["Range"] = f"bytes={present}-"
        if version := part.version():
            headers["If-Range"] = version
    try:
        with requests.get(url, headers=headers, stream=True, timeout=(15, transfer.timeout)) as response:
            total = _check_response(response, artefact, present)
            if response.status_code == 416:  # nothing left to send
                if total == present:
                    return
                part.remove()
                raise RetryableError(
                    "the partial file does not match the file on the server; starting from the beginning"
                )
            blocks = response.iter_content(_BLOCK)
            first = next(blocks, b"")
            if response.status_code == 200:
                if present:
                    cause = (
                        "the file on the server has changed"
                        if part.version() not in (None, _version(response))
                        else "the server ignores Range"
                    )
                    transfer.report(f"{size_text(present)} are downloaded again from the beginning: {cause} ({url})")
                if fault := content_fault(artefact.name, first[:HEAD_BYTES]):
                    raise SourceError(fault)
                present = 0
                part.start(url, _version(response))
            transfer.space.reserve(part.path, (total or present) - present)
            transfer.bar.total, transfer.bar.n = total, present
            transfer.bar.refresh()
            with open(part.path, "ab") as file:
                while first:
                    file.write(first)
                    transfer.add_written(len(first))
                    first = next(blocks, b"")
    except (requests.exceptions.InvalidURL, UnicodeError) as error:
        raise SourceError(f"not a valid link: {first_line(error)}") from None
    except requests.exceptions.SSLError as error:
        raise SourceError(f"no secure connection ({_reason(error)})") from None
    except requests.exceptions.TooManyRedirects:
        raise SourceError("too many redirects") from None
    except (requests.exceptions.ChunkedEncodingError, requests.exceptions.ContentDecodingError):
        raise RetryableError(f"the connection broke after {size_text(part.bytes_from(url))}") from None
    except requests.exceptions.Timeout:
        raise RetryableError(f"no data for {transfer.timeout:g} s") from None
    except requests.exceptions.ConnectionError as error:
        if "Read timed out" in str(error):  # while reading the body
            raise RetryableError(f"no data for {transfer.timeout:g} s") from None
        raise RetryableError(
            f"no connection ({_reason(error)}); compute nodes often have no network: run this on the login node"
        ) from None
    if total is not None and (size := part.path.stat().st_size) != total:
        raise RetryableError(f"the connection ended at {size} of {total} bytes")


def _reason(error: Exception) -> str:
    """The root cause of a chain of connection errors, in a few words."""
    text = first_line(error)
    for known in ("Name or service not known", "Temporary failure in name resolution", "Connection refused"):
        if known in text:
            return known
    return text.rsplit(":", 1)[-1].strip(" ')\"") or text


def _parse_number(text: str) -> int | None:
    """The number in a header, or None if it is not a number."""
    return int(text) if re.fullmatch("[0-9]{1,18}", text) else None


def _version(response: requests.Response) -> str | None:
    """What identifies the version of the file on the server: a strong ETag, or Last-Modified."""
    tag = response.headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified")


def _check_response(response: requests.Response, artefact: Artefact, present: int) -> int | None:
    """Check the status and headers of a response; return the size of the whole file in bytes, None if unknown.

    Raises:
        SourceError: the server does not have the file.
        RetryableError: the server cannot send the file at present.
    """
    status = response.status_code
    if status in _RETRY_STATUSES:
        pause = response.headers.get("Retry-After", "")
        raise RetryableError(f"the server answers {status} {response.reason}", _parse_number(pause))
    if status not in (200, 206, 416):
        raise SourceError(f"the server answers {status} {response.reason}")
    if status != 416 and response.headers.get("Content-Type", "").startswith("text/html"):
        if response.history:
            raise SourceError(
                f"redirected to {response.url}, a web page: the file needs a log-in, or the link has expired"
            )
        raise SourceError(content_fault(artefact.name, b"<html") or "the server sent a web page")
    if status == 200:
        length = response.headers.get("Content-Length", "")
        total = _parse_number(length)
    else:
        span, _, whole = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
        total = _parse_number(whole)
        if status == 206 and not span.startswith(f"{present}-"):
            raise SourceError(f"the server sends other bytes than were requested (Content-Range '{span}')")
    if artefact.size is not None and total not in (None, artefact.size):
        raise SourceError(f"the server's file has {total} bytes, but the catalogue states {artefact.size}")
    return total


def _fetch_local(transfer: Transfer, source: Path) -> None:
    """Copy a file of this machine to the partial file.

    Raises:
        SourceError: it is missing, not a file, unreadable, or of another type than its suffix.
    """
    try:
        if source.exists() and not source.is_file():
            raise SourceError("not a file")
        with open(source, "rb") as original:
            if fault := content_fault(transfer.artefact.name, original.read(HEAD_BYTES)):
                raise SourceError(fault)
            original.seek(0)
            transfer.bar.total = os.fstat(original.fileno()).st_size
            transfer.space.reserve(transfer.part.path, transfer.bar.total)
            transfer.part.start(str(source), None)
            with open(transfer.part.path, "ab") as file:
                while block := original.read(_BLOCK):
                    file.write(block)
                    transfer.add_written(len(block))
    except OSError as error:
        if error.filename != str(source):
            raise
        raise SourceError(error.strerror) from None


def _fetch_youtube(transfer: Transfer, url: str) -> None:
    """Download the best mp4 video stream (no sound) from YouTube with yt-dlp, which is an optional package.

    Raises:
        SourceError: yt-dlp is not installed, or fails.
    """
    try:
        import yt_dlp
    except ImportError:
        raise SourceError("YouTube needs yt-dlp: pip install yt-dlp") from None

    def progress(status: dict[str, Any]) -> None:
        transfer.check_stop()
        transfer.bar.total = status.get("total_bytes") or status.get("total_bytes_estimate")
        transfer.bar.update(status.get("downloaded_bytes", 0) - transfer.bar.n)

    part = transfer.part
    part.start(url, None)
    fetched = part.path.with_name(f".yt-dlp.{transfer.artefact.name}")  # yt-dlp would remove a suffix .part
    options = {
        "format": "bestvideo[ext=mp4]/best[ext=mp4]",
        "outtmpl": str(fetched).replace("%", "%%"),
        "overwrites": True,
        "continuedl": False,
        "nopart": True,
        "quiet": True,
        "noprogress": True,
        "no_warnings": True,
        "logger": _Silent(),
        "socket_timeout": transfer.timeout,
        "retries": transfer.retries,
        "progress_hooks": [progress],
    }
    try:
        with yt_dlp.YoutubeDL(options) as downloader:
            downloader.download([url])
        os.replace(fetched, part.path)
    except yt_dlp.utils.DownloadError as error:
        raise SourceError(f"yt-dlp: {first_line(error).removeprefix('ERROR: ')}") from None
    finally:
        fetched.unlink(missing_ok=True)
    with open(part.path, "rb") as file:
        if fault := content_fault(transfer.artefact.name, file.read(HEAD_BYTES)):
            raise SourceError(fault)


class _Silent:
    """A logger for yt-dlp that prints nothing: its errors carry the messages."""

    def debug(self, text: str) -> None: ...

    warning = error = info = debug
