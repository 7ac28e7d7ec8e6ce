"""Features to tensors and back: the only bridge between numpy's world and torch's.

No tensor that leaves this file shares memory with the store's map: torch has no read-only tensors, and a write there
ends the process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from featstore.errors import QuantizeError
from featstore.quant import INT8_MAX, MIN_SCALE, QuantError, refuse_non_finite

if TYPE_CHECKING:
    from featstore.record import Features

# Rows worked on at once: on a CPU a few dozen stay in a core's cache (measured 3.4x a memcpy against 12.5x for the
# whole at once); on a GPU it bounds the float32 temporary to some 60 MB.
_CPU_ROWS = 64
_GPU_ROWS = 4096
_BITS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def to_tensor(
    features: Features,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.bfloat16,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the features as a tensor (num_tokens, hidden_dim) of `dtype` on `device`, the CPU by default.

    int8 crosses to the device as int8 and is dequantized there: the float32 product `value * scale`, rounded once to
    `dtype`; the same bits on every device. `out` is filled and returned where given; it decides device and dtype.
    """
    if out is None:
        out = torch.empty(features.shape, dtype=dtype, device=device)
    elif tuple(out.shape) != features.shape:
        raise ValueError(f"out has shape {tuple(out.shape)}, the features have {features.shape}")
    stored = _alias(features.data, features.header.quantization)
    if out.device.type != "cpu":
        stored = stored.to(out.device)
    if features.header.quantization == "int8":
        _dequantize(stored, torch.from_numpy(features.scale.copy()).to(out.device), out)
    else:
        out.copy_(stored)
    return out


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
        for rows in _blocks(features):
            ratio = features[rows].float() / _part(scale, rows)
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
    for rows in _blocks(features):
        before = features[rows].double()
        after = stored[rows].float()
        after = (after.mul_(_part(scale, rows)) if stored.dtype == torch.int8 else after).double()
        gap = before - after
        parts = [before * after, before.square(), after.square(), gap.square()]
        sums += torch.stack([part.sum() for part in parts])
        largest = torch.maximum(largest, gap.abs().max())
    dot, original, kept, difference = sums.tolist()
    return QuantError.from_sums(
        dot=dot, original=original, stored=kept, difference=difference, max_abs=largest.item()
    )


def _dequantize(stored: torch.Tensor, scale: torch.Tensor, out: torch.Tensor) -> None:
    for rows in _blocks(stored):
        block = stored[rows].float().mul_(_part(scale, rows))
        out[rows].copy_(block)


def _scale(features: torch.Tensor, granularity: str) -> torch.Tensor:
    dims = {"channel": (0,), "token": (1,), "tensor": (0, 1)}[granularity]
    abs_max = features.abs().amax(dim=dims, keepdim=True).float()  # NaN and infinity survive amax
    if not bool(abs_max.isfinite().all()):
        refuse_non_finite(_count_non_finite(features), features.numel())
    return abs_max.div_(INT8_MAX).clamp_(min=MIN_SCALE)


def _count_non_finite(values: torch.Tensor) -> int:
    return values.numel() - int(values.isfinite().sum())


def _part(scale: torch.Tensor, rows: slice) -> torch.Tensor:
    return scale[rows] if len(scale) > 1 else scale


def _blocks(values: torch.Tensor) -> list[slice]:
    step = _CPU_ROWS if values.device.type == "cpu" else _GPU_ROWS
    return [slice(i, min(i + step, len(values))) for i in range(0, len(values), step)]


class _Alias:
    """Read-only memory under a writable name: torch takes no other. Nothing in this file writes to it."""

    def __init__(self, values: np.ndarray[Any, Any]) -> None:
        self._keep = values
        interface = dict(values.__array_interface__)
        self.__array_interface__ = {**interface, "data": (interface["data"][0], False)}


def _alias(values: np.ndarray[Any, Any], quantization: str) -> torch.Tensor:
    if values.dtype == np.uint16:
        values = values.view(np.int16)  # the bits of bf16
    tensor = torch.from_numpy(np.asarray(_Alias(values)))
    return tensor.view(torch.bfloat16) if quantization == "bf16" else tensor
