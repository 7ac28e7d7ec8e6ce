"""Small stores to damage, and a journal of what was put into each."""

from __future__ import annotations

import struct
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from featstore.encoders.toy import ToyEncoder
from featstore.pipeline.make_record import pack_scales
from featstore.records.header import Header, SourceFingerprint
from featstore.records.quantization import QuantError, measure_error, quantize
from featstore.records.record import pack_record
from featstore.records.storage import Storage
from featstore.sampling import Sampling
from featstore.spec import FeatureSpec
from featstore.store.manifest import Counts
from featstore.store.paths import DATA_FILE
from featstore.store.rows import Entry, Failure
from featstore.store.writer import FeatureWriter

DATASET = "demo"
CREATED = 1_700_000_000.0
ROOM = 64 << 10  # before the payload, for the record's prefix
INT8 = Storage("int8", "channel")
STORAGES = (
    INT8,
    Storage("int8", "token"),
    Storage("int8", "tensor"),
    Storage("int8", "channel_token"),
    Storage("bf16"),
    Storage("fp16"),
)
COMPRESSED = (
    replace(INT8, codec="lz4"),
    replace(INT8, codec="zstd"),
    Storage("bf16", codec="planes"),
    Storage("fp32", codec="planes"),
)


@dataclass(frozen=True)
class Put:
    """One acknowledged video: what a reader must get, and its row."""

    spec: FeatureSpec
    video_id: str
    stored: np.ndarray
    scales: tuple[np.ndarray, ...]
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
        storage: Storage = INT8,
    ) -> None:
        """Put features (rows, width) float32, to be committed by the caller, and remember them."""
        stored, scales = quantize(features, storage)
        error = measure_error(features, stored, scales, storage.values)
        buffer = memoryview(bytearray(ROOM) + stored.tobytes())
        header, record = pack_record(
            _header(spec, video_id, features.shape, storage, error),
            pack_scales(scales),
            buffer,
            slice(ROOM, len(buffer)),
        )
        entry = writer.put(header, record)
        key = spec.digest, video_id
        self.puts[key] = Put(spec, video_id, stored, scales, header, entry)
        self.failures.pop(key, None)

    def fail(self, writer: FeatureWriter, spec: FeatureSpec, video_id: str) -> None:
        """Put a failure's row, to be committed by the caller, and remember it."""
        failure = Failure(video_id, f"/videos/{video_id}.mp4", spec.digest, "no frames", CREATED)
        writer.fail(failure)
        self.failures[spec.digest, video_id] = failure

    @property
    def default(self) -> str:
        """Return the digest of the dataset's default set, which is the first."""
        return next(iter(self.puts))[0]

    def counts(self) -> dict[str, Counts]:
        """Return what the manifest must count, by set."""
        sets = {digest for digest, _ in (*self.puts, *self.failures)}
        entries = [put.entry for put in self.puts.values()]
        return {
            digest: Counts(
                videos=sum(entry.spec == digest for entry in entries),
                failures=sum(spec == digest for spec, _ in self.failures),
                frames=sum(entry.frames for entry in entries if entry.spec == digest),
                record_bytes=sum(entry.record_bytes for entry in entries if entry.spec == digest),
            )
            for digest in sets
        }


@dataclass(frozen=True)
class Store:
    """A store's one file, as it is before it is damaged, and its journal."""

    name: str
    data: bytes
    journal: Journal


def make_storages(seed: int) -> Store:
    """Make a store of a record of each way to store values in one feature set, and of each codec in another."""
    rng = np.random.default_rng(seed)

    def fill(writer: FeatureWriter, journal: Journal) -> None:
        spec = toy_spec()
        writer.add_set(spec)
        for storage in STORAGES:
            journal.put(writer, spec, str(storage), toy_features(rng), storage)
        wide = toy_spec(dim=64)
        writer.add_set(wide)
        even = np.ones((16, 64), np.float32)  # shrinks, which noise does not
        for storage in COMPRESSED:
            journal.put(writer, wide, str(storage), even, storage)
        journal.fail(writer, wide, "broken")

    return _make("storages", fill)


def make_tree(seed: int) -> Store:
    """Make a store whose tree has branches, a free list and a record that was overwritten."""
    rng = np.random.default_rng(seed)
    one, two = toy_spec(), toy_spec(nframe=5)

    def fill(writer: FeatureWriter, journal: Journal) -> None:
        writer.add_set(one, origin="toy")
        writer.add_set(two, origin="toy")
        for video in "ab":
            journal.put(writer, one, video, toy_features(rng))
        for number in range(12):
            journal.fail(writer, two, f"broken {number}")
        writer.commit()
        journal.put(writer, one, "b", toy_features(rng))
        writer.commit()
        journal.put(writer, two, "b", toy_features(rng, nframe=5))

    return _make("tree", fill)


def make_large(seed: int, videos: int = 200) -> Store:
    """Make a store of many records of 64 KiB."""
    rng = np.random.default_rng(seed)
    spec = toy_spec(nframe=8, dim=2048)

    def fill(writer: FeatureWriter, journal: Journal) -> None:
        writer.add_set(spec, origin="toy")
        for number in range(videos):
            journal.put(writer, spec, f"video {number}", toy_features(rng, nframe=8, dim=2048))
            writer.commit()

    return _make("large", fill)


def toy_spec(nframe: int = 4, dim: int = 8) -> FeatureSpec:
    """Return a feature set of the toy encoder."""
    encoder = ToyEncoder(hidden_dim=dim)
    return FeatureSpec(encoder.identity, Sampling(nframe), "decord", encoder.preprocessing)


def toy_features(rng: np.random.Generator, nframe: int = 4, dim: int = 8) -> np.ndarray:
    """Draw features (4 * nframe, dim) float32 whose channels differ in size, as CLIP's do."""
    sizes = np.exp(rng.normal(size=dim))
    return (rng.normal(size=(4 * nframe, dim)) * sizes).astype(np.float32)


def _make(name: str, fill: Any) -> Store:
    journal = Journal()
    with tempfile.TemporaryDirectory(prefix="damage-") as folder:
        with FeatureWriter(folder, DATASET, min_free=0) as writer:
            fill(writer, journal)
        return Store(name, Path(folder, DATASET, DATA_FILE).read_bytes(), journal)


def _header(
    spec: FeatureSpec,
    video_id: str,
    shape: tuple[int, int],
    storage: Storage,
    error: QuantError,
) -> Header:
    frames = spec.sampling.nframe
    return Header(
        video_id=video_id,
        video_path=f"/videos/{video_id}.mp4",
        dataset=DATASET,
        spec=spec.digest,
        nframe=frames,
        frame_indices=struct.pack(f"<{frames}I", *range(frames)),
        total_frames=frames,
        fps=25.0,
        decoder="decord",
        doubt="",
        shape=shape,
        layout=spec.encoder.geometry.layout(frames),
        dtype=spec.encoder.dtype,
        storage=storage,
        source=SourceFingerprint(1_000, 1_700_000_000_000_000_000, "0" * 32),
        error=error,
        created=CREATED,
    )
