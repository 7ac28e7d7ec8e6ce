"""Which stored features serve a model, and what is said where none do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from damage import put_raw, read_raw
from toys import expected, store_videos, toy_features, toy_spec

from featstore.decoding.video_file import identity_of
from featstore.errors import DatasetNotFound, FeatureNotFound, StoreDamaged, StoreMismatch
from featstore.geometry import Geometry
from featstore.models.lookup import FeatureRequest, Lookup, find_features, serves, serving_set
from featstore.sampling import Sampling
from featstore.spec import FeatureSpec
from featstore.store.dataset import Dataset
from featstore.store.maintenance.remove import remove_set, remove_videos
from featstore.store.manifest import MANIFEST_KEY
from featstore.store.rows import set_key, video_key
from featstore.store.writer import FeatureWriter

A, B = toy_features(1), toy_features(2)
SPEC = toy_spec()


def computed_in(dtype):
    return replace(SPEC, encoder=replace(SPEC.encoder, dtype=dtype))


@pytest.fixture
def damaged(tmp_path):
    """A cache whose demo has the videos a and b, a's row in the catalog with one bit flipped."""
    cache = tmp_path / "damaged"
    store_videos(cache, "demo", {"a": A, "b": B})
    key = video_key(SPEC.digest, "a")
    row = bytearray(read_raw(cache, "catalog", key))
    row[-1] ^= 1
    put_raw(cache, "catalog", key, bytes(row))
    return cache


def test_a_whole_record_serves_though_its_row_in_the_catalog_is_damaged(damaged):
    dataset = Dataset(damaged, "demo")
    with pytest.raises(StoreDamaged, match="cannot be read"):
        dataset.entry("a")
    found = find_features(dataset, "a", SPEC)
    assert found is not None
    np.testing.assert_array_equal(found.data, expected(A))
    assert find_features(dataset, "c", SPEC) is None


def test_a_video_without_a_row_is_none_though_its_record_is_there(damaged):
    put_raw(damaged, "catalog", video_key(SPEC.digest, "a"), None)
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
    np.testing.assert_array_equal(found.data, expected(A))
    assert find_features(dataset, "a", SPEC) is None


def test_of_several_dtypes_the_one_asked_for_is_taken(cache):
    for dtype in ("fp16", "bf16"):
        store_videos(cache, "demo", {"a": A}, spec=computed_in(dtype))
    store_videos(cache, "demo", {"b": B}, spec=computed_in("bf16"))
    dataset = Dataset(cache, "demo")
    for dtype in ("fp16", "bf16"):
        found = find_features(dataset, "a", computed_in(dtype))
        assert found is not None
        assert found.header.spec == computed_in(dtype).digest
    with pytest.raises(
        StoreMismatch, match=r"2 feature sets have video 'a'.*choose with"
    ) as raised:
        find_features(dataset, "a", SPEC)
    listed = [f"\n  {computed_in(dtype).describe()}" for dtype in ("fp16", "bf16")]
    assert str(raised.value).endswith("choose with dtype=:" + "".join(listed))
    found = find_features(dataset, "b", SPEC)
    assert found is not None
    assert found.header.dtype == "bf16"


@pytest.mark.parametrize(
    "other",
    [
        replace(SPEC, decoder="another"),
        replace(SPEC, sampling=Sampling(4, "midpoint")),
        replace(SPEC, preprocessing=replace(SPEC.preprocessing, resample=2)),
        replace(SPEC, encoder=replace(SPEC.encoder, weights="0" * 64)),
        replace(SPEC, encoder=replace(SPEC.encoder, settings={"select_layer": -1})),
        replace(SPEC, encoder=replace(SPEC.encoder, geometry=Geometry(4, 8))),
    ],
    ids=["decoder", "sampling", "preprocessing", "weights", "settings", "geometry"],
)
def test_features_that_differ_in_more_than_the_dtype_do_not_serve(other):
    assert serves(SPEC, SPEC)
    assert serves(computed_in("bf16"), SPEC)
    assert not serves(other, SPEC)
    assert not serves(replace(other, encoder=replace(other.encoder, dtype="bf16")), SPEC)


def test_settings_of_another_type_are_other_settings():
    yes, one = (
        replace(SPEC, encoder=replace(SPEC.encoder, settings={"pooled": value}))
        for value in (True, 1)
    )
    assert yes.digest != one.digest
    assert not serves(yes, one)


def test_a_refusal_names_what_is_missing_in_a_line(cache):
    with FeatureWriter(cache, "demo", min_free=0):
        pass
    lookup, wanted = Lookup(cache), FeatureRequest("demo", "a", None, SPEC)
    assert lookup.find(wanted) is None
    with pytest.raises(StoreMismatch, match="has no feature set, asked for") as refused:
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
    store_videos(cache, "demo", {"b": B}, spec=SPEC)
    assert lookup.explain(same, "toy", "they are made") == ""
    told = lookup.explain(longer, "toy", "they are made")
    assert "nframe" in told
    assert told.endswith("\nthey are made")
    assert "beside it" in lookup.explain(longer, "toy", "")


def test_features_of_another_encoder_are_named_and_not_compared_field_by_field(cache):
    store_videos(cache, "demo", {"b": B}, spec=SPEC)
    other = replace(SPEC, encoder=replace(SPEC.encoder, family="qwen_vl"))
    told = Lookup(cache).explain(FeatureRequest("demo", "a", None, other), "toy", "they are made")
    assert told.endswith("holds no features of qwen_vl, only of toy\nthey are made")


def test_what_makes_the_features_is_named_by_the_options_of_the_models_checkpoint(cache):
    """Where no set serves, whoever asks."""
    longva = replace(SPEC, encoder=replace(SPEC.encoder, family="longva", weights="9" * 64))
    store_videos(cache, "demo", {"b": B}, spec=SPEC)
    lookup, wanted = Lookup(cache), FeatureRequest("demo", "a", None, longva)
    command = f"--dataset demo --cache-dir {cache} --model-path mine --nframe 4"
    assert command in lookup.explain(wanted, "--model-path mine", "")
    with pytest.raises(StoreMismatch, match=command):
        lookup.refuse(wanted, "--model-path mine")


def test_of_several_sets_that_serve_the_one_asked_for_is_named_where_the_video_is_missing(cache):
    for spec in (computed_in("fp16"), SPEC, computed_in("bf16")):
        store_videos(cache, "demo", {"b": B}, spec=spec)
    for spec in (computed_in("fp16"), SPEC, computed_in("bf16")):
        with pytest.raises(FeatureNotFound, match=f"'demo', feature set {spec.digest[:8]};"):
            Lookup(cache).refuse(FeatureRequest("demo", "a", None, spec), "toy")


def test_a_set_of_other_frames_is_told_with_the_option_that_reads_it(cache):
    exact, auto = (replace(SPEC, decoder=identity_of(name)) for name in ("exact", "auto"))
    store_videos(cache, "demo", {"b": B}, spec=auto)
    lookup, wanted = Lookup(cache), FeatureRequest("demo", "a", None, exact)
    option = "decoder='auto', --decoder auto"
    for ask in (lookup.refuse, lambda request, origin: lookup.explain(request, origin, "")):
        try:
            told = str(ask(wanted, "toy"))
        except StoreMismatch as exc:
            told = str(exc)
        assert told.startswith("dataset 'demo' in ")
        assert told.endswith(f"\nor read what is stored, of other frames: {option}")
    told = lookup.explain(wanted, "toy", "they are made")
    assert told.startswith("dataset 'demo' in ")
    assert told.endswith(
        f"\nthey are made (what is stored, of other frames, is read with {option})"
    )


def test_a_dataset_that_is_not_there_is_told_with_those_that_are(cache):
    absent = f"there is no dataset 'dmeo' in {cache}; "
    lookup, wanted = Lookup(cache), FeatureRequest("dmeo", "a", None, SPEC)
    assert lookup.explain(wanted, "toy", "they are made") == (
        f"{absent}the datasets there are: none\nthey are made"
    )
    store_videos(cache, "demo", {"b": B})
    assert lookup.find(wanted) is None
    there = "did you mean 'demo'? the datasets there are: demo"
    assert lookup.explain(wanted, "toy", "") == f"{absent}{there}"
    with pytest.raises(DatasetNotFound, match=r"are: demo; make it .*on_miss=encode$"):
        lookup.refuse(wanted, "toy")


def test_a_dataset_that_was_there_is_lost_and_not_merely_missing(cache):
    store_videos(cache, "demo", {"b": B})
    (cache / "demo" / "data.mdb").unlink()
    lookup, wanted = Lookup(cache), FeatureRequest("demo", "b", None, SPEC)
    for look in (lookup.find, lambda request: lookup.refuse(request, "toy")):
        with pytest.raises(
            DatasetNotFound, match=r"demo/data\.mdb is gone; restore it from a copy"
        ):
            look(wanted)


@pytest.mark.parametrize("table", ["specs", "manifest"])
def test_a_damaged_row_hides_what_needs_it_alone(tmp_path, table):
    cache, other = tmp_path / "damaged", toy_spec(8)
    store_videos(cache, "demo", {"a": A}, spec=SPEC)
    store_videos(cache, "demo", {"b": B}, spec=other)
    key = set_key(other.digest) if table == "specs" else MANIFEST_KEY
    put_raw(cache, table, key, read_raw(cache, table, key)[:-1])
    lookup = Lookup(cache)
    if table == "specs":
        assert lookup.find(FeatureRequest("demo", "a", None, SPEC)) is not None
    with pytest.raises(StoreDamaged, match="featstore check"):
        lookup.find(FeatureRequest("demo", "b", None, other))


def test_a_video_as_another_decoder_reads_it_is_told_of_beside_sets_that_serve(cache):
    """Two such videos in one sentence."""
    exact = replace(SPEC, decoder=identity_of("exact"))
    auto = replace(SPEC, decoder=identity_of("auto"))
    store_videos(cache, "demo", {"a": A}, spec=auto)
    store_videos(cache, "demo", {"b": B, "c": B}, spec=exact)
    lookup = Lookup(cache)
    told = {lookup.explain(FeatureRequest("demo", v, None, auto), "toy", "x") for v in "abcd"}
    assert told == {
        "",
        f"some videos that are missing are stored as another decoder reads them, in set {exact.digest[:8]} of dataset "
        "'demo', which is read with decoder='exact', --decoder exact\nx",
    }
    told = lookup.explain(FeatureRequest("demo", "b", None, auto), "toy", "")
    assert told.endswith("is read with decoder='exact', --decoder exact")


def imported(signature="s", **geometry):
    sizes = {"tokens_per_unit": 4, "hidden_dim": 8} | geometry
    return FeatureSpec.of_imported(Geometry(**sizes), 4, {"model_signature": signature})


def test_imported_features_serve_only_who_accepts_them(cache):
    other = replace(SPEC, encoder=replace(SPEC.encoder, weights="0" * 64))
    store_videos(cache, "demo", {"a": B, "b": B}, spec=imported())
    store_videos(cache, "demo", {"a": A}, spec=other)
    dataset = Dataset(cache, "demo")
    assert find_features(dataset, "a", SPEC) is None
    found = find_features(dataset, "a", SPEC, accept_imported=True)
    assert found.header.spec == imported().digest
    assert Lookup(cache, accept_imported=True).find(FeatureRequest("demo", "b", None, SPEC))
    assert not Lookup(cache).find(FeatureRequest("demo", "b", None, SPEC))
    with pytest.raises(
        StoreMismatch, match=r"was imported and has their shape.*\n?.*accept_imported=True"
    ):
        Lookup(cache).refuse(FeatureRequest("demo", "a", None, SPEC), "toy")
    store_videos(cache, "demo", {"a": A}, spec=SPEC)
    assert find_features(dataset, "a", SPEC, accept_imported=True).header.spec == SPEC.digest


def test_of_imported_features_none_are_guessed(cache):
    store_videos(cache, "demo", {"a": A}, spec=imported("one"))
    store_videos(cache, "demo", {"a": B}, spec=imported("two"))
    dataset = Dataset(cache, "demo")
    with pytest.raises(StoreMismatch, match=r"2 imported feature sets.*remove all but one"):
        find_features(dataset, "a", SPEC, accept_imported=True)
    assert find_features(dataset, "a", toy_spec(8), accept_imported=True) is None
    wide = replace(SPEC, encoder=replace(SPEC.encoder, geometry=Geometry(4, 16)))
    assert find_features(dataset, "a", wide, accept_imported=True) is None


def test_a_model_is_not_fed_from_two_imported_sets_in_turn(cache):
    store_videos(cache, "demo", {"a": A}, spec=imported("one"))
    store_videos(cache, "demo", {"b": B}, spec=imported("two"))
    for video in ("a", "b"):
        with pytest.raises(StoreMismatch, match=r"2 imported feature sets.*remove all but one"):
            find_features(Dataset(cache, "demo"), video, SPEC, accept_imported=True)
    assert find_features(Dataset(cache, "demo"), "c", SPEC, accept_imported=True) is None
    remove_set(cache, "demo", imported("two"))
    assert find_features(Dataset(cache, "demo"), "a", SPEC, accept_imported=True)


def test_the_set_that_serves_is_the_models_own_or_one_of_another_dtype(cache):
    other, own = computed_in("fp16"), computed_in("bf16")
    store_videos(cache, "demo", {"a": A}, spec=other)
    dataset = Dataset(cache, "demo")
    assert serving_set(dataset, own).feature_set.spec == other
    store_videos(cache, "demo", {"a": A, "b": B}, spec=own)
    assert sorted(serving_set(dataset, own)) == ["a", "b"]
    with pytest.raises(StoreMismatch, match=r"nframe|sampling"):
        serving_set(dataset, toy_spec(8))
