"""What a training would need, told before it queues: builds the model with its weights, and computes nothing.

    python -m training.forecast PROCESSES [training flags]        the last line of stdout is JSON

With 0 PROCESSES the memory of a step, which takes seconds to find out, is left out ("step_bytes" is null). Fails, as the training would, where a weight file does not fit.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from data_preparation.common.command_line import parse, run
from training.config import TrainConfig
from training.cost import optimizer_bytes, parameters, step_memory
from training.model import ScoringModel, build_model
from training.runtime.ranks import Ranks


def step_bytes(model: ScoringModel, config: TrainConfig, processes: int) -> float:
    """Expected bytes of a training step on each GPU."""
    half = config.precision in ("bf16", "fp16") or (config.precision == "auto" and config.gpu)
    clips = max(config.batch_size // processes // config.accumulate, 1)
    return step_memory(model, config, clips, half, Ranks(0, processes))["total"]


def main(argv: Sequence[str]) -> int:
    processes = int(argv[0])
    config = parse(TrainConfig, argv[1:], prog="python -m training.forecast")
    model = build_model(config)
    total, trainable = parameters(model)
    best = 4.0 * total
    averages = best if config.ema else 0.0
    print(
        json.dumps(
            {
                "step_bytes": step_bytes(model, config, processes) if processes else None,
                "best_bytes": best,
                "checkpoint_bytes": best + averages + optimizer_bytes(trainable, config),
            }
        )
    )
    return 0


if __name__ == "__main__":
    run(main)
