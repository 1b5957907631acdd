"""How training processes log."""

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
    """Writes to stderr for as long as there is someone to read it. A terminal that was closed, or a pipe whose reader is
    gone, must neither end the training nor change its exit status, which Python does when it cannot write what is left."""

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if isinstance(error, OSError) and error.errno in (errno.EIO, errno.EPIPE):
            with open(os.devnull, "wb") as nothing:
                os.dup2(nothing.fileno(), self.stream.fileno())


def start_log(level: str, ranks: Ranks) -> None:
    """Lines with the time; the first rank at `level`, the others from warnings up, with their rank."""
    who = f" rank {ranks.rank}" if ranks.world_size > 1 else ""
    logging.raiseExceptions = False  # a full disk is reported once, by what cannot be written, not with every line
    logging.basicConfig(
        format=FORMAT.replace("{who}", who), datefmt="%H:%M:%S", handlers=[_StderrHandler()], force=True
    )
    number = logging.getLevelName(level)
    logging.getLogger("training").setLevel(number if ranks.is_first else max(logging.WARNING, number))


def also_log_to(path: Path) -> None:
    """Append this process's lines, with the date, to a file as well.

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
