"""Bring one file from one source to NAME.part: the web with resume and retries, this machine, or YouTube."""

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

_BLOCK = 1 << 14  # bytes; what a broken connection may lose
_LONGEST_WAIT = 60.0  # seconds between two attempts
_TRY_AGAIN = {408, 425, 429, 500, 502, 503, 504}


class SourceError(Exception):
    """A source that cannot give the file; the next source may."""


class RetryableError(Exception):
    """A transfer that broke off and may go on: what happened, and how long the server wants us to wait (seconds)."""

    def __init__(self, text: str, wait: float | None = None) -> None:
        super().__init__(text)
        self.wait = wait


def size_text(size: float) -> str:
    """Bytes as a person reads them."""
    return next(f"{size / scale:.3g} {unit}" for scale, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "bytes")) if size >= scale or scale == 1)  # fmt: skip


class DiskSpace:
    """What the downloads under way will still write, so that together they fit on the disk."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._coming: dict[Path, int] = {}

    def claim(self, path: Path, size: int) -> None:
        """
        Raises:
            UserError: the disk has less room than this file and those under way need.
        """
        with self._lock:
            others = sum(size for other, size in self._coming.items() if other != path)
            free = shutil.disk_usage(path.parent).free
            if size + others > free:
                raise UserError(
                    f"{path.parent} has {size_text(free)} free and {size_text(size + others)} are to come ({path.stem} and the downloads under way): make room, or name another --dataset"
                )
            self._coming[path] = size

    def release(self, path: Path, size: int | None = None) -> None:
        """`size` bytes have been written, or (None) no more will come."""
        with self._lock:
            left = self._coming.pop(path, 0) - (size or 0)
            if size is not None and left > 0:
                self._coming[path] = left


@dataclass
class PartialFile:
    """NAME.part, and NAME.part.json that says where its bytes come from: only that source may continue it."""

    path: Path

    @property
    def note(self) -> Path:
        return self.path.with_name(self.path.name + ".json")

    def have(self, source: str) -> int:
        """Bytes that are there of this source."""
        try:
            known = json.loads(self.note.read_text())
            return self.path.stat().st_size if known["source"] == source else 0
        except (OSError, ValueError, KeyError, TypeError):
            return 0

    def tag(self) -> str | None:
        """The server's mark of the version that the bytes are of."""
        try:
            return json.loads(self.note.read_text())["tag"]
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def begin(self, source: str, tag: str | None) -> None:
        """Note what the bytes to come are of, before the first is written."""
        self.path.write_bytes(b"")
        write_atomic(self.note, json.dumps({"source": source, "tag": tag}).encode())

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)


@dataclass(frozen=True)
class Transfer:
    """One file on its way: where it goes, what it shares with the others, and how it tells of itself."""

    artefact: Artefact
    part: PartialFile
    bar: tqdm
    say: Callable[[str], None]
    space: DiskSpace
    stop: threading.Event
    retries: int
    timeout: float  # seconds

    def check_stop(self) -> None:
        """
        Raises:
            Cancelled: the command was interrupted.
        """
        if self.stop.is_set():
            raise Cancelled

    def pause(self, seconds: float) -> None:
        """
        Raises:
            Cancelled: the command was interrupted meanwhile.
        """
        if self.stop.wait(seconds):
            raise Cancelled

    def wrote(self, size: int) -> None:
        """`size` bytes have been written to the part."""
        self.space.release(self.part.path, size)
        self.bar.update(size)
        self.check_stop()


def fetch(transfer: Transfer, source: str) -> None:
    """Bring the part to completeness from a source.

    Raises:
        SourceError: the source cannot give the file.
        UserError: the disk has no room for it.
        Cancelled: the command was interrupted.
    """
    if is_youtube(source):
        _fetch_youtube(transfer, source)
    elif is_web(source):
        _fetch_web(transfer, source)
    else:
        _fetch_local(transfer, Path(source))


def _fetch_web(transfer: Transfer, url: str) -> None:
    """Bring `part` to completeness from an http(s) address, over as many attempts as bring something.

    Raises:
        SourceError: the server has no such file, sends something else, or breaks off too often.
    """
    part = transfer.part
    fruitless, longest = 0, part.have(url)
    while True:
        try:
            _attempt(transfer, url)
            return
        except RetryableError as broken:
            longest, before = max(longest, part.have(url)), longest
            fruitless = 0 if longest > before else fruitless + 1
            if fruitless > transfer.retries:
                raise SourceError(f"{broken}; given up after {fruitless} fruitless attempts") from None
            transfer.pause(min(broken.wait or 2.0 ** max(fruitless - 1, 0), _LONGEST_WAIT))


def _attempt(transfer: Transfer, url: str) -> None:
    artefact, part = transfer.artefact, transfer.part
    have = part.have(url)
    headers = {"Accept-Encoding": "identity", "User-Agent": "DeepSports"}  # the bytes as they are
    if have:
        headers["Range"] = f"bytes={have}-"
        if tag := part.tag():
            headers["If-Range"] = tag
    try:
        with requests.get(url, headers=headers, stream=True, timeout=(15, transfer.timeout)) as answer:
            total = _check_answer(answer, artefact, have)
            if answer.status_code == 416:  # nothing is left to send
                if total == have:
                    return
                part.remove()
                raise RetryableError("what is here does not fit what the server has; started again from the beginning")
            blocks = answer.iter_content(_BLOCK)
            first = next(blocks, b"")
            if answer.status_code == 200:
                if have:
                    cause = (
                        "the file has changed there"
                        if part.tag() not in (None, _version(answer))
                        else "it ignores Range"
                    )
                    transfer.say(f"{size_text(have)} that were here come again from the beginning: {cause} ({url})")
                if fault := content_fault(artefact.name, first[:HEAD_BYTES]):
                    raise SourceError(fault)
                have = 0
                part.begin(url, _version(answer))
            transfer.space.claim(part.path, (total or have) - have)
            transfer.bar.total, transfer.bar.n = total, have
            transfer.bar.refresh()
            with open(part.path, "ab") as file:
                while first:
                    file.write(first)
                    transfer.wrote(len(first))
                    first = next(blocks, b"")
    except (requests.exceptions.InvalidURL, UnicodeError) as error:
        raise SourceError(f"no address: {first_line(error)}") from None
    except requests.exceptions.SSLError as error:
        raise SourceError(f"no secure connection ({_reason(error)})") from None
    except requests.exceptions.TooManyRedirects:
        raise SourceError("redirects without end") from None
    except (requests.exceptions.ChunkedEncodingError, requests.exceptions.ContentDecodingError):
        raise RetryableError(f"the connection broke off after {size_text(part.have(url))}") from None
    except requests.exceptions.Timeout:
        raise RetryableError(f"no byte for {transfer.timeout:g} s") from None
    except requests.exceptions.ConnectionError as error:
        if "Read timed out" in str(error):  # in the middle of the body
            raise RetryableError(f"no byte for {transfer.timeout:g} s") from None
        raise RetryableError(
            f"no connection ({_reason(error)}); compute nodes often reach no network: run this on the login node"
        ) from None
    if total is not None and (size := part.path.stat().st_size) != total:
        raise RetryableError(f"the connection ended at {size} of {total} bytes")


def _reason(error: Exception) -> str:
    """The cause at the bottom of a chain of connection errors, in a few words."""
    text = first_line(error)
    for known in ("Name or service not known", "Temporary failure in name resolution", "Connection refused"):
        if known in text:
            return known
    return text.rsplit(":", 1)[-1].strip(" ')\"") or text


def _number(text: str) -> int | None:
    """The value of a header that should be a number."""
    return int(text) if re.fullmatch("[0-9]{1,18}", text) else None


def _version(answer: requests.Response) -> str | None:
    """A mark by which the server tells versions of the file: a strong ETag, or the time of the last change."""
    tag = answer.headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else answer.headers.get("Last-Modified")


def _check_answer(answer: requests.Response, artefact: Artefact, have: int) -> int | None:
    """The file's whole size in bytes by the server's headers, None where it does not say.

    Raises:
        SourceError: this will never be the file.
        RetryableError: this is not the file now.
    """
    status = answer.status_code
    if status in _TRY_AGAIN:
        pause = answer.headers.get("Retry-After", "")
        raise RetryableError(f"the server answers {status} {answer.reason}", _number(pause))
    if status not in (200, 206, 416):
        raise SourceError(f"the server answers {status} {answer.reason}")
    if status != 416 and answer.headers.get("Content-Type", "").startswith("text/html"):
        if answer.history:
            raise SourceError(f"redirected to {answer.url}, a web page: the file wants a log-in, or the link expired")
        raise SourceError(content_fault(artefact.name, b"<html"))
    if status == 200:
        length = answer.headers.get("Content-Length", "")
        total = _number(length)
    else:
        span, _, whole = answer.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
        total = _number(whole)
        if status == 206 and not span.startswith(f"{have}-"):
            raise SourceError(f"the server sends other bytes than were asked for (Content-Range '{span}')")
    if artefact.size is not None and total not in (None, artefact.size):
        raise SourceError(f"the server's file has {total} bytes, the catalogue says {artefact.size}")
    return total


def _fetch_local(transfer: Transfer, source: Path) -> None:
    """Copy a file of this machine to `part`.

    Raises:
        SourceError: it is missing, no file, unreadable, or something else than its name says.
    """
    try:
        if source.exists() and not source.is_file():
            raise SourceError("no file")
        with open(source, "rb") as original:
            if fault := content_fault(transfer.artefact.name, original.read(HEAD_BYTES)):
                raise SourceError(fault)
            original.seek(0)
            transfer.bar.total = os.fstat(original.fileno()).st_size
            transfer.space.claim(transfer.part.path, transfer.bar.total)
            transfer.part.begin(str(source), None)
            with open(transfer.part.path, "ab") as file:
                while block := original.read(_BLOCK):
                    file.write(block)
                    transfer.wrote(len(block))
    except OSError as error:
        if error.filename != str(source):
            raise
        raise SourceError(error.strerror) from None


def _fetch_youtube(transfer: Transfer, url: str) -> None:
    """Fetch a YouTube video with yt-dlp, which a user may have installed; the best mp4 picture, without sound.

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
    part.begin(url, None)
    fetched = part.path.with_name(f".yt-dlp.{transfer.artefact.name}")  # it would take the ending .part off
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
    """yt-dlp's messages reach the user through its errors."""

    def debug(self, text: str) -> None: ...

    warning = error = info = debug
