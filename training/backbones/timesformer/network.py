"""TimeSformer: "Is Space-Time Attention All You Need for Video Understanding?" (Bertasius, Wang, Torresani, ICML 2021).

Parameter names are those of the authors' code, so their weight files load directly. Shape letters: B clips, T frames,
P patches per frame, D embedding dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from timm.layers import Mlp, PatchEmbed, trunc_normal_
from torch import nn
from torch.nn import functional as F

from data_preparation.common.errors import UserError
from training.backbones._attention import SelfAttention
from training.backbones._weights import load_strict
from training.backbones.base import Backbone
from training.backbones.timesformer.flags import ATTENTION_TYPES
from training.config import TrainConfig
from training.rows import RowDropPath

DIVIDED, SPACE_ONLY, JOINT = ATTENTION_TYPES


def build(config: TrainConfig) -> TimeSformer:
    return TimeSformer(
        image_size=config.spatial_size,
        patch_size=config.patch_size,
        frames=config.frame_num,
        width=config.embed_dim,
        depth=config.depth,
        num_heads=config.num_heads,
        attention_type=config.attention_type,
        drop_path=config.drop_path,
        frame_tokens=config.needs == "tokens",
        time_embed_resize=config.time_embed_resize,
    )


Mask = torch.Tensor | None  # of RowDropPath; None if nothing is dropped


class Block(nn.Module):
    """An encoder block with space-only or joint space-time attention: (B', N, D) -> (B', N, D).

    With `class_only` -> (B', 1, D), the class token, which is the first. The patches are then keys and values only.
    """

    def __init__(self, width: int, num_heads: int, drop_path: float, class_only: bool = False) -> None:
        super().__init__()
        self.class_only = class_only
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = SelfAttention(width, num_heads)
        self.drop_path = RowDropPath(drop_path)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, 4 * width)

    def masks(self, *rows: int) -> list[Mask]:
        """The masks of stochastic depth for the parts of the block, in their order. They are drawn outside of `forward`, so that
        one compiled forward serves all rates."""
        return [self.drop_path.mask(count, self.norm1.weight.device) for count in rows]

    def forward(self, x_BND: torch.Tensor, of_attn: Mask = None, of_mlp: Mask = None) -> torch.Tensor:
        updates = self.attn(self.norm1(x_BND), first_only=self.class_only)
        x_BND = plus(x_BND[:, :1] if self.class_only else x_BND, updates, of_attn)
        return plus(x_BND, self.mlp(self.norm2(x_BND)), of_mlp)


class DividedBlock(Block):
    """An encoder block with divided attention: over time at each patch position, then over space in each frame.

    With `class_only` the patches are not updated after the attention over time, and not returned.
    """

    def __init__(self, width: int, num_heads: int, drop_path: float, class_only: bool = False) -> None:
        super().__init__(width, num_heads, drop_path, class_only)
        self.temporal_norm1 = nn.LayerNorm(width, eps=1e-6)
        self.temporal_attn = SelfAttention(width, num_heads)
        self.temporal_fc = nn.Linear(width, width)

    def forward(  # type: ignore[override]  # the class token and the patches are separate inputs
        self,
        cls_B1D: torch.Tensor,
        x_BPTD: torch.Tensor,
        of_time: Mask = None,
        of_space: Mask = None,
        of_mlp: Mask = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        b, p, t, d = x_BPTD.shape
        over_time = self.temporal_norm1(x_BPTD.reshape(b * p, t, d))
        x_BPTD = x_BPTD + self.temporal_attn(over_time, then=self.temporal_fc, mask_B11=of_time).view(b, p, t, d)

        # in each frame the patches and a copy of the clip's class token attend to one another
        frames = torch.cat([cls_B1D[:, None].expand(b, t, 1, d), x_BPTD.transpose(1, 2)], dim=2).view(b * t, 1 + p, d)
        over_space = self.attn(self.norm1(frames), first_only=self.class_only, mask_B11=of_space).view(b, t, -1, d)
        if self.class_only:
            cls_B1D = cls_B1D + over_space.mean(dim=1)
            return plus(cls_B1D, self.mlp(self.norm2(cls_B1D)), of_mlp), None
        # split, not slices: its backward pass is one concatenation
        of_cls, of_patches = over_space.split([1, p], dim=2)
        cls_B1D, x_BPTD = cls_B1D + of_cls.mean(dim=1), x_BPTD + of_patches.transpose(1, 2)

        tokens = torch.cat([cls_B1D, x_BPTD.view(b, p * t, d)], dim=1)
        of_cls, of_patches = self.mlp(self.norm2(tokens)).split([1, p * t], dim=1)
        return plus(cls_B1D, of_cls, of_mlp), plus(x_BPTD.view(b, p * t, d), of_patches, of_mlp).view(b, p, t, d)


def plus(x: torch.Tensor, update: torch.Tensor, mask: Mask) -> torch.Tensor:
    return x + update if mask is None else torch.addcmul(x, update, mask)


class VideoPatchEmbed(PatchEmbed):
    """timm's PatchEmbed for all frames of a clip, as a matrix product: (B, 3, T, H, W) -> (B, P, T, D)."""

    def forward(self, video_BCTHW: torch.Tensor) -> torch.Tensor:
        b, c, t, height, width = video_BCTHW.shape
        assert (height, width) == self.img_size, f"frames of {height} x {width} in a network for {self.img_size}"
        (rows, columns), (h, w) = self.grid_size, self.patch_size
        pixels = video_BCTHW.reshape(b, c, t, rows, h, columns, w).permute(0, 3, 5, 2, 1, 4, 6)
        return F.linear(pixels.reshape(b, rows * columns, t, c * h * w), self.proj.weight.flatten(1), self.proj.bias)


class TimeSformer(Backbone):
    """(B, 3, T, H, W) -> (B, 1, width), the class token.

    With `frame_tokens`: -> (B, 1 + T, width), the class token and the mean patch token of each frame. `num_classes` adds the
    classification head of the released models, which is applied to the features; 0 adds none.
    """

    def __init__(
        self,
        image_size: int = 224,
        patch_size: int = 16,
        frames: int = 8,
        width: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        attention_type: str = DIVIDED,
        drop_path: float = 0.1,
        num_classes: int = 0,
        frame_tokens: bool = False,
        time_embed_resize: str = "nearest",
    ) -> None:
        super().__init__()
        self.attention_type, self.frame_tokens, self.feature_dim = attention_type, frame_tokens, width
        self.time_embed_resize = time_embed_resize
        self.clip_vectors = 1 if frame_tokens else 0
        self.patch_embed = VideoPatchEmbed(image_size, patch_size, embed_dim=width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.patch_embed.num_patches, width))
        if attention_type != SPACE_ONLY:
            self.time_embed = nn.Parameter(torch.zeros(1, frames, width))
        block = DividedBlock if attention_type == DIVIDED else Block
        rates = np.linspace(0, drop_path, depth).tolist()
        # only the class token leaves the last block, unless the tokens of the frames do, too
        last = None if frame_tokens else depth - 1
        self.blocks = nn.ModuleList(block(width, num_heads, rate, i == last) for i, rate in enumerate(rates))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, num_classes) if num_classes else nn.Identity()
        self._init_weights()

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        trunc_normal_(self.pos_embed, std=0.02)
        trunc_normal_(self.cls_token, std=0.02)
        if self.attention_type == DIVIDED:
            for block in cast("list[DividedBlock]", list(self.blocks)[1:]):  # start close to a space-only network
                nn.init.zeros_(block.temporal_fc.weight)
                nn.init.zeros_(block.temporal_fc.bias)

    def forward(self, video_BCTHW: torch.Tensor) -> torch.Tensor:
        x_BPTD = self.patch_embed(video_BCTHW)
        b, p, t, d = x_BPTD.shape
        of_cls, of_patches = self.pos_embed.split([1, p], dim=1)
        cls_B1D = (self.cls_token + of_cls).expand(b, 1, d)
        places = of_patches[:, :, None]  # (1, P, 1, D)
        x_BPTD = x_BPTD + (places if self.attention_type == SPACE_ONLY else places + self.time_embed[:, None])

        blocks = cast("list[Block]", list(self.blocks))
        if self.attention_type == DIVIDED:
            for block in blocks:
                cls_B1D, x_BPTD = self.run_block(block, cls_B1D, x_BPTD, *block.masks(b * p, b * t, b))
        else:
            if self.attention_type == SPACE_ONLY:
                x = torch.cat([cls_B1D[:, None].expand(b, t, 1, d), x_BPTD.transpose(1, 2)], dim=2).flatten(0, 1)
            else:
                x = torch.cat([cls_B1D, x_BPTD.flatten(1, 2)], dim=1)
            for block in blocks:
                x = self.run_block(block, x, *block.masks(len(x), len(x)))
            x = x.view(b, -1, *x.shape[1:])  # space-only (B, T, N, D), joint (B, 1, N, D)
            cls_B1D = x[:, :, 0].mean(dim=1, keepdim=True)
            if self.frame_tokens:
                x = x[:, :, 1:]
                x_BPTD = x.transpose(1, 2) if self.attention_type == SPACE_ONLY else x.view(b, p, t, d)

        tokens = torch.cat([cls_B1D, x_BPTD.mean(dim=1)], dim=1) if self.frame_tokens else cls_B1D
        return self.head(self.norm(tokens))

    def compile_blocks(self, *, cuda_graphs: bool = False) -> None:
        """Compile the forward pass of the blocks. The blocks share their compiled code: in training there are three kinds, the first
        (which drops nothing), the last and the others; validation and --accumulate add some."""
        # beyond this number of kinds PyTorch runs the block uncompiled
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 32)
        for block in self.blocks:
            block.compile(options={"triton.cudagraphs": cuda_graphs})

    def own_maps(self, video_BCTHW: torch.Tensor) -> dict[str, torch.Tensor]:
        """Attention roll-out from the class token to the patches: {"rollout": (B, T, h, w)}, with sum 1 over the clip and class
        token ("Quantifying Attention Flow in Transformers", Abnar and Zuidema, ACL 2020)."""
        b, _, t = video_BCTHW.shape[:3]
        weights: dict[str, torch.Tensor] = {}  # of each attention layer, by its name

        def record(name: str) -> Callable[..., None]:
            def hook(layer: Any, inputs: tuple[torch.Tensor, ...]) -> None:
                weights[name] = attention_weights(layer, inputs[0])

            return hook

        layers = {name: layer for name, layer in self.named_modules() if isinstance(layer, SelfAttention)}
        hooks = [layer.register_forward_pre_hook(record(name)) for name, layer in layers.items()]
        try:
            self(video_BCTHW)
        finally:
            for hook in hooks:
                hook.remove()
        height, width = self.patch_embed.grid_size
        numbers = range(len(self.blocks) - 1, -1, -1)
        if self.attention_type == DIVIDED:
            cls_B, patches_BPT = video_BCTHW.new_ones(b), video_BCTHW.new_zeros(b, height * width, t)
            for number in numbers:
                space = weights[f"blocks.{number}.attn"].unflatten(0, (b, t))  # (B, T, 1+P, 1+P)
                time = weights[f"blocks.{number}.temporal_attn"].unflatten(0, (b, -1))  # (B, P, T, T)
                cls_B, patches_BPT = divided_step(cls_B, patches_BPT, space, time)
            maps = patches_BPT.transpose(1, 2)
        else:
            row = torch.zeros_like(weights["blocks.0.attn"][:, 0])  # (B', N), the class token first
            row[:, 0] = 1
            for number in numbers:
                row = 0.5 * row + 0.5 * (row[:, None] @ weights[f"blocks.{number}.attn"])[:, 0]
            joint = self.attention_type == JOINT  # its patches are in order of place, then time
            maps = row[:, 1:].view(b, -1, t).transpose(1, 2) if joint else row[:, 1:].view(b, t, -1) / t
        return {"rollout": maps.reshape(b, t, height, width)}

    def load_pretrained(self, state: dict[str, torch.Tensor]) -> list[str]:
        own = self.state_dict()
        state = {name: tensor for name, tensor in state.items() if not name.startswith("head.")}

        def resizable(name: str) -> bool:
            """Whether the embeddings differ in the number of vectors only; load_strict reports other differences."""
            if name not in state or name not in own or state[name].ndim != 3 or not state[name].numel():
                return False
            (one, count, width), (_, wanted, own_width) = state[name].shape, own[name].shape
            return (one, width) == (1, own_width) and count != wanted

        messages = ["classification head dropped"]
        # all released TimeSformers are video models; a file without temporal parameters is an image ViT
        from_video = "time_embed" in state or any(".temporal_attn." in name for name in state)
        self.input_scale = "timesformer" if from_video else "vit"
        if resizable("pos_embed"):
            messages.append(
                f"position embedding resized from {state['pos_embed'].shape[1] - 1} to {self.patch_embed.num_patches} patches"
            )
            state["pos_embed"] = resize_pos_embed(state["pos_embed"], self.patch_embed.grid_size)
        if not from_video and self.attention_type != SPACE_ONLY:
            messages.append("image weights: time embedding initialised with zeros")
            state["time_embed"] = torch.zeros_like(own["time_embed"])
        elif resizable("time_embed"):
            messages.append(
                f"time embedding resized ({self.time_embed_resize}) from {state['time_embed'].shape[1]} to {own['time_embed'].shape[1]} frames"
            )
            state["time_embed"] = resize_time_embed(
                state["time_embed"], own["time_embed"].shape[1], self.time_embed_resize
            )
        if not from_video and self.attention_type == DIVIDED:
            messages.append(
                "temporal attention initialised from the spatial attention, its last layer with zeros except in block 0"
            )
            state |= {
                name.replace(part, f"temporal_{part}"): tensor.clone()
                for name, tensor in state.items()
                for part in ("attn.", "norm1.")
                if name.startswith("blocks.") and part in name
            }
        fresh = ("head.",) if from_video else ("head.", ".temporal_fc.")
        load_strict(self, state, allow_missing=[name for name in own if any(part in name for part in fresh)])
        return messages

    def flop_counters(self) -> dict[str, Any]:
        return {"aten::scaled_dot_product_attention": _attention_flops}


def attention_weights(layer: SelfAttention, x_BND: torch.Tensor) -> torch.Tensor:
    """The weights (B, N, N) of an attention layer for its input, as a mean over the heads."""
    b, n, _ = x_BND.shape
    q, k, _ = layer.qkv(x_BND).reshape(b, n, 3, layer.num_heads, -1).permute(2, 0, 3, 1, 4)  # (B, heads, N, d)
    return ((q * layer.scale) @ k.transpose(-2, -1)).softmax(dim=-1).mean(dim=1)


def divided_step(
    cls_B: torch.Tensor, patches_BPT: torch.Tensor, space_BTNN: torch.Tensor, time_BPTT: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Roll shares of class token and patches back through a block of divided attention, half of each past the attention."""
    t = space_BTNN.shape[1]
    of_patches = torch.einsum("bpt,btpn->bnt", patches_BPT, space_BTNN[:, :, 1:])  # (B, 1+P, T)
    of_cls = cls_B[:, None, None] * space_BTNN[:, :, 0].transpose(1, 2) / t
    gathered = of_patches + of_cls
    cls_B = 0.5 * cls_B + 0.5 * gathered[:, 0].sum(dim=1)
    patches_BPT = 0.5 * patches_BPT + 0.5 * gathered[:, 1:]
    return cls_B, 0.5 * patches_BPT + 0.5 * torch.einsum("bpt,bpts->bps", patches_BPT, time_BPTT)


def resize_time_embed(embed_1TD: torch.Tensor, frames: int, mode: str = "nearest") -> torch.Tensor:
    """(1, T, D) -> (1, frames, D); nearest repeats or drops vectors, as the authors' code does."""
    extra = {"align_corners": False} if mode == "linear" else {}
    return F.interpolate(embed_1TD.transpose(1, 2), size=frames, mode=mode, **extra).transpose(1, 2)


def resize_pos_embed(embed_1ND: torch.Tensor, grid: tuple[int, int], mode: str = "bicubic") -> torch.Tensor:
    """(1, 1 + h*h, D) -> (1, 1 + H*W, D) for the grid (H, W), interpolated in two dimensions; the class token is unchanged.

    Raises:
        UserError: the number of patches is not a square.
    """
    class_part, patch_part = embed_1ND[:, :1], embed_1ND[:, 1:]
    side = round(patch_part.shape[1] ** 0.5)
    if side * side != patch_part.shape[1]:
        raise UserError(
            f"--pretrained_model has a position embedding of {patch_part.shape[1]} patches, which is not a square number: choose another file"
        )
    extra = {"align_corners": False} if mode == "bicubic" else {}
    square = patch_part.transpose(1, 2).reshape(1, -1, side, side)
    return torch.cat(
        [class_part, F.interpolate(square, size=grid, mode=mode, **extra).flatten(2).transpose(1, 2)], dim=1
    )


def _attention_flops(inputs: list[Any], outputs: list[Any]) -> int:
    """Multiply-adds of softmax(q k^T) v for q of shape (..., N, d)."""
    *batch, n, d = inputs[0].type().sizes()
    keys = inputs[1].type().sizes()[-2]
    count = 2 * n * keys * d
    for size in batch:
        count *= size
    return count
