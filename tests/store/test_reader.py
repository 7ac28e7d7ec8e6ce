import ctypes
import dataclasses
import os
import pickle
import shlex
import sys
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from damage import put_raw
from toys import expected, put_video, run_python, store_videos, toy_features, toy_spec

import featstore
from featstore.errors import (
    DatasetNotFound,
    FeatureNotFound,
    MissingExtra,
    StoreDamaged,
    StoreError,
    StoreMismatch,
    StoreNotFound,
)
from featstore.records import features
from featstore.records.quantization import dequantize, quantize
from featstore.records.record import parse
from featstore.records.storage import GRANULARITIES, Storage
from featstore.sampling import Sampling
from featstore.store import catalog
from featstore.store.default_set import set_default
from featstore.store.describe import describe_dataset
from featstore.store.engine import snapshot
from featstore.store.maintenance.check import check_dataset
from featstore.store.maintenance.compact import compact_dataset
from featstore.store.maintenance.merge import merge_dataset
from featstore.store.maintenance.remove import remove_dataset, remove_videos
from featstore.store.maintenance.repair import repair_dataset
from featstore.store.maintenance.seal import seal_dataset, unseal_dataset
from featstore.store.reader import FeatureStore, get
from featstore.store.rows import Failure, pack_row, video_key
from featstore.store.writer import FeatureWriter

A, B = toy_features(1), toy_features(2)


@pytest.mark.parametrize(
    "storage",
    [
        *(Storage("int8", granularity) for granularity in GRANULARITIES),
        *(Storage(values) for values in ("bf16", "fp16", "fp32")),
        *(Storage("int8", codec=codec) for codec in ("lz4", "zstd")),
        *(Storage("bf16", codec=codec) for codec in ("lz4", "zstd")),
    ],
    ids=str,
)
def test_what_was_stored_is_what_is_read(cache, storage):
    zeros = np.zeros_like(A)  # shrinks under lz4; noise does not
    store_videos(cache, "demo", {"a": A, "zeros": zeros}, storage=storage)
    for video, x in (("a", A), ("zeros", zeros)):
        features = get(cache, "demo", video)
        stored, scales = quantize(x, storage)
        assert features.shape == (16, 8)
        assert features.data.dtype == stored.dtype
        assert np.array_equal(features.data, stored)
        assert all(map(np.array_equal, features.scales, scales))
        assert len(features.scales) == len(scales)
        assert np.array_equal(features.dequantize(), dequantize(stored, scales, storage.values))
    assert get(cache, "demo", "zeros").header.storage == storage


def test_a_store_is_a_mapping_of_mappings(cache):
    store_videos(cache, "one", {"a": A, "b": B})
    store_videos(cache, "two", {})
    with featstore.open(cache) as store:
        assert sorted(store) == ["one", "two"]
        assert len(store) == 2
        assert "one" in store
        assert "three" not in store
        assert 1 not in store
        assert set(store["one"]) == {"a", "b"}
        assert len(store["one"]) == 2
        assert "a" in store["one"]
        assert "c" not in store["one"]
        assert 1 not in store["one"]
        assert store["one"].get("c") is None
        assert np.array_equal(store["one"]["b"].data, expected(B))
        assert list(store["two"]) == []
        assert store.specs == {"one": [toy_spec()], "two": [toy_spec()]}
        assert store.get("three") is None
        assert store.get("three", store["one"]) is store["one"]
        assert store.get("two") is store["two"]


def test_other_files_and_folders_are_no_datasets(cache):
    store_videos(cache, "demo", {"a": A})
    (cache / "empty").mkdir()
    (cache / "cache_meta.json").write_text("{}")
    (cache / ".removed-demo").mkdir()
    (cache / ".removed-demo" / "data.mdb").touch()
    (cache / "file").touch()
    assert list(FeatureStore(cache)) == ["demo"]


def test_a_look_up_changes_nothing(cache):
    store_videos(cache, "demo", {"a": A})

    def times() -> dict[Path, int]:  # LMDB's readers sign in lock.mdb
        files = [path for path in cache.rglob("*") if path.name != "lock.mdb"]
        return {path: path.stat().st_mtime_ns for path in files}

    before = times()
    FeatureStore(cache)["demo"]["a"].dequantize()
    assert times() == before
    with pytest.raises(StoreNotFound):
        FeatureStore(cache)["new"]
    assert not (cache / "new").exists()


def test_a_store_that_is_not_there_is_said_so_and_not_made(tmp_path):
    with pytest.raises(StoreNotFound, match=r"there is no store in .*/nowhere: No such file"):
        FeatureStore(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError):
        get(tmp_path / "nowhere", "demo", "a")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(StoreNotFound, match="Not a directory"):
        FeatureStore(tmp_path / "file")


@pytest.mark.parametrize("place", ["x" * 300, "null\0byte"])
def test_a_path_that_cannot_be_is_a_store_error(tmp_path, place):
    with pytest.raises(StoreError, match="cannot be looked into"):
        FeatureStore(tmp_path / place)


def test_a_dataset_that_is_not_there_lists_those_that_are(cache):
    store_videos(cache, "demo", {})
    with pytest.raises(
        StoreNotFound, match=r"no dataset 'other' in .*; the datasets there are: demo;"
    ):
        FeatureStore(cache)["other"]
    with pytest.raises(KeyError) as caught:
        get(cache, "other", "a")
    assert isinstance(caught.value, DatasetNotFound)
    assert str(caught.value).startswith("there is no dataset 'other' in ")


def test_all_that_work_on_a_dataset_say_in_the_same_words_that_there_is_none(cache, tmp_path):
    store_videos(cache, "demo", {})
    uses = [
        lambda: FeatureStore(cache)["other"],
        lambda: describe_dataset(cache, "other"),
        lambda: check_dataset(cache, "other"),
        lambda: repair_dataset(cache, "other"),
        lambda: compact_dataset(cache, "other"),
        lambda: merge_dataset(cache, tmp_path / "to", "other"),
        lambda: remove_dataset(cache, "other"),
        lambda: remove_videos(cache, "other", ["a"]),
        lambda: seal_dataset(cache, "other"),
        lambda: unseal_dataset(cache, "other"),
        lambda: set_default(cache, "other", "abcd"),
    ]
    said = set()
    for use in uses:
        with pytest.raises(DatasetNotFound) as caught:
            use()
        said.add(str(caught.value))
    assert said == {
        f"there is no dataset 'other' in {cache}; the datasets there are: demo; make it with featstore ingest"
    }
    assert [path.name for path in cache.iterdir()] == ["demo"]
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            ".",
            "..",
            "../demo",
            "demo/",
            "demo/..",
            "/demo",
            "a/b",
            "a\\b",
            ".hidden",
            "-x",
            "_x",
        ),
        *("demo\n", "a b", "a\0b", "é", "a" * 129, "~", "$HOME", "*"),
    ],
)
def test_a_name_that_could_leave_the_cache_is_refused(cache, name):
    store_videos(cache, "demo", {"a": A})
    for use in (FeatureStore(cache).__getitem__, lambda name: FeatureWriter(cache, name)):
        with pytest.raises(StoreMismatch, match="a dataset cannot be called"):
            use(name)
    assert sorted(path.name for path in cache.iterdir()) == ["demo"]


def test_a_video_that_is_not_stored_is_said_so(cache):
    store_videos(cache, "demo", {"a": A})
    with pytest.raises(
        FeatureNotFound, match="video 'b' is not stored in dataset 'demo'"
    ) as caught:
        get(cache, "demo", "b")
    assert isinstance(caught.value, KeyError)
    assert not str(caught.value).startswith('"')


def test_a_video_that_failed_is_not_found_with_its_reason(cache):
    spec = toy_spec()
    with FeatureWriter(cache, "demo", min_free=0) as writer:
        writer.add_set(spec, origin="toy")
        writer.fail(Failure("b", "/b.mp4", spec.digest, "it has no frames", 0.0))
    said = r"failed to be ingested .* \(it has no frames\); mend the cause, .* --retry-failed"
    with pytest.raises(FeatureNotFound, match=said):
        get(cache, "demo", "b")


@pytest.mark.parametrize("video", ["", "\ud800", "x" * 10_000, "a\0b", "../a", "\udcff.mp4"])
def test_no_id_is_too_strange_to_ask_for(cache, video):
    store_videos(cache, "demo", {"a": A})
    dataset = FeatureStore(cache)["demo"]
    assert video not in dataset
    with pytest.raises(FeatureNotFound):
        dataset[video]


@pytest.mark.parametrize("nframe", ["4", 4.0, True, 0])
def test_a_number_of_frames_that_is_none_is_refused(cache, nframe):
    store_videos(cache, "demo", {"a": A})
    with pytest.raises(ValueError, match=f"nframe is {nframe!r}; it must be an integer"):
        get(cache, "demo", "a", nframe=nframe)


def test_one_set_of_several_is_chosen_by_nframe_spec_or_digest(cache):
    four = store_videos(cache, "demo", {"a": A}, spec=toy_spec(4))
    eight = store_videos(cache, "demo", {"a": B}, spec=toy_spec(8))
    dataset = FeatureStore(cache)["demo"]
    for choice, x in (
        ({}, A),
        ({"nframe": 4}, A),
        ({"nframe": 8}, B),
        ({"spec": four}, A),
        ({"spec": eight}, B),
        ({"spec": eight.digest[:8]}, B),
        ({"nframe": 8, "spec": eight}, B),
    ):
        assert np.array_equal(dataset.lookup("a", **choice).data, expected(x)), choice
        assert dataset.select(**choice).origin == "toy"


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({"nframe": 7}, "nframe=7"),
        ({"spec": "0" * 32}, f"spec='{'0' * 32}'"),
        ({"spec": ""}, "the request"),
        ({"spec": toy_spec().digest[:3]}, f"spec={toy_spec().digest[:3]!r}"),
        ({"nframe": 7, "spec": "0000"}, "nframe=7, spec='0000'"),
    ],
)
def test_a_choice_that_fits_no_set_lists_those_there_are(cache, choice, said):
    spec = store_videos(cache, "demo", {"a": A})
    found = f"no feature set of dataset 'demo' fits {said}, it has 1:\n  {spec.digest[:8]}"
    with pytest.raises(StoreMismatch, match=found):
        FeatureStore(cache)["demo"].lookup("a", **choice)


def test_of_several_sets_the_default_one_is_meant_if_it_fits_and_none_otherwise(cache):
    four = store_videos(cache, "demo", {"a": A}, spec=toy_spec(4))
    other = dataclasses.replace(four, decoder="pyav")
    store_videos(cache, "demo", {"a": B}, spec=other)
    dataset = FeatureStore(cache)["demo"]
    assert dataset.lookup("a", nframe=4).header.spec == four.digest
    assert dataset.sets[other.digest].lookup("a", nframe=4).header.spec == other.digest
    store_videos(cache, "demo", {"a": B}, spec=toy_spec(8))
    assert dataset.sets[toy_spec(8).digest].lookup("a").header.spec == toy_spec(8).digest
    with pytest.raises(
        StoreMismatch, match=r"^2 feature sets of dataset 'demo' fit; name one with"
    ):
        dataset.sets[toy_spec(8).digest].lookup("a", nframe=4)


def test_digits_too_few_to_name_a_set_are_said_to_be(cache):
    spec = store_videos(cache, "demo", {"a": A})
    with pytest.raises(StoreMismatch, match=r"one of them by at least 4 first digits\Z"):
        FeatureStore(cache)["demo"].lookup("a", spec=spec.digest[:3])
    with pytest.raises(StoreMismatch, match=r"or ingest with other options\Z"):
        FeatureStore(cache)["demo"].lookup("a", spec="none of them")
    assert FeatureStore(cache)["demo"].lookup("a", spec=spec.digest[:4]).shape == A.shape


def test_a_dataset_without_a_set_says_so(cache):
    FeatureWriter(cache, "demo", min_free=0)
    dataset = FeatureStore(cache)["demo"]
    assert (len(dataset), list(dataset), "a" in dataset, len(dataset.sets)) == (0, [], False, 0)
    key = video_key(toy_spec().digest, "a")
    put_raw(cache, "failures", key, pack_row(Failure("a", "/a", toy_spec().digest, "bad", 1.0)))
    assert list(dataset.failures()) == []
    put_raw(cache, "failures", key, None)
    with pytest.raises(
        FeatureNotFound, match=r"'demo' in .* has no feature set, so no video 'a'; make"
    ):
        dataset["a"]
    for ask in (dataset.select, lambda: dataset.lookup("a", nframe=4)):
        with pytest.raises(
            StoreMismatch,
            match=r"^dataset 'demo' in .* has no feature set; make one with featstore ingest$",
        ):
            ask()


def test_features_of_another_encoder_are_refused_with_what_differs_and_the_command(cache):
    longva = dataclasses.replace(toy_spec().encoder, family="longva")
    spec = store_videos(
        cache, "demo", {"a": A}, spec=dataclasses.replace(toy_spec(), encoder=longva)
    )
    other = dataclasses.replace(spec, encoder=dataclasses.replace(longva, weights="9" * 64))
    with pytest.raises(StoreMismatch) as caught:
        FeatureStore(cache)["demo"].lookup("a", spec=other)
    message = str(caught.value)
    assert f"encoder.weights: stored {spec.encoder.weights[:40]}, asked for {'9' * 40}" in message
    command = (
        f"featstore ingest --videos VIDEOS --dataset demo --cache-dir {shlex.quote(str(cache))}"
    )
    assert f"make them beside it: {command} --model-path CHECKPOINT --nframe 4" in message


def test_features_of_an_own_encoder_are_made_in_python_as_no_command_knows_it(cache):
    spec = store_videos(cache, "demo", {"a": A})
    wanted = dataclasses.replace(spec, sampling=Sampling(8), decoder="pyav-presentation")
    with pytest.raises(StoreMismatch) as caught:
        get(cache, "demo", "a", spec=wanted)
    call = str(caught.value).splitlines()[-1].removeprefix("make them beside it, in Python: ")
    names = {"VIDEOS": "v", "ENCODER": "e", "featstore": mock.Mock(Sampling=Sampling)}
    eval(call, names)
    (videos, *place), options = names["featstore"].ingest.call_args
    assert (videos, *place) == ("v", str(cache), "demo")
    assert (options["encoder"], options["sampling"]) == ("e", Sampling(8))
    names["featstore"].IngestOptions.assert_called_once_with(decoder="exact")


def test_a_spec_and_a_number_of_frames_that_contradict_each_other_are_told(cache):
    spec = store_videos(cache, "demo", {"a": A})
    with pytest.raises(StoreMismatch, match=r"spec= is of 4 frames .* nframe=8; leave nframe out"):
        get(cache, "demo", "a", spec=spec, nframe=8)


def test_what_is_printed_to_be_run_can_be_whatever_the_names_are(tmp_path):
    cache = tmp_path / "my cache's $HOME"
    store_videos(cache, "demo", {"a": A})
    with pytest.raises(FeatureNotFound) as caught:
        get(cache, "demo", "b")
    words = shlex.split(caught.value.remedy.removeprefix("list what is: "))
    assert words == ["featstore", "ls", "--cache-dir", str(cache), "--dataset", "demo"]


def test_what_differs_late_in_a_long_value_is_shown(cache):
    numbers = (
        "act=quick_gelu eps=1e-05 heads=16 hidden={} image=336 intermediate=4096 layers=23 patch=14"
    )
    spec, other = (
        dataclasses.replace(
            toy_spec(),
            encoder=dataclasses.replace(
                toy_spec().encoder, settings={"architecture": numbers.format(hidden)}
            ),
        )
        for hidden in (1024, 1280)
    )
    store_videos(cache, "demo", {"a": A}, spec=spec)
    with pytest.raises(StoreMismatch) as caught:
        FeatureStore(cache)["demo"].lookup("a", spec=other)
    stored, asked = (f"...05 heads=16 hidden={n} image=336 interm" for n in (1024, 1280))
    assert f"encoder.settings.architecture: stored {stored}, asked for {asked}\n" in str(
        caught.value
    )


def test_names_of_an_encoders_parts_are_kept_as_they_were_first_and_make_no_other_set(cache):
    with FeatureWriter(cache, "demo", min_free=0) as writer:
        for video, name in (("a", "openai/clip"), ("b", "/models/other-name")):
            writer.add_set(toy_spec(), origin="toy", names={"vision_tower": name})
            put_video(writer, toy_spec(), video, A)
    dataset = FeatureStore(cache)["demo"]
    assert set(dataset) == {"a", "b"}
    assert [row.names for row in dataset.sets.rows()] == [{"vision_tower": "openai/clip"}]


def test_a_folder_under_another_name_is_refused(cache):
    store_videos(cache, "demo", {"a": A})
    os.rename(cache / "demo", cache / "renamed")
    for use in (FeatureStore(cache).__getitem__, lambda name: FeatureWriter(cache, name)):
        with pytest.raises(StoreMismatch, match=r"holds the dataset 'demo'; .* rename it back"):
            use("renamed")
    os.rename(cache / "renamed", cache / "demo")


def test_a_reader_opens_while_a_writer_has_something_put(cache):
    """The reader waited, with the interpreter lock held, until the writer committed."""
    spec = store_videos(cache, "demo", {"a": A})
    with FeatureWriter(cache, "demo", min_free=0) as writer:
        put_video(writer, spec, "b", B)
        done = run_python(
            "import sys, featstore; print(featstore.get(sys.argv[1], 'demo', 'a').shape)",
            cache,
            timeout=20,
        )
        assert done.stdout == "(16, 8)\n", done.stderr


@pytest.mark.slow
def test_a_store_of_this_process_sees_each_commit_of_another(cache):
    store_videos(cache, "demo", {"a": A})
    dataset = FeatureStore(cache)["demo"]
    assert "b" not in dataset
    program = (
        "import sys; from toys import *; store_videos(sys.argv[1], 'demo', {'b': toy_features(2)})"
    )
    assert run_python(program, cache).returncode == 0
    assert "b" in dataset
    assert np.array_equal(dataset["b"].data, expected(B))


def test_a_closed_store_opens_again_at_the_next_look_up(cache):
    store_videos(cache, "demo", {"a": A})
    store = FeatureStore(cache)
    before = store["demo"]["a"]
    store.close()
    assert np.array_equal(store["demo"]["a"].data, before.data)


def test_the_shared_reader_finds_a_store_by_any_path(cache):
    store_videos(cache, "demo", {"a": A})
    (cache.parent / "link").symlink_to(cache)
    for place in (cache, str(cache), cache / ".." / cache.name, cache.parent / "link"):
        assert get(place, "demo", "a").header.video_id == "a"


def test_verify_is_one_of_three_words(cache):
    store_videos(cache, "demo", {})
    with pytest.raises(ValueError, match="verify is 'sometimes'"):
        FeatureStore(cache, verify="sometimes")


READ_AS_NOBODY = """
import os, sys
from featstore.errors import StoreError
from featstore.store import reader, writer
from featstore.store.maintenance import remove
import lmdb, fcntl, xxhash, msgpack
if os.geteuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
for use in (
    lambda: reader.get(sys.argv[1], "demo", "a"),
    lambda: writer.FeatureWriter(sys.argv[1], "demo"),
    lambda: writer.FeatureWriter(sys.argv[1], "new"),
    lambda: remove.remove_dataset(sys.argv[1], "demo"),
    lambda: reader.FeatureStore(sys.argv[2]),
    lambda: reader.get(sys.argv[2], "demo", "a"),
):
    try:
        use()
    except StoreError as exc:
        print(type(exc).__name__, exc)
    else:
        print("went through")
"""


def test_what_may_not_be_written_or_seen_is_a_store_error():
    """LMDB's readers write into lock.mdb, so a folder that may only be read is refused in words."""
    with tempfile.TemporaryDirectory() as place:
        store_videos(f"{place}/seen", "demo", {"a": A})
        store_videos(f"{place}/unseen", "demo", {"a": A})
        for folder, mode in (("", 0o755), ("seen", 0o555), ("seen/demo", 0o555), ("unseen", 0)):
            os.chmod(f"{place}/{folder}", mode)
        for file in ("data.mdb", "lock.mdb"):
            os.chmod(f"{place}/seen/demo/{file}", 0o444)
        done = run_python(READ_AS_NOBODY, f"{place}/seen", f"{place}/unseen")
        for folder in ("seen/demo", "seen", "unseen"):
            os.chmod(f"{place}/{folder}", 0o755)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["StoreError"] * 6
    assert "write permission" in lines[0]


def test_what_was_looked_up_is_looked_up_anew_after_a_commit(cache):
    store_videos(cache, "demo", {"a": toy_features(1), "b": toy_features(2)})
    dataset = FeatureStore(cache)["demo"]
    before = [dataset["a"], dataset["a"]]
    assert np.shares_memory(before[0].data, before[1].data)
    store_videos(cache, "demo", {"a": toy_features(3)})
    for _ in range(2):
        assert np.array_equal(dataset["a"].data, expected(toy_features(3)))
        assert np.array_equal(dataset["b"].data, expected(toy_features(2)))
    assert np.array_equal(before[1].data, expected(toy_features(1)))


def test_what_was_looked_up_is_refused_once_the_file_lost_it(cache):
    store_videos(cache / "aside", "demo", {"a": A})
    dataset = FeatureStore(cache / "aside")["demo"]
    assert dataset["a"].shape == (16, 8)
    os.truncate(cache / "aside" / "demo" / "data.mdb", 8192)
    with pytest.raises(StoreDamaged):
        dataset["a"]


@pytest.mark.parametrize("known", [True, False])
def test_a_reader_whose_dataset_was_swapped_for_another_says_so(cache, known):
    """It said that the feature set or the video was not stored."""
    for name in ("demo", "other"):
        store_videos(cache, name, {"a": A})
    store = FeatureStore(cache)
    datasets = [store[name] for name in ("demo", "other")[: 1 + known]]
    for old, new in (("demo", "aside"), ("other", "demo"), ("aside", "other")):
        (cache / old).rename(cache / new)
    for act in (lambda: store["demo"]["a"], lambda: "a" in datasets[0], lambda: list(datasets[0])):
        with pytest.raises(
            StoreMismatch, match=r"cache/demo holds the dataset 'other'; .* rename it back"
        ):
            act()
    for old, new in (("demo", "aside"), ("other", "demo"), ("aside", "other")):
        (cache / old).rename(cache / new)
    assert [list(dataset) for dataset in datasets] == [["a"]] * len(datasets)


def test_a_manifest_is_unpacked_once_a_commit(cache, monkeypatch):
    store_videos(cache, "demo", {"a": A})
    dataset, unpacked, real = FeatureStore(cache)["demo"], [], catalog.unpack_manifest

    def count(*words):
        unpacked.append(words)
        return real(*words)

    monkeypatch.setattr(catalog, "unpack_manifest", count)
    for _ in range(3):
        assert (dataset["a"].shape, len(dataset)) == ((16, 8), 1)
    assert unpacked == []
    store_videos(cache, "demo", {"b": A})
    unpacked.clear()
    for _ in range(3):
        assert (set(dataset), len(dataset)) == ({"a", "b"}, 2)
    assert len(unpacked) <= 1


@pytest.mark.parametrize("at_once", [1, 2 * A.size])  # values, so records of 128 each
def test_many_videos_have_the_bits_of_each_whatever_it_is_stored_as(cache, monkeypatch, at_once):
    monkeypatch.setattr(features, "_AT_ONCE", at_once)
    storages = [Storage("int8", granularity) for granularity in GRANULARITIES]
    storages += [*map(Storage, ("bf16", "fp16", "fp32")), Storage("int8", codec="lz4")]
    spec = store_videos(cache, "demo", {})
    with FeatureWriter(cache, "demo", min_free=0) as writer:
        for storage in storages:
            for seed in range(
                3
            ):  # runs of equal ones, of which two at a time are dequantized at once
                x = toy_features(seed) * (storage.codec == "raw")
                put_video(writer, spec, f"{storage} {seed}", x, storage)
    dataset = FeatureStore(cache)["demo"]
    videos = sorted(dataset)
    wanted = [dataset[video].numpy() for video in videos]
    np.testing.assert_array_equal(dataset.get_many(videos), np.stack(wanted))


def test_many_videos_of_differing_shapes_are_a_list(cache):
    store_videos(cache, "demo", {"long": A, "short": A[:8], "again": B})
    dataset = FeatureStore(cache)["demo"]
    for x, video in zip(dataset.get_many(["long", "short"]), ("long", "short"), strict=True):
        np.testing.assert_array_equal(x, dataset[video].numpy())
    assert dataset.get_many(["long", "again"]).shape == (2, *A.shape)


def test_the_record_of_the_set_that_is_meant_is_read_ahead(cache, monkeypatch):
    store_videos(cache, "demo", {"a": A})
    eight = store_videos(cache, "demo", {"a": toy_features(2, 8)}, spec=toy_spec(8))
    read: list[str] = []

    def ask(memory, address, length):
        read.append(parse(memoryview(ctypes.string_at(address, length))).header.spec)

    monkeypatch.setattr(snapshot, "read_ahead", ask)
    dataset = FeatureStore(cache)["demo"]
    for choice in ({}, {"nframe": 8}, {"spec": eight}, {"spec": eight.digest[:6], "nframe": 8}):
        dataset.read_ahead("a", **choice)
    dataset.read_ahead("b")
    assert read == [toy_spec().digest, *[eight.digest] * 3]


def test_a_repr_fits_a_line(cache):
    store_videos(cache, "demo", {"a": A})
    store = featstore.open(cache)
    dataset, digest = store["demo"], toy_spec().digest[:8]
    assert repr(store) == f"<featstore.FeatureStore {str(cache)!r}: demo>"
    assert repr(dataset) == (
        f"<featstore.Dataset 'demo': 1 video, {digest}, 4 frames, linspace, int8/channel_token>"
    )
    assert repr(dataset["a"]) == "<featstore.Features 'a': 16 x 8, int8/channel_token>"
    FeatureWriter(cache, "empty", min_free=0)
    assert repr(store["empty"]) == (
        f"<featstore.Dataset 'empty': dataset 'empty' in {cache} has no feature set>"
    )
    assert repr(dataset.sets) == f"<featstore.FeatureSets of 'demo': {digest}>"
    assert repr(store["empty"].sets) == "<featstore.FeatureSets of 'empty': none>"
    for found in (store, dataset, dataset["a"], store["empty"]):
        assert repr(found).isprintable()


def test_a_repr_of_sets_that_cannot_be_read_says_why(cache):
    spec = store_videos(cache / "aside", "demo", {"a": A})
    dataset = FeatureStore(cache / "aside")["demo"]
    put_raw(cache / "aside", "specs", spec.digest.encode(), b"nonsense")
    assert "'demo': feature set " in repr(dataset.sets)
    assert "cannot be read" in repr(dataset.sets)


def test_a_repr_of_what_cannot_be_read_says_why(cache):
    store_videos(cache / "aside", "demo", {"a": A})
    dataset = FeatureStore(cache / "aside")["demo"]
    (cache / "aside" / "demo").rename(cache / "aside" / "gone")
    assert repr(dataset).startswith("<featstore.Dataset 'demo': ")
    assert "\n" not in repr(dataset)


@pytest.mark.slow
def test_stores_and_datasets_are_pickled_by_their_place_and_opened_again(cache):
    store_videos(cache, "demo", {"a": A})
    store_videos(cache, "demo", {"b": B}, spec=toy_spec(8))
    store = FeatureStore(cache, verify="always")
    found = pickle.loads(pickle.dumps(store))
    assert (repr(found), found._verify, list(found["demo"])) == (repr(store), "always", ["a"])
    other = store["demo"].sets[toy_spec(8).digest]
    for dataset, held in ((store["demo"], ["a"]), (other, ["b"])):
        found = pickle.loads(pickle.dumps(dataset))
        assert (list(found), repr(found), found._verify) == (held, repr(dataset), "always")
    content = pickle.dumps(other)
    program = (
        "import pickle, sys; print(list(pickle.loads(bytes.fromhex(sys.argv[1]))), flush=True)"
    )
    assert run_python(program, content.hex()).stdout == "['b']\n"


def test_rows_are_flat_and_of_each_feature_set_a_table(cache, monkeypatch):
    """Of ids that are no UTF-8, too; an empty cache has the columns."""
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    cache.mkdir()
    names = list(featstore.open(cache).to_dataframe())
    store_videos(cache, "demo", {"a": toy_features(1), "b\udcff": toy_features(2)})
    store_videos(cache, "demo", {"a": toy_features(3, 8)}, spec=toy_spec(8))
    store_videos(cache, "other", {"a": toy_features(4)})
    store = featstore.open(cache)
    rows = sorted(store["demo"].rows(), key=lambda row: row["video_id"])
    assert [row["video_id"] for row in rows] == ["a", "b\udcff"]
    assert list(rows[0]) == names
    assert not any(isinstance(value, (dict, list, tuple)) for value in rows[0].values())
    assert rows[0]["feature_set"] == toy_spec().digest
    assert rows[0]["relative_l2"] == store["demo"]["a"].header.error.relative_l2
    frame = store.to_dataframe()
    assert list(frame) == names
    assert frame.groupby("dataset")["rows"].sum().to_dict() == {"demo": 64, "other": 16}
    assert set(frame["feature_set"]) == {toy_spec().digest, toy_spec(8).digest}
    assert (frame["created"] == pandas.Timestamp(1_700_000_000, unit="s", tz="UTC")).all()
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtra, match=r"pip install pandas; Dataset\.rows"):
        store.to_dataframe()
