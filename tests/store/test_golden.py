"""Stores that this and earlier releases wrote, which every later one must read, byte for byte."""

import dataclasses
import importlib.util
import json
import shutil
from pathlib import Path

import pytest
from damage import put_raw, read_raw
from toys import (
    REPOSITORY,
    expected,
    oldest_kernels,
    put_video,
    run_python,
    store_videos,
    toy_features,
)

from featstore.errors import RecordError, StoreMismatch
from featstore.store.catalog import read_manifest
from featstore.store.engine.environment import open_environment
from featstore.store.engine.transaction import WriteTransaction
from featstore.store.maintenance.check import check_dataset
from featstore.store.maintenance.compact import compact_dataset
from featstore.store.maintenance.merge import merge_dataset
from featstore.store.maintenance.remove import remove_videos
from featstore.store.maintenance.repair import repair_dataset
from featstore.store.maintenance.seal import seal_dataset
from featstore.store.reader import FeatureStore, get
from featstore.store.rows import pack_row, video_key
from featstore.store.writer import FeatureWriter

STORES = sorted((REPOSITORY / "tests" / "golden" / "stores").glob("*/*/expected.json"))
MAX_BYTES = 100_000
spec = importlib.util.spec_from_file_location(
    "golden", REPOSITORY / "tools" / "make_golden_stores.py"
)
golden = importlib.util.module_from_spec(spec)
spec.loader.exec_module(golden)


@pytest.fixture(params=STORES, ids=lambda path: f"{path.parts[-3]}-{path.parts[-2]}")
def store(request, cache):
    """A copy of a store, and what it holds."""
    folder = cache / golden.DATASET
    folder.mkdir(parents=True)
    shutil.copyfile(request.param.with_name("data.mdb"), folder / "data.mdb")
    return cache, json.loads(request.param.read_text())


def held(cache: Path) -> dict:
    return json.loads(
        json.dumps(golden.describe(FeatureStore(cache, verify="always")[golden.DATASET]))
    )


def test_there_is_one_of_each_format_and_they_are_small():
    assert len(STORES) >= len(golden.STORES)
    for path in STORES:
        assert path.with_name("data.mdb").stat().st_size < MAX_BYTES


def test_a_golden_store_is_read_byte_for_byte(store):
    cache, wanted = store
    assert held(cache) == wanted
    assert check_dataset(cache, golden.DATASET).problems == []


def test_a_golden_store_is_read_without_being_written_to(store):
    cache, wanted = store
    seal_dataset(cache, golden.DATASET)
    before = (cache / golden.DATASET / "data.mdb").read_bytes()
    assert held(cache) == wanted
    assert (cache / golden.DATASET / "data.mdb").read_bytes() == before


def test_a_golden_store_can_be_gone_on_with(store):
    cache, wanted = store
    made = FeatureStore(cache)[golden.DATASET].sets.rows()[0].spec
    x = toy_features(1)
    with FeatureWriter(cache, golden.DATASET, min_free=0) as writer:
        put_video(writer, made, "new", x)
    assert (
        get(cache, golden.DATASET, "new", spec=made).data.tobytes() == expected(x, made).tobytes()
    )
    assert repair_dataset(cache, golden.DATASET).repaired == []
    compact_dataset(cache, golden.DATASET)
    remove_videos(cache, golden.DATASET, ["new"])
    assert held(cache) == wanted


def test_a_golden_store_is_carried_over_by_a_merge(store, tmp_path):
    """The way from one format to the next."""
    cache, wanted = store
    merge_dataset(cache, tmp_path / "new", golden.DATASET, min_free=0)
    assert held(tmp_path / "new") == wanted | {"failures": []}


def test_the_tool_makes_stores_that_hold_what_the_golden_ones_do(tmp_path):
    same_as_the_golden_ones(golden.make_golden_stores(tmp_path / "again"))


def test_the_tool_makes_the_same_stores_on_the_oldest_processor(tmp_path):
    program = (
        f"import runpy, sys; sys.argv[0] = tool = {str(golden.__file__)!r}; "
        "runpy.run_path(tool, run_name='__main__')"
    )
    done = run_python(program, tmp_path / "again", **oldest_kernels())
    assert done.returncode == 0, done.stderr
    same_as_the_golden_ones([Path(line) for line in done.stdout.splitlines()])


def same_as_the_golden_ones(places):
    assert [place.name for place in places] == list(golden.STORES)
    for place in places:
        [before] = [
            path
            for path in STORES
            if path.parts[-2] == place.name and "store1_record1" in path.parts
        ]
        assert json.loads((place / "expected.json").read_text()) == json.loads(before.read_text())


def test_a_store_from_the_future_is_refused_and_left_alone_by_all(tmp_path):
    cache = tmp_path / "future"
    store_videos(cache, "demo", {"a": toy_features(1)})
    manifest = read_manifest(open_environment(cache / "demo").snapshot())
    with WriteTransaction(cache / "demo") as txn:
        txn.put("manifest", b"manifest", pack_row(dataclasses.replace(manifest, format=2)))
    before = (cache / "demo" / "data.mdb").read_bytes()
    says = "store format 2, this featstore reads format 1; update featstore"
    for use in (
        lambda: FeatureStore(cache)["demo"],
        lambda: FeatureWriter(cache, "demo"),
        lambda: remove_videos(cache, "demo", ["a"]),
        lambda: merge_dataset(cache, tmp_path / "other", "demo"),
        lambda: compact_dataset(cache, "demo"),
        lambda: seal_dataset(cache, "demo"),
    ):
        with pytest.raises(StoreMismatch, match=says):
            use()
    for look in (check_dataset, repair_dataset):
        [problem] = look(cache, "demo").problems
        assert says in problem
    assert (cache / "demo" / "data.mdb").read_bytes() == before


def test_a_record_from_the_future_is_refused(tmp_path):
    made = store_videos(tmp_path, "demo", {"a": toy_features(1)})
    key = video_key(made.digest, "a")
    record = bytearray(read_raw(tmp_path, "records", key))
    record[11] = 2
    put_raw(tmp_path, "records", key, bytes(record))
    with pytest.raises(
        RecordError, match="format 2, this featstore reads format 1; update featstore"
    ):
        get(tmp_path, "demo", "a")
