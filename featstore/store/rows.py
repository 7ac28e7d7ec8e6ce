"""The rows of a dataset's catalog: feature sets, finished videos and failures, and their bytes.

A row is a msgpack array of two: xxh3-64 of what follows, and the values. The rows of a feature set share a key prefix,
the spec's digest; a video's row and its record share a key.
"""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, get_type_hints

import msgpack
import xxhash

from featstore.errors import StoreDamaged, plain_line
from featstore.fields import build, to_plain
from featstore.records.header import Header, SourceFingerprint
from featstore.records.quantization import QuantError
from featstore.records.storage import Storage
from featstore.spec import FeatureSpec  # noqa: TC001 (the types of fields are read when a row is rebuilt)
from featstore.store.engine.settings import MAX_ROW_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

DIGEST_DIGITS = 32
_START = b"\x92\xc4\x08"  # array of 2; bin8 of 8 bytes, the checksum
DAMAGED = "damaged: "
_AT_ONCE = 64  # rows that are unpacked at once, few enough to stay in the cache of a core


@dataclass(frozen=True)
class FeatureSet:
    """A feature set of a dataset.

    Args:
        spec: what determines its features.
        storage: how they are to be stored; each record says how it is.
        max_error: the error budget, a token's relative L2; None for none.
        origin: the checkpoint it was first ingested from.
        names: further names of the encoder's parts, for people.
        created: seconds since 1970.
        storage_since: when `storage` replaced another, seconds since 1970, 0 if it never did; records made before that
            are stored in another way are due to be made again.
    """

    spec: FeatureSpec
    storage: Storage
    max_error: float | None
    origin: str
    names: dict[str, str]
    created: float
    storage_since: float

    def differs(self, entry: Entry) -> bool:
        """Return whether a video's record is stored in another way than the set says."""
        # One made since may be raw as it did not shrink, and lossless as it missed the error budget.
        asked, is_older = self.storage, entry.created < self.storage_since
        if entry.max_abs and entry.values == self.spec.encoder.dtype:
            return True  # imported as int8 restored it
        if (entry.values, entry.granularity) == (asked.values, asked.granularity):
            return entry.codec != asked.codec and is_older
        return is_older or not self.is_lossless(entry)

    def is_lossless(self, entry: Entry) -> bool:
        """Return whether a video is stored as it was computed, though its set is not: it missed the error budget."""
        return entry.values == self.spec.encoder.dtype != self.storage.values and not entry.max_abs

    def describe(self) -> str:
        """Return a line for people."""
        return f"{self.spec.describe()} -> {self.storage}  from {plain_line(self.origin)}"


class Entry(NamedTuple):
    """A finished video's row: enough to list, count and compare it; a tuple, for there may be millions.

    Attributes:
        spec: digest of the feature set; from the row's key.
        video_id: the video's id.
        video_path: path of the file when it was ingested.
        rows, width: shape of the features.
        frames: number of frames encoded.
        values: how values are stored, see Storage; and so `granularity` and `codec`.
        record_bytes: bytes of the record.
        raw_bytes: bytes of the payload before compression.
        decoder: what decoded it.
        doubt: why the frames may not be those asked for; empty if they are.
        size: bytes of the file that was encoded; with `mtime_ns` and `xxh3_128` its `source`.
        cosine: how far stored values are from the encoder's, with the next four; see QuantError.
        created: seconds since 1970.
    """

    spec: str
    video_id: str
    video_path: str
    rows: int
    width: int
    frames: int
    values: str
    granularity: str
    codec: str
    record_bytes: int
    raw_bytes: int
    decoder: str
    doubt: str
    size: int
    mtime_ns: int
    xxh3_128: str
    cosine: float
    relative_l2: float
    max_abs: float
    token_p99: float
    token_max: float
    created: float

    @classmethod
    def of(cls, header: Header, record_bytes: int) -> Entry:
        """Return the row of a record."""
        storage, source, error = header.storage, header.source, header.error
        return cls(
            header.spec,
            header.video_id,
            header.video_path,
            *header.shape,
            len(header.frame_indices) // 4,
            storage.values,
            storage.granularity,
            storage.codec,
            record_bytes,
            header.raw_bytes,
            header.decoder,
            header.doubt,
            source.size,
            source.mtime_ns,
            source.xxh3_128,
            error.cosine,
            error.relative_l2,
            error.max_abs,
            error.token_p99,
            error.token_max,
            header.created,
        )

    @property
    def source(self) -> SourceFingerprint:
        """Return the file that was encoded."""
        return SourceFingerprint(self.size, self.mtime_ns, self.xxh3_128)

    @property
    def error(self) -> QuantError:
        """Return how far stored values are from the encoder's."""
        return QuantError(
            self.cosine, self.relative_l2, self.max_abs, self.token_p99, self.token_max
        )

    @property
    def storage(self) -> Storage:
        """Return how the values are stored; raise StoreDamaged if this version knows no such storage."""
        try:
            return Storage(self.values, self.granularity, self.codec)
        except ValueError as exc:
            raise _unknown(exc) from exc


_ENTRY_TYPES = list(get_type_hints(Entry).values())[1:]
_new = tuple.__new__  # takes half the time of Entry's own


@dataclass(frozen=True)
class Failure:
    """A video that could not be ingested into the feature set `spec`, and why."""

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


def set_key(digest: str) -> bytes:
    """Return the key of a feature set's row, and the prefix of its videos' keys."""
    return digest.encode()


def video_key(digest: str, video_id: str) -> bytes:
    """Return the 64-byte key of a video's record, row and failure: the set's digest and MD5 of the id, in hex.

    Any string has one, also one with the surrogates of an undecodable file name. MD5 is not for security here: the id
    in the record is compared.
    """
    if not isinstance(video_id, str):
        raise TypeError(f"a video id is text, not {video_id!r:.200}")
    data = video_id.encode("utf-8", "surrogatepass")
    return (digest + hashlib.md5(data, usedforsecurity=False).hexdigest()).encode()


def pack_row(row: object) -> bytes:
    """Return a row's bytes; raise ValueError if they are more than a reader takes."""
    values = row[1:] if isinstance(row, Entry) else to_plain(row)
    packed: bytes = msgpack.packb(values, unicode_errors="surrogatepass")
    if len(packed) > MAX_ROW_BYTES - 11:
        raise ValueError(
            f"a row of {len(packed)} bytes is too long for a catalog, which takes {MAX_ROW_BYTES}: shorten its texts"
        )
    return _START + xxhash.xxh3_64_digest(packed) + packed


def unpack_failure(data: bytes) -> Failure:
    """Return a failed video's row; StoreDamaged if it is invalid."""
    return build_row(Failure, unpack_row(data))


def unpack_entry(key: bytes, data: bytes) -> Entry:
    """Return the finished video's row under `key`; StoreDamaged if it is invalid."""
    return entry_of(key[:DIGEST_DIGITS].decode("ascii", "replace"), data)


def entry_of(digest: str, data: bytes) -> Entry:
    """Return a finished video's row of the feature set `digest`; StoreDamaged if it is invalid."""
    row = unpack_row(data)
    if type(row) is not list or [*map(type, row)] != _ENTRY_TYPES:
        raise _unknown("its values are not those of a video")
    return _new(Entry, [digest, *row])


def entries_of(digest: str, rows: Iterable[bytes]) -> Iterator[Entry]:
    """Yield each of `rows` as `entry_of` returns it; millions take less time so."""
    return chain.from_iterable(_some_entries((digest,), iter(rows)))


def _some_entries(first: tuple[str], rows: Iterator[bytes]) -> Iterator[Iterable[Entry]]:
    while some := [*islice(rows, _AT_ONCE)]:
        found: list[Any] = []
        with contextlib.suppress(Exception):  # said below of the row that it is about
            found = _unpack_alike(some)
        yield [_new(Entry, first + row) for row in found] or map(partial(entry_of, *first), some)


def _unpack_alike(rows: list[bytes]) -> Any:
    """Return the values of rows of videos; none, or any exception, if one is not such a row."""
    packed = [row[11:] for row in rows]
    if [row[:11] for row in rows] != [_START + xxhash.xxh3_64_digest(data) for data in packed]:
        return []
    array = b"\xdd" + len(rows).to_bytes(4, "big") + b"".join(packed)
    found = msgpack.unpackb(array, unicode_errors="surrogatepass", use_list=False)
    alike = [*map(len, found)] == [len(_ENTRY_TYPES)] * len(rows)  # no list: other types
    return found if alike and [*map(type, chain(*found))] == _ENTRY_TYPES * len(rows) else []


@lru_cache(maxsize=256)
def unpack_set(key: bytes, data: bytes) -> FeatureSet:
    """Return the feature set whose row has `key`; StoreDamaged if it is invalid or has another key."""
    found = build_row(FeatureSet, unpack_row(data))
    if set_key(found.spec.digest) != key:
        raise StoreDamaged(
            f"the feature set {key.decode(errors='replace')} describes {found.spec.digest}; its row is damaged",
            remedy="featstore check --repair removes this set only, then ingest its videos again",
        )
    return found


def unpack_row(data: bytes) -> Any:
    """Return a row's plain values; StoreDamaged if it is damaged."""
    packed = data[11:]
    if data[:11] != _START + xxhash.xxh3_64_digest(packed):
        raise StoreDamaged(
            "a row of the catalog cannot be read, it is damaged: its checksum is not that of what it holds",
            remedy="run featstore check --repair",
        )
    try:
        return msgpack.unpackb(packed, unicode_errors="surrogatepass")
    except Exception as exc:  # msgpack raises a dozen unrelated types on invalid input
        raise _unknown(exc) from exc


def build_row(kind: type[Row], plain: Any) -> Row:
    """Return the row of `kind` that plain values describe; StoreDamaged if they do not."""
    try:
        return build(kind, plain)
    except ValueError as exc:
        raise _unknown(exc) from exc


def _unknown(found: object) -> StoreDamaged:
    return StoreDamaged(
        f"a row of the catalog cannot be read, it is whole and of another version of featstore ({found!s:.200})",
        remedy="update featstore",
    )
