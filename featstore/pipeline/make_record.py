"""From an encoder's rows to what a record holds: payload, scales and header, on whatever device they are."""

from __future__ import annotations

import struct
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from featstore.errors import RecordError
from featstore.records.header import Header
from featstore.records.quantization import QuantError, measure_error, quantize
from featstore.records.storage import MAX_PAYLOAD_BYTES, MAX_PREFIX_BYTES, STORED_DTYPES, Storage
from featstore.system.filesystems import format_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from featstore.decoding.frame_selection import Clip
    from featstore.decoding.video_file import Video
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


def _quantize_tensors(
    payload: memoryview, parts: list[Any], storage: Storage
) -> tuple[bytes, QuantError]:
    import torch

    from featstore.torch import measure_error, quantize

    features = torch.cat(parts)
    stored, scales = quantize(features, storage)
    place = torch.frombuffer(payload, dtype=stored.dtype)  # writable shared memory
    place.reshape(stored.shape).copy_(stored)
    on_host = [scale.cpu().numpy() for scale in scales]
    return pack_scales(on_host), measure_error(features, stored, scales)
