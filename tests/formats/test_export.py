import json
import os
import stat

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file
from toys import run_python, store_videos, toy_features

from featstore.fields import build
from featstore.formats.export import save_features
from featstore.formats.facts import entries_json, entry_facts, record_facts
from featstore.geometry import RowLayout
from featstore.records.storage import Storage
from featstore.store.reader import FeatureStore, get

SCALES = {
    "channel_token": {"token_scale": (16, 1), "channel_scale": (1, 8)},
    "channel": {"channel_scale": (1, 8)},
    "token": {"token_scale": (16, 1)},
    "tensor": {"tensor_scale": (1, 1)},
}

KILLED = """
import os, signal, sys, featstore
from featstore.formats import export
def killed(*words):
    os.kill(os.getpid(), signal.SIGKILL)
def half(features, file, suffix):
    file.write(b"half of it")
    file.flush()
    killed()
if sys.argv[3] == "before the rename":
    os.replace = killed
else:
    export.write_features = half
export.save_features(featstore.get(sys.argv[1], "demo", "a"), sys.argv[2])
"""


@pytest.mark.crash
@pytest.mark.parametrize("moment", ["before the rename", "while it is written"])
def test_an_export_that_is_killed_leaves_what_was_there(cache, tmp_path, moment):
    store_videos(cache, "demo", {"a": toy_features(1)})
    target = tmp_path / "out.npy"
    target.write_bytes(b"old")
    assert run_python(KILLED, cache, target, moment).returncode == -9
    assert target.read_bytes() == b"old"
    save_features(get(cache, "demo", "a"), target)
    np.testing.assert_array_equal(np.load(target), get(cache, "demo", "a").dequantize())


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o007, 0o660)])
@pytest.mark.parametrize("name", ["x.npy", "x.safetensors", "y" * 251 + ".npy"])
def test_an_export_is_for_those_whom_the_umask_leaves_and_leaves_nothing_else(
    cache, tmp_path, name, umask, mode
):
    store_videos(cache, "demo", {"a": toy_features(1)})
    folder = tmp_path / "out"
    folder.mkdir()
    before = os.umask(umask)
    try:
        save_features(get(cache, "demo", "a"), folder / name)
    finally:
        os.umask(before)
    assert [path.name for path in folder.iterdir()] == [name]
    assert stat.S_IMODE((folder / name).stat().st_mode) == mode


@pytest.mark.parametrize("video", ["../a", "/etc/a", "..", "a/b", "~/a", "con", "."])
def test_ids_are_never_file_names(cache, tmp_path, video):
    """The one name is the user's: an id that is a path leads nowhere."""
    store_videos(cache, "demo", {video: toy_features(1)})
    folder = tmp_path / "out"
    folder.mkdir()
    for name in ("x.npy", "x.safetensors"):
        save_features(get(cache, "demo", video), folder / name)
    assert sorted(path.name for path in folder.iterdir()) == ["x.npy", "x.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "out"]


def test_a_link_is_replaced_and_not_written_through(cache, tmp_path):
    store_videos(cache, "demo", {"a": toy_features(1)})
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (tmp_path / "x.npy").symlink_to(precious)
    save_features(get(cache, "demo", "a"), tmp_path / "x.npy")
    assert precious.read_text() == "mine"
    assert not (tmp_path / "x.npy").is_symlink()


@pytest.mark.parametrize("granularity", SCALES)
def test_each_scale_is_a_tensor_of_its_name_and_their_product_gives_the_features(
    cache, tmp_path, granularity
):
    store_videos(cache, "demo", {"a": toy_features(1)}, storage=Storage("int8", granularity))
    features = get(cache, "demo", "a")
    save_features(features, tmp_path / "x.safetensors")
    tensors = load_file(tmp_path / "x.safetensors")
    data = tensors.pop("data")
    assert {name: scale.shape for name, scale in tensors.items()} == SCALES[granularity]
    scale = np.ones((), np.float32)
    for name in ("token_scale", "channel_scale", "tensor_scale"):
        scale = scale * tensors.get(name, np.float32(1))
    np.testing.assert_array_equal(data * scale, features.dequantize())


@pytest.mark.parametrize("values", ["bf16", "fp16", "fp32"])
def test_floats_have_no_scale(cache, tmp_path, values):
    store_videos(cache, "demo", {"a": toy_features(1)}, storage=Storage(values))
    features = get(cache, "demo", "a")
    save_features(features, tmp_path / "x.safetensors")
    tensors = load_file(tmp_path / "x.safetensors")
    assert list(tensors) == ["data"]
    np.testing.assert_array_equal(tensors["data"], features.data)


def test_what_the_record_says_is_in_the_file_as_json(cache, tmp_path):
    video = "caf\udce9"  # a file name that is not UTF-8
    spec = store_videos(cache, "demo", {video: toy_features(1)})
    features = get(cache, "demo", video)
    save_features(features, tmp_path / "x.safetensors")
    with safe_open(tmp_path / "x.safetensors", "np") as file:
        facts = json.loads(file.metadata()["featstore"])
    assert facts == record_facts(features.header)
    assert (facts["video_id"], facts["feature_set"]) == (video, spec.digest)
    assert facts["storage"] == {"values": "int8", "granularity": "channel_token", "codec": "raw"}
    assert (facts["frames"], facts["frame_indices"]) == (4, [0, 1, 2, 3])
    assert build(RowLayout, facts["layout"]) == features.header.layout


def test_the_catalog_and_the_record_say_the_same_in_the_same_words(cache):
    store_videos(cache, "demo", {"a": toy_features(1)})
    dataset = FeatureStore(cache)["demo"]
    record, row = record_facts(dataset["a"].header), entry_facts("demo", dataset.entry("a"))
    del row["record_bytes"]
    assert {name: record[name] for name in row} == row


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"video_id": 'a "quoted" \\ name, 100 %s', "doubt": "%(odd)d\n"},
        {"video_path": "/\udcff/\u00e9\U0001f600.mp4", "values": "int4", "codec": "%s"},
        {"cosine": 0.1 + 0.2, "relative_l2": 5e-324, "max_abs": 1e300, "size": 1 << 70},
        {"token_max": float("nan")},
        {"created": float("inf"), "max_abs": float("-inf")},
        {"max_abs": 1.7e308, "token_max": 1.7e308},
    ],
)
def test_many_entries_are_written_as_json_writes_their_facts(cache, changed):
    store_videos(cache, "demo", {"a": toy_features(1), "b": toy_features(2)})
    entries = [entry._replace(**changed) for entry in FeatureStore(cache)["demo"].entries()]
    assert list(entries_json("demo", entries)) == [
        json.dumps(entry_facts("demo", entry)) for entry in entries
    ]
