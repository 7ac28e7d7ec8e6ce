"""Encoder features to stored values on their own device, bit for bit as featstore.records.quantization does it."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import torch

from featstore.records.quantization import (
    BF16_MAX,
    INT8_MAX,
    MIN_CHANNEL_SCALE,
    MIN_SCALE,
    MIN_TOKEN_SCALE,
    NORM_FLOOR,
    QuantError,
    percentile_99,
    refuse_large,
    refuse_non_finite,
    refuse_overflow,
)
from featstore.records.storage import STORED_DTYPES, Storage
from featstore.torch.kernels import eager
from featstore.torch.kernels.dequantize import fused_passes

Scales: TypeAlias = tuple[torch.Tensor, ...]
# Stored values as torch sees them.
TORCH_DTYPES = {
    name: torch.bfloat16 if name == "bf16" else torch.from_numpy(np.empty(0, dtype)).dtype
    for name, dtype in STORED_DTYPES.items()
}


def quantize(features: torch.Tensor, storage: Storage) -> tuple[torch.Tensor, Scales]:
    """Quantize features on their own device, bit for bit as featstore.records.quantization does.

    Args:
        features: (rows, width) of any floating-point dtype.
        storage: how values are stored.

    Returns:
        `(stored, scales)`: stored (rows, width) of the dtype; the float32 scales that broadcast over it, of
        `storage.scale_shapes`.

    Raises:
        QuantizeError: a value is not finite, or too large to be stored so.
    """
    scales = _scales(features, storage, eager)
    stored = eager.store(features, scales, TORCH_DTYPES[storage.values])
    if not scales or not all(bool(scale.isfinite().all()) for scale in scales):
        _check(
            _count_non_finite(features),
            _count_non_finite(stored),
            features.numel(),
            storage.values,
        )
    refuse_large(scales)
    return stored, scales


def measure_error(features: torch.Tensor, stored: torch.Tensor, scales: Scales) -> QuantError:
    """Return how far stored values are from features, summed in float64 on their device.

    Args:
        features: (rows, width) of any floating-point dtype.
        stored: what `quantize` returned for them.
        scales: the same.
    """
    return _error(_summarize(eager.measure(features, stored, scales)).tolist())


def queue_quantize(
    features: torch.Tensor, storage: Storage
) -> tuple[torch.Tensor, Scales, torch.Tensor]:
    """Return `(stored, scales, measures)` as `quantize` and `measure_error` would, without waiting for the device.

    measures: float64, for `read_measures`, which raises what `quantize` raises.
    """
    passes = _passes_for(features)
    scales = _scales(features, storage, passes)
    stored, measures = passes.store_and_measure(features, scales, TORCH_DTYPES[storage.values])
    return stored, scales, _summarize(measures)


def read_measures(measures: list[float], total: int, storage: Storage) -> QuantError:
    """Return the error of `total` values from their measures; QuantizeError if one cannot be stored."""
    non_finite, overflowed = measures[5:7]
    _check(int(non_finite), int(overflowed), total, storage.values)
    return _error(measures)


def _scales(features: torch.Tensor, storage: Storage, passes: Any) -> Scales:
    if storage.values != "int8":
        return ()
    if storage.granularity == "channel_token":
        return _two_scales(features, passes)
    dims = {"channel": (0,), "token": (1,), "tensor": (0, 1)}[storage.granularity]
    # One pass without a copy of the features; it keeps NaN and infinity.
    largest = torch.linalg.vector_norm(features, torch.inf, dim=dims, keepdim=True).float()
    return (_divide(largest, INT8_MAX).clamp_(min=MIN_SCALE),)


def _two_scales(features: torch.Tensor, passes: Any) -> Scales:
    """Return the scales of the tokens (rows, 1) and of the channels (1, width), step by step as numpy computes them."""
    roots = _divide(passes.square_sums(features), features.shape[1]).sqrt_().float()
    t = roots.clamp_(max=BF16_MAX).bfloat16().float().clamp_(min=MIN_TOKEN_SCALE)
    c = passes.channel_maxima(features, t).clamp_(min=MIN_CHANNEL_SCALE)
    t = _divide(passes.token_maxima(features, c), INT8_MAX)
    return t.clamp_(min=MIN_TOKEN_SCALE), c


def _divide(values: torch.Tensor, number: int) -> torch.Tensor:
    # On CUDA torch multiplies by the reciprocal of a number, which rounds otherwise; by a tensor it divides.
    return values / torch.full_like(values, number)


def _summarize(measures: torch.Tensor) -> torch.Tensor:
    """Return the measures of all rows together, and the two errors of tokens: (9,) float64, which `_error` reads."""
    sums, bad = measures[:, :4].sum(0), measures[:, 5:].sum(0)
    largest = measures[:, 4].amax(0, keepdim=True)
    return torch.cat([sums, largest, bad, _token_errors(measures[:, 1], measures[:, 3])])


def _token_errors(original: torch.Tensor, difference: torch.Tensor) -> torch.Tensor:
    """Return the 99th percentile and the largest of the tokens' errors, as `relative_token_errors` has them.

    Both arguments are sums of squares, (rows,) float64.
    """
    norms, gaps = original.sqrt(), difference.sqrt()
    median = norms.sort().values[(len(norms) - 1) // 2]
    floor = torch.maximum(norms, NORM_FLOOR * median)
    errors = torch.where(floor > 0, gaps / torch.where(floor > 0, floor, 1), (gaps > 0).double())
    ranked = errors.sort().values
    return torch.stack([ranked[percentile_99(len(ranked))], ranked[-1]])


def _error(measures: list[float]) -> QuantError:
    dot, original, kept, difference, largest, _, _, token_p99, token_max = measures
    return QuantError.from_sums(
        dot=dot,
        original=original,
        stored=kept,
        difference=difference,
        max_abs=largest,
        token_p99=token_p99,
        token_max=token_max,
    )


def _check(non_finite: int, overflowed: int, total: int, values: str) -> None:
    refuse_non_finite(non_finite, total)
    refuse_overflow(overflowed, total, values)


def _count_non_finite(values: torch.Tensor) -> int:
    return values.numel() - int(values.isfinite().sum())


def _passes_for(features: torch.Tensor) -> Any:
    """Return the module whose passes suit `features`: fused on a GPU, if they are contiguous and Triton compiles."""
    if features.device.type == "cuda" and features.is_contiguous():
        return fused_passes() or eager
    return eager
