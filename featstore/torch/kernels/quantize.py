"""Encoder features to stored values on their own device, bit for bit as featstore.records.quantization does it."""

from __future__ import annotations

import functools
import logging
from typing import Any

import numpy as np
import torch

from featstore.errors import QuantizeError
from featstore.records.quantization import INT8_MAX, MIN_SCALE, QuantError, refuse_non_finite
from featstore.spec import STORED_DTYPES
from featstore.torch.kernels.dequantize import blocks, part

log = logging.getLogger("featstore.torch")
# Stored values as torch sees them.
TORCH_DTYPES = {
    name: torch.bfloat16 if name == "bf16" else torch.from_numpy(np.empty(0, dtype)).dtype
    for name, dtype in STORED_DTYPES.items()
}


def quantize(
    features: torch.Tensor, quantization: str, granularity: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize features on their own device, bit for bit as featstore.records.quantization does.

    Args:
        features: (num_tokens, hidden_dim) of any floating-point dtype.
        quantization: how values are stored: `int8`, `bf16`, `fp16` or `fp32`.
        granularity: how many scales: `channel`, `token` or `tensor` for int8, `none` for floats.

    Returns:
        `(stored, scale)`: stored (num_tokens, hidden_dim) of the dtype; scale float32 that broadcasts over it, empty
        for floats.

    Raises:
        QuantizeError: a value is not finite, or too large to be stored so.
    """
    stored, scale = _store(features, quantization, granularity)
    if quantization != "int8" or not bool(scale.isfinite().all()):
        _check(
            _count_non_finite(features), _count_non_finite(stored), features.numel(), quantization
        )
    return stored, scale


def measure_error(features: torch.Tensor, stored: torch.Tensor, scale: torch.Tensor) -> QuantError:
    """Return how far stored values are from features, summed in float64 on their device.

    Args:
        features: (num_tokens, hidden_dim) of any floating-point dtype.
        stored: what `quantize` returned for them.
        scale: the same.
    """
    dot, original, kept, difference, largest = _measure(features, stored, scale).tolist()
    return QuantError.from_sums(
        dot=dot, original=original, stored=kept, difference=difference, max_abs=largest
    )


def queue_quantize(
    features: torch.Tensor, quantization: str, granularity: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return `(stored, scale, measures)` as `quantize` and `measure_error` would, without waiting for the device.

    measures: float64, for `read_measures`, which raises what `quantize` raises.
    """
    if quantization == "int8" and features.device.type == "cuda" and features.is_contiguous():
        kernel = _kernel()
        if kernel is not None:
            scale = _scale(features, granularity)
            stored, measures = kernel(features, scale)
            return stored, scale, measures
    stored, scale = _store(features, quantization, granularity)
    bad = torch.stack([(~values.isfinite()).sum() for values in (features, stored)])
    return stored, scale, torch.cat([_measure(features, stored, scale), bad.double()])


def read_measures(measures: list[float], total: int, quantization: str) -> QuantError:
    """Return the error of `total` values from their measures; QuantizeError if one cannot be stored."""
    dot, original, kept, difference, largest, non_finite, overflowed = measures
    _check(int(non_finite), int(overflowed), total, quantization)
    return QuantError.from_sums(
        dot=dot, original=original, stored=kept, difference=difference, max_abs=largest
    )


def _store(
    features: torch.Tensor, quantization: str, granularity: str
) -> tuple[torch.Tensor, torch.Tensor]:
    if quantization != "int8":
        return features.to(TORCH_DTYPES[quantization]), torch.empty((0, 0), device=features.device)
    scale = _scale(features, granularity)
    stored = torch.empty(features.shape, dtype=torch.int8, device=features.device)
    for rows in blocks(features):
        ratio = features[rows].float() / part(scale, rows)
        stored[rows] = ratio.round_().clamp_(-INT8_MAX, INT8_MAX).to(torch.int8)
    return stored, scale


def _scale(features: torch.Tensor, granularity: str) -> torch.Tensor:
    dims = {"channel": (0,), "token": (1,), "tensor": (0, 1)}[granularity]
    # One pass without a copy of the features; it keeps NaN and infinity.
    largest = torch.linalg.vector_norm(features, torch.inf, dim=dims, keepdim=True).float()
    # On CUDA torch multiplies by the reciprocal of a number, which rounds otherwise; by a tensor it divides.
    scale: torch.Tensor = largest / torch.full_like(largest, INT8_MAX)
    return scale.clamp_(min=MIN_SCALE)


def _measure(features: torch.Tensor, stored: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return dot product, sums of squares of features, stored and difference, and the largest difference; float64."""
    sums = torch.zeros(4, dtype=torch.float64, device=features.device)
    largest = torch.zeros(1, dtype=torch.float64, device=features.device)
    for rows in blocks(features):
        before = features[rows].double()
        after = stored[rows].float()
        after = (after.mul_(part(scale, rows)) if stored.dtype == torch.int8 else after).double()
        gap = before - after
        parts = [before * after, before.square(), after.square(), gap.square()]
        sums += torch.stack([part.sum() for part in parts])
        largest = torch.maximum(largest, gap.abs().max())
    return torch.cat([sums, largest])


def _check(non_finite: int, overflowed: int, total: int, quantization: str) -> None:
    refuse_non_finite(non_finite, total)
    if overflowed:
        raise QuantizeError(
            f"{overflowed} of {total} values exceed the largest {quantization}; store them as bf16, fp32 or int8"
        )


def _count_non_finite(values: torch.Tensor) -> int:
    return values.numel() - int(values.isfinite().sum())


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
