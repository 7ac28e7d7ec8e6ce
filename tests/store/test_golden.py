"""Stores that this and earlier releases wrote, which every later one must read, byte for byte."""

import dataclasses
import gzip
import json
import shutil
from pathlib import Path

import make_golden_stores as golden
import numpy as np
import pytest
from click.testing import CliRunner
from damage import put_raw, read_raw
from toys import REPOSITORY, oldest_kernels, run_python, store_videos, toy_features

from featstore.cli import main
from featstore.errors import RecordError, StoreMismatch
from featstore.records.quantization import quantize
from featstore.store.catalog import read_manifest
from featstore.store.default_set import set_default
from featstore.store.describe import describe_store
from featstore.store.engine.environment import open_environment
from featstore.store.engine.transaction import WriteTransaction
from featstore.store.maintenance.check import check_dataset
from featstore.store.maintenance.compact import compact_dataset
from featstore.store.maintenance.merge import merge_dataset
from featstore.store.maintenance.remove import remove_dataset, remove_videos
from featstore.store.maintenance.repair import repair_dataset
from featstore.store.maintenance.seal import seal_dataset, unseal_dataset
from featstore.store.reader import FeatureStore, get
from featstore.store.rows import pack_row, video_key
from featstore.store.writer import FeatureWriter

GOLDEN = REPOSITORY / "tests" / "golden"
STORES = sorted((GOLDEN / "stores").glob("*/*/expected.json"))
MAX_BYTES = 200_000
NEWEST = f"store{golden.STORE_FORMAT}_record{golden.FORMAT}"


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
    row = FeatureStore(cache)[golden.DATASET].feature_set
    header, record = golden._pack(row.spec, "new", 1, 4, row.storage)
    with FeatureWriter(cache, golden.DATASET, min_free=0) as writer:
        assert writer.add_set(row.spec) == row
        writer.put(header, record)
    features = get(cache, golden.DATASET, "new")
    assert features.header == header
    stored, _ = quantize(golden._features(1, header.layout.rows), row.storage)
    assert np.array_equal(features.data, stored)
    assert repair_dataset(cache, golden.DATASET).repaired == []
    compact_dataset(cache, golden.DATASET)
    remove_videos(cache, golden.DATASET, ["new"])
    assert held(cache) == wanted


def test_a_golden_store_is_carried_over_by_a_merge(store, tmp_path):
    """The way from one format to the next."""
    cache, wanted = store
    merge_dataset(cache, tmp_path / "new", golden.DATASET, min_free=0)
    left_behind = {"created": 0, "failures": 0}
    found = held(tmp_path / "new")
    for held_here in (found, wanted):
        held_here["sets"] = [row | left_behind for row in held_here["sets"]]
    assert found == wanted | {"failures": []}


def test_the_tool_makes_stores_that_hold_what_the_golden_ones_do(tmp_path):
    same_as_the_golden_ones(golden.make_golden_stores(tmp_path / "again"))


@pytest.mark.slow
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
        [before] = [path for path in STORES if path.parts[-3:-1] == (NEWEST, place.name)]
        assert portable(place / "expected.json") == portable(before)


def portable(path):
    """What is stored, but for what the libraries that compress may choose."""
    found = json.loads(path.read_text())
    for video in found["videos"]:
        if video["header"]["storage"]["codec"] != "raw":
            del video["header"]["payload_xxh3"]
    for row in found["sets"]:
        if row["storage"]["codec"] != "raw":
            del row["record_bytes"]
    return found


def test_the_golden_stores_have_each_kind_of_what_can_be_stored():
    found = [json.loads(path.read_text()) for path in STORES]
    headers = [video["header"] for store in found for video in store["videos"]]
    assert {header["storage"]["values"] for header in headers} == {"int8", "bf16", "fp16", "fp32"}
    assert {header["storage"]["granularity"] for header in headers} == {
        *("channel_token", "channel", "token", "tensor", "none"),
    }
    assert {header["storage"]["codec"] for header in headers} == {"raw", "lz4", "zstd", "planes"}
    assert {header["layout"]["planes"] for header in headers} == {1, 2}
    assert {header["layout"]["frames_per_unit"] for header in headers} == {1, 2, 3}
    assert {header["layout"]["extra_rows"] for header in headers} == {0, 1}
    assert {row["spec"]["preprocessing"]["kind"] for store in found for row in store["sets"]} == {
        *("shortest_edge_crop", "exact_resize", "pixel_budget"),
    }
    assert all(store["failures"] for store in found)


USES = {
    "open": lambda cache, name, other: FeatureStore(cache)[name],
    "get": lambda cache, name, other: get(cache, name, "a"),
    "write": lambda cache, name, other: FeatureWriter(cache, name),
    "remove videos": lambda cache, name, other: remove_videos(cache, name, ["a"]),
    "merge from": lambda cache, name, other: merge_dataset(cache, other, name),
    "compact": lambda cache, name, other: compact_dataset(cache, name),
    "seal": lambda cache, name, other: seal_dataset(cache, name),
    "unseal": lambda cache, name, other: unseal_dataset(cache, name),
    "set default": lambda cache, name, other: set_default(cache, name, "0000"),
}


def refused_by_all(cache: Path, name: str, other: Path, says: str) -> None:
    """Nothing is written, no lock file either."""
    data = cache / name / "data.mdb"
    before = data.read_bytes()
    for use in USES.values():
        with pytest.raises(StoreMismatch, match=says):
            use(cache, name, other)
    for look in (check_dataset, repair_dataset):
        [problem] = look(cache, name).problems
        assert says in problem
        assert "damaged" not in problem
    assert says in describe_store(cache)["datasets"][name]["problems"][0]
    assert data.read_bytes() == before
    assert not other.exists()


@pytest.fixture
def first_format(tmp_path) -> Path:
    """A cache with a dataset of format 1, of two sets."""
    folder = tmp_path / "old" / golden.DATASET
    folder.mkdir(parents=True)
    packed = (GOLDEN / "format1" / "data.mdb.gz").read_bytes()
    (folder / "data.mdb").write_bytes(gzip.decompress(packed))
    return tmp_path / "old"


def test_a_store_of_the_first_format_is_refused_in_words_and_left_alone(first_format, tmp_path):
    says = "has store format 1, this featstore reads format 2; it was made before the first release"
    refused_by_all(first_format, golden.DATASET, tmp_path / "other", says)


def test_a_merge_into_a_store_of_the_first_format_is_refused(first_format, tmp_path):
    store_videos(tmp_path / "new", golden.DATASET, {"a": toy_features(1)})
    before = (first_format / golden.DATASET / "data.mdb").read_bytes()
    with pytest.raises(StoreMismatch, match="has store format 1"):
        merge_dataset(tmp_path / "new", first_format, golden.DATASET, min_free=0)
    assert (first_format / golden.DATASET / "data.mdb").read_bytes() == before


@pytest.mark.parametrize(
    "words",
    [
        *("ls", "info", "ls --dataset golden", "info --dataset golden"),
        *("check --dataset golden", "check --repair --dataset golden"),
        *("default --dataset golden", "get --dataset golden water", "compact --dataset golden"),
        *("seal --dataset golden", "rm --dataset golden --video water --yes"),
    ],
)
def test_a_command_refuses_a_store_of_the_first_format_in_words(first_format, words):
    done = CliRunner().invoke(main, [*words.split(), "--cache-dir", str(first_format)])
    assert "has store format 1, this featstore reads format 2" in done.output, done.output
    assert "damaged" not in done.output


def test_a_store_of_the_first_format_can_be_removed(first_format):
    assert remove_dataset(first_format, golden.DATASET) > 0
    assert list(FeatureStore(first_format)) == []


def test_a_store_from_the_future_is_refused_and_left_alone_by_all(tmp_path):
    cache = tmp_path / "future"
    store_videos(cache, "demo", {"a": toy_features(1)})
    manifest = read_manifest(open_environment(cache / "demo").snapshot())
    with WriteTransaction(cache / "demo") as txn:
        txn.put("manifest", b"manifest", pack_row(dataclasses.replace(manifest, format=3)))
    says = "store format 3, this featstore reads format 2; update featstore"
    refused_by_all(cache, "demo", tmp_path / "other", says)


def test_a_record_from_the_future_is_refused(tmp_path):
    made = store_videos(tmp_path, "demo", {"a": toy_features(1)})
    key = video_key(made.digest, "a")
    record = bytearray(read_raw(tmp_path, "records", key))
    record[11] = 3
    put_raw(tmp_path, "records", key, bytes(record))
    with pytest.raises(
        RecordError, match="format 3, this featstore reads format 2; update featstore"
    ):
        get(tmp_path, "demo", "a")
