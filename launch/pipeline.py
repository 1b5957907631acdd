"""Submit prepare, verify, train and evaluate as Slurm jobs, each of which starts when the one before has succeeded.

    python -m launch.pipeline [--pretrain FLAG_FILE] [launch flags] [-- training flags]

With --pretrain another training comes before, and its best model is the --pretrained_model of the training.

Each stage depends on the one before (afterok); if it fails, Slurm cancels the later ones. After a failure give the same
command again: it skips stages that are done or queued, and submits the others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from data_preparation import datasets
from data_preparation.actions import video_order
from data_preparation.common.command_line import flag, parse, run
from data_preparation.common.errors import UserError
from data_preparation.layout import DatasetLayout, prepared
from data_preparation.many_videos import names_text
from data_preparation.verified import unverified
from launch import preflight, slurm, snapshot, submit
from launch.config import REPOSITORY, LaunchConfig, absolute, read_flag_file
from launch.slurm import QueuedJob, SlurmError
from training.config import TrainConfig, path_faults
from training.runtime.run_folder import RunFolder, read_json, resume_faults, write_json
from training.tasks import task_of

_MAX_FRAME_BYTES = 40_000  # a stored frame of height 256 and quality 95


@dataclass(frozen=True)
class PipelineConfig(LaunchConfig):
    """Prepare, verify, train and evaluate as Slurm jobs that depend on each other; the launch flags apply to the training."""

    prepare_tasks: int = flag(15, "Tasks of the job array that prepares videos, at most one for each video.", minimum=1)
    prepare_cpus: int = flag(2, "CPU cores of each preparing task, and of the verification.", minimum=1)
    prepare_time_min: int = flag(240, "Time limit of a preparing task and of the verification in minutes.", minimum=1)
    height: int = flag(256, "Height of the stored frames in pixels.", minimum=0, maximum=4320)
    pretrain: Path | None = flag(
        None,
        "File of training flags of another training, which comes before; its best model is the --pretrained_model of the training.",
    )

    def __post_init__(self) -> None:
        if self.cluster != "slurm":
            raise UserError("--cluster local does not fit a pipeline, which is a chain of Slurm jobs: drop it")


@dataclass(frozen=True)
class Stage:
    """A stage of the pipeline. `submit` takes the job id to wait for ('' for none) and returns the new job id."""

    name: str
    is_done: bool
    submit: Callable[[str], str]


def read_pretraining(launch: PipelineConfig) -> TrainConfig | None:
    """The flags of the training of --pretrain, with absolute paths; None without --pretrain.

    Raises:
        UserError: the file cannot be read, or its flags are wrong.
    """
    if launch.pretrain is None:
        return None
    flags = read_flag_file(REPOSITORY / launch.pretrain, "--pretrain")
    return absolute(parse(TrainConfig, flags, prog=str(launch.pretrain)))


def starting_from(pretraining: TrainConfig | None, training: TrainConfig) -> TrainConfig:
    """The training with the best model of the pretraining as --pretrained_model.

    Raises:
        UserError: the two trainings do not fit together.
    """
    if pretraining is None:
        return training
    best = RunFolder(pretraining.run_dir).best_checkpoint
    faults = []
    if pretraining.run_dir == training.run_dir:
        faults.append(
            f"--pretrain and the training have the same run folder {training.run_dir}: give one another --run_name"
        )
    if pretraining.model != training.model:
        faults.append(
            f"--pretrain trains --model {pretraining.model} and the training has --model {training.model}: choose the same"
        )
    if training.weight_file not in (None, best):
        faults.append(
            f"--pretrained_model {training.pretrained_model} is not the best model of --pretrain ({best}): leave one of them out"
        )
    if faults:
        raise UserError.of(faults)
    return dataclasses.replace(training, pretrained_model=str(best))


def is_trained(training: TrainConfig) -> bool:
    """Whether the run of a training has finished with as many epochs."""
    folder = RunFolder(training.run_dir)
    progress, saved = folder.progress(), folder.saved_config()
    is_finished = progress is not None and progress.state == "finished"
    return is_finished and saved is not None and saved.epochs >= training.epochs


def stages(
    launch: PipelineConfig,
    training: TrainConfig,
    site: Mapping[str, str],
    code: Path,
    pretraining: TrainConfig | None = None,
) -> list[Stage]:
    """All stages in order."""
    folder = RunFolder(training.run_dir)
    layout = DatasetLayout(Path(site["DEEPSPORTS_DATASET"]).resolve())
    videos = annotated_frames(training)
    on_disk = prepared(layout.frames, videos)
    missing = [video for video in videos if video not in on_disk]

    def job_file(name: str, after: str, options: Sequence[str], arguments: Sequence[str]) -> str:
        tag = "%A_%a" if any(o.startswith("--array") for o in options) else "%j"
        common = [f"--output={folder.path}/pipeline/{name}-{tag}.out", *site_options(launch), *options]
        if after:
            common += [f"--dependency=afterok:{after}", "--kill-on-invalid-dep=yes"]
        return slurm.sbatch(*common, f"job_files/{name}.job", *arguments, env=site, folder=code)

    small = small_options(launch)
    data = ["--annotation_path", str(training.annotation_path)]

    def prepare(after: str) -> str:
        tasks = min(launch.prepare_tasks, len(videos))
        return job_file(
            "prepare_dataset", after, [f"--array=0-{tasks - 1}", *small], [*data, "--height", str(launch.height)]
        )

    def verify(after: str) -> str:
        lists = ["--train_path", str(training.train_path), "--test_path", str(training.test_path)]
        return job_file("verify_dataset", after, small, [*data, *lists])

    def train(config: TrainConfig, after: str) -> str:
        dependency = ",".join(filter(None, [launch.dependency, f"afterok:{after}" if after else ""]))
        return submit.submit_training(dataclasses.replace(launch, dependency=dependency), config, site)

    def evaluate(after: str) -> str:
        gpu = bool(launch.gpus_per_node)
        options = [
            f"--gpus-per-node={int(gpu)}",
            f"--cpus-per-task={launch.cpus_per_gpu}",
            f"--mem={launch.mem_per_gpu_gb}G",
        ]
        return job_file("evaluate_model", after, options, ["--run", str(folder.path), "--gpu", str(gpu)])

    is_tested = folder.summary_file.exists()
    found = [
        Stage("prepare", not missing, prepare),
        Stage("verify", not missing and not unverified(layout.frames, videos), verify),
        Stage("train", is_trained(training) or is_tested, partial(train, training)),
    ]
    if pretraining is not None:
        found.insert(2, Stage("pretrain", is_trained(pretraining) or is_tested, partial(train, pretraining)))
    if task_of(training.task).has_test:
        found.append(Stage("evaluate", is_tested, evaluate))
    return found


def small_options(launch: PipelineConfig) -> list[str]:
    """sbatch's options for the stages prepare and verify."""
    return [f"--cpus-per-task={launch.prepare_cpus}", f"--time={launch.prepare_time_min}"]


def small_stage_faults(launch: PipelineConfig, site: Mapping[str, str], todo: Sequence[str]) -> list[str]:
    """Errors if Slurm could not start the jobs of the stages prepare and verify, as far as they are in `todo`."""
    found = []
    for name, options in (("prepare", ["--array=0"]), ("verify", [])):
        if name not in todo:
            continue
        job_file = f"job_files/{name}_dataset.job"
        try:
            arguments = [*site_options(launch), *options, *small_options(launch), job_file]
            slurm.sbatch("--test-only", *arguments, env=site, folder=REPOSITORY)
        except SlurmError as error:
            found.append(
                f"Slurm could not start {job_file} with --prepare_cpus {launch.prepare_cpus} and --prepare_time_min {launch.prepare_time_min} ({error}): give less, or another --partition"
            )
    return found


def site_options(launch: LaunchConfig) -> list[str]:
    """sbatch's options that are common to all stages."""
    names = ("partition", "account", "qos", "constraint", "exclude")
    return [f"--{name}={value}" for name in names if (value := getattr(launch, name))]


def annotated_frames(training: TrainConfig) -> dict[str, int]:
    """The videos with annotated actions, in order, and the number of frames in the actions of each."""
    frames: dict[str, int] = {}
    for action in datasets.load(training.dataset_kind, training.annotation_files).actions.values():
        frames[action.video] = frames.get(action.video, 0) + action.frame_count
    return dict(sorted(frames.items(), key=lambda item: video_order(item[0])))


def pretraining_faults(launch: PipelineConfig, pretraining: TrainConfig, training: TrainConfig) -> list[str]:
    """The errors of the pretraining that can be found before the first stage is submitted."""
    found = preflight.request_flag_faults(launch, pretraining)
    found += resume_faults(RunFolder(pretraining.run_dir), pretraining)[0]
    same_frames = pretraining.root_dir == training.root_dir
    found += [f for f in path_faults(pretraining) if not (same_frames and f.startswith("--root_dir"))]
    same_actions = pretraining.annotation_path == training.annotation_path
    if not found and not (same_frames and same_actions):  # the stage "prepare" has the videos of the training only
        found += preflight.data_faults(pretraining)
    return [f"{launch.pretrain}: {fault}" for fault in found]


def pipeline_faults(
    launch: PipelineConfig,
    training: TrainConfig,
    site: Mapping[str, str],
    pretraining: TrainConfig | None = None,
) -> list[str]:
    """The errors of all stages that can be found before the first one is submitted."""
    folder, layout = RunFolder(training.run_dir), DatasetLayout(Path(site["DEEPSPORTS_DATASET"]).resolve())
    found = [] if pretraining is None else pretraining_faults(launch, pretraining, training)
    found += preflight.request_flag_faults(launch, training) + resume_faults(folder, training)[0]
    # of later stages: the frames, and the weights of the pretraining
    made = ("--root_dir", *(["--pretrained_model"] if pretraining else []))
    found += [fault for fault in path_faults(training) if not fault.startswith(made)]
    if training.root_dir.resolve() != layout.frames:
        found.append(
            f"the pipeline prepares {layout.frames}, but --root_dir is {training.root_dir}: set DEEPSPORTS_DATASET in job_files/environment.sh to the data set"
        )
    if found:
        return found
    try:
        videos = annotated_frames(training)
        preflight.used_videos(training)
    except UserError as error:
        return str(error).splitlines()
    on_disk = prepared(layout.frames, videos)
    missing = [video for video in videos if video not in on_disk]
    absent = [video for video in missing if not layout.has_video(video)]
    if absent:
        names = names_text(absent)
        found.append(
            f"{len(absent)} source videos are not in {layout.videos} ({names}): run python -m data_preparation.download videos"
        )
    frames = sum(videos[video] for video in missing)
    if missing:  # a prepared data set may be read-only
        found += preflight.space_faults(layout.root, frames * _MAX_FRAME_BYTES, "scratch (DEEPSPORTS_DATASET)")
    return found


def main(argv: Sequence[str]) -> int:
    launch, training, site = submit.read_flags(
        argv, PipelineConfig, "python -m launch.pipeline", __doc__.splitlines()[0]
    )
    pretraining = read_pretraining(launch)
    training = starting_from(pretraining, dataclasses.replace(training, evaluate=False))  # by the last stage
    preflight.print_step("checking flags, files and videos")
    faults = pipeline_faults(launch, training, site, pretraining)
    notes: list[str] = []
    folder = RunFolder(training.run_dir)
    if preflight.slurm_available(launch, faults):
        executor = submit.slurm_executor(launch, training, site, snapshot.code_path(folder.path))
        script = submit.batch_script(executor, folder.jobs_dir)
        preflight.check_with_slurm(script, launch, faults, notes)
        if not faults:
            todo = [
                stage.name for stage in stages(launch, training, site, REPOSITORY, pretraining) if not stage.is_done
            ]
            faults += small_stage_faults(launch, site, todo)
    if faults:
        raise UserError.of(faults)
    for note in notes:
        print(note)
    if launch.dry_run:
        for stage in stages(launch, training, site, snapshot.code_path(folder.path), pretraining):
            print(f"{stage.name:<9} {'done' if stage.is_done else 'to submit'}")
        print(script)
        return 0
    record_file = folder.path / "pipeline.json"
    preflight.print_step(f"copying the code to {folder.path}, then submitting")
    with submit.submission_lock(folder.path / "pipeline"):
        code = snapshot.copy_code(folder.path)
        jobs = read_json(record_file) or {}
        if not isinstance(jobs, dict):
            raise UserError(f"{record_file} is damaged: delete it when none of the pipeline's jobs is queued")
        queued = submit.active_jobs()
        after, renewed = "", False
        for stage in stages(launch, training, site, code, pretraining):
            if stage.is_done:
                print(f"{stage.name:<9} done")
                continue
            known = jobs.get(stage.name)
            after, message = _job_of_stage(stage, after, known, queued, renewed)
            renewed = renewed or after != known
            jobs[stage.name] = after
            write_json(record_file, jobs)
            print(f"{stage.name:<9} {message}")
    print(f"watch     squeue --me     or     python -m launch.status --watch     (logs: {folder.path}/pipeline)")
    return 0


def _job_of_stage(
    stage: Stage, after: str, known: str | None, queued: Mapping[str, QueuedJob], renewed: bool
) -> tuple[str, str]:
    """(job id, text for the user) of a stage's job, which is already queued or is submitted now. `renewed`: an
    earlier stage has a new job, so a queued job of this stage depends on the wrong one and is replaced."""
    if known is not None and any(job_id.split("_")[0] == known for job_id in queued):
        if not renewed:
            return known, f"queued already, job {known}"
        slurm.cancel(known)
    try:
        job = stage.submit(after)
    except SlurmError as error:
        raise UserError(
            f"stage {stage.name} cannot be submitted ({error}): fix the launch flags or job_files/environment.sh, then give the same command again"
        ) from None
    again = f" (job {known} did not finish it)" if known else ""
    return job, f"submitted, job {job}{again}" + (f", after job {after}" if after else "")


if __name__ == "__main__":
    run(main)
