"""Download videos, annotations and weights. Run it on the login node: compute nodes often have no network.

    python -m data_preparation.download {videos,annotations,weights,all} --dataset DIR [--only 01 02]

data_preparation/catalogue.ini lists the files and their sources. An interrupted download resumes where it stopped; a
complete file is checked against the SHA-256 in manifest.json of the data set folder.
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

from data_preparation.actions import video_name
from data_preparation.catalogue import CATALOGUE, KINDS, Artefact, content_fault, load_catalogue
from data_preparation.common.command_line import flag, parse_command, run
from data_preparation.common.errors import UserError, first_line
from data_preparation.common.files import Cancelled, exclusive_lock, lock, sha256, write_atomic, write_error
from data_preparation.file_types import HEAD_BYTES
from data_preparation.layout import DatasetLayout, default_dataset
from data_preparation.transfer import DiskSpace, PartialFile, SourceError, Transfer, fetch, size_text


@dataclass(frozen=True)
class DownloadConfig:
    """Download files of the catalogue into a data set folder."""

    dataset: Path | None = flag(
        None, "Data set folder, created if missing; none uses DEEPSPORTS_DATASET of job_files/environment.sh."
    )
    only: tuple[str, ...] = flag((), "Only these files, by name with or without suffix.", allowed="names such as 01 02")
    parallel: int = flag(4, "Number of files to download at the same time.", minimum=1, maximum=32)
    retries: int = flag(5, "Retries after an attempt that received no data; the wait doubles each time.", minimum=0)
    timeout: float = flag(
        60.0, "Seconds without data after which a connection counts as broken.", minimum=0.1, maximum=3600
    )
    catalogue: Path | None = flag(None, "Catalogue file; none uses data_preparation/catalogue.ini.")


# ---------------------------------------------------------------------------------------- state that all downloads share


class Manifest:
    """manifest.json of a data set folder: SHA-256, size, source and date of every downloaded file, by relative path."""

    def __init__(self, layout: DatasetLayout) -> None:
        self.path = layout.manifest
        self._lock = threading.Lock()

    def read(self) -> dict[str, dict[str, Any]]:
        """The entries, by relative path; empty if the file does not exist.

        Raises:
            UserError: the file is unreadable.
        """
        try:
            entries = json.loads(self.path.read_text())
            for entry in entries.values():
                entry["sha256"], entry["recorded"]  # raises KeyError if an entry is incomplete
            return entries
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
            raise UserError(
                f"{self.path} is unreadable ({first_line(error)}): repair it, or delete it to record all files again"
            ) from None

    def record(self, name: str, digest: str, size: int, source: str) -> None:
        """Add a file; safe with concurrent threads and processes."""
        with self._lock, open(self.path.with_name(f".{self.path.name}.lock"), "w") as file:
            lock(file, wait=True)
            entry = {"sha256": digest, "bytes": size, "source": source, "recorded": date.today().isoformat()}
            entries = dict(sorted({**self.read(), name: entry}.items()))
            write_atomic(self.path, (json.dumps(entries, indent=2) + "\n").encode())


@dataclass
class DownloadContext:
    """The flags of the command and the state that its downloads share."""

    layout: DatasetLayout
    config: DownloadConfig
    manifest: Manifest
    space: DiskSpace = field(default_factory=DiskSpace)
    stop: threading.Event = field(default_factory=threading.Event)
    # free rows of the terminal, for progress bars
    rows: queue.SimpleQueue[int] = field(default_factory=queue.SimpleQueue)

    @contextmanager
    def bar(self, name: str) -> Iterator[tqdm]:
        """A progress bar in bytes on its own row."""
        row = self.rows.get()
        try:
            with tqdm(
                desc=name, unit="B", unit_scale=True, position=row, leave=False, disable=not sys.stderr.isatty()
            ) as bar:
                yield bar
        finally:
            self.rows.put(row)


# ------------------------------------------------------------------------------------------------------------- one file


def ensure_file(context: DownloadContext, artefact: Artefact, report: Callable[[str], None]) -> str:
    """Download one file of the catalogue, or check it if it exists; return a summary of what was done.

    Raises:
        UserError: no source could provide it, its checksum is wrong, or the disk is full.
        Cancelled: the user interrupted the command; the partial file stays for the next time.
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
                    report,
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
        raise UserError(f"{target} is not a file: move it away")
    digest, size = _sha256(target, context.stop, bar), target.stat().st_size
    if fault := _digest_fault(artefact, known, digest):
        raise UserError(f"{target} {fault}; delete it to download it again")
    if known is None:
        with open(target, "rb") as file:
            if fault := content_fault(artefact.name, file.read(HEAD_BYTES)):
                raise UserError(f"{target}: {fault}; delete it to download it again")
        checked = "SHA-256 correct" if artefact.sha256 else "found in place, without a known SHA-256"
        try:
            context.manifest.record(name, digest, size, "found in place")
        except OSError as error:  # a shared data set that is mounted read-only
            return f"already present ({size_text(size)}), {checked}; its SHA-256 is not recorded ({error.strerror})"
        recorded = "" if artefact.sha256 else "; its SHA-256 is now recorded"
        return f"already present ({size_text(size)}), {checked}{recorded}"
    return f"already present ({size_text(size)}), SHA-256 correct"


def _sha256(path: Path, stop: threading.Event, bar: tqdm) -> str:
    bar.set_description_str(f"checking {path.name.removesuffix('.part')}", refresh=False)
    bar.reset(path.stat().st_size)
    return sha256(path, stop.is_set, bar.update)


def _digest_fault(artefact: Artefact, known: dict[str, Any] | None, digest: str) -> str | None:
    if artefact.sha256 and digest != artefact.sha256:
        return f"has SHA-256 {digest[:12]}..., but the catalogue states {artefact.sha256[:12]}...: it is another version or damaged"
    if known and digest != known["sha256"]:
        return f"has SHA-256 {digest[:12]}..., but on {known['recorded']} it had {known['sha256'][:12]}...: it was changed or damaged (if the new file is correct, delete its entry in manifest.json)"
    return None


def _from_any_source(transfer: Transfer, known: dict[str, Any] | None) -> str:
    """Try the sources in order; return the one that provided the file (now complete in `transfer.part`).

    Raises:
        UserError: none did; the message has the error of each.
    """
    artefact, part, faults = transfer.artefact, transfer.part, []
    # resume first from the source of the partial file
    for source in sorted(artefact.sources, key=lambda s: part.bytes_from(s) == 0):
        try:
            transfer.bar.reset()
            fetch(transfer, source)
            size = part.path.stat().st_size
            fault = _digest_fault(artefact, known, _sha256(part.path, transfer.stop, transfer.bar))
            if artefact.size is not None and size != artefact.size:
                fault = f"has {size} bytes, but the catalogue states {artefact.size}"
            if size == 0:
                fault = "is empty"
            if not fault:
                return source
            part.remove()
            raise SourceError(f"the received file {fault}")
        except SourceError as fault:
            faults.append(f"{source}: {fault}")
    raise UserError(f"{artefact.kind}/{artefact.name} could not be downloaded: " + "; ".join(faults))


# ------------------------------------------------------------------------------------------------------------ all files


def select_artefacts(artefacts: Sequence[Artefact], kind: str, only: Sequence[str]) -> list[Artefact]:
    """The files of a kind ('all' for every kind) that `only` names, or all of them if it is empty.

    Raises:
        UserError: a name is not in the catalogue.
    """
    of_kind = [a for a in artefacts if kind in ("all", a.kind)]
    only = [video_name(name) if name.isdigit() else name for name in only]
    unknown = [name for name in only if not any(name in (a.name, Path(a.name).stem) for a in of_kind)]
    if unknown:
        raise UserError(
            f"--only {' '.join(unknown)}: the catalogue has {', '.join(a.name for a in of_kind) or 'nothing of this kind'}"
        )
    return [a for a in of_kind if not only or a.name in only or Path(a.name).stem in only]


def download(layout: DatasetLayout, artefacts: Sequence[Artefact], config: DownloadConfig) -> dict[str, str]:
    """Download all files, `config.parallel` at a time; return the faults by file.

    Raises:
        UserError: manifest.json or the folder itself is unusable.
    """
    try:
        layout.root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--dataset {layout.root} cannot be created ({error.strerror}): name another folder") from None
    if layout.synthetic_file.exists():
        raise UserError(f"--dataset {layout.root} holds a synthetic data set: name another folder for the real one")
    context = DownloadContext(layout, config, Manifest(layout))
    context.manifest.read()
    for row in range(config.parallel):
        context.rows.put(row)
    faults = dict.fromkeys((f"{a.kind}/{a.name}" for a in artefacts), "")  # in the catalogue's order

    def download_one(artefact: Artefact) -> None:
        name = f"{artefact.kind}/{artefact.name}"

        def report(text: str) -> None:
            tqdm.write(f"{name}: {text}", sys.stdout)

        try:
            report(ensure_file(context, artefact, report))
        except Cancelled:
            raise
        except UserError as error:
            faults[name] = str(error)
            report("failed")
        except Exception as error:  # the error of one file must not stop the others
            faults[name] = f"{name}: unexpected error, please report it ({type(error).__name__}: {first_line(error)})"
            report("failed")

    with ThreadPoolExecutor(config.parallel) as threads:
        waiting = [threads.submit(download_one, artefact) for artefact in artefacts]
        try:
            for future in wait(waiting, return_when="FIRST_EXCEPTION").done:
                future.result()
        except BaseException:  # Ctrl-C: the partial files stay
            context.stop.set()
            threads.shutdown(wait=True, cancel_futures=True)
            raise
    return {name: fault for name, fault in faults.items() if fault}


def main(argv: Sequence[str]) -> int:
    kinds = dict.fromkeys([*KINDS, "all"], DownloadConfig)
    kind, config = parse_command(kinds, argv, prog="python -m data_preparation.download")
    folder = config.dataset or default_dataset()
    if folder is None:
        raise UserError("--dataset is missing: give the data set folder, or source job_files/environment.sh")
    artefacts = select_artefacts(load_catalogue(config.catalogue or CATALOGUE), kind, config.only)
    faults = download(DatasetLayout(folder), artefacts, config)
    print(f"{len(artefacts) - len(faults)} of {len(artefacts)} files are in {folder}")
    if faults:
        partial = [
            p.stem
            for a in artefacts
            for p in [a.target(DatasetLayout(folder)).with_name(a.name + ".part")]
            if p.exists()
        ]
        more = (
            [f"the partial files of {', '.join(partial)} are kept: run the same command to resume"] if partial else []
        )
        fix = f"fix: put the file into {folder} by hand, or add a mirror or the path of a copy to {config.catalogue or CATALOGUE}"
        no_source = any("could not be downloaded" in fault for fault in faults.values())
        raise UserError.of([*faults.values(), *more, *([fix] if no_source else [])])
    return 0


if __name__ == "__main__":
    run(main)
