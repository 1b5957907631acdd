"""Submit a training to Slurm by submitit.

    python -m launch.submit --nodes 2 --gpus_per_node 2 [launch flags] [-- training flags]

The training flags are those of model_train_config.sh (or --config FILE); flags after `--` win over the file's.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import submitit

from data_preparation.cli import UserError, parse, run
from launch import preflight
from launch.config import (
    ENVIRONMENT_FILE,
    REPOSITORY,
    SIGNAL_BEFORE_END_S,
    LaunchConfig,
    read_flag_file,
    site_environment,
    split_argv,
)
from launch.job import TrainingJob
from training.config import TrainConfig


def slurm_parameters(launch: LaunchConfig, site: dict[str, str], run_name: str) -> dict[str, Any]:
    """submitit's parameters for a submission: flags, then the site's values, then defaults."""
    additional: dict[str, Any] = {"requeue": True, "open_mode": "append"}  # submitit writes no --requeue of its own
    account = launch.account or site.get("SBATCH_ACCOUNT")
    optional = {"account": account, "qos": launch.qos, "constraint": launch.constraint}
    parameters: dict[str, Any] = {
        "name": f"deepsports-{run_name}",
        "nodes": launch.nodes,
        "tasks_per_node": launch.tasks,
        "cpus_per_task": launch.cpus_per_task,
        "mem_gb": launch.mem_gb,
        "timeout_min": launch.time_min,
        "stderr_to_stdout": True,
        "slurm_signal_delay_s": min(SIGNAL_BEFORE_END_S, launch.time_min * 60 // 2),
        "slurm_setup": [f"cd {shlex.quote(str(REPOSITORY))}", f"source {shlex.quote(str(ENVIRONMENT_FILE))}"],
        # srun takes no --cpus-per-task from sbatch since Slurm 22.05; one dead rank must end them all
        "slurm_srun_args": ["--kill-on-bad-exit=1", f"--cpus-per-task={launch.cpus_per_task}"],
        "slurm_additional_parameters": {**additional, **{k: v for k, v in optional.items() if v}},
    }
    if launch.gpus_per_node:
        parameters["gpus_per_node"] = launch.gpus_per_node
    if partition := launch.partition or site.get("SBATCH_PARTITION"):
        parameters["slurm_partition"] = partition
    return parameters


def main(argv: Sequence[str]) -> int:
    os.chdir(REPOSITORY)  # where the job will run: relative paths mean the same before and after
    launch_argv, training_argv = split_argv(list(argv))
    launch = parse(LaunchConfig, launch_argv, prog="python -m launch.submit", description=__doc__.splitlines()[0])
    flags = [*read_flag_file(REPOSITORY / launch.config), *training_argv]
    training = parse(TrainConfig, flags, prog=str(launch.config))
    if faults := preflight.faults(launch, training):
        raise UserError.of(faults)

    site = dict(site_environment())
    job_dir = training.run_dir.resolve() / "jobs" / "%j"
    executor = submitit.AutoExecutor(job_dir, cluster="slurm", slurm_max_num_timeout=launch.requeues)
    executor.update_parameters(**slurm_parameters(launch, site, training.run_name))
    job = TrainingJob([*flags, "--runs_dir", str(training.runs_dir.resolve())])
    if launch.dry_run:
        print(sbatch_script(executor, job_dir))
        return 0
    try:
        submitted = executor.submit(job)
    except submitit.core.utils.FailedJobError as error:
        raise UserError(
            f"sbatch refuses the job ({str(error).strip().splitlines()[-1]}): mend the launch flags or job_files/environment.sh"
        ) from None
    folder = Path(str(job_dir).replace("%j", submitted.job_id))
    print(f"job        {submitted.job_id}")
    print(f"run folder {training.run_dir.resolve()}")
    print(f"log        tail -F {folder}/{submitted.job_id}_0_log.out")
    print('watch      squeue --me -o "%i %j %T %M %k"     or     python -m launch.status')
    return 0


def sbatch_script(executor: submitit.AutoExecutor, job_dir: Path) -> str:
    """The sbatch file that a submission would send."""
    slurm = executor._executor
    return slurm._make_submission_file_text(
        f"{slurm.python} -u -m submitit.core._submit {shlex.quote(str(job_dir))}", "dry-run"
    )


if __name__ == "__main__":
    run(main)
