"""Encoder features to stored values, on whatever device they lie: featstore.quant's results bit for bit."""

from __future__ import annotations

import torch

from featstore.errors import QuantizeError
from featstore.quant import INT8_MAX, MIN_SCALE, QuantError, refuse_non_finite
from featstore.torch.blocks import blocks, part

_BITS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def quantize(
    features: torch.Tensor, quantization: str, granularity: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `(stored, scale)` of `features` (num_tokens, hidden_dim) on their own device.

    Equal to featstore.quant.quantize bit for bit: stored is int8, float16, float32 or bfloat16; scale is float32, empty
    for floats. Raises QuantizeError where a value is not finite, or too large for its storage.
    """
    if quantization == "int8":
        scale = _scale(features, granularity)
        stored = torch.empty(features.shape, dtype=torch.int8, device=features.device)
        for rows in blocks(features):
            ratio = features[rows].float() / part(scale, rows)
            stored[rows] = ratio.round_().clamp_(-INT8_MAX, INT8_MAX).to(torch.int8)
        return stored, scale
    refuse_non_finite(_count_non_finite(features), features.numel())
    stored = features.to(_BITS[quantization])
    overflowed = _count_non_finite(stored)
    if overflowed:
        raise QuantizeError(
            f"{overflowed} of {features.numel()} values exceed the largest {quantization}; store them as bf16, fp32 "
            "or int8"
        )
    return stored, torch.empty((0, 0), device=features.device)


def measure_error(features: torch.Tensor, stored: torch.Tensor, scale: torch.Tensor) -> QuantError:
    """Return how far `stored` is from `features`, summed in float64 on their device."""
    sums = torch.zeros(4, dtype=torch.float64, device=features.device)
    largest = torch.zeros((), dtype=torch.float64, device=features.device)
    for rows in blocks(features):
        before = features[rows].double()
        after = stored[rows].float()
        after = (after.mul_(part(scale, rows)) if stored.dtype == torch.int8 else after).double()
        gap = before - after
        parts = [before * after, before.square(), after.square(), gap.square()]
        sums += torch.stack([part.sum() for part in parts])
        largest = torch.maximum(largest, gap.abs().max())
    dot, original, kept, difference = sums.tolist()
    return QuantError.from_sums(
        dot=dot, original=original, stored=kept, difference=difference, max_abs=largest.item()
    )


def _scale(features: torch.Tensor, granularity: str) -> torch.Tensor:
    dims = {"channel": (0,), "token": (1,), "tensor": (0, 1)}[granularity]
    abs_max = features.abs().amax(dim=dims, keepdim=True).float()  # NaN and infinity survive amax
    if not bool(abs_max.isfinite().all()):
        refuse_non_finite(_count_non_finite(features), features.numel())
    return abs_max.div_(INT8_MAX).clamp_(min=MIN_SCALE)


def _count_non_finite(values: torch.Tensor) -> int:
    return values.numel() - int(values.isfinite().sum())
