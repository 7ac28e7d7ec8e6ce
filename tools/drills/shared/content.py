"""Features that anyone can make again from a video's id and a version, and what a store must hold of them.

A video's version stands in its record where the size of its file would: a record says which version it claims to be,
and its bytes must be exactly those of that version.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import xxhash

from featstore.decoding.frame_selection import Clip
from featstore.decoding.video_file import DECODER, Video
from featstore.encoders.toy import ToyEncoder
from featstore.pipeline.make_record import make_header, pack_scales, quantize_into, record_room
from featstore.records.header import SourceFingerprint
from featstore.records.quantization import quantize
from featstore.records.record import pack_record
from featstore.records.storage import Storage
from featstore.sampling import Sampling
from featstore.spec import FeatureSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from featstore.records.features import Features
    from featstore.store.writer import FeatureWriter

NFRAME = 8
FPS = 25.0
DEFAULT = Storage()


@lru_cache(maxsize=1)
def drill_encoder() -> ToyEncoder:
    """Return an encoder of 49 tokens of 128 dims a frame: records of some 50 KB, more than a dozen pages each."""
    return ToyEncoder(grid=7, hidden_dim=128)


@lru_cache(maxsize=8)
def drill_spec(nframe: int = NFRAME) -> FeatureSpec:
    """Return the feature set of `drill_encoder` with `nframe` frames."""
    encoder = drill_encoder()
    return FeatureSpec(encoder.identity, Sampling(nframe), DECODER, encoder.preprocessing)


def video_of(video_id: str) -> Video:
    """Return the video called `video_id`; there is no file at its path."""
    return Video(video_id, f"/videos/{video_id}.mp4")


def clip_of(spec: FeatureSpec) -> Clip:
    """Return a clip of which every frame is taken."""
    return Clip(spec.sampling.nframe, FPS, list(range(spec.sampling.nframe)))


def source_of(version: int) -> SourceFingerprint:
    """Return the fingerprint that says `version`."""
    return SourceFingerprint(version, 0, "0" * 32)


def version_of(features: Features) -> int:
    """Return the version that stored features claim to be."""
    return features.header.source.size


def make_features(spec: FeatureSpec, video_id: str, version: int) -> NDArray[np.float32]:
    """Draw the features (rows, width) float32 of one version of a video; the same ones in every process."""
    seed = xxhash.xxh3_64_intdigest(f"{spec.digest}:{video_id}:{version}".encode())
    shape = (spec.max_rows, spec.encoder.geometry.row_width)
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


@lru_cache(maxsize=1024)
def stored_form(
    spec: FeatureSpec, video_id: str, version: int, storage: Storage = DEFAULT
) -> tuple[bytes, bytes]:
    """Return the payload before compression and the scales that a store must hold of one version of a video."""
    stored, scales = quantize(make_features(spec, video_id, version), storage)
    return stored.tobytes(), pack_scales(scales)


def is_right(spec: FeatureSpec, features: Features) -> bool:
    """Return whether every stored byte is that of the version the record claims to be, in the storage it claims."""
    header = features.header
    wanted = stored_form(spec, header.video_id, version_of(features), header.storage)
    return (features.data.tobytes(), pack_scales(features.scales)) == wanted


def put(writer: FeatureWriter, spec: FeatureSpec, video_id: str, version: int) -> None:
    """Put one version of a video, quantized straight into the buffer of its record as an ingest does."""
    storage = writer.add_set(spec).storage
    room, payload_bytes = record_room(spec, storage)
    buffer = memoryview(bytearray(room + payload_bytes))
    scales, error = quantize_into(buffer[room:], [make_features(spec, video_id, version)], storage)
    header = make_header(
        spec,
        storage,
        writer.dataset,
        video_of(video_id),
        clip_of(spec),
        source_of(version),
        grid=None,
        error=error,
    )
    writer.put(*pack_record(header, scales, buffer, slice(room, len(buffer))))
