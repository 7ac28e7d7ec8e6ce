import errno
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from shard_contract import SPEC, VIDEOS, make_parts
from toys import REPOSITORY, expected, run_python, store_videos, toy_features

from featstore.errors import RecordError, StoreDamaged, StoreError, StoreMismatch, StoreNotFound
from featstore.store.default_set import set_default
from featstore.store.describe import describe_store
from featstore.store.maintenance.check import check_dataset
from featstore.store.maintenance.compact import compact_dataset
from featstore.store.maintenance.merge import merge_dataset
from featstore.store.maintenance.remove import remove_dataset, remove_videos
from featstore.store.maintenance.repair import repair_dataset
from featstore.store.maintenance.seal import seal_dataset
from featstore.store.maintenance.seal_shard import seal_shard
from featstore.store.reader import FeatureStore, get
from featstore.store.shards.index import unpack_index
from featstore.store.shards.manifest_list import ShardRow, add_shards, read_list, unpack_list
from featstore.store.shards.places import LocalPlace
from featstore.store.writer import FeatureWriter


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    for part in make_parts(folder):
        seal_shard(part, "demo", LocalPlace(folder / "served"))
    return folder / "served"


@pytest.fixture
def served(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "served"))


def add(served, name, videos, **options):
    store_videos(served.parent / name, "demo", videos, **options)
    return seal_shard(served.parent / name, "demo", LocalPlace(served))


def shard_of(served, number):
    return read_list(LocalPlace(served), "demo").shards[number]


def test_a_shard_that_is_added_is_seen_at_the_next_lookup(served):
    demo = FeatureStore(served)["demo"]
    before = demo["v/0"]
    add(served, "more", {"late": toy_features(50)})
    np.testing.assert_array_equal(demo["late"].data, expected(toy_features(50)))
    assert len(demo) == len(VIDEOS) + 2
    np.testing.assert_array_equal(before.data, expected(VIDEOS["v/0"]))


def test_to_seal_twice_adds_nothing(served):
    store_videos(served.parent / "more", "demo", {"late": toy_features(50)})
    rows = [seal_shard(served.parent / "more", "demo", LocalPlace(served)) for _ in range(2)]
    assert rows[0] == rows[1]
    assert len(read_list(LocalPlace(served), "demo").shards) == 4


def test_a_video_that_two_shards_made_alike_is_there_once(served):
    add(served, "again", {"v/0": VIDEOS["v/0"]})
    demo = FeatureStore(served)["demo"]
    assert len(demo) == len([*demo]) == len(VIDEOS) + 1
    np.testing.assert_array_equal(demo["v/0"].data, expected(VIDEOS["v/0"]))
    assert check_dataset(served, "demo").problems == []


def test_a_video_of_which_two_shards_differ_is_refused_and_both_are_named(served):
    row = add(served, "other", {"v/0": toy_features(99)})
    demo = FeatureStore(served)["demo"]
    with pytest.raises(StoreDamaged) as found:
        demo["v/0"]
    assert row.data_name in str(found.value)
    assert shard_of(served, 0).data_name in str(found.value)
    np.testing.assert_array_equal(demo["v/1"].data, expected(VIDEOS["v/1"]))
    [problem] = check_dataset(served, "demo").problems
    assert row.data_name in problem
    done = merge_dataset(served, served.parent / "merged", "demo", min_free=0)
    assert [name for name, _ in done.failures] == ["v/0"]
    assert done.stored == done.total - 1


def test_a_failure_is_forgotten_once_a_later_shard_has_the_video(served):
    add(served, "mended", {"v/broken": toy_features(60)})
    demo = FeatureStore(served)["demo"]
    assert [*demo.failures()] == []
    assert demo.counts.failures == 0
    assert "v/broken" in demo


def test_shards_of_other_datasets_are_refused(served):
    place = LocalPlace(served)
    store_videos(served.parent / "x", "other", {"a": toy_features(1)})
    row = seal_shard(served.parent / "x", "other", place)
    for name in (row.data_name, row.index_name):
        os.link(served / "other/shards" / name, served / "demo/shards" / name)
    add_shards(place, "demo", [row])
    with pytest.raises(StoreMismatch, match="is of the dataset 'other'"):
        FeatureStore(served)["demo"]


def test_a_list_that_is_nested_without_end_is_damaged(served):
    """At some depth json reads what it does not write again."""
    for depth in range(900, 1000, 5):
        nested = "[" * depth + "]" * depth
        text = f'{{"format":1,"dataset":"demo","number":9,"shards":{nested},"xxh3":"0"}}'
        with pytest.raises(StoreDamaged):
            unpack_list(text.encode(), "demo", 9, "list")


def test_of_two_that_add_shards_at_the_same_time_none_loses_any(tmp_path):
    def add_ten(first):
        for number in range(first, first + 10):
            row = ShardRow(f"{number:032x}", 1, "0" * 32, 1, 1)
            add_shards(LocalPlace(tmp_path), "demo", [row])

    threads = [threading.Thread(target=add_ten, args=(at * 10,)) for at in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = read_list(LocalPlace(tmp_path), "demo")
    assert len({row.shard for row in found.shards}) == len(found.shards) == found.number == 40
    assert not [name for name in os.listdir(tmp_path / "demo/shards") if name.startswith(".")]


@pytest.mark.parametrize("name", ["data_name", "index_name", "manifest-3.json"])
def test_a_file_that_was_cut_short_or_is_gone_is_named(served, name):
    file = served / "demo/shards" / getattr(shard_of(served, 0), name, name)
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    with pytest.raises(StoreError, match=file.name):
        get(served, "demo", "v/0")
    if name != "manifest-3.json":
        file.unlink()
        with pytest.raises(StoreDamaged, match=file.name):
            FeatureStore(served)["demo"]["v/0"]


def test_a_bit_that_flips_in_a_shard_or_an_index_is_found(served):
    row = shard_of(served, 0)
    index = served / "demo/shards" / row.index_name
    found = unpack_index(memoryview(index.read_bytes()), "it")
    place = found.place(1)
    shard = served / "demo/shards" / row.data_name
    data = bytearray(shard.read_bytes())
    data[place.offset + place.length - 7] ^= 4
    shard.write_bytes(data)
    assert len(check_dataset(served, "demo").problems) == 1
    damaged = bytearray(index.read_bytes())
    damaged[len(damaged) // 2] ^= 4
    with pytest.raises(StoreDamaged, match="checksum"):
        unpack_index(memoryview(bytes(damaged)), "it")
    index.write_bytes(damaged)
    with pytest.raises(StoreDamaged, match=row.index_name):
        FeatureStore(served)["demo"]


def test_what_is_said_of_a_damaged_shard_can_be_done(served):
    path = served / "demo" / "shards" / shard_of(served, 0).data_name
    data = bytearray(path.read_bytes())
    for at in range(8192, len(data), 512):
        data[at] ^= 1
    path.write_bytes(data)
    problems = check_dataset(served, "demo").problems
    assert problems
    assert not any("--repair" in problem for problem in problems)
    assert "featstore merge" in problems[0]


def test_a_shard_that_is_cut_short_under_its_map_ends_no_process(served):
    demo = FeatureStore(served)["demo"]
    demo["v/1"]
    for number in range(3):
        os.truncate(served / "demo/shards" / shard_of(served, number).data_name, 4096)
    with pytest.raises((StoreError, RecordError)):
        demo["v/1"]


def test_no_descriptor_is_held_and_a_full_table_of_files_is_a_store_error(served, monkeypatch):
    demo = FeatureStore(served)["demo"]
    before = len(os.listdir("/proc/self/fd"))
    kept = [demo[video] for video in VIDEOS]
    assert len(os.listdir("/proc/self/fd")) == before

    def refuse(*arguments, **options):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    FeatureStore(served).close()
    fresh = served.rename(served.with_name("moved"))
    store = FeatureStore(fresh)["demo"]
    monkeypatch.setattr("featstore.system.file_map.os.open", refuse)
    with pytest.raises(StoreError, match="ulimit -n"):
        store["v/0"]
    assert len(kept) == len(VIDEOS)


FEW_FILES = """
import resource, sys
import featstore

resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
demo = featstore.open(sys.argv[1])["demo"]
held = [demo[video] for video in demo]
print(len(held))
"""


@pytest.mark.slow
def test_more_shards_than_a_process_may_open_files_are_read_and_held(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    from bench_union import write_shards

    store_videos(tmp_path / "one", "demo", {f"v{n}": toy_features(n) for n in range(80)})
    write_shards(tmp_path / "one", tmp_path / "cache", 80, "demo")
    done = run_python(FEW_FILES, tmp_path / "cache")
    assert done.stdout == "80\n", done.stderr


def test_what_would_change_a_sealed_shard_is_refused(served):
    refused = (
        lambda: FeatureWriter(served, "demo", min_free=0),
        lambda: remove_videos(served, "demo", ["v/0"]),
        lambda: compact_dataset(served, "demo"),
        lambda: seal_dataset(served, "demo"),
        lambda: repair_dataset(served, "demo"),
        lambda: set_default(served, "demo", SPEC.digest[:8]),
    )
    for change in refused:
        with pytest.raises(StoreError, match="sealed shards, which are never changed"):
            change()
    assert sorted(os.listdir(served / "demo")) == ["shards"]


def test_a_dataset_of_shards_is_removed_as_a_whole(served):
    assert remove_dataset(served, "demo") > 0
    assert not (served / "demo").exists()
    with pytest.raises(StoreNotFound):
        get(served, "demo", "v/0")


def test_a_folder_with_a_file_and_shards_is_refused(served):
    store_videos(served.parent / "file", "demo", {"a": toy_features(1)})
    os.link(served.parent / "file/demo/data.mdb", served / "demo/data.mdb")
    with pytest.raises(StoreError, match="not clear which"):
        FeatureStore(served)["demo"]


def test_the_store_is_described_as_sealed(served):
    described = describe_store(served)["datasets"]["demo"]
    assert described["sealed"]
    sizes = [row.file_bytes for row in read_list(LocalPlace(served), "demo").shards]
    assert described["file_bytes"] == sum(sizes)


def test_a_shard_on_a_network_file_system_is_not_mapped(served, monkeypatch):
    monkeypatch.setattr("featstore.store.shards.union.unreliable_kind", lambda path: "nfs4")
    demo = FeatureStore(served)["demo"]
    assert len(demo) == len(VIDEOS) + 1
    with pytest.raises(StoreError, match="local="):
        demo["v/0"]
