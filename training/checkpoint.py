"""Checkpoints: written whole or not at all, read back as tensors and plain values only."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from data_preparation.cli import UserError, first_line
from data_preparation.files import whole_file


def save(path: Path, content: dict[str, Any]) -> None:
    """Write under a temporary name, flush to the disk, rename; a kill at any moment leaves the old file or the new.

    Raises:
        UserError: the disk is full or not writable; the file that was there is as it was.
    """
    try:
        with whole_file(path) as temporary:
            torch.save(content, temporary)
    except (OSError, RuntimeError) as error:  # torch reports a short write as RuntimeError
        raise UserError(
            f"checkpoint {path} could not be written ({first_line(error)}): make room or choose another --runs_dir, then start the run again"
        ) from None


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The content that `save` wrote.

    Raises:
        UserError: the file is torn or is no checkpoint.
    """
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise UserError(f"checkpoint {path} cannot be read ({first_line(error)}): delete it to go without it") from None
