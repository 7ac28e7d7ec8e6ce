"""A run of the stand-in on two ranks, as processes that meet over gloo."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

HERE = Path(__file__).parent
MODEL = "LongVA-7B-Cached"
pytestmark = pytest.mark.slow

MLVU = "MLVU_128frame"  # 3 questions: rank 0 asks the first and the third, rank 1 the second
NEXT = "Video-MME_128frame"


class Ran(NamedTuple):
    code: int
    complaints: list[str]
    asked: list[list[str]]


@pytest.fixture(scope="module")
def ranks():
    """The process that the ranks are forks of."""
    words = [sys.executable, HERE / "standin_rank.py"]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process


@pytest.fixture
def run(kit, ranks, tmp_path):
    """Run MLVU, then Video-MME; give rank 0's code and complaints, and what each rank was asked."""
    count = iter(range(1, 10))

    def run(*arguments: str, data=(MLVU, NEXT), world: int = 2, **more: str) -> Ran:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = str(found.getsockname()[1])
        words = ["--model", MODEL, "--data", *data, "--work-dir", str(tmp_path / "outputs")]
        environ = {
            **os.environ,
            "WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "STANDIN_RUN": str(next(count)),
            "CUDA_VISIBLE_DEVICES": "",
            **more,
        }
        outs, errs = (
            [tmp_path / f"{name}{rank}" for rank in range(world)] for name in ("out", "err")
        )
        asked_for = [
            {
                "environ": {**environ, "RANK": str(rank)},
                "arguments": [*words, *arguments],
                "out": str(outs[rank]),
                "err": str(errs[rank]),
            }
            for rank in range(world)
        ]
        print(json.dumps(asked_for), file=ranks.stdin, flush=True)
        codes = json.loads(ranks.stdout.readline())
        asked = [out.read_text().partition("asked:")[2].split() for out in outs]
        lines = [line for line in errs[0].read_text().splitlines() if line.startswith("  ")]
        return Ran(codes[0], lines, asked)

    return run


@pytest.fixture
def damaged(hub, noted) -> Path:
    """The video of rank 1's question, damaged."""
    from standin_rows import snapshot

    path = snapshot("MLVU") / "MLVU/video/2_needle/movie101_66.mp4"
    path.write_bytes(noted.DAMAGED)
    return path


def predictions(tmp_path, number: int, config: str) -> list[str]:
    file = tmp_path / "outputs" / MODEL / f"T{number}" / f"{MODEL}_{config}.json"
    return [row["prediction"] for row in json.loads(file.read_text())]


def test_a_video_that_one_rank_cannot_read_costs_no_other_dataset(run, damaged, tmp_path):
    done = run()
    assert done.code == 1
    [line] = done.complaints
    assert line.startswith(f"  {MODEL} x {MLVU}: rank 1 has left this dataset: ")
    assert line.endswith("2_needle/movie101_66.mp4 cannot be decoded")
    assert len(predictions(tmp_path, 1, NEXT)) == 4


def test_keeping_going_names_what_the_other_rank_could_not_read_and_reuse_asks_it_again(
    run, damaged, tmp_path
):
    done = run(KEEP_GOING="1")
    assert done.code == 1
    first, why = done.complaints
    assert first == f"  {MODEL} x {MLVU}: 1 of 3 questions have no answer, about movie101_66.mp4"
    assert why.startswith("  MLVU/2_needle/movie101_66: ")
    damaged.write_bytes(b"")
    done = run("--reuse", KEEP_GOING="1")
    assert done == Ran(0, [], [[], ["2_needle/movie101_66"]])
    assert not any("Failed to" in text for text in predictions(tmp_path, 2, MLVU))
    assert run("--reuse") == Ran(0, [], [[], []])


@pytest.mark.parametrize("what", ["build:0", "build:1", "reuse:0"])
def test_a_rank_that_leaves_a_dataset_takes_the_others_along(run, tmp_path, what):
    done = run(STANDIN_RANK_FAILS=what)
    assert done.code == 1
    [line] = done.complaints
    assert line.startswith(f"  {MODEL} x {MLVU}: ")
    assert len(predictions(tmp_path, 1, NEXT)) == 4
    assert [len(each) for each in done.asked] == [2, 2]


def test_a_model_that_cannot_be_built_in_one_rank_is_told_of_each_dataset(run):
    done = run(STANDIN_RANK_FAILS="model:1")
    assert done.complaints == [
        f"  {MODEL} x {config}: rank 1 has left this dataset: rank 1 cannot"
        for config in (MLVU, NEXT)
    ]


def test_a_rank_without_a_question_is_no_failure(run):
    done = run(data=["Video_Holmes_128frame"], world=3)
    assert done == Ran(0, [], [["0at001QMutY"], ["0at001QMutY"], []])
