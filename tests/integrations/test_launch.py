from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import types

import pytest
from toys import python_env

from featstore.errors import FeatstoreError, MissingExtra
from featstore.integrations.vlmevalkit import ranks
from featstore.integrations.vlmevalkit.find_vlmevalkit import find_run_py, import_vlmevalkit
from featstore.integrations.vlmevalkit.launch import run_vlmevalkit
from featstore.integrations.vlmevalkit.outcome import Outcome

pytestmark = pytest.mark.slow

QUESTIONS = {"Video-MME_128frame": 4, "TempCompass_128frame": 4}


def test_run_py_runs_as_it_is_with_models_and_benchmarks_registered(run, noted, tmp_path):
    before = list(sys.argv)
    run(
        "--model",
        "LongVA-7B-Cached",
        "LongVA-Temporal-v1-Cached",
        "--data",
        *QUESTIONS,
        checkpoints={"LongVA-Temporal-v1-Cached": "v1"},
    )
    assert [built.checkpoint for built in noted.built] == ["lmms-lab/LongVA-7B-DPO", "v1"]
    for model in ("LongVA-7B-Cached", "LongVA-Temporal-v1-Cached"):
        for dataset, count in QUESTIONS.items():
            file = tmp_path / "outputs" / model / "T1" / f"{model}_{dataset}.json"
            assert len(json.loads(file.read_text())) == count
    assert sys.argv == before
    assert os.environ["STANDIN_ENV_LOADED"] == "1"
    assert sys.modules["run"].RANK == 0


def test_a_dataset_that_fails_does_not_end_the_run_but_is_reported(
    run, noted, monkeypatch, tmp_path
):
    def generate(self, prompt, video=None, *, dataset=None, **options):
        if dataset == "TempCompass":
            raise RuntimeError("no room on the device")
        return "yes"

    monkeypatch.setattr(noted, "generate", generate)
    with pytest.raises(FeatstoreError) as caught:
        run(
            "--model",
            "LongVA-7B-Cached",
            "--data",
            "TempCompass_128frame",
            "Nonsense",
            "Video-MME_128frame",
        )
    assert str(caught.value).splitlines()[1:-1] == [
        "  LongVA-7B-Cached x TempCompass_128frame: no room on the device",
        "  LongVA-7B-Cached x Nonsense: VLMEvalKit does not have this dataset",
    ]
    done = tmp_path / "outputs/LongVA-7B-Cached/T1/LongVA-7B-Cached_Video-MME_128frame.json"
    assert done.exists()


def test_a_model_that_there_is_not_is_refused_before_run_py_works(run):
    """run.py ended in `KeyError: 'LongVA-7b-Cached'`."""
    with pytest.raises(FeatstoreError, match=r"no model .*did you mean 'LongVA-7B-Cached'.*Qwen3"):
        run("--model", "LongVA-7B-Cached", "LongVA-7b-Cached", "--data", "MLVU_128frame")


def test_nothing_loads_torch_before_run_py_hands_out_the_gpus(kit, tmp_path):
    """In a process of its own, by the command."""
    command = [sys.executable, "-m", "featstore", "vlmeval", "--cache-dir", str(tmp_path / "cache")]
    done = subprocess.run(
        [*command, "--", "--model", "Other-VLM", "--data", "Nonsense"],
        capture_output=True,
        text=True,
        env=python_env(kit) | {"VLMEVALKIT_ROOT": str(kit)},
    )
    assert "torch is loaded before the GPUs are handed out: False" in done.stdout
    assert done.stderr.splitlines() == [
        "featstore: VLMEvalKit has not finished:",
        "  Other-VLM x Nonsense: VLMEvalKit does not have this dataset",
        "repair what is named, then run the same command with --reuse",
    ]
    assert done.returncode == 1


def test_run_py_is_looked_for_in_the_clone_then_beside_the_package(kit, monkeypatch, tmp_path):
    assert find_run_py() == kit / "run.py"
    monkeypatch.setenv("VLMEVALKIT_ROOT", str(tmp_path))
    with pytest.raises(
        MissingExtra, match=f"no run.py of VLMEvalKit at {tmp_path}/run.py; name it with --run-py"
    ):
        find_run_py()


def test_a_missing_requirement_of_vlmevalkit_is_named(kit, monkeypatch):
    monkeypatch.setitem(sys.modules, "standin_rows", None)
    with pytest.raises(
        MissingExtra, match="needs the module standin_rows: install its requirements"
    ):
        import_vlmevalkit("vlmeval.dataset")


@pytest.mark.parametrize(("cuda", "backend"), [(False, "gloo"), (True, "nccl")])
def test_ranks_meet_over_gloo_only_where_there_is_no_gpu(monkeypatch, cuda, backend):
    import torch
    import torch.distributed as dist

    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(dist, "init_process_group", lambda **options: asked.append(options))
    monkeypatch.setenv("WORLD_SIZE", "2")
    ranks._let_cpus_meet()
    dist.init_process_group(backend="nccl", timeout=1)
    assert asked == [{"backend": backend, "timeout": 1}]


def test_a_run_py_that_cannot_tell_what_it_finished_is_refused():
    old = types.ModuleType("run")
    old.__file__ = "run.py"
    with pytest.raises(
        MissingExtra, match=r"run\.py has no upsert_dataset_status.*update VLMEvalKit"
    ):
        Outcome(old)


def test_ranks_build_a_dataset_one_after_another(monkeypatch, tmp_path):
    """And one of run.py's two functions may call the other."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    run = types.ModuleType("run")

    def is_free() -> bool:
        [place] = tmp_path.iterdir()
        with open(place) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        return True

    run.build_dataset_from_config = lambda name: (name, is_free())
    run.build_dataset_from_cli = lambda name: run.build_dataset_from_config(name)
    ranks._build_in_turn(run)
    assert run.build_dataset_from_cli("MLVU") == ("MLVU", False)
    assert run.build_dataset_from_config("MLVU") == ("MLVU", False)
    assert is_free()


def test_a_file_that_is_no_python_is_not_taken_for_run_py(tmp_path):
    clip = tmp_path / "blink.mp4"
    clip.write_bytes(b"x")
    with pytest.raises(MissingExtra, match=r"blink\.mp4 is not a Python file; .*--run-py"):
        run_vlmevalkit([], clip)
