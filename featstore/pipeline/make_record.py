"""From an encoder's rows to what a record holds: payload, scales and header, on whatever device they are."""

from __future__ import annotations

import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from featstore.errors import QuantizeError, RecordError
from featstore.records.header import Header
from featstore.records.quantization import QuantError, measure_error, quantize, refuse_large
from featstore.records.storage import (
    MAX_PAYLOAD_BYTES,
    MAX_PREFIX_BYTES,
    STORED_DTYPES,
    Storage,
    lossless,
)
from featstore.system.filesystems import format_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from featstore.decoding.frame_selection import Clip
    from featstore.decoding.video_file import Video
    from featstore.records.budget import ErrorBudget
    from featstore.records.header import SourceFingerprint
    from featstore.spec import FeatureSpec


def largest_shape(spec: FeatureSpec) -> tuple[int, int]:
    """Return the (rows, width) of the largest features that a video has under `spec`."""
    return spec.max_rows, spec.encoder.geometry.row_width


def record_room(spec: FeatureSpec, storage: Storage) -> tuple[int, int]:
    """Return the most bytes that prefix and payload of a record take.

    Raises:
        RecordError: a record cannot hold the largest features of a video.
    """
    shape = largest_shape(spec)
    prefix, payload = storage.record_room(shape, spec.sampling.nframe)
    if payload > MAX_PAYLOAD_BYTES or prefix > MAX_PREFIX_BYTES or shape[0] >> 31:
        raise RecordError(
            f"{spec.sampling.nframe} frames make features of up to {shape[0]} x {shape[1]} values, which as {storage} "
            f"take {format_bytes(payload)} and {format_bytes(prefix)} of scales; a record takes "
            f"{format_bytes(MAX_PAYLOAD_BYTES)} and {format_bytes(MAX_PREFIX_BYTES)}",
            remedy="take fewer frames with --nframe, or fewer bytes a value with --quantize",
        )
    return prefix, payload


def fallback_of(spec: FeatureSpec, storage: Storage, budget: ErrorBudget) -> Storage | None:
    """Return how a video is stored losslessly that misses `budget` as `storage`; None if it is not, or cannot be."""
    kept = lossless(spec.encoder.dtype)
    if budget.max_error is None or budget.on_miss != "lossless" or storage.values == kept.values:
        return None
    _, payload = kept.record_room(largest_shape(spec), spec.sampling.nframe)
    return kept if payload <= MAX_PAYLOAD_BYTES else None


def pack_scales(scales: Sequence[NDArray[np.float32]]) -> bytes:
    """Return scales as a record stores them."""
    return b"".join(np.ascontiguousarray(scale, dtype="<f4").tobytes() for scale in scales)


def make_header(
    spec: FeatureSpec,
    storage: Storage,
    dataset: str,
    video: Video,
    clip: Clip,
    source: SourceFingerprint,
    *,
    grid: tuple[int, int] | None,
    error: QuantError,
) -> Header:
    """Return the header of a record that is made now of the features of a decoded video.

    Args:
        spec: the feature set.
        storage: how the values are stored.
        dataset: the dataset's name.
        video: the video.
        clip: what was decoded of it.
        source: its file.
        grid: (height, width) of a unit's tokens, if they differ by video.
        error: how far stored values are from the encoder's.
    """
    geometry = spec.encoder.geometry
    layout = geometry.layout(len(clip.indices), grid)
    return Header(
        video_id=video.video_id,
        video_path=video.path,
        dataset=dataset,
        spec=spec.digest,
        nframe=spec.sampling.nframe,
        frame_indices=struct.pack(f"<{len(clip.indices)}I", *clip.indices),
        total_frames=clip.total_frames,
        fps=clip.fps,
        decoder=clip.decoder,
        doubt=clip.doubt,
        shape=(layout.rows, geometry.row_width),
        layout=layout,
        dtype=spec.encoder.dtype,
        storage=storage,
        source=source,
        error=error,
        created=time.time(),
    )


def quantize_into(
    payload: memoryview, parts: list[Any], storage: Storage
) -> tuple[bytes, QuantError]:
    """Write the features of `parts`, each (n, width), to `payload` as stored; return their scales and error.

    Arrays are quantized by numpy, tensors by torch where they are; int8 crosses to the host, not floats.
    Raises QuantizeError if a value is not finite.
    """
    if all(isinstance(part, np.ndarray) for part in parts):
        features = np.concatenate(parts)
        stored, scales = quantize(features, storage)
        np.frombuffer(payload, STORED_DTYPES[storage.values])[:] = stored.ravel()
        return pack_scales(scales), measure_error(features, stored, scales, storage.values)
    return _quantize_tensors(payload, parts, storage)


@dataclass(frozen=True)
class Kept:
    """What is kept of a video's features beside the payload: how it is stored, its scales as bytes, its error."""

    storage: Storage
    scales: bytes
    error: QuantError


def keep_within(
    budget: ErrorBudget,
    place: Callable[[Storage], memoryview],
    parts: list[Any],
    storage: Storage,
    fallback: Storage | None,
) -> Kept:
    """Write the features of `parts` as `storage`, or as `fallback` if they miss the budget.

    Args:
        budget: the error budget.
        place: returns the memory for the payload that is stored in a way.
        parts: see `quantize_into`.
        storage: how they are asked for.
        fallback: see `fallback_of`.

    Raises:
        QuantizeError: a value is not finite, or they miss and are not to be stored.
    """
    outcome: QuantError | QuantizeError
    try:
        scales, outcome = quantize_into(place(storage), parts, storage)
    except QuantizeError as exc:
        scales, outcome = b"", exc
    chosen = budget.choose(storage, fallback, outcome)
    if chosen != storage or isinstance(outcome, QuantizeError):
        scales, outcome = quantize_into(place(chosen), parts, chosen)
    return Kept(chosen, scales, outcome)


def _quantize_tensors(
    payload: memoryview, parts: list[Any], storage: Storage
) -> tuple[bytes, QuantError]:
    import torch

    from featstore.torch.kernels.quantize import queue_quantize, read_measures

    features = torch.cat(parts)
    stored, scales, measures = queue_quantize(features, storage)
    error = read_measures(measures.tolist(), features.numel(), storage)
    refuse_large(scales)
    place = torch.frombuffer(payload, dtype=stored.dtype)  # writable shared memory
    place.reshape(stored.shape).copy_(stored)
    on_host = [scale.cpu().numpy() for scale in scales]
    return pack_scales(on_host), error
