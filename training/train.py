"""Train a model and, with --evaluate True, open the test split once with the checkpoint that validation chose.

    python -m training.train --root_dir ... [flags]         see --help

The exit statuses are those of training/runtime/statuses.py. After a signal (75, 129, 130, 143) or the loss of another rank
(76), the same command resumes the run.
"""

from __future__ import annotations

if __name__ == "__main__":  # the imports below take seconds: do not miss a signal meanwhile
    from training.runtime.interruption import InterruptionFlag

    _early_flag = InterruptionFlag().install()

import dataclasses
import logging
import time
from collections.abc import Sequence
from contextlib import closing, nullcontext
from datetime import timedelta
from functools import partial
from typing import Any

import torch

from data_preparation.actions import Action, video_order
from data_preparation.common.command_line import parse, run
from data_preparation.common.errors import UserError, first_line
from data_preparation.common.limits import limit_error_text
from data_preparation.stage import frames_on_node
from training import fitting
from training.calibration import write_calibration
from training.config import TrainConfig, batch_norm_fault, path_faults
from training.cost import describe_cost, describe_memory
from training.data.cache import opened
from training.data.dataset import ActionDataset, label_faults
from training.data.loader import keep_workers
from training.data.machine import check_machine
from training.data.sources import Source, source_of
from training.data.splits import Splits, batch_size_fault, load_splits
from training.data.workers import start_server
from training.engine.feature_fit import FeatureFit
from training.engine.frozen import FrozenEngine, clips_never_change
from training.engine.loop import Engine
from training.engine.prediction import resolve_precision, slow_precision
from training.engine.survivors import Survivors
from training.engine.trainer import Trainer
from training.evaluate import open_test_split, result_lines
from training.model import ScoringModel, build_model
from training.runtime import collectives, start_up
from training.runtime.determinism import deterministic_algorithms, fault_text
from training.runtime.interruption import InterruptionFlag, StoppedBySignal, time_limit_warning
from training.runtime.logs import also_log_to, start_log
from training.runtime.progress import ProgressHook, record_failure
from training.runtime.ranks import Ranks, allocated_cpus, job_times, read_ranks, restart_count, slurm_job_id
from training.runtime.run_folder import RunFolder, resume_faults, write_json
from training.tasks import task_of
from training.trained_on import entries_of_run

log = logging.getLogger("training")

_BEFORE_THE_FIRST_STEP = "stopped by a signal before the first step"
# After a node failure, processes of a job's previous start may still hold the run folder's lock: a restarted job waits this long
_LOCK_PATIENCE_S = 120


def main(
    argv: Sequence[str], on_progress: ProgressHook | None = None, interruption: InterruptionFlag | None = None
) -> int:
    """Parse the flags, train, and return the exit status (training.runtime.statuses)."""
    config = parse(TrainConfig, argv, prog="python -m training.train", description=(__doc__ or "").splitlines()[0])
    return collectives.exit_status(
        partial(run_training, config, interruption or InterruptionFlag().install(), on_progress)
    )


def run_training(config: TrainConfig, interruption: InterruptionFlag, on_progress: ProgressHook | None) -> int:
    """Train; return 0, or the exit status of the signal that stopped the training."""
    stopped, status = "", 0
    try:
        with deterministic_algorithms(config.deterministic):
            train(config, interruption, on_progress)
    except StoppedBySignal as error:
        # do not keep the error: its traceback refers to the network, see collectives.disconnect
        stopped, status = str(error), error.status
    interruption.ignore()
    if stopped:
        log.warning("%s: run the same command again to resume", stopped)
    collectives.disconnect()
    return status


def train(config: TrainConfig, interruption: InterruptionFlag, on_progress: ProgressHook | None = None) -> None:
    """Train a run from its start or its newest checkpoint to the end. Flags, data, weights and the machine's limits are all
    checked before the first step.

    Raises:
        UserError: something that the user can fix.
        StoppedBySignal: a signal came; the checkpoint is written, or it came before the first step.
    """
    start_up.reached("imports")
    if faults := path_faults(config):
        raise UserError.of(faults)
    ranks = read_ranks()
    start_log(config.loglevel, ranks)
    if fault := division_fault(config, ranks):
        raise UserError(fault)
    stop_before_start(interruption, ranks)
    if fault := batch_norm_fault(config, ranks.world_size):
        raise UserError(fault)
    start_server(config.loader_workers)  # early: its imports take a second, in the background
    if cpus := allocated_cpus():
        torch.set_num_threads(cpus)
    device = collectives.choose_device(config.gpu, ranks)
    precision = resolve_precision(config.precision, device)
    if warning := slow_precision(precision, device):
        log.warning(warning)
    splits = load_splits(config)
    used = [*splits.known, *(splits.test if config.evaluate else [])]
    given = config
    if config.reads == "video":
        config = dataclasses.replace(config, root_dir=frames_on_node(config.root_dir, (a.video for a in used)))
    source = source_of(config)
    # several ranks share the check of the frames, once they are connected
    of_frames = source.faults(used) if ranks.world_size == 1 else []
    if faults := task_of(config.task).faults(used, splits.facts.classes) + of_frames:
        raise UserError.of(faults)
    start_up.reached("data")
    run = RunFolder(config.run_dir)
    model = build_model(config, splits.facts)
    if faults := label_faults(used, model.method):
        raise UserError.of(faults)
    model.method.observe(splits.train)
    start_up.reached("model")
    stop_before_start(interruption, ranks)  # building the model can take long
    collectives.connect(ranks, device, timedelta(minutes=config.peer_timeout_min))
    if status := collectives.max_over_ranks(interruption.status):
        raise StoppedBySignal(_BEFORE_THE_FIRST_STEP, status)
    if ranks.world_size > 1 and (faults := shared_faults(source, used, ranks)):
        raise UserError.of(faults)
    saved = partial(last_config, run)
    config, choices = fitting.resolve(config, model, ranks, device, precision != "fp32", len(splits.train), saved)
    chosen_faults = (
        division_fault(config, ranks),
        batch_norm_fault(config, ranks.world_size),
        batch_size_fault(config, len(splits.train)),
    )
    if fault := next(filter(None, chosen_faults), None):
        raise UserError(fault)
    memory_left = check_machine(config, model, ranks, device, splits, trains=True)
    start_up.reached("checks of the machine")
    trained_on = collectives.on_first_rank(partial(entries_of_run, config, splits, source, frozen=model.frozen))
    collectives.on_first_rank(
        partial(
            open_run,
            run,
            dataclasses.replace(given, batch_size=config.batch_size, accumulate=config.accumulate),
            splits.record() | source.record(splits.known) | model.method.record(splits.known),
            splits.facts.record() | stored_record(source, splits.known),
            given,
        )
    )
    reporting = record_failure(run, failure_text) if ranks.is_first else nullcontext()
    with reporting, opened(config, memory_left), keep_workers():
        also_log_to(run.job_dir(slurm_job_id() or "local") / f"rank{ranks.rank}.log")
        start_up.reached("ranks and run folder")
        model.to(device)
        log_setup(config, ranks, device, precision, model, splits)
        for line in choices:
            log.info(line)
        start_up.reached("estimates of the cost")
        method, pool = model.method, splits.train
        train_data = ActionDataset(splits.train, config, method, augment=not method.fits_features, pool=pool)
        val_data = ActionDataset(splits.val, config, method, augment=False, pool=pool)
        kind: type[Trainer] = FeatureFit if method.fits_features else Engine
        if kind is Engine and clips_never_change(config, model, train_data):
            kind = FrozenEngine
        trainer = kind(model, config, run, ranks, device, interruption, on_progress)
        trainer.classes, trainer.trained_on = splits.facts.classes, trained_on
        start_up.reached("optimizer")
        with Survivors(trainer, run):
            with closing(trainer):
                trainer.resume()
                start_up.reached("checkpoint")
                warn_of_time_limit(ranks)
                trainer.fit(train_data, val_data)
            trainer.complete_val_predictions(val_data)
            trainer.complete_novelty(train_data, val_data)
            collectives.on_first_rank(partial(write_calibration, run, trainer.task))
            if config.evaluate:
                summary = open_test_split(run, config, model, ranks, device, splits, trainer.stop_if_requested)
                for line in result_lines(summary):
                    log.info(line)
            trainer.report_finished()
        log.info("Loss plot: %s", run.plot_file(config))


def shared_faults(source: Source, actions: Sequence[Action], ranks: Ranks) -> list[str]:
    """The messages of Source.faults on every rank. Each rank opens its share of the videos: if 1,000 ranks opened all of them, a
    shared file system would take minutes to answer."""
    videos = sorted({action.video for action in actions}, key=video_order)
    own = set(videos[ranks.rank :: ranks.world_size])
    found = source.faults([action for action in actions if action.video in own]) if own else []
    return [fault for of_rank in collectives.gather_objects(found) for fault in of_rank]


def failure_text(error: Exception) -> str:
    """The error that ended the training in one line, for progress.json."""
    if collectives.is_peer_failure(error):
        return f"lost contact with another rank ({collectives.short_reason(error)})"
    return limit_error_text(error) or fault_text(error) or first_line(error)


def stop_before_start(interruption: InterruptionFlag, ranks: Ranks) -> None:
    """Stop a training of one rank if a signal came, before it creates the run folder. Several ranks have to connect first, so
    that all stop together.

    Raises:
        StoppedBySignal: a signal came.
    """
    if interruption.status and ranks.world_size == 1:
        raise StoppedBySignal(_BEFORE_THE_FIRST_STEP, interruption.status)


def warn_of_time_limit(ranks: Ranks) -> None:
    """Warn if the start-up, which ends now, took most of the job's time limit."""
    if ranks.is_first and (times := job_times()):
        started, end = times
        if warning := time_limit_warning(started, time.time(), end):
            log.warning(warning)


def division_fault(config: TrainConfig, ranks: Ranks) -> str | None:
    """The message if the batch cannot be split over the ranks and the parts of each."""
    parts = max(config.accumulate, 1)
    if config.batch_size % (ranks.world_size * parts) == 0:
        return None
    return f"--batch_size {config.batch_size} cannot be split over {ranks.world_size} ranks in --accumulate {parts} parts each: give a multiple of {ranks.world_size * parts}"


def last_config(run: RunFolder) -> TrainConfig | None:
    """The configuration of the run's last start, if it has saved anything."""
    return run.saved_config() if run.has_results() else None


def open_run(
    run: RunFolder,
    config: TrainConfig,
    data: dict[str, Any],
    facts: dict[str, Any],
    given: TrainConfig | None = None,
) -> None:
    """Create and lock the run folder; if it holds a run, check that it can resume. `data` is the content of splits.json,
    `facts` that of data.json, `given` the configuration before numbers were chosen for auto.

    Raises:
        UserError: the folder holds a run of other flags or data, or holds a run and --resume is False.
        ProcessLost: after a restart, another training still holds the lock.
    """
    run.acquire_lock(patience_s=_LOCK_PATIENCE_S if restart_count() else 0)
    run.remove_temporary_files()
    faults, allowed_changes = resume_faults(run, given or config)
    if faults:
        raise UserError.of(faults)
    if allowed_changes:
        log.info("Flags changed since the last start: %s", "; ".join(allowed_changes))
    if run.has_results():
        run.check_splits(data)
    run.create(config)
    write_json(run.splits_file, data)
    write_json(run.facts_file, facts)


def stored_record(source: Source, actions: Sequence[Action]) -> dict[str, Any]:
    """What data.json says about the stored frames, so that those of a new video are made in the same way."""
    stored = source.stored_frames(actions)
    return {} if stored is None else {"frames": dataclasses.asdict(stored)}


def log_setup(
    config: TrainConfig, ranks: Ranks, device: torch.device, precision: str, model: ScoringModel, splits: Splits
) -> None:
    """Log the device, the data, the input's normalisation and the model's cost."""
    if device.type == "cuda":
        where = f"{torch.cuda.get_device_name(device)} ({torch.cuda.get_device_properties(device).total_memory / 2**30:.0f} GiB)"
    else:
        where = f"CPU ({torch.get_num_threads()} threads)" + (", no GPU found" if config.gpu else "")
    rank_count = f"{ranks.world_size} rank{'s' if ranks.world_size > 1 else ''}"
    log.info("Device %s, %s, %s (%s)", where, precision, rank_count, ranks.source)
    log.info("Actions: %d train, %d validation; %d per step", len(splits.train), len(splits.val), config.batch_size)
    mean, std = (
        " ".join(f"{value:.3g}" for value in values.tolist()) for values in (model.input_mean, model.input_std)
    )
    log.info("Input: pixels normalised with mean %s, deviation %s (%s)", mean, std, model.input_scale)
    if ranks.is_first:
        log.info("%s + %s: %s", config.model, config.method, describe_cost(model, config))
        if config.gpu:  # the estimate takes seconds, and only a GPU's memory is likely to run out
            clips = config.batch_size // ranks.world_size // config.accumulate * config.clips_per_sample
            log.info("Expected memory: %s", describe_memory(model, config, clips, precision != "fp32", ranks))


if __name__ == "__main__":
    run(partial(main, interruption=_early_flag))
