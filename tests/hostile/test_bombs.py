"""Small files that claim to be large ones: no memory is taken for a claim before it is checked."""

from __future__ import annotations

import dataclasses
import tracemalloc
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import xxhash
from toys import store_videos, toy_features, toy_header, toy_spec

from featstore.errors import RecordError, StoreDamaged, StoreError
from featstore.geometry import RowLayout
from featstore.records.features import Features
from featstore.records.record import pack_prefix, parse
from featstore.records.storage import MAX_PAYLOAD_BYTES, Storage
from featstore.store.catalog import read_manifest
from featstore.store.engine.environment import open_environment
from featstore.store.engine.settings import MAX_ROW_BYTES
from featstore.store.engine.snapshot import TABLES
from featstore.store.maintenance.check import check_dataset
from featstore.store.reader import FeatureStore
from featstore.store.rows import pack_row

if TYPE_CHECKING:
    from collections.abc import Iterator

    from featstore.records.header import Header

A = toy_features(1)


@contextmanager
def little_memory(most: int = 4 << 20) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


ROWS, WIDTH = MAX_PAYLOAD_BYTES // 4096 // 4 * 4, 4096
ONE = b"\0\0\x80\x3f"  # the only scale


def claiming(codec: str, payload: bytes) -> tuple[Header, bytes]:
    """A record whose header claims nearly 4 GiB, and what it says so of."""
    storage = Storage("int8", "tensor", codec)
    header = dataclasses.replace(
        toy_header(toy_spec(), "demo", "a", A, storage),
        shape=(ROWS, WIDTH),
        layout=RowLayout(units=4, tokens_per_unit=ROWS // 4),
        payload_xxh3=xxhash.xxh3_64_intdigest(payload),
    )
    return header, pack_prefix(header, ONE, len(payload)) + payload


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
@pytest.mark.parametrize("stored", [20, 5000, 300_000])
def test_a_record_that_claims_to_expand_beyond_belief_takes_no_memory(codec, stored):
    _, record = claiming(codec, bytes(stored))
    with little_memory():
        found = parse(memoryview(record))
        found.verify()  # whoever made it made the checksum too
        features = Features(found.header, found)
        for look in (lambda: features.data, features.dequantize):
            with pytest.raises(RecordError):
                look()


def test_a_raw_record_holds_what_it_claims():
    with pytest.raises(ValueError, match="the payload holds 20 bytes"):
        claiming("raw", bytes(20))


def test_a_row_too_long_to_be_one_is_refused_before_it_is_copied(tmp_path):
    store_videos(tmp_path, "demo", {"a": A})
    environment = open_environment(tmp_path / "demo")
    huge = bytes(64 << 20)
    with environment.lmdb.begin(write=True) as txn:
        for table in ("catalog", "failures", "specs"):
            txn.put(TABLES[table] + toy_spec().digest.encode() + b"z" * 32, huge)
    dataset = FeatureStore(tmp_path)["demo"]
    with little_memory(MAX_ROW_BYTES):
        for look in (
            lambda: list(dataset.entries()),
            lambda: list(dataset.failures()),
            dataset.sets.rows,
        ):
            with pytest.raises(StoreDamaged, match="a row of 67108864 bytes cannot be"):
                look()
        [problem] = check_dataset(tmp_path, "demo").problems
    assert "a row of 67108864 bytes" in problem


def test_a_sparse_file_of_a_tebibyte_takes_neither_memory_nor_time(tmp_path):
    store_videos(tmp_path, "demo", {"a": A})
    with (tmp_path / "demo" / "data.mdb").open("r+b") as file:
        file.truncate(1 << 40)
    with little_memory():
        assert FeatureStore(tmp_path)["demo"]["a"].shape == A.shape
        assert check_dataset(tmp_path, "demo").problems == []
    (tmp_path / "empty").mkdir()
    with (tmp_path / "empty" / "data.mdb").open("wb") as file:
        file.truncate(1 << 40)
    with little_memory(), pytest.raises(StoreError):
        FeatureStore(tmp_path)["empty"]


def test_a_manifest_row_may_be_as_long_as_rows_are(tmp_path):
    """The bound is on what is read, and real rows are far below it."""
    store_videos(tmp_path, "demo", {"ü" * 2048: A})
    manifest = read_manifest(open_environment(tmp_path / "demo").snapshot())
    assert len(pack_row(manifest)) < 1000 < MAX_ROW_BYTES
    [entry] = FeatureStore(tmp_path)["demo"].entries()
    assert len(pack_row(entry)) < MAX_ROW_BYTES // 8
