"""The passes over features that quantizing takes, in torch's own operations, block by block; on any device.

`featstore.torch.kernels.fused` has the same functions for a GPU.
"""

from __future__ import annotations

import functools

import torch

from featstore.records.quantization import INT8_MAX

# Of each row, in float64: the dot product of features and stored values, the sums of squares of the one, the other and
# their difference, the largest difference, and how many features and how many stored values are not finite.
MEASURES = 7
# On a CPU a few dozen rows per thread stay in its cache (3.4x the time of a memcpy, 12.5x for all at once); on a GPU
# this bounds the float32 temporary to some 60 MB.
_CPU_ROWS = 32
_GPU_ROWS = 4096


def square_sums(features: torch.Tensor) -> torch.Tensor:
    """Return the sum of squares of each row, (rows, 1) float64."""
    sums = torch.empty((len(features), 1), dtype=torch.float64, device=features.device)
    for rows in blocks(features):
        sums[rows] = features[rows].double().square().sum(1, keepdim=True)
    return sums


def channel_maxima(features: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Return the largest `|x| / t` of each channel, (1, width) float32; t: (rows, 1)."""
    maxima = t.new_zeros((1, features.shape[1]))
    for rows in blocks(features):
        ratio = features[rows].float().abs() / t[rows]
        maxima = torch.maximum(maxima, ratio.amax(0, keepdim=True))
    return maxima


def token_maxima(features: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """Return the largest `|x| / c` of each row, (rows, 1) float32; c: (1, width)."""
    maxima = c.new_empty((len(features), 1))
    for rows in blocks(features):
        ratio = features[rows].float().abs() / c
        maxima[rows] = ratio.amax(1, keepdim=True)
    return maxima


def store(
    features: torch.Tensor, scales: tuple[torch.Tensor, ...], dtype: torch.dtype
) -> torch.Tensor:
    """Return features as they are stored: int8 by their scales, or rounded to another float if there are none."""
    if not scales:
        return features.to(dtype)
    stored = torch.empty(features.shape, dtype=dtype, device=features.device)
    for rows in blocks(features):
        ratio = features[rows].float() / product(part(scales, rows))
        stored[rows] = ratio.round_().clamp_(-INT8_MAX, INT8_MAX).to(dtype)
    return stored


def measure(
    features: torch.Tensor, stored: torch.Tensor, scales: tuple[torch.Tensor, ...]
) -> torch.Tensor:
    """Return the MEASURES of each row, (rows, 7) float64."""
    found = torch.empty((len(features), MEASURES), dtype=torch.float64, device=features.device)
    for rows in blocks(features):
        before = features[rows].double()
        after = restore(stored, scales, rows).double()
        gap = before - after
        sums = [before * after, before.square(), after.square(), gap.square()]
        bad = [(~values[rows].isfinite()).sum(1) for values in (features, stored)]
        columns = [*(values.sum(1) for values in sums), gap.abs().amax(1), *bad]
        found[rows] = torch.stack([column.double() for column in columns], 1)
    return found


def store_and_measure(
    features: torch.Tensor, scales: tuple[torch.Tensor, ...], dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what `store` and `measure` do."""
    stored = store(features, scales, dtype)
    return stored, measure(features, stored, scales)


def restore(stored: torch.Tensor, scales: tuple[torch.Tensor, ...], rows: slice) -> torch.Tensor:
    """Return `rows` of stored values as float32."""
    values = stored[rows].float()
    return values.mul_(product(part(scales, rows))) if scales else values


def product(scales: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Return the scale of each value, or what broadcasts to it, rounded to float32."""
    return functools.reduce(torch.mul, scales)


def blocks(values: torch.Tensor) -> list[slice]:
    """Return slices of rows that cover `values`, in order."""
    on_cpu = values.device.type == "cpu"
    step = _CPU_ROWS * torch.get_num_threads() if on_cpu else _GPU_ROWS
    return [slice(i, min(i + step, len(values))) for i in range(0, len(values), step)]


def part(scales: tuple[torch.Tensor, ...], rows: slice) -> tuple[torch.Tensor, ...]:
    """Return the scales of `rows`: those of the tokens are sliced, others are the same for all rows."""
    return tuple(scale[rows] if len(scale) > 1 else scale for scale in scales)
