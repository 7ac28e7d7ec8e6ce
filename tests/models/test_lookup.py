"""Which stored features serve a model, and what is said where none do."""

from __future__ import annotations

import numpy as np
import pytest
from damage import put_raw, read_raw
from toys import expected, store_videos, toy_features, toy_spec

from featstore.errors import FeatureNotFound, StoreMismatch
from featstore.models.lookup import FeatureRequest, Lookup, find_features
from featstore.store.catalog import video_key
from featstore.store.dataset import Dataset
from featstore.store.maintenance.remove import remove_set, remove_videos
from featstore.store.writer import FeatureWriter

A, B = toy_features(1), toy_features(2)
SPEC, PLAIN = toy_spec(), toy_spec(quantization="fp32")


@pytest.fixture
def damaged(tmp_path):
    """A cache whose demo has the videos a and b, a's row in the catalog with one bit flipped."""
    cache = tmp_path / "damaged"
    store_videos(cache, "demo", {"a": A, "b": B})
    key = video_key(SPEC, "demo", "a")
    row = bytearray(read_raw(cache, "catalog", key))
    row[-1] ^= 1
    put_raw(cache, "catalog", key, bytes(row))
    return cache


def test_a_whole_record_serves_though_its_row_in_the_catalog_is_damaged(damaged):
    dataset = Dataset(damaged, "demo")
    with pytest.raises(StoreMismatch, match="cannot be read"):
        dataset.entry("a", SPEC)
    found = find_features(dataset, "a", SPEC)
    assert found is not None
    np.testing.assert_array_equal(found.data, expected(A, SPEC))
    assert find_features(dataset, "c", SPEC) is None


def test_a_video_without_a_row_is_none_though_its_record_is_there(damaged):
    put_raw(damaged, "catalog", video_key(SPEC, "demo", "a"), None)
    assert find_features(Dataset(damaged, "demo"), "a", SPEC) is None


@pytest.mark.parametrize("remove", ["set", "video"])
def test_what_is_removed_during_a_look_up_is_found_as_it_was_or_not_at_all(
    cache, monkeypatch, remove
):
    """Each look-up goes by one commit: nothing is found by one and missed by the next."""
    store_videos(cache, "demo", {"a": A, "b": B})
    dataset = Dataset(cache, "demo")
    real = Dataset.snapshot

    def then_remove(self):
        snapshot = real(self)
        monkeypatch.undo()
        if remove == "set":
            remove_set(cache, "demo", SPEC)
        else:
            remove_videos(cache, "demo", ["a"])
        return snapshot

    monkeypatch.setattr(Dataset, "snapshot", then_remove)
    found = find_features(dataset, "a", SPEC)
    assert found is not None
    np.testing.assert_array_equal(found.data, expected(A, SPEC))
    assert find_features(dataset, "a", SPEC) is None


def test_of_several_sets_the_one_stored_as_asked_for_is_taken(cache):
    for spec in (SPEC, PLAIN):
        store_videos(cache, "demo", {"a": A}, spec=spec)
    dataset = Dataset(cache, "demo")
    for spec in (SPEC, PLAIN):
        found = find_features(dataset, "a", spec)
        assert found is not None
        assert found.header.spec == spec.digest
    with pytest.raises(StoreMismatch, match="2 feature sets have video 'a'"):
        find_features(dataset, "a", toy_spec(quantization="bf16"))


def test_a_refusal_names_what_is_missing_in_a_line(cache):
    with FeatureWriter(cache, "demo", min_free=0):
        pass
    lookup, wanted = Lookup(cache), FeatureRequest("demo", "a", None, SPEC)
    assert lookup.find(wanted) is None
    with pytest.raises(StoreMismatch, match="it has 0: none") as refused:
        lookup.refuse(wanted, "toy")
    assert SPEC.describe() in str(refused.value)
    assert "FeatureSpec(" not in str(refused.value)
    store_videos(cache, "demo", {"b": B})
    with pytest.raises(FeatureNotFound, match="'a' is not stored"):
        lookup.refuse(wanted, "toy")


def test_what_does_not_fit_is_told_where_no_set_does(cache):
    """A model that encodes what is missing would make a second set without a word."""
    lookup = Lookup(cache)
    longer, same = (FeatureRequest("demo", "a", None, spec) for spec in (toy_spec(8), SPEC))
    assert lookup.mismatch(longer, "toy") == ""
    store_videos(cache, "demo", {"b": B}, spec=SPEC)
    assert lookup.mismatch(same, "toy") == ""
    assert "nframe" in lookup.mismatch(longer, "toy")
