"""The benchmarks run, on next to nothing; their figures are nobody's business here."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.benchmark

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
ALWAYS = {
    "torch.save int8",
    "torch.save bf16",
    "torch.save int8, load(mmap=True)",
    "safetensors int8",
    "safetensors bf16",
    ".npy, np.load(mmap_mode='r')",
    "plain file, readinto",
    "LMDB + pickle",
    "LMDB, get of bytes",
}
OPTIONAL = {
    "HF datasets": "datasets",
    "HF datasets, format arrow": "datasets",
    "h5py, contiguous": "h5py",
}


def run(name: str, out: Path, *options: str) -> tuple[dict, str]:
    """Return the JSON and the text that a benchmark left in `out`."""
    out.mkdir()
    command = [sys.executable, BENCHMARKS / f"{name}.py", "--out", out, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    text = (out / f"{name}.txt").read_text(encoding="utf-8")
    assert done.stdout == text
    return json.loads((out / f"{name}.json").read_text(encoding="utf-8")), text


@pytest.fixture(scope="module")
def get(tmp_path_factory) -> tuple[dict, str]:
    folder = tmp_path_factory.mktemp("bench_get")
    work = folder / "work"
    work.mkdir()
    size = ["--videos", "2", "--frames", "1", "--small", "5", "--repeats", "1"]
    found = run("bench_get", folder / "out", *size, "--workdir", str(work))
    assert list(work.iterdir()) == []
    return found


@pytest.fixture(scope="module")
def peers(get) -> set[str]:
    """The peers that can be measured here; the others must be left out with a sentence."""
    missing = {name for name, module in OPTIONAL.items() if find_spec(module) is None}
    assert missing == {s.split(" is left out")[0] for s in get[0]["left_out"] if "left out" in s}
    assert all(sentence in get[1] for sentence in get[0]["left_out"])
    return ALWAYS | set(OPTIONAL) - missing


@pytest.mark.parametrize("records", ["large", "small"])
@pytest.mark.parametrize("operation", ["lookup", "read"])
def test_bench_get_measures_every_peer_that_is_installed(get, peers, records, operation):
    data, text = get
    rows = [
        row
        for row in data["rows"]
        if (row["records"], row["operation"], row["cache"]) == (records, operation, "hot")
    ]
    ours = {"featstore, first lookup", "featstore, later lookups", "featstore, verify=never"}
    assert {row["peer"] for row in rows} - {"(memcpy alone)"} == peers | ours
    assert all(row["peer"] in text for row in rows)
    assert all(row["summary"]["count"] > 0 for row in rows)


@pytest.mark.parametrize("records", ["clips'", "small"])
def test_bench_get_measures_many_at_once_beside_a_lookup_each(get, peers, records):
    rows = [
        row for row in get[0]["rows"] if (row["records"], row["operation"]) == (records, "many")
    ]
    ours = {"get_many", "a lookup each", "first lookup", "verify=never"}
    assert {row["peer"] for row in rows} == peers | {f"featstore, {name}" for name in ours}


@pytest.mark.parametrize("records", ["large", "small"])
def test_bench_get_gets_the_same_values_from_every_peer(get, peers, records):
    digests = get[0]["digests"][records]
    assert set(digests["int8"]) | set(digests["bf16"]) == peers | {"featstore"}
    assert len(set(digests["int8"].values())) == 1
    assert len(set(digests["bf16"].values())) == 1


def test_bench_read_gpu_says_that_it_needs_a_gpu(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    command = [sys.executable, BENCHMARKS / "bench_read_gpu.py", "--workdir", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "no CUDA GPU" in done.stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_bench_read_gpu_measures_every_way(tmp_path):
    size = ["--videos", "2", "--frames", "2", "--repeats", "8", "--parts"]
    size += ["hot,many,kinds,cold,readers,tune"]
    work = tmp_path / "work"
    work.mkdir()
    data, text = run("bench_read_gpu", tmp_path / "out", *size, "--workdir", str(work))
    assert list(work.iterdir()) == []
    assert all(label in text for label in data["hot"])
    for way in ("pageable", "staged", "registered", "auto", "zstd, decompressed on the CPU"):
        assert any(way in label for label in data["hot"]), way
    assert all(rate > 0 for part in ("cold", "readers", "tune") for rate in data[part].values())


def test_bench_cpu_gets_the_same_bits_from_every_way(tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    size = ["--videos", "1", "--frames", "1", "--repeats", "2"]
    data, text = run("bench_cpu", tmp_path / "out", *size, "--workdir", str(work))
    assert list(work.iterdir()) == []
    assert {"featstore raw", "featstore zstd", "safetensors int8", ".pt"} <= set(data["ways"])
    assert all(label in text for label in data["ways"])
    assert data["stored_bytes"]["zstd"] < data["stored_bytes"]["raw"]


def test_bench_scale_finds_every_record_it_wrote(tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    size = ["--sizes", "20,50", "--picks", "10"]
    data, text = run("bench_scale", tmp_path / "out", *size, "--workdir", str(work))
    assert list(work.iterdir()) == []
    kinds = {"featstore", "sqlite", "safetensors, a file a video"}
    assert {(row["kind"], row["count"]) for row in data["rows"]} == {
        (kind, count) for kind in kinds for count in (20, 50)
    }
    assert all(row["kind"] in text for row in data["rows"])


def test_bench_get_refuses_to_fill_the_disk(tmp_path):
    command = [sys.executable, BENCHMARKS / "bench_get.py", "--videos", "1000"]
    done = subprocess.run(
        [*command, "--workdir", tmp_path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "take fewer --videos" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_decoding_is_measured_by_each_decoder(sample_clips, tmp_path):
    clip = sample_clips / "blink.mp4"
    size = ["--clips", str(clip), "--nframe", "4", "--repeats", "1"]
    data, text = run("bench_decode", tmp_path / "out", *size)
    assert [(row["asked"], row["took"], row["same"]) for row in data["rows"]] == [
        ("decord", "decord", True),
        ("auto", "pyav", True),
    ]
    assert "blink.mp4" in text
