"""The task of pretraining: nothing that was annotated is predicted. Validation chooses by the loss, and there is no test split.

The checkpoint is for --pretrained_model of another training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from data_preparation.actions import Action
from training.tasks.base import Arrays, Column, Metric, Task, Truth


class PretextTask(Task):
    metric = Metric(
        "negative_loss", "negative loss", "-loss", "Negative validation loss", "negative loss",
        limit=None, undefined="the loss is not a number",
    )  # fmt: skip
    logged = ()  # the log line has the loss already
    table = (Column("negative_loss", "negative loss", 3),)
    has_test = False

    def faults(self, actions: Sequence[Action], classes: Sequence[str]) -> list[str]:
        return []

    def truth(self, actions: Sequence[Action]) -> Truth:
        return Truth(np.zeros(len(actions)), [""] * len(actions))

    def metrics(self, predicted: Arrays, truth: Truth) -> dict[str, float]:
        return {}

    def validation_metrics(self, predicted: Arrays, truth: Truth, losses: Mapping[str, float]) -> dict[str, float]:
        return {self.metric.key: -losses["loss"]}


TASK = PretextTask()
