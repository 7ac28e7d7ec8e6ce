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
    *"$FAILS"*) [ -z "$SAYS" ] || printf "$SAYS" >&2; exit "$CODE" ;;
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

    def evaluate(
        *options: str, fails: str = "nothing", code: int = 1, says: str = "", gpus: str = "4,7"
    ):
        env = {
            **os.environ,
            "PATH": f"{folder}:{os.environ['PATH']}",
            "NOTES": str(notes),
            "FAILS": fails,
            "CODE": str(code),
            "SAYS": says,
            "CUDA_VISIBLE_DEVICES": gpus,
        }
        few = (
            "--models",
            "LongVA-7B-Cached LongVA-Temporal-v1-Cached",
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
        "python [4,7] -m featstore ingest --datasets MLVU_128frame VideoMMMU_128frame "
        f"--model-path {checkpoint} --cache-dir cache --device cuda:0,cuda:1"
        for checkpoint in ("Eculid/Temporal-v1", "lmms-lab/LongVA-7B-DPO")
    ]
    runs = [call for call in calls if "featstore vlmeval" in call]
    assert len(runs) == 4
    assert {call.split()[1] for call in runs} <= {"[4]", "[7]"}
    assert all("--cache-dir cache --keep-going --option dtype=fp16" in call for call in runs)
    assert all(
        call.endswith("--mode all --work-dir outputs --reuse --judge exact_matching")
        for call in runs
    )
    assert [row[2:] for row in summary(done)] == [["finished", "0", "5", "2"]] * 4


def test_a_run_that_failed_is_told_and_alone_is_tried_again(evaluate):
    done, _ = evaluate(
        "--no-ingest", fails="--model LongVA-Temporal-v1-Cached --data MLVU_128frame"
    )
    assert done.returncode == 1
    assert [row[2] for row in summary(done)].count("unfinished") == 1
    assert "1 runs are not finished" in done.stderr
    done, calls = evaluate("--no-ingest")
    assert done.returncode == 0
    [call] = calls
    assert "--model LongVA-Temporal-v1-Cached --data MLVU_128frame" in call


def test_what_a_run_could_not_read_is_named_at_the_end_and_the_first_run_alone(evaluate):
    fails = "--model LongVA-Temporal-v1-Cached --data MLVU_128frame"
    said = (
        "featstore: VLMEvalKit has not finished:\\n  a video\\nrepair what is named, then go on\\n"
    )
    evaluate("--no-ingest", fails=fails, says=said)
    done, _ = evaluate("--no-ingest", fails=fails, says="E1127 torchrun\\n" + said)
    assert done.stderr.splitlines()[:-1] == [
        "featstore: VLMEvalKit has not finished:",
        "  a video",
        "repair what is named, then go on",
    ]


def test_how_features_are_made_and_stored_is_told_to_ingest_and_models_alike(evaluate):
    done, calls = evaluate(
        "--quantize", "bf16", "--scale", "token", "--dtype", "bf16", "--sampling", "midpoint", "--decoder", "exact",
        "--ingest-option", "--codec", "--ingest-option", "lz4",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for call in calls:
        if " ingest " in call:
            assert call.endswith(
                "--quantize bf16 --scale token --dtype bf16 --sampling midpoint --decoder exact --codec lz4"
            )
        else:
            assert (
                "--option quantize=bf16 --option scale=token --option dtype=bf16 --option sampling=midpoint "
                "--option decoder=exact" in call
            )


def test_one_gpu_or_none_is_left_to_ingest_to_find(evaluate):
    _, calls = evaluate(gpus="5")
    ingests = [call for call in calls if " ingest " in call]
    assert all(call.startswith("python [5]") and "--device" not in call for call in ingests)


def test_models_without_the_store_need_no_ingest(evaluate):
    done, calls = evaluate("--models", "LongVA-7B LongVA-7B-Cached", "--no-keep-going")
    assert done.returncode == 0, done.stderr
    assert sum(" ingest " in call for call in calls) == 1
    runs = [call for call in calls if " vlmeval " in call]
    assert sum("--model LongVA-7B --data" in call for call in runs) == 2
    assert not any("--keep-going" in call for call in runs)


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
    assert len(named) == 20
    assert all(f"\n  {name} " in done.stdout for name in named)
