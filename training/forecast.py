"""What a training would need, told before it queues: builds the model with its weights, and computes nothing.

    python -m training.forecast PROCESSES [training flags]        the last line of stdout is JSON

Fails, as the training would, where a weight file does not fit.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from data_preparation.cli import parse, run
from training.config import TrainConfig
from training.cost import parameters, step_memory
from training.model import build_model
from training.ranks import Ranks


def main(argv: Sequence[str]) -> int:
    processes = int(argv[0])
    config = parse(TrainConfig, argv[1:], prog="python -m training.forecast")
    model = build_model(config)
    half = config.precision in ("bf16", "fp16") or (config.precision == "auto" and config.gpu)
    memory = step_memory(
        model, config, max(config.batch_size // processes // config.accumulate, 1), half, Ranks(0, processes)
    )
    best = 4.0 * parameters(model)[0]
    averages = best if config.ema else 0.0
    print(
        json.dumps(
            {
                "step_bytes": memory["total"],
                "best_bytes": best,
                "checkpoint_bytes": best + averages + memory["optimizer"],
            }
        )
    )
    return 0


if __name__ == "__main__":
    run(main)
