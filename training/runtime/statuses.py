"""The exit statuses of a training: what each means, and whether Slurm starts the job again. Imports nothing of the project.

A rank ends with one of them; the end of the job (launch.job) reads those of all ranks and decides. srun reports only the
highest exit status of all ranks, and ranks that it kills have high ones, so each rank also writes its own to a file.
"""

from __future__ import annotations

from enum import IntEnum


class Status(IntEnum):
    """An exit status with its meaning; `requeued` is True if a job that ends with it is started again.

    75, 129, 130 and 143 are also written in job_files/hold_signals.sh, for signals that come before Python starts.
    """

    meaning: str
    requeued: bool

    def __new__(cls, number: int, meaning: str = "", requeued: bool = False) -> Status:
        status = int.__new__(cls, number)
        status._value_ = number
        status.meaning = meaning
        status.requeued = requeued
        return status

    def __str__(self) -> str:
        return str(int(self))  # Python 3.10 would print the name, and the batch script needs the number

    DONE = 0, "finished", False
    USER_ERROR = 2, "an error that the user can fix; the log names it", False
    BUG = 70, "an unexpected exception; the log has its traceback", False  # EX_SOFTWARE
    SICK_NODE = 71, "a node failed its checks before the training; the job leaves that node", True  # EX_OSERR
    STOPPED = 75, "stopped by USR2 (time limit, preemption)", True  # EX_TEMPFAIL
    RANK_LOST = 76, "a rank or a worker was lost", True  # EX_PROTOCOL
    HANGUP = 129, "stopped by HUP (the terminal was closed)", True
    INTERRUPTED = 130, "stopped by INT (Ctrl-C, launch.status cancel)", False
    KILLED_BY_USR2 = 140, "killed by USR2, which came before the process could handle it", True
    TERMINATED = 143, "stopped by TERM (preemption; a job that scancel ends is not requeued)", True


SIGNALED = (Status.STOPPED, Status.HANGUP, Status.KILLED_BY_USR2, Status.TERMINATED)  # by Slurm or the terminal


def markdown_table() -> str:
    """The statuses as a Markdown table."""
    rows = [f"| {int(s)} | {s.meaning} | {'yes' if s.requeued else 'no'} |" for s in Status]
    other = (
        "| other | above 128: a rank was killed by signal (status - 128); else srun could not start the ranks | yes |"
    )
    return "\n".join(["| status | meaning | requeued |", "|---|---|---|", *rows, other])
