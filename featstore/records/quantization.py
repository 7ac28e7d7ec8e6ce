"""Floats to stored values and back, in numpy: the reference that the torch implementation must equal.

int8 is symmetric: `scale = abs_max / 127`, values rounded half to even and clamped to [-127, 127]. The granularity says
how many scales there are: one per channel over the whole video, one per token, or one for the whole tensor. If channels
differ in size, as CLIP's do, one per channel is 26 dB better than one for all (docs/format.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from featstore.errors import NotFinite, QuantizeError
from featstore.spec import STORED_DTYPES

if TYPE_CHECKING:
    from numpy.typing import NDArray

INT8_MAX = 127
# The smallest normal float32: a channel of zeros, or of tiny values, is divided by this and not by 0.
MIN_SCALE = float(np.finfo(np.float32).tiny)
# Rows processed at once: a few dozen rows of 3,584 channels stay in a core's cache.
BLOCK_ROWS = 64


@dataclass(frozen=True)
class QuantError:
    """How far stored values are from the encoder's, measured when they were stored.

    Args:
        cosine: cosine between the two flattened tensors.
        relative_l2: norm of the difference over the norm of the original.
        max_abs: the largest difference of one value.
    """

    cosine: float
    relative_l2: float
    max_abs: float

    @classmethod
    def from_sums(
        cls, *, dot: float, original: float, stored: float, difference: float, max_abs: float
    ) -> QuantError:
        """Build from sums of squares and the dot product, in float64; two zero tensors are equal."""
        norms = (original * stored) ** 0.5
        return cls(
            cosine=dot / norms if norms else float(original == stored),
            relative_l2=(difference / original) ** 0.5 if original else float(difference > 0),
            max_abs=max_abs,
        )


def quantize(
    features: NDArray[Any], quantization: str, granularity: str
) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Return `(stored, scale)` of features.

    Args:
        features: (num_tokens, hidden_dim), floats of any width.
        quantization: how values are stored, one of STORED_DTYPES.
        granularity: how many scales, one of featstore.spec.GRANULARITIES.

    Returns:
        stored (num_tokens, hidden_dim) of the dtype in STORED_DTYPES, and scale: float32 of
        featstore.records.sizes.scale_shape, all > 0; empty for floats.

    Raises:
        QuantizeError: a value is not finite, or too large to be stored so.
    """
    with np.errstate(over="ignore"):  # values beyond float32 become infinite, and are refused below
        x = np.asarray(features, dtype=np.float32)
    if quantization == "int8":
        scale = _scale(x, granularity)
        stored = np.empty(x.shape, dtype=np.int8)
        for rows in _blocks(len(x)):
            ratio = x[rows] / _part(scale, rows)
            stored[rows] = np.clip(np.rint(ratio), -INT8_MAX, INT8_MAX)
        return stored, scale
    refuse_non_finite(int(x.size - np.isfinite(x).sum()), x.size)
    if quantization == "bf16":
        return _to_bf16_bits(x), np.empty((0, 0), np.float32)
    with np.errstate(over="ignore"):
        stored = x.astype(STORED_DTYPES[quantization])
    overflowed = int(stored.size - np.isfinite(stored).sum())
    if overflowed:
        raise QuantizeError(
            f"{overflowed} of {x.size} values exceed fp16's 65504; store them as bf16, fp32 or int8"
        )
    return stored, np.empty((0, 0), np.float32)


def dequantize(
    stored: NDArray[Any],
    scale: NDArray[np.float32],
    quantization: str,
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Return float32 (num_tokens, hidden_dim) of what `quantize` returned, in `out` if given."""
    if out is None:
        out = np.empty(stored.shape, dtype=np.float32)
    if out.shape != stored.shape or out.dtype != np.float32:
        raise ValueError(
            f"out is {out.dtype} of shape {out.shape}; it must be float32 of shape {stored.shape}"
        )
    for rows in _blocks(len(stored)):
        if quantization == "int8":
            np.multiply(stored[rows], _part(scale, rows), out=out[rows], dtype=np.float32)
        elif quantization == "bf16":
            out[rows] = (stored[rows].astype(np.uint32) << 16).view(np.float32)
        else:
            out[rows] = stored[rows]
    return out


def measure_error(
    features: NDArray[Any], stored: NDArray[Any], scale: NDArray[np.float32], quantization: str
) -> QuantError:
    """Return how far `stored` is from `features`, summed in float64 block by block."""
    dot = original = kept = difference = max_abs = 0.0
    for rows in _blocks(len(stored)):
        before = np.asarray(features[rows], dtype=np.float64)
        after = dequantize(stored[rows], _part(scale, rows), quantization).astype(np.float64)
        gap = before - after
        dot += float(np.vdot(before, after))
        original += float(np.vdot(before, before))
        kept += float(np.vdot(after, after))
        difference += float(np.vdot(gap, gap))
        max_abs = max(max_abs, float(np.abs(gap).max(initial=0.0)))
    return QuantError.from_sums(
        dot=dot, original=original, stored=kept, difference=difference, max_abs=max_abs
    )


def refuse_non_finite(count: int, total: int) -> None:
    """Raise NotFinite if `count` of `total` values are NaN or infinite."""
    if count:
        raise NotFinite(
            f"{count} of {total} feature values are NaN or infinite, all must be finite"
        )


def in_words(exc: QuantizeError, dtype: str) -> str:
    """Return what is wrong with features that an encoder computed in `dtype`, and what to do about it."""
    if not isinstance(exc, NotFinite):
        return str(exc)
    damaged = "the checkpoint's weights are damaged or not of such a model: fetch them again"
    remedy = {
        "fp16": "whose largest number is 65504: compute in bf16 or fp32, with --dtype, in Python dtype=",
        "bf16": f"compute in fp32, with --dtype, in Python dtype=; if they are not finite there either, {damaged}",
    }.get(dtype, f"which can hold them: {damaged}")
    return f"{exc}; they were computed in {dtype}, {remedy}"


def _scale(x: NDArray[np.float32], granularity: str) -> NDArray[np.float32]:
    axis = {"channel": 0, "token": 1, "tensor": None}[granularity]
    abs_max = np.maximum(
        x.max(axis=axis, keepdims=True, initial=0), -x.min(axis=axis, keepdims=True, initial=0)
    )
    if not np.isfinite(abs_max).all():  # NaN and infinity both survive max and min
        refuse_non_finite(int(x.size - np.isfinite(x).sum()), x.size)
    scale: NDArray[np.float32] = np.maximum(abs_max / np.float32(INT8_MAX), np.float32(MIN_SCALE))
    return scale


def _part(scale: NDArray[np.float32], rows: slice) -> NDArray[np.float32]:
    return scale[rows] if len(scale) > 1 else scale


def _blocks(num_rows: int) -> list[slice]:
    return [slice(i, min(i + BLOCK_ROWS, num_rows)) for i in range(0, num_rows, BLOCK_ROWS)]


def _to_bf16_bits(x: NDArray[np.float32]) -> NDArray[np.uint16]:
    bits = x.view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))  # half to even
    high: NDArray[np.uint16] = (rounded >> np.uint32(16)).astype(np.uint16)
    if ((high & 0x7F80) == 0x7F80).any():
        raise QuantizeError("a value rounds beyond bf16's largest, 3.39e38; the encoder overflowed")
    return high
