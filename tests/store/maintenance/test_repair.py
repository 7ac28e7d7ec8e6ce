import struct
import time

import msgpack
import pytest
import xxhash
from damage import flip_in_file, put_raw, read_raw
from toys import expected, run_python, store_videos, toy_features, toy_spec

from featstore.decoding.video_file import Video
from featstore.errors import FeatureNotFound, StoreError, StoreLocked, StoreNotFound
from featstore.pipeline.plan import make_plan
from featstore.store.catalog import read_manifest
from featstore.store.default_set import set_default
from featstore.store.engine import pages
from featstore.store.engine.environment import open_environment
from featstore.store.engine.locks import ingest_lock
from featstore.store.maintenance import repair
from featstore.store.maintenance.check import check_dataset
from featstore.store.maintenance.repair import repair_dataset
from featstore.store.manifest import MANIFEST_KEY, Counts
from featstore.store.reader import FeatureStore, get
from featstore.store.rows import Failure, pack_row, set_key, video_key
from featstore.store.writer import FeatureWriter

SPEC = toy_spec()
A, B = toy_features(1), toy_features(2)
KEY_A = video_key(SPEC.digest, "a")
KEY_B = video_key(SPEC.digest, "b")
VIDEOS = [Video(name, f"/videos/{name}.mp4") for name in "ab"]


@pytest.fixture
def damaged(tmp_path):
    store_videos(tmp_path, "demo", {"a": A, "b": B})
    return tmp_path


def bad_payload(cache):
    flip_in_file(cache, expected(A).tobytes(), at=77)


def bad_prefix(cache):
    flip_in_file(cache, read_raw(cache, "records", KEY_A)[:120], at=60)


def no_record(cache):
    put_raw(cache, "records", KEY_A, None)


def no_sense(cache):
    put_raw(cache, "records", KEY_A, b"nonsense")


def record_of_another(cache):
    put_raw(cache, "records", KEY_A, read_raw(cache, "records", KEY_B))


def no_row(cache):
    put_raw(cache, "catalog", KEY_A, None)


def bad_row(cache):
    put_raw(cache, "catalog", KEY_A, b"nonsense")


def row_of_another(cache):
    put_raw(cache, "catalog", KEY_A, read_raw(cache, "catalog", KEY_B))


def bad_row_and_payload(cache):
    bad_row(cache)
    bad_payload(cache)


def bad_row_and_prefix(cache):
    bad_prefix(cache)
    bad_row(cache)


def bad_row_and_no_record(cache):
    no_record(cache)
    bad_row(cache)


def no_row_and_bad_prefix(cache):
    bad_prefix(cache)
    no_row(cache)


def plan(cache):
    return make_plan(VIDEOS, open_environment(cache / "demo").snapshot(), SPEC)


@pytest.mark.parametrize(
    "damage", [bad_payload, bad_prefix, no_record, no_sense, record_of_another, bad_row_and_payload]
)
def test_a_damaged_record_becomes_work_for_the_next_ingest(damaged, damage):
    damage(damaged)
    report = repair_dataset(damaged, "demo")
    assert (report.problems, report.again) == ([], 1)
    [done] = report.repaired
    assert done.endswith("; removed; the next ingest makes it again")
    assert check_dataset(damaged, "demo").problems == []
    [failure] = FeatureStore(damaged)["demo"].sets[SPEC.digest].failures()
    assert (failure.video_id, failure.video_path) == ("a", "/videos/a.mp4")
    assert failure.reason.startswith("damaged: ")
    for said in (done, failure.reason):
        assert "run featstore" not in said, "what a check says to do was done"
        assert "ingest it again" not in said
        assert "ingest the video again" not in said
    with pytest.raises(FeatureNotFound, match="damaged: "):
        get(damaged, "demo", "a")
    assert get(damaged, "demo", "b").shape == (16, 8)
    assert [video.video_id for video in plan(damaged).todo] == ["a"], "without --retry-failed"
    store_videos(damaged, "demo", {"a": A})
    assert plan(damaged).todo == ()
    assert list(FeatureStore(damaged)["demo"].failures()) == []


@pytest.mark.parametrize("damage", [no_row, bad_row, row_of_another])
def test_a_damaged_row_is_written_again_from_its_record(damaged, damage):
    row = read_raw(damaged, "catalog", KEY_A)
    damage(damaged)
    report = repair_dataset(damaged, "demo")
    assert (report.problems, report.again, len(report.repaired)) == ([], 0, 1)
    assert read_raw(damaged, "catalog", KEY_A) == row
    assert check_dataset(damaged, "demo").problems == []
    assert plan(damaged).todo == ()


@pytest.mark.parametrize(
    "damage", [bad_row_and_prefix, no_row_and_bad_prefix, bad_row_and_no_record]
)
def test_what_cannot_be_told_is_removed_and_made_again(damaged, damage):
    damage(damaged)
    report = repair_dataset(damaged, "demo")
    assert report.problems == []
    assert "whose key it had cannot be told" in report.repaired[0]
    assert check_dataset(damaged, "demo").problems == []
    assert [video.video_id for video in plan(damaged).todo] == ["a"]


def test_a_video_under_the_key_of_another_is_removed_and_its_own_stays(damaged):
    key = video_key(SPEC.digest, "c")
    for table in ("catalog", "records"):
        put_raw(damaged, table, key, read_raw(damaged, table, KEY_A))
    repair_dataset(damaged, "demo")
    assert check_dataset(damaged, "demo").problems == []
    assert set(FeatureStore(damaged)["demo"]) == {"a", "b"}


@pytest.mark.parametrize("kind", ["none", "nonsense", "another"])
def test_a_feature_set_without_its_row_takes_its_videos_with_it(damaged, kind):
    """Nothing says any more what made them."""
    other = toy_spec(8)
    store_videos(damaged, "demo", {"a": B}, spec=other)
    key = SPEC.digest.encode()
    row = read_raw(damaged, "specs", key)
    value = {"none": None, "nonsense": b"x", "another": row.replace(b"linspace", b"midpoint")}[kind]
    put_raw(damaged, "specs", key, value)
    report = repair_dataset(damaged, "demo")
    assert (report.problems, report.again) == ([], 2)
    assert check_dataset(damaged, "demo").problems == []
    assert [found.spec for found in FeatureStore(damaged)["demo"].sets.rows()] == [other]
    assert [video.video_id for video in plan(damaged).todo] == ["a", "b"]
    store_videos(damaged, "demo", {"a": A, "b": B})
    assert plan(damaged).todo == ()


def test_a_record_of_a_newer_release_is_left_alone(damaged):
    """A codec that this release does not know is no damage."""
    record = bytearray(read_raw(damaged, "records", KEY_A))
    at = record.index(b"\xa5codec\xa3raw") + len(b"\xa5codec\xa3")
    record[at : at + 3] = b"new"
    (prefix_bytes,) = struct.unpack_from(">I", record, 26)
    record[44:52] = bytes(8)
    record[44:52] = xxhash.xxh3_64_digest(bytes(record[:prefix_bytes]))
    put_raw(damaged, "records", KEY_A, bytes(record))
    report = repair_dataset(damaged, "demo")
    [problem] = report.problems
    assert "codec is 'new'" in problem
    assert problem.endswith("left as it is, for it is whole: update featstore")
    assert (report.repaired, report.again) == ([], 0)
    assert read_raw(damaged, "records", KEY_A) == bytes(record)


@pytest.mark.parametrize(
    ("table", "key"),
    [("specs", set_key(SPEC.digest)), ("catalog", KEY_A), ("failures", KEY_B)],
)
def test_a_row_of_a_newer_release_is_left_alone_with_all_it_stands_for(damaged, table, key):
    """One that says more than this release knows is no damage: with a set's row its videos were removed."""
    if table == "failures":
        put_raw(
            damaged, table, key, pack_row(Failure("b", "/b.mp4", SPEC.digest, "no frames", 1.0))
        )
    plain = msgpack.unpackb(read_raw(damaged, table, key)[11:])
    more = [*plain, "of the future"] if table == "catalog" else {**plain, "of the future": 1}
    packed = msgpack.packb(more)
    put_raw(damaged, table, key, b"\x92\xc4\x08" + xxhash.xxh3_64_digest(packed) + packed)
    report = repair_dataset(damaged, "demo")
    assert (report.repaired, report.again) == ([], 0)
    assert report.problems[0].endswith("left as it is, for it is whole: update featstore")
    assert read_raw(damaged, "records", KEY_A) is not None
    assert read_raw(damaged, table, key)[11:] == packed


def test_a_damaged_failure_is_removed(damaged):
    put_raw(damaged, "failures", KEY_B[:-1] + b"0", b"nonsense")
    assert len(check_dataset(damaged, "demo").problems) == 1
    report = repair_dataset(damaged, "demo")
    assert (report.problems, len(report.repaired)) == ([], 1)
    assert check_dataset(damaged, "demo").problems == []


def test_a_clean_dataset_is_left_as_it_is(damaged):
    before = (damaged / "demo" / "data.mdb").read_bytes()
    report = repair_dataset(damaged, "demo")
    assert (report.problems, report.repaired, report.videos) == ([], [], 2)
    assert (damaged / "demo" / "data.mdb").read_bytes() == before


def test_what_was_put_anew_since_it_was_found_is_kept(damaged, monkeypatch):
    bad_payload(damaged)
    real = repair.find_problems

    def and_then_ingested(*words):
        found = list(real(*words))
        store_videos(damaged, "demo", {"a": B})
        return found

    monkeypatch.setattr(repair, "find_problems", and_then_ingested)
    assert repair_dataset(damaged, "demo").again == 0
    assert check_dataset(damaged, "demo").problems == []
    assert get(damaged, "demo", "a").data.tobytes() == expected(B).tobytes()


def test_damaged_pages_are_not_written_into(damaged, monkeypatch):
    monkeypatch.setattr(pages, "find_page_problems", lambda folder: ["page 7 is no page"])
    with pytest.raises(
        StoreError, match=r"page 7 is no page .*with featstore merge, which leaves it as it is"
    ):
        repair_dataset(damaged, "demo")


def test_nothing_is_repaired_while_an_ingest_is_at_work_nor_where_there_is_nothing(damaged):
    with ingest_lock(damaged / "demo"), pytest.raises(StoreLocked):
        repair_dataset(damaged, "demo")
    with pytest.raises(StoreNotFound):
        repair_dataset(damaged, "other")
    assert [path.name for path in damaged.iterdir()] == ["demo"]


def test_many_problems_are_mended_in_several_commits(damaged, monkeypatch):
    monkeypatch.setattr(repair, "COMMIT_KEYS", 3)
    store_videos(damaged, "demo", {str(i): A for i in range(10)})
    for i in range(10):
        put_raw(damaged, "records", video_key(SPEC.digest, str(i)), b"nonsense")
    assert repair_dataset(damaged, "demo").again == 10
    assert check_dataset(damaged, "demo").problems == []


def counts_of(cache):
    return FeatureStore(cache)["demo"].counts


@pytest.mark.parametrize(
    ("damage", "left"),
    [
        *((make, Counts(1, 1, 4, 4208)) for make in (bad_payload, bad_prefix, no_record, no_sense)),
        *((make, Counts(1, 1, 4, 4208)) for make in (record_of_another, bad_row_and_payload)),
        *((make, Counts(2, 0, 8, 8416)) for make in (no_row, bad_row, row_of_another)),
        *((make, Counts(1, 0, 4, 4208)) for make in (bad_row_and_prefix, no_row_and_bad_prefix)),
    ],
)
def test_the_manifest_counts_what_a_repair_left(damaged, damage, left):
    damage(damaged)
    repair_dataset(damaged, "demo")
    assert counts_of(damaged) == left
    store_videos(damaged, "demo", {"a": A})
    assert counts_of(damaged) == Counts(2, 0, 8, 8416)
    assert check_dataset(damaged, "demo").problems == []


def test_failures_of_a_set_that_was_removed_are_counted_once_it_is_made_again(damaged):
    put_raw(damaged, "specs", set_key(SPEC.digest), b"nonsense")
    assert repair_dataset(damaged, "demo").again == 2
    assert check_dataset(damaged, "demo").problems == []
    store_videos(damaged, "demo", {"a": A})
    assert counts_of(damaged) == Counts(1, 1, 4, 4208)
    assert check_dataset(damaged, "demo").problems == []


def test_the_oldest_set_left_becomes_the_default_if_a_repair_removes_the_default_one(damaged):
    other = toy_spec(8)
    store_videos(damaged, "demo", {"c": B}, spec=other)
    put_raw(damaged, "specs", set_key(SPEC.digest), b"nonsense")
    repair_dataset(damaged, "demo")
    assert list(FeatureStore(damaged)["demo"]) == ["c"]


def test_a_failure_beside_a_row_that_is_mended_stays(damaged):
    """The video was stored, and then its file broke."""
    with FeatureWriter(damaged, "demo", min_free=0) as writer:
        writer.fail(Failure("a", "/a.mp4", SPEC.digest, "it is cut short", 1.0))
    bad_row(damaged)
    repair_dataset(damaged, "demo")
    assert counts_of(damaged) == Counts(2, 1, 8, 8416)
    assert [row.reason for row in FeatureStore(damaged)["demo"].failures()] == ["it is cut short"]
    assert check_dataset(damaged, "demo").problems == []


@pytest.mark.crash
def test_a_repair_that_is_killed_leaves_right_counts_and_goes_on(damaged):
    store_videos(damaged, "demo", {str(i): A for i in range(10)})
    for i in range(10):
        put_raw(damaged, "records", video_key(SPEC.digest, str(i)), b"nonsense")
    program = """
import os, signal, sys
from featstore.store.maintenance import repair
repair.COMMIT_KEYS = 3
real, left = repair.CatalogTransaction.commit, [2]
def commit(txn):
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    real(txn)
repair.CatalogTransaction.commit = commit
repair.repair_dataset(sys.argv[1], "demo")
"""
    assert run_python(program, damaged).returncode == -9
    assert counts_of(damaged) == Counts(6, 6, 24, 6 * 4208)
    assert len(check_dataset(damaged, "demo").problems) == 4
    assert repair_dataset(damaged, "demo").again == 4
    assert counts_of(damaged) == Counts(2, 10, 8, 8416)
    assert check_dataset(damaged, "demo").problems == []


def lose_manifest(cache, value=b"nonsense"):
    put_raw(cache, "manifest", MANIFEST_KEY, value)


@pytest.mark.parametrize("value", [b"nonsense", None])
def test_a_manifest_is_rebuilt_from_the_rows(damaged, value):
    before = read_manifest(open_environment(damaged / "demo").snapshot())
    lose_manifest(damaged, value)
    with pytest.raises(StoreError, match=r"featstore check --repair --cache-dir .* --dataset demo"):
        get(damaged, "demo", "a")
    [problem] = check_dataset(damaged, "demo").problems
    assert "featstore check --repair" in problem
    assert check_dataset(damaged, "demo").videos == 2
    report = repair_dataset(damaged, "demo")
    assert report.problems == []
    [done] = report.repaired
    assert done.endswith("written again from the rows; the only feature set is the default one")
    after = read_manifest(open_environment(damaged / "demo").snapshot())
    assert (after.default, after.sets) == (before.default, before.sets)
    assert check_dataset(damaged, "demo").problems == []
    assert get(damaged, "demo", "a").shape == (16, 8)


def test_of_several_sets_the_oldest_becomes_the_default_of_a_rebuilt_manifest(damaged):
    store_videos(damaged, "demo", {"a": toy_features(3, 8)}, spec=toy_spec(8))
    set_default(damaged, "demo", toy_spec(8).digest)
    lose_manifest(damaged)
    flip_in_file(damaged, expected(A).tobytes(), at=77)  # beside it, a record
    report = repair_dataset(damaged, "demo")
    assert (report.problems, report.again) == ([], 1)
    assert (
        f"the oldest feature set, {SPEC.digest[:8]}, is now the default one" in report.repaired[-1]
    )
    assert check_dataset(damaged, "demo").problems == []
    assert get(damaged, "demo", "b").header.spec == SPEC.digest
    assert FeatureStore(damaged)["demo"].counts == Counts(1, 1, 4, 4080 + 128)


def test_the_sets_of_a_rebuilt_manifest_are_the_oldest_first(damaged):
    """The next one becomes the default if that is removed."""
    others = [toy_spec(nframe) for nframe in (8, 16, 32, 64)]
    for spec in others:
        store_videos(damaged, "demo", {"a": A}, spec=spec)
    made = [SPEC.digest, *(spec.digest for spec in others)]
    assert made != sorted(made)
    lose_manifest(damaged)
    repair_dataset(damaged, "demo")
    manifest = read_manifest(open_environment(damaged / "demo").snapshot())
    assert (list(manifest.sets), manifest.default) == (made, SPEC.digest)


def test_a_manifest_of_no_sets_is_rebuilt(tmp_path):
    FeatureWriter(tmp_path, "demo", min_free=0)
    lose_manifest(tmp_path)
    [done] = repair_dataset(tmp_path, "demo").repaired
    assert done.endswith("; written again from the rows; it has no feature set")
    assert check_dataset(tmp_path, "demo").problems == []
    manifest = read_manifest(open_environment(tmp_path / "demo").snapshot())
    assert (manifest.dataset, manifest.default, manifest.sets) == ("demo", "", {})
    assert time.time() - 60 < manifest.created <= time.time()


def test_whose_key_it_was_is_told_by_a_failure_if_row_and_record_do_not(damaged):
    """The video failed once more after it was stored."""
    with FeatureWriter(damaged, "demo", min_free=0) as writer:
        writer.fail(Failure("a", "/other/a.mp4", SPEC.digest, "it is cut short", 1.0))
    bad_row_and_prefix(damaged)
    assert repair_dataset(damaged, "demo").again == 1
    [failure] = FeatureStore(damaged)["demo"].failures()
    assert (failure.video_id, failure.video_path) == ("a", "/other/a.mp4")
    assert failure.reason.startswith("damaged: row ")
    assert check_dataset(damaged, "demo").problems == []


def test_what_no_row_tells_any_more_is_removed_once_with_its_set(damaged):
    """A video's row and its set's are damaged: it is not counted twice."""
    bad_row(damaged)
    put_raw(damaged, "specs", set_key(SPEC.digest), b"nonsense")
    report = repair_dataset(damaged, "demo")
    assert (report.problems, report.again) == ([], 2)
    assert [done for done in report.repaired if done.endswith("; removed with its feature set")]
    assert check_dataset(damaged, "demo").problems == []


def test_a_manifest_is_not_rebuilt_under_another_name_than_the_records_have(damaged):
    lose_manifest(damaged)
    (damaged / "demo").rename(damaged / "other")
    report = repair_dataset(damaged, "other")
    assert report.repaired == []
    [problem] = report.problems
    assert "holds the dataset 'demo'" in problem
    (damaged / "other").rename(damaged / "demo")
    assert repair_dataset(damaged, "demo").problems == []
    assert get(damaged, "demo", "a").shape == (16, 8)


def test_a_manifest_is_not_rebuilt_where_no_set_can_be_told(damaged):
    lose_manifest(damaged)
    put_raw(damaged, "specs", set_key(SPEC.digest), b"nonsense")
    report = repair_dataset(damaged, "demo")
    assert report.repaired == []
    assert "nothing else tells what the records are" in report.problems[0]
    assert "featstore check" not in report.problems[0]
