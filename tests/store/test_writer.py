import dataclasses
import os

import lmdb
import numpy as np
import pytest
from hypothesis import HealthCheck, given
from quick import examples
from strategies import video_ids
from toys import (
    INT8,
    MISFITS,
    expected,
    misfit_record,
    put_video,
    run_python,
    store_videos,
    toy_features,
    toy_header,
    toy_spec,
)

from featstore.errors import FeatureNotFound, RecordError, StoreError, StoreFull, StoreMismatch
from featstore.pipeline.make_record import pack_scales
from featstore.records.quantization import quantize
from featstore.records.record import pack_record, parse
from featstore.records.storage import Storage
from featstore.store import paths
from featstore.store import writer as writing
from featstore.store.default_set import set_default
from featstore.store.engine.environment import open_environment
from featstore.store.maintenance.check import check_dataset
from featstore.store.manifest import Counts
from featstore.store.paths import stored_bytes
from featstore.store.reader import FeatureStore, get
from featstore.store.rows import Entry, Failure
from featstore.store.writer import MAX_REASON_CHARACTERS, FeatureWriter

SPEC = toy_spec()
A, B = toy_features(1), toy_features(2)


@pytest.fixture
def writer(cache):
    writer = FeatureWriter(cache, "demo", min_free=0)
    writer.add_set(SPEC, origin="toy")
    return writer


def failure(video: str, reason: str = "no frames") -> Failure:
    return Failure(video, f"/{video}.mp4", SPEC.digest, reason, 0.0)


def test_a_video_is_invisible_until_its_commit(cache, writer):
    put_video(writer, SPEC, "a", A)
    with pytest.raises(FeatureNotFound):
        get(cache, "demo", "a")
    [entry] = writer.commit()
    assert entry.video_id == "a"
    assert np.array_equal(get(cache, "demo", "a").data, expected(A))


def test_what_is_aborted_never_appears(cache, writer):
    put_video(writer, SPEC, "a", A)
    writer.fail(failure("b"))
    writer.abort()
    assert writer.commit() == []
    assert list(FeatureStore(cache)["demo"]) == []


def test_leaving_the_block_commits_and_an_exception_drops(cache):
    with FeatureWriter(cache, "demo", min_free=0) as writer:
        writer.add_set(SPEC, origin="toy")
        put_video(writer, SPEC, "a", A)

    def interrupted() -> None:
        with FeatureWriter(cache, "demo", min_free=0) as writer:
            put_video(writer, SPEC, "b", B)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(FeatureStore(cache)["demo"]) == ["a"]


def test_a_commit_returns_the_rows_it_made_durable(cache, writer):
    put_video(writer, SPEC, "a", A)
    writer.fail(failure("b"))
    assert [row.video_id for row in writer.commit()] == ["a", "b"]
    assert writer.commit() == []


def test_a_set_added_between_two_puts_loses_no_row_of_the_commit(cache, writer):
    """`add_set` committed what waited, and nobody was told of it."""
    other = toy_spec(8)
    put_video(writer, SPEC, "a", A)
    writer.add_set(other, origin="toy")
    put_video(writer, other, "b", B)
    assert [row.video_id for row in writer.commit()] == ["a", "b"]
    assert get(cache, "demo", "b", spec=other).shape == (16, 8)


def test_a_set_dropped_with_an_abort_must_be_added_again(cache, writer):
    other = toy_spec(8)
    put_video(writer, SPEC, "a", A)
    writer.add_set(other, origin="toy")
    writer.abort()
    with pytest.raises(ValueError, match="call add_set before put"):
        put_video(writer, other, "b", B)


def test_a_set_keeps_the_origin_it_was_first_ingested_from(cache, writer):
    writer.add_set(SPEC, origin="another checkpoint")
    assert [found.origin for found in FeatureStore(cache)["demo"].sets.rows()] == ["toy"]


def test_a_set_that_is_there_keeps_its_storage_unless_it_is_to_be_replaced(cache, writer):
    put_video(writer, SPEC, "a", A)
    writer.commit()
    before = FeatureStore(cache)["demo"].feature_set
    assert (before.storage, before.storage_since) == (Storage(), 0.0)
    assert writer.add_set(SPEC) == writer.add_set(SPEC, Storage()) == before
    with pytest.raises(StoreMismatch) as caught:
        writer.add_set(SPEC, Storage("fp16", codec="zstd"))
    said = str(caught.value)
    assert f"{SPEC.digest[:8]} is stored as int8/channel_token, asked for is fp16 zstd" in said
    assert "--restore-as" in said
    assert FeatureStore(cache)["demo"].feature_set == before
    row = writer.add_set(SPEC, Storage("fp16"), replace_storage=True)
    assert FeatureStore(cache)["demo"].feature_set == row
    assert row == dataclasses.replace(
        before, storage=Storage("fp16"), storage_since=row.storage_since
    )
    assert row.storage_since > before.storage_since
    assert FeatureStore(cache)["demo"]["a"].header.storage == INT8, "each record says its own"


def test_a_storage_that_is_refused_loses_nothing_that_waits(cache, writer):
    put_video(writer, SPEC, "a", A)
    with pytest.raises(StoreMismatch):
        writer.add_set(SPEC, Storage("fp16"))
    assert [row.video_id for row in writer.commit()] == ["a"]


def test_a_storage_that_is_refused_keeps_no_other_writer_waiting(cache, writer):
    with pytest.raises(StoreMismatch):
        writer.add_set(SPEC, Storage("fp16"))
    store_videos(cache, "demo", {"b": B})


def counts_of(cache):
    return FeatureStore(cache)["demo"].counts


def test_the_manifest_counts_what_is_put_put_again_failed_and_dropped(cache, writer):
    each = 4080 + 128
    put_video(writer, SPEC, "a", A)
    put_video(writer, SPEC, "b", toy_features(3, frames=2))
    assert counts_of(cache) == Counts(), "nothing is committed"
    writer.commit()
    assert counts_of(cache) == Counts(2, 0, 6, 2 * 4080 + 128 + 64)
    put_video(writer, SPEC, "b", B)
    put_video(writer, SPEC, "b", B)
    writer.fail(failure("c"))
    writer.fail(failure("c", "still none"))
    writer.commit()
    assert counts_of(cache) == Counts(2, 1, 8, 2 * each)
    writer.fail(failure("a"))
    writer.commit()
    assert counts_of(cache) == Counts(2, 2, 8, 2 * each), "what is stored stays"
    writer.fail(failure("a"), drop=True)
    put_video(writer, SPEC, "c", A)
    writer.commit()
    assert counts_of(cache) == Counts(2, 1, 8, 2 * each)
    put_video(writer, SPEC, "a", A)
    writer.abort()
    assert counts_of(cache) == Counts(2, 1, 8, 2 * each)


def test_a_set_made_later_leaves_the_default_and_its_counts(cache, writer):
    put_video(writer, SPEC, "a", A)
    wide = toy_spec(8)
    writer.add_set(wide, Storage("fp32"))
    put_video(writer, wide, "b", B, Storage("fp32"))
    writer.commit()
    dataset = FeatureStore(cache)["demo"]
    assert (list(dataset), len(dataset), dataset.feature_set.spec) == (["a"], 1, SPEC)
    assert list(dataset.sets) == [SPEC.digest, wide.digest]
    assert [len(there) for there in dataset.sets.values()] == [1, 1]


def test_a_killed_writer_leaves_the_counts_of_its_last_commit(cache):
    program = """
import os, signal, sys
from toys import *
writer = FeatureWriter(sys.argv[1], "demo", min_free=0)
writer.add_set(toy_spec())
put_video(writer, toy_spec(), "a", toy_features(1))
writer.commit()
put_video(writer, toy_spec(), "b", toy_features(2))
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert run_python(program, cache).returncode == -9
    assert counts_of(cache) == Counts(1, 0, 4, 4080 + 128)


def test_a_video_put_again_replaces_the_first(cache, writer):
    for x in (A, B):
        put_video(writer, SPEC, "a", x)
        writer.commit()
    put_video(writer, SPEC, "a", A)
    put_video(writer, SPEC, "a", B)
    writer.commit()
    assert np.array_equal(get(cache, "demo", "a").data, expected(B))
    assert len(FeatureStore(cache)["demo"]) == 1


def test_a_video_that_is_stored_after_all_is_no_failure_any_more(cache, writer):
    writer.fail(failure("a"))
    writer.commit()
    put_video(writer, SPEC, "a", A)
    writer.commit()
    dataset = FeatureStore(cache)["demo"]
    assert list(dataset.failures()) == []
    assert list(dataset.sets[SPEC.digest].failures()) == []
    assert list(dataset) == ["a"]


def test_the_row_says_what_the_record_holds(cache, writer):
    put_video(writer, SPEC, "a", A)
    writer.commit()
    dataset = FeatureStore(cache)["demo"]
    header = dataset["a"].header
    [entry] = dataset.entries()
    assert entry == Entry.of(header, 4080 + 128)
    assert entry.frames == 4
    assert (entry.raw_bytes, entry.codec) == (128, "raw")


def test_commits_are_due_by_bytes(cache):
    with FeatureWriter(cache, "demo", min_free=0, commit_bytes=5_000) as writer:
        writer.add_set(SPEC, origin="toy")
        assert not writer.due
        put_video(writer, SPEC, "a", A)
        assert not writer.due
        put_video(writer, SPEC, "b", B)
        assert writer.due
        writer.commit()
        assert not writer.due


@given(video=video_ids)
@examples(30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_id_without_control_characters_can_be_stored_and_read(cache, video):
    store_videos(cache, "demo", {video: A, "é": B})
    dataset = FeatureStore(cache)["demo"]
    assert np.array_equal(dataset[video].data, expected(B if video == "é" else A))
    assert video in set(dataset)
    assert check_dataset(cache, "demo").problems == []


@pytest.mark.parametrize(
    "video",
    ["", "a\nb", "a\0", "\x7f", "x" * 4097, "é" * 2049, "\udcff" * 1366, "\ud800", "\udcc3\udca9"],
)
def test_an_id_that_cannot_name_a_video_is_refused(cache, writer, video):
    with pytest.raises(ValueError, match="a video id of"):
        put_video(writer, SPEC, video, A)
    with pytest.raises(ValueError, match="a video id of"):
        writer.fail(failure(video))


def test_an_id_may_have_4096_bytes(cache, writer):
    put_video(writer, SPEC, "é" * 2048, A)
    writer.commit()
    assert get(cache, "demo", "é" * 2048).shape == (16, 8)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"dataset": "other"}, StoreMismatch),
        ({"spec": "0" * 32}, ValueError),
        ({"shape": (12, 8)}, RecordError),
        ({"shape": (32, 4)}, RecordError),
        ({"frame_indices": bytes(8)}, RecordError),
    ],
)
def test_a_header_that_does_not_fit_is_refused_and_leaves_nothing(cache, writer, changes, error):
    """It would be a record that nobody can read."""
    put_video(writer, SPEC, "a", A)
    with pytest.raises(error):
        put_video(writer, SPEC, "b", B, **changes)
    assert [row.video_id for row in writer.commit()] == ["a"]


def test_a_record_may_be_stored_in_another_way_than_its_set(cache, writer):
    """So that an error budget can choose it record by record."""
    put_video(writer, SPEC, "a", A, Storage("fp32"))
    [entry] = writer.commit()
    assert entry.storage == Storage("fp32")
    assert np.array_equal(get(cache, "demo", "a").data, A)
    assert FeatureStore(cache)["demo"].feature_set.storage == Storage()


@pytest.mark.parametrize("misfit", MISFITS)
def test_a_record_that_cannot_be_of_its_set_is_refused(cache, writer, misfit):
    record = misfit_record(SPEC, "demo", "b", misfit)
    put_video(writer, SPEC, "a", A)
    for put in (
        lambda: writer.put_whole(record),
        lambda: writer.put(parse(record).header, record),
    ):
        with pytest.raises(StoreMismatch, match=f"{misfit} .*, not .*; it was not put"):
            put()
    assert [row.video_id for row in writer.commit()] == ["a"]


def test_a_buffer_without_room_before_the_payload_is_refused():
    stored, scales = quantize(A, INT8)
    buffer = memoryview(bytearray(100) + stored.tobytes())
    header = toy_header(SPEC, "demo", "a", A)
    with pytest.raises(ValueError, match=r"100 bytes precede the payload, .* needs 4080"):
        pack_record(header, pack_scales(scales), buffer, slice(100, len(buffer)))


def test_a_failure_with_an_endless_reason_can_be_read_again(cache, writer):
    """A reason of a megabyte made a row that could not be read, and with it the whole listing."""
    writer.fail(failure("a", "x" * (2 << 20)))
    writer.commit()
    [found] = FeatureStore(cache)["demo"].failures()
    assert found.reason == "x" * MAX_REASON_CHARACTERS


def test_a_failure_may_tell_of_names_that_are_no_text(cache, writer):
    writer.fail(dataclasses.replace(failure("a"), video_path="\ud800", reason="no \udcff"))
    writer.commit()
    [found] = FeatureStore(cache)["demo"].failures()
    assert (found.video_path, found.reason) == ("\ud800", "no \udcff")


def test_a_full_disk_is_noticed_before_the_put_and_keeps_what_was_put(cache, monkeypatch):
    with FeatureWriter(cache, "demo", min_free=1 << 30) as writer:
        writer.add_set(SPEC, origin="toy")
        put_video(writer, SPEC, "a", A)
        real = os.statvfs(cache)
        full = os.statvfs_result((real.f_bsize, real.f_frsize, *([1000] * 8), 0))
        monkeypatch.setattr(paths.os, "statvfs", lambda path: full)
        with pytest.raises(
            StoreFull,
            match=r"MiB are free, .* 1\.00 GiB are to stay free; make room, or ingest with a lower --min-free",
        ) as caught:
            put_video(writer, SPEC, "b", B)
        assert isinstance(caught.value, OSError)
        monkeypatch.undo()
    assert list(FeatureStore(cache)["demo"]) == ["a"]


def test_a_limit_on_the_cache_counts_all_datasets(cache):
    store_videos(cache, "one", {"a": A})
    limit = stored_bytes(cache) + (2 << 20)
    with FeatureWriter(cache, "two", min_free=0, max_size=limit) as writer:
        writer.add_set(SPEC, origin="toy")
        put_video(writer, SPEC, "b", B)
    writer = FeatureWriter(cache, "two", min_free=0, max_size=stored_bytes(cache))
    with pytest.raises(
        StoreFull,
        match=r"takes [\d.]+ KiB, .* needs up to 1\.\d MiB, .* the limit is [\d.]+ KiB; raise .* featstore compact",
    ):
        put_video(writer, SPEC, "c", B)
    assert list(FeatureStore(cache)["two"]) == ["b"]


def test_a_writer_whose_folder_was_taken_away_says_so(cache, tmp_path):
    with FeatureWriter(cache, "demo", min_free=0) as writer:
        writer.add_set(SPEC, origin="toy")
        os.rename(cache / "demo", tmp_path / "elsewhere")
        with pytest.raises(StoreError, match=r"cannot be looked into|there is no dataset"):
            put_video(writer, SPEC, "a", A)


class FailingTransaction:
    """Stands before a transaction and fails where a full disk would."""

    def __init__(self, txn: lmdb.Transaction, method: str, error: lmdb.Error) -> None:
        self._txn, self._method, self._error = txn, method, error

    def __getattr__(self, name):
        return self._fail if name == self._method else getattr(self._txn, name)

    def _fail(self, *arguments):
        self._txn.abort()
        raise self._error


def put_and_commit(writer: FeatureWriter, video: str) -> None:
    put_video(writer, SPEC, video, B)
    writer.commit()


@pytest.mark.parametrize("method", ["put", "delete", "commit"])
@pytest.mark.parametrize(
    ("refuse", "there"),  # made by each test: an error keeps what its traceback leads to
    [
        (lambda: lmdb.DiskError("No space left on device"), StoreFull),
        (lambda: lmdb.MapFullError("MDB_MAP_FULL"), StoreFull),
        (lambda: lmdb.Error("Input/output error"), StoreError),
    ],
)
def test_an_error_of_lmdb_drops_the_commit_and_the_writer_goes_on(
    cache, writer, method, refuse, there
):
    error = refuse()
    put_video(writer, SPEC, "a", A)
    writer._txn._txn = FailingTransaction(writer._txn._txn, method, error)
    with pytest.raises(there) as caught:
        put_and_commit(writer, "b")
    assert caught.value.__cause__ is error
    put_video(writer, SPEC, "c", A)
    assert [row.video_id for row in writer.commit()] == ["c"]
    assert list(FeatureStore(cache)["demo"]) == ["c"]


def test_a_foreign_lmdb_file_is_refused_and_not_written_to(tmp_path):
    """The writer made its own databases beside the stranger's."""
    folder = tmp_path / "cache" / "demo"
    folder.mkdir(parents=True)
    with lmdb.open(str(folder), max_dbs=2, lib_version=0) as foreign:
        database = foreign.open_db(b"theirs")
        with foreign.begin(write=True) as txn:
            txn.put(b"key", b"value", db=database)
    before = (folder / "data.mdb").read_bytes()
    with pytest.raises(StoreError, match="no featstore dataset; ingest into another --cache-dir"):
        FeatureWriter(tmp_path / "cache", "demo")
    assert (folder / "data.mdb").read_bytes() == before


def test_a_dataset_is_made_whole_or_not_at_all(cache, monkeypatch):
    """Killed while it was made it was an LMDB file that no reader took for a dataset."""

    def killed(*names):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "link", killed)
    with pytest.raises(KeyboardInterrupt):
        FeatureWriter(cache, "demo")
    assert list(FeatureStore(cache)) == []
    monkeypatch.undo()
    FeatureWriter(cache, "demo")
    assert check_dataset(cache, "demo").problems == []
    assert sorted(path.name for path in (cache / "demo").iterdir()) == ["data.mdb", "lock.mdb"]


def test_a_datasets_name_is_made_durable_once_a_process(cache, monkeypatch):
    synced: list[object] = []
    monkeypatch.setattr(writing, "sync_dataset", synced.append)
    first = FeatureWriter(cache, "demo", min_free=0)
    assert synced == [cache / "demo"]
    FeatureWriter(cache, "demo", min_free=0)
    assert len(synced) == 1
    del first


def test_a_dataset_made_by_two_at_once_is_one(cache, monkeypatch):
    link = os.link

    def beaten(source, target):
        monkeypatch.undo()
        store_videos(cache, "demo", {"a": A})
        link(source, target)

    monkeypatch.setattr(os, "link", beaten)
    store_videos(cache, "demo", {"b": B})
    assert set(FeatureStore(cache)["demo"]) == {"a", "b"}


def test_a_cache_that_cannot_be_made_is_a_store_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot be made"):
        FeatureWriter(tmp_path / "file", "demo")


def test_a_disk_too_full_to_make_a_dataset_is_a_store_full(cache, monkeypatch):
    def full(*arguments, **options):
        raise lmdb.DiskError("No space left on device")

    monkeypatch.setattr(lmdb, "open", full)
    with pytest.raises(StoreFull):
        FeatureWriter(cache, "demo")


KILLED_READER = """
import os, signal, sys, featstore
features = featstore.get(sys.argv[1], "demo", "a")
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.crash
def test_a_reader_that_was_killed_keeps_no_pages_from_the_writer(cache, writer):
    put_video(writer, SPEC, "a", A)
    writer.commit()
    run_python(KILLED_READER, cache)
    environment = open_environment(cache / "demo")
    dead = environment.lmdb.readers()
    assert len(dead.splitlines()) > 1
    put_video(writer, SPEC, "b", B)
    assert environment.lmdb.readers() != dead
    writer.commit()


def swap(cache, one, other):
    os.rename(cache / one, cache / "aside")
    os.rename(cache / other, cache / one)
    os.rename(cache / "aside", cache / other)


def test_a_writer_whose_dataset_was_swapped_for_another_puts_nothing_into_it(cache, writer):
    """Its commits went into the other dataset."""
    store_videos(cache, "other", {"b": B})
    swap(cache, "demo", "other")
    for act in (
        lambda: put_video(writer, SPEC, "a", A),
        lambda: writer.fail(failure("a")),
        lambda: writer.add_set(toy_spec(8), origin="toy"),
    ):
        with pytest.raises(
            StoreMismatch, match=r"cache/demo holds the dataset 'other'; .* rename it back"
        ):
            act()
    assert writer.commit() == []
    swap(cache, "demo", "other")
    put_video(writer, SPEC, "a", A)
    writer.commit()
    assert [list(FeatureStore(cache)[name]) for name in ("demo", "other")] == [["a"], ["b"]]


@pytest.mark.parametrize("video", [b"x", 5, None])
def test_an_id_that_is_no_text_is_refused(video):
    with pytest.raises(ValueError, match=r"a video id is text, not (b'x'|5|None)"):
        paths.check_video_id(video)


def test_a_dataset_whose_folder_may_not_be_entered_is_a_store_error(cache, writer, monkeypatch):
    """As another user's of mode 600."""
    stat = os.stat

    def refuse(path, *arguments, **options):
        if not isinstance(path, int) and os.fspath(path).endswith("demo/data.mdb"):
            raise PermissionError(13, "Permission denied")
        return stat(path, *arguments, **options)

    monkeypatch.setattr(os, "stat", refuse)
    with pytest.raises(StoreError, match=r"demo cannot be looked into: Permission denied"):
        FeatureWriter(cache, "demo")


def test_a_default_set_without_videos_gives_way_to_the_first_that_gets_one(cache, writer):
    """An ingest that failed, or was stopped, had left an empty set that was meant from then on."""
    writer.fail(failure("a"))
    writer.commit()
    other, third, dataset = toy_spec(8), toy_spec(2), FeatureStore(cache)["demo"]
    writer.add_set(other, origin="toy")
    writer.add_set(third, origin="toy")
    assert dataset.feature_set.spec == SPEC
    put_video(writer, other, "a", toy_features(1, 8))
    writer.commit()
    assert (dataset.feature_set.spec, list(dataset)) == (other, ["a"])
    put_video(writer, SPEC, "a", A)
    writer.commit()
    assert dataset.feature_set.spec == other
    set_default(cache, "demo", third.digest)
    put_video(writer, other, "b", toy_features(2, 8))
    writer.commit()
    assert dataset.feature_set.spec == third, "as it was named, though it is empty"
    assert check_dataset(cache, "demo").problems == []
