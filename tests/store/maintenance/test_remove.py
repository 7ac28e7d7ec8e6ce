import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from damage import put_raw
from toys import expected, put_video, run_python, store_videos, toy_features, toy_spec

from featstore.errors import (
    FeatureNotFound,
    StoreError,
    StoreLocked,
    StoreMismatch,
    StoreNotFound,
)
from featstore.store.default_set import set_default
from featstore.store.engine.locks import ingest_lock
from featstore.store.maintenance import remove
from featstore.store.maintenance.check import check_dataset
from featstore.store.maintenance.remove import remove_dataset, remove_set, remove_videos
from featstore.store.maintenance.seal import seal_dataset
from featstore.store.manifest import Counts
from featstore.store.reader import FeatureStore, get
from featstore.store.rows import Failure, video_key
from featstore.store.writer import FeatureWriter

A, B = toy_features(1), toy_features(2)


def test_a_removed_dataset_is_gone_and_the_others_stay(cache):
    store_videos(cache, "one", {"a": A})
    store_videos(cache, "two", {"a": A})
    taken = (cache / "one" / "data.mdb").stat().st_blocks * 512
    assert remove_dataset(cache, "one") == taken
    assert [path.name for path in cache.iterdir()] == ["two"]
    with pytest.raises(StoreNotFound, match="no dataset 'one'"):
        FeatureStore(cache)["one"]


def test_a_dataset_that_is_not_there_is_said_so(cache):
    store_videos(cache, "demo", {})
    with pytest.raises(StoreNotFound, match="no dataset 'other'"):
        remove_dataset(cache, "other")


def test_nothing_is_removed_while_an_ingest_is_at_work(cache):
    store_videos(cache, "demo", {"a": A})
    with ingest_lock(cache / "demo"), pytest.raises(StoreLocked, match=f"process {os.getpid()} "):
        remove_dataset(cache, "demo")
    assert "a" in FeatureStore(cache)["demo"]


def test_the_same_store_finds_a_dataset_that_was_made_again(cache):
    store_videos(cache, "demo", {"a": A})
    store = FeatureStore(cache)
    old = store["demo"]["a"]
    remove_dataset(cache, "demo")
    with pytest.raises(StoreNotFound):
        store["demo"]["a"]
    store_videos(cache, "demo", {"a": B})
    assert np.array_equal(store["demo"]["a"].data, expected(B))
    assert np.array_equal(old.data, expected(A))


def test_what_a_killed_removal_left_is_cleared_by_the_next(cache):
    store_videos(cache, "demo", {"a": A})
    left = cache / ".removed-demo"
    shutil.copytree(cache / "demo", left)
    assert list(FeatureStore(cache)) == ["demo"]
    remove_dataset(cache, "demo")
    assert list(cache.iterdir()) == []
    left.mkdir()
    with pytest.raises(StoreNotFound):
        remove_dataset(cache, "demo")
    assert list(cache.iterdir()) == []


def test_two_removals_at_once_leave_nothing(cache, monkeypatch):
    """The second deleted files under the first, which then failed with a FileNotFoundError."""
    store_videos(cache, "demo", {"a": A})
    real = shutil.rmtree

    def beaten(path, **options):
        if not options:
            monkeypatch.undo()
            with pytest.raises(StoreNotFound):
                remove_dataset(cache, "demo")
        real(path, **options)

    monkeypatch.setattr(remove.shutil, "rmtree", beaten)
    assert remove_dataset(cache, "demo") > 0
    assert list(cache.iterdir()) == []


def test_a_link_that_another_removal_cleared_is_gone(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "is_symlink", lambda path: True)
    remove._clear(tmp_path / "gone")


def test_a_folder_that_cannot_be_moved_is_a_store_error(cache, monkeypatch):
    store_videos(cache, "demo", {"a": A})

    def refuse(*names):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(StoreError, match="cannot be removed: Permission denied"):
        remove_dataset(cache, "demo")


@pytest.mark.parametrize("name", ["", ".", "..", "../cache", "/"])
def test_a_name_that_is_no_datasets_removes_nothing(cache, name):
    store_videos(cache, "demo", {"a": A})
    with pytest.raises(StoreError, match="cannot be called"):
        remove_dataset(cache, name)
    assert "a" in FeatureStore(cache)["demo"]


@pytest.mark.slow
def test_another_process_reads_on_what_was_removed(cache):
    store_videos(cache, "demo", {"a": A})
    program = """
import sys, featstore
from featstore.store.maintenance.remove import remove_dataset
from toys import *
features = featstore.get(sys.argv[1], "demo", "a")
remove = "import sys; from featstore.store.maintenance.remove import *; remove_dataset(sys.argv[1], 'demo')"
again = run_python(remove, sys.argv[1])
assert again.returncode == 0, again.stderr
assert np.array_equal(features.data, expected(toy_features(1)))
"""
    done = run_python(program, cache)
    assert done.returncode == 0, done.stderr
    with pytest.raises(StoreNotFound):
        get(cache, "demo", "a")


WIDE = toy_spec(8)


@pytest.fixture
def two_sets(cache):
    store_videos(cache, "demo", {video: A for video in "abc"})
    store_videos(cache, "demo", {video: B for video in "bcd"}, spec=WIDE)
    with FeatureWriter(cache, "demo", min_free=0) as writer:
        writer.fail(Failure("bad", "/bad.mp4", WIDE.digest, "no frames", 0.0))
    return cache


def counts_of(cache) -> dict[str, Counts]:
    sets = FeatureStore(cache)["demo"].sets
    return {digest: sets[digest].counts for digest in sets}


def stored_in(cache, spec) -> set[str]:
    return {entry.video_id for entry in FeatureStore(cache)["demo"].sets[spec.digest].entries()}


def test_single_videos_are_removed_from_every_set_and_the_others_stay(two_sets):
    done = remove_videos(two_sets, "demo", ["b", "a", "bad", "b", "nobody"])
    assert (done.videos, done.failures, done.missing) == (3, 1, ("nobody",))
    assert done.record_bytes == 3 * (4080 + 128)
    assert stored_in(two_sets, toy_spec()) == {"c"}
    assert stored_in(two_sets, WIDE) == {"c", "d"}
    assert list(FeatureStore(two_sets)["demo"].failures()) == []
    for video in ("a", "b", "bad"):
        with pytest.raises(FeatureNotFound):
            get(two_sets, "demo", video, spec=WIDE)


def test_a_commit_removes_no_more_than_it_may_and_the_next_goes_on(two_sets, monkeypatch):
    monkeypatch.setattr(remove, "COMMIT_BYTES", 1)
    assert remove_videos(two_sets, "demo", ["a", "b", "c"]).videos == 5
    assert stored_in(two_sets, toy_spec()) == set()
    assert stored_in(two_sets, WIDE) == {"d"}


def test_single_videos_are_removed_from_one_set(two_sets):
    done = remove_videos(two_sets, "demo", ["a", "b"], spec=WIDE)
    assert (done.videos, done.missing) == (1, ("a",))
    assert stored_in(two_sets, toy_spec()) == {"a", "b", "c"}
    assert stored_in(two_sets, WIDE) == {"c", "d"}


def test_a_feature_set_is_removed_with_its_failures_and_can_be_made_again(two_sets):
    done = remove_set(two_sets, "demo", WIDE)
    assert (done.videos, done.failures) == (3, 1)
    dataset = FeatureStore(two_sets)["demo"]
    assert [found.spec for found in dataset.sets.rows()] == [toy_spec()]
    assert set(dataset) == {"a", "b", "c"}
    assert list(dataset.failures()) == []
    store_videos(two_sets, "demo", {"d": B}, spec=WIDE)
    assert stored_in(two_sets, WIDE) == {"d"}


def test_what_is_held_of_a_removed_video_stays_good(cache):
    store_videos(cache, "demo", {"a": A})
    old = get(cache, "demo", "a")
    remove_videos(cache, "demo", ["a"])
    store_videos(cache, "demo", {str(i): B for i in range(20)})
    assert np.array_equal(old.data, expected(A))


@pytest.mark.slow
def test_the_space_of_removed_videos_is_used_again(cache):
    x = toy_features(0, 1000)
    spec = store_videos(cache, "demo", {str(i): x for i in range(20)}, spec=toy_spec(1000))
    size = (cache / "demo" / "data.mdb").stat().st_size
    record_bytes = size // 20
    remove_videos(cache, "demo", [str(i) for i in range(20)])
    store_videos(cache, "demo", {f"new {i}": x for i in range(15)}, spec=spec)
    grown = (cache / "demo" / "data.mdb").stat().st_size - size
    assert grown < 2 * record_bytes, "but for the first, which LMDB puts beside what was just freed"


@pytest.mark.crash
def test_a_removal_that_is_killed_has_removed_whole_videos(cache, monkeypatch):
    store_videos(cache, "demo", {str(i): A for i in range(10)})
    monkeypatch.setattr(remove, "COMMIT_VIDEOS", 4)
    program = """
import os, signal, sys
from featstore.store.maintenance import remove
remove.COMMIT_VIDEOS = 4
real, left = remove.CatalogTransaction.commit, [2]
def commit(txn):
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    real(txn)
remove.CatalogTransaction.commit = commit
remove.remove_videos(sys.argv[1], "demo", map(str, range(10)))
"""
    assert run_python(program, cache).returncode == -9
    assert set(FeatureStore(cache)["demo"]) == {"8", "9"}
    assert FeatureStore(cache)["demo"].counts == Counts(2, 0, 8, 2 * (4080 + 128))
    assert check_dataset(cache, "demo").problems == []
    done = remove_videos(cache, "demo", map(str, range(10)))
    assert (done.videos, len(done.missing)) == (2, 8)


def test_a_damaged_row_can_be_removed(two_sets):
    key = video_key(WIDE.digest, "d")
    put_raw(two_sets, "catalog", key, b"nonsense")
    assert remove_set(two_sets, "demo", WIDE).videos == 3


def test_nothing_is_removed_from_a_dataset_under_another_name(two_sets):
    (two_sets / "demo").rename(two_sets / "other")
    for change in (seal_dataset, remove_videos):
        with pytest.raises(StoreMismatch, match=f"{two_sets}/other holds the dataset 'demo'"):
            change(two_sets, "other", *[["a"]] * (change is remove_videos))
    (two_sets / "other").rename(two_sets / "demo")


@pytest.mark.parametrize(
    "act", [lambda c: remove_videos(c, "demo", "a"), lambda c: remove_set(c, "demo", WIDE)]
)
def test_no_video_is_removed_while_an_ingest_is_at_work_nor_where_there_is_nothing(
    two_sets, act, tmp_path
):
    with ingest_lock(two_sets / "demo"), pytest.raises(StoreLocked):
        act(two_sets)
    with pytest.raises(StoreNotFound):
        act(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_a_writer_whose_set_was_removed_says_so_and_lets_others_write(two_sets):
    writer = FeatureWriter(two_sets, "demo", min_free=0)
    writer.add_set(WIDE, origin="toy")
    remove_set(two_sets, "demo", WIDE)
    with pytest.raises(
        StoreError, match=r"was removed from .* in the meantime; run the command again"
    ):
        put_video(writer, WIDE, "a", A)
    store_videos(two_sets, "demo", {"e": A})


def test_what_a_model_stored_while_its_set_was_removed_goes_with_it(cache, monkeypatch):
    """Its record was acknowledged, and then no set was left to find it by."""
    spec = toy_spec()
    store_videos(cache, "demo", {"a": A}, spec=spec)
    real = remove._remove_keys

    def missed_meanwhile(*words):
        removed = real(*words)
        store_videos(cache, "demo", {"b": B}, spec=spec)
        return removed

    monkeypatch.setattr(remove, "_remove_keys", missed_meanwhile)
    removed = remove_set(cache, "demo", spec)
    assert (removed.videos, removed.record_bytes > 0) == (2, True)
    assert check_dataset(cache, "demo").problems == []
    assert list(FeatureStore(cache)["demo"]) == []


def test_the_manifest_counts_down_what_is_removed(two_sets):
    narrow, each = toy_spec().digest, 4080 + 128
    assert counts_of(two_sets) == {
        narrow: Counts(3, 0, 12, 3 * each),
        WIDE.digest: Counts(3, 1, 12, 3 * each),
    }
    remove_videos(two_sets, "demo", ["b", "bad"])
    assert counts_of(two_sets) == {
        narrow: Counts(2, 0, 8, 2 * each),
        WIDE.digest: Counts(2, 0, 8, 2 * each),
    }
    remove_set(two_sets, "demo", toy_spec())
    assert counts_of(two_sets) == {WIDE.digest: Counts(2, 0, 8, 2 * each)}


def test_the_oldest_set_left_becomes_the_default_if_the_default_one_is_removed(two_sets):
    dataset = FeatureStore(two_sets)["demo"]
    assert np.array_equal(dataset["b"].data, expected(A))
    remove_set(two_sets, "demo", toy_spec())
    assert np.array_equal(dataset["b"].data, expected(B))
    remove_set(two_sets, "demo", WIDE)
    assert (list(dataset), len(dataset), "b" in dataset) == ([], 0, False)
    with pytest.raises(FeatureNotFound, match="has no feature set, so no video 'b'"):
        dataset["b"]
    store_videos(two_sets, "demo", {"b": B}, spec=WIDE)
    assert list(dataset) == ["b"]


def test_another_set_removed_leaves_the_default_one(two_sets):
    set_default(two_sets, "demo", WIDE.digest)
    remove_set(two_sets, "demo", toy_spec())
    assert FeatureStore(two_sets)["demo"].feature_set.spec == WIDE


def test_a_damaged_row_is_counted_down_by_what_its_record_says(two_sets):
    put_raw(two_sets, "catalog", video_key(WIDE.digest, "d"), b"nonsense")
    done = remove_videos(two_sets, "demo", ["d"])
    assert (done.videos, done.record_bytes) == (1, 4080 + 128)
    assert counts_of(two_sets)[WIDE.digest] == Counts(2, 1, 8, 2 * (4080 + 128))
