"""Seal a dataset's file as a shard: compacted, verified, indexed, and put where the dataset's other shards are.

A kill at any moment leaves the dataset that is sealed as it was, and where the shards are files that no list names; the
same call goes on. Files are named by content, so that a second copy of one takes its place.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from typing import TYPE_CHECKING

import msgpack
import xxhash

from featstore.errors import RecordError, StoreDamaged
from featstore.fields import to_plain
from featstore.records.record import parse
from featstore.store.catalog import hold_dataset, read_manifest
from featstore.store.engine.environment import open_snapshot
from featstore.store.engine.pages import refuse_damaged_pages
from featstore.store.engine.snapshot import TABLES
from featstore.store.engine.still_file import hold_still
from featstore.store.manifest import MANIFEST_KEY
from featstore.store.paths import DATA_FILE, SEAL_FILE, compacting_path, explained, is_sealed
from featstore.store.rows import video_key
from featstore.store.shards.index import IndexedRecord, RecordPlace, pack_index
from featstore.store.shards.manifest_list import ShardRow, add_shards
from featstore.store.shards.places import PIECE_BYTES, shard_file

if TYPE_CHECKING:
    from pathlib import Path

    from featstore.records.record import Record
    from featstore.store.engine.snapshot import Snapshot
    from featstore.store.shards.places import FilePlace

# What a record says of who made it when and from which path, not of its features.
_CIRCUMSTANCES = ("created", "video_path")


def seal_shard(
    cache_dir: str | os.PathLike[str], dataset: str, place: FilePlace
) -> ShardRow | None:
    """Add what `cache_dir/dataset` holds to the shards of the dataset of that name in `place`.

    The dataset here stays as it is, and is compacted into a folder beside it for as long as this takes.

    Args:
        cache_dir: The cache directory that holds the dataset, on a local disk.
        dataset: The dataset's name.
        place: Where its shards are.

    Returns:
        The shard's row in the list; None if the dataset holds nothing.

    Raises:
        StoreNotFound: There is no such dataset.
        StoreLocked: An ingest is at work on it.
        StoreDamaged: A record or a page of it is damaged.
        StoreError: A disk is full, or cannot be written.
    """
    with (
        hold_dataset(cache_dir, dataset) as path,
        explained(f"{path} cannot be sealed as a shard"),
    ):
        counts = read_manifest(open_snapshot(path), dataset).sets.values()
        if not any(found.videos or found.failures for found in counts):
            return None
        aside = compacting_path(path)
        _clear(aside)
        try:
            with hold_still(path, sealed=is_sealed(path)) as source:
                os.mkdir(aside, 0o700)
                source.copy_compacted(aside)
                rows = source.rows
            (aside / SEAL_FILE).touch()  # read as it is: nobody else knows of it
            refuse_damaged_pages(aside)
            return put_shard(aside, dataset, place, rows)
        finally:
            _clear(aside)


def put_shard(folder: Path, dataset: str, place: FilePlace, rows: int) -> ShardRow:
    """Put a compacted file as a shard: the file, then its index, then the list; raise as `seal_shard`.

    Args:
        folder: Of the file, sealed.
        dataset: The dataset's name.
        place: Where its shards are.
        rows: How many keys the file must have.
    """
    data = folder / DATA_FILE
    size, shard = os.stat(data).st_size, file_digest(data)
    snapshot = open_snapshot(folder)
    found = sum(map(snapshot.count, TABLES))
    if found != rows:
        raise StoreDamaged(
            f"the compacted copy of {dataset} is not whole ({found} of {rows} rows), so it was not sealed",
            remedy="run featstore check",
        )
    records = [_indexed(snapshot, key, row) for key, row in snapshot.rows("catalog")]
    manifest = snapshot.read("manifest", MANIFEST_KEY) or b""
    tables = dict(snapshot.rows("specs")), dict(snapshot.rows("failures"))
    index = pack_index(shard, size, manifest, *tables, records)
    row = ShardRow(shard, size, xxhash.xxh3_128_hexdigest(index), len(index), len(records))
    if place.names(shard_file(dataset)).get(row.data_name) != size:
        place.upload(shard_file(dataset, row.data_name), data)
    place.put(shard_file(dataset, row.index_name), index)
    add_shards(place, dataset, [row])
    return row


def _indexed(snapshot: Snapshot, key: bytes, row: bytes) -> IndexedRecord:
    """Return what the index says of a record, which is verified."""
    value = snapshot.get("records", key)
    try:
        record = parse(value or memoryview(b""))
        snapshot.prefault(record.payload)  # faults read a cold disk at half its speed
        record.verify()
    except RecordError as exc:
        raise StoreDamaged(
            f"{key.decode(errors='replace')} of {snapshot.path}: {exc.found}; it was not sealed",
            remedy="run featstore check --repair, then ingest the video again",
        ) from exc
    assert value is not None
    if video_key(record.header.spec, record.header.video_id) != key:
        raise StoreDamaged(f"the record of {record.header.video_id!r} has the key of another video")
    place = snapshot.place(value)
    digest = xxhash.xxh3_128_digest(value)
    return IndexedRecord(
        key, RecordPlace(place.offset, place.length, digest), content_digest(record), row
    )


def content_digest(record: Record) -> bytes:
    """Return xxh3-128 of what a record says of its video, without when it was made and from which path.

    The payload is in it by the checksum that the header has of it; records that were made of one file by one encoder
    have the same digest.
    """
    fields = to_plain(record.header)
    for name in _CIRCUMSTANCES:
        del fields[name]
    del fields["source"]["mtime_ns"]
    hasher = xxhash.xxh3_128(msgpack.packb(fields, unicode_errors="surrogatepass"))
    hasher.update(record.scales)
    return hasher.digest()


def file_digest(path: Path) -> str:
    """Return xxh3-128 of a file, 32 hex digits."""
    hasher = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while piece := file.read(PIECE_BYTES):
            hasher.update(piece)
    return hasher.hexdigest()


def _clear(aside: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(aside)
