"""The fused Triton kernels: each value is read once and written once, and quantizing measures its error too."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_BLOCK = 4096
_MEASURES = 6


@triton.jit
def _dequantize_kernel(
    out,
    stored,
    scale,
    total,
    columns,
    row_step: tl.constexpr,
    column_step: tl.constexpr,
    block: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = at < total
    values = tl.load(stored + at, mask=inside, other=0).to(tl.float32)
    factors = tl.load(
        scale + (at // columns) * row_step + (at % columns) * column_step, mask=inside, other=0.0
    )
    tl.store(out + at, (values * factors).to(out.dtype.element_ty), mask=inside)


def dequantize(out: torch.Tensor, stored: torch.Tensor, scale: torch.Tensor) -> None:
    """Dequantize contiguous `stored` (N, D) int8 into contiguous `out` (N, D) of any float dtype, on their GPU."""
    rows, columns = stored.shape
    row_step, column_step = int(scale.shape[0] > 1), int(scale.shape[1] > 1)
    grid = (triton.cdiv(rows * columns, _BLOCK),)
    with torch.cuda.device(out.device):
        _dequantize_kernel[grid](
            out, stored, scale, rows * columns, columns, row_step, column_step, _BLOCK, num_warps=8
        )


@triton.jit
def _quantize_kernel(
    stored,
    measures,
    features,
    scale,
    total,
    columns,
    row_step: tl.constexpr,
    column_step: tl.constexpr,
    block: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    at = program * block + tl.arange(0, block)
    inside = at < total
    x = tl.load(features + at, mask=inside, other=0.0).to(tl.float32)
    factors = tl.load(
        scale + (at // columns) * row_step + (at % columns) * column_step, mask=inside, other=1.0
    )
    ratio = tl.div_rn(x, factors)  # `/` differs in the last bit
    ratio = tl.minimum(tl.maximum(ratio, -127.0), 127.0)
    # Adding 1.5 * 2**23 leaves no bits for a fraction: the sum rounds half to even, subtracting is exact.
    rounded = (ratio + 12582912.0) - 12582912.0
    tl.store(stored + at, rounded.to(tl.int8), mask=inside)

    before = x.to(tl.float64)
    after = (rounded * factors).to(tl.float64)
    gap = before - after
    finite = tl.abs(x) <= 3.4028234663852886e38  # false for NaN too
    row = measures + program * 6
    tl.store(row, tl.sum(before * after))
    tl.store(row + 1, tl.sum(before * before))
    tl.store(row + 2, tl.sum(after * after))
    tl.store(row + 3, tl.sum(gap * gap))
    tl.store(row + 4, tl.max(tl.abs(gap)))
    tl.store(row + 5, tl.sum(tl.where(finite, 0, 1)).to(tl.float64))


def quantize(features: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `(stored, measures)` of contiguous `features` (N, D) of any float dtype on their GPU, without waiting.

    scale: float32 that broadcasts over them. measures: (7,) float64, as `queue_quantize` returns them.
    """
    rows, columns = features.shape
    row_step, column_step = int(scale.shape[0] > 1), int(scale.shape[1] > 1)
    programs = triton.cdiv(rows * columns, _BLOCK)
    stored = torch.empty(features.shape, dtype=torch.int8, device=features.device)
    found = torch.empty((programs, _MEASURES), dtype=torch.float64, device=features.device)
    _quantize_kernel[(programs,)](
        stored,
        found,
        features,
        scale,
        rows * columns,
        columns,
        row_step,
        column_step,
        _BLOCK,
        num_warps=8,
    )
    sums = found.sum(0)
    none = sums.new_zeros(1)  # int8 overflows only if a value is not finite
    return stored, torch.cat([sums[:4], found[:, 4].amax(0, keepdim=True), sums[5:], none])
