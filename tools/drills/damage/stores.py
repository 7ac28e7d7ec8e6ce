"""Small stores to damage, and a journal of what was put into each."""

from __future__ import annotations

import struct
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from featstore.encoders.toy import ToyEncoder
from featstore.records.codecs import compress
from featstore.records.header import Header, SourceFingerprint
from featstore.records.quantization import QuantError, measure_error, quantize
from featstore.sampling import Sampling
from featstore.spec import FeatureSpec
from featstore.store.catalog import Entry, Failure
from featstore.store.paths import DATA_FILE
from featstore.store.writer import FeatureWriter

DATASET = "demo"
TOKENS_PER_FRAME = 4
CREATED = 1_700_000_000.0
ROOM = 64 << 10  # before the payload, for the record's prefix
STORAGES = (
    ("int8", "channel"),
    ("int8", "token"),
    ("int8", "tensor"),
    ("bf16", "none"),
)


@dataclass(frozen=True)
class Put:
    """One acknowledged video: what a reader must get, and its row."""

    spec: FeatureSpec
    video_id: str
    stored: np.ndarray
    scale: np.ndarray
    header: Header
    entry: Entry


@dataclass
class Journal:
    """What was committed to a store, by feature set and video; an overwrite replaces what was there."""

    puts: dict[tuple[str, str], Put] = field(default_factory=dict)
    failures: dict[tuple[str, str], Failure] = field(default_factory=dict)

    def put(
        self,
        writer: FeatureWriter,
        spec: FeatureSpec,
        video_id: str,
        features: np.ndarray,
        *,
        codec: str = "raw",
    ) -> None:
        """Put features (num_tokens, hidden_dim) float32, to be committed by the caller, and remember them."""
        stored, scale = quantize(features, spec.quantization, spec.scale)
        error = measure_error(features, stored, scale, spec.quantization)
        header = _header(spec, video_id, features.shape, error)
        buffer = memoryview(bytearray(ROOM) + stored.tobytes())
        payload = slice(ROOM, len(buffer))
        entry = writer.put(spec, header, scale.tobytes(), buffer, payload, codec=codec)
        codec, kept = compress(memoryview(stored.tobytes()), codec)
        header = replace(header, codec=codec, payload_xxh3=xxhash.xxh3_64_intdigest(kept))
        key = spec.digest, video_id
        self.puts[key] = Put(spec, video_id, stored, scale, header, entry)
        self.failures.pop(key, None)

    def fail(self, writer: FeatureWriter, spec: FeatureSpec, video_id: str) -> None:
        """Put a failure's row, to be committed by the caller, and remember it."""
        failure = Failure(video_id, f"/videos/{video_id}.mp4", spec.digest, "no frames", CREATED)
        writer.fail(spec, failure)
        self.failures[spec.digest, video_id] = failure


@dataclass(frozen=True)
class Store:
    """A store's one file, as it is before it is damaged, and its journal."""

    name: str
    data: bytes
    journal: Journal


def make_storages(seed: int) -> Store:
    """Make a store of one feature set for each way to store values, a raw, an lz4 and a zstd record among them."""
    rng = np.random.default_rng(seed)

    def fill(writer: FeatureWriter, journal: Journal) -> None:
        for quantization, scale in STORAGES:
            spec = toy_spec(quantization, scale)
            writer.add_set(spec, "toy")
            journal.put(writer, spec, f"{quantization} {scale}", toy_features(rng))
        spec = toy_spec("int8", "channel", dim=64)
        writer.add_set(spec, "toy")
        even = np.ones((16, 64), np.float32)  # shrinks, which noise does not
        for codec in ("lz4", "zstd"):
            journal.put(writer, spec, codec, even, codec=codec)
        journal.fail(writer, spec, "broken")

    return _make("storages", fill)


def make_tree(seed: int) -> Store:
    """Make a store whose tree has branches, a free list and a record that was overwritten."""
    rng = np.random.default_rng(seed)
    one, two = toy_spec("int8", "channel"), toy_spec("int8", "channel", nframe=5)

    def fill(writer: FeatureWriter, journal: Journal) -> None:
        writer.add_set(one, "toy")
        writer.add_set(two, "toy")
        for video in "ab":
            journal.put(writer, one, video, toy_features(rng))
        for number in range(12):
            journal.fail(writer, two, f"broken {number}")
        writer.commit()
        journal.put(writer, one, "b", toy_features(rng))
        writer.commit()
        journal.put(writer, two, "b", toy_features(rng))

    return _make("tree", fill)


def make_large(seed: int, videos: int = 200) -> Store:
    """Make a store of many records of 64 KiB."""
    rng = np.random.default_rng(seed)
    spec = toy_spec("int8", "channel", nframe=64, dim=2048)

    def fill(writer: FeatureWriter, journal: Journal) -> None:
        writer.add_set(spec, "toy")
        for number in range(videos):
            journal.put(writer, spec, f"video {number}", toy_features(rng, tokens=32, dim=2048))
            writer.commit()

    return _make("large", fill)


def toy_spec(quantization: str, scale: str, nframe: int = 4, dim: int = 8) -> FeatureSpec:
    """Return a feature set of the toy encoder."""
    encoder = ToyEncoder(hidden_dim=dim).identity
    return FeatureSpec(encoder, Sampling(nframe), "decord", quantization, scale)


def toy_features(rng: np.random.Generator, tokens: int = 16, dim: int = 8) -> np.ndarray:
    """Draw features (tokens, dim) float32 whose channels differ in size, as CLIP's do."""
    sizes = np.exp(rng.normal(size=dim))
    return (rng.normal(size=(tokens, dim)) * sizes).astype(np.float32)


def _make(name: str, fill: Any) -> Store:
    journal = Journal()
    with tempfile.TemporaryDirectory(prefix="damage-") as folder:
        with FeatureWriter(folder, DATASET, min_free=0) as writer:
            fill(writer, journal)
        return Store(name, Path(folder, DATASET, DATA_FILE).read_bytes(), journal)


def _header(spec: FeatureSpec, video_id: str, shape: tuple[int, int], error: QuantError) -> Header:
    frames = shape[0] // TOKENS_PER_FRAME
    return Header(
        video_id=video_id,
        video_path=f"/videos/{video_id}.mp4",
        dataset=DATASET,
        nframe=max(frames, spec.sampling.nframe),
        frame_indices=struct.pack(f"<{frames}I", *range(frames)),
        total_frames=frames,
        fps=25.0,
        shape=shape,
        tokens_per_frame=TOKENS_PER_FRAME,
        quantization=spec.quantization,
        scale=spec.scale,
        dtype=spec.encoder.dtype,
        model_signature=spec.encoder.model_signature,
        spec=spec.digest,
        source=SourceFingerprint(1_000, 1_700_000_000_000_000_000, "0" * 32),
        error=error,
        created=CREATED,
    )
