"""The life of a training job on Slurm: create once, then begin, run and end at each start.

    python -m launch.job create [--config FILE] [-- training flags]   copy code and flags; later edits have no effect
    python -m launch.job begin                        refuse a restart that makes no progress; print a free port
    srun python -m launch.job run [training flags]    train; each rank records how it ended
    python -m launch.job end STATUS                   requeue the job or not; print the job's exit status

Two batch scripts run these steps: job_files/train_model.job, and the one that launch.submit makes with submitit. For the
second one, launch.submit creates the job's folder on the login node, and each rank runs a pickled TrainingJob.

DEEPSPORTS_JOB names the job's folder, runs/<name>/jobs/<job id>:

    code            link to the copy of the code that the job runs (launch.snapshot)
    flags           all training flags, each followed by a zero byte
    output          link to the file that the batch script prints to
    starts.jsonl    a line for each start
    refused         why the last start was refused
    rank0.log ...   the log of each rank
    ended-<n>/      how start n ended: rank0.json ... of the ranks, job.json of the job
    sick_nodes.json the nodes that the job has left (launch.health)

Importing this module imports no torch: a login node pickles a TrainingJob at once, and a signal that comes while torch is
being imported is remembered.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import re
import signal
import socket
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from data_preparation.common.command_line import flag, parse, run, to_argv
from data_preparation.common.errors import UserError, os_error_text
from data_preparation.common.files import reporting_write_errors, write_atomic
from data_preparation.common.limits import limit_error_text
from launch import health, slurm, snapshot
from launch.config import REPOSITORY, LaunchConfig, absolute, read_flag_file, split_argv
from launch.progress import progress_text, slurm_seconds, starting_text
from launch.slurm import SlurmError
from training.config import TrainConfig
from training.runtime.interruption import InterruptionFlag
from training.runtime.ranks import (
    is_first_on_node,
    job_nodes,
    rank_of_task,
    raw_job_number,
    rendezvous_port,
    restart_count,
    slurm_job_id,
    task_count,
)
from training.runtime.run_folder import RunFolder, write_json
from training.runtime.run_progress import RunProgress
from training.runtime.statuses import SIGNALED, Status

log = logging.getLogger("training.launch")

JOB_VARIABLE = "DEEPSPORTS_JOB"
REFUSAL = "refused"
OUTPUT = "output"


# ------------------------------------------------------------------------------------------------------------- create


@dataclass(frozen=True)
class CreateConfig:
    """Copy the code and the flags of this Slurm job into its run folder."""

    config: Path = flag(Path("model_train_config.sh"), "File of training flags.")


def create(argv: Sequence[str]) -> None:
    """Make the folder of the Slurm job that this process belongs to, and the link $DEEPSPORTS_RUNS/.jobs/<job id> to it. A
    restart uses the link, so it finds the folder even if --run_name in the flag file was edited.

    Raises:
        UserError: wrong flags, not a Slurm job, or the disk is full or not writable.
    """
    own, training_argv = split_argv(list(argv))
    options = parse(CreateConfig, own, prog="python -m launch.job create")
    job_id = slurm_job_id()
    if job_id is None:
        raise UserError("this is not a Slurm job: sbatch job_files/train_model.job calls launch.job create")
    flags = [*read_flag_file(REPOSITORY / options.config), *training_argv]
    training = absolute(parse(TrainConfig, flags, prog=str(options.config)))
    run_folder = RunFolder(training.run_dir)
    job = create_job_folder(run_folder, job_id, training, snapshot.copy_code(run_folder.path))
    link = Path(os.environ.get("DEEPSPORTS_RUNS", "runs")).resolve() / ".jobs" / job_id
    with reporting_write_errors(link):
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(job)


def create_job_folder(run_folder: RunFolder, job_id: str, training: TrainConfig, code: Path) -> Path:
    """Make a job's folder with its flags and a link to its code.

    Raises:
        UserError: the disk is full or not writable.
    """
    job = run_folder.job_dir(job_id)
    with reporting_write_errors(job):
        job.mkdir(parents=True, exist_ok=True)
        (job / "code").unlink(missing_ok=True)
        (job / "code").symlink_to(os.path.relpath(code, job))
        write_atomic(job / "flags", b"".join(word.encode() + b"\0" for word in to_argv(training)))
    return job


# -------------------------------------------------------------------------------------------------------------- begin

_MAX_STARTS_WITHOUT_PROGRESS = 2
_SHORT_START_S = 600  # a start that was stopped sooner, for example by preemption, does not count as failed
_PORT_ATTEMPTS = 200


def begin(job: Path, env: Mapping[str, str] = os.environ) -> int:
    """Prepare a start of a job, on its first node, before srun; returns a free port where the ranks can meet.

    Raises:
        UserError: the job must not start again, or no port is free.
    """
    link_output(job)
    run_folder = RunFolder(job.parent.parent)
    try:
        record_start(job, restart_count(env), max_restarts(env), position(run_folder))
        port = free_port(raw_job_number(env))
    except UserError as error:  # launch.status shows it, also after Slurm has forgotten the job
        with reporting_write_errors(job):
            write_atomic(job / REFUSAL, str(error).encode())
        raise
    (job / REFUSAL).unlink(missing_ok=True)
    comment_start(run_folder, env)
    return port


def link_output(job: Path) -> None:
    """Link the output file of the batch script into the job's folder: Slurm forgets where it is."""
    with suppress(OSError):
        output = Path(os.readlink("/proc/self/fd/2"))
        if output.is_file():
            job.mkdir(parents=True, exist_ok=True)
            (job / OUTPUT).unlink(missing_ok=True)
            (job / OUTPUT).symlink_to(output)


def max_restarts(env: Mapping[str, str] = os.environ) -> int:
    text = env.get("DEEPSPORTS_REQUEUES") or str(LaunchConfig.requeues)
    if not re.fullmatch("[0-9]+", text):
        raise UserError(f"DEEPSPORTS_REQUEUES '{text}' is not a whole number: fix it in job_files/environment.sh")
    return int(text)


def position(run_folder: RunFolder) -> str:
    """How far a run is: a text that changes with every step that is saved."""
    newest = run_folder.checkpoints()
    return newest[0].stem if newest and newest[0] != run_folder.checkpoint_file(0, 0) else "the beginning"


def record_start(job: Path, restart: int, allowed: int, now_at: str) -> None:
    """Append this start of a job to starts.jsonl, and make the folder for its end.

    Raises:
        UserError: the job has used up its restarts, or its last starts made no progress.
    """
    if restart > allowed:
        raise UserError(
            f"{job.name} was restarted {allowed} times, which is all that --requeues (DEEPSPORTS_REQUEUES) allows: submit the run again to resume"
        )
    file = job / "starts.jsonl"
    before = [start for start in recorded_starts(file) if start["restart"] < restart]
    same_position = list(itertools.takewhile(lambda start: start["position"] == now_at, reversed(before)))
    if sum(_counts_as_failed(job, start) for start in same_position) >= _MAX_STARTS_WITHOUT_PROGRESS:
        last = f", and the last {len(same_position)} starts" if len(same_position) < len(before) else " and"
        raise UserError(
            f"{job.name} started {len(before)} times{last} saved no step after {now_at}: see in {job} what ends it (a time limit too short for a step or a validation, too little memory), then submit the run again"
        )
    record = {"restart": restart, "position": now_at, "time": time.time(), "node": socket.gethostname()}
    with reporting_write_errors(file):
        write_atomic(file, "".join(json.dumps(each) + "\n" for each in [*before, record]).encode())
        folder = end_folder(job, restart)
        folder.mkdir(exist_ok=True)  # now, since the disk may be full at the end
        for left_over in folder.iterdir():  # of an earlier job with the same id
            left_over.unlink()


def recorded_starts(file: Path) -> list[dict[str, Any]]:
    """The earlier starts of a job. Damaged lines are skipped: the job can run without them."""
    found = []
    for line in file.read_text(errors="replace").splitlines() if file.exists() else []:
        with suppress(ValueError, TypeError, KeyError):
            start = json.loads(line)
            found.append(
                {"restart": int(start["restart"]), "position": str(start["position"]), "time": float(start["time"])}
            )
    return found


def _counts_as_failed(job: Path, start: Mapping[str, Any]) -> bool:
    """Whether a start that saved nothing counts as failed: a rank was killed or lost, or a signal stopped the start near its
    time limit or after more than _SHORT_START_S. A start that was preempted early does not count, nor one whose node died (it
    has no record), nor one with a sick node, nor one that `end` did not requeue (a user requeued the job by hand)."""
    try:
        end = json.loads((end_folder(job, start["restart"]) / "job.json").read_text())
        is_long = end["near_time_limit"] or end["time"] - start["time"] > _SHORT_START_S
        return end["requeued"] and end.get("status") != Status.SICK_NODE and (not end["signaled"] or is_long)
    except (OSError, ValueError, TypeError, KeyError):
        return False


def free_port(job_number: int) -> int:
    """Find a port of this node that no process uses.

    Raises:
        UserError: none is free.
    """
    for attempt in range(_PORT_ATTEMPTS):
        port = rendezvous_port(job_number, attempt=attempt)
        with socket.socket() as candidate:
            try:
                candidate.bind(("", port))
            except OSError:
                continue
            return port
    raise UserError(f"none of {_PORT_ATTEMPTS} ports of {socket.gethostname()} is free: start the job again")


def comment_start(run_folder: RunFolder, env: Mapping[str, str]) -> None:
    """Replace the job's comment, which still shows how the last start ended."""
    if job_id := slurm_job_id(env):
        with suppress(SlurmError, UserError):  # progress.json is damaged, or compute nodes have no scontrol
            slurm.set_comment(job_id, with_user_comment(starting_text(run_folder.progress()), env))


def with_user_comment(text: str, env: Mapping[str, str] = os.environ) -> str:
    """The text of a job's comment, which begins with the user's own (--comment)."""
    user_comment = env.get("DEEPSPORTS_COMMENT", "")
    return f"{user_comment}: {text}" if user_comment else text


# ---------------------------------------------------------------------------------------------------------------- run

_COMMENT_EVERY_S = 60  # to spare Slurm's controller; a new epoch is shown at once
_COMMENT_PAUSE_S = 300  # after the controller did not answer


class JobComment:
    """Shows the training's progress in the job's comment (squeue's %k). Warns once if that fails, and tries again later."""

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        self.next_at, self.shown_epoch, self.warned = 0.0, -1, False

    def __call__(self, progress: RunProgress) -> None:
        now = time.monotonic()
        is_new = (progress.epoch != self.shown_epoch or progress.state != "running") and not self.warned
        if now < self.next_at and not is_new:
            return
        self.next_at, self.shown_epoch = now + _COMMENT_EVERY_S, progress.epoch
        try:
            slurm.set_comment(self.job_id, with_user_comment(progress_text(progress)))
        except SlurmError as error:
            self.next_at = now + _COMMENT_PAUSE_S
            if not self.warned:
                log.warning("squeue does not show the progress now: %s", error)
            self.warned = True


def run_rank(argv: Sequence[str]) -> int:
    """Train as one rank of a job; returns its exit status (training.runtime.statuses), which is also recorded."""
    interruption = InterruptionFlag().install()
    status: int
    try:
        node = node_check(argv)  # while torch is being imported
        from training.engine.survivors import before_exit
        from training.train import main as train

        before_exit.append(record_rank_end)

        job_id = slurm_job_id()
        if node and (sick := node.result()):
            _print_errors(f"node {node.host}: {', '.join(sick)}")
            status = Status.SICK_NODE
        else:
            status = train(argv, JobComment(job_id) if job_id else None, interruption)
    except UserError as error:
        _print_errors(str(error))
        status = Status.USER_ERROR
    except OSError as error:
        _print_errors(os_error_text(error))
        status = Status.USER_ERROR
    except Exception as error:
        if text := limit_error_text(error):
            _print_errors(text)
            status = Status.USER_ERROR
        else:
            traceback.print_exc()
            status = Status.BUG
    interruption.ignore()  # srun may send TERM because another rank ended, which must not change the status
    if status == Status.SICK_NODE:  # the job's folder may not answer
        health.RunningCheck(lambda: record_rank_end(status)).result(health.ANSWER_S)
    else:
        record_rank_end(status)
    return status


def node_check(argv: Sequence[str], env: Mapping[str, str] = os.environ) -> health.NodeCheck | None:
    """Start the checks of this node, if this is a job and its first rank on the node."""
    if JOB_VARIABLE not in env or not is_first_on_node(env):
        return None
    job = Path(env[JOB_VARIABLE]).resolve()
    config = parse(TrainConfig, argv, prog="python -m launch.job run")
    return health.NodeCheck(config, job, end_folder(job, restart_count(env)), job_nodes(env))


def _print_errors(text: str) -> None:
    for line in text.splitlines():
        print(f"error: {line}", file=sys.stderr, flush=True)


class TrainingJob:
    """The callable that submitit pickles and runs in each task.

    submitit's own requeueing (`checkpoint`) is not used: `end` requeues, which also sees ranks that were killed.
    """

    def __init__(self, argv: Sequence[str]) -> None:
        self.argv = list(argv)

    def __call__(self) -> int:
        if status := run_rank(self.argv):
            raise SystemExit(status)
        return 0


def record_rank_end(status: int) -> None:
    """Write the exit status of this rank into the job's folder, if there is one."""
    if JOB_VARIABLE not in os.environ:
        return
    folder, rank = end_folder(Path(os.environ[JOB_VARIABLE]), restart_count()), rank_of_task()
    try:
        write_json(folder / f"rank{rank}.json", {"status": int(status), "reason": Status(status).meaning})
    except UserError:
        with suppress(OSError):  # a full disk still takes an empty file
            (folder / f"rank{rank}-{int(status)}").touch()


def end_folder(job: Path, restart: int) -> Path:
    return job / f"ended-{restart}"


# ---------------------------------------------------------------------------------------------------------------- end

_NEAR_LIMIT_S = 240  # Slurm's USR2 comes two or three minutes before the time limit
_REQUEUE_ATTEMPTS = 5
_RETRY_S = 10
_KILL_WAIT_S = 60  # Slurm kills this process sooner, once it has requeued or cancelled the job


@dataclass(frozen=True)
class Outcome:
    """How a start of a job ended. `status` is the exit status of the batch script; `requeued` says whether a new start can
    resume the training; `signaled` says whether a signal stopped it."""

    status: int
    reason: str
    requeued: bool
    signaled: bool = False


def end(job: Path, srun_status: int, env: Mapping[str, str] = os.environ) -> int:
    """End a start of a job, after srun: record how it ended, and requeue the job if a new start can resume the training.
    Returns the exit status of the job, unless Slurm kills this process because the job is requeued or cancelled."""
    restart = restart_count(env)
    folder = end_folder(job, restart)
    found = outcome(srun_status, recorded_statuses(folder), task_count(env))
    job_id = slurm_job_id(env) or ""
    if found.status == Status.SICK_NODE:
        found = without_sick_nodes(job, folder, found, env)
    is_near_limit = found.signaled and _is_near_time_limit(env)
    with suppress(UserError):  # the disk is full
        write_json(folder / "job.json", {**asdict(found), "near_time_limit": is_near_limit, "time": time.time()})
    if found.status == Status.INTERRUPTED:  # scancel makes Slurm list the job as CANCELLED, not as FAILED
        with suppress(SlurmError):
            slurm.cancel(job_id)
            time.sleep(_KILL_WAIT_S)
    elif found.requeued and restart >= max_restarts(env):
        _print_errors(
            f"job {job_id} ended ({found.reason}) and was restarted {restart} times already: submit the run again to resume"
        )
    elif found.requeued:
        left = list(health.read_sick_nodes(job)) if found.status == Status.SICK_NODE else []
        requeue(job_id, found.reason + (" (near its time limit)" if is_near_limit else ""), env, left)
    return found.status


def without_sick_nodes(job: Path, folder: Path, found: Outcome, env: Mapping[str, str]) -> Outcome:
    """The outcome of a start with sick nodes: requeued without them, if the job can leave them."""
    nodes, names = job_nodes(env), []
    with suppress(SlurmError):
        names = slurm.host_names(nodes.nodelist)
    sick = health.sick_of_start(folder, names)
    reason = health.sick_text(sick)
    if why := health.leave(job, sick, nodes):
        _print_errors(f"{reason}; the job is not requeued: {why}; tell your site's support, then submit the run again")
        return replace(found, reason=reason, requeued=False)
    return replace(found, reason=reason)


def outcome(srun_status: int, ranks: Sequence[int], rank_count: int) -> Outcome:
    """How a start ended, from srun's exit status and from the statuses that the ranks recorded.

    srun reports only the highest exit status, and ranks that it kills have high ones. So srun's status counts only if no
    recorded status decides.
    """
    # a sick node comes before errors: other ranks of that node fail for the same reason. After an error, or Ctrl-C, a new start
    # would not help, or is not wanted
    for status in (Status.INTERRUPTED, Status.SICK_NODE, Status.USER_ERROR, Status.BUG):
        if status in ranks:
            return Outcome(status, status.meaning, status.requeued)
    # All ranks agree to stop after USR2 and save together, so the record of one is enough even if srun killed a slower
    # one. TERM and HUP may reach some ranks only.
    everyone_stopped = len(ranks) >= rank_count and not {Status.TERMINATED, Status.HANGUP}.isdisjoint(ranks)
    if Status.STOPPED in ranks or everyone_stopped:
        return Outcome(srun_status, "stopped by a signal, checkpoint saved", requeued=True, signaled=True)
    if srun_status in SIGNALED:
        return Outcome(srun_status, "stopped by a signal", requeued=True, signaled=True)
    if srun_status in list(Status):
        return Outcome(srun_status, Status(srun_status).meaning, Status(srun_status).requeued)
    if srun_status > 128:
        return Outcome(srun_status, f"a rank was killed (signal {srun_status - 128})", requeued=True)
    return Outcome(srun_status, f"srun could not start the ranks (status {srun_status})", requeued=True)


def recorded_statuses(folder: Path) -> list[int]:
    """The exit statuses that the ranks of a start recorded (record_rank_end)."""
    found = []
    for path in folder.glob("rank*.json"):
        with suppress(OSError, ValueError, TypeError, KeyError):
            found.append(int(json.loads(path.read_text())["status"]))
    names = (re.fullmatch(r"rank\d+-(\d+)", path.name) for path in folder.glob("rank*-*"))
    return found + [int(name[1]) for name in names if name]


def _is_near_time_limit(env: Mapping[str, str]) -> bool:
    with suppress(SlurmError):
        left = slurm_seconds(slurm.time_left(raw_job_number(env)))
        return left is not None and left < _NEAR_LIMIT_S
    return False


def requeue(job_id: str, reason: str, env: Mapping[str, str], without_nodes: Sequence[str] = ()) -> None:
    """Requeue this job, or this task of a job array, without some nodes, and wait until Slurm kills this process. A job that was
    cancelled meanwhile is not requeued."""
    print(f"Requeueing job {job_id}: {reason}", file=sys.stderr, flush=True)
    for _ in range(_REQUEUE_ATTEMPTS):  # the controller does not answer while it restarts
        with suppress(SlurmError):
            if slurm.job_state(job_id) == "CANCELLED":
                return
        with suppress(SlurmError):  # first, because a pending job keeps its last comment
            slurm.set_comment(job_id, with_user_comment(f"requeued ({reason})", env))
        try:
            slurm.requeue(job_id)
        except SlurmError as error:
            print(f"Job {job_id} is not requeued yet: {error}", file=sys.stderr, flush=True)
            time.sleep(_RETRY_S)
        else:
            if without_nodes:
                _leave_nodes(job_id, without_nodes)
            time.sleep(_KILL_WAIT_S)
            return
    _print_errors(f"job {job_id} cannot be requeued from {socket.gethostname()}: submit the run again to resume")


def _leave_nodes(job_id: str, nodes: Sequence[str]) -> None:
    """Let a job that was just requeued avoid some nodes. Slurm refuses it before the requeue, and afterwards ends this process
    after KillWait."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for _ in range(_REQUEUE_ATTEMPTS):
        try:
            slurm.leave_nodes(job_id, nodes)
            return
        except SlurmError as error:
            print(f"Job {job_id} does not avoid {', '.join(nodes)} yet: {error}", file=sys.stderr, flush=True)
            time.sleep(1)


# --------------------------------------------------------------------------------------------------------------- main


def main(argv: Sequence[str]) -> int:
    command, *rest = argv or [""]
    if command == "create":
        create(rest)
        return 0
    if command == "run":
        return run_rank(rest)
    if command == "begin" and not rest:
        print(begin(_job_folder()))
        return 0
    if command == "end" and len(rest) == 1 and rest[0].isdigit():
        print(end(_job_folder(), int(rest[0])))
        return 0
    raise UserError(
        "give create, begin, run [training flags] or end STATUS: job_files/train_model.job shows their order"
    )


def _job_folder() -> Path:
    if JOB_VARIABLE not in os.environ:
        raise UserError(f"{JOB_VARIABLE} is not set: it names the job's folder, runs/<name>/jobs/<job id>")
    return Path(os.environ[JOB_VARIABLE]).resolve()


if __name__ == "__main__":
    run(main)
