"""How long a training waits for its loader: its steps against steps on one batch again and again."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import count, islice, repeat
from typing import Any

from data_preparation.common.errors import UserError
from training.benchmark._result import Result, Row, Timing, time_call
from training.config import missing_data, reopened
from training.data.batch import Batch
from training.data.dataset import ActionDataset
from training.data.loader import training_batches
from training.data.splits import load_splits
from training.engine.prediction import to_device
from training.engine.step import Step
from training.model import build_model
from training.runtime.ranks import Ranks
from training.runtime.run_folder import RunFolder


def headspace(options: Any) -> Result:
    """Steps of a run with its real loader, and with one batch that is on the device already. Nothing is written to the run.

    Raises:
        UserError: it is not a run folder, or its data are missing.
    """
    config = reopened(RunFolder(options.run).existing_config(), options)
    if missing := missing_data(config):
        name, path = next(iter(missing.items()))
        raise UserError(f"the data of {options.run} are not at {path}: give --{name}")
    device, ranks = options.device, Ranks()
    splits = load_splits(config)
    model = build_model(replace(config, gpu=options.gpu), splits.facts)
    model.method.observe(splits.train)
    step = Step(model.to(device).train(), config, ranks, device)
    dataset = ActionDataset(splits.train, config, model.method, augment=True, pool=splits.train)
    numbers = count()

    def epochs() -> Generator[Batch]:
        for epoch in count():
            with closing(training_batches(dataset, config, ranks, device, epoch, first_step=0)) as batches:
                yield from batches

    def train(batches: Iterator[Batch], steps: int) -> None:
        for batch in islice(batches, steps):
            step(batch, config.learning_rate * 1e-3, next(numbers))

    timings = {"ours": Timing(), "ceiling": Timing()}
    filled = config.loader_workers * config.prefetch  # batches that may wait before the first is taken
    for _ in range(options.rounds):
        loaded = epochs()
        kept = to_device(next(loaded), device)
        for name, batches, uncounted in (("ours", loaded, filled), ("ceiling", repeat(kept), 1)):
            train(batches, uncounted)
            wall, cpu = time_call(partial(train, batches, options.steps), device)
            timings[name].wall.append(wall / options.steps)
            timings[name].cpu.append(cpu / options.steps)
            if name == "ours":
                loaded.close()  # ends its workers
    row = Row.of(f"a step of {options.run.name}", timings)
    assert row.ours is not None
    assert row.ceiling is not None
    gap = row.ours / row.ceiling - 1
    legend = [
        f"Gap to one batch that is in memory: {gap:.1%}. {options.rounds} rounds of {options.steps} steps on {device}, batches of",
        f"{config.batch_size}, {config.loader_workers} workers; steps that only empty a full queue are left out.",
    ]
    return Result([row], legend, {"gap": gap})
