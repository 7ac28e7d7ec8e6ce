"""An encoder's batches to a payload, on whatever device they lie."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from featstore.quant import STORED_DTYPES, QuantError, measure_error, quantize

if TYPE_CHECKING:
    from numpy.typing import NDArray


def quantize_into(
    payload: memoryview,
    parts: list[Any],
    shape: tuple[int, int],
    quantization: str,
    granularity: str,
) -> tuple[NDArray[np.float32], QuantError]:
    """Write the features of `parts`, each (B, T, D), to `payload` as stored; return scale and error.

    Arrays are quantized by numpy, tensors by torch where they are; int8 crosses to the host, not floats.
    Raises QuantizeError where a value is not finite.
    """
    if all(isinstance(part, np.ndarray) for part in parts):
        features = np.concatenate(parts).reshape(shape)  # (F, T, D) -> (F * T, D)
        stored, scale = quantize(features, quantization, granularity)
        np.frombuffer(payload, STORED_DTYPES[quantization])[:] = stored.ravel()
        return scale, measure_error(features, stored, scale, quantization)
    return _quantize_tensors(payload, parts, shape, quantization, granularity)


def _quantize_tensors(
    payload: memoryview,
    parts: list[Any],
    shape: tuple[int, int],
    quantization: str,
    granularity: str,
) -> tuple[NDArray[np.float32], QuantError]:
    import torch

    from featstore.torch import measure_error, quantize

    features = torch.cat(parts).reshape(shape)  # (F, T, D) -> (F * T, D)
    stored, scale = quantize(features, quantization, granularity)
    place = torch.frombuffer(payload, dtype=stored.dtype).reshape(shape)  # writable shared memory
    place.copy_(stored)
    return scale.cpu().numpy(), measure_error(features, stored, scale)
