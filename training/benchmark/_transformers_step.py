"""The TimeSformer of Hugging Face's transformers with the weights of this project's."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, cast

import torch

from training.backbones.timesformer.network import TimeSformer
from training.benchmark._result import Way
from training.config import TrainConfig

# the names of transformers, by those of the authors' code
_NAMES = {
    "patch_embed.proj.": "embeddings.patch_embeddings.projection.",
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "time_embed": "embeddings.time_embeddings",
    "blocks.": "encoder.layer.",
    "temporal_norm1.": "temporal_layernorm.",
    "temporal_attn.qkv.": "temporal_attention.attention.qkv.",
    "temporal_attn.proj.": "temporal_attention.output.dense.",
    "temporal_fc.": "temporal_dense.",
    ".attn.qkv.": ".attention.attention.qkv.",
    ".attn.proj.": ".attention.output.dense.",
    ".norm1.": ".layernorm_before.",
    ".norm2.": ".layernorm_after.",
    "mlp.fc1.": "intermediate.dense.",
    "mlp.fc2.": "output.dense.",
}


def name_in_transformers(name: str) -> str:
    """The name that transformers has for a parameter of the authors' code."""
    if name.startswith("norm."):
        return f"layernorm.{name.removeprefix('norm.')}"
    for own, theirs in _NAMES.items():
        name = name.replace(own, theirs)
    return name


def transformers_ways(
    backbone: TimeSformer,
    config: TrainConfig,
    video_BCTHW: torch.Tensor,
    precision: Callable[[], AbstractContextManager],
) -> tuple[dict[str, Way], float]:
    """(forward and backward of both networks, the relative difference of their outputs)."""
    from transformers import TimesformerConfig, TimesformerModel

    theirs = TimesformerModel(
        TimesformerConfig(
            image_size=config.spatial_size,
            patch_size=backbone.patch_embed.patch_size[0],
            num_frames=config.frame_num,
            hidden_size=backbone.feature_dim,
            num_hidden_layers=len(backbone.blocks),
            num_attention_heads=cast(Any, backbone.blocks[0]).attn.num_heads,
            intermediate_size=4 * backbone.feature_dim,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            drop_path_rate=0,
            layer_norm_eps=1e-6,
        )
    ).to(video_BCTHW.device)
    state = {name_in_transformers(name): tensor for name, tensor in backbone.state_dict().items()}
    theirs.load_state_dict(state)
    video_BTCHW = video_BCTHW.transpose(1, 2)

    def forward_and_backward(network: Callable[[], torch.Tensor]) -> None:
        with precision():
            features = network()
        features.float().sum().backward()

    def their_features() -> torch.Tensor:
        return theirs(video_BTCHW).last_hidden_state[:, :1]

    with torch.no_grad():
        ours = backbone.eval()(video_BCTHW[:1])
        theirs.eval()
        found = theirs(video_BTCHW[:1]).last_hidden_state[:, :1]
    difference = float((ours - found).abs().max() / found.abs().max())
    ways: dict[str, Way] = {
        "ours": lambda: forward_and_backward(lambda: backbone(video_BCTHW)),
        "reference": lambda: forward_and_backward(their_features),
    }
    return ways, difference
