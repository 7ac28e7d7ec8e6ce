"""The memory-bound steps of a Llama-like decoder layer in Triton, with the bits of torch's own operations.

Each rounds where torch's kernels round between two operations. The mean of squares is torch's, for its order of
summing.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from triton.language.extra import libdevice

_TILE = 4096


def rms_norm(
    hidden: torch.Tensor, norm: Any, update: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `hidden + update`, in place of `update`, and its norm; without `update`, `hidden` and its norm.

    Args:
        hidden: contiguous (..., width), fp16 or bf16, on the current GPU.
        norm: a Qwen2RMSNorm, or another with `weight` (width,) and `variance_epsilon`.
        update: like `hidden`.
    """
    added = update is not None
    total = hidden if update is None else update
    width, count = hidden.shape[-1], hidden.numel()
    squares = torch.empty_like(hidden, dtype=torch.float32)
    _add_square_kernel[(triton.cdiv(count, _TILE),)](
        hidden, total, squares, count, added, _TILE, num_warps=8
    )
    factors = torch.rsqrt(squares.mean(-1, keepdim=True) + norm.variance_epsilon)
    normed = torch.empty_like(hidden)
    _scale_kernel[(count // width,)](
        normed, total, factors, norm.weight, width, triton.next_power_of_2(width), num_warps=8
    )
    return total, normed


def rotate(heads: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """Return queries or keys with rotary embeddings, in their place.

    Args:
        heads: contiguous (1, rows, heads * width), fp16 or bf16, on the current GPU.
        cosines: contiguous (1, rows, width).
        sines: like them.
    """
    rows, half = heads.shape[1], cosines.shape[-1] // 2
    count = heads.shape[-1] // (2 * half)
    _rotate_kernel[(rows,)](
        heads,
        cosines,
        sines,
        count,
        triton.next_power_of_2(count),
        half,
        triton.next_power_of_2(half),
        num_warps=4,
        enable_fp_fusion=False,  # a product fused into a sum is not rounded
    )
    return heads


def silu_multiply(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Return `silu(gate) * up`, in place of `gate`; both contiguous, fp16 or bf16, on the current GPU."""
    count = gate.numel()
    _silu_multiply_kernel[(triton.cdiv(count, _TILE),)](gate, up, count, _TILE, num_warps=8)
    return gate


@triton.jit
def _add_square_kernel(hidden, total, squares, count, added: tl.constexpr, tile: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * tile + tl.arange(0, tile)
    inside = at < count
    value = tl.load(hidden + at, mask=inside, other=0.0)
    if added:
        update = tl.load(total + at, mask=inside, other=0.0)
        value = (value.to(tl.float32) + update.to(tl.float32)).to(value.dtype)
        tl.store(total + at, value, mask=inside)
    exact = value.to(tl.float32)
    tl.store(squares + at, exact * exact, mask=inside)


@triton.jit
def _scale_kernel(normed, total, factors, weight, width, tile: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, tile)
    inside = at < width
    kind = total.dtype.element_ty
    value = tl.load(total + row * width + at, mask=inside, other=0.0).to(tl.float32)
    scaled = (value * tl.load(factors + row)).to(kind).to(tl.float32)
    w = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(normed + row * width + at, (w * scaled).to(kind), mask=inside)


@triton.jit
def _rotate_kernel(
    heads, cosines, sines, count,
    padded: tl.constexpr, half: tl.constexpr, padded_half: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, padded)[:, None]
    at = tl.arange(0, padded_half)[None, :]
    inside = (head < count) & (at < half)
    kind = heads.dtype.element_ty
    place = heads + (row * count + head) * (2 * half) + at
    a = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(place + half, mask=inside, other=0.0).to(tl.float32)
    start = row * (2 * half) + at
    cos_a = tl.load(cosines + start, mask=at < half, other=0.0).to(tl.float32)
    cos_b = tl.load(cosines + start + half, mask=at < half, other=0.0).to(tl.float32)
    sin_a = tl.load(sines + start, mask=at < half, other=0.0).to(tl.float32)
    sin_b = tl.load(sines + start + half, mask=at < half, other=0.0).to(tl.float32)
    first = (a * cos_a).to(kind).to(tl.float32) + (-b * sin_a).to(kind).to(tl.float32)
    second = (b * cos_b).to(kind).to(tl.float32) + (a * sin_b).to(kind).to(tl.float32)
    tl.store(place, first.to(kind), mask=inside)
    tl.store(place + half, second.to(kind), mask=inside)


@triton.jit
def _silu_multiply_kernel(gate, up, count, tile: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * tile + tl.arange(0, tile)
    inside = at < count
    kind = gate.dtype.element_ty
    x = tl.load(gate + at, mask=inside, other=0.0).to(tl.float32)
    silu = tl.div_rn(x, 1.0 + libdevice.exp(-x)).to(kind).to(tl.float32)
    factor = tl.load(up + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(gate + at, (silu * factor).to(kind), mask=inside)
