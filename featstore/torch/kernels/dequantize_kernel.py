"""The fused dequantization kernel: each int8 is read once, each float written once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_BLOCK = 4096


@triton.jit
def _dequantize(
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


def launch(out: torch.Tensor, stored: torch.Tensor, scale: torch.Tensor) -> None:
    """Dequantize contiguous `stored` (N, D) int8 into contiguous `out` (N, D) of any float dtype, on their GPU."""
    rows, columns = stored.shape
    row_step, column_step = int(scale.shape[0] > 1), int(scale.shape[1] > 1)
    grid = (triton.cdiv(rows * columns, _BLOCK),)
    with torch.cuda.device(out.device):
        _dequantize[grid](
            out, stored, scale, rows * columns, columns, row_step, column_step, _BLOCK, num_warps=8
        )
