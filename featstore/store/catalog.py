"""What a dataset holds, without touching a payload: its manifest, feature sets, finished videos and failures.

A row is a msgpack array of two: xxh3-64 of what follows, and a map. The rows of a feature set share a key prefix, the
spec's digest; a video's row and its record share a key.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

import msgpack
import xxhash

from featstore.errors import StoreMismatch
from featstore.fields import build, to_plain
from featstore.records.header import Header, SourceFingerprint
from featstore.records.quantization import QuantError
from featstore.spec import FeatureSpec
from featstore.store.engine.settings import ENGINE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from featstore.store.engine.snapshot import Snapshot

STORE_FORMAT = 1
MANIFEST_KEY = b"manifest"
_START = b"\x92\xc4\x08"  # array of 2; bin8 of 8 bytes, the checksum
DAMAGED = "damaged: "


@dataclass(frozen=True)
class Manifest:
    """Identifies a dataset's file: name, seconds since 1970 when it was made, store format and engine."""

    dataset: str
    created: float
    format: int = STORE_FORMAT
    engine: str = ENGINE


@dataclass(frozen=True)
class FeatureSet:
    """A spec in a dataset, the checkpoint it was first ingested from, and when, in seconds since 1970."""

    spec: FeatureSpec
    origin: str
    created: float


@dataclass(frozen=True)
class Entry:
    """A finished video's row: enough to list, count and compare it.

    Args:
        video_id: the video's id.
        video_path: path of the file when it was ingested.
        spec: digest of the feature set.
        shape: (num_tokens, hidden_dim).
        frames: number of frames encoded.
        codec: how the payload is compressed.
        record_bytes: bytes of the record.
        raw_bytes: bytes of the payload before compression.
        source: the file that was encoded.
        error: how far stored values are from the encoder's.
        created: seconds since 1970.
    """

    video_id: str
    video_path: str
    spec: str
    shape: tuple[int, int]
    frames: int
    codec: str
    record_bytes: int
    raw_bytes: int
    source: SourceFingerprint
    error: QuantError
    created: float

    @classmethod
    def of(cls, header: Header, record_bytes: int) -> Entry:
        """Return the row of a record."""
        return cls(
            video_id=header.video_id,
            video_path=header.video_path,
            spec=header.spec,
            shape=header.shape,
            frames=len(header.frame_indices) // 4,
            codec=header.codec,
            record_bytes=record_bytes,
            raw_bytes=header.raw_bytes,
            source=header.source,
            error=header.error,
            created=header.created,
        )


@dataclass(frozen=True)
class Failure:
    """A video that could not be ingested, and why."""

    video_id: str
    video_path: str
    spec: str
    reason: str
    created: float

    @property
    def damaged(self) -> bool:
        """Return whether it was stored and then found damaged: the next ingest makes it again."""
        return self.reason.startswith(DAMAGED)


Row = TypeVar("Row")
_TABLES: dict[str, type[FeatureSet | Entry | Failure]] = {
    "specs": FeatureSet,
    "catalog": Entry,
    "failures": Failure,
}


def set_key(digest: str) -> bytes:
    """Return the key of a feature set's row, and the prefix of its videos' keys."""
    return digest.encode()


def video_key(spec: FeatureSpec, dataset: str, video_id: str) -> bytes:
    """Return the 64-byte key of a video's record, row and failure."""
    return set_key(spec.digest) + spec.record_key(dataset, video_id).encode()


def pack_row(row: Manifest | FeatureSet | Entry | Failure) -> bytes:
    """Return a row's bytes."""
    packed: bytes = msgpack.packb(to_plain(row), unicode_errors="surrogatepass")
    return _START + xxhash.xxh3_64_digest(packed) + packed


def read_manifest(snapshot: Snapshot, dataset: str | None = None) -> Manifest:
    """Return the manifest; StoreMismatch if it is missing, of another format or not of `dataset`."""
    return unpack_manifest(snapshot.read("manifest", MANIFEST_KEY), snapshot.path, dataset)


def unpack_manifest(data: bytes | None, path: Path, dataset: str | None = None) -> Manifest:
    """Return the manifest found in the folder `path`; StoreMismatch as `read_manifest`."""
    if data is None:
        raise StoreMismatch(
            f"{path} holds an LMDB file but no featstore dataset",
            remedy="ingest into another --cache-dir",
        )
    plain = _unpack(data)
    if plain.get("format") != STORE_FORMAT:
        raise StoreMismatch(
            f"{path} has store format {plain.get('format')!r}, this featstore reads format "
            f"{STORE_FORMAT}",
            remedy="update featstore, or ingest into another --cache-dir",
        )
    manifest = _build(Manifest, plain)
    if dataset is not None and manifest.dataset != dataset:
        raise StoreMismatch(
            f"{path} holds the dataset {manifest.dataset!r}; its folder must have that name",
            remedy="rename it back",
        )
    return manifest


def stored_spec(snapshot: Snapshot, spec: FeatureSpec) -> FeatureSpec | None:
    """Return the spec of the feature set that `spec` belongs to, as it was first ingested, or None.

    The two may name the vision tower differently, which changes the record keys: use those of the stored one.
    """
    key = set_key(spec.digest)
    data = snapshot.read("specs", key)
    return None if data is None else unpack_set(key, data).spec


def read_sets(snapshot: Snapshot) -> dict[str, FeatureSet]:
    """Return the dataset's feature sets by digest, oldest first; read once per snapshot."""
    as_of, known = snapshot.cache.sets
    if as_of == snapshot.txn_id:
        return known
    sets: dict[str, FeatureSet] = {}
    for key, data in snapshot.rows("specs"):
        found = unpack_set(key, data)
        sets[found.spec.digest] = found
    sets = dict(sorted(sets.items(), key=lambda item: item[1].created))
    snapshot.cache.sets = snapshot.txn_id, sets
    return sets


def has_entry(snapshot: Snapshot, key: bytes) -> bool:
    """Return whether there is a row of a finished video with `key`, perhaps a damaged one."""
    return snapshot.read("catalog", key) is not None


def read_entry(snapshot: Snapshot, key: bytes) -> Entry | None:
    """Return the row of the finished video with `key`, or None."""
    data = snapshot.read("catalog", key)
    return None if data is None else unpack_entry(data)


def read_entries(snapshot: Snapshot, digest: str = "") -> Iterator[Entry]:
    """Yield the rows of the finished videos, of one feature set or of all."""
    for _, data in snapshot.rows("catalog", set_key(digest)):
        yield unpack_entry(data)


def read_failures(snapshot: Snapshot, digest: str = "") -> Iterator[Failure]:
    """Yield the rows of the videos that failed, of one feature set or of all."""
    for _, data in snapshot.rows("failures", set_key(digest)):
        yield unpack_failure(data)


def read_failure(snapshot: Snapshot, key: bytes) -> Failure | None:
    """Return the row of the failed video with `key`, or None."""
    data = snapshot.read("failures", key)
    return None if data is None else unpack_failure(data)


def unpack_failure(data: bytes) -> Failure:
    """Return a failed video's row; StoreMismatch if it is invalid."""
    return _build(Failure, _unpack(data))


def unpack_entry(data: bytes) -> Entry:
    """Return a finished video's row; StoreMismatch if it is invalid."""
    return _build(Entry, _unpack(data))


@lru_cache(maxsize=256)
def unpack_set(key: bytes, data: bytes) -> FeatureSet:
    """Return the feature set whose row has `key`; StoreMismatch if it is invalid or has another key."""
    found = _build(FeatureSet, _unpack(data))
    if set_key(found.spec.digest) != key:
        raise StoreMismatch(
            f"the feature set {key.decode(errors='replace')} describes {found.spec.digest}; its row is damaged",
            remedy="featstore check --repair removes this set only, then ingest its videos again",
        )
    return found


def is_newer_row(table: str, data: bytes) -> bool:
    """Return whether a row is undamaged and unknown to this release: its checksum is right, its content is not."""
    try:
        plain = _unpack(data)
    except StoreMismatch:
        return False
    try:
        _build(_TABLES[table], plain)
    except StoreMismatch:
        return True
    return False


def _unpack(data: bytes) -> dict[str, Any]:
    start, checksum, packed = data[:3], data[3:11], data[11:]
    if start != _START or xxhash.xxh3_64_digest(packed) != checksum:
        raise _unreadable(f"{checksum.hex()} is not the checksum of what follows")
    try:
        plain = msgpack.unpackb(packed, unicode_errors="surrogatepass", strict_map_key=True)
    except Exception as exc:  # msgpack raises a dozen unrelated types on invalid input
        raise _unreadable(exc) from exc
    if not isinstance(plain, dict):
        raise _unreadable(f"a {type(plain).__name__}")
    return plain


def _build(kind: type[Row], plain: dict[str, Any]) -> Row:
    try:
        return build(kind, plain)
    except ValueError as exc:
        raise _unreadable(exc) from exc


def _unreadable(found: object) -> StoreMismatch:
    return StoreMismatch(
        f"a row of the catalog cannot be read ({found!s:.200}): damaged, or of another version",
        remedy="run featstore check",
    )
