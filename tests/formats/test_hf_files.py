"""A Parquet data set: every row restores its video's bits, and a file is written again with what changed in it."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from toys import put_video, store_videos, toy_features, toy_spec

from featstore.cli import main
from featstore.errors import MissingExtra
from featstore.formats.export import export_dataset
from featstore.records.storage import GRANULARITIES, Storage
from featstore.store.reader import FeatureStore
from featstore.store.writer import FeatureWriter

VIDEOS = {
    name: toy_features(seed) for seed, name in enumerate(["a", "b", "c", "sub/é", "caf\udce9"])
}
STORAGES = [
    *(Storage("int8", granularity) for granularity in GRANULARITIES),
    Storage("bf16"),
    Storage("fp16"),
]


def rows(folder):
    parquet = pytest.importorskip(
        "pyarrow.parquet", reason="pyarrow is not installed: featstore[hf]"
    )
    files = sorted((folder / "data").glob("*.parquet"))
    return [row for file in files for row in parquet.ParquetFile(file).read().to_pylist()], files


def restored(row):
    values = np.frombuffer(row["values"], row["dtype"]).reshape(row["shape"])
    if row["dtype"] == "uint16":
        values = (values.astype(np.uint32) << 16).view(np.float32)
    product = np.float32(1)
    for name, shape in (
        ("token_scale", (-1, 1)),
        ("channel_scale", (1, -1)),
        ("tensor_scale", (1, 1)),
    ):
        if row[name] is not None:
            product = product * np.array(row[name], np.float32).reshape(shape)
    return (values * product).astype(np.float32)


@pytest.fixture
def demo(cache):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed: featstore[hf]")
    store_videos(cache, "demo", VIDEOS)
    return FeatureStore(cache)["demo"]


@pytest.mark.parametrize("storage", STORAGES, ids=str)
def test_a_row_restores_the_bits_of_every_storage(cache, tmp_path, storage):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed: featstore[hf]")
    store_videos(cache, "demo", VIDEOS, storage=storage)
    demo = FeatureStore(cache)["demo"]
    done = export_dataset(demo, tmp_path, ".parquet", shard_size=1 << 30)
    found, files = rows(tmp_path)
    assert (done.exported, len(files), len(found)) == (5, 1, 5)
    for row in found:
        facts = json.loads(row["featstore"])
        assert restored(row).tobytes() == demo[facts["video_id"]].numpy().tobytes()
    assert {row["video_id"] for row in found} == {"a", "b", "c", "sub/é", "caf?"}


def test_a_data_set_is_loaded_by_its_folder(demo, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    export_dataset(demo, tmp_path / "out", ".parquet")
    loaded = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "hub"))["train"]
    assert len(loaded) == 5
    for row in loaded:
        video = json.loads(row["featstore"])["video_id"]
        assert restored(row).tobytes() == demo[video].numpy().tobytes()


@pytest.mark.parametrize("shard_size", [0, 9000])
def test_what_changed_is_written_again_and_no_row_is_there_twice(demo, cache, tmp_path, shard_size):
    done = export_dataset(demo, tmp_path, ".parquet", shard_size=shard_size, patterns=["a"])
    assert (done.total, done.exported, done.skipped) == (1, 1, 0)
    export_dataset(demo, tmp_path, ".parquet", shard_size=shard_size)
    assert export_dataset(demo, tmp_path, ".parquet", shard_size=shard_size).skipped == 5
    with FeatureWriter(cache, "demo", min_free=0) as writer:
        writer.add_set(toy_spec(), origin="toy")
        put_video(writer, toy_spec(), "b", toy_features(9), created=1.8e9)
    (tmp_path / "data" / ("0" * 32 + ".parquet")).write_bytes(b"of a kill")
    export_dataset(demo, tmp_path, ".parquet", shard_size=shard_size, patterns=["b"])
    found, files = rows(tmp_path)
    assert sorted(json.loads(row["featstore"])["video_id"] for row in found) == sorted(VIDEOS)
    assert len(files) == (3 if shard_size else 5)
    for row in found:
        video = json.loads(row["featstore"])["video_id"]
        assert restored(row).tobytes() == demo[video].numpy().tobytes()


def test_without_pyarrow_the_remedy_is_named(cache, tmp_path, monkeypatch):
    store_videos(cache, "demo", VIDEOS)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(MissingExtra, match=r"pip install 'featstore\[hf\]'"):
        export_dataset(FeatureStore(cache)["demo"], tmp_path / "out", ".parquet")
    assert not (tmp_path / "out").exists()
    words = ["export", "--cache-dir", str(cache), "--dataset", "demo", "--out", str(tmp_path)]
    run = CliRunner().invoke(main, [*words, "--to", "npy", "--shard-size", "1GB"])
    assert (run.exit_code, "--shard-size is of hf" in run.output) == (2, True)
