"""Logging of the ranks: to stderr and to a file each."""

from __future__ import annotations

import errno
import logging
import os
import sys
from pathlib import Path

from data_preparation.common.errors import UserError
from training.runtime.ranks import Ranks

FORMAT = "%(asctime)s{who} %(levelname)-7s %(message)s"


class _StderrHandler(logging.StreamHandler):
    """Writes to stderr until its terminal or pipe is closed; then to /dev/null. Otherwise the training would end, or Python
    would change its exit status because it cannot flush stderr."""

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if isinstance(error, OSError) and error.errno in (errno.EIO, errno.EPIPE):
            with open(os.devnull, "wb") as nothing:
                os.dup2(nothing.fileno(), self.stream.fileno())


def start_log(level: str, ranks: Ranks) -> None:
    """Log to stderr: the first rank at `level`, the others at WARNING or above, with their rank in each line."""
    who = f" rank {ranks.rank}" if ranks.world_size > 1 else ""
    # a full disk is reported once, by the code that cannot write a file, and not for every log line
    logging.raiseExceptions = False
    logging.basicConfig(
        format=FORMAT.replace("{who}", who), datefmt="%H:%M:%S", handlers=[_StderrHandler()], force=True
    )
    number = logging.getLevelName(level)
    logging.getLogger("training").setLevel(number if ranks.is_first else max(logging.WARNING, number))


def also_log_to(path: Path) -> None:
    """Also append the log of this rank, with dates, to a file.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(path)
    except OSError as error:
        raise UserError(f"log file {path} cannot be written ({error.strerror}): choose another --runs_dir") from None
    handler.setFormatter(logging.Formatter(FORMAT.replace("{who}", "")))
    logging.getLogger().addHandler(handler)
