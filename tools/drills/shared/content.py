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
from featstore.pipeline.make_record import make_header, quantize_into
from featstore.records.header import SourceFingerprint
from featstore.records.quantization import quantize
from featstore.records.sizes import payload_bytes, record_room
from featstore.sampling import Sampling
from featstore.spec import FeatureSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from featstore.records.features import Features
    from featstore.store.writer import FeatureWriter

NFRAME = 8
FPS = 25.0


@lru_cache(maxsize=1)
def drill_encoder() -> ToyEncoder:
    """Return an encoder of 49 tokens of 128 dims a frame: records of some 50 KB, more than a dozen pages each."""
    return ToyEncoder(grid=7, hidden_dim=128)


@lru_cache(maxsize=8)
def drill_spec(nframe: int = NFRAME) -> FeatureSpec:
    """Return the feature set of `drill_encoder` with `nframe` frames."""
    return FeatureSpec(drill_encoder().identity, Sampling(nframe), DECODER, "int8", "channel")


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
    """Draw the features (F, T, D) float32 of one version of a video; the same ones in every process."""
    seed = xxhash.xxh3_64_intdigest(f"{spec.digest}:{video_id}:{version}".encode())
    shape = (spec.sampling.nframe, spec.encoder.tokens_per_frame, spec.encoder.hidden_dim)
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


@lru_cache(maxsize=1024)
def stored_form(spec: FeatureSpec, video_id: str, version: int) -> tuple[bytes, bytes]:
    """Return the payload and the scale that a store must hold of one version of a video."""
    x = make_features(spec, video_id, version).reshape(-1, spec.encoder.hidden_dim)
    data, scale = quantize(x, spec.quantization, spec.scale)
    return data.tobytes(), scale.tobytes()


def is_right(spec: FeatureSpec, features: Features) -> bool:
    """Return whether every stored byte is that of the version the record claims to be."""
    wanted = stored_form(spec, features.header.video_id, version_of(features))
    return (features.data.tobytes(), features.scale.tobytes()) == wanted


def put(writer: FeatureWriter, spec: FeatureSpec, video_id: str, version: int) -> None:
    """Put one version of a video, quantized straight into the buffer of its record as an ingest does."""
    x = make_features(spec, video_id, version)
    shape = (x.shape[0] * x.shape[1], x.shape[2])
    room, _ = record_room(spec)
    buffer = memoryview(bytearray(room + payload_bytes(spec.quantization, shape)))
    scale, error = quantize_into(buffer[room:], [x], shape, spec.quantization, spec.scale)
    header = make_header(
        spec, writer.dataset, video_of(video_id), clip_of(spec), source_of(version), error
    )
    writer.put(spec, header, scale.tobytes(), buffer, slice(room, len(buffer)))
