import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
from damage import flip_in_file, put_raw, read_raw
from quick import first_is_quick
from toys import (
    MISFITS,
    expected,
    misfit_record,
    put_video,
    store_videos,
    toy_features,
    toy_spec,
)

from featstore.errors import RecordError, StoreDamaged, StoreMismatch, StoreNotFound
from featstore.records.record import Record, parse
from featstore.sampling import Sampling
from featstore.store.catalog import read_manifest
from featstore.store.engine import snapshot
from featstore.store.engine.environment import open_environment
from featstore.store.maintenance import check
from featstore.store.maintenance.check import check_dataset
from featstore.store.maintenance.repair import repair_dataset
from featstore.store.manifest import MANIFEST_KEY, Counts
from featstore.store.reader import FeatureStore, get
from featstore.store.rows import Entry, Failure, pack_row, set_key, unpack_set, video_key
from featstore.store.writer import FeatureWriter

SPEC, WIDE = toy_spec(), toy_spec(8)
A, B = toy_features(1), toy_features(2)


@pytest.fixture
def damaged(tmp_path) -> Path:
    """A cache that a test may damage: nobody looks whether it is clean afterwards."""
    store_videos(tmp_path, "demo", {"a": A, "b": B})
    return tmp_path


KEY, KEY_A = set_key(SPEC.digest), video_key(SPEC.digest, "a")


def test_a_clean_dataset_has_no_problems_and_is_counted(cache):
    store_videos(cache, "demo", {"a": A, "b": B})
    with FeatureWriter(cache, "demo", min_free=0) as writer:
        writer.fail(Failure("c", "/c.mp4", SPEC.digest, "no frames", 0.0))
    seen: list[str] = []
    report = check_dataset(cache, "demo", lambda entry: seen.append(entry.video_id))
    assert report.problems == []
    assert (report.videos, report.failures, report.record_bytes) == (2, 1, 2 * (4080 + 128))
    assert sorted(seen) == ["a", "b"]


def test_failures_are_counted_and_a_damaged_one_says_what_to_do(damaged):
    with FeatureWriter(damaged, "demo", min_free=0) as writer:
        for video in "cde":
            writer.fail(Failure(video, f"/{video}.mp4", SPEC.digest, "no frames", 0.0))
    key = video_key(SPEC.digest, "c")
    put_raw(damaged, "failures", key, b"nonsense")
    report = check_dataset(damaged, "demo")
    assert report.failures == 3
    assert [problem.split(": ")[0] for problem in report.problems] == [f"failure {key.decode()}"]
    assert report.problems[0].endswith("; run featstore check --repair")


def test_a_row_that_cannot_be_read_is_named_by_its_key(damaged):
    put_raw(damaged, "catalog", KEY_A, b"nonsense")
    [problem] = check_dataset(damaged, "demo").problems
    assert problem.startswith(f"row {KEY_A.decode()}: a row of the catalog cannot be read")


def test_a_dataset_that_is_not_there_raises(cache):
    with pytest.raises(StoreNotFound, match="there is no store in"):
        check_dataset(cache, "demo")


def test_a_flipped_byte_of_a_payload_is_found_at_get_and_at_check(damaged):
    flip_in_file(damaged, expected(A).tobytes(), at=77)
    for verify in ("first", "always"):
        with pytest.raises(RecordError, match="payload of video 'a' is damaged: its xxh3 is"):
            FeatureStore(damaged, verify=verify)["demo"]["a"]
    assert FeatureStore(damaged, verify="never")["demo"]["a"].shape == (16, 8)
    [problem] = check_dataset(damaged, "demo").problems
    assert "video 'a'" in problem
    assert problem.endswith("; run featstore check --repair, then ingest the video again")
    assert get(damaged, "demo", "b").shape == (16, 8)


def test_a_payload_is_proved_once_or_always_or_never(damaged):
    def readable(verify: str) -> bool:
        try:
            stores[verify]["demo"]["a"]
        except RecordError:
            return False
        return True

    stores = {word: FeatureStore(damaged, verify=word) for word in ("first", "always", "never")}
    assert all(map(readable, stores))
    flip_in_file(damaged, expected(A).tobytes())
    assert [readable(word) for word in stores] == [True, False, True]


def test_a_flipped_byte_of_a_header_is_found_and_names_its_video(damaged):
    flip_in_file(damaged, b"prefix_bytes", at=40)
    with pytest.raises(RecordError, match=r"video '[ab]' of .*/demo: a record's header is damaged"):
        [get(damaged, "demo", video) for video in ("a", "b")]
    [problem] = check_dataset(damaged, "demo").problems
    assert problem.startswith(("video 'a' of set", "video 'b' of set"))


@pytest.mark.parametrize("value", [b"", b"x", bytes(10_000), b"\x93\xde\xff\xff" + bytes(5000)])
def test_a_record_that_is_none_is_found(damaged, value):
    put_raw(damaged, "records", KEY_A, value)
    with pytest.raises(RecordError):
        get(damaged, "demo", "a")
    [problem] = check_dataset(damaged, "demo").problems
    assert problem.startswith("video 'a'")


def test_a_record_of_another_video_is_found(damaged):
    put_raw(damaged, "records", KEY_A, read_raw(damaged, "records", video_key(SPEC.digest, "b")))
    with pytest.raises(RecordError, match=r"record of 'a' in .* is of another: video 'b'"):
        get(damaged, "demo", "a")
    assert check_dataset(damaged, "demo").problems == [
        f"video 'a' of set {SPEC.digest[:8]}: its record is that of 'b', which has another key; "
        "run featstore check --repair, then ingest it again"
    ]


@pytest.mark.parametrize("misfit", MISFITS)
def test_a_record_that_cannot_be_of_its_set_is_found_and_made_again(damaged, misfit):
    """Its header is whole and names the right digest: what it holds is still another's."""
    record = misfit_record(SPEC, "demo", "a", misfit)
    put_raw(damaged, "records", KEY_A, record)
    put_raw(damaged, "catalog", KEY_A, pack_row(Entry.of(parse(record).header, len(record))))
    store = FeatureStore(damaged)
    for _ in range(2):
        with pytest.raises(RecordError, match=f"{misfit} .*, not .*check --repair"):
            store["demo"]["a"]
    [problem] = check_dataset(damaged, "demo").problems
    assert "its record is not of its feature set: " in problem
    assert f" {misfit} " in problem
    [done] = repair_dataset(damaged, "demo").repaired
    assert "the next ingest makes it again" in done
    store_videos(damaged, "demo", {"a": A})
    assert check_dataset(damaged, "demo").problems == []
    assert np.array_equal(store["demo"]["a"].data, expected(A))


def test_a_video_under_the_key_of_another_is_found(damaged):
    key = video_key(SPEC.digest, "c")
    for table in ("catalog", "records"):
        put_raw(damaged, table, key, read_raw(damaged, table, KEY_A))
    [problem] = check_dataset(damaged, "demo").problems
    assert "video 'a'" in problem
    assert "which has another key" in problem


def test_a_row_without_a_record_is_found(damaged):
    put_raw(damaged, "records", KEY_A, None)
    [problem] = check_dataset(damaged, "demo").problems
    assert "'a' of set" in problem
    assert "has a row but no record" in problem


def test_a_record_without_a_row_is_found(damaged):
    put_raw(damaged, "catalog", KEY_A, None)
    [problem] = check_dataset(damaged, "demo").problems
    assert problem.startswith(f"record {KEY_A.decode()} has no row")
    assert problem.endswith("; run featstore check --repair, which writes it again")


def test_payloads_are_read_in_before_their_checksums(cache, monkeypatch):
    """Faults alone read a cold disk at half its speed."""
    store_videos(cache, "demo", {"a": A, "b": B})
    done, real = [], Record.verify
    monkeypatch.setattr(snapshot, "prefault", lambda *span: done.append("read in"))
    monkeypatch.setattr(Record, "verify", lambda self: done.append("verified") or real(self))
    for walk in (check_dataset, repair_dataset):
        assert walk(cache, "demo").problems == []
        assert done == ["read in", "verified"] * 2
        done.clear()


def test_the_disk_reads_the_next_record_while_one_is_verified(cache, monkeypatch):
    store_videos(cache, "demo", {"a": A, "b": B, "c": A})
    monkeypatch.setattr(check, "LARGE_RECORD_BYTES", 0)
    done, real = [], Record.verify
    monkeypatch.setattr(snapshot.Snapshot, "read_ahead", lambda self, key: done.append(key))
    monkeypatch.setattr(Record, "verify", lambda self: done.append(b"verified") or real(self))
    assert check_dataset(cache, "demo").problems == []
    keys = [*open_environment(cache / "demo").snapshot().keys("catalog")]
    assert done == [b"verified", keys[2], b"verified", b"verified"]


def test_a_set_without_a_row_is_found(damaged):
    put_raw(damaged, "specs", KEY, None)
    problems = check_dataset(damaged, "demo").problems
    assert len(problems) == 2
    assert all("its feature set has no row" in problem for problem in problems)


def test_a_set_whose_row_describes_another_is_found(damaged):
    row = unpack_set(KEY, read_raw(damaged, "specs", KEY))
    other = dataclasses.replace(SPEC, sampling=Sampling(SPEC.sampling.nframe, "midpoint"))
    put_raw(damaged, "specs", KEY, pack_row(dataclasses.replace(row, spec=other)))
    [problem] = check_dataset(damaged, "demo").problems
    assert f"the feature set {SPEC.digest} describes" in problem
    assert problem.endswith("removes this set only, then ingest its videos again")
    with pytest.raises(StoreDamaged, match="its row is damaged; featstore check --repair removes"):
        get(damaged, "demo", "a")
    store_videos(damaged, "demo", {"a": A}, spec=WIDE)
    assert len(repair_dataset(damaged, "demo").repaired) >= 1
    assert [found.spec for found in FeatureStore(damaged)["demo"].sets.rows()] == [WIDE]


@pytest.mark.parametrize("table", first_is_quick(["manifest", "specs", "catalog", "failures"]))
def test_any_flipped_byte_of_a_row_is_damage(damaged, table):
    with FeatureWriter(damaged, "demo", min_free=0) as writer:
        writer.fail(Failure("c", "/c.mp4", SPEC.digest, "no frames", 0.0))
    key, row = next(iter(open_environment(damaged / "demo").snapshot().rows(table)))
    for at in range(len(row)):
        flipped = bytearray(row)
        flipped[at] ^= 0xFF if at % 2 else 0x41
        put_raw(damaged, table, key, bytes(flipped))
        [problem] = check_dataset(damaged, "demo").problems
        assert "cannot be read" in problem
        with pytest.raises(StoreDamaged):
            read_all_rows(damaged)


def read_all_rows(cache: Path) -> None:
    dataset = FeatureStore(cache)["demo"]
    list(dataset.entries())
    list(dataset.failures())
    dataset.sets.rows()


def test_a_dataset_from_the_future_says_so(damaged):
    snapshot = open_environment(damaged / "demo").snapshot()
    manifest = dataclasses.replace(read_manifest(snapshot), format=3)
    put_raw(damaged, "manifest", b"manifest", pack_row(manifest))
    with pytest.raises(
        StoreMismatch, match="store format 3, this featstore reads format 2; update"
    ):
        FeatureStore(damaged)["demo"]
    [problem] = check_dataset(damaged, "demo").problems
    assert "store format 3" in problem


def test_a_file_that_was_not_copied_whole_is_found_without_touching_its_end(damaged):
    """To touch a page behind the file's end is a bus error, which no program survives."""
    file = damaged / "demo" / "data.mdb"
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content[:-5000])
    problems = check_dataset(damaged, "demo").problems
    assert problems
    assert all("the file is damaged or was cut short" in problem for problem in problems)


def test_a_check_sees_one_snapshot_while_a_writer_goes_on(cache):
    store_videos(cache, "demo", {str(i): A for i in range(5)})
    with FeatureWriter(cache, "demo", min_free=0) as writer:

        def replace(entry) -> None:
            put_video(writer, SPEC, entry.video_id, B)
            put_video(writer, SPEC, f"more {entry.video_id}", B)
            writer.commit()

        report = check_dataset(cache, "demo", replace)
    assert (report.problems, report.videos) == ([], 5)
    assert len(FeatureStore(cache)["demo"]) == 10


def test_a_key_of_no_table_is_found(cache):
    """As a flipped bit in the name of a failure's table makes one."""
    store_videos(cache, "demo", {"a": toy_features(1)})
    environment = open_environment(cache / "demo")
    with environment.lmdb.begin(write=True) as txn:
        txn.put(b"fbilures/x", b"row")
    [problem] = check_dataset(cache, "demo").problems
    assert "the key b'fbilures/x' belongs to no table" in problem
    with environment.lmdb.begin(write=True) as txn:
        txn.delete(b"fbilures/x")


def put_manifest(cache, **changes) -> None:
    manifest = read_manifest(open_environment(cache / "demo").snapshot())
    put_raw(cache, "manifest", MANIFEST_KEY, pack_row(dataclasses.replace(manifest, **changes)))


WRONG_MANIFESTS = {
    "videos": ({"sets": {SPEC.digest: Counts(3, 0, 8, 8416)}}, "counts Counts.videos=3, .*=2, "),
    "failures": ({"sets": {SPEC.digest: Counts(2, 1, 8, 8416)}}, "failures=1, .*failures=0, "),
    "frames": ({"sets": {SPEC.digest: Counts(2, 0, 9, 8416)}}, "frames=9, .*frames=8, "),
    "bytes": ({"sets": {SPEC.digest: Counts(2, 0, 8, 1)}}, "record_bytes=1.*record_bytes=8416"),
    "no counts": ({"sets": {}}, f"counts None in set {SPEC.digest[:8]}, its rows come to"),
    "a set that is not there": (
        {"sets": {SPEC.digest: Counts(2, 0, 8, 8416), WIDE.digest: Counts()}},
        f"counts the set {WIDE.digest[:8]}, which is not there",
    ),
    "default": ({"default": WIDE.digest}, f"default set is {WIDE.digest[:8]}, which is not there"),
    "no default": ({"default": ""}, "default set is none, which is not there"),
}


@pytest.mark.parametrize("name", WRONG_MANIFESTS)
def test_a_manifest_that_is_wrong_is_found_and_written_again(damaged, name):
    right = read_manifest(open_environment(damaged / "demo").snapshot())
    changes, says = WRONG_MANIFESTS[name]
    put_manifest(damaged, **changes)
    [problem] = check_dataset(damaged, "demo").problems
    assert problem.startswith("the manifest ")
    assert problem.endswith("; run featstore check --repair, which writes it again")
    assert re.search(says, problem), problem
    report = repair_dataset(damaged, "demo")
    assert (report.problems, len(report.repaired), report.again) == ([], 1, 0)
    assert report.repaired[0].endswith("; written again")
    assert read_manifest(open_environment(damaged / "demo").snapshot()) == right
    assert check_dataset(damaged, "demo").problems == []
