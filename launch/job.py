"""What runs inside a Slurm job: the training, with its progress in the job's comment.

    srun python -m launch.job [training flags]      what job_files/train_model.job does
    TrainingJob(flags)                              what launch.submit hands to submitit

Importing this file imports no torch: a login node pickles a TrainingJob in a moment.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Sequence
from typing import Any

import submitit

from data_preparation.cli import UserError, run
from launch.progress import progress_text
from launch.slurm import SlurmError, set_comment

log = logging.getLogger("training.launch")

_COMMENT_EVERY_S = 20  # the controller serves everyone; an epoch's end is always told
_COMMENT_PAUSE_S = 300  # after a controller that did not answer
_REQUEUE_GRACE_S = (
    120  # time for rank 0 to requeue the job before another rank's failure ends it; the requeue ends the wait
)


class JobComment:
    """Keeps the job's comment up to date; says once when that does not work, and tries again later."""

    def __init__(self, job_id: str) -> None:
        self.job_id, self.next_at, self.told_epoch, self.warned = job_id, 0.0, -1, False

    def __call__(self, progress: dict[str, Any]) -> None:
        now = time.monotonic()
        news = (progress["epoch"] != self.told_epoch or progress["state"] != "running") and not self.warned
        if now < self.next_at and not news:
            return
        self.next_at, self.told_epoch = now + _COMMENT_EVERY_S, progress["epoch"]
        try:
            set_comment(self.job_id, progress_text(progress))
        except SlurmError as error:
            self.next_at = now + _COMMENT_PAUSE_S
            if not self.warned:
                log.warning("squeue does not show the progress now: %s", error)
            self.warned = True


def main(argv: Sequence[str]) -> int:
    """Train inside a Slurm job; the status is training.train's."""
    from training.distributed import slurm_job_id
    from training.train import main as train

    job_id = slurm_job_id()
    return train(argv, JobComment(job_id) if job_id else None)


class TrainingJob:
    """The callable that submitit pickles, runs in each task, and pickles again to go on after an interruption."""

    def __init__(self, argv: Sequence[str]) -> None:
        self.argv = list(argv)

    def __call__(self) -> int:
        from training.interruption import REQUEUE_STATUS

        requeue = signal.getsignal(signal.SIGUSR2)  # submitit's handler: counts, pickles, requeues
        try:
            status = main(self.argv)
        except UserError as error:  # one sentence in the log, no traceback, and a failed job
            for line in str(error).splitlines():
                print(f"error: {line}", flush=True)
            raise SystemExit(2) from None
        if status == REQUEUE_STATUS and callable(requeue):
            requeue(signal.SIGUSR2, None)
            # submitit returns here on the other ranks: they must not be recorded as successes
            time.sleep(_REQUEUE_GRACE_S)
            raise SystemExit(REQUEUE_STATUS)
        if status:
            raise SystemExit(status)
        return 0

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """What submitit runs after a requeue: the same training, which resumes from its run folder."""
        return submitit.helpers.DelayedSubmission(self)


if __name__ == "__main__":
    run(main)
