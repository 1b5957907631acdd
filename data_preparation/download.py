"""Download videos, annotations and weights, on the login node: compute nodes often reach no network.

    python -m data_preparation.download {videos,annotations,weights,all} --dataset DIR [--only 01 02]

What can be fetched, and from where, is in data_preparation/catalogue.ini. A download that broke off goes on where it
stopped; a finished file is checked against the SHA-256 recorded in manifest.json of the data set folder.
"""

from __future__ import annotations

import fcntl
import json
import os
import queue
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import IO, Any

import requests
from tqdm import tqdm

from data_preparation.catalogue import CATALOGUE, KINDS, Artefact, content_fault, is_web, is_youtube, load_catalogue
from data_preparation.cli import UserError, first_line, flag, parse_command, run
from data_preparation.files import Stopped, sha256, write_whole
from data_preparation.layout import DatasetLayout, default_dataset

_BLOCK = 1 << 14  # bytes; what a broken connection may lose
_LONGEST_WAIT = 60.0  # seconds between two attempts
_TRY_AGAIN = {408, 425, 429, 500, 502, 503, 504}


@dataclass(frozen=True)
class DownloadConfig:
    """Download files of the catalogue into a data set folder."""

    dataset: Path | None = flag(
        None, "Data set folder, made if need be; none takes DEEPSPORTS_DATASET of job_files/environment.sh."
    )
    only: tuple[str, ...] = flag((), "Only these files, by name with or without ending.", allowed="names such as 01 02")
    parallel: int = flag(4, "Files at the same time.", minimum=1, maximum=32)
    retries: int = flag(5, "Attempts more after one that brought nothing, each after twice the wait.", minimum=0)
    timeout: float = flag(60.0, "Seconds without a byte after which a connection counts as broken.", minimum=0.1)
    catalogue: Path | None = flag(None, "Catalogue file; none takes data_preparation/catalogue.ini.")


class SourceFault(Exception):
    """A source that cannot give the file; the next source may."""


class Interrupted(Exception):
    """A transfer that broke off and may go on: what happened, and how long the server wants us to wait (seconds)."""

    def __init__(self, text: str, wait: float | None = None) -> None:
        super().__init__(text)
        self.wait = wait


def size_text(size: float) -> str:
    """Bytes as a person reads them."""
    return next(f"{size / scale:.3g} {unit}" for scale, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "bytes")) if size >= scale or scale == 1)  # fmt: skip


# -------------------------------------------------------------------------------------------- what all downloads share


class Manifest:
    """manifest.json of a data set folder: SHA-256, size, source and date of every downloaded file, by relative path."""

    def __init__(self, layout: DatasetLayout) -> None:
        self.path = layout.manifest
        self._lock = threading.Lock()

    def read(self) -> dict[str, dict[str, Any]]:
        """
        Raises:
            UserError: the file is there and unreadable.
        """
        try:
            return json.loads(self.path.read_text())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self.path} is unreadable ({first_line(error)}): mend it, or delete it to record all files anew"
            ) from None

    def record(self, name: str, digest: str, size: int, source: str) -> None:
        """Add a file; safe beside other threads and processes that do the same."""
        with self._lock, open(self.path.with_name(f".{self.path.name}.lock"), "w") as lock:
            fcntl.lockf(lock, fcntl.LOCK_EX)
            entry = {"sha256": digest, "bytes": size, "source": source, "recorded": date.today().isoformat()}
            entries = dict(sorted({**self.read(), name: entry}.items()))
            write_whole(self.path, (json.dumps(entries, indent=2) + "\n").encode())


class Space:
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
class Job:
    """One command: its flags and what its downloads share."""

    layout: DatasetLayout
    config: DownloadConfig
    manifest: Manifest
    space: Space = field(default_factory=Space)
    stop: threading.Event = field(default_factory=threading.Event)
    rows: queue.SimpleQueue[int] = field(default_factory=queue.SimpleQueue)  # of the terminal, for progress bars

    def pause(self, seconds: float) -> None:
        """
        Raises:
            Stopped: the command was interrupted meanwhile.
        """
        if self.stop.wait(seconds):
            raise Stopped

    @contextmanager
    def bar(self, name: str) -> Iterator[tqdm]:
        """A progress bar in bytes with rate and time to go, on a row of its own."""
        row = self.rows.get()
        try:
            with tqdm(
                desc=name, unit="B", unit_scale=True, position=row, leave=False, disable=not sys.stderr.isatty()
            ) as bar:
                yield bar
        finally:
            self.rows.put(row)


# ----------------------------------------------------------------------------------------------- from a source to .part


@dataclass
class Partial:
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
        write_whole(self.note, json.dumps({"source": source, "tag": tag}).encode())

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)


def fetch_web(job: Job, artefact: Artefact, url: str, part: Partial, bar: tqdm, say: Callable[[str], None]) -> None:
    """Bring `part` to completeness from an http(s) address, over as many attempts as bring something.

    Raises:
        SourceFault: the server has no such file, sends something else, or breaks off too often.
    """
    fruitless, longest = 0, part.have(url)
    while True:
        try:
            _attempt(job, artefact, url, part, bar, say)
            return
        except Interrupted as broken:
            longest, before = max(longest, part.have(url)), longest
            fruitless = 0 if longest > before else fruitless + 1
            if fruitless > job.config.retries:
                raise SourceFault(f"{broken}; {fruitless} attempts brought nothing more") from None
            job.pause(min(broken.wait or 2.0 ** max(fruitless - 1, 0), _LONGEST_WAIT))


def _attempt(job: Job, artefact: Artefact, url: str, part: Partial, bar: tqdm, say: Callable[[str], None]) -> None:
    have = part.have(url)
    headers = {"Accept-Encoding": "identity", "User-Agent": "DeepSports"}  # the bytes as they are
    if have:
        headers["Range"] = f"bytes={have}-"
        if tag := part.tag():
            headers["If-Range"] = tag
    try:
        with requests.get(url, headers=headers, stream=True, timeout=(15, job.config.timeout)) as answer:
            total = _check_answer(answer, artefact, have)
            if answer.status_code == 416:  # nothing is left to send
                if total == have:
                    return
                part.remove()
                raise Interrupted("what is here does not fit what the server has; started again from the beginning")
            blocks = answer.iter_content(_BLOCK)
            first = next(blocks, b"")
            if answer.status_code == 200:
                if have:
                    cause = (
                        "the file has changed there"
                        if part.tag() not in (None, _version(answer))
                        else "it ignores Range"
                    )
                    say(f"{size_text(have)} that were here come again from the beginning: {cause} ({url})")
                if fault := content_fault(artefact.name, first[:64]):
                    raise SourceFault(fault)
                have = 0
                part.begin(url, _version(answer))
            job.space.claim(part.path, (total or have) - have)
            bar.total, bar.n = total, have
            bar.refresh()
            with open(part.path, "ab") as file:
                while first:
                    file.write(first)
                    job.space.release(part.path, len(first))
                    bar.update(len(first))
                    if job.stop.is_set():
                        raise Stopped
                    first = next(blocks, b"")
    except requests.exceptions.InvalidURL as error:
        raise SourceFault(f"no address: {first_line(error)}") from None
    except requests.exceptions.SSLError as error:
        raise SourceFault(f"no secure connection ({_reason(error)})") from None
    except requests.exceptions.TooManyRedirects:
        raise SourceFault("redirects without end") from None
    except (requests.exceptions.ChunkedEncodingError, requests.exceptions.ContentDecodingError):
        raise Interrupted(f"the connection broke off after {size_text(part.have(url))}") from None
    except requests.exceptions.Timeout:
        raise Interrupted(f"no byte for {job.config.timeout:g} s") from None
    except requests.exceptions.ConnectionError as error:
        if "Read timed out" in str(error):  # in the middle of the body
            raise Interrupted(f"no byte for {job.config.timeout:g} s") from None
        raise Interrupted(
            f"no connection ({_reason(error)}); compute nodes often reach no network: run this on the login node"
        ) from None
    if total is not None and (size := part.path.stat().st_size) != total:
        raise Interrupted(f"the connection ended at {size} of {total} bytes")


def _reason(error: Exception) -> str:
    """The cause at the bottom of a chain of connection errors, in a few words."""
    text = first_line(error)
    for known in ("Name or service not known", "Temporary failure in name resolution", "Connection refused"):
        if known in text:
            return known
    return text.rsplit(":", 1)[-1].strip(" ')\"") or text


def _version(answer: requests.Response) -> str | None:
    """A mark by which the server tells versions of the file: a strong ETag, or the time of the last change."""
    tag = answer.headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else answer.headers.get("Last-Modified")


def _check_answer(answer: requests.Response, artefact: Artefact, have: int) -> int | None:
    """The file's whole size in bytes by the server's headers, None where it does not say.

    Raises:
        SourceFault: this will never be the file.
        Interrupted: this is not the file now.
    """
    status = answer.status_code
    if status in _TRY_AGAIN:
        pause = answer.headers.get("Retry-After", "")
        raise Interrupted(f"the server answers {status} {answer.reason}", float(pause) if pause.isdigit() else None)
    if status not in (200, 206, 416):
        raise SourceFault(f"the server answers {status} {answer.reason}")
    if status != 416 and answer.headers.get("Content-Type", "").startswith("text/html"):
        if answer.history:
            raise SourceFault(f"redirected to {answer.url}, a web page: the file wants a log-in, or the link expired")
        raise SourceFault(content_fault(artefact.name, b"<html"))
    if status == 200:
        length = answer.headers.get("Content-Length", "")
        total = int(length) if length.isdigit() else None
    else:
        span, _, whole = answer.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
        total = int(whole) if whole.isdigit() else None
        if status == 206 and not span.startswith(f"{have}-"):
            raise SourceFault(f"the server sends other bytes than were asked for (Content-Range '{span}')")
    if artefact.size is not None and total not in (None, artefact.size):
        raise SourceFault(f"the server's file has {total} bytes, the catalogue says {artefact.size}")
    return total


def fetch_local(job: Job, artefact: Artefact, source: Path, part: Partial, bar: tqdm) -> None:
    """Copy a file of this machine to `part`.

    Raises:
        SourceFault: it is missing, no file, unreadable, or something else than its name says.
    """
    try:
        with open(source, "rb") as original:
            if fault := content_fault(artefact.name, original.read(64)):
                raise SourceFault(fault)
            original.seek(0)
            bar.total = os.fstat(original.fileno()).st_size
            job.space.claim(part.path, bar.total)
            part.begin(str(source), None)
            with open(part.path, "ab") as file:
                while block := original.read(_BLOCK):
                    if job.stop.is_set():
                        raise Stopped
                    file.write(block)
                    job.space.release(part.path, len(block))
                    bar.update(len(block))
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        if error.filename != str(source):
            raise
        raise SourceFault(error.strerror) from None


def fetch_youtube(job: Job, artefact: Artefact, url: str, part: Partial, bar: tqdm) -> None:
    """Fetch a YouTube video with yt-dlp, which a user may have installed; the best mp4 picture, without sound.

    Raises:
        SourceFault: yt-dlp is not installed, or fails.
    """
    try:
        import yt_dlp
    except ImportError:
        raise SourceFault("YouTube needs yt-dlp: pip install yt-dlp") from None

    def progress(status: dict[str, Any]) -> None:
        if job.stop.is_set():
            raise Stopped
        bar.total = status.get("total_bytes") or status.get("total_bytes_estimate")
        bar.update(status.get("downloaded_bytes", 0) - bar.n)

    part.begin(url, None)
    fetched = part.path.with_name(f".yt-dlp.{artefact.name}")  # it would take the ending .part off
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
        "socket_timeout": job.config.timeout,
        "retries": job.config.retries,
        "progress_hooks": [progress],
    }
    try:
        with yt_dlp.YoutubeDL(options) as downloader:
            downloader.download([url])
        os.replace(fetched, part.path)
    except yt_dlp.utils.DownloadError as error:
        raise SourceFault(f"yt-dlp: {first_line(error).removeprefix('ERROR: ')}") from None
    finally:
        fetched.unlink(missing_ok=True)
    with open(part.path, "rb") as file:
        if fault := content_fault(artefact.name, file.read(64)):
            raise SourceFault(fault)


class _Silent:
    """yt-dlp's messages reach the user through its errors."""

    def debug(self, text: str) -> None: ...

    warning = error = info = debug


# ------------------------------------------------------------------------------------------------------------- one file


def provide(job: Job, artefact: Artefact, say: Callable[[str], None]) -> str:
    """Have one file of the catalogue in its place, whole and checked; returns what happened, for the report.

    Raises:
        UserError: no source could give it, it is not what it was before, or the disk is full.
        Stopped: the command was interrupted; what has come stays for the next time.
    """
    target = artefact.target(job.layout)
    name = str(target.relative_to(job.layout.root))
    known = job.manifest.read().get(name)
    try:
        with job.bar(artefact.name) as bar:
            if target.exists():
                return _check_present(job, artefact, target, name, known, bar)
            target.parent.mkdir(parents=True, exist_ok=True)
            part = Partial(target.with_name(target.name + ".part"))
            with _alone(part):
                started = time.monotonic()
                source = _from_any_source(job, artefact, part, known, bar, say)
                digest, size = _sha256(part.path, job, bar), part.path.stat().st_size
                with open(part.path, "rb") as file:
                    os.fsync(file.fileno())
                job.manifest.record(name, digest, size, source)
                os.replace(part.path, target)
                part.remove()
                seconds = time.monotonic() - started
                return f"{size_text(size)} in {seconds:.0f} s, SHA-256 {'as recorded' if known or artefact.sha256 else 'recorded'}"
    except OSError as error:
        raise UserError(f"{target}: {error.strerror or first_line(error)}: make room, or mend its folder") from None
    finally:
        job.space.release(target.with_name(target.name + ".part"))


def _check_present(
    job: Job, artefact: Artefact, target: Path, name: str, known: dict[str, Any] | None, bar: tqdm
) -> str:
    if not target.is_file():
        raise UserError(f"{target} is no file: put it out of the way")
    digest, size = _sha256(target, job, bar), target.stat().st_size
    if fault := _digest_fault(artefact, known, digest):
        raise UserError(f"{target} {fault}; delete it to download it again")
    if known is None:
        with open(target, "rb") as file:
            if fault := content_fault(artefact.name, file.read(64)):
                raise UserError(f"{target}: {fault}; delete it to download it again")
        job.manifest.record(name, digest, size, "found in place")
        return f"there already ({size_text(size)}), SHA-256 {'right' if artefact.sha256 else 'recorded'}"
    return f"there already ({size_text(size)}), SHA-256 right"


def _sha256(path: Path, job: Job, bar: tqdm) -> str:
    bar.reset(path.stat().st_size)
    return sha256(path, job.stop.is_set, bar.update)


def _digest_fault(artefact: Artefact, known: dict[str, Any] | None, digest: str) -> str | None:
    if artefact.sha256 and digest != artefact.sha256:
        return f"has SHA-256 {digest[:12]}..., the catalogue says {artefact.sha256[:12]}...: another version or damaged"
    if known and digest != known["sha256"]:
        return f"has SHA-256 {digest[:12]}..., on {known['recorded']} it was {known['sha256'][:12]}...: changed or damaged (if the new one is right, delete its entry in manifest.json)"
    return None


def _from_any_source(
    job: Job, artefact: Artefact, part: Partial, known: dict[str, Any] | None, bar: tqdm, say: Callable[[str], None]
) -> str:
    """The first source that gives the file; its bytes are in `part` then.

    Raises:
        UserError: none does, with what each said.
    """
    faults = []
    # what is half here goes on first
    for source in sorted(artefact.sources, key=lambda s: part.have(s) == 0):
        try:
            bar.reset()
            if is_youtube(source):
                fetch_youtube(job, artefact, source, part, bar)
            elif is_web(source):
                fetch_web(job, artefact, source, part, bar, say)
            else:
                fetch_local(job, artefact, Path(source), part, bar)
            size = part.path.stat().st_size
            fault = _digest_fault(artefact, known, _sha256(part.path, job, bar))
            if artefact.size is not None and size != artefact.size:
                fault = f"has {size} bytes, the catalogue says {artefact.size}"
            if size == 0:
                fault = "is empty"
            if not fault:
                return source
            part.remove()
            raise SourceFault(f"what came {fault}")
        except SourceFault as fault:
            faults.append(f"{source}: {fault}")
    raise UserError(f"{artefact.kind}/{artefact.name} could not be fetched: " + "; ".join(faults))


@contextmanager
def _alone(part: Partial) -> Iterator[None]:
    """Hold a file against other downloads of it.

    Raises:
        UserError: another process is downloading it.
    """
    lock: IO[str]
    path = part.path.with_name(f".{part.path.name}.lock")
    with open(path, "w") as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(lock.fileno()).st_nlink == 0:  # the other has just finished
                raise BlockingIOError
        except OSError:
            raise UserError(
                f"{part.path.stem} is being downloaded by another process: wait for it, or stop it"
            ) from None
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------------------------ all files


def choose(artefacts: Sequence[Artefact], kind: str, only: Sequence[str]) -> list[Artefact]:
    """The artefacts of a kind ('all' for every kind) that `only` names, all of them where it is empty.

    Raises:
        UserError: a name that the catalogue does not have.
    """
    of_kind = [a for a in artefacts if kind in ("all", a.kind)]
    unknown = [name for name in only if not any(name in (a.name, Path(a.name).stem) for a in of_kind)]
    if unknown:
        raise UserError(
            f"--only {' '.join(unknown)}: the catalogue has {', '.join(a.name for a in of_kind) or 'nothing of this kind'}"
        )
    return [a for a in of_kind if not only or a.name in only or Path(a.name).stem in only]


def download(layout: DatasetLayout, artefacts: Sequence[Artefact], config: DownloadConfig) -> dict[str, str]:
    """Provide all artefacts, `config.parallel` at a time; returns the faults by file.

    Raises:
        UserError: manifest.json or the folder itself is unusable.
    """
    try:
        layout.root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--dataset {layout.root} cannot be made ({error.strerror}): name another folder") from None
    job = Job(layout, config, Manifest(layout))
    job.manifest.read()
    for row in range(config.parallel):
        job.rows.put(row)
    faults: dict[str, str] = {}

    def one(artefact: Artefact) -> None:
        name = f"{artefact.kind}/{artefact.name}"
        say = lambda text: tqdm.write(f"{name}: {text}", sys.stdout)  # noqa: E731
        try:
            say(provide(job, artefact, say))
        except UserError as error:
            faults[name] = str(error)
            say("failed")

    with ThreadPoolExecutor(config.parallel) as threads:
        waiting = [threads.submit(one, artefact) for artefact in artefacts]
        try:
            for future in wait(waiting, return_when="FIRST_EXCEPTION").done:
                future.result()
        except BaseException:  # Ctrl-C: what has come stays in the .part files
            job.stop.set()
            threads.shutdown(wait=True, cancel_futures=True)
            raise
    return faults


def main(argv: Sequence[str]) -> int:
    kinds = dict.fromkeys([*KINDS, "all"], DownloadConfig)
    kind, config = parse_command(kinds, argv, prog="python -m data_preparation.download")
    folder = config.dataset or default_dataset()
    if folder is None:
        raise UserError("--dataset is missing: name the data set folder, or source job_files/environment.sh")
    artefacts = choose(load_catalogue(config.catalogue or CATALOGUE), kind, config.only)
    faults = download(DatasetLayout(folder), artefacts, config)
    print(f"{len(artefacts) - len(faults)} of {len(artefacts)} files are in {folder}")
    if faults:
        raise UserError.of([*faults.values(), "what has come of them stays: the same command goes on from there"])
    return 0


if __name__ == "__main__":
    run(main)
