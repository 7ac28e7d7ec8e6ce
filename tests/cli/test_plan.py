"""featstore plan."""

from __future__ import annotations

import builtins
import json
import shutil

import pytest
from click.testing import CliRunner

from featstore.cli import main
from featstore.encoders.longva.shape import FeatureShape


def plan(*words: object):
    return CliRunner().invoke(main, ["plan", *map(str, words)])


@pytest.fixture
def of_7b(monkeypatch, tmp_path):
    """The words of a plan for LongVA-7B, whose configs are not read."""
    monkeypatch.setattr(
        "featstore.encoders.longva.shape.feature_shape",
        lambda *given, **options: FeatureShape(1, 144, 3584),
    )
    monkeypatch.setattr("featstore.pipeline.room.free_bytes", lambda path: 100 << 30)
    return ("--model-path", "7b", "--cache-dir", tmp_path / "none", "--videos-count")


def test_a_guess_is_a_table_of_storages_and_ends_with_4_if_it_does_not_fit(of_7b):
    done = plan(*of_7b, 900, "--hours", 254, "--quantize", "int8", "--scale", "channel")
    assert done.exit_code == 0, done.output
    assert "254:00:00" in done.stdout
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["int8/channel", "55.39", "GiB", "63.0", "MiB", "yes", "this", "plan"] in rows
    assert ["fp32", "221.49", "GiB", "252.0", "MiB", "no"] in rows
    assert "0.14 s of an H100" in done.stdout
    full = plan(*of_7b, 900, "--quantize", "bf16", "--json")
    assert full.exit_code == 4
    found = json.loads(full.stdout)
    assert (found["fits"], len(found["why_not"]), found["datasets"][0]["files"]) == (False, 1, 1)
    names = ("needed_bytes", "least_needed_bytes")
    assert found["by_storage"]["bf16"] == {name: found[name] for name in names}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--videos-count", 3, "--measure"], "leave out --measure"),
        (["--videos-count", 3, "--videos", "."], "leave out --videos"),
        (["--videos-count", 3, "--lmms-tasks", "mlvu_dev"], "leave out --lmms-tasks"),
        (["--hours", 3], "name both"),
        (["--videos-count", 3, "--hours", "nan"], "'nan' is not a finite number"),
        (["--videos-count", 3], "name the checkpoint with --model-path"),
        ([], "with --videos, with --manifest, with --datasets or with --lmms-tasks"),
    ],
)
def test_words_that_do_not_go_together_are_wrong_usage(words, message, tmp_path):
    done = plan("--cache-dir", tmp_path, *words)
    assert done.exit_code == 2
    assert message in " ".join(done.stderr.split())


def test_a_plan_names_bad_files_and_touches_nothing(clips, tmp_path):
    (clips / "odd name.mp4").write_bytes(b"no video")
    shutil.copy(clips / "blink.mp4", clips / "ü blink.mp4")
    cache = tmp_path / "new" / "cache"
    words = ("--encoder", "toy", "--videos", clips, "--dataset", "demo", "--cache-dir", cache)
    done = plan(*words)
    assert done.exit_code == 0, done.output
    assert "unreadable: odd name: " in done.stdout
    assert done.stdout.splitlines()[1].split() == ["demo", "5", "0", "0", "1", "4", "0:12"]
    assert not cache.parent.exists()


@pytest.mark.slow
def test_a_measured_plan_has_this_machines_rates_and_bytes(clips, tmp_path):
    words = (
        "--encoder",
        "toy",
        "--videos",
        clips,
        "--dataset",
        "demo",
        "--cache-dir",
        tmp_path / "c",
    )
    more = ("--nframe", 16, "--quantize", "fp32", "--codec", "planes", "--measure", "--json")
    found = json.loads(plan(*words, *more).stdout)
    assert found["rates"]["videos"] == 3
    assert found["needed_bytes"] == found["least_needed_bytes"]
    assert 0 < found["least_seconds"] <= found["seconds"]


def test_a_picture_is_drawn_and_its_library_named_if_it_is_missing(of_7b, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    target = tmp_path / "a plan.png"
    drawn = plan(*of_7b, 900, "-o", target)
    assert (drawn.exit_code, drawn.stderr) == (0, f"written to {target}\n")
    assert target.read_bytes().startswith(b"\x89PNG")
    wrong = plan(*of_7b, 900, "-o", tmp_path / "none" / "plan.png")
    assert (wrong.exit_code, wrong.stdout[:7]) == (1, "dataset")
    assert "cannot be written" in wrong.stderr
    original = builtins.__import__

    def without(name, *rest, **more):
        if name.startswith("matplotlib"):
            raise ImportError(name=name)
        return original(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    missing = plan(*of_7b, 900, "-o", target)
    assert missing.exit_code == 1
    assert "pip install 'featstore[report]'" in missing.stderr
