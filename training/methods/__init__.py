"""Methods: from features to loss and prediction. One folder each; see training.plugins."""

from __future__ import annotations

from typing import TYPE_CHECKING

from training.plugins import METHODS, build_function, search_path

if TYPE_CHECKING:  # needs torch, which login nodes may lack
    from training.config import TrainConfig
    from training.data.facts import DataFacts
    from training.methods.base import Method

__path__ = search_path(__path__, METHODS)


def build_method(config: TrainConfig, feature_dim: int, data: DataFacts) -> Method:
    """The method that --method names, with random weights."""
    return build_function(METHODS, config.method)(config, feature_dim, data)
