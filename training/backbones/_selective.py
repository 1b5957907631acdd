"""Selective activation checkpointing: which results of a block are kept for the backward pass."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from torch.utils.flop_counter import flop_registry

# convolutions, matrix products and attention: the operators whose multiply-adds torch counts
_EXPENSIVE = {*flop_registry, torch.ops.aten._scaled_dot_product_flash_attention_for_cpu}


def _policy(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    is_expensive = getattr(operator, "overloadpacket", operator) in _EXPENSIVE
    return CheckpointPolicy.MUST_SAVE if is_expensive else CheckpointPolicy.PREFER_RECOMPUTE


# `context_fn` of torch.utils.checkpoint: keep the results of expensive operators, compute the others again
contexts = partial(create_selective_checkpoint_contexts, _policy)
