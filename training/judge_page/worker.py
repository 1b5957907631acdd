"""The one process that opens uploaded files and scores them, and the bounded queue before it.

A decoder may crash or hang on a damaged file. So it runs in a process of its own with a time limit; if that process is lost, the
job fails with one sentence and the next job starts a new process.
"""

from __future__ import annotations

import multiprocessing
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from data_preparation.common.errors import UserError, first_line
from data_preparation.common.workers import init_worker
from training.judge_page.records import Judge, RunFacts

_DAMAGED = "the file is damaged or of a rare kind: convert it (ffmpeg -i OLD new.mp4) and send the new file"


class QueueFull(Exception):
    """The queue holds as many jobs as it may."""


@dataclass(frozen=True)
class Job:
    """A call of the judge for a clip. `done` gets the result, `failed` a sentence; both are called in the queue's thread."""

    clip: str
    name: str
    arguments: Mapping[str, Any]
    done: Callable[[Any], None]
    failed: Callable[[str], None]


class Worker:
    """A queue of at most `bound` waiting jobs, and the process that works them off one after the other.

    `load` makes the judge in the worker process; it must be picklable. A job takes at most `limit_s` seconds.
    """

    def __init__(self, load: Callable[[], Judge], bound: int, limit_s: float) -> None:
        self._load, self.bound, self.limit_s = load, bound, limit_s
        self._waiting: deque[Job] = deque()
        self._running: Job | None = None
        self._changed = threading.Condition()
        self._stopped = False
        self._process: multiprocessing.process.BaseProcess | None = None
        self._connection: Connection | None = None

    def start(self) -> RunFacts:
        """Start process and thread; returns what the judge says of its run.

        Raises:
            UserError: the judge cannot be made.
        """
        facts = self._start_process()
        threading.Thread(target=self._work, daemon=True, name="judge queue").start()
        return facts

    def submit(self, job: Job) -> None:
        """Append a job to the queue.

        Raises:
            QueueFull: the queue holds `bound` jobs.
        """
        with self._changed:
            if len(self._waiting) >= self.bound:
                raise QueueFull
            self._waiting.append(job)
            self._changed.notify()

    @property
    def is_full(self) -> bool:
        return len(self._waiting) >= self.bound

    def ahead(self, clip: str) -> int | None:
        """How many jobs come before the one of a clip; None if it does not wait (any more)."""
        with self._changed:
            names = [job.clip for job in self._waiting]
            return names.index(clip) + (self._running is not None) if clip in names else None

    def stop(self) -> None:
        """End the thread and kill the process, whatever it does."""
        with self._changed:
            self._stopped = True
            self._waiting.clear()
            self._changed.notify()
        self._kill()

    # ------------------------------------------------------------------------------------------------ queue's thread

    def _work(self) -> None:
        while (job := self._next()) is not None:
            try:
                result = self._call(job)
            except UserError as error:
                job.failed(str(error))
            except (
                Exception
            ) as error:  # a defect must not end the thread: the clips behind this one would wait for ever
                traceback.print_exc()
                job.failed(f"the page failed ({type(error).__name__}): read its messages in the terminal")
            else:
                job.done(result)

    def _next(self) -> Job | None:
        with self._changed:
            self._running = None
            self._changed.wait_for(lambda: self._waiting or self._stopped)
            self._running = None if self._stopped else self._waiting.popleft()
            return self._running

    def _call(self, job: Job) -> Any:
        if self._process is None:
            self._start_process()
        assert self._connection is not None
        try:
            self._connection.send((job.name, job.arguments))
            if not self._connection.poll(self.limit_s):
                self._kill()
                raise UserError(
                    f"it took longer than {self.limit_s:g} s: give a shorter part, or start the page with a larger --time_limit"
                )
            return self._answer()
        except (EOFError, OSError):
            raise UserError(f"the process that opened it was lost ({self._how_it_ended()}): {_DAMAGED}") from None

    def _start_process(self) -> RunFacts:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self._load))
        try:
            process.start()
        except OSError as error:
            raise UserError(
                f"the process that scores cannot be started ({error.strerror}): free memory or processes of this user, then try again"
            ) from None
        self._process = process
        theirs.close()
        try:
            return self._answer()
        except UserError:
            self._kill()
            raise
        except (EOFError, OSError):
            raise UserError(
                f"the process that scores was lost while it loaded the run ({self._how_it_ended()}): read the messages above"
            ) from None

    def _answer(self) -> Any:
        assert self._connection is not None
        kind, value = self._connection.recv()
        if kind == "error":
            raise UserError(value)
        return value

    def _how_it_ended(self) -> str:
        """How the lost process ended; the next job starts another."""
        process = self._process
        if process is None:  # stopped meanwhile
            return "stopped"
        process.join(5)
        code = process.exitcode
        self._kill()
        if code is not None and code < 0:
            return f"{signal.Signals(-code).name}{', probably out of memory' if -code == signal.SIGKILL else ''}"
        return f"exit status {code}"

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.join(5)


def _serve(connection: Connection, load: Callable[[], Judge]) -> None:
    """The worker process: make the judge, then answer calls until the parent closes the connection."""
    init_worker()
    try:
        judge = load()
        connection.send(("done", judge.facts))
    except UserError as error:
        connection.send(("error", str(error)))
        return
    while True:
        try:
            name, arguments = connection.recv()
        except EOFError:
            return
        try:
            answer = ("done", getattr(judge, name)(**arguments))
        except UserError as error:
            answer = ("error", str(error))
        except Exception as error:  # a defect or an unknown kind of damage must not end the page
            traceback.print_exc()
            problem = f"{type(error).__name__}: {first_line(error)[:200]}"
            answer = ("error", f"it cannot be scored ({problem}): {_DAMAGED}")
        connection.send(answer)
