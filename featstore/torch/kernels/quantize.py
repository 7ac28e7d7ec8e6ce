"""Encoder features to stored values on their own device, bit for bit as featstore.records.quantization does it."""

from __future__ import annotations

import functools
import logging
from typing import Any, TypeAlias

import numpy as np
import torch

from featstore.errors import QuantizeError
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
)
from featstore.records.storage import STORED_DTYPES, Storage
from featstore.torch.kernels.dequantize import blocks, part, product, restore

Scales: TypeAlias = tuple[torch.Tensor, ...]
log = logging.getLogger("featstore.torch")
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
    stored, scales = _store(features, storage)
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
    return _error(_measure(features, stored, scales).tolist())


def queue_quantize(
    features: torch.Tensor, storage: Storage
) -> tuple[torch.Tensor, Scales, torch.Tensor]:
    """Return `(stored, scales, measures)` as `quantize` and `measure_error` would, without waiting for the device.

    measures: float64, for `read_measures`, which raises what `quantize` raises.
    """
    kernel = _kernel_for(features, storage)
    if kernel is not None:
        (scale,) = scales = _scales(features, storage.granularity)
        stored, sums = kernel(features, scale)
        return stored, scales, torch.cat([sums, _measure_tokens(features, stored, scales)])
    stored, scales = _store(features, storage)
    bad = torch.stack([(~values.isfinite()).sum() for values in (features, stored)])
    measures = _measure(features, stored, scales)
    return stored, scales, torch.cat([measures[:5], bad.double(), measures[5:]])


def read_measures(measures: list[float], total: int, storage: Storage) -> QuantError:
    """Return the error of `total` values from their measures; QuantizeError if one cannot be stored."""
    non_finite, overflowed = measures[5:7]
    _check(int(non_finite), int(overflowed), total, storage.values)
    return _error(measures[:5] + measures[7:])


def _store(features: torch.Tensor, storage: Storage) -> tuple[torch.Tensor, Scales]:
    if storage.values != "int8":
        return features.to(TORCH_DTYPES[storage.values]), ()
    scales = _scales(features, storage.granularity)
    stored = torch.empty(features.shape, dtype=torch.int8, device=features.device)
    for rows in blocks(features):
        ratio = features[rows].float() / product(part(scales, rows))
        stored[rows] = ratio.round_().clamp_(-INT8_MAX, INT8_MAX).to(torch.int8)
    return stored, scales


def _scales(features: torch.Tensor, granularity: str) -> Scales:
    if granularity == "channel_token":
        return _two_scales(features)
    dims = {"channel": (0,), "token": (1,), "tensor": (0, 1)}[granularity]
    # One pass without a copy of the features; it keeps NaN and infinity.
    largest = torch.linalg.vector_norm(features, torch.inf, dim=dims, keepdim=True).float()
    return (_divide(largest, INT8_MAX).clamp_(min=MIN_SCALE),)


def _two_scales(features: torch.Tensor) -> Scales:
    """Return the scales of the tokens (rows, 1) and of the channels (1, width), step by step as numpy computes them."""
    t = torch.empty((len(features), 1), dtype=torch.float32, device=features.device)
    c = t.new_full((1, features.shape[1]), MIN_CHANNEL_SCALE)
    for rows in blocks(features):
        squares = features[rows].double().square().sum(1, keepdim=True)
        t[rows] = _divide(squares, features.shape[1]).sqrt_()
    t = t.clamp_(max=BF16_MAX).bfloat16().float().clamp_(min=MIN_TOKEN_SCALE)
    for rows in blocks(features):
        ratio = features[rows].float().abs() / t[rows]
        c = torch.maximum(c, ratio.amax(0, keepdim=True))
    for rows in blocks(features):
        ratio = features[rows].float().abs() / c
        t[rows] = _divide(ratio.amax(1, keepdim=True), INT8_MAX)
    return t.clamp_(min=MIN_TOKEN_SCALE), c


def _divide(values: torch.Tensor, number: int) -> torch.Tensor:
    # On CUDA torch multiplies by the reciprocal of a number, which rounds otherwise; by a tensor it divides.
    return values / torch.full_like(values, number)


def _measure(features: torch.Tensor, stored: torch.Tensor, scales: Scales) -> torch.Tensor:
    """Return, in float64, what `_error` reads.

    These are the dot product, the sums of squares of features, stored and difference, the largest difference, and the
    two errors of tokens.
    """
    sums = torch.empty((4, len(features)), dtype=torch.float64, device=features.device)
    largest = torch.zeros(1, dtype=torch.float64, device=features.device)
    for rows in blocks(features):
        before = features[rows].double()
        after = restore(stored, scales, rows).double()
        gap = before - after
        parts = [before * after, before.square(), after.square(), gap.square()]
        sums[:, rows] = torch.stack([values.sum(1) for values in parts])
        largest = torch.maximum(largest, gap.abs().max())
    return torch.cat([sums.sum(1), largest, _token_errors(sums[1], sums[3])])


def _measure_tokens(features: torch.Tensor, stored: torch.Tensor, scales: Scales) -> torch.Tensor:
    """Return the 99th percentile and the largest of the tokens' errors, float64."""
    squares = torch.empty((2, len(features)), dtype=torch.float64, device=features.device)
    for rows in blocks(features):
        before = features[rows].double()
        gap = restore(stored, scales, rows).double().sub_(before)
        squares[0, rows] = before.square().sum(1)
        squares[1, rows] = gap.square_().sum(1)
    return _token_errors(*squares)


def _token_errors(original: torch.Tensor, difference: torch.Tensor) -> torch.Tensor:
    """Return the same from each token's sums of squares, (rows,) float64, as `relative_token_errors` has them."""
    norms, gaps = original.sqrt(), difference.sqrt()
    median = norms.sort().values[(len(norms) - 1) // 2]
    floor = torch.maximum(norms, NORM_FLOOR * median)
    errors = torch.where(floor > 0, gaps / torch.where(floor > 0, floor, 1), (gaps > 0).double())
    ranked = errors.sort().values
    return torch.stack([ranked[percentile_99(len(ranked))], ranked[-1]])


def _error(measures: list[float]) -> QuantError:
    dot, original, kept, difference, largest, token_p99, token_max = measures
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
    if overflowed:
        raise QuantizeError(
            f"{overflowed} of {total} values exceed the largest {values}; store them as bf16, fp32 or int8"
        )


def _count_non_finite(values: torch.Tensor) -> int:
    return values.numel() - int(values.isfinite().sum())


def _kernel_for(features: torch.Tensor, storage: Storage) -> Any:
    """Return the fused kernel if it can be used: on contiguous features on a GPU, with one scale."""
    one_scale = storage.values == "int8" and storage.granularity != "channel_token"
    if one_scale and features.device.type == "cuda" and features.is_contiguous():
        return _kernel()
    return None


@functools.cache
def _kernel() -> Any:
    """Return the fused kernel, or None if it cannot be compiled: no Triton, no C compiler."""
    try:
        from featstore.torch.kernels.fused import quantize as launch

        launch(torch.ones((2, 2), device="cuda"), torch.ones((1, 2), device="cuda"))
    except Exception as exc:  # Triton fails in as many ways as there are toolchains
        log.info("quantizing without the fused kernel: %s", exc)
        return None
    return launch
