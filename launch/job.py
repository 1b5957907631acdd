"""What each process of a job runs: the training, with its progress in the job's comment.

    srun python -m launch.job [training flags]      what job_files/train_model.job does
    TrainingJob(flags)                              what launch.submit hands to submitit

Importing this file imports no torch: a login node pickles a TrainingJob in a moment, and a signal that comes while torch
is being imported is remembered.
"""

from __future__ import annotations

import logging
import os
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from data_preparation.common.command_line import run
from data_preparation.common.errors import UserError, os_error_text
from data_preparation.common.limits import limit_error_text
from launch.progress import progress_text
from launch.slurm import SlurmError, set_comment
from training.runtime.interruption import InterruptionFlag
from training.runtime.ranks import rank_of_task, restart_count, slurm_job_id
from training.runtime.run_progress import RunProgress

log = logging.getLogger("training.launch")

_COMMENT_EVERY_S = 60  # the controller serves everyone; an epoch's end is always told
_COMMENT_PAUSE_S = 300  # after a controller that did not answer


class JobComment:
    """Keeps the job's comment up to date, after the user's own words; says once when that does not work, and tries again
    later."""

    def __init__(self, job_id: str, words: str = "") -> None:
        self.job_id, self.words = job_id, f"{words}: " if words else ""
        self.next_at, self.told_epoch, self.warned = 0.0, -1, False

    def __call__(self, progress: RunProgress) -> None:
        now = time.monotonic()
        news = (progress.epoch != self.told_epoch or progress.state != "running") and not self.warned
        if now < self.next_at and not news:
            return
        self.next_at, self.told_epoch = now + _COMMENT_EVERY_S, progress.epoch
        try:
            set_comment(self.job_id, self.words + progress_text(progress))
        except SlurmError as error:
            self.next_at = now + _COMMENT_PAUSE_S
            if not self.warned:
                log.warning("squeue does not show the progress now: %s", error)
            self.warned = True


MISTAKE = 70  # EX_SOFTWARE: an exception that nobody foresaw; srun's own 1 means that it could not start the processes


def main(argv: Sequence[str]) -> int:
    """Train inside a job; the status is training.train's, 2 for something to mend, or MISTAKE. It is also written down where
    the batch script looks for it (job_files/requeue.sh)."""
    interruption = InterruptionFlag().install()
    try:
        from training.train import main as train

        job_id = slurm_job_id()
        comment = JobComment(job_id, os.environ.get("DEEPSPORTS_COMMENT", "")) if job_id else None
        status = train(argv, comment, interruption)
    except UserError as error:  # one sentence in the log, no traceback, and a failed job
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr, flush=True)
        status = 2
    except OSError as error:
        print(f"error: {os_error_text(error)}", file=sys.stderr, flush=True)
        status = 2
    except Exception as error:
        if text := limit_error_text(error):
            print(f"error: {text}", file=sys.stderr, flush=True)
            status = 2
        else:
            traceback.print_exc()
            status = MISTAKE
    interruption.ignore()  # what srun sends now, because another process ended, must not spoil the status
    write_end(status)
    return status


def write_end(status: int) -> None:
    """Leave a file that says how this process ended; without a job's folder srun's status has to do."""
    if folder := os.environ.get("DEEPSPORTS_JOB"):
        end = Path(folder) / f"ended-{restart_count()}"
        with suppress(OSError):
            end.mkdir(parents=True, exist_ok=True)
            (end / f"rank{rank_of_task()}-{status}").touch()


class TrainingJob:
    """The callable that submitit pickles and runs in each task.

    Requeueing is left to the end of the batch script (job_files/requeue.sh), which sees what no process of the training
    can: one that was killed. So a signal does not reach submitit's own handler.
    """

    def __init__(self, argv: Sequence[str]) -> None:
        self.argv = list(argv)

    def __call__(self) -> int:
        if status := main(self.argv):
            raise SystemExit(status)
        return 0


if __name__ == "__main__":
    run(main)
