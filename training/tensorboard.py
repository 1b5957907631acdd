"""Write the values of metrics.jsonl as TensorBoard events (optional dependency)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


class EventLog:
    """Writes events to `folder`. A resumed run replaces the events of steps that it repeats."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writer: Any = None

    def add(self, record: Mapping[str, Any]) -> None:
        """Write the values of a record of metrics.jsonl."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.folder), purge_step=record["step"])
        for name, value in record.items():
            if isinstance(value, float):
                self._writer.add_scalar(f"{record['type']}/{name}", value, record["step"])
        self._writer.flush()

    def close(self) -> None:
        """Close the file of events."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
