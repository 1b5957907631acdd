"""Max pooling whose backward pass has an order: the same bits each time on a GPU, too.

PyTorch's own backward passes on CUDA add with atomics where windows overlap. It refuses the one of max_pool3d with deterministic
algorithms, and runs that of adaptive_max_pool3d with atomics even then. Without deterministic algorithms the functions here are
PyTorch's. With them the outputs are the same bits, and on a CPU the gradients, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
from torch.nn import functional as F

Sizes = tuple[int, int, int]


def max_pool3d(
    x: torch.Tensor,
    kernel: int | Sizes,
    stride: int | Sizes | None = None,
    padding: int | Sizes = 0,
    *,
    ceil_mode: bool = False,
) -> torch.Tensor:
    """torch.nn.functional.max_pool3d of (B, C, T, H, W); `stride` is the kernel unless given."""
    if not torch.are_deterministic_algorithms_enabled():
        return F.max_pool3d(x, kernel, stride, padding, ceil_mode=ceil_mode)
    kernel = _three(kernel)
    stride = kernel if stride is None else _three(stride)
    return _MaxPool3d.apply(_as_autocast(x), kernel, stride, _three(padding), ceil_mode)  # type: ignore[no-any-return]


def adaptive_max_pool3d(x: torch.Tensor, size: Sizes) -> torch.Tensor:
    """torch.nn.functional.adaptive_max_pool3d of (B, C, T, H, W), for a few outputs: its backward pass sorts their places."""
    if not torch.are_deterministic_algorithms_enabled():
        return F.adaptive_max_pool3d(x, size)
    x = _as_autocast(x)
    places = F.adaptive_max_pool3d(x.detach(), size, return_indices=True)[1]
    return x.flatten(2).gather(2, places.flatten(2)).unflatten(2, size)


def _as_autocast(x: torch.Tensor) -> torch.Tensor:
    """`x` as autocast gives it to PyTorch's pooling: on a CPU in float32."""
    is_cast = x.device.type == "cpu" and torch.is_autocast_enabled("cpu") and x.dtype.itemsize < 4
    return x.float() if is_cast else x


def _three(value: int | Sizes) -> Sizes:
    return (value,) * 3 if isinstance(value, int) else value


class _MaxPool3d(torch.autograd.Function):
    """Keeps only the places of the largest values, int64 (B, C, T', H', W')."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, kernel: Sizes, stride: Sizes, padding: Sizes, ceil_mode: bool
    ) -> torch.Tensor:
        # the function in torch.nn.functional copies every window in this mode
        pooled, places = torch.ops.aten.max_pool3d_with_indices(x, kernel, stride, padding, (1, 1, 1), ceil_mode)
        ctx.save_for_backward(places)
        ctx.windows, ctx.shape = (kernel, stride, padding), x.shape
        return pooled

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None, None, None]:  # type: ignore[override]
        (places,) = ctx.saved_tensors
        gradient = _compiled_gradient if torch.compiler.is_compiling() else max_pool3d_gradient
        return gradient(grad, places, ctx.shape, *ctx.windows), None, None, None, None


def max_pool3d_gradient(
    grad: torch.Tensor,
    places: torch.Tensor,
    shape: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
) -> torch.Tensor:
    """The gradient (B, C, T, H, W) = `shape` of the input of max pooling, from that of its output, (B, C, T', H', W').

    At each offset in the window the windows have different positions of the input, so a sum into them has no two writers. The
    offsets go backwards: a position then adds its windows in the order in which PyTorch does on a CPU.
    """
    total = _empty(grad, places, shape).zero_()
    place = torch.arange(math.prod(shape[2:]), device=grad.device).view(*shape[2:])  # of each position, as in `places`
    for offset in product(*(range(k - 1, -1, -1) for k in kernel)):
        axes = [_windows(*each) for each in zip(offset, shape[2:], grad.shape[2:], stride, padding, strict=True)]
        if any(windows.start >= windows.stop for windows, _ in axes):
            continue  # this offset is in the padding of each window
        windows, positions = ((..., *each) for each in zip(*axes, strict=True))
        total[positions] += torch.where(places[windows] == place[positions], grad[windows], 0.0)
    return total


# one operation for torch.compile, which would take minutes for the loop
_compiled_gradient = torch.library.custom_op("deepsports::max_pool3d_gradient", max_pool3d_gradient, mutates_args=())


@_compiled_gradient.register_fake
def _empty(grad: torch.Tensor, places: torch.Tensor, shape: Sequence[int], *_: Sequence[int]) -> torch.Tensor:
    """The tensor for the gradient, in the memory format of `places`."""
    is_last = places.is_contiguous(memory_format=torch.channels_last_3d) and not places.is_contiguous()
    memory_format = torch.channels_last_3d if is_last else torch.contiguous_format
    return torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=memory_format)


def _windows(offset: int, size: int, count: int, stride: int, padding: int) -> tuple[slice, slice]:
    """(windows, positions): the windows whose element at `offset` is inside of an axis of `size` positions, and these positions."""
    first = max(0, -((offset - padding) // stride))  # the first with window * stride + offset >= padding
    end = min(count, (size - 1 + padding - offset) // stride + 1)
    start = first * stride + offset - padding
    return slice(first, end), slice(start, start + (end - first - 1) * stride + 1, stride)
