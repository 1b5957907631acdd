"""The run folder: the names of the files of a run, its lock, metrics and progress.

runs/<name>/
    config.json         the resolved flags
    environment.json    code revision, package versions, host
    splits.json         the training, validation and test actions
    metrics.jsonl       a line for each logged step ("type": "step") and each epoch ("type": "epoch")
    progress.json       where the run is now (launch.status and Slurm's job comment read it)
    checkpoints/        epoch-0003-step-00000120.pt (3 epochs done, 120 steps), the last --keep_checkpoints of them; best.pt
    losses.png          redrawn each epoch
    val_predictions.csv predictions for the validation actions, of the epoch that validation chose (for training.combine)
    calibration.npz     distances of clips from the training clips, to decline others (training/novelty.py)
    predictions.csv, summary.json and a plot (scores.png, confusion.png)   written once, when the test split is opened
    report.html         a page about the run, written after the test split was opened (training/html_report)
    resumes.jsonl       a line for each resume: epoch, step and time
    tensorboard/        events, with --tensorboard True
    wandb/, wandb.json  a run of Weights & Biases and its state, with --wandb True
    jobs/<job id>/      a job's logs, flags, starts and ends (launch.job); jobs/*.out is the output of the jobs
    code/<digest>/      the code that jobs run (launch.snapshot)
"""

from __future__ import annotations

import csv
import difflib
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

from data_preparation.common.errors import UserError, first_line
from data_preparation.common.files import lock, reporting_write_errors, write_atomic, write_error
from training.config import TrainConfig, as_record, differences, from_record
from training.runtime.interruption import ProcessLost
from training.runtime.run_progress import RunProgress

SWEEP_FILE = "sweep.json"  # in the folder of a sweep, next to the folders of its points
MODEL_FORMAT = "deepsports_model"  # an entry in the config.json and the weights of an exported model
REPEATS = {"seed", "fold"}  # flags that repeat an experiment instead of changing it

_lock_files: list[IO[str]] = []  # kept open: closing one would release its lock

_PACKAGES = "torch torchvision timm fvcore torchsort av simplejpeg numpy scipy scikit-learn matplotlib submitit".split()  # noqa: SIM905


def _without_nan(value: Any) -> Any:
    """`value` with NaN and infinity as None, since JSON has neither."""
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically, with null for NaN and infinity.

    Raises:
        UserError: the disk is full or not writable.
    """
    with reporting_write_errors(path):
        write_atomic(path, (json.dumps(_without_nan(content), indent=2) + "\n").encode())


def read_json(path: Path, fix: str = "restore it from a copy, or use another --run_name") -> Any | None:
    """The content, or None if the file does not exist. `fix` is what to do about a damaged file.

    Raises:
        UserError: the file is damaged.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:  # also brackets in brackets, and numbers of thousands of digits
        raise UserError(f"{path} is not JSON (it is damaged: {first_line(error)}): {fix}") from None


def sweep_points(folder: Path) -> dict[str, dict[str, list[str]]]:
    """The points that launch.sweep has submitted into a sweep's folder: their names, and their flags with the words of each;
    empty where the folder is not a sweep's.

    Raises:
        UserError: the record is damaged.
    """
    record = read_json(folder / SWEEP_FILE)
    if record is None:
        return {}
    points = record.get("points") if isinstance(record, dict) else None
    if not isinstance(points, dict) or not all(isinstance(point, dict) and point for point in points.values()):
        raise UserError(f"{folder / SWEEP_FILE} is damaged: restore it from a copy, or give another --name")
    return points


@dataclass(frozen=True)
class RunFolder:
    """The paths of one run."""

    path: Path

    @property
    def title(self) -> str:
        """The name of the run in plots and tables: its folder's name, for a point of a sweep preceded by the sweep's."""
        path = Path(os.path.abspath(self.path))
        with suppress(UserError):  # a damaged record must not prevent a plot
            if path.name in sweep_points(path.parent):
                return f"{path.parent.name}/{path.name}"
        return path.name

    @property
    def config_file(self) -> Path:
        return self.path / "config.json"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def progress_file(self) -> Path:
        return self.path / "progress.json"

    @property
    def splits_file(self) -> Path:
        return self.path / "splits.json"

    def has_results(self) -> bool:
        """Whether a run has saved a checkpoint or a result here."""
        results = (*self.checkpoints(), self.best_checkpoint, self.summary_file)
        return self.config_file.exists() and any(file.exists() for file in results)

    def has_lost_checkpoints(self) -> bool:
        """Whether there were checkpoints once: best.pt, damaged checkpoints or a test result are left."""
        traces = (self.best_checkpoint, self.summary_file)
        return any(file.exists() for file in traces) or any((self.path / "checkpoints").glob("*.damaged"))

    def checkpoint_file(self, epochs_done: int, global_step: int) -> Path:
        return self.path / "checkpoints" / f"epoch-{epochs_done:04d}-step-{global_step:08d}.pt"

    def checkpoints(self) -> list[Path]:
        """The checkpoints to resume from, newest first."""
        return sorted((self.path / "checkpoints").glob("epoch-*-step-*.pt"), reverse=True)

    @property
    def best_checkpoint(self) -> Path:
        return self.path / "checkpoints" / "best.pt"

    @property
    def facts_file(self) -> Path:
        """The classes and score ranges of the data set (DataFacts)."""
        return self.path / "data.json"

    @property
    def predictions_file(self) -> Path:
        return self.path / "predictions.csv"

    @property
    def val_predictions_file(self) -> Path:
        return self.path / "val_predictions.csv"

    @property
    def novelty_file(self) -> Path:
        """How far validation clips are from the training clips (training/novelty.py)."""
        return self.path / "calibration.npz"

    @property
    def calibration_file(self) -> Path:
        """What the intervals of predictions are made from (calibration.Calibration)."""
        return self.path / "calibration.json"

    def val_predictions_epoch(self) -> int | None:
        """The epoch whose validation predictions are stored, or None."""
        origin = self.val_predictions_origin()
        return origin[0] if origin else None

    def val_predictions_origin(self) -> tuple[int, str] | None:
        """(epoch, TrainConfig.views_text) of the stored validation predictions, or None."""
        try:
            with open(self.val_predictions_file, newline="") as file:
                row = next(csv.DictReader(file))
                return int(row["epoch"]), row.get("views", "")
        except (OSError, StopIteration, KeyError, TypeError, ValueError, csv.Error):
            return None  # they are written again

    @property
    def summary_file(self) -> Path:
        return self.path / "summary.json"

    @property
    def combination_file(self) -> Path:
        """How the result of several runs was put together (training.combine)."""
        return self.path / "combination.json"

    @property
    def report_file(self) -> Path:
        return self.path / "report.html"

    def plot_file(self, config: TrainConfig) -> Path:
        return self.path / config.output  # an absolute --output stays what it is

    @property
    def jobs_dir(self) -> Path:
        return self.path / "jobs"

    def job_dir(self, job_id: str) -> Path:
        return self.jobs_dir / job_id

    def saved_config(self) -> TrainConfig | None:
        """The configuration that the run was started with, or None for a new run.

        Raises:
            UserError: config.json is damaged, of another version, or that of an exported model.
        """
        record = read_json(self.config_file)
        if isinstance(record, dict) and MODEL_FORMAT in record:
            raise UserError(f"{self.path} holds an exported model, not a run: give the folder of a run")
        return None if record is None else from_record(record)

    def existing_config(self) -> TrainConfig:
        """The configuration of the run in this folder.

        Raises:
            UserError: the folder holds no run; the message names similar folders that do.
        """
        if (config := self.saved_config()) is not None:
            return config
        if self.combination_file.exists():
            raise UserError(
                f"{self.path} holds no run but the mean of several: give the folder of one of those that {self.combination_file.name} names"
            )
        found = sorted(str(file.parent) for file in self.path.glob("*/config.json"))
        if not found and self.path.parent.is_dir():
            beside = [file.parent.name for file in self.path.parent.glob("*/config.json")]
            found = [str(self.path.with_name(name)) for name in difflib.get_close_matches(self.path.name, beside, 3)]
        more = f" (and {len(found) - 5} more)" if len(found) > 5 else ""
        near = f", such as {', '.join(found[:5])}{more}" if found else ", such as runs/default"
        what = "holds no run (no config.json)" if self.path.exists() else "does not exist"
        raise UserError(f"{self.path} {what}: give the folder of a run{near}")

    def scoring_config(self) -> TrainConfig:
        """The configuration of the run or of the exported model (training.pretrained) in this folder.

        Raises:
            UserError: the folder holds neither, or config.json is damaged.
        """
        record = read_json(self.config_file)
        if isinstance(record, dict) and MODEL_FORMAT in record:
            return from_record(record.get("flags", {}))
        return self.existing_config()

    def summary(self) -> dict[str, Any] | None:
        """The result of the test split, or None if it was not opened.

        Raises:
            UserError: the file is damaged.
        """
        found = read_json(self.summary_file)
        parts = {"checkpoint", "test", "method_metrics", "baselines", "groups"}
        if found is not None and not (isinstance(found, dict) and parts <= set(found)):
            raise UserError(f"{self.summary_file} is damaged or of another version: restore it from a copy")
        return found

    def acquire_lock(self, patience_s: float = 0) -> None:
        """Lock this folder against other trainings until this process ends. A restarted job waits up to `patience_s`, since
        processes of its previous start may still hold the lock after a node failure.

        Raises:
            UserError: another training holds the lock, or the folder cannot be created.
            ProcessLost: another training still holds the lock after `patience_s` > 0; another restart may help.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = open(self.path / ".lock", "w")  # noqa: SIM115 (stays open until the process ends)
        except OSError as error:
            fix = "copy it to where you may write" if self.config_file.exists() else "choose another --runs_dir"
            raise UserError(f"run folder {self.path} cannot be written ({error.strerror}): {fix}") from None
        deadline = time.monotonic() + patience_s
        while not lock(file, wait=False):
            if time.monotonic() > deadline:
                raise (ProcessLost if patience_s else UserError)(self._locked_text())
            time.sleep(1)
        _lock_files.append(file)

    def refuse_if_locked(self) -> None:
        """Check that no training is running in this folder.

        Raises:
            UserError: a training holds its lock.
        """
        path = self.path / ".lock"
        try:
            with open(path) as file:  # for reading: it may be another user's
                if not lock(file, wait=False):
                    raise UserError(self._locked_text())
        except FileNotFoundError:
            return
        except OSError as error:
            raise UserError(
                f"{path} cannot be read ({error.strerror}): give another --run_name, or ask its owner"
            ) from None

    def _locked_text(self) -> str:
        return f"another training is running in {self.path}: wait for it, or give another --run_name"

    def check_splits(self, splits: dict[str, Any]) -> None:
        """Check that the run was trained on these actions, with these labels; `splits` is the content of splits.json.

        Raises:
            UserError: it was not, or splits.json is missing.
        """
        known = read_json(self.splits_file)
        if known is None:
            raise UserError(
                f"{self.splits_file} is missing: restore it from a copy, because it lists the actions that the run was trained on"
            )
        if known != json.loads(json.dumps(splits)):
            raise UserError(
                f"{self.path} was trained on other annotations or lists than these: give another --run_name, or the data of that run"
            )

    def create(self, config: TrainConfig) -> None:
        """Create the folder, config.json and environment.json."""
        self.best_checkpoint.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.config_file, as_record(config))
        if not (self.path / "environment.json").exists():
            write_json(self.path / "environment.json", environment_record())

    # ------------------------------------------------------------------------------------------------------ metrics

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl.

        Raises:
            UserError: the disk is full or not writable.
        """
        try:
            with open(self.metrics_file, "a") as file:
                file.write(json.dumps(_without_nan(record)) + "\n")
        except OSError as error:
            raise write_error(self.metrics_file, error) from None

    @property
    def survivors_folder(self) -> Path:
        """Where the ranks agree which of them saves, when another one is lost (training/engine/survivors.py)."""
        return self.path / ".survivors"

    def sync_metrics(self) -> None:
        """fsync metrics.jsonl: a checkpoint must not be on disk before the lines that precede it."""
        with suppress(FileNotFoundError), open(self.metrics_file, "rb") as file:
            os.fsync(file.fileno())

    def remove_temporary_files(self) -> None:
        """Delete temporary files of checkpoints whose writer was killed. Only the holder of the lock may call it."""
        for file in (self.path / "checkpoints").glob(".*.tmp"):
            file.unlink(missing_ok=True)

    def metrics(self, kind: str) -> list[dict[str, Any]]:
        """The records of one type ("step" or "epoch"), oldest first, without an incomplete last line of a killed process."""
        return [r for r in self.records() if r["type"] == kind]

    def records(self) -> Iterable[dict[str, Any]]:
        """All records of metrics.jsonl, oldest first, without an incomplete last line of a killed process."""
        return _complete_lines(self.metrics_file)

    def rewind_metrics(self, epochs_done: int, global_step: int, last: Iterable[dict[str, Any]] = ()) -> None:
        """Remove the lines after the checkpoint that the run resumes from: they will be logged again. Append those of the
        `last` records that are missing: the first rank may have died before it wrote them."""
        found = {(r["type"], r["epoch"], r["step"]): r for r in (*last, *_complete_lines(self.metrics_file))}
        if not found:
            return
        remaining = [
            record
            for record in sorted(found.values(), key=lambda r: (r["step"], r["type"] == "epoch"))
            if (record["epoch"] <= epochs_done if record["type"] == "epoch" else record["step"] <= global_step)
        ]
        text = "".join(json.dumps(_without_nan(record)) + "\n" for record in remaining)
        with reporting_write_errors(self.metrics_file):
            write_atomic(self.metrics_file, text.encode())

    def record_resume(self, epoch: int, step: int) -> None:
        """Append a line to resumes.jsonl: the training goes on after this step. Reports mark it.

        Raises:
            UserError: the disk is full or not writable.
        """
        with reporting_write_errors(self._resumes_file), open(self._resumes_file, "a") as file:
            file.write(json.dumps({"type": "resume", "epoch": epoch, "step": step, "time": time.time()}) + "\n")

    def resumes(self) -> list[dict[str, Any]]:
        """The resumes of the run, oldest first."""
        return list(_complete_lines(self._resumes_file))

    @property
    def _resumes_file(self) -> Path:
        return self.path / "resumes.jsonl"

    # ----------------------------------------------------------------------------------------------------- progress

    def progress(self) -> RunProgress | None:
        """The content of progress.json, or None if there is none yet.

        Raises:
            UserError: progress.json is damaged.
        """
        record = read_json(self.progress_file)
        try:
            return None if record is None else RunProgress.from_record(record)
        except ValueError:
            raise UserError(f"{self.progress_file} is damaged: delete it, the training writes it again") from None

    def write_progress(self, progress: RunProgress) -> RunProgress:
        """Write progress.json; returns what was written, with the present time as `updated`."""
        progress = replace(progress, updated=time.time())
        write_json(self.progress_file, progress.as_record())
        return progress


def resume_faults(run: RunFolder, config: TrainConfig) -> tuple[list[str], list[str]]:
    """Compare the flags of a training with those of the run in its folder.

    Returns messages why the training cannot resume the run, and the changes that are allowed, as '--name: old -> new'. Both
    are empty for a folder without a run, or with one that never saved.
    """
    try:
        saved = run.saved_config()
    except UserError as error:
        return [str(error) if str(run.path) in str(error) else f"{run.config_file}: {error}"], []
    if saved is None or not run.has_results():
        return [], []
    if not config.resume:
        return [f"{run.path} holds a run and --resume is False: give another --run_name, or let it resume"], []
    fixed, free = differences(saved, config)
    faults = []
    if fixed:
        others = f"; these may differ: {'; '.join(free)}" if free else ""
        faults.append(
            f"{run.path} holds a run with other flags ({'; '.join(fixed)}): give another --run_name, or the flags of that run{others}"
        )
    if run.summary_file.exists() and config.epochs > saved.epochs:
        faults.append(
            f"the test split of {run.path} is opened, so {config.epochs} epochs instead of {saved.epochs} would be chosen after seeing it: give another --run_name"
        )
    if run.summary_file.exists() and config.views_text != saved.views_text:
        faults.append(
            f"the test split of {run.path} was opened with {saved.views_text or '1 clip x 1 crop'}, not {config.views_text or '1 clip x 1 crop'}: give the --test_ flags of that run, or another --run_name"
        )
    return faults, free


def _complete_lines(path: Path) -> Iterable[dict[str, Any]]:
    if not path.exists():
        return
    for line in path.read_text(errors="replace").splitlines(keepends=True):
        if line.endswith("\n"):
            try:
                record = json.loads(line)
                if not {"type", "epoch", "step"} <= set(record):
                    raise ValueError(f"fields are missing: {line[:40]!r}")
                yield record
            except (ValueError, TypeError) as error:
                raise UserError(f"{path} has a line that is not a record ({error}): remove that line") from None


CODE = Path(__file__).resolve().parents[2]
CODE_RECORD = CODE / "code.json"  # in a snapshot of the code: what it was taken from (launch.snapshot)


def code_record() -> dict[str, Any]:
    """The git revision of the running code, and whether it has uncommitted changes; None without git."""
    if (recorded := read_json(CODE_RECORD)) is not None:
        return recorded
    changed = _git("status", "--porcelain", "--untracked-files=no")
    return {"code_revision": _git("rev-parse", "HEAD"), "code_changed": None if changed is None else bool(changed)}


def code_difference() -> bytes:
    """The uncommitted changes of the code, for `git apply`; empty without git."""
    try:
        return subprocess.run(["git", "diff", "HEAD"], cwd=CODE, capture_output=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return b""


def environment_record() -> dict[str, Any]:
    """What a result depends on besides the configuration: code, versions, host."""
    return {
        **code_record(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "host": platform.node(),
        "command": sys.argv,
    }


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=CODE, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None  # no git, or not a checkout: null in the record
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
