"""Train a model and, with --evaluate True, open the test split once with the checkpoint that validation chose.

    python -m training.train --root_dir ... [flags]         see --help, or the table in the README

Exit status: 0 done; 2 something to fix, named on stderr; 75 (told by USR2), 143 (by TERM), 129 (by HUP, a closed shell) and
130 (by Ctrl-C) stopped with a checkpoint or before the first step, the same command goes on; 76 another process of the run
is gone, the same command goes on from the last checkpoint.
"""

from __future__ import annotations

if __name__ == "__main__":  # the imports below take seconds, and a signal that comes meanwhile must be remembered
    from training.runtime.interruption import InterruptionFlag

    _early_flag = InterruptionFlag().install()

import logging
import time
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import timedelta
from functools import partial
from typing import Any

import torch

from data_preparation.common.command_line import parse, run
from data_preparation.common.errors import UserError, first_line
from data_preparation.common.limits import limit_error_text
from training.config import TrainConfig, batch_norm_fault, path_faults
from training.cost import describe_cost, describe_memory
from training.data.dataset import ActionDataset, label_faults
from training.data.machine import check_machine
from training.data.sources import source_of
from training.data.splits import Splits, load_splits
from training.data.workers import start_server
from training.engine.feature_fit import FeatureFit
from training.engine.loop import Engine
from training.engine.prediction import resolve_precision
from training.engine.trainer import Trainer
from training.evaluate import open_test_split, result_lines
from training.model import ScoringModel, build_model
from training.runtime import collectives
from training.runtime.interruption import (
    InterruptionFlag,
    ProcessLost,
    StoppedBySignal,
    time_limit_warning,
)
from training.runtime.logs import also_log_to, start_log
from training.runtime.progress import ProgressHook, record_failure
from training.runtime.ranks import Ranks, allocated_cpus, job_times, read_ranks, restart_count, slurm_job_id
from training.runtime.run_folder import RunFolder, resume_faults, write_json
from training.runtime.statuses import Status

log = logging.getLogger("training")

_BEFORE_THE_FIRST_STEP = "stopped by a signal before the first step"
_LEFT_OVER_S = 120  # how long a job that starts again waits for processes that its node's failure left over


def main(
    argv: Sequence[str], on_progress: ProgressHook | None = None, interruption: InterruptionFlag | None = None
) -> int:
    """Parse, train, and say by the exit status how it ended."""
    config = parse(TrainConfig, argv, prog="python -m training.train", description=__doc__.splitlines()[0])
    interruption = interruption or InterruptionFlag().install()
    try:
        train(config, interruption, on_progress)
    except StoppedBySignal as stop:
        interruption.ignore()
        log.warning("%s: start the same command again to go on", stop)
        collectives.disconnect()
        return stop.status
    # after an error the ranks do not take leave: with nccl that can wait for the others, who must see this one fail
    except ProcessLost as loss:
        log.error("%s", loss)
        return Status.RANK_LOST
    except RuntimeError as error:
        if not collectives.is_peer_failure(error):
            raise
        log.error(collectives.describe_peer_failure(error))
        return Status.RANK_LOST
    interruption.ignore()
    collectives.disconnect()
    return 0


def train(config: TrainConfig, interruption: InterruptionFlag, on_progress: ProgressHook | None = None) -> None:
    """One whole run: everything that can be wrong is looked at before the first step.

    Raises:
        UserError: something to fix. StoppedBySignal: a signal came; the checkpoint is written, or nothing was begun.
    """
    if faults := path_faults(config):
        raise UserError.of(faults)
    ranks = read_ranks()
    start_log(config.loglevel, ranks)
    if config.batch_size % (ranks.world_size * config.accumulate):
        raise UserError(
            f"--batch_size {config.batch_size} cannot be shared by {ranks.world_size} processes in --accumulate {config.accumulate} parts: give a multiple of {ranks.world_size * config.accumulate}"
        )
    stop_before_start(interruption, ranks)
    if fault := batch_norm_fault(config, ranks.world_size):
        raise UserError(fault)
    start_server(config.loader_workers)
    if cpus := allocated_cpus():
        torch.set_num_threads(cpus)
    device = collectives.choose_device(config.gpu, ranks)
    precision = resolve_precision(config.precision, device)
    splits = load_splits(config)
    used = [*splits.known, *(splits.test if config.evaluate else [])]
    if faults := (source := source_of(config)).faults(used):
        raise UserError.of(faults)
    run = RunFolder(config.run_dir)
    model = build_model(config)
    if faults := label_faults(used, model.method):
        raise UserError.of(faults)
    stop_before_start(interruption, ranks)
    check_machine(config, model, ranks, device, splits, trains=True)
    collectives.connect(ranks, device, timedelta(minutes=config.peer_timeout_min))
    if status := collectives.max_over_ranks(interruption.status, device):
        raise StoppedBySignal(_BEFORE_THE_FIRST_STEP, status)
    collectives.on_first_rank(partial(open_run, run, config, splits.record() | source.record(splits.known)))
    with record_failure(run, failure_text) if ranks.is_first else nullcontext():
        also_log_to(run.job_dir(slurm_job_id() or "local") / f"rank{ranks.rank}.log")
        model.to(device)
        log_setup(config, ranks, device, precision, model, splits)
        method, pool = model.method, splits.train
        train_data = ActionDataset(splits.train, config, method, augment=not method.fits_features, pool=pool)
        val_data = ActionDataset(splits.val, config, method, augment=False, pool=pool)
        trainer: Trainer = (FeatureFit if method.fits_features else Engine)(
            model, config, run, ranks, device, interruption, on_progress
        )
        trainer.resume()
        warn_of_time_limit(ranks)
        trainer.fit(train_data, val_data)
        if config.evaluate:
            summary = open_test_split(run, config, model, ranks, device, splits, trainer.stop_if_requested)
            for line in result_lines(summary):
                log.info(line)
        trainer.report_finished()
        log.info("Loss plot: %s", run.plot_file(config))


def failure_text(error: Exception) -> str:
    """An error that ends the training, in one line."""
    if collectives.is_peer_failure(error):
        return f"lost contact with another process of the run ({collectives.short_reason(error)})"
    return limit_error_text(error) or first_line(error)


def stop_before_start(interruption: InterruptionFlag, ranks: Ranks) -> None:
    """Stop before anything is made, if this process was told to. One of several must first meet the others and agree.

    Raises:
        StoppedBySignal: a signal came.
    """
    if interruption.status and ranks.world_size == 1:
        raise StoppedBySignal(_BEFORE_THE_FIRST_STEP, interruption.status)


def warn_of_time_limit(ranks: Ranks) -> None:
    """Say where a job's time limit leaves little to train; called when the start-up is done."""
    if ranks.is_first and (times := job_times()):
        started, end = times
        if remark := time_limit_warning(started, time.time(), end):
            log.warning(remark)


def open_run(run: RunFolder, config: TrainConfig, data: dict[str, Any]) -> None:
    """Make the run folder, or check that the run in it is this one. `data` is what splits.json says.

    Raises:
        UserError: the folder holds a run of another configuration or data, or --resume False forbids to go on.
    """
    run.acquire_lock(patience_s=_LEFT_OVER_S if restart_count() else 0)
    run.remove_temporary_files()
    faults, free = resume_faults(run, config)
    if faults:
        raise UserError.of(faults)
    if free:
        log.info("Flags that differ from those before, and may: %s", "; ".join(free))
    if run.has_results():
        run.check_splits(data)
    run.create(config)
    write_json(run.splits_file, data)


def log_setup(
    config: TrainConfig, ranks: Ranks, device: torch.device, precision: str, model: ScoringModel, splits: Splits
) -> None:
    """The head of the log: where it runs, on what, and what it costs."""
    if device.type == "cuda":
        where = f"{torch.cuda.get_device_name(device)} ({torch.cuda.get_device_properties(device).total_memory / 2**30:.0f} GiB)"
    else:
        where = f"CPU ({torch.get_num_threads()} threads)" + (", no GPU found" if config.gpu else "")
    processes = f"{ranks.world_size} process{'es' if ranks.world_size > 1 else ''}"
    log.info("Device %s, %s, %s (%s)", where, precision, processes, ranks.source)
    log.info("Dives: %d train, %d validation; %d to a step", len(splits.train), len(splits.val), config.batch_size)
    mean, std = (
        " ".join(f"{value:.3g}" for value in values.tolist()) for values in (model.input_mean, model.input_std)
    )
    log.info("Input: pixels normalised with mean %s, deviation %s (%s)", mean, std, model.input_scale)
    if ranks.is_first:
        log.info("%s + %s: %s", config.model, config.method, describe_cost(model, config))
        if config.gpu:  # it is the card's memory that runs out, and the answer takes seconds
            clips = config.batch_size // ranks.world_size // config.accumulate
            log.info("Expected memory: %s", describe_memory(model, config, clips, precision != "fp32", ranks))


if __name__ == "__main__":
    run(partial(main, interruption=_early_flag))
