"""Several feature sets in one dataset: which of them is meant, and what the manifest says of each."""

import pickle

import numpy as np
import pytest
from damage import flip_in_file, put_raw, read_raw
from toys import expected, put_video, run_python, store_videos, toy_features, toy_spec

import featstore
from featstore.errors import (
    FeatureNotFound,
    RecordError,
    StoreDamaged,
    StoreError,
    StoreLocked,
    StoreMismatch,
    StoreNotFound,
)
from featstore.records.storage import Storage
from featstore.store.default_set import set_default
from featstore.store.engine.locks import ingest_lock
from featstore.store.engine.snapshot import Snapshot
from featstore.store.maintenance.remove import remove_set
from featstore.store.maintenance.repair import repair_dataset
from featstore.store.maintenance.seal import seal_dataset
from featstore.store.manifest import Counts
from featstore.store.reader import FeatureStore
from featstore.store.rows import Failure, set_key, video_key
from featstore.store.writer import FeatureWriter

FOUR, EIGHT = toy_spec(4), toy_spec(8)
FP16 = Storage("fp16")
A, B, C = (toy_features(seed) for seed in range(3))
EACH, EACH_FP16 = 4080 + 128, 4080 + 256


@pytest.fixture
def two(cache):
    """`a` is in the set of 4 frames, the default one; another `a`, `b` and a failure in that of 8."""
    store_videos(cache, "demo", {"a": A}, spec=FOUR)
    store_videos(cache, "demo", {"a": B, "b": C}, spec=EIGHT, storage=FP16)
    with FeatureWriter(cache, "demo", min_free=0) as writer:
        writer.fail(Failure("bad", "/bad.mp4", EIGHT.digest, "no frames", 0.0))
    return cache


def test_all_ways_to_look_agree_on_the_default_set(two):
    dataset = FeatureStore(two)["demo"]
    assert dataset.feature_set.spec == dataset.select().spec == FOUR
    assert (list(dataset), len(dataset), set(dataset.keys())) == (["a"], 1, {"a"})
    assert ("a" in dataset, "b" in dataset, "bad" in dataset) == (True, False, False)
    for found in (dataset["a"], dataset.lookup("a"), featstore.get(two, "demo", "a")):
        assert found.header.spec == FOUR.digest
        assert np.array_equal(found.data, expected(A))
    for look in (dataset.__getitem__, lambda video: featstore.get(two, "demo", video)):
        with pytest.raises(FeatureNotFound, match=f"feature set {FOUR.digest[:8]}"):
            look("b")
    assert [entry.video_id for entry in dataset.entries()] == ["a"]
    assert (list(dataset.failures()), dataset.entry("b")) == ([], None)
    assert dataset.counts == Counts(1, 0, 4, EACH)
    assert dataset.entry("a").spec == FOUR.digest


def test_each_set_is_a_mapping_of_its_own_found_by_its_first_digits(two):
    sets = FeatureStore(two)["demo"].sets
    assert (list(sets), len(sets)) == ([FOUR.digest, EIGHT.digest], 2)
    for name in (EIGHT.digest, EIGHT.digest[:4]):
        there = sets[name]
        assert (set(there), len(there), "b" in there) == ({"a", "b"}, 2, True)
        assert np.array_equal(there["a"].data, expected(B, FP16))
        assert [row.video_id for row in there.failures()] == ["bad"]
        assert there.counts == Counts(2, 1, 8, 2 * EACH_FP16)
        assert there.feature_set.storage == FP16
    assert EIGHT.digest[:4] in sets
    assert [row.spec for row in sets.rows()] == [FOUR, EIGHT]
    for name in ("ffff" if not FOUR.digest.startswith("ffff") else "0000", EIGHT.digest[:3], "", 7):
        assert name not in sets
        assert sets.get(name) is None
        with pytest.raises(
            FeatureNotFound, match=f"{FOUR.digest[:8]}[^$]*{EIGHT.digest[:8]}"
        ) as caught:
            sets[name]
        assert isinstance(caught.value, KeyError)


def test_another_set_is_asked_for_by_frames_or_spec_and_changes_nothing_for_others(two):
    dataset = FeatureStore(two)["demo"]
    for choice in ({"nframe": 8}, {"spec": EIGHT}, {"spec": EIGHT.digest[:6]}):
        assert np.array_equal(dataset.lookup("b", **choice).data, expected(C, FP16))
        assert featstore.get(two, "demo", "b", **choice).header.spec == EIGHT.digest
    assert len(dataset) == 1


@pytest.mark.slow
def test_a_set_made_later_by_another_process_changes_nothing(cache):
    """As a model does with one question at another number of frames."""
    store_videos(cache, "demo", {"a": A})
    dataset = FeatureStore(cache)["demo"]
    before = (list(dataset), len(dataset), dataset["a"].header, repr(dataset), dataset.counts)
    program = """
import sys
from toys import *
store_videos(sys.argv[1], "demo", {"a": toy_features(8), "c": toy_features(9)}, spec=toy_spec(8))
"""
    assert run_python(program, cache).returncode == 0
    assert (list(dataset), len(dataset), dataset["a"].header, repr(dataset), dataset.counts) == (
        before
    )
    assert len(dataset.sets) == 2


def test_another_default_set_is_meant_by_all_at_once(two):
    dataset = FeatureStore(two)["demo"]
    chosen = set_default(two, "demo", EIGHT.digest[:4])
    assert chosen.spec == EIGHT
    for look in (dataset, FeatureStore(two)["demo"], pickle.loads(pickle.dumps(dataset))):
        assert (set(look), len(look)) == ({"a", "b"}, 2)
        assert np.array_equal(look["a"].data, expected(B, FP16))
    assert featstore.get(two, "demo", "b").header.spec == EIGHT.digest
    four = dataset.sets[FOUR.digest]
    assert (list(four), four.feature_set.spec) == (["a"], FOUR)
    set_default(two, "demo", FOUR.digest)
    assert list(dataset) == ["a"]


def test_one_iteration_gives_one_set_also_if_another_becomes_the_default(two):
    store_videos(two, "demo", {"b": A}, spec=FOUR)
    dataset = FeatureStore(two)["demo"]
    for walk in (dataset.values, lambda: (features for _, features in dataset.items())):
        set_default(two, "demo", FOUR.digest)
        found = iter(walk())
        first = next(found)
        set_default(two, "demo", EIGHT.digest)
        assert [features.header.spec for features in (first, *found)] == [FOUR.digest] * 2
    set_default(two, "demo", FOUR.digest)
    remaining = iter(dataset.items())
    next(remaining)
    remove_set(two, "demo", FOUR)
    with pytest.raises(FeatureNotFound, match=f"set {FOUR.digest[:8]} was removed"):
        next(remaining)


def test_a_default_set_that_is_not_there_or_not_one_is_refused(two):
    for name in ("0123456789abcdef", FOUR.digest[:3], ""):
        with pytest.raises(StoreMismatch, match="no feature set of dataset 'demo' fits"):
            set_default(two, "demo", name)
    with ingest_lock(two / "demo"), pytest.raises(StoreLocked):
        set_default(two, "demo", EIGHT.digest)
    seal_dataset(two, "demo")
    with pytest.raises(StoreError, match="is sealed"):
        set_default(two, "demo", EIGHT.digest)
    with pytest.raises(StoreNotFound):
        set_default(two, "other", EIGHT.digest)
    assert FeatureStore(two)["demo"].feature_set.spec == FOUR
    assert not (two / "other").exists()


def test_a_writer_that_began_before_keeps_the_default_set_that_was_named_since(two):
    with FeatureWriter(two, "demo", min_free=0) as writer:
        writer.add_set(FOUR)
        set_default(two, "demo", EIGHT.digest)
        put_video(writer, FOUR, "new", A)
    assert FeatureStore(two)["demo"].feature_set.spec == EIGHT


def test_a_set_whose_row_is_damaged_does_not_hide_the_others(tmp_path):
    store_videos(tmp_path, "demo", {"a": A}, spec=FOUR)
    store_videos(tmp_path, "demo", {"a": B}, spec=EIGHT)
    row = read_raw(tmp_path, "specs", set_key(EIGHT.digest))
    put_raw(tmp_path, "specs", set_key(EIGHT.digest), row[:-1])
    dataset = FeatureStore(tmp_path)["demo"]
    assert np.array_equal(dataset["a"].data, expected(A))
    assert (len(dataset), "a" in dataset) == (1, True)
    with pytest.raises(StoreDamaged, match="cannot be read"):  # damaged, not missing
        dataset.sets.get(EIGHT.digest)


def test_length_and_membership_read_no_row_of_a_video(two, monkeypatch):
    monkeypatch.setattr(Snapshot, "rows", lambda *words: pytest.fail("rows are read"))
    dataset = FeatureStore(two)["demo"]
    assert (len(dataset), dataset.counts.videos, "a" in dataset) == (1, 1, True)


def test_a_set_that_was_removed_says_so(two):
    there = FeatureStore(two)["demo"].sets[EIGHT.digest]
    remove_set(two, "demo", EIGHT)
    assert (list(there), len(there), "a" in there) == ([], 0, False)
    removed = f"the feature set {EIGHT.digest[:8]} was removed from dataset 'demo' in {two}"
    remedy = "; ingest its videos again, or take another feature set"
    with pytest.raises(FeatureNotFound) as missed:
        there["a"]
    assert str(missed.value) == f"{removed}, so video 'a' is not there{remedy}"
    with pytest.raises(StoreMismatch) as gone:
        there.feature_set  # noqa: B018
    assert str(gone.value) == removed + remedy
    assert repr(there) == f"<featstore.Dataset 'demo': {removed}>"


def test_a_video_that_is_missing_from_one_set_is_named_with_the_set_that_has_it(two):
    dataset = FeatureStore(two)["demo"]
    four, eight = FOUR.digest[:8], EIGHT.digest[:8]
    listing = f"list what is: featstore ls --cache-dir {two} --dataset demo"
    with pytest.raises(FeatureNotFound) as missed:
        dataset["b"]
    assert str(missed.value) == (
        f"video 'b' is not stored in dataset 'demo', feature set {four} (it is in feature set {eight}); {listing}"
    )
    with FeatureWriter(two, "demo", min_free=0) as writer:
        writer.add_set(FOUR)
        put_video(writer, FOUR, "bad", A)
    with pytest.raises(FeatureNotFound, match=rf"\(no frames\) \(it is in feature set {four}\);"):
        dataset.sets[eight]["bad"]
    with pytest.raises(FeatureNotFound) as missed:
        dataset.lookup("c", nframe=8)
    assert str(missed.value) == (
        f"video 'c' is not stored in dataset 'demo', feature set {eight}; {listing} --spec {eight}"
    )


def test_what_is_no_name_is_a_type_error_in_words(two):
    dataset = FeatureStore(two)["demo"]
    for use in (dataset.__getitem__, dataset.get, dataset.entry, dataset.read_ahead):
        with pytest.raises(TypeError, match="a video id is text, not 3"):
            use(3)
    with pytest.raises(TypeError, match="a video id is text, not 3"):
        featstore.get(two, "demo", 3)
    with pytest.raises(TypeError, match="a dataset is named by text, not 3"):
        featstore.get(two, 3, "a")
    with pytest.raises(TypeError, match="spec is 3; pass a FeatureSpec"):
        featstore.get(two, "demo", "a", spec=3)
    assert (3 in dataset, 3 in dataset.sets, 3 in FeatureStore(two)) == (False, False, False)


def test_digits_of_a_set_may_be_capitals(two):
    dataset = FeatureStore(two)["demo"]
    assert dataset.select(spec=EIGHT.digest.upper()).spec == EIGHT
    assert dataset.sets[EIGHT.digest[:8].upper()].feature_set.spec == EIGHT


def test_a_feature_set_that_could_not_be_read_is_not_put_and_the_others_stay(cache):
    store_videos(cache, "demo", {"a": toy_features(1)})
    for options, error in (
        ({"names": {"tower": None}}, StoreDamaged),
        ({"origin": "x" * (2 << 20)}, ValueError),
    ):
        with pytest.raises(error), FeatureWriter(cache, "demo", min_free=0) as writer:
            writer.add_set(toy_spec(8), **options)
    assert len(FeatureStore(cache)["demo"].sets) == 1
    assert FeatureStore(cache)["demo"].lookup("a", nframe=4).shape == (16, 8)


def test_a_set_of_a_dataset_and_what_is_unpickled_verify_as_the_store_does(two):
    dataset = FeatureStore(two, verify="always")["demo"]
    store = pickle.loads(pickle.dumps(FeatureStore(two, verify="always")))
    unpickled = pickle.loads(pickle.dumps(dataset.sets[EIGHT.digest]))
    assert unpickled.feature_set.spec == EIGHT
    for each in (dataset.sets[EIGHT.digest], unpickled, store["demo"].sets[EIGHT.digest]):
        each["b"]
    stored = read_raw(two, "records", video_key(EIGHT.digest, "b"))
    flip_in_file(two, stored[-64:])
    for each in (dataset.sets[EIGHT.digest], unpickled, store["demo"].sets[EIGHT.digest]):
        with pytest.raises(RecordError, match="payload"):
            each["b"]
    assert FeatureStore(two, verify="never")["demo"].sets[EIGHT.digest]["b"].shape == C.shape
    flip_in_file(two, bytes([stored[-64] ^ 0x10]) + stored[-63:])


def test_a_row_that_cannot_be_read_is_in_nobody_elses_way(two):
    """It may be in the way of who asks for what it could be: then nothing is guessed."""
    dataset = FeatureStore(two)["demo"]
    put_raw(two, "specs", EIGHT.digest.encode(), b"nonsense")
    for found in (
        dataset["a"],
        dataset.lookup("a", nframe=4),
        dataset.lookup("a", spec=FOUR),
        dataset.lookup("a", spec=FOUR.digest[:6]),
        dataset.sets[FOUR.digest]["a"],
    ):
        assert found.header.spec == FOUR.digest
    assert dataset.feature_set.spec == FOUR
    for look in (
        lambda: dataset.lookup("a", nframe=8),
        lambda: dataset.lookup("a", nframe=16),
        lambda: dataset.lookup("a", spec=EIGHT),
        lambda: dataset.sets[EIGHT.digest[:8]],
        lambda: list(dataset.sets),
    ):
        with pytest.raises(StoreDamaged, match=f"{EIGHT.digest[:8]} of .* check --repair"):
            look()
    with pytest.raises(StoreDamaged, match=f"{EIGHT.digest[:8]} of .* check --repair"):
        set_default(two, "demo", EIGHT.digest[:8])
    assert set_default(two, "demo", FOUR.digest[:8]).spec == FOUR
    put_raw(two, "specs", FOUR.digest.encode(), b"nonsense")
    with pytest.raises(StoreDamaged):
        dataset.lookup("a", nframe=4)
    repair_dataset(two, "demo")
