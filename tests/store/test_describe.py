"""What a store says of itself: counts from the manifest, errors from the rows."""

import errno
import json
import os
from datetime import datetime
from unittest.mock import ANY

import pytest
from damage import put_raw
from toys import put_video, store_videos, toy_features, toy_spec

from featstore.errors import FeatstoreError, StoreDamaged, StoreNotFound
from featstore.records.storage import Storage
from featstore.store import describe
from featstore.store.default_set import set_default
from featstore.store.describe import describe_dataset, describe_store, write_cache_meta
from featstore.store.engine.environment import open_environment
from featstore.store.engine.snapshot import Snapshot
from featstore.store.reader import FeatureStore
from featstore.store.rows import Failure
from featstore.store.writer import FeatureWriter

FOUR, EIGHT = toy_spec(4), toy_spec(8)


@pytest.fixture
def two(cache):
    store_videos(cache, "demo", {"a": toy_features(1), "b": toy_features(2)}, spec=FOUR)
    with FeatureWriter(cache, "demo", min_free=0) as writer:
        writer.add_set(
            EIGHT, Storage("fp16"), origin="here", names={"vision_tower": "clip"}, max_error=0.02
        )
        writer.fail(Failure("bad", "/bad.mp4", EIGHT.digest, "no frames", 0.0))
    return cache


def test_a_dataset_is_described_in_plain_values(two):
    found = describe_dataset(two, "demo")
    assert found == json.loads(json.dumps(found))
    assert (found["videos"], found["failures"], found["record_bytes"]) == (2, 1, 2 * (4080 + 128))
    assert (found["dataset"], found["format"], found["sealed"]) == ("demo", 2, False)
    assert found["default_set"] == FOUR.digest
    four, eight = found["feature_sets"]
    assert (four["feature_set"], four["videos"], four["failures"], four["frames"]) == (
        *(FOUR.digest, 2, 0, 8),
    )
    assert four["storage"] == {"values": "int8", "granularity": "channel_token", "codec": "raw"}
    assert (four["max_error"], four["names"], four["spec"]) == (None, {}, FOUR.to_dict())
    assert (eight["videos"], eight["failures"], eight["max_error"]) == (0, 1, 0.02)
    assert (eight["origin"], eight["names"]) == ("here", {"vision_tower": "clip"})
    assert set(eight["errors"].values()) == {None}
    assert (four["decoders"], four["doubts"]) == ({"pyav": 2}, {})
    assert (eight["decoders"], eight["doubts"]) == ({}, {})
    set_default(two, "demo", EIGHT.digest)
    assert describe_dataset(two, "demo")["default_set"] == EIGHT.digest


def test_errors_are_the_worst_of_the_videos_and_the_mean(two):
    entries = list(FeatureStore(two)["demo"].entries())
    assert describe_dataset(two, "demo")["feature_sets"][0]["errors"] == {
        "cosine_min": min(entry.cosine for entry in entries),
        "relative_l2_mean": sum(entry.relative_l2 for entry in entries) / 2,
        "relative_l2_max": max(entry.relative_l2 for entry in entries),
        "max_abs": max(entry.max_abs for entry in entries),
        "token_p99_max": max(entry.token_p99 for entry in entries),
        "token_max": max(entry.token_max for entry in entries),
    }


def test_decoders_and_doubts_are_counted_by_set(two):
    with FeatureWriter(two, "demo", min_free=0) as writer:
        writer.add_set(FOUR)
        for video, doubt in {"c": "edit list", "d": "open GOP", "e": "edit list"}.items():
            put_video(writer, FOUR, video, toy_features(1), decoder="decord", doubt=doubt)
    four, eight = describe_dataset(two, "demo")["feature_sets"]
    assert (four["decoders"], four["doubts"]) == (
        {"pyav": 2, "decord": 3},
        {"edit list": 2, "open GOP": 1},
    )
    assert (eight["decoders"], eight["doubts"]) == ({}, {})


def test_videos_that_are_stored_otherwise_than_their_set_says_are_counted(two):
    def counts():
        sets = describe_dataset(two, "demo")["feature_sets"]
        return [found["stored_otherwise"] for found in sets]

    assert counts() == [0, 0]
    with FeatureWriter(two, "demo", min_free=0) as writer:
        bf16 = writer.add_set(FOUR, Storage("bf16"), replace_storage=True).storage
        put_video(writer, FOUR, "a", toy_features(1), bf16)
    assert counts() == [1, 0]
    with FeatureWriter(two, "demo", min_free=0) as writer:
        writer.add_set(FOUR, Storage("bf16", codec="zstd"), replace_storage=True)
        put_video(writer, FOUR, "b", toy_features(2), bf16, created=2e9)  # it did not shrink
    assert counts() == [1, 0]


def test_a_store_is_listed_without_a_row_of_a_video(two, monkeypatch):
    real = Snapshot.rows

    def rows(snapshot, table, *words):
        assert table == "specs", f"rows of {table} are read"
        return real(snapshot, table, *words)

    monkeypatch.setattr(Snapshot, "rows", rows)
    monkeypatch.setattr(Snapshot, "values", rows)
    found = describe_store(two)
    assert (found["videos"], found["record_bytes"]) == (2, 2 * (4080 + 128))
    assert not {"error", "decoders", "doubts"} & {*found["datasets"]["demo"]["feature_sets"][0]}
    write_cache_meta(two)
    assert json.loads((two / "cache_meta.json").read_text()) == found | {"written": ANY}
    with pytest.raises(AssertionError, match="rows of catalog are read"):
        describe_store(two, rows=True)


def test_a_dataset_whose_rows_cannot_be_read_is_still_listed(tmp_path):
    store_videos(tmp_path, "demo", {"a": toy_features(1), "b": toy_features(2)})
    for key in list(open_environment(tmp_path / "demo").snapshot().keys("catalog")):
        put_raw(tmp_path, "catalog", key, b"nonsense")
    assert describe_store(tmp_path)["datasets"]["demo"]["videos"] == 2
    assert len(FeatureStore(tmp_path)["demo"]) == 2
    with pytest.raises(StoreDamaged, match="a row of the catalog cannot be read"):
        describe_dataset(tmp_path, "demo")
    assert (
        "cannot be read" in describe_store(tmp_path, rows=True)["datasets"]["demo"]["problems"][0]
    )


def test_a_dataset_that_cannot_be_described_at_all_says_why_and_hides_no_other(two):
    (two / "broken").mkdir()
    (two / "broken" / "data.mdb").write_bytes(b"x" * 9000)
    found = describe_store(two)["datasets"]
    assert found["demo"]["videos"] == 2
    assert found["broken"]["problems"]
    with pytest.raises(FeatstoreError):
        describe_dataset(two, "broken")
    (two / "broken" / "data.mdb").unlink()
    with pytest.raises(StoreNotFound):
        describe_dataset(two, "nothing")


def test_what_a_merge_brought_in_another_storage_is_told_and_is_no_work(two, tmp_path):
    with FeatureWriter(two, "demo", min_free=0) as writer:
        writer.add_set(FOUR)
        for video, storage in {
            "c": Storage("bf16"),
            "d": Storage("int8", "channel", "lz4"),
        }.items():
            put_video(writer, FOUR, video, toy_features(3) * 0, storage)
    four, eight = describe_dataset(two, "demo")["feature_sets"]
    assert four["storages"] == {"int8/channel_token": 2, "bf16": 1, "int8/channel lz4": 1}
    assert (four["stored_otherwise"], eight["storages"]) == (0, {})


def test_the_file_says_until_when_it_is_true(two):
    """Whoever is killed after a commit leaves it without what came later."""
    write_cache_meta(two)
    before = json.loads((two / "cache_meta.json").read_text())
    with FeatureWriter(two, "demo", min_free=0) as writer:
        writer.add_set(FOUR)
        writer.fail(Failure("late", "/late.mp4", FOUR.digest, "no frames", 0.0))
    written = datetime.fromisoformat(before["written"])
    assert written.timestamp() <= os.stat(two / "demo" / "data.mdb").st_mtime
    assert before["datasets"]["demo"]["failures"] == 1
    write_cache_meta(two)
    after = json.loads((two / "cache_meta.json").read_text())
    assert after["datasets"]["demo"]["failures"] == 2
    assert datetime.fromisoformat(after["written"]) >= written


def test_a_disk_too_full_for_the_description_costs_nothing_else(two, monkeypatch):
    write_cache_meta(two)
    before = (two / "cache_meta.json").read_text()
    store_videos(two, "demo", {"c": toy_features(3)})

    def refuse(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(describe, "write_atomically", refuse)
    write_cache_meta(two)
    assert (two / "cache_meta.json").read_text() == before
