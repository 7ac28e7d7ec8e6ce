"""A dataset as a folder of files: each file is its video's, whole, found by the index, and written once."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from damage import flip_in_file, read_raw
from safetensors.numpy import load_file
from toys import expected, put_video, run_python, store_videos, toy_features, toy_spec

from featstore.cli import main
from featstore.errors import FeatureNotFound, StoreMismatch
from featstore.formats.export import export_dataset
from featstore.formats.feature_files import FORMATS
from featstore.formats.names import INDEX, SET_FILE
from featstore.records.storage import GRANULARITIES, Storage
from featstore.store.reader import FeatureStore
from featstore.store.rows import video_key
from featstore.store.writer import FeatureWriter

VIDEOS = {name: toy_features(seed) for seed, name in enumerate(["a", "sub/b", "sub/c [1]", "../é"])}
EXPORT = ["export", "--dataset", "demo"]
STORAGES = [Storage("int8", granularity) for granularity in GRANULARITIES] + [
    Storage("bf16"),
    Storage("fp16", codec="planes"),
    Storage("fp32"),
]


@pytest.fixture
def demo(cache):
    store_videos(cache, "demo", VIDEOS)
    return FeatureStore(cache)["demo"]


def index_of(folder):
    lines = (folder / INDEX).read_text().splitlines()
    return {found["video_id"]: found for found in map(json.loads, lines)}


def restored(file):
    """The features of a file, by what its format says of itself and nothing of ours."""
    if file.suffix == ".npy":
        return np.load(file)
    if file.suffix == ".pt":
        found = torch.load(file, weights_only=True)
        assert found["vision_embeds"].shape == tuple(found["shape"])
        return (found["vision_embeds"].float() * found["scale"]).numpy()
    with_text = dict(np.load(file)) if file.suffix == ".npz" else load_file(file)
    facts = with_text.pop("featstore", None)
    values = with_text.pop("data")
    if facts is not None and json.loads(str(facts))["storage"]["values"] == "bf16":
        values = (values.astype(np.uint32) << 16).view(np.float32)
    product = np.float32(1)
    for name in ("token_scale", "channel_scale", "tensor_scale"):
        product = product * with_text.get(name, np.float32(1))
    return (values * product).astype(np.float32)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("storage", STORAGES, ids=str)
def test_every_format_restores_the_bits_of_every_storage(cache, tmp_path, suffix, storage):
    if suffix == ".safetensors" and storage.values == "bf16":
        pytest.skip("its data are bf16's bits, which the file's dtype does not say")
    store_videos(cache, "demo", {"a": toy_features(1)}, storage=storage)
    dataset = FeatureStore(cache)["demo"]
    export_dataset(dataset, tmp_path / "out", suffix)
    file = tmp_path / "out" / index_of(tmp_path / "out")["a"]["file"]
    np.testing.assert_array_equal(restored(file), dataset["a"].numpy())


def test_the_index_says_which_file_is_whose(demo, tmp_path):
    done = export_dataset(demo, tmp_path / "out", ".npy")
    assert (done.total, done.exported, done.skipped, done.failures) == (4, 4, 0, [])
    index = index_of(tmp_path / "out")
    assert set(index) == set(VIDEOS)
    files = {found["file"] for found in index.values()}
    assert {path.name for path in (tmp_path / "out").iterdir()} == files | {INDEX, SET_FILE}
    for video, x in VIDEOS.items():
        found = np.load(tmp_path / "out" / index[video]["file"])
        assert np.array_equal(found, demo[video].numpy())
        assert index[video]["frame_indices"] == demo[video].header.frames
        assert found.shape == x.shape


def test_what_is_there_is_not_written_again_and_what_changed_is(demo, cache, tmp_path):
    folder = tmp_path / "out"
    export_dataset(demo, folder, ".npz", patterns=["a", "sub/*"])
    before = {path: path.stat().st_ino for path in folder.glob("*.npz")}
    assert len(before) == 3
    with FeatureWriter(cache, "demo", min_free=0) as writer:
        writer.add_set(toy_spec(), origin="toy")
        put_video(writer, toy_spec(), "a", toy_features(9), created=1.8e9)
    done = export_dataset(demo, folder, ".npz")
    assert (done.exported, done.skipped) == (2, 2)
    again = {path: path.stat().st_ino for path in folder.glob("*.npz")}
    assert len(again) == 4
    assert sum(before.get(path) == inode for path, inode in again.items()) == 2
    assert np.array_equal(
        np.load(folder / index_of(folder)["a"]["file"])["data"], expected(toy_features(9))
    )
    (folder / index_of(folder)["a"]["file"]).unlink()
    assert export_dataset(demo, folder, ".npz").exported == 1


def test_an_export_that_was_cut_short_goes_on(demo, tmp_path):
    stop = threading.Event()
    done = export_dataset(demo, tmp_path, ".pt", stop=stop, on_progress=lambda _: stop.set())
    assert (done.exported, done.interrupted) == (1, True)
    index = tmp_path / INDEX
    index.write_bytes(index.read_bytes() + b'{"file": "x')  # as a kill leaves it
    done = export_dataset(demo, tmp_path, ".pt")
    assert (done.exported, done.skipped, done.interrupted) == (3, 1, False)
    lines = index.read_text().splitlines()
    assert len(lines) == 5
    assert export_dataset(demo, tmp_path, ".pt").skipped == 4


@pytest.mark.crash
def test_an_export_that_is_killed_goes_on(demo, cache, tmp_path):
    program = """
import os, signal, sys, featstore
from featstore.formats.export import export_dataset
done = lambda summary: summary.exported == 2 and os.kill(os.getpid(), signal.SIGKILL)
export_dataset(featstore.open(sys.argv[1])["demo"], sys.argv[2], ".npy", on_progress=done)
"""
    assert run_python(program, cache, tmp_path / "out").returncode == -9
    done = export_dataset(demo, tmp_path / "out", ".npy")
    assert (done.exported, done.skipped) == (2, 2)


def test_a_folder_holds_one_feature_set_in_one_format(demo, cache, tmp_path):
    store_videos(cache, "demo", {"a": toy_features(2, 8)}, spec=toy_spec(8))
    export_dataset(demo, tmp_path, ".npy", patterns=["a"])
    for there, suffix in ((demo, ".npz"), (demo.sets[toy_spec(8).digest], ".npy")):
        with pytest.raises(StoreMismatch, match="holds an export of dataset 'demo'"):
            export_dataset(there, tmp_path, suffix)
    with pytest.raises(ValueError, match="is not a format"):
        export_dataset(demo, tmp_path, "npy")


def test_a_pattern_fits_ids_and_one_that_fits_none_is_refused_before_work(demo, tmp_path):
    assert export_dataset(demo, tmp_path / "1", ".npy", patterns=["sub/c [1]"]).total == 1
    assert export_dataset(demo, tmp_path / "2", ".npy", patterns=["*é", "a"]).total == 2
    with pytest.raises(FeatureNotFound, match=r"no video of dataset 'demo' fits 'sub/d\*', of 4"):
        export_dataset(demo, tmp_path / "3", ".npy", patterns=["a", "sub/d*"])
    assert not (tmp_path / "3").exists()


def test_a_damaged_record_is_named_and_the_others_are_written(demo, cache, tmp_path):
    stored = read_raw(cache, "records", video_key(toy_spec().digest, "a"))
    flip_in_file(cache, stored[-64:])
    run = CliRunner().invoke(
        main,
        [
            "export",
            "--cache-dir",
            str(cache),
            "--dataset",
            "demo",
            "--to",
            "npy",
            "--out",
            str(tmp_path / "out"),
            "--json",
        ],
    )
    flip_in_file(cache, bytes([stored[-64] ^ 0x10]) + stored[-63:])
    assert run.exit_code == 3
    found = json.loads(run.stdout)
    assert (found["exported"], [failure["video_id"] for failure in found["failed"]]) == (3, ["a"])
    assert "damaged" in found["failed"][0]["reason"]
    assert set(index_of(tmp_path / "out")) == set(VIDEOS) - {"a"}


def test_the_command_says_what_it_did(demo, cache, tmp_path):
    words = [*EXPORT, "--cache-dir", str(cache), "--to", "pt", "--video", "a"]
    out = tmp_path / "o"
    first, second = (CliRunner().invoke(main, [*words, "--out", str(out)]) for _ in range(2))
    assert first.stdout.startswith("demo: 1 exported, 0 there before, 0 failed, ")
    assert second.stdout.startswith("demo: 0 exported, 1 there before, 0 failed, 0 B in ")
    (tmp_path / "file").touch()
    failed = CliRunner().invoke(main, [*words, "--out", str(tmp_path / "file" / "o")])
    assert failed.exit_code == 1
    assert "cannot be written: Not a directory; 0 videos were written" in failed.stderr
