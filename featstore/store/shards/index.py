"""The index of a sealed shard: all of its catalog and where its records are, so that its pages need not be read.

A file `<digest>.idx` is xxh3-128 of what follows (16 bytes), then a msgpack map. Columns are byte strings, one value
for each record, in the order of the keys: no row is unpacked to open it, and a million videos are looked up as arrays.
docs/format.md has the table.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import msgpack
import numpy as np
import xxhash

from featstore.errors import StoreDamaged, StoreMismatch
from featstore.store.engine.settings import MAX_ROW_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

INDEX_FORMAT = 1
MAX_INDEX_BYTES = 4 << 30
KEY_BYTES = 64
DIGEST_BYTES = 16
_OWN = 16  # bytes of its checksum
_KEY = re.compile(rb"[0-9a-f]{64}")
_SET = re.compile(rb"[0-9a-f]{32}")
_KINDS = {
    "format": int,
    "shard": bytes,
    "file_bytes": int,
    "manifest": bytes,
    "sets": list,
    "failures": list,
    "keys": bytes,
    "offsets": bytes,
    "lengths": bytes,
    "digests": bytes,
    "contents": bytes,
    "ends": bytes,
    "rows": bytes,
}
_REMEDY = "put a good copy of the file in its place, or seal and copy the shard again"


class RecordPlace(NamedTuple):
    """Where a shard has a record: its first byte and length in the file, and xxh3-128 of its bytes."""

    offset: int
    length: int
    digest: bytes


@dataclass(frozen=True, eq=False)
class Index:
    """What a sealed shard holds.

    Attributes:
        shard: xxh3-128 of its file, which names it, 32 hex digits.
        file_bytes: bytes of its file.
        manifest: its manifest's row.
        sets: rows of its feature sets by key.
        failures: rows of its failures by key.
        keys: of the records, ascending, as text of 64 bytes.
        offsets: of each record in the file.
        lengths: of each record.
        digests: xxh3-128 of each record, as void of 16 bytes.
        contents: xxh3-128 of what each record says of its video, not of who made it when; see `content_digest`.
        ends: where each row of the catalog ends in `packed`.
        packed: those rows, one after the other.
    """

    shard: str
    file_bytes: int
    manifest: bytes
    sets: dict[bytes, bytes]
    failures: dict[bytes, bytes]
    keys: NDArray[np.bytes_]
    offsets: NDArray[np.uint64]
    lengths: NDArray[np.uint64]
    digests: NDArray[np.void]
    contents: NDArray[np.void]
    ends: NDArray[np.uint64]
    packed: memoryview

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self.keys)

    def row(self, at: int) -> bytes:
        """Return the catalog row of record number `at`."""
        start = int(self.ends[at - 1]) if at else 0
        return bytes(self.packed[start : int(self.ends[at])])

    def place(self, at: int) -> RecordPlace:
        """Return where record number `at` is."""
        return RecordPlace(int(self.offsets[at]), int(self.lengths[at]), self.digests[at].tobytes())


class IndexedRecord(NamedTuple):
    """A record of a shard that is indexed: its key, its place, its content's digest and its catalog row."""

    key: bytes
    place: RecordPlace
    content: bytes
    row: bytes


def pack_index(
    shard: str,
    file_bytes: int,
    manifest: bytes,
    sets: Mapping[bytes, bytes],
    failures: Mapping[bytes, bytes],
    records: list[IndexedRecord],
) -> bytes:
    """Return the bytes of an index.

    Args:
        shard: xxh3-128 of the shard's file, 32 hex digits.
        file_bytes: Bytes of the file.
        manifest: Its manifest's row.
        sets: Rows of its feature sets by key.
        failures: Rows of its failures by key.
        records: In any order.
    """
    records = sorted(records)
    ends = np.cumsum([len(record.row) for record in records], dtype=np.uint64)
    plain = {
        "format": INDEX_FORMAT,
        "shard": bytes.fromhex(shard),
        "file_bytes": file_bytes,
        "manifest": manifest,
        "sets": [[key, sets[key]] for key in sorted(sets)],
        "failures": [[key, failures[key]] for key in sorted(failures)],
        "keys": b"".join(record.key for record in records),
        "offsets": np.array([r.place.offset for r in records], "<u8").tobytes(),
        "lengths": np.array([r.place.length for r in records], "<u8").tobytes(),
        "digests": b"".join(record.place.digest for record in records),
        "contents": b"".join(record.content for record in records),
        "ends": ends.astype("<u8").tobytes(),
        "rows": b"".join(record.row for record in records),
    }
    packed: bytes = msgpack.packb(plain)
    data = xxhash.xxh3_128_digest(packed) + packed
    unpack_index(memoryview(data), f"the index of {shard}")  # what nobody can read is not written
    return data


def unpack_index(data: memoryview, name: str) -> Index:
    """Return the index in `data`, of which it keeps views, with each length, place and order checked.

    Args:
        data: The whole file.
        name: What a message calls it.

    Raises:
        StoreDamaged: It is damaged, or its parts do not fit together.
        StoreMismatch: It is of another version of featstore.
    """
    packed = data[_OWN:]
    if xxhash.xxh3_128_digest(packed) != bytes(data[:_OWN]):
        raise _damaged(name, "its checksum is not that of what it holds")
    plain = _unpack(packed, name)
    count, odd = divmod(len(plain["keys"]), KEY_BYTES)
    sizes = {
        "offsets": 8,
        "lengths": 8,
        "digests": DIGEST_BYTES,
        "contents": DIGEST_BYTES,
        "ends": 8,
    }
    if odd or any(len(plain[column]) != count * size for column, size in sizes.items()):
        raise _damaged(name, "its columns are not of one length")
    if len(plain["shard"]) != DIGEST_BYTES or not 0 <= plain["file_bytes"] < 1 << 48:
        raise _damaged(name, "it names no file that can be")
    found = Index(
        shard=plain["shard"].hex(),
        file_bytes=plain["file_bytes"],
        manifest=plain["manifest"],
        sets=_pairs(plain["sets"], _SET, name),
        failures=_pairs(plain["failures"], _KEY, name),
        keys=np.frombuffer(plain["keys"], f"S{KEY_BYTES}"),
        offsets=np.frombuffer(plain["offsets"], "<u8"),
        lengths=np.frombuffer(plain["lengths"], "<u8"),
        digests=np.frombuffer(plain["digests"], f"V{DIGEST_BYTES}"),
        contents=np.frombuffer(plain["contents"], f"V{DIGEST_BYTES}"),
        ends=np.frombuffer(plain["ends"], "<u8"),
        packed=memoryview(plain["rows"]),
    )
    _check_columns(found, plain["keys"], name)
    return found


def _unpack(packed: memoryview, name: str) -> dict[str, Any]:
    try:
        plain = msgpack.unpackb(
            packed, max_bin_len=len(packed), max_array_len=len(packed), max_map_len=64
        )
    except Exception as exc:  # msgpack raises a dozen unrelated types on invalid input
        raise _damaged(name, f"it cannot be unpacked ({exc!s:.100})") from exc
    number = plain.get("format") if isinstance(plain, dict) else None
    if number != INDEX_FORMAT:
        raise StoreMismatch(
            f"{name} has index format {number!r:.40}, this featstore reads format {INDEX_FORMAT}",
            remedy="update featstore",
        )
    for field, kind in _KINDS.items():
        if type(plain.get(field)) is not kind:
            raise _damaged(name, f"its {field} is not what it must be")
    return plain  # type: ignore[no-any-return]


def _pairs(plain: list[Any], pattern: re.Pattern[bytes], name: str) -> dict[bytes, bytes]:
    """Return rows by key, keys ascending."""
    before = b""
    for pair in plain:
        if type(pair) is not list or [*map(type, pair)] != [bytes, bytes]:
            raise _damaged(name, "one of its rows is no key and row")
        key, row = pair
        if key <= before or not pattern.fullmatch(key) or len(row) > MAX_ROW_BYTES:
            raise _damaged(name, f"a row under {key!r:.80} cannot be")
        before = key
    return {key: row for key, row in plain}


def _check_columns(found: Index, keys: bytes, name: str) -> None:
    letters = np.frombuffer(keys, np.uint8)
    is_hex = ((letters >= 48) & (letters <= 57)) | ((letters >= 97) & (letters <= 102))
    if not is_hex.all() or (found.keys[1:] <= found.keys[:-1]).any():
        raise _damaged(name, "its keys are not such, or out of order")
    starts = np.concatenate([np.zeros(1, np.uint64), found.ends])
    if (starts[1:] < starts[:-1]).any() or int(starts[-1]) != len(found.packed):
        raise _damaged(name, "the ends of its rows are not such")
    if (np.diff(starts) > MAX_ROW_BYTES).any():
        raise _damaged(name, f"a row is longer than {MAX_ROW_BYTES} bytes")
    room = np.uint64(found.file_bytes)
    outside = (found.offsets > room) | (found.lengths > room - np.minimum(found.offsets, room))
    if outside.any() or (found.lengths == 0).any():
        raise _damaged(name, "a record is not within the file")


def _damaged(name: str, found: str) -> StoreDamaged:
    return StoreDamaged(f"{name} cannot be read: {found}; it is damaged", remedy=_REMEDY)
