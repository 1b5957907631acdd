"""RunProgress: the content of progress.json. Imports no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, get_args, get_type_hints

_WRITTEN_AS_NULL = {"error", "eta_s", "job_id"}  # the other fields are left out of the file until they are known
_FIRST_EDITION = {"best_spearman": "best", "val_spearman": "val"}  # its names of fields


@dataclass(frozen=True)
class RunProgress:
    """How far a run is. None, or the default of a number, means not known yet or missing in the file of an older version."""

    state: str  # running, interrupted, finished or failed
    job_id: str | None = None  # Slurm's; None without a job
    restarts: int = 0  # of the job
    host: str | None = None  # of the first rank
    pid: int | None = None  # of the first rank
    error: str | None = None  # what ended the run, in one line
    epoch: int = 0  # epochs completed
    epochs: int | None = None
    step: int = 0  # steps done in all epochs
    steps: int | None = None  # planned for all epochs
    best_epoch: int = 0  # 1-based; 0 before the first validation
    metric: str | None = None  # short name of the validation metric that chooses, such as rho
    best: float | None = None  # that metric of the best epoch
    train_loss: float | None = None  # of the last epoch
    val: float | None = None  # that metric of the last epoch
    seconds_per_step: float | None = None
    dives_per_s: float | None = None  # over all ranks
    data_share: float | None = None  # fraction of the time that waited for data, 0 to 1
    epoch_s: float | None = None  # seconds of the last whole epoch, with validation
    eta_s: float | None = None  # seconds until the last step
    peak_memory_gib: float | None = None
    slow_ranks: str | None = None  # in one line; None if no rank is slow
    updated: float = 0.0  # when the file was written, in seconds since 1970

    def as_record(self) -> dict[str, Any]:
        """The content of progress.json."""
        return {n: value for n, value in asdict(self).items() if value is not None or n in _WRITTEN_AS_NULL}

    @classmethod
    def from_record(cls, record: Any) -> RunProgress:
        """The progress that `as_record` wrote, in this version or another: unknown fields are ignored, and null means
        the field's default.

        Raises:
            ValueError: not a record of a run's progress.
        """
        if not isinstance(record, dict):
            raise ValueError("not an object")
        types = get_type_hints(cls)
        if set(record) & set(_FIRST_EDITION):
            record = {"metric": "rho", **{_FIRST_EDITION.get(name, name): value for name, value in record.items()}}
        known = {f.name: record[f.name] for f in fields(cls) if record.get(f.name) is not None}
        for name, value in known.items():
            allowed = get_args(types[name]) or (types[name],)
            if not isinstance(value, (*allowed, int) if float in allowed else allowed):
                raise ValueError(f"{name} is {value!r}")
        if missing := {"state", "updated"} - set(known):
            raise ValueError(f"no {' and no '.join(sorted(missing))}")
        return cls(**known)


def seconds_left(progress: RunProgress) -> float | None:
    """Seconds until the last step, estimated from the last whole epoch (with its validation), else from the last steps; None
    if neither is known."""
    if progress.steps is None or progress.epochs is None:
        return None
    left = max(progress.steps - progress.step, 0)
    if progress.epoch_s is not None:
        return left * progress.epoch_s * progress.epochs / progress.steps
    return None if progress.seconds_per_step is None else left * progress.seconds_per_step
