"""The passes over features in Triton: each reads a value once, and storing measures the error as well.

They give the bits of `featstore.torch.kernels.eager`, on the current GPU, which must be that of the features.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl

from featstore.torch.kernels.eager import MEASURES

_TILE = 4096  # values of several rows
_COLUMNS = 512  # of a tile; 3,584 are seven of them
_CHUNK = 128  # rows of which one program finds the largest values of channels


def dequantize(out: torch.Tensor, stored: torch.Tensor, scales: tuple[torch.Tensor, ...]) -> None:
    """Dequantize contiguous `stored` (N, D) int8 into contiguous `out` (N, D) of any float dtype, on their GPU."""
    (rows, columns), (t, c) = stored.shape, _both(scales)
    width = min(triton.next_power_of_2(columns), _COLUMNS)
    height = _TILE // width
    grid = (triton.cdiv(rows, height), triton.cdiv(columns, width))
    _dequantize_kernel[grid](
        out, stored, t, c, rows, columns, *_steps(t, c), height, width, num_warps=8
    )


def square_sums(features: torch.Tensor) -> torch.Tensor:
    """Return the sum of squares of each row, (rows, 1) float64, of contiguous features (N, D)."""
    sums = torch.empty((len(features), 1), dtype=torch.float64, device=features.device)
    _square_kernel[(len(features),)](
        sums, features, features.shape[1], _row_tile(features), num_warps=4
    )
    return sums


def channel_maxima(features: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Return the largest `|x| / t` of each channel, (1, width) float32; t: (rows, 1)."""
    rows, columns = features.shape
    width = min(triton.next_power_of_2(columns), 128)
    height = _TILE // width
    chunks = triton.cdiv(rows, _CHUNK)
    maxima = t.new_empty((chunks, columns))
    _channel_kernel[(chunks, triton.cdiv(columns, width))](
        maxima, features, t, rows, columns, _CHUNK, height, width, num_warps=8
    )
    return maxima.amax(0, keepdim=True)


def token_maxima(features: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """Return the largest `|x| / c` of each row, (rows, 1) float32; c: (1, width)."""
    maxima = c.new_empty((len(features), 1))
    _token_kernel[(len(features),)](
        maxima, features, c, features.shape[1], _row_tile(features), num_warps=4
    )
    return maxima


def store_and_measure(
    features: torch.Tensor, scales: tuple[torch.Tensor, ...], dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return contiguous features (N, D) as they are stored, and the MEASURES of each row, without waiting."""
    (rows, columns), device = features.shape, features.device
    t, c = _both(scales or (torch.ones((1, 1), device=device),))
    stored = torch.empty(features.shape, dtype=dtype, device=device)
    found = torch.empty((rows, MEASURES), dtype=torch.float64, device=device)
    _store_kernel[(rows,)](
        stored, found, features, t, c, columns, *_steps(t, c), MEASURES, _row_tile(features),
        dtype == torch.int8, num_warps=4,
    )  # fmt: skip
    return stored, found


def _both(scales: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return two scales, of which one may be 1: multiplying by it changes no bit."""
    first, *more = scales
    return first, more[0] if more else _one(first.device)


@functools.cache
def _one(device: torch.device) -> torch.Tensor:
    return torch.ones((1, 1), device="cpu").to(device)  # waits: kernels of any stream may read it


def _steps(t: torch.Tensor, c: torch.Tensor) -> list[int]:
    """Return how far apart the scales of neighbours are, of each by row and by column; 0 if they share one."""
    return [int(size > 1) for scale in (t, c) for size in scale.shape]


def _row_tile(features: torch.Tensor) -> int:
    return min(int(triton.next_power_of_2(features.shape[1])), _COLUMNS)


@triton.jit
def _dequantize_kernel(
    out, stored, t, c, rows, columns,
    t_row: tl.constexpr, t_column: tl.constexpr, c_row: tl.constexpr, c_column: tl.constexpr,
    height: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * height + tl.arange(0, height)[:, None]
    column = tl.program_id(1) * width + tl.arange(0, width)[None, :]
    inside = (row < rows) & (column < columns)
    values = tl.load(stored + row * columns + column, mask=inside, other=0).to(tl.float32)
    first = tl.load(t + row * t_row + column * t_column, mask=inside, other=0.0)
    second = tl.load(c + row * c_row + column * c_column, mask=inside, other=0.0)
    result = values * (first * second)
    tl.store(out + row * columns + column, result.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _square_kernel(sums, features, columns, tile: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    total = tl.zeros([tile], tl.float64)
    for start in range(0, columns, tile):
        at = start + tl.arange(0, tile)
        x = tl.load(features + row * columns + at, mask=at < columns, other=0.0).to(tl.float64)
        total += x * x
    tl.store(sums + row, tl.sum(total))


@triton.jit
def _channel_kernel(
    maxima, features, t, rows, columns,
    chunk: tl.constexpr, height: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * chunk
    column = tl.program_id(1) * width + tl.arange(0, width)
    largest = tl.zeros([width], tl.float32)
    for start in range(0, chunk, height):
        row = first + start + tl.arange(0, height)
        there = (row < rows) & (row < first + chunk)
        inside = there[:, None] & (column < columns)[None, :]
        at = row[:, None] * columns + column[None, :]
        x = tl.load(features + at, mask=inside, other=0.0).to(tl.float32)
        factors = tl.load(t + row, mask=there, other=1.0)
        # `/` differs in the last bit
        ratio = tl.div_rn(tl.abs(x), tl.broadcast_to(factors[:, None], (height, width)))
        largest = tl.maximum(largest, tl.max(ratio, 0))
    tl.store(maxima + tl.program_id(0) * columns + column, largest, mask=column < columns)


@triton.jit
def _token_kernel(maxima, features, c, columns, tile: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    largest = tl.zeros([tile], tl.float32)
    for start in range(0, columns, tile):
        at = start + tl.arange(0, tile)
        inside = at < columns
        x = tl.load(features + row * columns + at, mask=inside, other=0.0).to(tl.float32)
        factors = tl.load(c + at, mask=inside, other=1.0)
        largest = tl.maximum(largest, tl.div_rn(tl.abs(x), factors))
    tl.store(maxima + row, tl.max(largest))


@triton.jit
def _store_kernel(
    stored, found, features, t, c, columns,
    t_row: tl.constexpr, t_column: tl.constexpr, c_row: tl.constexpr, c_column: tl.constexpr,
    measures: tl.constexpr, tile: tl.constexpr, is_int8: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    dot = tl.zeros([tile], tl.float64)
    before_squares = tl.zeros([tile], tl.float64)
    after_squares = tl.zeros([tile], tl.float64)
    gap_squares = tl.zeros([tile], tl.float64)
    largest = tl.zeros([tile], tl.float64)
    bad = tl.zeros([tile], tl.int32)
    overflowed = tl.zeros([tile], tl.int32)
    for start in range(0, columns, tile):
        at = start + tl.arange(0, tile)
        inside = at < columns
        x = tl.load(features + row * columns + at, mask=inside, other=0.0).to(tl.float32)
        if is_int8:
            first = tl.load(t + row * t_row + at * t_column, mask=inside, other=1.0)
            second = tl.load(c + row * c_row + at * c_column, mask=inside, other=1.0)
            factors = first * second
            ratio = tl.minimum(tl.maximum(tl.div_rn(x, factors), -127.0), 127.0)
            # Adding 1.5 * 2**23 leaves no bits for a fraction: the sum rounds half to even, subtracting is exact.
            rounded = (ratio + 12582912.0) - 12582912.0
            kept = rounded.to(tl.int8)
            restored = rounded * factors
            whole = rounded
        else:
            kept = x.to(stored.dtype.element_ty)
            restored = kept.to(tl.float32)
            whole = restored
        tl.store(stored + row * columns + at, kept, mask=inside)
        before = x.to(tl.float64)
        after = restored.to(tl.float64)
        gap = before - after
        dot += before * after
        before_squares += before * before
        after_squares += after * after
        gap_squares += gap * gap
        largest = tl.maximum(largest, tl.abs(gap))
        # `<=` is false for NaN too; int8 overflows only if its scale does, which is found there.
        bad += tl.where(tl.abs(x) <= 3.4028234663852886e38, 0, 1)
        overflowed += tl.where(tl.abs(whole) <= 3.4028234663852886e38, 0, 1)
    place = found + row * measures
    tl.store(place, tl.sum(dot))
    tl.store(place + 1, tl.sum(before_squares))
    tl.store(place + 2, tl.sum(after_squares))
    tl.store(place + 3, tl.sum(gap_squares))
    tl.store(place + 4, tl.max(largest))
    tl.store(place + 5, tl.sum(bad).to(tl.float64))
    tl.store(place + 6, tl.sum(overflowed).to(tl.float64))
