"""The learning rate as a pure function of the step, so it needs no state in a checkpoint."""

from __future__ import annotations

import math

from training.config import TrainConfig


def learning_rate(step: int, total_steps: int, config: TrainConfig) -> float:
    """The learning rate of step `step` (0-based): linear warm-up over --warmup_steps, then constant, cosine decay to 0, or
    multiplied by --lr_gamma after each epoch of --lr_steps."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.lr_schedule == "constant":
        return config.learning_rate
    if config.lr_schedule == "steps":
        epochs_done = step // max(total_steps // config.epochs, 1)
        return config.learning_rate * config.lr_gamma ** sum(epochs_done >= at for at in config.lr_steps)
    done = (step - config.warmup_steps) / max(total_steps - config.warmup_steps, 1)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
