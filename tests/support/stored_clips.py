"""Features of one clip in a store, made without an ingest and its processes."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import numpy as np
from geometries import CountingEncoder, features_of
from toys import ROOM_BEFORE_PAYLOAD

from featstore.decoding.video_file import decode, fingerprint, identity_of
from featstore.preprocessing import frame_bytes
from featstore.records.header import Header
from featstore.records.quantization import measure_error, quantize
from featstore.records.record import pack_record
from featstore.records.storage import Storage
from featstore.spec import FeatureSpec
from featstore.store.writer import FeatureWriter

if TYPE_CHECKING:
    from pathlib import Path

    from featstore.sampling import Sampling


def store_clip(
    cache: Path, dataset: str, video: str, path: Path, encoder: CountingEncoder, sampling: Sampling
) -> FeatureSpec:
    """Store what `encoder` makes of a clip, and return the spec."""
    pre, geometry, storage = encoder.preprocessing, encoder.identity.geometry, Storage()
    spec = FeatureSpec(encoder.identity, sampling, identity_of("auto"), pre)
    clip = decode(str(path), sampling, pre, np.zeros(sampling.nframe * frame_bytes(pre), np.uint8))
    x = features_of(path, encoder, sampling)
    stored, scales = quantize(x, storage)
    count = len(clip.indices)
    fields: dict[str, Any] = {
        "video_path": str(path),
        "nframe": sampling.nframe,
        "frame_indices": struct.pack(f"<{count}I", *clip.indices),
        "layout": geometry.layout(count, encoder.grid(*clip.size) if geometry.by_video else None),
        "source": fingerprint(str(path)),
        "error": measure_error(x, stored, scales, storage.values),
    }
    header = Header(
        video_id=video,
        dataset=dataset,
        spec=spec.digest,
        total_frames=clip.total_frames,
        fps=clip.fps,
        decoder=clip.decoder,
        doubt=clip.doubt,
        shape=x.shape,
        dtype=spec.encoder.dtype,
        storage=storage,
        created=1_700_000_000.0,
        **fields,
    )
    room = ROOM_BEFORE_PAYLOAD + sum(scale.nbytes for scale in scales)
    buffer = memoryview(bytearray(room) + stored.tobytes())
    joined = b"".join(scale.tobytes() for scale in scales)
    with FeatureWriter(cache, dataset, min_free=0) as writer:
        writer.add_set(spec, storage, origin=encoder.origin)
        writer.put(*pack_record(header, joined, buffer, slice(room, len(buffer))))
    return spec
