"""Download videos, annotations and weights, on the login node: compute nodes often reach no network.

    python -m data_preparation.download {videos,annotations,weights,all} --dataset DIR [--only 01 02]

What can be fetched, and from where, is in data_preparation/catalogue.ini. A download that broke off goes on where it
stopped; a finished file is checked against the SHA-256 recorded in manifest.json of the data set folder.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_preparation.catalogue import CATALOGUE, KINDS, Artefact, content_fault, load_catalogue
from data_preparation.common.command_line import flag, parse_command, run
from data_preparation.common.errors import UserError, first_line
from data_preparation.common.files import Cancelled, exclusive_lock, lock, sha256, write_atomic, write_error
from data_preparation.file_types import HEAD_BYTES
from data_preparation.layout import DatasetLayout, default_dataset, video_name
from data_preparation.transfer import DiskSpace, PartialFile, SourceError, Transfer, fetch, size_text


@dataclass(frozen=True)
class DownloadConfig:
    """Download files of the catalogue into a data set folder."""

    dataset: Path | None = flag(
        None, "Data set folder, made if need be; none takes DEEPSPORTS_DATASET of job_files/environment.sh."
    )
    only: tuple[str, ...] = flag((), "Only these files, by name with or without ending.", allowed="names such as 01 02")
    parallel: int = flag(4, "Files at the same time.", minimum=1, maximum=32)
    retries: int = flag(5, "Attempts more after one that brought nothing, each after twice the wait.", minimum=0)
    timeout: float = flag(
        60.0, "Seconds without a byte after which a connection counts as broken.", minimum=0.1, maximum=3600
    )
    catalogue: Path | None = flag(None, "Catalogue file; none takes data_preparation/catalogue.ini.")


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
            entries = json.loads(self.path.read_text())
            for entry in entries.values():
                entry["sha256"], entry["recorded"]  # what is counted on
            return entries
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
            raise UserError(
                f"{self.path} is unreadable ({first_line(error)}): mend it, or delete it to record all files anew"
            ) from None

    def record(self, name: str, digest: str, size: int, source: str) -> None:
        """Add a file; safe beside other threads and processes that do the same."""
        with self._lock, open(self.path.with_name(f".{self.path.name}.lock"), "w") as file:
            lock(file, wait=True)
            entry = {"sha256": digest, "bytes": size, "source": source, "recorded": date.today().isoformat()}
            entries = dict(sorted({**self.read(), name: entry}.items()))
            write_atomic(self.path, (json.dumps(entries, indent=2) + "\n").encode())


@dataclass
class DownloadContext:
    """One command: its flags and what its downloads share."""

    layout: DatasetLayout
    config: DownloadConfig
    manifest: Manifest
    space: DiskSpace = field(default_factory=DiskSpace)
    stop: threading.Event = field(default_factory=threading.Event)
    rows: queue.SimpleQueue[int] = field(default_factory=queue.SimpleQueue)  # of the terminal, for progress bars

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


# ------------------------------------------------------------------------------------------------------------- one file


def ensure_file(context: DownloadContext, artefact: Artefact, say: Callable[[str], None]) -> str:
    """Have one file of the catalogue in its place, whole and checked; returns what happened, for the report.

    Raises:
        UserError: no source could give it, it is not what it was before, or the disk is full.
        Cancelled: the command was interrupted; what has come stays for the next time.
    """
    target = artefact.target(context.layout)
    name = str(target.relative_to(context.layout.root))
    known = context.manifest.read().get(name)
    try:
        with context.bar(artefact.name) as bar:
            if target.exists():
                return _check_present(context, artefact, target, name, known, bar)
            target.parent.mkdir(parents=True, exist_ok=True)
            part = PartialFile(target.with_name(target.name + ".part"))
            with exclusive_lock(target.with_name(f".{part.path.name}.lock"), f"{target.name} is being downloaded"):
                started = time.monotonic()
                transfer = Transfer(
                    artefact,
                    part,
                    bar,
                    say,
                    context.space,
                    context.stop,
                    context.config.retries,
                    context.config.timeout,
                )
                source = _from_any_source(transfer, known)
                digest, size = _sha256(part.path, context.stop, bar), part.path.stat().st_size
                with open(part.path, "rb") as file:
                    os.fsync(file.fileno())
                context.manifest.record(name, digest, size, source)
                os.replace(part.path, target)
                part.remove()
                seconds = time.monotonic() - started
                return f"{size_text(size)} in {seconds:.0f} s, SHA-256 {'as recorded' if known or artefact.sha256 else 'recorded'}"
    except OSError as error:
        raise write_error(target, error) from None
    finally:
        context.space.release(target.with_name(target.name + ".part"))


def _check_present(
    context: DownloadContext, artefact: Artefact, target: Path, name: str, known: dict[str, Any] | None, bar: tqdm
) -> str:
    if not target.is_file():
        raise UserError(f"{target} is no file: put it out of the way")
    digest, size = _sha256(target, context.stop, bar), target.stat().st_size
    if fault := _digest_fault(artefact, known, digest):
        raise UserError(f"{target} {fault}; delete it to download it again")
    if known is None:
        with open(target, "rb") as file:
            if fault := content_fault(artefact.name, file.read(HEAD_BYTES)):
                raise UserError(f"{target}: {fault}; delete it to download it again")
        compared = "SHA-256 right" if artefact.sha256 else "found in place and not compared with anything"
        try:
            context.manifest.record(name, digest, size, "found in place")
        except OSError as error:  # a shared data set that is mounted read-only
            return f"there already ({size_text(size)}), {compared}; its SHA-256 is not recorded ({error.strerror})"
        recorded = "" if artefact.sha256 else ": its SHA-256 is recorded for the next time"
        return f"there already ({size_text(size)}), {compared}{recorded}"
    return f"there already ({size_text(size)}), SHA-256 right"


def _sha256(path: Path, stop: threading.Event, bar: tqdm) -> str:
    bar.set_description_str(f"checking {path.name.removesuffix('.part')}", refresh=False)
    bar.reset(path.stat().st_size)
    return sha256(path, stop.is_set, bar.update)


def _digest_fault(artefact: Artefact, known: dict[str, Any] | None, digest: str) -> str | None:
    if artefact.sha256 and digest != artefact.sha256:
        return f"has SHA-256 {digest[:12]}..., the catalogue says {artefact.sha256[:12]}...: another version or damaged"
    if known and digest != known["sha256"]:
        return f"has SHA-256 {digest[:12]}..., on {known['recorded']} it was {known['sha256'][:12]}...: changed or damaged (if the new one is right, delete its entry in manifest.json)"
    return None


def _from_any_source(transfer: Transfer, known: dict[str, Any] | None) -> str:
    """The first source that gives the file; its bytes are in `part` then.

    Raises:
        UserError: none does, with what each said.
    """
    artefact, part, faults = transfer.artefact, transfer.part, []
    # what is half here goes on first
    for source in sorted(artefact.sources, key=lambda s: part.have(s) == 0):
        try:
            transfer.bar.reset()
            fetch(transfer, source)
            size = part.path.stat().st_size
            fault = _digest_fault(artefact, known, _sha256(part.path, transfer.stop, transfer.bar))
            if artefact.size is not None and size != artefact.size:
                fault = f"has {size} bytes, the catalogue says {artefact.size}"
            if size == 0:
                fault = "is empty"
            if not fault:
                return source
            part.remove()
            raise SourceError(f"what came {fault}")
        except SourceError as fault:
            faults.append(f"{source}: {fault}")
    raise UserError(f"{artefact.kind}/{artefact.name} could not be fetched: " + "; ".join(faults))


# ------------------------------------------------------------------------------------------------------------ all files


def choose(artefacts: Sequence[Artefact], kind: str, only: Sequence[str]) -> list[Artefact]:
    """The artefacts of a kind ('all' for every kind) that `only` names, all of them where it is empty.

    Raises:
        UserError: a name that the catalogue does not have.
    """
    of_kind = [a for a in artefacts if kind in ("all", a.kind)]
    only = [video_name(int(name)) if name.isdigit() else name for name in only]
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
    if layout.synthetic_file.exists():
        raise UserError(f"--dataset {layout.root} holds a synthetic data set: name another folder for the real one")
    context = DownloadContext(layout, config, Manifest(layout))
    context.manifest.read()
    for row in range(config.parallel):
        context.rows.put(row)
    faults = dict.fromkeys((f"{a.kind}/{a.name}" for a in artefacts), "")  # in the catalogue's order

    def one(artefact: Artefact) -> None:
        name = f"{artefact.kind}/{artefact.name}"
        say = lambda text: tqdm.write(f"{name}: {text}", sys.stdout)  # noqa: E731
        try:
            say(ensure_file(context, artefact, say))
        except Cancelled:
            raise
        except UserError as error:
            faults[name] = str(error)
            say("failed")
        except Exception as error:  # one file's fault must not stop the others
            faults[name] = f"{name}: unexpected, please report it ({type(error).__name__}: {first_line(error)})"
            say("failed")

    with ThreadPoolExecutor(config.parallel) as threads:
        waiting = [threads.submit(one, artefact) for artefact in artefacts]
        try:
            for future in wait(waiting, return_when="FIRST_EXCEPTION").done:
                future.result()
        except BaseException:  # Ctrl-C: what has come stays in the .part files
            context.stop.set()
            threads.shutdown(wait=True, cancel_futures=True)
            raise
    return {name: fault for name, fault in faults.items() if fault}


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
        begun = [
            p.stem
            for a in artefacts
            for p in [a.target(DatasetLayout(folder)).with_name(a.name + ".part")]
            if p.exists()
        ]
        more = [f"what has come of {', '.join(begun)} stays: the same command goes on from there"] if begun else []
        way_out = f"a way out: put the file into {folder} by hand, or give a mirror or the path of a copy in {config.catalogue or CATALOGUE}"
        unfetched = any("could not be fetched" in fault for fault in faults.values())
        raise UserError.of([*faults.values(), *more, *([way_out] if unfetched else [])])
    return 0


if __name__ == "__main__":
    run(main)
