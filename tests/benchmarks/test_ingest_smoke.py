"""The ingest's benchmark runs, on next to nothing; its figures are nobody's business here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.benchmark

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "bench_ingest.py"
TINY = [
    "--nframe",
    "4",
    "--videos",
    "8",
    "--decode-videos",
    "3",
    "--clip-frames",
    "5",
    "--workers",
    "1",
]


@pytest.mark.parametrize("device", ["cpu", "cpu,cpu"])
def test_bench_ingest_measures_each_stage_and_both_pipelines(tmp_path, device):
    work, out = tmp_path / "work", tmp_path / "out"
    work.mkdir()
    words = ["--model", "toy", "--device", device, *TINY, "--workdir", work, "--out", out]
    done = subprocess.run(
        [sys.executable, BENCHMARK, *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert list(work.iterdir()) == []
    data = json.loads((out / "bench_ingest.json").read_text(encoding="utf-8"))
    assert {"decode", "encode", "write", "plain file for write"} <= set(data["alone"])
    assert all(rate > 0 for rate in data["alone"].values())
    assert [run["videos"] for run in data["pipeline"].values()] == [8, 3]
    for label, run in data["pipeline"].items():
        assert run["videos_a_second"] > 0
        assert label in done.stdout
    assert done.stdout == (out / "bench_ingest.txt").read_text(encoding="utf-8")
