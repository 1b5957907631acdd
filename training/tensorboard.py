"""TensorBoard's events of a run, for those who have it: the numbers of metrics.jsonl, drawn by somebody else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


class EventLog:
    """Events in `folder`; what is written again after an interruption replaces what was written before."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writer: Any = None

    def add(self, record: Mapping[str, Any]) -> None:
        """A record of metrics.jsonl."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.folder), purge_step=record["step"])
        for name, value in record.items():
            if isinstance(value, float):
                self._writer.add_scalar(f"{record['type']}/{name}", value, record["step"])
        self._writer.flush()
