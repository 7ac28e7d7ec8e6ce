"""When a payload's checksum is verified: damaged bytes are refused at each lookup, not only at the first."""

from __future__ import annotations

import pytest
from damage import flip_in_file
from toys import pack_video, store_videos, toy_features

from featstore.errors import RecordError
from featstore.records.record import Record
from featstore.store.dataset import Dataset
from featstore.store.maintenance.remove import remove_videos
from featstore.store.reader import FeatureStore
from featstore.store.writer import FeatureWriter


@pytest.fixture
def damaged(tmp_path):
    """A store whose only video has a bit of its payload flipped."""
    cache = tmp_path / "damaged"
    store_videos(cache, "demo", {"a": toy_features(1)})
    payload = FeatureStore(cache)["demo"]["a"].data.tobytes()
    flip_in_file(cache, payload)
    return cache


@pytest.mark.parametrize("verify", ["first", "always"])
def test_damaged_features_are_refused_at_every_lookup(damaged, verify):
    dataset = FeatureStore(damaged, verify=verify)["demo"]
    for _ in range(3):
        with pytest.raises(RecordError, match="is damaged"):
            dataset["a"]
        with pytest.raises(RecordError, match="'a' is damaged"):
            dataset.get_many(["a"])


def test_they_are_served_only_to_who_verifies_nothing(damaged):
    dataset = FeatureStore(damaged, verify="never")["demo"]
    assert dataset["a"].shape == (16, 8)


def test_features_that_were_verified_are_not_verified_again(cache, monkeypatch):
    store_videos(cache, "demo", {"a": toy_features(1)})
    verified = []
    real = Record.verify
    monkeypatch.setattr(Record, "verify", lambda *args: (verified.append(1), real(*args)))
    for verify, expected in (("never", 0), ("first", 1), ("always", 4)):
        verified.clear()
        dataset = FeatureStore(cache, verify=verify)["demo"]
        for _ in range(3):
            dataset["a"]
        assert dataset.get_many(["a"]).shape == (1, 16, 8)
        assert len(verified) == expected
    first = FeatureStore(cache)["demo"]
    held = first["a"]
    store_videos(cache, "demo", {"b": toy_features(2)})
    verified.clear()
    assert first["a"].header == held.header
    assert verified == []


def test_a_record_that_was_put_again_is_verified_again_though_its_header_says_the_same(cache):
    spec = store_videos(cache, "demo", {"a": toy_features(1)})
    dataset = FeatureStore(cache)["demo"]
    assert dataset["a"].shape == (16, 8)
    header, record = pack_video(spec, "demo", "a", toy_features(1))
    record[-1] ^= 1
    with FeatureWriter(cache, "demo", min_free=0) as writer:
        writer.add_set(spec)
        writer.put(header, record)
    with pytest.raises(RecordError, match="is damaged"):
        dataset["a"]
    remove_videos(cache, "demo", ["a"])


def test_scales_that_were_read_before_are_verified_at_each_lookup_if_asked(tmp_path):
    """They lie before the payload, under a checksum of their own."""
    cache = tmp_path / "damaged"
    store_videos(cache, "demo", {"a": toy_features(1)})
    dataset = FeatureStore(cache, verify="always")["demo"]
    tokens, _ = dataset["a"].scales
    flip_in_file(cache, tokens.tobytes(), at=3)
    with pytest.raises(RecordError, match="is damaged"):
        dataset["a"]


@pytest.mark.parametrize(
    "wrong", [{"verify": "frist"}, {"digest": "abcd1234"}, {"digest": "x" * 32}]
)
def test_a_dataset_is_not_opened_with_options_that_mean_nothing(cache, wrong):
    store_videos(cache, "demo", {"a": toy_features(1)})
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is "):
        Dataset(cache, "demo", **wrong)
