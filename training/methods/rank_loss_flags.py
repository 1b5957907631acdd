"""Flags of methods whose loss combines a mean squared error with the rank correlation over the batch."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from data_preparation.common.command_line import flag
from training.plugins import MethodFlags

RANK_LOSS_ADVICE = "; --loss_spcoef_weight also helps"  # if all predictions are the same


@dataclass(frozen=True)
class RankLossFlags(MethodFlags):
    loss_mse_weight: float = flag(1.0, "Weight of the mean squared error.")
    loss_spcoef_weight: float = flag(0.0, "Weight of the soft Spearman correlation of the final scores over the batch.")
    spcoef_strength: float = flag(
        10.0,
        "Regularisation strength of the soft ranks in points; score differences below it count only partly.",
        minimum=1e-6,
    )
    spcoef_norm: str = flag("l2", "Regularisation norm of the soft ranks (torchsort).", choices=("l2", "kl"))

    def method_faults(self) -> list[str]:
        if self.loss_spcoef_weight and find_spec("torchsort") is None:
            return ["--loss_spcoef_weight needs torchsort, which is not installed: bash job_files/setup.sh"]
        return []
