"""Copies of the code for jobs: edits of the checkout do not reach a job that is queued or requeued.

runs/<name>/code/<digest>/      data_preparation, training, launch, job_files; code.json and code.diff name the revision
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from data_preparation.common.files import atomic_folder, reporting_write_errors
from launch.config import REPOSITORY
from training.runtime.run_folder import CODE_RECORD, code_difference, code_record

_PARTS = ("data_preparation", "training", "launch", "job_files")


def code_files() -> list[Path]:
    """The files that a job may need, relative to the repository."""
    found = (path for part in _PARTS for path in (REPOSITORY / part).rglob("*") if path.is_file())
    return sorted(path.relative_to(REPOSITORY) for path in found if "__pycache__" not in path.parts)


def code_path(folder: Path) -> Path:
    """The path that a copy of the present code has, or would have, in the folder of a run or a sweep."""
    digest = hashlib.sha256()
    for name in code_files():
        digest.update(f"{name}\0".encode() + (REPOSITORY / name).read_bytes() + b"\0")
    return folder / "code" / digest.hexdigest()[:12]


def copy_code(folder: Path) -> Path:
    """Copy the code into the folder of a run or a sweep, unless it has this code already; returns the copy.

    Raises:
        UserError: the disk is full or not writable.
    """
    target = code_path(folder)
    if target.is_dir():
        return target
    with reporting_write_errors(target), atomic_folder(target) as temporary:
        for name in code_files():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, temporary / name)
        (temporary / CODE_RECORD.name).write_text(json.dumps(code_record(), indent=2) + "\n")
        (temporary / "code.diff").write_bytes(code_difference())
    return target
