"""tools/eval_longva_video_128f_parallel_cached.sh, with notes taken in the place of python and torchrun."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "eval_longva_video_128f_parallel_cached.sh"
NOTES = """#!/usr/bin/env bash
echo "${0##*/} [$CUDA_VISIBLE_DEVICES] $*" >>"$NOTES"
case $* in
    *"$FAILS"*) exit "$CODE" ;;
    *vlmeval*) printf 'Vision Cache Statistics:\\n  Cache hits: 5\\n  Cache misses: 2\\n' >&2 ;;
esac
"""


@pytest.fixture
def evaluate(tmp_path):
    """Run the script on two models and two benchmarks; give the process, and what was called."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("python", "torchrun"):
        (folder / name).write_text(NOTES)
        (folder / name).chmod(0o755)
    notes = tmp_path / "notes"

    def evaluate(*options: str, fails: str = "nothing", code: int = 1):
        env = {
            **os.environ,
            "PATH": f"{folder}:{os.environ['PATH']}",
            "NOTES": str(notes),
            "FAILS": fails,
            "CODE": str(code),
            "CUDA_VISIBLE_DEVICES": "4,7",
        }
        few = (
            "--models",
            "LongVA-7B-Cached Temporal-v1-Cached",
            "--data",
            "MLVU_128frame VideoMMMU_128frame",
        )
        notes.write_text("")
        done = subprocess.run(
            [SCRIPT, *few, *options], env=env, cwd=tmp_path, capture_output=True, text=True
        )
        return done, sorted(notes.read_text().splitlines())

    return evaluate


def summary(done) -> list[list[str]]:
    lines = done.stdout.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("model "))
    return [line.split() for line in lines[first + 1 : -1]]


def test_features_are_stored_first_then_runs_go_to_free_gpus(evaluate):
    done, calls = evaluate(
        "--cache-dir", "cache", "--option", "dtype=fp16", "--", "--judge", "exact_matching"
    )
    assert done.returncode == 0, done.stderr
    ingests = [call for call in calls if "featstore ingest" in call]
    assert ingests == [
        "python [4] -m featstore ingest --datasets MLVU_128frame VideoMMMU_128frame "
        f"--model-path {checkpoint} --cache-dir cache"
        for checkpoint in ("Eculid/Temporal-v1", "lmms-lab/LongVA-7B")
    ]
    runs = [call for call in calls if "featstore vlmeval" in call]
    assert len(runs) == 4
    assert {call.split()[1] for call in runs} <= {"[4]", "[7]"}
    assert all("--option dtype=fp16" in call for call in runs)
    assert all(
        call.endswith("--mode all --work-dir outputs --reuse --judge exact_matching")
        for call in runs
    )
    assert [row[2:] for row in summary(done)] == [["finished", "0", "5", "2"]] * 4


def test_a_run_that_failed_is_told_and_alone_is_tried_again(evaluate):
    done, _ = evaluate("--no-ingest", fails="--model Temporal-v1-Cached --data MLVU_128frame")
    assert done.returncode == 1
    assert [row[2] for row in summary(done)].count("unfinished") == 1
    assert "1 runs are not finished" in done.stderr
    done, calls = evaluate("--no-ingest")
    assert done.returncode == 0
    [call] = calls
    assert "--model Temporal-v1-Cached --data MLVU_128frame" in call


def test_torchrun_shares_each_run_out_over_all_gpus(evaluate):
    _, calls = evaluate("--no-ingest", "--torchrun", "--mode", "infer")
    assert len(calls) == 4
    for call in calls:
        assert call.startswith(
            "torchrun [4,7] --standalone --nproc-per-node 2 -m featstore vlmeval"
        )


@pytest.mark.parametrize(("code", "calls_made"), [(1, 1), (3, 6)])
def test_videos_that_failed_end_nothing_but_an_ingest_that_failed_does(evaluate, code, calls_made):
    done, calls = evaluate(fails="featstore ingest", code=code)
    assert done.returncode == (code == 1)
    assert len(calls) == calls_made


@pytest.mark.parametrize(
    "arguments", [["--bogus"], ["--bogus", "x"], ["x"], ["--models", "Unknown"], ["--mode"]]
)
def test_wrong_usage_is_told(arguments):
    done = subprocess.run([SCRIPT, *arguments], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.endswith("see --help\n")


def test_help_names_every_option():
    done = subprocess.run([SCRIPT, "--help"], capture_output=True, text=True, check=True)
    named = set(re.findall(r"^ +(--[a-z-]+)(?: \| -h)?\)", SCRIPT.read_text(), flags=re.MULTILINE))
    assert len(named) == 13
    assert all(f"  {name} " in done.stdout for name in named)
