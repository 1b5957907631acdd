"""What train.py asks of whatever trains: Engine (steps) and FeatureFit (none)."""

from __future__ import annotations

from typing import Protocol

from training.data.dataset import ActionDataset


class Trainer(Protocol):
    """Called in this order: resume, fit, and at the very end report_finished; stop_if_requested wherever all ranks pass together."""

    def resume(self) -> None:
        """Go on from what the run folder holds.

        Raises:
            UserError: it holds a run and nothing whole to go on from.
        """
        ...

    def fit(self, train_data: ActionDataset, val_data: ActionDataset) -> None:
        """Train to the end; the run folder then holds best.pt.

        Raises:
            StoppedBySignal: a signal came. UserError: something that the user can fix.
        """
        ...

    def stop_if_requested(self) -> None:
        """
        Raises:
            StoppedBySignal: any rank was told to stop.
        """
        ...

    def report_finished(self) -> None:
        """Say that the run has ended well."""
        ...
