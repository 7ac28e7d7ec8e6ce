import os
import shutil

import numpy as np
import pytest
from toys import expected, run_python, store_videos, toy_features, toy_spec

from featstore.errors import StoreError, StoreLocked, StoreNotFound
from featstore.store import remove
from featstore.store.lock import ingest_lock
from featstore.store.reader import FeatureStore, get
from featstore.store.remove import remove_dataset

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
    assert np.array_equal(store["demo"]["a"].data, expected(B, toy_spec()))
    assert np.array_equal(old.data, expected(A, toy_spec()))


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


def test_another_process_reads_on_what_was_removed(cache):
    store_videos(cache, "demo", {"a": A})
    program = """
import sys, featstore
from featstore.store.remove import remove_dataset
from toys import *
features = featstore.get(sys.argv[1], "demo", "a")
again = run_python("import sys; from featstore.store.remove import *; remove_dataset(sys.argv[1], 'demo')", sys.argv[1])
assert again.returncode == 0, again.stderr
assert np.array_equal(features.data, expected(toy_features(1), toy_spec()))
"""
    done = run_python(program, cache)
    assert done.returncode == 0, done.stderr
    with pytest.raises(StoreNotFound):
        get(cache, "demo", "a")
