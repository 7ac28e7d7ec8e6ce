"""From an encoder's batches to what a record holds: payload, scale and header, on whatever device they are."""

from __future__ import annotations

import struct
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from featstore.records.header import Header
from featstore.records.quantization import QuantError, measure_error, quantize
from featstore.spec import STORED_DTYPES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from featstore.decoding.frame_selection import Clip
    from featstore.decoding.video_file import Video
    from featstore.records.header import SourceFingerprint
    from featstore.spec import FeatureSpec


def feature_shape(spec: FeatureSpec, clip: Clip) -> tuple[int, int]:
    """Return (num_tokens, hidden_dim) of the features of a decoded clip."""
    return len(clip.indices) * spec.encoder.tokens_per_frame, spec.encoder.hidden_dim


def pack_scale(scale: NDArray[np.float32]) -> bytes:
    """Return a scale as a record stores it."""
    return np.ascontiguousarray(scale, dtype="<f4").tobytes()


def make_header(
    spec: FeatureSpec,
    dataset: str,
    video: Video,
    clip: Clip,
    source: SourceFingerprint,
    error: QuantError,
) -> Header:
    """Return the header of a record that is made now of the features of a decoded video."""
    return Header(
        video_id=video.video_id,
        video_path=video.path,
        dataset=dataset,
        nframe=spec.sampling.nframe,
        frame_indices=struct.pack(f"<{len(clip.indices)}I", *clip.indices),
        total_frames=clip.total_frames,
        fps=clip.fps,
        shape=feature_shape(spec, clip),
        tokens_per_frame=spec.encoder.tokens_per_frame,
        quantization=spec.quantization,
        scale=spec.scale,
        dtype=spec.encoder.dtype,
        model_signature=spec.encoder.model_signature,
        spec=spec.digest,
        source=source,
        error=error,
        created=time.time(),
    )


def quantize_into(
    payload: memoryview,
    parts: list[Any],
    shape: tuple[int, int],
    quantization: str,
    granularity: str,
) -> tuple[NDArray[np.float32], QuantError]:
    """Write the features of `parts`, each (B, T, D), to `payload` as stored; return scale and error.

    Arrays are quantized by numpy, tensors by torch where they are; int8 crosses to the host, not floats.
    Raises QuantizeError if a value is not finite.
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
