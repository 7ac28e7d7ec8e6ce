"""Which encoder the options of an ingest mean, and that none of them is dropped in silence."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from make_tiny_vision import make_tiny_vision

from featstore.cli import _ray_options, main
from featstore.cli._ray_options import choose_engine
from featstore.sampling import POLICIES, Sampling


def plan(*words):
    command = ["plan", "--videos-count", "2", "--cache-dir", "cache", "--min-free", "1MB", *words]
    return CliRunner().invoke(main, [str(word) for word in command])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--encoder toy --layer -2", "--encoder toy has no use for them: leave out --layer"),
        (
            "--model-path x --pool cls --clip 8",
            "--encoder longva has no use for them: leave out --pool and --clip",
        ),
        (
            "--encoder toy --model-path x",
            "computes in fp32 on the CPU: leave out --model-path",
        ),
        ("--encoder transformers", "name the checkpoint with --model-path"),
        ("--encoder transformers --model-path x --vision-tower y", "leave out --vision-tower"),
        ("--encoder tyo", "no encoder is called 'tyo'; there are longva"),
        ("--encoder toy --encoder-option grid", "'grid' is no NAME=VALUE"),
        ("--encoder toy --encoder-option a=1 --encoder-option a=2", "with a name of its own"),
        ("--encoder toy --encoder-option colour=1", "cannot be built so"),
    ],
)
def test_an_option_that_means_nothing_is_a_usage_error(words, message):
    found = plan(*words.split())
    assert found.exit_code == 2
    assert message in " ".join(found.output.split())


def test_an_option_of_an_encoder_reaches_it_as_the_value_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ("--encoder", "toy", "--nframe", 4, "--quantize", "fp32", "--json")
    needed = [
        json.loads(plan(*words, "--encoder-option", f"grid={grid}").stdout)["needed_bytes"]
        for grid in (2, 56 // 2)
    ]
    assert needed[1] > needed[0]


@pytest.mark.slow
def test_a_guess_reads_no_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = make_tiny_vision(tmp_path / "dinov2", "dinov2")
    (folder / "model.safetensors").unlink()
    words = ("--encoder", "transformers", "--model-path", folder, "--layer", "-2,-1")
    found = plan(*words, "--nframe", 4, "--json")
    assert found.exit_code == 0, found.output
    wrong = plan(*words, "--pool", "joint")
    assert wrong.exit_code == 2
    assert "has patch, cls, mean, pooler" in " ".join(wrong.output.split())


def test_the_help_names_every_rule_of_sampling():
    text = " ".join(CliRunner().invoke(main, ["ingest", "--help"]).output.split())
    rules = text[text.index("Which frames to take") : text.index("--quantize")]
    assert [name for name in POLICIES if name not in rules] == []
    assert Sampling.parse("qwen:fps=2,min=4,max=768") == Sampling(768, "qwen", 2)


@pytest.mark.parametrize(
    ("encoder", "dtype"), [("longva", "fp16"), ("transformers", "bf16"), ("qwen_vl", "bf16")]
)
def test_workers_with_gpus_compute_in_what_a_gpu_of_this_machine_would(monkeypatch, encoder, dtype):
    seen = []
    monkeypatch.setattr(_ray_options, "choose_encoder", seen.append)
    monkeypatch.setattr(_ray_options, "encoder_recipe", lambda options, device: None)
    options = {"engine": "ray", "encoder_name": encoder, "devices": "auto", "dtype": "auto"}
    options |= dict.fromkeys(("address", "ray_workers", "gpus_per_worker"))
    choose_engine(options)
    assert [found["dtype"] for found in seen] == [dtype]
