"""From videos to the honest number in one command: prepare -> verify -> train -> evaluate, each when the one before ended well.

    python -m launch.pipeline [launch flags] [-- training flags]

The stages are Slurm jobs that depend on each other (afterok); when one fails, those after it leave the queue. The same
command again goes on: what is done stays done, what is queued stays queued, and the rest is submitted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_preparation.annotations import load_annotations
from data_preparation.common.command_line import flag, run
from data_preparation.common.errors import UserError
from data_preparation.layout import DatasetLayout, prepared_videos, video_name
from data_preparation.verified import unverified
from launch import preflight, slurm, snapshot, submit
from launch.config import REPOSITORY, LaunchConfig
from launch.slurm import QueuedJob, SlurmError
from training.config import TrainConfig, path_faults
from training.runtime.run_folder import RunFolder, read_json, resume_faults, write_json

_BYTES_OF_A_FRAME = 40_000  # a stored frame of height 256, quality 95, at most


@dataclass(frozen=True)
class PipelineConfig(LaunchConfig):
    """Prepare, verify, train and evaluate as Slurm jobs that depend on each other; the launch flags are the training's."""

    prepare_tasks: int = flag(15, "Tasks of the prepare array, at most one for each video.", minimum=1)
    prepare_cpus: int = flag(2, "CPU cores of each task of the prepare array, and of the verification.", minimum=1)
    prepare_time_min: int = flag(240, "Time limit of the prepare array and of the verification in minutes.", minimum=1)
    height: int = flag(256, "Height of the stored frames in pixels.", minimum=0, maximum=4320)

    def __post_init__(self) -> None:
        if self.cluster != "slurm":
            raise UserError("the pipeline is a chain of Slurm jobs: drop --cluster local")


@dataclass(frozen=True)
class Stage:
    """A step of the pipeline: whether it is done, and how to submit it after a job ('' for none); returns the job id."""

    name: str
    is_done: bool
    submit: Callable[[str], str]


def stages(launch: PipelineConfig, training: TrainConfig, site: Mapping[str, str], code: Path) -> list[Stage]:
    """All stages in order."""
    folder = RunFolder(training.run_dir)
    layout = DatasetLayout(Path(site["DEEPSPORTS_DATASET"]).resolve())
    videos = annotated_videos(training)
    prepared = sorted(videos & set(prepared_videos(layout.frames)))
    missing = sorted(videos - set(prepared))
    progress, saved = folder.progress(), folder.saved_config()
    is_finished = progress is not None and progress.state == "finished"
    trained = is_finished and saved is not None and saved.epochs >= training.epochs

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

    def train(after: str) -> str:
        dependency = ",".join(filter(None, [launch.dependency, f"afterok:{after}" if after else ""]))
        return submit.submit_training(dataclasses.replace(launch, dependency=dependency), training, site)

    def evaluate(after: str) -> str:
        gpu = bool(launch.gpus_per_node)
        options = [
            f"--gpus-per-node={int(gpu)}",
            f"--cpus-per-task={launch.cpus_per_gpu}",
            f"--mem={launch.mem_per_gpu_gb}G",
        ]
        return job_file("evaluate_model", after, options, ["--run", str(folder.path), "--gpu", str(gpu)])

    return [
        Stage("prepare", not missing, prepare),
        Stage("verify", not missing and not unverified(layout.frames, prepared), verify),
        Stage("train", trained or folder.summary_file.exists(), train),
        Stage("evaluate", folder.summary_file.exists(), evaluate),
    ]


def small_options(launch: PipelineConfig) -> list[str]:
    """sbatch's options of the stages that prepare and verify."""
    return [f"--cpus-per-task={launch.prepare_cpus}", f"--time={launch.prepare_time_min}"]


def small_stage_faults(launch: PipelineConfig, site: Mapping[str, str], todo: Sequence[str]) -> list[str]:
    """Whether Slurm could ever start the jobs that prepare and verify, of the stages that are to be submitted."""
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
    """sbatch's options for the job files of the stages."""
    names = ("partition", "account", "qos", "constraint", "exclude")
    return [f"--{name}={value}" for name in names if (value := getattr(launch, name))]


def annotated_videos(training: TrainConfig) -> set[int]:
    return {dive.video for dive in load_annotations(training.annotation_path).values()}


def pipeline_faults(launch: PipelineConfig, training: TrainConfig, site: Mapping[str, str]) -> list[str]:
    """What can be known to go wrong in any stage before the first is submitted."""
    folder, layout = RunFolder(training.run_dir), DatasetLayout(Path(site["DEEPSPORTS_DATASET"]).resolve())
    found = preflight.request_flag_faults(launch, training) + resume_faults(folder, training)[0]
    found += [fault for fault in path_faults(training) if not fault.startswith("--root_dir")]
    if training.root_dir.resolve() != layout.frames:
        found.append(
            f"the pipeline prepares {layout.frames} and --root_dir says {training.root_dir}: name the data set by DEEPSPORTS_DATASET in job_files/environment.sh"
        )
    if found:
        return found
    try:
        videos = annotated_videos(training)
        preflight.used_videos(training)
    except UserError as error:
        return str(error).splitlines()
    missing = sorted(videos - set(prepared_videos(layout.frames)))
    absent = [video for video in missing if video not in layout.source_videos()]
    if absent:
        names = " ".join(map(video_name, absent))
        found.append(
            f"{len(absent)} source videos are not in {layout.videos} ({names}): run python -m data_preparation.download videos"
        )
    frames = sum(d.frame_count for d in load_annotations(training.annotation_path).values() if d.video in missing)
    if missing:  # a data set that is prepared already may be read-only
        found += preflight.space_faults(layout.root, frames * _BYTES_OF_A_FRAME, "scratch (DEEPSPORTS_DATASET)")
    return found


def main(argv: Sequence[str]) -> int:
    launch, training, site = submit.read_flags(
        argv, PipelineConfig, "python -m launch.pipeline", __doc__.splitlines()[0]
    )
    training = dataclasses.replace(training, evaluate=False)  # the last stage's
    preflight.print_step("checking flags, files and videos")
    faults = pipeline_faults(launch, training, site)
    notes: list[str] = []
    folder = RunFolder(training.run_dir)
    if preflight.slurm_available(launch, faults):
        executor = submit.slurm_executor(launch, training, site, snapshot.code_path(folder.path))
        script = submit.batch_script(executor, folder.jobs_dir)
        preflight.check_with_slurm(script, launch, faults, notes)
        if not faults:
            todo = [stage.name for stage in stages(launch, training, site, REPOSITORY) if not stage.is_done]
            faults += small_stage_faults(launch, site, todo)
    if faults:
        raise UserError.of(faults)
    for note in notes:
        print(note)
    if launch.dry_run:
        for stage in stages(launch, training, site, snapshot.code_path(folder.path)):
            print(f"{stage.name:<9} {'done' if stage.is_done else 'to submit'}")
        print(script)
        return 0
    record_file = folder.path / "pipeline.json"
    preflight.print_step(f"keeping the code in {folder.path}, and submitting")
    with submit.submission_lock(folder.path / "pipeline"):
        code = snapshot.copy_code(folder.path)
        jobs = read_json(record_file) or {}
        if not isinstance(jobs, dict):
            raise UserError(f"{record_file} is damaged: delete it when none of the pipeline's jobs is queued")
        queued = submit.active_jobs()
        after, renewed = "", False
        for stage in stages(launch, training, site, code):
            if stage.is_done:
                print(f"{stage.name:<9} done")
                continue
            known = jobs.get(stage.name)
            after, news = _begun(stage, after, known, queued, renewed)
            renewed = renewed or after != known
            jobs[stage.name] = after
            write_json(record_file, jobs)
            print(f"{stage.name:<9} {news}")
    print(f"watch     squeue --me     or     python -m launch.status --watch     (logs: {folder.path}/pipeline)")
    return 0


def _begun(
    stage: Stage, after: str, known: str | None, queued: Mapping[str, QueuedJob], renewed: bool
) -> tuple[str, str]:
    """(the job that does a stage, what to say of it): the one that is queued already, or a new one; with `renewed` a stage
    before it was submitted anew, so the queued one waits for the wrong job."""
    if known is not None and any(job_id.split("_")[0] == known for job_id in queued):
        if not renewed:
            return known, f"queued already, job {known}"
        slurm.cancel(known)
    try:
        job = stage.submit(after)
    except SlurmError as error:
        raise UserError(
            f"stage {stage.name} cannot be submitted ({error}): mend the launch flags or job_files/environment.sh, then give the command again"
        ) from None
    again = f" (job {known} did not do it)" if known else ""
    return job, f"submitted, job {job}{again}" + (f", after job {after}" if after else "")


if __name__ == "__main__":
    run(main)
