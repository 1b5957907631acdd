"""Estimate the memory and disk space of a training before it is submitted: builds the model, but does not run it.

    python -m training.forecast RANKS [training flags]        the last line of stdout is JSON

With RANKS = 0 the memory of a step, which takes seconds to estimate, is left out ("step_bytes" is null). Fails, as the training
would, if the weight file does not fit.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from data_preparation import datasets
from data_preparation.actions import is_chosen
from data_preparation.common.command_line import parse, run
from training.config import AUTO, TrainConfig
from training.cost import optimizer_bytes, parameters, step_memory
from training.data.sources import source_of
from training.data.splits import facts_of, load_splits
from training.fitting import smallest_part
from training.model import ScoringModel, build_model
from training.runtime.ranks import Ranks
from training.trained_on import entries_of_run, of_start


def step_bytes(model: ScoringModel, config: TrainConfig, ranks: int) -> float:
    """Estimated bytes of a training step on each GPU; with --accumulate auto or --batch_size auto of its smallest part."""
    half = config.precision in ("bf16", "fp16") or (config.precision == "auto" and config.gpu)
    rows = max(config.batch_size // ranks // max(config.accumulate, 1), 1)
    if config.accumulates_automatically or config.batch_size == AUTO:
        rows = smallest_part(config)
    clips = rows * config.clips_per_sample
    return step_memory(model, config, clips, half, Ranks(0, ranks))["total"]


def main(argv: Sequence[str]) -> int:
    ranks = int(argv[0])
    config = parse(TrainConfig, argv[1:], prog="python -m training.forecast")
    data = datasets.load(config.dataset_kind, config.annotation_files)
    chosen = [action for action in data.actions.values() if is_chosen(action.video, config.chosen_videos)]
    model = build_model(config, facts_of(data, chosen))
    if of_start(config):  # refuse weights that know actions of the test split
        entries_of_run(config, load_splits(config), source_of(config), frozen=model.frozen)
    total, trainable = parameters(model)
    best = 4.0 * total
    averages = best if config.ema else 0.0
    print(
        json.dumps(
            {
                "step_bytes": step_bytes(model, config, ranks) if ranks else None,
                "best_bytes": best,
                "checkpoint_bytes": best + averages + optimizer_bytes(trainable, config),
            }
        )
    )
    return 0


if __name__ == "__main__":
    run(main)
