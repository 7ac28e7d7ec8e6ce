"""The memory-bound steps of a vision transformer in Triton, each reading and writing its values once.

`quick_gelu` and `average_2x2` give the bits of torch's own operations. `add_layer_norm` gives their sum's bits; its
statistics are summed in another order, as those of another batch size are elsewhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl
from triton.language.extra import libdevice

if TYPE_CHECKING:
    import torch

_TILE = 4096


def quick_gelu(x: torch.Tensor) -> torch.Tensor:
    """Return `x * sigmoid(1.702 * x)` in place of `x`, rounded after each of the three steps as torch rounds.

    Args:
        x: contiguous, fp16 or bf16, on the current GPU.
    """
    count = x.numel()
    _quick_gelu_kernel[(triton.cdiv(count, _TILE),)](x, count, _TILE, num_warps=8)
    return x


def add_layer_norm(
    residual: torch.Tensor, x: torch.Tensor, norm: torch.nn.LayerNorm
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `residual + x`, in place of `residual`, and its layer norm, in place of `x`.

    Args:
        residual: contiguous (..., width), fp16 or bf16, on the current GPU.
        x: like it.
        norm: of the last axis, with weight and bias.
    """
    width = residual.shape[-1]
    rows = residual.numel() // width
    _add_layer_norm_kernel[(rows,)](
        residual, x, norm.weight, norm.bias, width, norm.eps, triton.next_power_of_2(width),
        num_warps=4,
    )  # fmt: skip
    return residual, x


def average_2x2(features: torch.Tensor, side: int) -> torch.Tensor:
    """Return the averages of 2 x 2 neighbours, (B, (side // 2)**2, D), of contiguous features (B, side**2, D)."""
    count, _, width = features.shape
    half = side // 2
    out = features.new_empty((count, half * half, width))
    tile = min(triton.next_power_of_2(width), _TILE)
    grid = (count * half * half, triton.cdiv(width, tile))
    _average_kernel[grid](out, features, side, half, width, tile, num_warps=4)
    return out


def patches(frames: torch.Tensor, table: torch.Tensor, size: int, padded: int) -> torch.Tensor:
    """Return the pixels of each patch in a row, (B * side**2, padded), in the dtype of `table`.

    Args:
        frames: contiguous (B, H, W, 3) uint8.
        table: contiguous (3, 256), what becomes of each value of a channel.
        size: a patch's side in pixels; what is left of a frame beside whole patches is not used.
        padded: the length of a row; what lies beyond channel x row x column of a patch is zero.
    """
    count, height, width, _ = frames.shape
    rows, columns = height // size, width // size
    out = table.new_empty((count * rows * columns, padded))
    _patches_kernel[(len(out),)](
        out, frames, table, rows, columns, height, width, size, padded,
        triton.next_power_of_2(padded), num_warps=4,
    )  # fmt: skip
    return out


@triton.jit
def _quick_gelu_kernel(values, count, tile: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * tile + tl.arange(0, tile)
    x = tl.load(values + at, mask=at < count, other=0.0)
    kind = values.dtype.element_ty
    scaled = (x.to(tl.float32) * 1.702).to(kind)
    gate = tl.div_rn(1.0, 1.0 + libdevice.exp(-scaled.to(tl.float32))).to(kind)
    tl.store(values + at, (x.to(tl.float32) * gate.to(tl.float32)).to(kind), mask=at < count)


@triton.jit
def _add_layer_norm_kernel(residual, x, weight, bias, width, eps, tile: tl.constexpr):
    at = tl.arange(0, tile)
    inside = at < width
    start = tl.program_id(0).to(tl.int64) * width
    kind = residual.dtype.element_ty
    first = tl.load(residual + start + at, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(x + start + at, mask=inside, other=0.0).to(tl.float32)
    total = (first + second).to(kind)
    tl.store(residual + start + at, total, mask=inside)
    value = total.to(tl.float32)
    mean = tl.sum(value) / width
    centred = tl.where(inside, value - mean, 0.0)
    scale = libdevice.rsqrt(tl.sum(centred * centred) / width + eps)
    w = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(bias + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(x + start + at, (w * (scale * centred) + b).to(kind), mask=inside)


@triton.jit
def _average_kernel(out, features, side, half, width, tile: tl.constexpr):
    place = tl.program_id(0).to(tl.int64)
    frame = place // (half * half)
    row = place % (half * half) // half * 2
    column = place % half * 2
    at = tl.program_id(1) * tile + tl.arange(0, tile)
    inside = at < width
    first = features + ((frame * side + row) * side + column) * width + at
    below = first + side * width
    total = tl.load(first, mask=inside, other=0.0).to(tl.float32)
    total += tl.load(first + width, mask=inside, other=0.0).to(tl.float32)
    total += tl.load(below, mask=inside, other=0.0).to(tl.float32)
    total += tl.load(below + width, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + place * width + at, (total / 4.0).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _patches_kernel(
    out, frames, table, rows, columns, height, width, size, padded, tile: tl.constexpr
):
    patch = tl.program_id(0).to(tl.int64)
    frame = patch // (rows * columns)
    top = patch % (rows * columns) // columns * size
    left = patch % columns * size
    at = tl.arange(0, tile)
    channel = at // (size * size)
    row = at % (size * size) // size
    inside = channel < 3
    pixel = frames + ((frame * height + top + row) * width + left + at % size) * 3 + channel
    value = tl.load(pixel, mask=inside, other=0).to(tl.int32)
    result = tl.load(table + channel * 256 + value, mask=inside, other=0.0)
    tl.store(out + patch * padded + at, result, mask=at < padded)
