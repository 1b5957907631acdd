"""When a rank is lost, the others save the last completed step, so that the job resumes there.

Every rank holds the whole state after each commit (training/engine/step.py). RankMonitor tells the survivors at once; those
whose main thread gets an exception of gloo or nccl know it, too. Survivors may be one step apart: both states are valid, and
the later one is written. They agree through small files in the run folder, since the first rank may be the lost one:

    1. Each survivor stops committing, and writes its position to .survivors/<start>/rank<n>.json.
    2. It waits for the files of the others, at most _AGREE_S.
    3. The lowest rank with the latest position writes the checkpoint, then .survivors/<start>/rank<n>.saved. If it dies
       before, hangs, or cannot write (rank<n>.failed), the next one writes.
    4. All end with Status.RANK_LOST.

If a shared file system shows the files too late, two ranks may write: the same content, or one step apart.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from data_preparation.common.errors import UserError, first_line
from data_preparation.common.files import write_atomic
from data_preparation.common.workers import kill_workers
from training.engine.trainer import Trainer
from training.runtime import collectives
from training.runtime.interruption import ProcessLost, StoppedBySignal
from training.runtime.rank_monitor import FAILED, RankMonitor, named
from training.runtime.ranks import slurm_job_id
from training.runtime.run_folder import RunFolder
from training.runtime.run_progress import RunProgress
from training.runtime.statuses import Status

log = logging.getLogger(__name__)

Place = tuple[int, int]  # (completed epochs, completed steps of all epochs): later is larger

PATIENCE_S = 30.0  # a rank that is silent for so long is lost
# The main thread may be about to complete a step that the lost rank completed; then it waits for that rank or fails
_FINISH_STEP_S = 2.0
_OWN_ERROR_S = 10.0  # a rank had an error; this one may be about to raise the same
_AGREE_S = 5.0
# srun kills the ranks 60 s after the first one ended (--wait). A writer that dies or cannot write is noticed at once. One that
# hangs must leave the next one enough of the 60 s: after 2 + 5 + 20 s there are 33. A big checkpoint may need all of them: as
# long as its temporary file grows, no second writer takes half of the file system's speed from the first
_STALL_S = 20.0
_COMMIT_S = 50.0  # the other survivors do not wait for a rank whose step does not end
_POLL_S = 0.2

# functions that get the exit status before a survivor whose main thread hangs ends this process
before_exit: list[Callable[[int], None]] = []


class Survivors:
    """Watches the other ranks inside of a `with` block, and saves when one is lost or a worker of this rank died.

    Raises (at the end of the block):
        ProcessLost: a rank or worker was lost; the message says which, and which step was saved.
    """

    def __init__(self, trainer: Trainer, run: RunFolder) -> None:
        self.trainer, self.run, self.ranks = trainer, run, trainer.ranks
        self.hosts = collectives.gather_objects(socket.gethostname())
        self.monitor = RankMonitor(self.ranks, self._on_loss, self._is_terminated, PATIENCE_S)
        self._saving, self._text = threading.Lock(), ""
        self._main_waits = False

    def __enter__(self) -> Survivors:
        port = self.monitor.listen() if self.ranks.is_first and self.ranks.world_size > 1 else 0
        port, token = collectives.gather_objects((port, secrets.token_hex(8)))[0]
        self.folder = self.run.survivors_folder / token
        if self.ranks.is_first:
            shutil.rmtree(self.run.survivors_folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
        if self.ranks.world_size > 1:
            self.monitor.start(port, token)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, ProcessLost):
            raise ProcessLost(self._save_in_main_thread(str(error), str(error))) from None
        if isinstance(error, Exception) and collectives.is_peer_failure(error):
            reason = collectives.short_reason(error)
            self.monitor.alarm.wait(_FINISH_STEP_S)  # until the monitor knows which rank it is
            raise ProcessLost(self._save_in_main_thread(reason)) from None
        self.monitor.leave("bye" if error is None or isinstance(error, StoppedBySignal) else "failed")
        if error is None and self.ranks.is_first:
            shutil.rmtree(self.run.survivors_folder, ignore_errors=True)

    def _is_terminated(self) -> bool:
        return self.trainer.interruption.status == Status.TERMINATED

    # --------------------------------------------------------------------------------------------- in either thread

    def _save_in_main_thread(self, reason: str, own_loss: str = "") -> str:
        """Save, or wait until the thread of the monitor has saved; returns what was lost and saved. `own_loss` is the message about a
        lost worker of this rank."""
        self._main_waits = True
        with self._saving:
            self._text = self._text or self._save(reason, own_loss)
            return self._text

    def _on_loss(self) -> None:
        """In a thread of the monitor: save, and end the process if its main thread hangs."""
        time.sleep(_OWN_ERROR_S if FAILED in self.monitor.lost.values() else _FINISH_STEP_S)
        with self._saving:
            if self._text or self._main_waits or self.monitor.has_left:  # the main thread ends by itself
                return
            self._text = self._save("the monitor of the ranks")
        time.sleep(_FINISH_STEP_S)
        if not self._main_waits:
            log.error("%s", self._text)
            for each in before_exit:
                each(Status.RANK_LOST)
            kill_workers()
            logging.shutdown()
            sys.stdout.flush()
            os._exit(Status.RANK_LOST)

    def _save(self, reason: str, own_loss: str = "") -> str:
        """Let one survivor save; returns what was lost and saved, in one line. From then on no step is committed."""
        lost = self.monitor.lost
        if not own_loss:
            names = [f"rank {rank} on {self.hosts[rank]}" for rank in sorted(lost)]
            here = f"rank {self.ranks.rank} on {socket.gethostname()}"
            log.error(collectives.peer_failure_text(reason, here, names, slurm_job_id()))
        self.monitor.leave("leaving", own_loss)
        if not self.trainer.commit_lock.acquire(timeout=_COMMIT_S):
            self.monitor.leave("ended")
            return self._lost_text(own_loss, None) + "nothing was saved, because the last step did not end"
        place = self.trainer.place()
        if place is None:
            self.monitor.leave("ended")
            return self._lost_text(own_loss, None) + "there was no step to save"
        failure = "no rank could"
        try:
            places = self._agree(place)
            for writer in sorted(places, key=lambda rank: (places[rank], -rank), reverse=True):
                if writer == self.ranks.rank:
                    if error := self._write():
                        failure = first_line(error)
                        continue
                elif not self._wait_for(writer, place):
                    continue
                text = self._lost_text(own_loss, places[writer][1]) + f"rank {writer} saved step {places[writer][1]}"
                if writer == self.ranks.rank:
                    self._report(text)
                return text
        except (OSError, UserError) as error:
            failure = first_line(error)
            self.monitor.leave("ended")
        return self._lost_text(own_loss, place[1]) + f"step {place[1]} could not be saved ({failure})"

    def _write(self) -> Exception | None:
        """Save as the chosen rank, and tell the others whether that worked; returns the error if not."""
        try:
            self.trainer.save_at_once()
            write_atomic(self._file(self.ranks.rank, "saved"), b"")
        except (OSError, UserError, RuntimeError) as error:  # RuntimeError: the GPU fails
            log.warning("rank %d could not save the last step: %s", self.ranks.rank, first_line(error))
            self.monitor.leave("ended")
            # without rank 0 that message reaches nobody, and perhaps only the disk of the checkpoint is full
            with suppress(OSError, UserError):
                write_atomic(self._file(self.ranks.rank, "failed"), b"")
            return error
        return None

    def _agree(self, place: Place) -> Mapping[int, Place]:
        """Tell this rank's place to the other survivors; returns those of all that answer in time."""
        deadline = time.monotonic() + _AGREE_S
        while True:
            self._announce(place)
            places = {rank: found for rank in range(self.ranks.world_size) if (found := self._read(rank))}
            expected = set(range(self.ranks.world_size)) - self.monitor.ended
            if expected <= set(places) or time.monotonic() > deadline:
                return places
            time.sleep(_POLL_S)

    def _announce(self, place: Place) -> None:
        """Write this rank's file; NFS then asks its server for new files of the others."""
        write_atomic(self._file(self.ranks.rank, "json"), json.dumps(place).encode())

    def _file(self, rank: int, kind: str) -> Path:
        if not self.folder.is_dir():
            raise UserError("the run was started again meanwhile")
        return self.folder / f"rank{rank}.{kind}"

    def _read(self, rank: int) -> Place | None:
        with suppress(OSError, ValueError):
            epoch, step = json.loads(self._file(rank, "json").read_text())
            return epoch, step
        return None

    def _wait_for(self, writer: int, place: Place) -> bool:
        """Wait until another survivor has saved; returns False if it cannot, has died or makes no progress."""
        deadline, written = time.monotonic() + _STALL_S, 0
        saved, failed = self._file(writer, "saved"), self._file(writer, "failed")
        while not saved.exists():
            if (size := self._written_bytes(writer)) != written:
                deadline, written = time.monotonic() + _STALL_S, size
            if writer in self.monitor.ended or failed.exists() or time.monotonic() > deadline:
                self._announce(place)  # it may have saved just now
                return saved.exists()
            time.sleep(_POLL_S)
        return True

    def _written_bytes(self, writer: int) -> int:
        """The size of the checkpoints that the host of a rank is writing."""
        size = 0
        for file in self.run.best_checkpoint.parent.glob(f".*.{self.hosts[writer]}.*.tmp"):
            with suppress(OSError):  # it was renamed meanwhile
                size += file.stat().st_size
        return size

    def _lost_text(self, own_loss: str, step: int | None) -> str:
        """'rank 1 on n2 was lost after step 5 (killed); ', or 'rank 1 on n2: a worker died; '."""
        if own_loss:
            return f"{own_loss}; "
        lost = dict(self.monitor.lost)
        if not lost and (causes := sorted(dict(self.monitor.causes).items())):
            return "".join(f"{named([rank], self.hosts)}: {cause}; " for rank, cause in causes)
        after = "" if step is None else f" after step {step}"
        parts = []
        for how in dict.fromkeys(lost.values()):
            ranks = [rank for rank in sorted(lost) if lost[rank] == how]
            verb = "was lost" if len(ranks) == 1 else "were lost"
            names = named(ranks, self.hosts)
            parts.append(f"{names} {how}{after}" if how == FAILED else f"{names} {verb}{after} ({how})")
        return ("; ".join(parts) or f"contact with other ranks was lost{after}") + "; "

    def _report(self, text: str) -> None:
        """Record the loss in progress.json, for launch.status."""
        with suppress(OSError, UserError):
            last = self.run.progress() or RunProgress("failed")
            self.run.write_progress(replace(last, state="failed", error=text))
