"""Floats to stored values and back, in numpy: the reference that the torch implementation must equal.

int8 is symmetric: each value is divided by its scale, rounded half to even and clamped to [-127, 127]. The granularity
says how many scales there are. With one per channel, per token or for all, `scale = abs_max / 127` over those values.
`channel_token` has one per token and one per channel, and a value's scale is their product: `t = RMS of the token;
c = max over tokens |x| / t; t = max over channels |x| / c / 127`, in this order. Outlier tokens and outlier channels
then cost the others nothing (docs/format.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from featstore.errors import NotFinite, QuantizeError
from featstore.records.storage import STORED_DTYPES
from featstore.spec import CHECKPOINT_FAMILY

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from featstore.records.storage import Storage

    # float32 arrays that broadcast over the values: a value's scale is their product.
    Scales: TypeAlias = tuple[NDArray[np.float32], ...]

INT8_MAX = 127
# The smallest normal float32: a channel of zeros, or of tiny values, is divided by this and not by 0.
MIN_SCALE = float(np.finfo(np.float32).tiny)
# The smallest two scales, whose product is far from the smallest float32: values below are noise beside their token,
# or beside any feature.
MIN_CHANNEL_SCALE = 2.0**-40
MIN_TOKEN_SCALE = 2.0**-80
MAX_FLOAT = float(np.finfo(np.float32).max)
BF16_MAX = 2.0**127 * (2 - 2**-7)
# A token's error is relative to its norm, and to this share of the median token's if it has hardly any.
NORM_FLOOR = 0.05
# Rows processed at once: a few dozen rows of 3,584 channels stay in a core's cache.
BLOCK_ROWS = 64


@dataclass(frozen=True)
class QuantError:
    """How far stored values are from the encoder's, measured when they were stored.

    Args:
        cosine: cosine between the two flattened tensors.
        relative_l2: norm of the difference over the norm of the original.
        max_abs: the largest difference of one value.
        token_p99: the 99th percentile over tokens of the relative L2 of a token, see `relative_token_errors`.
        token_max: the largest of them.
    """

    cosine: float
    relative_l2: float
    max_abs: float
    token_p99: float
    token_max: float

    @classmethod
    def from_sums(
        cls,
        *,
        dot: float,
        original: float,
        stored: float,
        difference: float,
        max_abs: float,
        token_p99: float,
        token_max: float,
    ) -> QuantError:
        """Build from sums of squares and the dot product, in float64; two zero tensors are equal."""
        norms = (original * stored) ** 0.5
        return cls(
            cosine=dot / norms if norms else float(original == stored),
            relative_l2=(difference / original) ** 0.5 if original else float(difference > 0),
            max_abs=max_abs,
            token_p99=token_p99,
            token_max=token_max,
        )


def quantize(features: NDArray[Any], storage: Storage) -> tuple[NDArray[Any], Scales]:
    """Return `(stored, scales)` of features.

    Args:
        features: (rows, width), floats of any width.
        storage: how values are stored.

    Returns:
        stored (rows, width) of the dtype in STORED_DTYPES, and the float32 scales, of `storage.scale_shapes`, all > 0.

    Raises:
        QuantizeError: a value is not finite, or too large to be stored so.
    """
    with np.errstate(over="ignore"):  # values beyond float32 become infinite, and are refused below
        x = np.asarray(features, dtype=np.float32)
    if storage.values == "int8":
        scales = _scales(x, storage.granularity)
        refuse_large(scales)
        stored = np.empty(x.shape, dtype=np.int8)
        for rows in _blocks(len(x)):
            ratio = x[rows] / _product(scales, rows)
            stored[rows] = np.clip(np.rint(ratio), -INT8_MAX, INT8_MAX)
        return stored, scales
    refuse_non_finite(int(x.size - np.isfinite(x).sum()), x.size)
    if storage.values == "bf16":
        return _to_bf16_bits(x), ()
    with np.errstate(over="ignore"):
        stored = x.astype(STORED_DTYPES[storage.values])
    refuse_overflow(int(stored.size - np.isfinite(stored).sum()), x.size, storage.values)
    return stored, ()


def dequantize(
    stored: NDArray[Any],
    scales: Scales,
    values: str,
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Return float32 (rows, width) of what `quantize` returned, in `out` if given.

    Args:
        stored: the stored values.
        scales: their scales; the product of two is rounded to float32 before it is multiplied with a value.
        values: how they are stored, one of STORED_DTYPES.
        out: float32 (rows, width) to fill.
    """
    if out is None:
        out = np.empty(stored.shape, dtype=np.float32)
    if out.shape != stored.shape or out.dtype != np.float32:
        raise ValueError(
            f"out is {out.dtype} of shape {out.shape}; it must be float32 of shape {stored.shape}"
        )
    for rows in _blocks(len(stored)):
        if values == "int8":
            np.multiply(stored[rows], _product(scales, rows), out=out[rows], dtype=np.float32)
        elif values == "bf16":
            out[rows] = (stored[rows].astype(np.uint32) << 16).view(np.float32)
        else:
            out[rows] = stored[rows]
    return out


def measure_error(
    features: NDArray[Any], stored: NDArray[Any], scales: Scales, values: str
) -> QuantError:
    """Return how far `stored` is from `features`, summed in float64 block by block."""
    dot = original = kept = difference = max_abs = 0.0
    norms, gaps = np.empty(len(stored)), np.empty(len(stored))
    for rows in _blocks(len(stored)):
        before = np.asarray(features[rows], dtype=np.float64)
        part = tuple(scale[rows] if len(scale) > 1 else scale for scale in scales)
        after = dequantize(stored[rows], part, values).astype(np.float64)
        gap = before - after
        norms[rows] = np.einsum("ij,ij->i", before, before)
        gaps[rows] = np.einsum("ij,ij->i", gap, gap)
        dot += float(np.vdot(before, after))
        original += float(np.vdot(before, before))
        kept += float(np.vdot(after, after))
        difference += float(np.vdot(gap, gap))
        max_abs = max(max_abs, float(np.abs(gap).max()))
    errors = np.sort(relative_token_errors(norms**0.5, gaps**0.5))
    return QuantError.from_sums(
        dot=dot,
        original=original,
        stored=kept,
        difference=difference,
        max_abs=max_abs,
        token_p99=float(errors[percentile_99(len(errors))]),
        token_max=float(errors[-1]),
    )


def relative_token_errors(
    norms: NDArray[np.float64], gaps: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the error of each token relative to its norm, at least `NORM_FLOOR` of the median token's.

    Args:
        norms: L2 norm of each token, (rows,).
        gaps: L2 norm of what is stored of it minus what it was, (rows,).
    """
    median = np.sort(norms)[(len(norms) - 1) // 2]
    floor = np.maximum(norms, NORM_FLOOR * median)
    errors: NDArray[np.float64] = np.where(
        floor > 0, gaps / np.where(floor > 0, floor, 1), gaps > 0
    )
    return errors


def percentile_99(count: int) -> int:
    """Return which of `count` sorted values is their 99th percentile, by nearest rank."""
    return -(-99 * count // 100) - 1


def refuse_non_finite(count: int, total: int) -> None:
    """Raise NotFinite if `count` of `total` values are NaN or infinite."""
    if count:
        raise NotFinite(
            f"{count} of {total} feature values are NaN or infinite, all must be finite"
        )


def refuse_overflow(count: int, total: int, values: str) -> None:
    """Raise QuantizeError if `count` of `total` values, all finite, are beyond the largest of fp16 or bf16."""
    if count:
        largest, wider = {"fp16": (65504, "bf16, fp32 or int8")}.get(values, (3.39e38, "fp32"))
        raise QuantizeError(
            f"{count} of {total} values exceed {values}'s {largest}; store them as {wider}"
        )


def refuse_large(scales: Sequence[Any]) -> None:
    """Raise QuantizeError if values of the largest of `scales`, arrays or tensors, cannot be restored as float32."""
    scale = math.prod(float(part.max()) if 0 not in part.shape else 0.0 for part in scales)
    if not scale * INT8_MAX <= MAX_FLOAT:
        raise QuantizeError(
            f"the largest scale is {scale:.3g}, and {INT8_MAX} times it is beyond float32; store such values as fp32"
        )


def in_words(exc: QuantizeError, dtype: str, family: str = CHECKPOINT_FAMILY) -> str:
    """Return what is wrong with features that an encoder of `family` computed in `dtype`, and what to do about it."""
    if not isinstance(exc, NotFinite):
        return str(exc)
    damaged = "the checkpoint's weights are damaged or not of such a model: fetch them again"
    how = ", with --dtype, in Python dtype="
    if family != CHECKPOINT_FAMILY:  # an encoder of the user's own
        damaged, how = f"correct the encoder {family!r}, or its weights", ""
    remedy = {
        "fp16": f"whose largest number is 65504: compute in bf16 or fp32{how}",
        "bf16": f"compute in fp32{how}; if they are not finite there either, {damaged}",
    }.get(dtype, f"which can hold them: {damaged}")
    return f"{exc}; they were computed in {dtype}, {remedy}"


def _scales(x: NDArray[np.float32], granularity: str) -> Scales:
    if granularity == "channel_token":
        return _two_scales(x)
    axis = {"channel": 0, "token": 1, "tensor": None}[granularity]
    abs_max = _abs_max(x, axis)
    return (np.maximum(abs_max / np.float32(INT8_MAX), np.float32(MIN_SCALE)),)


def _two_scales(x: NDArray[np.float32]) -> Scales:
    """Return the scales of the tokens (rows, 1) and of the channels (1, width).

    The sums of squares are float64 and their roots rounded to bf16: any order of adding them gives the same scales.
    """
    _abs_max(x, None)
    roots = np.empty((len(x), 1), np.float32)
    for rows in _blocks(len(x)):
        squares = np.square(x[rows], dtype=np.float64).sum(axis=1, keepdims=True)
        roots[rows] = np.sqrt(squares / x.shape[1])
    roots = np.minimum(roots, np.float32(BF16_MAX))
    t = (_to_bf16_bits(roots).astype(np.uint32) << 16).view(np.float32)
    t = np.maximum(t, np.float32(MIN_TOKEN_SCALE))
    c = np.full((1, x.shape[1]), MIN_CHANNEL_SCALE, np.float32)
    for rows in _blocks(len(x)):
        np.maximum(c, (np.abs(x[rows]) / t[rows]).max(axis=0, keepdims=True), out=c)
    for rows in _blocks(len(x)):
        t[rows] = (np.abs(x[rows]) / c).max(axis=1, keepdims=True) / np.float32(INT8_MAX)
    return np.maximum(t, np.float32(MIN_TOKEN_SCALE)), c


def _abs_max(x: NDArray[np.float32], axis: int | None) -> NDArray[np.float32]:
    abs_max: NDArray[np.float32] = np.maximum(
        x.max(axis=axis, keepdims=True, initial=0), -x.min(axis=axis, keepdims=True, initial=0)
    )
    if not np.isfinite(abs_max).all():  # NaN and infinity both survive max and min
        refuse_non_finite(int(x.size - np.isfinite(x).sum()), x.size)
    return abs_max


def _product(scales: Scales, rows: slice) -> NDArray[np.float32]:
    """Return the scale of each value of `rows`, or what broadcasts to it."""
    first, *more = (scale[rows] if len(scale) > 1 else scale for scale in scales)
    for scale in more:
        first = first * scale
    return first


def _blocks(num_rows: int) -> list[slice]:
    return [slice(i, min(i + BLOCK_ROWS, num_rows)) for i in range(0, num_rows, BLOCK_ROWS)]


def _to_bf16_bits(x: NDArray[np.float32]) -> NDArray[np.uint16]:
    bits = x.view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))  # half to even
    high: NDArray[np.uint16] = (rounded >> np.uint32(16)).astype(np.uint16)
    refuse_overflow(int(((high & 0x7F80) == 0x7F80).sum()), high.size, "bf16")
    return high
