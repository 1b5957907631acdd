"""Submit a training to Slurm through submitit, or start it on this machine in the background (--cluster local).

    python -m launch.submit --nodes 2 --gpus_per_node 2 [launch flags] [-- training flags]

Training flags come from model_train_config.sh (or --config FILE); those after `--` override the file. Launch flags that are
not given come from job_files/environment.sh, or have their defaults.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import submitit

from data_preparation.common.command_line import collect_faults, flag_faults, parse, run, to_argv
from data_preparation.common.errors import UserError
from data_preparation.common.files import lock, reporting_write_errors
from launch import preflight, snapshot
from launch.config import (
    ENVIRONMENT_FILE,
    REPOSITORY,
    LaunchConfig,
    absolute,
    named_config,
    read_flag_file,
    site_environment,
    site_flags,
    split_argv,
)
from launch.job import JOB_VARIABLE, TrainingJob, create_job_folder, free_port
from launch.slurm import NEVER_SATISFIED, QueuedJob, SlurmError, queue
from training import plugins
from training.config import TrainConfig
from training.runtime.interruption import SIGNAL_BEFORE_END_S
from training.runtime.ranks import PORT_VARIABLE, without_slurm
from training.runtime.run_folder import RunFolder

_SITE_VARIABLES = ("DEEPSPORTS_VENV", "DEEPSPORTS_SCRATCH", "DEEPSPORTS_DATASET", "DEEPSPORTS_RUNS", plugins.VARIABLE)
HOLD_SIGNALS = "bash job_files/hold_signals.sh"  # relative to the job's copy of the code
_IS_TRAINING_FLAG = "it is a training flag, give it after --"
_IS_LAUNCH_FLAG = "it is a launch flag, give it before --"
_A_YEAR_MIN = 365 * 24 * 60  # a workstation has no time limit


def job_setup(launch: LaunchConfig, site: Mapping[str, str], code: Path, jobs: Sequence[str]) -> list[str]:
    """The lines of the batch script before srun. `jobs` are the folders of the job, or of the tasks of a job array, as shell
    words."""
    values = {name: site[name] for name in _SITE_VARIABLES if name in site}
    values |= {"DEEPSPORTS_REQUEUES": str(launch.requeues), "DEEPSPORTS_COMMENT": launch.comment}
    return [
        *(f"export {name}={shlex.quote(value)}" for name, value in values.items()),
        f"source {shlex.quote(str(code))}/job_files/preamble.sh || exit 2",
        f"jobs=({' '.join(jobs)})",
        f'export {JOB_VARIABLE}="${{jobs[${{SLURM_ARRAY_TASK_ID:-0}}]}}"',
        f'{PORT_VARIABLE}="$(python -m launch.job begin)" || exit 2',
        f"export {PORT_VARIABLE}",
    ]


# the lines of the batch script after srun, as in job_files/train_model.job
JOB_END = ["status=$?", 'exit_status="$(python -m launch.job end "$status")" || true', 'exit "${exit_status:-$status}"']


def slurm_parameters(launch: LaunchConfig, name: str, setup: list[str]) -> dict[str, Any]:
    """The parameters of submitit's executor."""
    gpus = f"{launch.gpu_type}:{launch.gpus_per_node}" if launch.gpu_type else launch.gpus_per_node
    binding = {"cpu-bind": launch.cpu_bind, "gpu-bind": launch.gpu_bind}
    additional: dict[str, Any] = {"requeue": True}  # submitit does not write --requeue
    if launch.dependency:
        additional["kill-on-invalid-dep"] = "yes"  # else it would pend forever after a failed job
    optional = {
        "gpus_per_node": gpus,
        **{
            name: getattr(launch, name)
            for name in ("partition", "account", "qos", "constraint", "exclude", "dependency")
        },
        "comment": launch.comment,
        "mail_user": launch.mail,
        "mail_type": "END,FAIL,INVALID_DEPEND" if launch.mail else "",
    }
    return {
        "job_name": f"deepsports-{name}",
        "nodes": launch.nodes,
        "ntasks_per_node": launch.tasks,
        "cpus_per_task": launch.cpus_per_task,
        "mem": f"{launch.mem_per_gpu_gb * launch.gpus_or_tasks}GB",
        "time": launch.time_min,
        "stderr_to_stdout": True,
        "wckey": None,  # submitit sets one, which sites that enforce wckeys refuse
        "signal_delay_s": min(SIGNAL_BEFORE_END_S, launch.time_min * 60 // 2),
        "setup": setup,
        "teardown": JOB_END,
        # if a rank dies, the others save and end by themselves; srun kills what is left then
        "srun_args": ["--kill-on-bad-exit=0", "--wait=60", *(f"--{k}={v}" for k, v in binding.items() if v)],
        "additional_parameters": additional,
        **{key: value for key, value in optional.items() if value},
    }


@contextmanager
def submission_lock(folder: Path) -> Iterator[None]:
    """Lock a run's folder, so that no other submission of the run happens between the checks and sbatch."""
    with reporting_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / ".submit.lock", "w")  # noqa: SIM115 (closed below)
    with file:
        lock(file, wait=True)
        yield


def active_jobs() -> dict[str, QueuedJob]:
    """The user's pending and running jobs by job id, except jobs whose dependency can no longer be met.

    Raises:
        UserError: squeue fails.
    """
    try:
        return {job_id: job for job_id, job in queue().items() if job.reason != NEVER_SATISFIED}
    except SlurmError as error:
        raise UserError(f"the queue cannot be read ({error}): try again when Slurm answers") from None


def refuse_if_queued(folder: RunFolder) -> None:
    """
    Raises:
        UserError: the run already has a pending or running job, or squeue fails.
    """
    jobs = active_jobs()
    for job in (jobs[path.name] for path in folder.jobs_dir.glob("*") if path.name in jobs):
        raise UserError(
            f"job {job.job_id} ({job.state}) already trains {folder.path}: wait for it, cancel it (python -m launch.status cancel {folder.path.name}), or give another --run_name"
        )


def make_executor(launch: LaunchConfig, folder: Path, name: str, setup: list[str]) -> submitit.SlurmExecutor:
    """A submitit executor that writes its files directly into `folder`: Slurm does not create folders for a job's output,
    and a job that starts at once would not find a folder named after its id."""
    executor = submitit.SlurmExecutor(
        folder, python=f"{HOLD_SIGNALS} python"
    )  # the one that job_files/environment.sh activates
    executor.update_parameters(**slurm_parameters(launch, name, setup))
    return executor


def batch_script(executor: submitit.SlurmExecutor, folder: Path) -> str:
    """The sbatch file that a submission would use."""
    command = f"{executor.python} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    return executor._make_submission_file_text(command, "dry-run")


def submit(executor: submitit.SlurmExecutor, trainings: Sequence[TrainConfig]) -> list[str]:
    """Submit one training, or several as a job array; returns the job ids.

    Raises:
        UserError: sbatch refuses.
    """
    with without_slurm_variables():
        try:
            with executor.batch():
                jobs = [executor.submit(TrainingJob(to_argv(training))) for training in trainings]
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
            for left in Path(executor.folder).iterdir():  # submitit's files for the job that was refused
                if re.fullmatch(r"[0-9a-f]{32}\.pkl|\.submission_file_[0-9a-f]+\.sh", left.name):
                    left.unlink()
            raise UserError(
                f"sbatch refuses the job ({str(error).strip().splitlines()[-1]}): fix the launch flags or job_files/environment.sh"
            ) from None
    return [job.job_id for job in jobs]


@contextmanager
def without_slurm_variables() -> Iterator[None]:
    """Remove Slurm's variables during the block: a job that is submitted from inside another one must not inherit them."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(without_slurm(before))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def submit_training(launch: LaunchConfig, training: TrainConfig, site: Mapping[str, str]) -> str:
    """Copy the code and submit; returns the job id. The caller has run preflight.

    Raises:
        UserError: the run already has a job, or sbatch refuses.
    """
    folder = RunFolder(training.run_dir)
    with submission_lock(folder.path):
        refuse_if_queued(folder)
        folder.jobs_dir.mkdir(exist_ok=True)
        preflight.print_step(f"copying the code to {folder.path}, then submitting")
        code = snapshot.copy_code(folder.path)
        (job_id,) = submit(slurm_executor(launch, training, site, code), [training])
        create_job_folder(folder, job_id, training, code)
    return job_id


def slurm_executor(
    launch: LaunchConfig, training: TrainConfig, site: Mapping[str, str], code: Path
) -> submitit.SlurmExecutor:
    folder = RunFolder(training.run_dir)
    job = f'{shlex.quote(str(folder.jobs_dir))}/"$SLURM_JOB_ID"'
    setup = job_setup(launch, site, code, [job])
    return make_executor(launch, folder.jobs_dir, training.run_name, setup)


@contextmanager
def detached_from_terminal() -> Iterator[None]:
    """Connect processes that the block starts to /dev/null instead of this process's terminal or pipes. Otherwise a program
    that reads this process's output would wait until they end."""
    with open(os.devnull, "r+b") as nothing:
        saved = [os.dup(number) for number in range(3)]
        try:
            for number in range(3):
                os.dup2(nothing.fileno(), number)
            yield
        finally:
            for number, copy in enumerate(saved):
                os.dup2(copy, number)
                os.close(copy)


def start_locally(launch: LaunchConfig, training: TrainConfig) -> str:
    """Start the training on this machine in the background, one rank for each GPU; returns a text with its process id.

    Raises:
        UserError: a training is running in the run's folder.
    """
    folder = RunFolder(training.run_dir)
    with submission_lock(folder.path):
        folder.refuse_if_locked()
        return _start_locally(launch, training, folder)


def _start_locally(launch: LaunchConfig, training: TrainConfig, folder: RunFolder) -> str:
    folder.jobs_dir.mkdir(exist_ok=True)
    preflight.print_step(f"copying the code to {folder.path}, then starting")
    code = snapshot.copy_code(folder.path)
    executor = submitit.LocalExecutor(folder.jobs_dir, python=f"{HOLD_SIGNALS} {shlex.quote(sys.executable)}")
    executor.update_parameters(
        tasks_per_node=launch.tasks,
        gpus_per_node=launch.gpus_per_node,
        timeout_min=_A_YEAR_MIN,
        stderr_to_stdout=True,
        setup=[f"cd {shlex.quote(str(code))}"],
    )
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # inherited: the training outlives this terminal
    os.environ[PORT_VARIABLE] = str(free_port(os.getpid()))
    with detached_from_terminal():
        job = executor.submit(TrainingJob(to_argv(training)))
    create_job_folder(folder, "local", training, code)  # submitit's id is a process id, not a Slurm job
    return f"process {job.job_id}"


def read_flags(argv: Sequence[str], cls: type, prog: str, description: str) -> tuple[Any, TrainConfig, dict[str, str]]:
    """(launch flags, training flags with absolute paths, environment) of a command line with `--` between the flags.

    Raises:
        UserError: wrong flags (all of them at once), or the flag file or the environment cannot be read.
    """
    os.chdir(REPOSITORY)  # relative paths are relative to the repository
    launch_argv, training_argv = split_argv(list(argv))
    if {"-h", "--help"} & set(launch_argv):
        parse(cls, launch_argv, prog=prog, description=description)
    preflight.print_step(f"reading the flags and {ENVIRONMENT_FILE.relative_to(REPOSITORY)}")
    site = dict(site_environment())
    faults: list[str] = []
    own = [*(collect_faults(faults, site_flags, site, cls) or []), *launch_argv]
    launch = collect_faults(faults, parse, cls, own, prog, description, {_IS_TRAINING_FLAG: TrainConfig})
    config = named_config(own) if launch is None else launch.config
    flags = collect_faults(faults, read_flag_file, REPOSITORY / config)
    training = None
    if flags is None:
        faults += flag_faults(TrainConfig, training_argv, {_IS_LAUNCH_FLAG: cls})
    else:
        training = collect_faults(
            faults, parse, TrainConfig, [*flags, *training_argv], str(config), None, {_IS_LAUNCH_FLAG: cls}
        )
    if training is None or faults:
        raise UserError.of(faults)
    return launch, absolute(training), site


def main(argv: Sequence[str]) -> int:
    launch, training, site = read_flags(argv, LaunchConfig, "python -m launch.submit", __doc__.splitlines()[0])
    folder = RunFolder(training.run_dir)
    faults: list[str] = []
    notes: list[str] = []
    script = ""
    with preflight.checking(launch, training, faults, notes):
        if launch.cluster == "slurm" and preflight.slurm_available(launch, faults):
            executor = slurm_executor(launch, training, site, snapshot.code_path(folder.path))
            script = batch_script(executor, folder.jobs_dir)
            preflight.check_with_slurm(script, launch, faults, notes)
    if faults:
        raise UserError.of(dict.fromkeys(faults))
    for note in notes:
        print(note)
    if launch.dry_run:
        print(script or "--cluster local starts the training without a batch script")
        return 0
    job_id = start_locally(launch, training) if launch.cluster == "local" else submit_training(launch, training, site)
    print(f"job        {job_id}")
    print(f"run folder {folder.path}")
    print(f"log        python -m launch.status logs {training.run_name}")
    print('watch      squeue --me -o "%i %j %T %M %k"     or     python -m launch.status --watch')
    print(f"stop       python -m launch.status cancel {training.run_name}")
    return 0


if __name__ == "__main__":
    run(main)
