"""A dataset moves to another cache or name: nothing of it is lost, and it is never in neither place."""

from __future__ import annotations

import json
import threading
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from damage import flip_in_file, read_raw
from toys import run_python, store_videos, toy_features, toy_spec

from featstore.cli import main
from featstore.errors import DatasetNotFound, StoreError, StoreLocked, StoreMismatch
from featstore.records.storage import Storage
from featstore.store.default_set import set_default
from featstore.store.engine.locks import ingest_lock
from featstore.store.lost import lost_datasets
from featstore.store.maintenance import move
from featstore.store.maintenance.check import check_dataset
from featstore.store.maintenance.merge import merge_dataset
from featstore.store.maintenance.move import move_dataset
from featstore.store.maintenance.seal import seal_dataset
from featstore.store.paths import dataset_names
from featstore.store.reader import FeatureStore
from featstore.store.rows import Failure, video_key
from featstore.store.writer import FeatureWriter

SPEC, WIDE = toy_spec(), toy_spec(8)
X = {name: toy_features(seed) for seed, name in enumerate(["a", "b c", "../d"])}


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "old cache"
    store_videos(folder, "demo", X, storage=Storage("int8", "channel_token", "zstd"))
    store_videos(folder, "demo", {"a": X["b c"]}, spec=WIDE, storage=Storage("fp16"))
    set_default(folder, "demo", WIDE.digest)
    with FeatureWriter(folder, "demo", min_free=0) as writer:
        writer.add_set(SPEC)
        writer.fail(Failure("broken", "/broken.mp4", SPEC.digest, "no frames", 1.0))
    return folder


def content(cache, name):
    """All that a dataset says, but for its own name."""
    store = FeatureStore(cache)[name]
    rows = {}
    for digest, there in store.sets.items():
        for video, features in there.items():
            header = replace(features.header, dataset="")
            rows[digest, video] = (
                header,
                features.data.tobytes(),
                b"".join(s.tobytes() for s in features.scales),
            )
        rows[digest] = list(there.failures())
    return store.feature_set.spec.digest, rows


def move_demo(source, cache, name="demo", **options):
    return move_dataset(source, "demo", cache, name, min_free=0, **options)


@pytest.mark.parametrize("name", ["demo", "renamed"])
def test_a_copy_is_the_dataset_under_its_name(source, cache, name):
    before = content(source, "demo")
    done = merge_dataset(source, cache, name, source_dataset="demo", failures=True, min_free=0)
    assert (done.total, done.stored, done.failures) == (4, 4, [])
    assert content(cache, name) == before == content(source, "demo")
    assert FeatureStore(cache)[name]["a"].header.dataset == name
    assert check_dataset(cache, name).problems == []


@pytest.mark.parametrize("name", ["demo", "renamed"])
def test_a_moved_dataset_is_there_and_no_longer_here(source, cache, name):
    before = content(source, "demo")
    assert move_demo(source, cache, name).stored == 4
    assert content(cache, name) == before
    assert (dataset_names(source), lost_datasets(source)) == ([], {})
    assert check_dataset(cache, name).problems == []
    with pytest.raises(DatasetNotFound):
        move_demo(source, cache, name)


def test_a_dataset_is_renamed_in_its_own_cache(source):
    before = content(source, "demo")
    move_demo(source, source, "renamed")
    assert dataset_names(source) == ["renamed"]
    assert content(source, "renamed") == before


def test_nothing_is_removed_unless_all_is_there(source, cache):
    before = content(source, "demo")
    stop = threading.Event()
    stop.set()
    assert move_demo(source, cache, stop=stop).interrupted
    assert "the limit is" in move_demo(source, cache, max_size=1).full
    assert content(source, "demo") == before
    store_videos(cache, "renamed", {"a": toy_features(9)})
    with pytest.raises(StoreMismatch, match="has not the features of video 'a'"):
        move_demo(source, cache, "renamed")
    assert content(source, "demo") == before
    stored = read_raw(source, "records", video_key(WIDE.digest, "a"))
    flip_in_file(source, stored[-64:])
    done = move_demo(source, cache)
    assert [name for name, _ in done.failures] == ["a"]
    assert dataset_names(source) == ["demo"]


def test_what_is_damaged_in_the_copy_is_found_before_anything_is_removed(
    source, cache, monkeypatch
):
    def damage(*words, **options):
        done = merge_dataset(*words, **options)
        stored = read_raw(cache, "records", video_key(WIDE.digest, "a"))
        flip_in_file(cache, stored[-64:])
        return done

    monkeypatch.setattr(move, "merge_dataset", damage)
    with pytest.raises(StoreMismatch, match="which so stays as it is"):
        move_demo(source, cache)
    assert dataset_names(source) == ["demo"]
    stored = read_raw(source, "records", video_key(WIDE.digest, "a"))
    flip_in_file(cache, bytes([stored[-64] ^ 0x10]) + stored[-63:])


def test_what_a_model_stores_in_the_meantime_comes_along(source, cache, monkeypatch):
    late = iter([toy_features(11)])

    def store_late(*words, **options):
        done = merge_dataset(*words, **options)
        for x in late:
            store_videos(source, "demo", {"late": x})
        return done

    monkeypatch.setattr(move, "merge_dataset", store_late)
    move_demo(source, cache)
    assert np.array_equal(
        FeatureStore(cache)["demo"].sets[SPEC.digest]["late"].shape, toy_features(11).shape
    )


def test_what_cannot_be_is_refused_and_the_source_stays(source, cache):
    for refused in (
        lambda: move_demo(source, source),
        lambda: move_demo(source, source / ".." / source.name),
    ):
        with pytest.raises(StoreMismatch, match="are one dataset"):
            refused()
    store_videos(cache, "sealed", {"a": X["a"]})
    seal_dataset(cache, "sealed")
    with pytest.raises(StoreError, match="sealed"):
        move_demo(source, cache, "sealed")
    with ingest_lock(source / "demo"), pytest.raises(StoreLocked):
        move_demo(source, cache)
    with pytest.raises(StoreMismatch, match="cannot be called"):
        move_demo(source, cache, "a/b")
    assert content(source, "demo")[1]


@pytest.mark.crash
@pytest.mark.parametrize("moment", ["merge_dataset", "_verify", "remove_held"])
def test_a_move_that_is_killed_goes_on(source, cache, moment):
    before = content(source, "demo")
    program = """
import os, signal, sys
from featstore.store.maintenance import move
whole = getattr(move, sys.argv[1])
def killed(*words, **options):
    whole(*words, **options)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(move, sys.argv[1], killed)
move.move_dataset(sys.argv[2], "demo", sys.argv[3], "renamed", min_free=0)
"""
    assert run_python(program, moment, source, cache).returncode == -9
    if moment != "remove_held":
        assert content(source, "demo") == before
        assert move_demo(source, cache, "renamed").skipped == 4
    assert content(cache, "renamed") == before
    assert dataset_names(source) == []


def test_the_commands_say_what_was_done(source, cache):
    def invoke(*words):
        return CliRunner().invoke(main, [*map(str, words), "--min-free", "0"])

    places = (source, "--dataset", "demo", "--cache-dir")
    copied = invoke("cp", *places, cache, "--as", "other", "--json")
    assert json.loads(copied.stdout)["stored"] == 4
    assert (
        "other: 4 copied, 0 there before, 0 failed"
        in invoke("cp", *places, source, "--as", "other").output
    )
    moved = invoke("mv", *places, cache)
    assert (moved.exit_code, "demo: 4 moved" in moved.output) == (0, True), moved.output
    assert dataset_names(source) == ["other"]
    again = invoke("mv", *places, cache)
    assert (again.exit_code, "there is no dataset 'demo'" in again.output) == (1, True)
    full = invoke("mv", source, "--dataset", "other", "--cache-dir", cache / "2", "--max-size", 1)
    assert full.exit_code == 1
    assert "dataset 'other' stays in" in full.stderr
