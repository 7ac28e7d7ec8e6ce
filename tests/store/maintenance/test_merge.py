import os
import re
import threading
import time
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest
from damage import put_raw
from toys import (
    MISFITS,
    expected,
    misfit_record,
    put_video,
    run_python,
    store_videos,
    toy_features,
    toy_spec,
)

from featstore.errors import StoreDamaged, StoreError, StoreLocked, StoreMismatch, StoreNotFound
from featstore.records.storage import Storage
from featstore.store.default_set import set_default
from featstore.store.engine.environment import open_environment
from featstore.store.engine.locks import ingest_lock
from featstore.store.engine.snapshot import TABLES, Snapshot
from featstore.store.maintenance import merge
from featstore.store.maintenance.check import check_dataset
from featstore.store.maintenance.merge import merge_dataset
from featstore.store.maintenance.remove import remove_set
from featstore.store.reader import FeatureStore, get
from featstore.store.rows import Failure, video_key
from featstore.store.writer import FeatureWriter

SPEC, WIDE, BF16 = toy_spec(), toy_spec(8), Storage("bf16")
X = {str(i): toy_features(i) for i in range(12)}


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    store_videos(folder, "demo", {video: X[video] for video in ("0", "1", "2", "3")})
    store_compressed(folder, "4", np.zeros_like(X["4"]))
    store_videos(folder, "demo", {video: X[video] for video in ("0", "5")}, spec=WIDE, storage=BF16)
    return folder


def store_compressed(cache, video, x):
    with FeatureWriter(cache, "demo", min_free=0) as writer:
        put_video(writer, SPEC, video, x, Storage("int8", "channel", "lz4"))


def all_entries(cache):
    return [row for there in FeatureStore(cache)["demo"].sets.values() for row in there.entries()]


def record(cache, spec, video: str) -> bytes:
    data = (
        open_environment(cache / "demo").snapshot().read("records", video_key(spec.digest, video))
    )
    assert data is not None
    return data


def run(source, cache, **options):
    return merge_dataset(source, cache, "demo", min_free=0, **options)


def test_a_merge_into_nothing_is_a_copy_byte_for_byte(source, cache):
    done = run(source, cache)
    assert (done.total, done.stored, done.skipped, done.failures) == (7, 7, 0, [])
    there, here = all_entries(source), all_entries(cache)
    assert sorted(map(str, here)) == sorted(map(str, there))
    assert {entry.codec for entry in there} == {"raw", "lz4"}
    rows = FeatureStore(cache)["demo"].sets.rows()
    assert [(row.origin, row.storage) for row in rows] == [("toy", Storage()), ("toy", BF16)]
    for entry in there:
        spec = SPEC if entry.spec == SPEC.digest else WIDE
        assert record(cache, spec, entry.video_id) == record(source, spec, entry.video_id)
    assert done.record_bytes == sum(entry.record_bytes for entry in here)


def test_what_is_there_stays_and_what_is_missing_comes(source, cache):
    store_videos(cache, "demo", {"0": X["9"], "mine": X["10"]})
    with FeatureWriter(cache, "demo", min_free=0) as writer:
        writer.fail(Failure("3", "/3.mp4", SPEC.digest, "no frames", 0.0))
    done = run(source, cache)
    assert (done.stored, done.skipped) == (6, 1)
    assert np.array_equal(get(cache, "demo", "0", spec=SPEC).data, expected(X["9"]))
    assert set(FeatureStore(cache)["demo"]) == {"0", "1", "2", "3", "4", "mine"}
    assert set(FeatureStore(cache)["demo"].sets[WIDE.digest]) == {"0", "5"}
    assert list(FeatureStore(cache)["demo"].failures()) == []
    assert run(source, cache).skipped == 7


def test_what_is_damaged_in_the_source_is_named_and_does_not_come(source, cache):
    key = {video: video_key(SPEC.digest, video) for video in X}
    flipped = bytearray(record(source, SPEC, "1"))
    flipped[-1] ^= 1
    put_raw(source, "records", key["1"], bytes(flipped))
    put_raw(source, "records", key["2"], b"nonsense")
    put_raw(source, "records", key["3"], record(source, SPEC, "0"))
    put_raw(source, "catalog", key["4"], b"nonsense")  # its record tells all that the row did
    done = run(source, cache)
    assert sorted(name for name, _ in done.failures) == ["1", "2", "3"]
    reasons = dict(done.failures)
    assert "is damaged: its xxh3" in reasons["1"]
    assert "too short" in reasons["2"]
    assert "its record is that of '0'" in reasons["3"]
    assert {
        entry.video_id for entry in FeatureStore(cache)["demo"].sets[SPEC.digest].entries()
    } == {"0", "4"}


@pytest.mark.parametrize("misfit", MISFITS)
def test_a_record_that_cannot_be_of_its_set_is_named_and_does_not_come(source, cache, misfit):
    put_raw(
        source, "records", video_key(SPEC.digest, "1"), misfit_record(SPEC, "demo", "1", misfit)
    )
    [(name, reason)] = run(source, cache).failures
    assert name == "1"
    assert f"{misfit} " in reason
    assert "1" not in FeatureStore(cache)["demo"]


def test_a_merge_stops_when_asked_and_goes_on(source, cache, monkeypatch):
    stop = threading.Event()
    monkeypatch.setattr(
        merge, "FeatureWriter", lambda *a, **o: FeatureWriter(*a, commit_bytes=1, **o)
    )
    done = run(source, cache, stop=stop, on_progress=lambda summary: stop.set())
    assert done.interrupted
    assert 0 < done.stored < 7
    again = run(source, cache)
    assert (again.stored + done.stored, again.skipped) == (7, done.stored)


def test_a_merge_that_stops_makes_no_set_that_it_would_leave_empty(source, cache, monkeypatch):
    stop = threading.Event()
    added = []

    class Writer(FeatureWriter):
        def add_set(self, spec, *words, **options):
            added.append(spec)
            return super().add_set(spec, *words, **options)

    monkeypatch.setattr(merge, "FeatureWriter", lambda *a, **o: Writer(*a, commit_bytes=1, **o))
    done = run(source, cache, stop=stop, on_progress=lambda summary: stop.set())
    assert done.interrupted
    assert [found.spec for found in FeatureStore(cache)["demo"].sets.rows()] == added == [SPEC]
    added.clear()
    assert run(source, cache, stop=stop).interrupted
    assert added == []


@pytest.mark.parametrize("looks", [1, 3, 8])
def test_a_merge_that_stops_counts_what_it_took_since_the_last_commit(source, cache, looks):
    class Stop(threading.Event):
        """Set once it was looked at so often."""

        left = looks

        def is_set(self) -> bool:
            self.left -= 1
            return self.left < 0

    done = run(source, cache, stop=Stop())
    assert done.interrupted
    assert done.stored == len(all_entries(cache)) < 7


def test_a_dataset_without_videos_is_merged_and_not_interrupted(tmp_path, cache):
    FeatureWriter(tmp_path / "empty", "demo", min_free=0)
    done = run(tmp_path / "empty", cache)
    assert (done.total, done.stored, done.interrupted) == (0, 0, False)


def test_records_are_read_ahead_of_those_that_are_written_unless_they_are_there(
    source, cache, monkeypatch
):
    store_videos(cache, "demo", {"0": X["0"]})
    done = []
    put, read_ahead = FeatureWriter.put, Snapshot.read_ahead
    monkeypatch.setattr(FeatureWriter, "put", lambda *given: done.append("put") or put(*given))
    monkeypatch.setattr(
        Snapshot, "read_ahead", lambda *given: done.append("read") or read_ahead(*given)
    )
    remove_set(source, "demo", WIDE)
    run(source, cache)
    assert done == ["read"] * 4 + ["put"] * 4
    monkeypatch.setattr(merge, "AHEAD_BYTES", 0)
    done.clear()
    run(source, cache.parent / "other")
    assert done == ["read", "put"] * 5


def test_a_merge_waits_for_an_ingest_as_long_as_it_is_told_to(source, cache, monkeypatch):
    store_videos(cache, "demo", {})
    held = ExitStack()
    held.enter_context(ingest_lock(cache / "demo"))
    monkeypatch.setattr(time, "sleep", lambda seconds: held.close())
    assert run(source, cache, lock_wait=30).stored == 7


@pytest.mark.parametrize(
    ("content", "error"), [(None, StoreNotFound), (b"no LMDB file" * 1000, StoreMismatch)]
)
def test_a_target_that_is_lost_is_no_damage_in_the_source(
    source, cache, monkeypatch, content, error
):
    remove_set(source, "demo", WIDE)
    monkeypatch.setattr(
        merge, "FeatureWriter", lambda *a, **o: FeatureWriter(*a, commit_bytes=1, **o)
    )
    file, kept = cache / "demo" / "data.mdb", cache / "demo" / "kept"

    def lose(summary):
        if not kept.exists():
            os.rename(file, kept)
            if content is not None:
                file.write_bytes(content)

    with pytest.raises(error):
        run(source, cache, on_progress=lose)
    os.rename(kept, file)
    assert run(source, cache).failures == []


@pytest.mark.crash
def test_a_killed_merge_goes_on(source, cache):
    program = """
import os, signal, sys
from featstore.store.maintenance import merge
from featstore.store.writer import FeatureWriter
left = [3]
class Killed(FeatureWriter):
    def commit(self):
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        return super().commit()
merge.FeatureWriter = lambda *a, **o: Killed(*a, commit_bytes=1, **o)
merge.merge_dataset(*sys.argv[1:3], "demo", min_free=0)
"""
    assert run_python(program, source, cache).returncode == -9
    assert check_dataset(cache, "demo").problems == []
    there = len(all_entries(cache))
    done = run(source, cache)
    assert 0 < there < 7
    assert (done.skipped, done.stored) == (there, 7 - there)


def test_a_full_target_keeps_what_it_took(source, cache):
    store_videos(cache, "demo", {})
    done = run(
        source, cache, max_size=(cache / "demo" / "data.mdb").stat().st_size + (1 << 20) + 20_000
    )
    assert "raise --max-size" in done.full
    assert 0 < done.stored < 7
    assert len(all_entries(cache)) == done.stored


def test_what_cannot_be_merged_is_refused(source, cache, tmp_path):
    with pytest.raises(StoreNotFound):
        merge_dataset(source, cache, "other")
    with pytest.raises(StoreMismatch, match="are one dataset"):
        run(source, source)
    store_videos(cache, "demo", {})
    with ingest_lock(cache / "demo"), pytest.raises(StoreLocked):
        run(source, cache, lock_wait=0)
    os.rename(source / "demo", source / "renamed")
    with pytest.raises(StoreError, match="must have that name"):
        merge_dataset(source, cache, "renamed")
    assert not (cache / "renamed").exists()


def test_records_come_as_they_are_stored_into_a_set_that_is_stored_in_another_way(source, cache):
    spec = store_videos(cache, "demo", {"mine": X["9"]}, storage=Storage("fp16"))
    assert run(source, cache).failures == []
    dataset = FeatureStore(cache)["demo"]
    assert dataset.feature_set.storage == Storage("fp16"), "what is ingested next follows it"
    assert {video: str(dataset[video].header.storage) for video in ("1", "4", "mine")} == {
        "1": "int8/channel_token",
        "4": "int8/channel lz4",
        "mine": "fp16",
    }
    assert record(cache, spec, "1") == record(source, spec, "1")


def test_a_set_comes_with_all_that_its_row_says(tmp_path, cache):
    names = {"vision_tower": "openai/clip"}
    with FeatureWriter(tmp_path / "source", "demo", min_free=0) as writer:
        writer.add_set(SPEC, origin="here", names=names, max_error=0.02)
        there = writer.add_set(SPEC, Storage("fp16"), replace_storage=True)
    assert (there.origin, there.names, there.max_error) == ("here", names, 0.02)
    assert there.storage_since > 0, "records made before are due to be stored again"
    run(tmp_path / "source", cache)
    here = FeatureStore(cache)["demo"].feature_set
    assert here == replace(there, created=here.created)


def test_a_new_dataset_gets_the_default_set_of_the_source_and_an_old_one_keeps_its_own(
    source, cache, tmp_path
):
    set_default(source, "demo", WIDE.digest)
    run(source, cache)
    assert FeatureStore(cache)["demo"].feature_set.spec == WIDE
    store_videos(tmp_path / "old", "demo", {"mine": X["9"]})
    run(source, tmp_path / "old")
    assert FeatureStore(tmp_path / "old")["demo"].feature_set.spec == SPEC


def test_the_manifest_counts_what_was_merged_set_by_set(source, cache):
    run(source, cache)
    there, here = FeatureStore(source)["demo"].sets, FeatureStore(cache)["demo"].sets
    assert {digest: here[digest].counts for digest in here} == {
        digest: there[digest].counts for digest in there
    }
    assert here[SPEC.digest].counts.videos == 5


@pytest.fixture
def large(tmp_path):
    """A dataset whose catalog has several leaves."""
    with FeatureWriter(tmp_path / "large", "demo", min_free=0) as writer:
        writer.add_set(SPEC, origin="toy")
        for i in range(60):
            put_video(writer, SPEC, f"v{i:02}", X["0"])
    return tmp_path / "large"


def spoil_page(cache, table, at):
    """Overwrite the number of the leaf that has the key `at` of a table."""
    snapshot = open_environment(cache / "demo").snapshot()
    key = list(snapshot.keys(table))[at]
    tree, name = snapshot._tree, TABLES[table]
    page = next(tree._leaves(tree._meta.root, tree._meta.depth, name + key))[0]
    with open(cache / "demo" / "data.mdb", "r+b") as file:
        file.seek(page.number * 4096)
        file.write(b"\xff" * 8)
    return {tree._key(page, start) for start in page.nodes}


@pytest.mark.parametrize("table", ["catalog", "records", "manifest"])
def test_what_is_on_sound_pages_is_copied(large, cache, table):
    lost = spoil_page(large, table, 0)
    gone = [key for key in lost if key.startswith(TABLES["records"])]
    [problem] = check_dataset(large, "demo").problems
    counted = " of 60" if table == "catalog" else "( of 60)?"
    assert re.search(rf"the check ended there, after \d+{counted} records; ", problem), problem
    assert "featstore merge" in problem
    assert "featstore check" not in problem
    summary = merge_dataset(large, cache, "demo", min_free=0)
    assert (summary.stored, summary.total) == (60 - len(gone), 60)
    assert len(summary.failures) in (len(gone), len(gone) + 1)
    assert not any("featstore merge" in reason for _, reason in summary.failures)
    again = merge_dataset(large, cache, "demo", min_free=0)
    assert (again.stored, again.skipped) == (0, summary.stored)


def test_a_source_of_which_nothing_can_be_read_makes_no_dataset(large, cache):
    spoil_page(large, "specs", 0)
    with pytest.raises(StoreDamaged, match=r"nothing of .* can be copied") as caught:
        merge_dataset(large, cache, "demo", min_free=0)
    assert "featstore merge" not in str(caught.value)
    assert not (cache / "demo").exists()


def test_a_set_whose_row_is_damaged_is_named_and_the_others_are_copied(source, cache):
    lost = toy_spec(16)
    store_videos(source, "demo", {"z": toy_features(5, 16)}, spec=lost)
    put_raw(source, "specs", lost.digest.encode(), b"nonsense")
    summary = merge_dataset(source, cache, "demo", min_free=0)
    assert summary.stored > 0
    [(name, reason)] = summary.failures
    assert name == f"feature set {lost.digest}"
    assert "cannot be read" in reason
