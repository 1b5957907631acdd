"""The launch flags (LaunchConfig), and reading a flag file and the environment. Imports no torch."""

from __future__ import annotations

import dataclasses
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_preparation.common.command_line import flag, flag_faults
from data_preparation.common.errors import UserError
from training.config import NO_WEIGHTS, TrainConfig

REPOSITORY = Path(__file__).resolve().parent.parent
ENVIRONMENT_FILE = REPOSITORY / "job_files" / "environment.sh"


@dataclass(frozen=True)
class LaunchConfig:
    """Submit a training to Slurm. Training flags follow after `--` and override the flag file."""

    config: Path = flag(Path("model_train_config.sh"), "File of training flags; relative to the repository.")
    cluster: str = flag(
        "slurm", "Where to train: on Slurm, or here in the background (a workstation).", choices=("slurm", "local")
    )
    nodes: int = flag(1, "Nodes.", minimum=1)
    gpus_per_node: int = flag(1, "GPUs of each node, with one rank for each; 0 trains on the CPU.", minimum=0)
    gpu_type: str = flag("", "Type of GPU as your site names it, such as a100.")
    gpu_mem_gb: float = flag(0.0, "Memory of a GPU in GB, to compare with the expected memory; 0: unknown.", minimum=0)
    tasks_per_node: int = flag(0, "Ranks of each node; 0: one for each GPU.", minimum=0)
    cpus_per_gpu: int = flag(8, "CPU cores for each GPU (without GPUs: for each rank).", minimum=1)
    mem_per_gpu_gb: int = flag(32, "Memory of the node in GB for each GPU (without GPUs: for each rank).", minimum=1)
    time_min: int = flag(
        120, "Time limit in minutes; near it, the job saves, is requeued and resumes.", minimum=1, maximum=525_600
    )
    partition: str = flag("", "Partition; empty: the site's default.")
    account: str = flag("", "Account; empty: your default.")
    qos: str = flag("", "Quality of service.")
    constraint: str = flag("", "Node features that are required, such as v100.")
    exclude: str = flag("", "Nodes to avoid, such as gpu[003-004].")
    dependency: str = flag("", "Jobs to wait for, such as afterok:123.")
    mail: str = flag("", "E-mail address that Slurm notifies when the job ends or fails.")
    comment: str = flag("", "Text before the progress in the job's comment (squeue's %k).")
    cpu_bind: str = flag("", "srun's --cpu-bind, such as cores or ldoms.")
    gpu_bind: str = flag("", "srun's --gpu-bind, such as closest.")
    requeues: int = flag(
        30, "How often the job may restart after time limits, preemption, dead nodes and killed ranks.", minimum=0
    )
    forecast: bool = flag(
        True, "Before submitting, also build the model on this machine to check weights and memory (some seconds)."
    )
    dry_run: bool = flag(False, "Print the sbatch script and submit nothing.")

    @property
    def tasks(self) -> int:
        """Ranks of each node."""
        return self.tasks_per_node or max(self.gpus_per_node, 1)

    @property
    def world_size(self) -> int:
        """Ranks of all nodes together."""
        return self.nodes * self.tasks

    @property
    def gpus_or_tasks(self) -> int:
        """The factor of --cpus_per_gpu and --mem_per_gpu_gb on each node."""
        return self.gpus_per_node or self.tasks

    @property
    def cpus_per_task(self) -> int:
        return self.cpus_per_gpu * self.gpus_or_tasks // self.tasks or 1


# sbatch's own variables; every other launch flag has a DEEPSPORTS_ variable
_SBATCH_VARIABLES = {name: f"SBATCH_{name.upper()}" for name in ("partition", "account", "qos", "constraint")}


def site_flags(env: Mapping[str, str], cls: type = LaunchConfig) -> list[str]:
    """The launch flags that environment variables set: DEEPSPORTS_TIME_MIN sets --time_min, and so on; partition, account,
    QOS and constraint have sbatch's own variables.

    Raises:
        UserError: values that are not allowed (all of them at once).
    """
    argv: list[str] = []
    faults: list[str] = []
    for field in dataclasses.fields(cls):
        variable = _SBATCH_VARIABLES.get(field.name, f"DEEPSPORTS_{field.name.upper()}")
        if env.get(variable):
            argv.append(f"--{field.name}={env[variable]}")
            faults += [f"{variable} in your environment: {fault}" for fault in flag_faults(cls, argv[-1:])]
    if faults:
        raise UserError.of(faults)
    return argv


def absolute(training: TrainConfig) -> TrainConfig:
    """The same configuration with absolute paths, so that a process may start in any folder."""
    names = [field.name for field in dataclasses.fields(training) if field.metadata["path"]]
    given = {name: getattr(training, name) for name in names}
    paths: dict[str, Any] = {
        # the text 'none' is not a path
        name: value.resolve() if isinstance(value, Path) else str(Path(value).resolve())
        for name, value in given.items()
        if isinstance(value, Path) or value.lower() not in NO_WEIGHTS
    }
    return dataclasses.replace(training, **paths)


def split_argv(argv: list[str]) -> tuple[list[str], list[str]]:
    """(launch flags, training flags): the words before and after the first `--`."""
    if "--" not in argv:
        return argv, []
    at = argv.index("--")
    return argv[:at], argv[at + 1 :]


def named_config(argv: list[str]) -> Path:
    """The flag file that a command line names, even if other flags are wrong."""
    named = [argv[i + 1] for i, word in enumerate(argv[:-1]) if word == "--config"]
    named += [word.removeprefix("--config=") for word in argv if word.startswith("--config=")]
    return Path(named[-1]) if named else LaunchConfig.config


def read_flag_file(path: Path, given_by: str = "--config") -> list[str]:
    """The training flags in a file like model_train_config.sh, which the flag `given_by` names.

    Raises:
        UserError: the file is missing, exits with an error, or prints no flags.
    """
    if not path.is_file():
        raise UserError(f"{given_by} {path} is not a file: give a file like model_train_config.sh")
    if b"\r\n" in path.read_bytes():
        raise UserError(f"{given_by} {path} has Windows line ends: convert it (sed -i 's/\\r$//' {path})")
    done = subprocess.run(["bash", str(path), "--print_flags"], capture_output=True, text=True, errors="replace")
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise UserError(
            f"{given_by} {path} cannot be read as bash ({lines[-1]}): compare it with the model_train_config.sh of the repository"
        )
    words = done.stdout.split("\0")
    starts = [
        i for i, word in enumerate(words) if word.endswith("training flags:")
    ]  # the site's set-up may print text before
    if not starts:
        raise UserError(
            f"{given_by} {path} gives no flags: its last line must source job_files/with_flags.sh, as in model_train_config.sh"
        )
    return words[starts[-1] + 1 : -1]


def site_environment() -> Mapping[str, str]:
    """The environment variables after job_files/environment.sh.

    Raises:
        UserError: the file fails.
    """
    done = subprocess.run(
        ["bash", "-c", 'source "$1" >&2 && env -0', "bash", str(ENVIRONMENT_FILE)], capture_output=True, text=True
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise UserError(f"{ENVIRONMENT_FILE} fails ({lines[-1]}): fix it, every job sources it")
    return dict(line.split("=", 1) for line in done.stdout.split("\0") if "=" in line)
