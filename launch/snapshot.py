"""The code and the flags of a job, kept in its run folder: what was edited since does not reach a job that is requeued.

python -m launch.snapshot [--config FILE] [-- training flags]      what job_files/train_model.job does at its first start

runs/<name>/code/<digest>/      data_preparation, training, launch, job_files; code.json and code.diff say what they are
runs/<name>/jobs/<job id>/      code (a link to the above), flags (all training flags, each ended by a zero byte)
$DEEPSPORTS_RUNS/.jobs/<job id> a link to that folder, where a job file finds it however the flag file was edited
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_preparation.common.command_line import flag, parse, run, to_argv
from data_preparation.common.errors import UserError
from data_preparation.common.files import atomic_folder, reporting_write_errors, write_atomic
from launch.config import REPOSITORY, absolute, read_flag_file, split_argv
from training.config import TrainConfig
from training.runtime.ranks import slurm_job_id
from training.runtime.run_folder import CODE_RECORD, RunFolder, code_difference, code_record

_PARTS = ("data_preparation", "training", "launch", "job_files")


def code_files() -> list[Path]:
    """The files that a job may need, relative to the repository."""
    found = (path for part in _PARTS for path in (REPOSITORY / part).rglob("*") if path.is_file())
    return sorted(path.relative_to(REPOSITORY) for path in found if "__pycache__" not in path.parts)


def place(folder: Path) -> Path:
    """Where in a run's (or sweep's) folder the snapshot of the present code lies, or would lie."""
    digest = hashlib.sha256()
    for name in code_files():
        digest.update(f"{name}\0".encode() + (REPOSITORY / name).read_bytes() + b"\0")
    return folder / "code" / digest.hexdigest()[:12]


def take(folder: Path) -> Path:
    """Copy the code into a run's folder, unless the same code lies there; returns where.

    Raises:
        UserError: the disk is full or not writable.
    """
    target = place(folder)
    if target.is_dir():
        return target
    with reporting_write_errors(target), atomic_folder(target) as temporary:
        for name in code_files():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, temporary / name)
        (temporary / CODE_RECORD.name).write_text(json.dumps(code_record(), indent=2) + "\n")
        (temporary / "code.diff").write_bytes(code_difference())
    return target


def keep(run_folder: RunFolder, job_id: str, training: TrainConfig, code: Path) -> Path:
    """Write down what a job is to do, once; returns the job's folder."""
    job = run_folder.job_dir(job_id)
    with reporting_write_errors(job):
        job.mkdir(parents=True, exist_ok=True)
        (job / "code").unlink(missing_ok=True)
        (job / "code").symlink_to(os.path.relpath(code, job))
        write_atomic(job / "flags", b"".join(word.encode() + b"\0" for word in to_argv(training)))
    return job


@dataclass(frozen=True)
class SnapshotConfig:
    """Keep the code and the flags of this Slurm job."""

    config: Path = flag(Path("model_train_config.sh"), "File of training flags.")


def main(argv: Sequence[str]) -> int:
    own, training_argv = split_argv(list(argv))
    options = parse(SnapshotConfig, own, prog="python -m launch.snapshot")
    job_id = slurm_job_id()
    if job_id is None:
        raise UserError("this is not a Slurm job: sbatch job_files/train_model.job calls launch.snapshot")
    flags = [*read_flag_file(REPOSITORY / options.config), *training_argv]
    training = absolute(parse(TrainConfig, flags, prog=str(options.config)))
    folder = RunFolder(training.run_dir)
    job = keep(folder, job_id, training, take(folder.path))
    link = Path(os.environ.get("DEEPSPORTS_RUNS", "runs")).resolve() / ".jobs" / job_id
    with reporting_write_errors(link):
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(job)
    return 0


if __name__ == "__main__":
    run(main)
