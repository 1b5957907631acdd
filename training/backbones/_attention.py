"""Multi-head self-attention, with the kernel that is fastest for a device and a length of the sequences.

Shape letters: B sequences, N queries, M keys, H heads, d values of each head, D = H * d.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

# On the CPU, for at most so many keys, the plain kernel below instead of PyTorch's flash kernel. Forward and backward, one busy
# thread of a Xeon with AVX-512, PyTorch 2.13, sequences of 8 to 197 tokens, 4 heads of 32 values and 12 of 64: in bfloat16 it takes
# 0.13 to 0.7 times the time, in float32 1.0 to 1.15 times, and the same time in a whole step of the quick start. On an older CPU
# the plain kernel made that step 1.2 times faster in float32. Its weights (B, H, N, M) need memory, so it is not for longer sequences.
PLAIN_UP_TO = {torch.float32: 128, torch.bfloat16: 256, torch.float64: 128}
# On NVIDIA GPUs, for at most so many keys, the memory-efficient kernel before the flash kernel. From published measurements on an
# H100 (sequences of 32 to 128 tokens in large batches), not measured here
EFFICIENT_UP_TO = 128
_EFFICIENT_FIRST = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
# PyTorch's softmax over fewer values than a vector register holds is several times slower than its parts
_SHORT_SOFTMAX = 16


def attention(
    q_BNHd: torch.Tensor, k_BMHd: torch.Tensor, v_BMHd: torch.Tensor, *, training: bool = False
) -> torch.Tensor:
    """softmax(q k^T / sqrt(d)) v of each head: (B, N, H, d).

    The kernel depends on the device, the number of keys, the dtype and `training` only, so that a run that resumes computes the
    same bits. `training` is not torch.is_grad_enabled(): with --accumulate a step computes the same outputs twice, first without
    a graph.
    """
    device, keys = q_BNHd.device.type, k_BMHd.shape[1]
    if device == "cpu" and training and keys <= PLAIN_UP_TO.get(q_BNHd.dtype, 0):
        return _Plain.apply(q_BNHd, k_BMHd, v_BMHd)
    q, k, v = (x.transpose(1, 2) for x in (q_BNHd, k_BMHd, v_BMHd))
    if device == "cuda" and keys <= EFFICIENT_UP_TO:
        with sdpa_kernel(_EFFICIENT_FIRST, set_priority=True):
            return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


class _Plain(torch.autograd.Function):
    """Attention by batched matrix products, with few copies: of each input, and of the output and its gradient."""

    @staticmethod
    def forward(ctx: Any, q_BNHd: torch.Tensor, k_BMHd: torch.Tensor, v_BMHd: torch.Tensor) -> torch.Tensor:
        b, n, heads, d = q_BNHd.shape
        q, k, v = (x.transpose(1, 2).reshape(b * heads, -1, d) for x in (q_BNHd, k_BMHd, v_BMHd))
        # baddbmm, since it can scale: beta 0 ignores its first argument
        weights = _softmax(
            torch.baddbmm(q.new_empty(1, 1, 1), q, k.transpose(1, 2), beta=0, alpha=d**-0.5)
        )  # (B * H, N, M)
        ctx.save_for_backward(q, k, v, weights)
        ctx.heads = heads
        return torch.bmm(weights, v).view(b, heads, n, d).transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:
        q, k, v, weights = ctx.saved_tensors
        heads, d = ctx.heads, q.shape[-1]
        of_output = gradients[0].transpose(1, 2).reshape(q.shape)
        of_scores = _softmax_backward(torch.bmm(of_output, v.transpose(1, 2)), weights).mul_(d**-0.5)
        found = (
            torch.bmm(of_scores, k),
            torch.bmm(of_scores.transpose(1, 2), q),
            torch.bmm(weights.transpose(1, 2), of_output),
        )
        return tuple(x.view(-1, heads, *x.shape[1:]).transpose(1, 2) for x in found)


def _softmax(scores: torch.Tensor) -> torch.Tensor:
    if scores.shape[-1] >= _SHORT_SOFTMAX:
        return scores.softmax(dim=-1)
    powers = (scores - scores.amax(dim=-1, keepdim=True)).exp_()  # scores stay: activation checkpointing may keep them
    return powers.div_(powers.sum(dim=-1, keepdim=True))


def _softmax_backward(of_weights: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    if weights.shape[-1] >= _SHORT_SOFTMAX:
        return torch._softmax_backward_data(of_weights, weights, -1, weights.dtype)
    products = of_weights.mul_(weights)
    return products.sub_(weights * products.sum(dim=-1, keepdim=True))


class SelfAttention(nn.Module):
    """Multi-head self-attention ("Attention Is All You Need", Vaswani et al., 2017): (B, N, D) -> (B, N, D). Parameter names are
    those of timm's Attention."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.scale = num_heads, (width // num_heads) ** -0.5
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(
        self,
        x_BND: torch.Tensor,
        first_only: bool = False,
        then: nn.Linear | None = None,
        mask_B11: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """With `first_only` -> (B, 1, D), the output of the first token, which attends to all. With `then` a linear layer follows,
        in one matrix product with `proj`. The mask is a factor of each sequence before `then`."""
        b, n, width = x_BND.shape
        if first_only:
            values = self._of_first(x_BND)
        else:
            heads = (self.num_heads, width // self.num_heads)
            q, k, v = self.qkv(x_BND).view(b, n, 3, *heads).unbind(dim=2)
            values = attention(q, k, v, training=self.training).reshape(b, n, width)
        if then is None:
            return times(self.proj(values), mask_B11)
        weight, bias = then.weight @ self.proj.weight, F.linear(self.proj.bias[None], then.weight)[0]
        if mask_B11 is None:
            return F.linear(values, weight, bias + then.bias)
        return F.linear(values, weight, bias) * mask_B11 + then.bias

    def _of_first(self, x_BND: torch.Tensor) -> torch.Tensor:
        """The values (B, 1, D) of the first token, without a key and a value of each token: q . (W x) = (W' q) . x, and the mean
        of W x is W times the mean of x. The bias of the keys adds the same to all scores of a query, so softmax drops it."""
        b, _, width = x_BND.shape
        heads = (self.num_heads, width // self.num_heads)
        weight_q, weight_k, weight_v = self.qkv.weight.chunk(3)
        bias_q, _, bias_v = self.qkv.bias.chunk(3)
        q = F.linear(x_BND[:, 0] * self.scale, weight_q, bias_q * self.scale).view(b, *heads)
        q_BHD = torch.einsum("bhd,hde->bhe", q, weight_k.view(*heads, width))
        weights_BHN = torch.bmm(q_BHD, x_BND.transpose(1, 2)).softmax(dim=-1)
        mean_BHD = torch.bmm(weights_BHN.to(x_BND.dtype), x_BND)
        values = torch.einsum("bhe,hde->bhd", mean_BHD, weight_v.view(*heads, width))
        return values.reshape(b, 1, width) + bias_v


def times(x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    return x if mask is None else x * mask
