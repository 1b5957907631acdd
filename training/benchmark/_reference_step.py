"""The reference way to train: networks as they are usually written, and a plain training step.

The classes have the parameter names of this project's networks, so both compute with the same weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional as F

from training.backbones.c3d.network import C3D
from training.backbones.timesformer.network import TimeSformer
from training.data.batch import Batch
from training.engine.prediction import autocast, to_device
from training.model import ScoringModel


def attention(layer: Any, x_BND: torch.Tensor) -> torch.Tensor:
    """softmax(q k^T) v with the weights in memory, written in three lines as in the papers' code."""
    b, n, d = x_BND.shape
    heads = layer.num_heads
    q, k, v = layer.qkv(x_BND).reshape(b, n, 3, heads, d // heads).permute(2, 0, 3, 1, 4)
    weights = (q @ k.transpose(-2, -1) * (d // heads) ** -0.5).softmax(dim=-1)
    return layer.proj((weights @ v).transpose(1, 2).reshape(b, n, d))


def timesformer(network: TimeSformer, video_BCTHW: torch.Tensor) -> torch.Tensor:
    """The divided attention of the authors' code: every block computes every token. (B, 3, T, H, W) -> (B, 1, D)."""
    b, _, t = video_BCTHW.shape[:3]
    frames = video_BCTHW.transpose(1, 2).reshape(b * t, 3, *video_BCTHW.shape[3:])
    x = network.patch_embed.proj(frames).flatten(2).transpose(1, 2)
    p, d = x.shape[1:]
    x = x + network.pos_embed[:, 1:]
    x = x.view(b, t, p, d).permute(0, 2, 1, 3) + network.time_embed
    x = torch.cat([(network.cls_token + network.pos_embed[:, :1]).expand(b, 1, d), x.reshape(b, p * t, d)], dim=1)
    for block in cast(Any, network.blocks):
        xt = x[:, 1:]
        over_time = attention(block.temporal_attn, block.temporal_norm1(xt.reshape(b * p, t, d)))
        xt = xt + block.temporal_fc(block.drop_path(over_time).reshape(b, p * t, d))
        cls = x[:, :1].repeat(1, t, 1).reshape(b * t, 1, d)
        xs = xt.reshape(b, p, t, d).permute(0, 2, 1, 3).reshape(b * t, p, d)
        over_space = block.drop_path(attention(block.attn, block.norm1(torch.cat([cls, xs], dim=1))))
        cls = over_space[:, 0].reshape(b, t, d).mean(dim=1, keepdim=True)
        over_space = over_space[:, 1:].reshape(b, t, p, d).permute(0, 2, 1, 3).reshape(b, p * t, d)
        x = torch.cat([x[:, :1], xt], dim=1) + torch.cat([cls, over_space], dim=1)
        x = x + block.drop_path(block.mlp(block.norm2(x)))
    return network.norm(x)[:, :1]


def c3d(network: C3D, video_BCTHW: torch.Tensor) -> torch.Tensor:
    """Window by window, in the memory format of PyTorch: (B, 3, T, H, W) -> (B, windows, D)."""

    def features(x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool3d(F.relu(network.conv1(x)), (1, 2, 2))
        x = F.max_pool3d(F.relu(network.conv2(x)), 2)
        x = F.max_pool3d(F.relu(network.conv3b(F.relu(network.conv3a(x)))), 2)
        x = F.max_pool3d(F.relu(network.conv4b(F.relu(network.conv4a(x)))), 2)
        x = F.max_pool3d(F.relu(network.conv5b(F.relu(network.conv5a(x)))), 2, padding=(0, 1, 1))
        return x.flatten(1)

    length, starts, _ = network.layout
    return torch.stack([features(video_BCTHW[:, :, s : s + length]) for s in starts(video_BCTHW.shape[2])], dim=1)


FORWARDS: dict[type, Callable] = {TimeSformer: timesformer, C3D: c3d}


class ReferenceModel(nn.Module):
    """The backbone of a model computed in the reference way, then its method."""

    def __init__(self, model: ScoringModel, forward: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.model, self.backbone_forward = model, forward

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        clips = {name: self.model.prepare(clip) for name, clip in batch.clips.items()}
        return self.model.method(self.backbone_forward, clips, batch.given, batch.labels)


class ReferenceStep:
    """zero_grad, forward, loss, backward, AdamW without fusion; the loss is read after every step."""

    def __init__(self, model: ReferenceModel, precision: str, device: torch.device) -> None:
        self.model, self.precision, self.device = model, precision, device
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, 1e-5, foreach=False, fused=False)

    def __call__(self, batch: Batch) -> float:
        batch = to_device(batch, self.device)
        self.optimizer.zero_grad()
        with autocast(self.precision, self.device):
            outputs = self.model(batch)
        loss = self.model.model.method.loss(outputs, batch.given, batch.labels)["loss"]
        loss.backward()
        self.optimizer.step()
        return loss.item()
