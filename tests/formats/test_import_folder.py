"""Files of features become records: what was exported as it was, what others made marked as imported, bit for bit."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import shutil
import threading
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from toys import run_python, store_videos, toy_features, toy_spec

from featstore.cli import main
from featstore.errors import ListingError, StoreError
from featstore.formats.export import export_dataset
from featstore.formats.import_folder import import_folder
from featstore.formats.names import FEATURE_FILES, INDEX, SET_FILE
from featstore.records.storage import GRANULARITIES, Storage
from featstore.spec import UNKNOWN_PARTS
from featstore.store.maintenance.check import check_dataset
from featstore.store.maintenance.seal import seal_dataset
from featstore.store.reader import FeatureStore

VIDEOS = {name: toy_features(seed) for seed, name in enumerate(["a", "sub/b", "../é [1]"])}
STORAGES = [Storage("int8", granularity) for granularity in GRANULARITIES] + [
    Storage("int8", "channel", "zstd"),
    Storage("bf16"),
    Storage("fp16", codec="planes"),
    Storage("fp32"),
]
FRAMES, TOKENS, WIDTH = 4, 4, 8


def run(folder, suffix, cache, dataset="demo", **options):
    return import_folder(folder, suffix, cache, dataset, min_free=0, **options)


def cached(video="a", seed=1, **changed):
    """A dict of the design documents' caches: int8 with a scale a channel."""
    x = torch.from_numpy(toy_features(seed)).reshape(FRAMES, TOKENS, WIDTH)
    scale = x.abs().amax(dim=(0, 1), keepdim=True) / 127
    found = {
        "vision_embeds": torch.round(x / scale).to(torch.int8),
        "scale": scale,
        "video_path": f"/data/videos/sub/{video}.mp4",
        "nframe": FRAMES,
        "dataset": "demo",
        "model_signature": "longva-7b:0123abcd",
        "quantization": "int8",
        "shape": (FRAMES, TOKENS, WIDTH),
    } | changed
    return {name: value for name, value in found.items() if value is not ...}


def save(folder, found, name=None):
    folder.mkdir(parents=True, exist_ok=True)
    name = name or hashlib.md5(str(found.get("video_path")).encode()).hexdigest()
    torch.save(found, folder / f"{name}.pt")
    return folder / f"{name}.pt"


@pytest.fixture
def pt(tmp_path):
    for seed, video in enumerate(["a", "b c"]):
        save(tmp_path / "pt" / "demo", cached(video, seed))
    return tmp_path / "pt"


QUICK = {
    ("npz", Storage()),
    ("pt", Storage("int8", "token")),
    ("safetensors", Storage("bf16")),
    ("npy", Storage()),
}
PAIRS = [
    pytest.param(name, storage, marks=[] if (name, storage) in QUICK else pytest.mark.slow)
    for name in FEATURE_FILES
    for storage in STORAGES
]


@pytest.mark.parametrize(("name", "storage"), PAIRS, ids=str)
def test_what_was_exported_comes_back_as_it_was(cache, tmp_path, name, storage):
    suffix = f".{name}"
    spec = store_videos(cache / "1", "demo", VIDEOS, storage=storage)
    before = FeatureStore(cache / "1")["demo"]
    export_dataset(before, tmp_path / "out", suffix)
    done = run(tmp_path / "out", suffix, cache / "2")
    assert (done.imported, done.failures, done.sets, done.unknown) == (3, [], {spec.digest: 3}, ())
    after = FeatureStore(cache / "2")["demo"]
    assert replace(after.feature_set, created=0) == replace(before.feature_set, created=0)
    for video in VIDEOS:
        one, other = before[video], after[video]
        assert one.numpy().tobytes() == other.numpy().tobytes()
        if suffix in (".safetensors", ".npz"):
            assert one.header == other.header
            assert one.data.tobytes() == other.data.tobytes()
    assert run(tmp_path / "out", suffix, cache / "2").skipped == 3
    assert check_dataset(cache / "2", "demo").problems == []


def test_a_file_that_is_not_the_one_that_was_exported_is_refused(cache, tmp_path):
    store_videos(cache / "1", "demo", VIDEOS)
    export_dataset(FeatureStore(cache / "1")["demo"], tmp_path / "out", ".npy")
    file = next((tmp_path / "out").glob("*.npy"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    [(name, why)] = run(tmp_path / "out", ".npy", cache / "2").failures
    assert (name, "not those that were exported" in why) == (str(file), True)
    index = tmp_path / "out" / INDEX
    index.write_text(index.read_text().replace('"rows"', '"cols"'))
    done = run(tmp_path / "out", ".npy", cache / "3")
    assert len(done.failures) == 3
    assert sum("index.jsonl says of it cannot be read" in why for _, why in done.failures) == 2
    index.write_text("")
    done = run(tmp_path / "out", ".npy", cache / "5")
    assert len(done.failures) == 3
    assert all("does not say what it is" in why for _, why in done.failures)
    (tmp_path / "out" / SET_FILE).write_text("{}")
    with pytest.raises(ListingError, match=r"take index\.jsonl and feature_set.json away"):
        run(tmp_path / "out", ".npy", cache / "4")


def test_exports_of_two_sets_in_one_folder_are_not_mixed(cache, tmp_path):
    folder = tmp_path / "both"
    folder.mkdir()
    specs = toy_spec(), replace(toy_spec(), decoder="exact")
    for place, spec in enumerate(specs):
        store_videos(cache / str(place), "demo", {f"v{place}": toy_features(place)}, spec=spec)
        out = tmp_path / str(place)
        export_dataset(FeatureStore(cache / str(place))["demo"], out, ".npz")
        for file in out.glob("*.npz"):
            shutil.copy(file, folder)
        with (folder / INDEX).open("a") as index:
            index.write((out / INDEX).read_text())
    assert len(run(folder, ".npz", cache / "a").sets) == 2
    shutil.copy(tmp_path / "0" / SET_FILE, folder)
    done = run(folder, ".npz", cache / "b")
    assert (len(done.sets), specs[0].digest in done.sets, specs[1].digest in done.sets) == (
        2,
        True,
        False,
    )
    (folder / SET_FILE).unlink()
    file = next(folder.glob("*.npz"))
    np.savez(file, data=np.ones((16, 8), np.float32))
    [(name, why)] = run(folder, ".npz", cache / "c").failures
    assert (name, "not those that were exported" in why) == (str(file), True)


WRONG = {
    "nframe": [None, "4", 2**70, -1],
    "rows": [2**70, -(2**63), "16"],
    "layout": [None, {"units": 4}],
    "error": [{}],
    "created_seconds": ["now", None],
}


@pytest.mark.parametrize("name", WRONG)
def test_what_an_index_says_wrong_is_named(cache, tmp_path, name):
    store_videos(cache / "1", "demo", {"a": toy_features(1)})
    export_dataset(FeatureStore(cache / "1")["demo"], tmp_path, ".npz")
    line = json.loads((tmp_path / INDEX).read_text())
    for value in WRONG[name]:
        (tmp_path / INDEX).write_text("[" * 100_000 + "\n" + json.dumps(line | {name: value}))
        done = run(tmp_path, ".npz", cache / "2")
        assert (done.imported, len(done.failures)) == (0, 1), value


def test_a_whole_number_where_an_index_has_a_float_makes_a_row_that_can_be_read(cache, tmp_path):
    store_videos(cache / "1", "demo", {"a": toy_features(1)})
    export_dataset(FeatureStore(cache / "1")["demo"], tmp_path, ".npz")
    line = json.loads((tmp_path / INDEX).read_text()) | {"created_seconds": 5, "fps": 25}
    (tmp_path / INDEX).write_text(json.dumps(line))
    assert run(tmp_path, ".npz", cache / "2").imported == 1
    [entry] = FeatureStore(cache / "2")["demo"].entries()
    assert entry.created == 5.0


@pytest.mark.parametrize("asked", [Storage("fp32"), Storage()], ids=str)
def test_values_that_int8_restored_are_not_taken_for_lossless(cache, tmp_path, asked):
    store_videos(cache / "1", "demo", {"a": toy_features(1)})
    export_dataset(FeatureStore(cache / "1")["demo"], tmp_path, ".npy")
    run(tmp_path, ".npy", cache / "2")
    there = FeatureStore(cache / "2")["demo"]
    [entry] = there.entries()
    row = replace(there.feature_set, storage=asked, storage_since=1.0)
    assert entry.values == row.spec.encoder.dtype == "fp32"
    assert row.differs(entry)
    assert not row.is_lossless(entry)
    assert not row.differs(entry._replace(max_abs=0.0))


def test_a_pt_cache_keeps_its_bits_and_is_marked_as_imported(cache, pt):
    done = run(pt, ".pt", cache)
    assert (done.total, done.imported, done.failures) == (2, 2, [])
    assert "weights" in done.unknown
    there = FeatureStore(cache)["demo"]
    assert set(there) == {"a", "b c"}
    spec = there.feature_set.spec
    assert spec.imported
    assert spec.encoder.settings == {"model_signature": "longva-7b:0123abcd"}
    assert (spec.decoder, spec.sampling.policy, spec.sampling.nframe) == ("unknown", "unknown", 4)
    content, found = cached("a", 0), there["a"]
    assert found.data.tobytes() == content["vision_embeds"].numpy().tobytes()
    assert found.scales[0].tobytes() == content["scale"].numpy().tobytes()
    assert found.header.video_path == "/data/videos/sub/a.mp4"
    assert found.header.layout.tokens_per_unit == TOKENS
    assert check_dataset(cache, "demo").problems == []


def test_an_error_that_nobody_knows_is_not_listed_as_zero(cache, pt):
    run(pt, ".pt", cache)
    words = ["ls", "--dataset", "demo", "--cache-dir", str(cache)]
    table, rows = (CliRunner().invoke(main, [*words, *more]).stdout for more in ([], ["--csv"]))
    assert "unknown" in table
    assert "0.000000" not in table
    [row, _] = csv.DictReader(rows.splitlines())
    assert {row[name] for name in ("token_p99", "cosine", "size", "xxh3_128")} == {""}


SHAPES = {
    "rows": {"vision_embeds": cached()["vision_embeds"].reshape(16, 8), "scale": torch.ones(8)},
    "as rows": {"shape": [16, 8]},
    "a batch": {"vision_embeds": cached()["vision_embeds"][None], "shape": [1, 4, 4, 8]},
    "per token": {"scale": torch.ones(4, 4, 1)},
    "per frame": {"scale": torch.rand(4, 1, 1) + 1},
    "one scale": {"scale": 0.5},
    "half scale": {"scale": torch.ones(8, dtype=torch.bfloat16)},
    "bf16": {"vision_embeds": torch.randn(16, 8).bfloat16(), "scale": None, "quantization": "bf16", "shape": [16, 8]},
    "floats": {"vision_embeds": torch.randn(4, 4, 8).half(), "scale": torch.ones(1), "quantization": None},
    "another signature": {"model_signature": {"vision": "x", "projector": "y"}},
    "rows of no frame": {"vision_embeds": torch.randn(17, 8), "scale": None, "quantization": "none", "shape": [17, 8]},
}  # fmt: skip


@pytest.mark.parametrize("case", SHAPES)
def test_what_a_cache_may_hold_restores_the_same_values(cache, tmp_path, case):
    content = cached(**SHAPES[case])
    save(tmp_path / "demo", content)
    assert run(tmp_path, ".pt", cache).failures == []
    scale = 1 if content["scale"] is None else content["scale"]
    wanted = content["vision_embeds"].float() * scale
    found = FeatureStore(cache)["demo"]["a"]
    assert found.numpy().tobytes() == wanted.float().numpy().tobytes()


def expanded():
    return torch.zeros(1, 1, 8, dtype=torch.int8).expand(4, 4, 8)


BAD = {
    "no scale": ({"scale": None}, "int8 and have no scale"),
    "a key is missing": ({"nframe": ...}, "missing are \\['nframe'\\]"),
    "a zero point": ({"zero_point": 3}, "whose part in its values is unknown"),
    "an offset": ({"offset": 1.0}, "\\['offset'\\], whose part in its values is unknown"),
    "a second scale": ({"inv_scale": 2.0}, "'inv_scale'"),
    "a zero point that is not there": ({"quantization": "int8_asymmetric"}, "int8_asymmetric"),
    "other frames": ({"shape": (2, 8, 8)}, "shape is said to be"),
    "a scale beyond float32": ({"scale": 1e39}, "not exact in float32"),
    "another tensor": ({"residual": torch.ones(2)}, "'residual'"),
    "a scale that does not fit": ({"scale": torch.ones(4, 4)}, "scale has the shape"),
    "a scale a frame and channel": ({"scale": torch.ones(4, 1, 8)}, "scale has the shape"),
    "a scale of 0": ({"scale": torch.zeros(8)}, "not above zero"),
    "a scale that is NaN": ({"scale": torch.full((8,), torch.nan)}, "not exact|not above zero"),
    "a double scale": ({"scale": torch.full((8,), 0.1, dtype=torch.float64)}, "not exact in float32"),
    "a scale of floats": ({"vision_embeds": torch.ones(4, 4, 8), "quantization": "fp32"}, "only int8 takes one"),
    "another quantization": ({"quantization": "fp16"}, "quantization is 'fp16' and its values are int8"),
    "another dtype": ({"vision_embeds": torch.ones(4, 4, 8, dtype=torch.uint8)}, "values are uint8"),
    "another shape": ({"shape": [4, 8, 8]}, "shape is said to be"),
    "no shape": ({"shape": "4x4x8"}, "its shape is '4x4x8'"),
    "too many frames": ({"nframe": 3}, "more than 3 frames"),
    "no frames": ({"nframe": 0}, "nframe is 0"),
    "no signature": ({"model_signature": ""}, "model_signature is ''"),
    "an unnamed signature": ({"model_signature": None}, "model_signature"),
    "another dataset": ({"dataset": "other"}, "of dataset 'other', not 'demo'"),
    "one value that claims to be many": ({"vision_embeds": expanded()}, "not stored as plain values"),
    "NaN": ({"vision_embeds": torch.full((4, 4, 8), torch.nan), "scale": None, "quantization": None}, "NaN or inf"),
    "no tensor": ({"vision_embeds": [1, 2]}, "not a tensor"),
    "an id that cannot be": ({"video_path": "/v/a\nb.mp4"}, "cannot be used"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_file_that_is_wrong_is_named_and_the_others_are_imported(cache, pt, case):
    changed, says = BAD[case]
    bad = save(pt / "demo", cached("bad", **changed), "f" * 32)
    done = run(pt, ".pt", cache)
    [(name, why)] = done.failures
    assert name == str(bad)
    assert re.search(says, why), why
    assert set(FeatureStore(cache)["demo"]) == {"a", "b c"}


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


def test_files_that_are_none_or_damaged_or_run_something_are_named(
    cache, pt, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    folder = pt / "demo"
    save(folder, cached("c", note=Evil()), "c1")
    save(folder, [1, 2], "c2")
    torch.save(cached("d"), folder / "c3.pt", _use_new_zipfile_serialization=False)
    (folder / "c4.pt").write_bytes(b"nothing")
    whole = save(folder, cached("e"), "c5").read_bytes()
    (folder / "c5.pt").write_bytes(whole[:-200])
    at = whole.index(cached("e")["vision_embeds"].numpy().tobytes())
    flipped = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
    (folder / "c6.pt").write_bytes(flipped)
    done = run(pt, ".pt", cache)
    why = {os.path.basename(name): reason for name, reason in done.failures}
    assert set(why) == {f"c{i}.pt" for i in range(1, 7)}
    assert "is not run" in why["c1.pt"]
    assert "list" in why["c2.pt"]
    assert all("not a whole file of torch.save" in why[f"c{i}.pt"] for i in (3, 4, 5))
    assert "it is damaged: the checksum of" in why["c6.pt"]
    assert not (tmp_path / "evil").exists()


def test_signatures_are_never_mixed_and_ids_may_be_whole_paths(cache, pt):
    save(pt / "demo", cached("a", 5, model_signature="another"), "0")
    save(pt / "demo", cached("a", 5, video_path="/data/videos/other/a.mp4"), "1")
    done = run(pt, ".pt", cache)
    assert len(done.sets) == 2
    [(_, why)] = done.failures
    assert "it is of video 'a', as" in why
    done = run(pt, ".pt", cache / "2", videos_root="/data/videos")
    assert done.failures == []
    ids = {video for there in FeatureStore(cache / "2")["demo"].sets.values() for video in there}
    assert ids == {"sub/a", "sub/b c", "other/a"}
    assert len(run(pt, ".pt", cache / "3", videos_root="/data/videos/sub").failures) == 1


def test_an_import_goes_on_and_takes_files_that_changed(cache, pt):
    stop = threading.Event()
    done = run(pt, ".pt", cache, stop=stop, on_progress=lambda _: stop.set())
    assert (done.imported, done.interrupted) == (1, True)
    done = run(pt, ".pt", cache)
    assert (done.imported, done.skipped) == (1, 1)
    file = save(pt / "demo", cached("a", 7))
    os.utime(file, (1, 1))
    done = run(pt, ".pt", cache)
    assert (done.imported, done.skipped) == (1, 1)
    assert np.array_equal(
        FeatureStore(cache)["demo"]["a"].data, cached("a", 7)["vision_embeds"].reshape(16, 8)
    )


@pytest.mark.crash
def test_an_import_that_is_killed_goes_on(cache, pt):
    program = """
import os, signal, sys
from featstore.formats.import_folder import import_folder
from featstore.store.writer import FeatureWriter
FeatureWriter.due = True
done = lambda summary: os.kill(os.getpid(), signal.SIGKILL)
import_folder(sys.argv[1], ".pt", sys.argv[2], "demo", min_free=0, on_progress=done)
"""
    assert run_python(program, pt, cache).returncode == -9
    done = run(pt, ".pt", cache)
    assert (done.imported, done.skipped) == (1, 1)


def test_plain_files_of_others_are_named_by_their_paths(cache, tmp_path):
    folder = tmp_path / "plain"
    (folder / "sub").mkdir(parents=True)
    x = toy_features(1)
    np.save(folder / "sub" / "a.npy", x)
    np.save(folder / "b.npy", x.reshape(4, 4, 8).astype(">f4"))
    np.save(folder / "c.npy", x.astype(np.float64))
    np.save(folder / "d.npy", np.array([{}]), allow_pickle=True)
    (folder / "e.npy").write_bytes(b"\x93NUMPY")
    # numpy gives up on such a header with an error of Python's tokenizer
    (folder / "f.npy").write_bytes((folder / "b.npy").read_bytes().replace(b"}", b'"', 1))
    done = run(folder, ".npy", cache)
    assert (done.imported, len(done.failures), len(done.sets)) == (2, 4, 2)
    done = run(folder, ".npy", cache / "2", nframe=4)
    assert (done.imported, len(done.sets)) == (2, 1)
    there = FeatureStore(cache / "2")["demo"]
    assert set(there) == {"sub/a", "b"}
    assert there["b"].numpy().tobytes() == there["sub/a"].numpy().tobytes() == x.tobytes()
    assert there["b"].header.layout.units == 4
    assert {
        os.path.basename(name) for name, _ in run(folder, ".npy", cache / "3", nframe=5).failures
    } >= {"a.npy"}


def test_rows_that_no_number_of_frames_fits_are_told_among_what_is_unknown(cache, tmp_path):
    """A file of 17 frames and 2,304 rows was taken as one unit, and nothing was said of it."""
    rows = toy_features(1).reshape(-1, WIDTH)
    embeds = torch.from_numpy(rows)
    odd = {"vision_embeds": embeds, "scale": None, "quantization": "fp32", "shape": rows.shape}
    save(tmp_path / "pt", cached("b", nframe=len(rows) - 1, **odd))
    unknown = run(tmp_path / "pt", ".pt", cache).unknown
    told = f"which rows are a frame's (as in {len(rows)} rows of {len(rows) - 1} frames)"
    assert unknown == (*UNKNOWN_PARTS, told)
    save(tmp_path / "good", cached("a"))
    assert run(tmp_path / "good", ".pt", cache).unknown == UNKNOWN_PARTS


def test_plain_safetensors_are_read_with_their_scales(cache, tmp_path):
    content = cached()
    values = content["vision_embeds"].reshape(16, 8)
    save_file(
        {"x": values, "channel_scale": content["scale"].flatten()}, tmp_path / "a.safetensors"
    )
    save_file({"x": values.bfloat16()}, tmp_path / "b.safetensors")
    save_file({"x": values, "y": values.clone()}, tmp_path / "c.safetensors")
    (tmp_path / "d.safetensors").write_bytes(b"\xff" * 100)
    done = run(tmp_path, ".safetensors", cache)
    assert [os.path.basename(name) for name, _ in done.failures] == [
        "c.safetensors",
        "d.safetensors",
    ]
    there = FeatureStore(cache)["demo"]
    assert (
        there["a"].numpy().tobytes()
        == (values.float() * content["scale"].flatten()).numpy().tobytes()
    )
    assert np.array_equal(there["b"].numpy(), values.float().numpy())
    assert there["b"].header.storage == Storage("bf16")


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_a_scale_is_of_what_its_name_says(cache, tmp_path, suffix):
    values, scale = np.ones((8, 8), np.int8), np.arange(1, 9, dtype=np.float32)
    shapes = {
        "right": ("token", (8, 1)),
        "flat": ("token", (8,)),
        "row": ("token", (1, 8)),
        "column": ("channel", (8, 1)),
        "many": ("tensor", (8,)),
    }
    for file, (name, shape) in shapes.items():
        arrays = {"data": values, f"{name}_scale": scale.reshape(shape)}
        if suffix == ".npz":
            np.savez(tmp_path / f"{file}.npz", **arrays)
        else:
            save_file(
                {key: torch.from_numpy(a) for key, a in arrays.items()},
                tmp_path / f"{file}{suffix}",
            )
    done = run(tmp_path, suffix, cache)
    assert done.imported == 1
    assert len(done.failures) == 4
    assert all("scale has the shape" in why for _, why in done.failures)
    assert FeatureStore(cache)["demo"]["right"].header.storage.granularity == "token"


def test_nothing_tells_how_to_run_what_is_in_a_file(cache, tmp_path):
    np.save(tmp_path / "a.npy", np.array([{}]), allow_pickle=True)
    (tmp_path / "b.npy").write_bytes(b"\x80\x04N.")
    (tmp_path / "c.npy").write_bytes(b"\x93NUMPY\x01\x00\xff\xff" + b"[" * 65535)
    for _, why in run(tmp_path, ".npy", cache).failures:
        assert why == "it is no array of plain numbers, and nothing in it is run"


def test_an_archive_that_unpacks_to_more_than_a_record_is_not_read(cache, tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "a.npz", data=np.zeros((1024, 1024), np.float32))
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        [member] = archive.infolist()
    monkeypatch.setattr("featstore.formats.numpy_files.MAX_PAYLOAD_BYTES", member.file_size - 1)
    [(_, why)] = run(tmp_path, ".npz", cache).failures
    assert why.startswith("it holds 4.0")


def test_a_dry_run_stores_nothing_and_says_the_same(cache, pt):
    planned = run(pt, ".pt", cache, dry_run=True)
    assert not (cache / "demo").exists()
    done = run(pt, ".pt", cache)
    assert (planned.imported, planned.sets, planned.unknown) == (2, done.sets, done.unknown)
    assert run(pt, ".pt", cache, dry_run=True).skipped == 2


def test_what_cannot_be_filled_or_read_is_refused(cache, pt, tmp_path):
    with pytest.raises(ListingError, match=r"no \.npy file"):
        run(pt, ".npy", cache)
    full = run(pt, ".pt", cache / "1", max_size=1)
    assert "the limit is" in full.full
    store_videos(cache, "demo", {"a": toy_features(1)})
    seal_dataset(cache, "demo")
    with pytest.raises(StoreError, match="sealed"):
        run(pt, ".pt", cache)


def test_the_command_says_what_is_unknown_and_ls_and_info_that_it_was_imported(cache, pt):
    def invoke(*words):
        return CliRunner().invoke(main, [*map(str, words)])

    target = ("--cache-dir", cache, "--dataset", "demo")
    found = invoke("import", "--from-pt", pt, *target, "--min-free", 0)
    assert found.exit_code == 0, found.output
    assert "demo: 2 imported, 0 there before, 0 failed" in found.output
    assert (
        "imported, so unknown: weights, dtype, sampling rule, decoder, preprocessing"
        in found.output
    )
    again = invoke("import", "--from-pt", pt, *target, "--min-free", 0, "--json")
    assert json.loads(again.stdout)["skipped"] == 2
    save(pt / "demo", [1], "bad")
    assert invoke("import", "--from-pt", pt, *target, "--min-free", 0).exit_code == 3
    assert invoke("import", *target).exit_code == 2
    assert "imported" in invoke("ls", "--cache-dir", cache).output
    rows = invoke("ls", "--cache-dir", cache, "--json").stdout
    assert [row["imported"] for row in json.loads(rows)] == [True]
    assert (
        "weights, dtype, sampling rule, decoder, preprocessing unknown"
        in invoke("info", *target).output
    )


def test_an_imported_set_is_never_a_computed_one(cache, pt):
    run(pt, ".pt", cache)
    store_videos(cache, "demo", {"a": toy_features(3)})
    sets = FeatureStore(cache)["demo"].sets
    assert len(sets) == 2
    assert toy_spec().digest in sets


def test_a_newer_record_stays_unless_it_is_to_be_replaced(cache, tmp_path):
    store_videos(cache / "1", "demo", {"a": toy_features(1)})
    export_dataset(FeatureStore(cache / "1")["demo"], tmp_path, ".npz")
    index = tmp_path / INDEX
    run(tmp_path, ".npz", cache / "2")
    line = json.loads(index.read_text())
    index.write_text(json.dumps(line | {"created_seconds": line["created_seconds"] - 1}))
    older = run(tmp_path, ".npz", cache / "2")
    assert (older.imported, older.skipped, older.newer) == (0, 0, 1)
    assert run(tmp_path, ".npz", cache / "2", dry_run=True).newer == 1
    assert run(tmp_path, ".npz", cache / "2", replace_newer=True).imported == 1
    index.write_text(json.dumps(line))
    assert run(tmp_path, ".npz", cache / "2").imported == 1


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_exported_files_without_their_index_are_told_apart_by_what_is_in_them(
    cache, tmp_path, suffix
):
    for nframe in (4, 8):
        store_videos(
            cache / "1", "demo", {f"v{nframe}": toy_features(1, nframe)}, spec=toy_spec(nframe)
        )
    for number, found in enumerate(FeatureStore(cache / "1")["demo"].sets.values()):
        export_dataset(found, tmp_path / str(number), suffix)
        for path in (tmp_path / str(number)).glob(f"*{suffix}"):
            path.rename(tmp_path / path.name)
    done = run(tmp_path, suffix, cache / "2")
    assert (done.imported, len(done.sets)) == (2, 2)
    sets = FeatureStore(cache / "2")["demo"].sets
    assert {video for found in sets.values() for video in found} == {"v4", "v8"}


def test_a_data_set_of_hugging_face_is_refused_in_words(cache, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "0.parquet").touch()
    with pytest.raises(ListingError, match="export to safetensors"):
        run(tmp_path, ".npz", cache)
