"""LaunchConfig: the flags of a submission, and how a user's flag file and environment are read. Imports no torch."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from data_preparation.cli import UserError, flag

REPOSITORY = Path(__file__).resolve().parent.parent
ENVIRONMENT_FILE = REPOSITORY / "job_files" / "environment.sh"
SIGNAL_BEFORE_END_S = 120  # seconds between Slurm's USR2 and the time limit: enough to finish a step and save


@dataclass(frozen=True)
class LaunchConfig:
    """Submit a training to Slurm. Training flags follow after `--` and win over the flag file."""

    config: Path = flag(
        Path("model_train_config.sh"), "File of training flags; a relative path is from the repository."
    )
    nodes: int = flag(1, "Nodes.", minimum=1)
    gpus_per_node: int = flag(1, "GPUs of each node; 0 trains on the CPU.", minimum=0)
    tasks_per_node: int = flag(0, "Training processes of each node; 0 is one for each GPU.", minimum=0)
    cpus_per_task: int = flag(8, "CPU cores of each process.", minimum=1)
    mem_gb: int = flag(32, "Memory of each node in GB.", minimum=1)
    time_min: int = flag(120, "Time limit in minutes; the job is requeued when it is reached.", minimum=1)
    partition: str = flag(
        "", "Partition; empty takes SBATCH_PARTITION of job_files/environment.sh, else the site's default."
    )
    account: str = flag("", "Account; empty takes SBATCH_ACCOUNT of job_files/environment.sh, else the user's default.")
    qos: str = flag("", "Quality of service.")
    constraint: str = flag("", "Node features, such as v100.")
    requeues: int = flag(30, "How often the job may go on after a time limit.", minimum=0)
    dry_run: bool = flag(False, "Print the sbatch script and submit nothing.")

    @property
    def tasks(self) -> int:
        """Training processes of each node."""
        return self.tasks_per_node or max(self.gpus_per_node, 1)


def split_argv(argv: list[str]) -> tuple[list[str], list[str]]:
    """(launch flags, training flags): what stands before and after the first `--`."""
    if "--" not in argv:
        return argv, []
    at = argv.index("--")
    return argv[:at], argv[at + 1 :]


def read_flag_file(path: Path) -> list[str]:
    """The training flags that a file like model_train_config.sh gives.

    Raises:
        UserError: the file is not there, fails, or is not of that form.
    """
    if not path.is_file():
        raise UserError(f"--config {path} is no file: give a file like model_train_config.sh")
    done = subprocess.run(["bash", str(path), "--print_flags"], capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise UserError(
            f"--config {path} cannot be read as bash ({lines[-1]}): compare it with the model_train_config.sh of the repository"
        )
    words = done.stdout.split("\0")
    starts = [
        i for i, word in enumerate(words) if word.endswith("training flags:")
    ]  # what the site's set-up prints stands before
    if not starts:
        raise UserError(
            f"--config {path} gives no flags: its last line must source job_files/with_flags.sh, as in model_train_config.sh"
        )
    return words[starts[-1] + 1 : -1]


def site_environment() -> Mapping[str, str]:
    """The environment as job_files/environment.sh makes it.

    Raises:
        UserError: the file fails.
    """
    done = subprocess.run(
        ["bash", "-c", 'source "$1" >&2 && env -0', "bash", str(ENVIRONMENT_FILE)], capture_output=True, text=True
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise UserError(f"{ENVIRONMENT_FILE} fails ({lines[-1]}): mend it, every job sources it")
    return dict(line.split("=", 1) for line in done.stdout.split("\0") if "=" in line)
