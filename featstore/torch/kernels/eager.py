"""The passes over features that quantizing takes, in torch's own operations, block by block; on any device.

`featstore.torch.kernels.fused` has the same functions for a GPU.
"""

from __future__ import annotations

import torch

from featstore.records.quantization import INT8_MAX
from featstore.torch.kernels.dequantize import blocks, part, product, restore

# Of each row, in float64: the dot product of features and stored values, the sums of squares of the one, the other and
# their difference, the largest difference, and how many features and how many stored values are not finite.
MEASURES = 7


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
