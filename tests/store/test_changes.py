"""What a transaction on the catalog counts, also of what is damaged or only half there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from damage import put_raw, read_raw
from toys import put_video, store_videos, toy_features, toy_spec

from featstore.errors import StoreMismatch
from featstore.pipeline.plan import make_plan
from featstore.store.changes import CatalogTransaction, count_rows
from featstore.store.default_set import set_default
from featstore.store.describe import describe_dataset
from featstore.store.engine.environment import open_snapshot
from featstore.store.manifest import MANIFEST_KEY, Counts
from featstore.store.reader import FeatureStore
from featstore.store.rows import Failure, pack_row, unpack_row, video_key
from featstore.store.writer import FeatureWriter

if TYPE_CHECKING:
    from pathlib import Path

FOUR, EIGHT = toy_spec(4), toy_spec(8)
KEY = video_key(FOUR.digest, "a")
BYTES = 4080 + 128  # of a record


@pytest.fixture
def damaged(tmp_path) -> Path:
    """A cache that a test may damage: nobody looks whether it is clean afterwards."""
    store_videos(tmp_path, "demo", {"a": toy_features(1), "b": toy_features(2)})
    return tmp_path


def counted(cache: Path) -> Counts:
    return count_rows(open_snapshot(cache / "demo"), FOUR.digest)


def test_a_damaged_row_counts_what_its_record_says_and_without_one_a_video(damaged):
    assert counted(damaged) == Counts(2, 0, 8, 2 * BYTES)
    put_raw(damaged, "catalog", KEY, b"nonsense")
    assert counted(damaged) == Counts(2, 0, 8, 2 * BYTES)
    put_raw(damaged, "records", KEY, None)
    assert counted(damaged) == Counts(2, 0, 4, BYTES)


def test_what_is_deleted_is_counted_if_only_the_record_was_there(damaged):
    put_raw(damaged, "catalog", KEY, None)
    with CatalogTransaction(damaged / "demo", "demo") as txn:
        assert txn.delete_video(KEY) == Counts(1)
        assert txn.delete_video(KEY) == Counts()
        assert txn.delete_video(video_key(FOUR.digest, "b")) == Counts(1, 0, 4, BYTES)


def test_a_transaction_on_another_dataset_or_none_names_the_folder(damaged):
    with pytest.raises(StoreMismatch, match=f"^{damaged}/demo holds the dataset 'demo'"):
        CatalogTransaction(damaged / "demo", "other")
    put_raw(damaged, "manifest", MANIFEST_KEY, None)
    with pytest.raises(StoreMismatch, match=f"^{damaged}/demo holds an LMDB file but no"):
        CatalogTransaction(damaged / "demo", "demo")


def test_a_default_set_that_is_not_the_oldest_stays_it(cache):
    store_videos(cache, "demo", {"a": toy_features(1)})
    store_videos(cache, "demo", {"b": toy_features(2, 8)}, spec=EIGHT)
    set_default(cache, "demo", EIGHT.digest)
    store_videos(cache, "demo", {"c": toy_features(3)})
    assert list(FeatureStore(cache)["demo"]) == ["b"]


def test_a_set_that_is_made_with_its_first_video_takes_the_place_of_an_empty_default(cache):
    with FeatureWriter(cache, "demo", min_free=0) as writer:
        writer.add_set(FOUR, origin="toy")
        writer.fail(Failure("a", "/a.mp4", FOUR.digest, "no frames", 1.0))  # in one commit with
        writer.add_set(EIGHT, origin="toy")
        put_video(writer, EIGHT, "b", toy_features(2, 8))
    assert list(FeatureStore(cache)["demo"]) == ["b"]


def test_a_set_that_the_manifest_does_not_count_is_described_and_planned_for(damaged):
    """A check finds it; nobody else stumbles over it."""
    manifest = unpack_row(read_raw(damaged, "manifest", MANIFEST_KEY))
    put_raw(damaged, "manifest", MANIFEST_KEY, pack_row(manifest | {"sets": {}}))
    [described] = describe_dataset(damaged, "demo")["feature_sets"]
    assert (described["feature_set"], described["videos"]) == (FOUR.digest, 0)
    assert make_plan([], open_snapshot(damaged / "demo"), FOUR).todo == ()
